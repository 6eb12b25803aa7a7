"""Forms that go as deep as one wishes, each in a way of its own, as callers could send them."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from models.ports.generate import (
    Constraint,
    GrammarConstraint,
    JsonSchemaConstraint,
    RegexConstraint,
    ToolConstraint,
    ToolSpec,
)


def _chained(link: Callable[[dict[str, str]], dict[str, Any]], depth: int) -> str:
    definitions: dict[str, Any] = {f"D{n}": link({"$ref": f"#/$defs/D{n + 1}"}) for n in range(depth)}
    definitions[f"D{depth}"] = {"type": "boolean"}
    return json.dumps(
        {
            "$defs": definitions,
            "type": "object",
            "properties": {"x": {"$ref": "#/$defs/D0"}},
            "required": ["x"],
            "additionalProperties": False,
        }
    )


def _nested(opening: str, closing: str, depth: int) -> str:
    return f'{{"type": "object", "properties": {{"x": {opening * depth}{{"type": "boolean"}}{closing * depth}}}}}'


def _object(inner: dict[str, str]) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": inner}, "required": ["a"], "additionalProperties": False}


SCHEMAS: Mapping[str, Callable[[int], str]] = {
    "$ref": lambda depth: _chained(dict, depth),
    "object": lambda depth: _chained(_object, depth),
    "anyOf": lambda depth: _chained(lambda inner: {"anyOf": [{"type": "null"}, inner]}, depth),
    "allOf": lambda depth: _chained(lambda inner: {"allOf": [inner]}, depth),
    "oneOf": lambda depth: _chained(lambda inner: {"oneOf": [{"type": "null"}, inner]}, depth),
    "items": lambda depth: _chained(lambda inner: {"type": "array", "items": inner}, depth),
    "prefixItems": lambda depth: _chained(lambda inner: {"type": "array", "prefixItems": [inner]}, depth),
    "additionalProperties": lambda depth: _chained(
        lambda inner: {"type": "object", "additionalProperties": inner}, depth
    ),
    "nested arrays": lambda depth: _nested('{"type": "array", "items": ', "}", depth),
    "nested objects": lambda depth: _nested('{"type": "object", "properties": {"a": ', "}}", depth),
    "nested default": lambda depth: f'{{"type": "object", "default": {"[" * depth}{"]" * depth}}}',
}

GRAMMARS: Mapping[str, Callable[[int], str]] = {
    "rules": lambda depth: "\n".join(["start: r0", *(f'r{n}: "a" r{n + 1}' for n in range(depth)), f'r{depth}: "b"']),
    "terminals": lambda depth: "\n".join(
        ["start: T0", *(f'T{n}: "a" T{n + 1}' for n in range(depth)), f'T{depth}: "b"']
    ),
    "brackets": lambda depth: f'start: {"(" * depth}"a"{")" * depth}',
    "a schema within": lambda depth: f"start: %json {SCHEMAS['object'](depth)}",
}

EXPRESSIONS: Mapping[str, Callable[[int], str]] = {
    "groups": lambda depth: "(" * depth + "a" + ")" * depth,
    "options": lambda depth: "(a" * depth + ")?" * depth,
    "many options": lambda depth: "a?" * depth,
    "choices": lambda depth: "|".join(["ab"] * depth),
}


def _tool(schema: str) -> Constraint:
    return ToolConstraint(tools=(ToolSpec(name="f", description="", parameters=schema),), choice="required")


FORMS: Mapping[str, Callable[[int], Constraint]] = {
    **{
        f"schema: {name}": lambda depth, made=made: JsonSchemaConstraint(schema=made(depth))
        for name, made in SCHEMAS.items()
    },
    **{f"tool: {name}": lambda depth, made=made: _tool(made(depth)) for name, made in SCHEMAS.items()},
    **{
        f"grammar: {name}": lambda depth, made=made: GrammarConstraint(grammar=made(depth))
        for name, made in GRAMMARS.items()
    },
    **{
        f"expression: {name}": lambda depth, made=made: RegexConstraint(pattern=made(depth))
        for name, made in EXPRESSIONS.items()
    },
}
"""A form of each kind, as deep as it is asked for."""
