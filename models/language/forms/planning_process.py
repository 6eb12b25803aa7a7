"""The process that `models.language.forms.planning` asks: what is to be planned in, the plan or what is wrong with it out, both pickled.

Asked about no level, it says what is wrong with each function alone, by its place among them.

Both ends are one installation, and the pipe between them has no other door.
"""

import base64
import json
import pickle
from functools import lru_cache
from typing import Any

import jsonschema_rs as rs

from models.errors import BadInput, BatonError
from models.language.decoding.form_depth import check_depth
from models.language.forms.answering import serve
from models.language.forms.emptiness import why_empty
from models.language.forms.judge import told, validator_of
from models.language.forms.plan import Level, Plan, plan
from models.ports.generate import Constraint, JsonSchemaConstraint, ToolConstraint


def holds(schema: dict[str, Any]) -> bool:
    """Return whether llguidance makes a grammar of a small schema, such as an expression or two bounds."""
    return _holds(json.dumps(schema))


@lru_cache(2048)
def _holds(schema: str) -> bool:
    # Not where models are remote: it is not installed there.
    from llguidance import LLMatcher, LLTokenizer

    from models.language.decoding.form_limits import LIMITS
    from models.language.tool_format import JSON_STYLE

    # Whether there is a grammar is no matter of the vocabulary: bytes are the smallest.
    source = LLMatcher.grammar_from_json_schema({**json.loads(schema), "x-guidance": JSON_STYLE})
    return not LLMatcher(LLTokenizer("byte"), source, log_level=0, limits=LIMITS).is_error()


def check_schemas(constraint: Constraint) -> None:
    """Check that the schemas of a constraint are some, by the standard's own.

    Raises:
        BadInput: one is none.
    """
    match constraint:
        case JsonSchemaConstraint(schema=text):
            _check(text, "JSON schema", "constraint.json_schema")
        case ToolConstraint(tools=tools, form=form):
            for tool in tools:
                _check(tool.parameters, f"JSON schema of the function {tool.name!r}", constraint.place_of(tool.name))
            if form is not None:
                check_schemas(form)
        case _:
            pass


def _check(text: str, what: str, field: str) -> None:
    try:
        schema = json.loads(text)
        validator_of(json.dumps(_in_newest(schema)), newest=True)
    except rs.ValidationError as exc:
        raise BadInput(f"The {what} is none: {told(exc)}.", field=field) from exc
    except (rs.ReferencingError, ValueError, RecursionError):
        return  # whoever follows references, or reads it, says what is wrong


def check_some_fit(constraint: Constraint) -> None:
    """Check that something may fit the schemas of a constraint, as far as that is seen without any.

    Raises:
        BadInput: `form_unsatisfiable`: surely nothing fits one.
    """
    match constraint:
        case JsonSchemaConstraint(schema=text):
            _check_some_fits(text, "JSON schema", "constraint.json_schema")
        case ToolConstraint(tools=tools, form=form):
            for tool in tools:
                if constraint.choice != "none" and constraint.function in {None, tool.name}:
                    what = f"JSON schema of the function {tool.name!r}"
                    _check_some_fits(tool.parameters, what, constraint.place_of(tool.name), is_object=True)
            if form is not None:
                check_some_fit(form)
        case _:
            pass


def _check_some_fits(text: str, what: str, field: str, *, is_object: bool = False) -> None:
    try:
        is_newest = isinstance(validator_of(text), rs.Draft202012Validator)
    except (rs.ValidationError, rs.ReferencingError, ValueError, RecursionError):
        is_newest = False
    why = why_empty(json.loads(text), is_object=is_object, is_newest=is_newest)
    if why is not None:
        raise BadInput(f"Nothing fits the {what}: {why}. Correct it.", code="form_unsatisfiable", field=field)


def _in_newest(value: Any) -> Any:
    """Return a schema with what older drafts wrote otherwise as the newest has it, as far as it matters for whether it is one."""
    if isinstance(value, list):
        return [_in_newest(each) for each in value]
    if not isinstance(value, dict):
        return value
    said = {name: _in_newest(each) for name, each in value.items()}
    for name in ("exclusiveMinimum", "exclusiveMaximum"):  # draft 4 has a word beside a bound
        if isinstance(said.get(name), bool):
            del said[name]
    if isinstance(said.get("items"), list):
        said["prefixItems"] = said.pop("items")
    return said


def _planned(constraint: Constraint, level: Level, *, remote: bool) -> Plan:
    made = plan(constraint, (lambda _: True) if remote else holds, level, remote=remote)
    check_schemas(constraint)  # after it, which says more plainly what is wrong with what it knows
    check_some_fit(constraint)
    return made


def _faults(constraint: ToolConstraint, *, remote: bool) -> dict[int, BatonError]:
    """Return what is wrong with functions, each looked at alone, by their places."""
    faults: dict[int, BatonError] = {}
    for at, tool in enumerate(constraint.tools):
        alone = ToolConstraint(tools=(tool,))
        try:
            if not remote:  # an engine's own grammars are as deep as native code can follow
                check_depth(alone)
            _planned(alone, "whole", remote=remote)
        except BatonError as exc:
            exc.field = f"tools[{at}].parameters"
            faults[at] = exc
    return faults


def planned(asked: str) -> str:
    """Return the plan."""
    constraint, level, remote = pickle.loads(base64.b64decode(asked))
    try:
        if level is None:
            made: object = _faults(constraint, remote=remote)
        else:
            made = _planned(constraint, level, remote=remote)
    except BatonError as exc:
        made = exc
    finally:
        # It helped within this question only: how long the next one takes tells nobody what another has asked.
        _holds.cache_clear()
        validator_of.cache_clear()
    return base64.b64encode(pickle.dumps(made)).decode()


if __name__ == "__main__":
    serve(planned)
