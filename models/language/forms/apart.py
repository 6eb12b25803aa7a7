"""Which values a schema takes at most, and whether two schemas have any in common."""

import math
from collections.abc import Callable
from typing import Any

from models.errors import BadInput, LimitExceeded
from models.language.forms.pointers import pointer_of

TYPES = frozenset({"null", "boolean", "object", "array", "number", "integer", "string"})

MOST_DEPTH = 100
"""How deep schemas, and the values in them, may be nested."""

_LAST = 1 << 53  # llguidance rounds larger integers to floats

SAYING = frozenset(
    {
        "$ref",
        "type",
        "enum",
        "const",
        "pattern",
        "format",
        "minLength",
        "maxLength",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "if",
    }
)


def are_apart(one: object, other: object, target: Callable[[object], object]) -> bool:
    """Return whether no value fits both."""
    if one is False or other is False:
        return True
    if not isinstance(one, dict) or not isinstance(other, dict):
        return False
    first, second = listed_values(one), listed_values(other)
    if first is not None and second is not None:
        return not any(is_same(a, b) for a in first for b in second)
    if not kinds_of(one) & kinds_of(other):
        return True
    if kinds_of(one) != {"object"} or kinds_of(other) != {"object"}:
        return False
    shared = set(one.get("required") or ()) & set(other.get("required") or ())
    mine, theirs = one.get("properties") or {}, other.get("properties") or {}
    return any(
        (a := listed_values(target(mine.get(name)))) is not None
        and (b := listed_values(target(theirs.get(name)))) is not None
        and not any(is_same(x, y) for x in a for y in b)
        for name in shared
    )


def listed_values(node: object) -> list[Any] | None:
    """Return the values that a schema lists, if it does."""
    if not isinstance(node, dict):
        return None
    values = [node["const"]] if "const" in node else node.get("enum")
    return values if isinstance(values, list) and len(values) <= 256 else None


def is_same(one: object, other: object) -> bool:
    """Return whether two values are one by JSON Schema: true is no number."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def kinds_of(node: dict[str, Any]) -> set[str]:
    """Return the types of the values that a schema takes at most, integers as numbers."""
    if (listed := listed_values(node)) is not None:
        return {_kind(value) for value in listed}
    return {"number" if kind == "integer" else kind for kind in named_kinds(node) or TYPES}


def named_kinds(node: dict[str, Any]) -> set[str]:
    """Return the types that a schema names itself; none if any is taken."""
    kinds = node.get("type")
    return {kinds} if isinstance(kinds, str) else set(kinds) if isinstance(kinds, list) else set()


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def admits_strings(node: dict[str, Any]) -> bool:
    """Return whether strings are among the types that a schema takes."""
    return (
        "type" not in node or node["type"] == "string" or (isinstance(node["type"], list) and "string" in node["type"])
    )


def is_plain(value: object, path: tuple[str, ...]) -> bool:
    """Return whether a grammar can say `value`: its integers are such that a float says them, and its floats are finite."""
    waiting = [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        if depth > MOST_DEPTH:
            raise LimitExceeded(f"A value at {pointer_of(path) or 'the top'} of the schema is nested too deep.")
        match one:
            case bool():
                pass
            case int():
                if abs(one) > _LAST:
                    return False
            case float():
                if not math.isfinite(one):
                    raise BadInput(f"A value at {pointer_of(path) or 'the top'} of the schema is no finite number.")
            case list():
                waiting += [(each, depth + 1) for each in one]
            case dict():
                waiting += [(each, depth + 1) for each in one.values()]
            case _:
                pass
    return True
