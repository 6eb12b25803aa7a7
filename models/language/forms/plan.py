"""What an engine is asked to hold of a request's schemas, and what is left to check once the answer is written."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from models.errors import BadInput
from models.language.forms.loosen import Loosened, loosen
from models.ports.generate import Constraint, JsonSchemaConstraint, ToolConstraint, ToolSpec

Level = Literal["whole", "narrow", "coarse", "bare"]
"""How much of a schema is held: all that can be; of that only what surely fits; its outline; that it is JSON."""

Holds = Callable[[dict[str, Any]], bool]
"""Whether a grammar can be made of a small schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One attempt at an answer.

    Attributes:
        constraint: what the engine holds it to.
        form: the schema, as JSON text, that an answer in words is checked against; None if it surely fits.
        tools: likewise for arguments, by the function's name; without those that surely fit.
    """

    constraint: Constraint
    form: str | None = None
    tools: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_checked(self) -> bool:
        """Whether anything is left to check."""
        return self.form is not None or bool(self.tools)


def has_schema(constraint: Constraint | None) -> bool:
    """Return whether there is a schema in `constraint` that an answer could break."""
    match constraint:
        case JsonSchemaConstraint():
            return True
        case ToolConstraint(choice=choice, tools=tools, form=form):
            return (choice != "none" and bool(tools)) or has_schema(form)
        case _:
            return False


def plan(constraint: Constraint, holds: Holds, level: Level = "whole", *, remote: bool = False) -> Plan:
    """Return what is to be held of `constraint` by an engine whose grammars hold what `holds` says.

    A `remote` server is told schemas as they are. What is strict it holds, or refuses; what is not, it need not hold where
    that is more than grammars do.

    Raises:
        BadInput: a schema is none, or is strict and cannot be held.
        LimitExceeded: one is too large.
    """
    match constraint:
        case JsonSchemaConstraint():
            return _of_form(constraint, holds, level, remote=remote)
        case ToolConstraint():
            return _of_tools(constraint, holds, level, remote=remote)
        case _:
            return Plan(constraint=constraint)


def _of_form(form: JsonSchemaConstraint, holds: Holds, level: Level, *, remote: bool) -> Plan:
    if remote and form.strict:
        return Plan(constraint=form)
    loosened = _loosened(
        form.schema, holds, level, strict=form.strict, what="JSON schema", field="constraint.json_schema"
    )
    is_checked = bool(loosened.dropped)
    held = replace(form, lenient=is_checked)
    if not remote:
        held = replace(held, schema=json.dumps(loosened.schema))
    return Plan(constraint=held, form=form.schema if is_checked else None)


def _of_tools(constraint: ToolConstraint, holds: Holds, level: Level, *, remote: bool) -> Plan:
    tools: list[ToolSpec] = []
    checks: dict[str, str] = {}
    for tool in constraint.tools:
        is_offered = constraint.choice != "none" and constraint.function in {None, tool.name}
        if is_offered and not (remote and tool.strict):
            what = f"JSON schema of the function {tool.name!r}"
            loosened = _loosened(
                tool.parameters, holds, level, strict=tool.strict, what=what, field=constraint.place_of(tool.name)
            )
            if loosened.dropped:
                checks[tool.name] = tool.parameters
            if not remote:
                tool = replace(tool, held=json.dumps(loosened.schema))
        tools.append(tool)
    held = replace(constraint, tools=tuple(tools))
    if not isinstance(constraint.form, JsonSchemaConstraint):
        return Plan(constraint=held, tools=checks)
    form = _of_form(constraint.form, holds, level, remote=remote)
    assert isinstance(form.constraint, JsonSchemaConstraint)
    return Plan(constraint=replace(held, form=form.constraint), form=form.form, tools=checks)


def _loosened(text: str, holds: Holds, level: Level, *, strict: bool, what: str, field: str) -> Loosened:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadInput(f"The {what} is no JSON: {exc}.", field=field) from exc
    if not isinstance(schema, dict):
        raise BadInput(f"The {what} has to be an object.", field=field)
    try:
        loosened = loosen(
            schema, holds=holds, strict=strict, narrow=level == "narrow", coarse=level in {"coarse", "bare"}
        )
    except BadInput as exc:
        raise type(exc)(f"The {what} cannot be enforced: {exc.message}", code=exc.code, field=field) from exc
    if strict and loosened.dropped:
        first = loosened.dropped[0]
        more = f" and {len(loosened.dropped) - 1} more" if len(loosened.dropped) > 1 else ""
        raise BadInput(
            f"The {what} cannot be enforced: {first}{more}. Leave that out, or leave out 'strict': then the answer is "
            "checked once it is written.",
            field=field,
        )
    if level == "bare":
        return Loosened(schema={"type": "object"} if schema.get("type") == "object" else {}, dropped=loosened.dropped)
    return loosened
