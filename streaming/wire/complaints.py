"""What does not fit, in the API's own words: which field, what was expected there, and what came.

Pydantic complains once for each member of a union, in places that name members besides fields, and in words of its own.
Here the complaint is found that the caller can act on. A field is written as OpenAI writes it: `messages[0].content[1].text`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from models.errors import BadInput, Unsupported, quoted

PathStep = str | int

_TYPES: Mapping[str, str] = {
    "bool_parsing": "a boolean",
    "bool_type": "a boolean",
    "dict_type": "an object",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer",
    "int_type": "an integer",
    "list_type": "an array",
    "model_attributes_type": "an object",
    "model_type": "an object",
    "none_required": "null",
    "string_type": "a string",
}
"""What was expected, where something of another type came."""

_SHOULD = re.compile(r"^(Input|String|Value|Number) should")
_VALUE_CHARACTERS = 64


def complaint(errors: Sequence[ErrorDetails], sent: Any, *, code: str = "invalid_input") -> BadInput:
    """Return the error for `sent`, which does not fit.

    Args:
        errors: what the validator says, with the input of each.
        sent: what it was given.
        code: of what is not a field too many.
    """
    found = [(_path(error, sent), error) for error in errors]
    # One fault is told: the first. Of the complaints of a union's members about it, those furthest in: that member is the one
    # that was meant. And of those, one that is not of the type alone: that member took the type.
    first = found[0][0]
    found = [(path, error) for path, error in found if path[: len(first)] == first]
    depth = max(len(path) for path, _ in found)
    deepest = [(path, error) for path, error in found if len(path) == depth]
    path = next((path for path, error in deepest if not _is_of_type(error)), deepest[0][0])
    here = [error for at, error in deepest if at == path]
    field = written(path)
    if not path:
        return BadInput("The body is not the JSON object it has to be.", code=code)
    others = [error for error in here if not _is_of_type(error)]
    if others:
        return _said(field, others[0], code)
    got = here[0]["input"]
    expected = list(dict.fromkeys(word for error in here for word in _expected(error)))
    if len(here) == 1 and here[0]["type"] == "literal_error" and isinstance(got, str):
        return BadInput(
            f"Invalid value for '{field}': {_value(got)}. It has to be {_or(expected)}.", code=code, field=field
        )
    if "a number" in expected and isinstance(got, int) and not isinstance(got, bool):
        return BadInput(f"Invalid '{field}': it is larger than any number can be here.", code=code, field=field)
    came = _value(got) if isinstance(got, str) and any(word.startswith("'") for word in expected) else _kind(got)
    return BadInput(f"Invalid type for '{field}': expected {_or(expected)}, but got {came}.", code=code, field=field)


def not_offered_choice(kind: str) -> str:
    """Return what to say of a choice among tools whose type is not that of a function."""
    if kind == "allowed_tools":
        return (
            "a choice of 'allowed_tools' is not offered. Send in 'tools' only those that may be called, and the mode as "
            "'tool_choice'."
        )
    return f"of tools, only a function can be chosen by name, nothing of the type {quoted(kind)}."


def written(path: Iterable[PathStep]) -> str:
    """Return a path as callers are told it."""
    field = ""
    for step in path:
        if isinstance(step, int):
            field += f"[{step}]"
        else:
            name = step[:_VALUE_CHARACTERS] or "''"  # a name may be empty, or of any length
            field += f".{name}" if field else name
    return field


def _said(field: str, error: ErrorDetails, code: str) -> BadInput:
    match error["type"]:
        case "extra_forbidden":
            return BadInput(f"Unknown or unsupported parameter: '{field}'.", code="unknown_parameter", field=field)
        case "missing" | "union_tag_not_found":
            return BadInput(f"Missing required parameter: '{field}'.", code=code, field=field)
        case "union_tag_invalid":
            context = error["ctx"]
            return BadInput(
                f"Invalid value for '{field}': {_value(context['tag'])}. It has to be "
                f"{_or(context['expected_tags'].split(', '))}.",
                code=code,
                field=field,
            )
        case "too_long" | "too_short":
            most = error["ctx"].get("max_length")
            bound = f"at least {error['ctx'].get('min_length')}" if most is None else f"at most {most}"
            return BadInput(
                f"Invalid '{field}': it has {len(error['input'])} entries, and has to have {bound}.",
                code=code,
                field=field,
            )
        case "not_offered":  # ours; see `not_offered_choice`
            return Unsupported(f"Invalid '{field}.type': {error['msg']}", field=f"{field}.type")
        case _:
            said = _SHOULD.sub("it has to", error["msg"].removeprefix("Value error, "))
            return BadInput(f"Invalid '{field}': {said}.", code=code, field=field)


def _is_of_type(error: ErrorDetails) -> bool:
    return error["type"] in _TYPES or error["type"] == "literal_error"


def _expected(error: ErrorDetails) -> list[str]:
    if error["type"] == "literal_error":
        return str(error["ctx"]["expected"]).replace(" or ", ", ").split(", ")
    return [_TYPES[error["type"]]]


def _or(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _value(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[:_VALUE_CHARACTERS]}…"


def _number(value: int) -> str:
    """Return an integer as it is quoted; Python writes none that is too long."""
    return str(value) if value.bit_length() <= 200 else "one of more than 60 digits"


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return f"a boolean ({str(value).lower()})"
        case int():
            return f"an integer ({_number(value)})"
        case float():
            return f"a decimal number ({_value(value)})"
        case str():
            return f"a string ({_value(value)})"
        case dict():
            return "an object"
        case _:
            return "an array"


# Places


def _path(error: ErrorDetails, sent: Any) -> tuple[PathStep, ...]:
    """Return the fields and places on the way to what is at fault.

    The validator's own place has names of a union's members between them, which nobody wrote, and which may be spelled like
    a field. They are told apart by where they lead: to the input that the validator complains of.
    """
    *steps, last = error["loc"] or ("",)
    is_missing = error["type"] == "missing"
    if is_missing:
        path = next(_ways(steps, sent, error["input"]), None)
        if path is None:  # what asks for nothing was taken out of it
            path = _greedy(steps, sent)
        return () if last == "" else (*path, last)
    path = next(_ways([*steps, last], sent, error["input"]), None)
    if path is None:  # it was changed on the way, as a default or a tag is
        path = _greedy([*steps, last], sent)
    if error["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        name = error["ctx"]["discriminator"].strip("'")
        return (*path, name) if name.isidentifier() else path
    if error["type"] == "item_type":  # ours; see `realtime.events`
        return (*path, "type")
    return path


def _ways(steps: Sequence[PathStep], value: Any, target: Any) -> Iterator[tuple[PathStep, ...]]:
    """Yield the ways along `steps` from `value` to `target`; those that take more steps come first."""
    if not steps:
        if value is target or (type(value) is type(target) and value == target):
            yield ()
        return
    step, *rest = steps
    if _has(value, step):
        for way in _ways(rest, value[step], target):
            yield (step, *way)
    yield from _ways(rest, value, target)


def _greedy(steps: Iterable[PathStep], value: Any) -> tuple[PathStep, ...]:
    path: list[PathStep] = []
    for step in steps:
        if _has(value, step):
            path.append(step)
            value = value[step]
    return tuple(path)


def _has(value: Any, step: PathStep) -> bool:
    if isinstance(value, dict):
        return step in value
    return isinstance(value, list) and isinstance(step, int) and not isinstance(step, bool) and 0 <= step < len(value)
