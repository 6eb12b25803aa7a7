"""What of a schema is said to be held is held, and what is not is named; tried against a validator, by answers chosen by lot."""

import json
import math
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.walks import walk

from models.errors import BadInput, LimitExceeded
from models.language.forms.formats import FORMATS
from models.language.forms.loosen import Loosened, loosen
from models.language.forms.planning_process import holds


def _loosen(schema: Any, **how: bool) -> Loosened:
    return loosen(schema, holds=holds, **how)


def _dropped(schema: Any, **how: bool) -> list[str]:
    return [f"{each.pointer}:{each.keyword}" for each in _loosen(schema, **how).dropped]


def _breaks(schema: Any, held: Any, walks: int = 12) -> list[str]:
    """Return answers that `held` admits and `schema` does not."""
    validator = jsonschema_rs.validator_for(schema, validate_formats=True, offline=True)
    answers = [answer for seed in range(walks) if (answer := walk(held, seed)) is not None]
    return [answer for answer in answers if not validator.is_valid(json.loads(answer))]


_BOUNDS = st.sampled_from([0, 0.1, 0.5, 1, 2, 2.25, -0.1, -0.5, -1, -1.5, 3, 10, 0.01, 99.9, 1e9, -1e9]) | st.floats(
    -1000, 1000, allow_nan=False
)


@settings(deadline=None, max_examples=60)
@given(low=_BOUNDS, high=_BOUNDS, beyond=st.tuples(st.booleans(), st.booleans()), whole=st.booleans())
def test_a_number_between_bounds_is_between_them(
    low: float, high: float, beyond: tuple[bool, bool], whole: bool
) -> None:
    low, high = sorted((low, high))
    if math.floor(high) - math.ceil(low) < 2 and (whole or high - low < 1e-6):
        high = low + 3
    bounds = {
        "exclusiveMinimum" if beyond[0] else "minimum": low,
        "exclusiveMaximum" if beyond[1] else "maximum": high,
    }
    schema = {"type": "integer" if whole else "number", **bounds}
    made = _loosen(schema)
    if all(bound == 0 or 1e-6 <= abs(bound) <= 1e6 for bound in (low, high)):
        assert made.dropped == ()
    assert made.dropped or _breaks(schema, made.schema) == []


@pytest.mark.parametrize(
    "place", ["maximum", "minimum", "exclusiveMinimum", "const", "enum", "default", "examples", "multipleOf"]
)
@pytest.mark.parametrize("kind", ["integer", "number", None])
@settings(deadline=None, max_examples=15)
@example(power=60, sign=1, off=0)
@given(power=st.integers(1, 1400), sign=st.sampled_from((1, -1)), off=st.integers(-2, 2))
def test_an_integer_of_any_size_at_any_place_is_held_or_named(
    place: str, kind: str | None, power: int, sign: int, off: int
) -> None:
    number = sign * 2**power + off
    schema: dict[str, Any] = {place: [number] if place in {"enum", "examples"} else number}
    schema |= {} if kind is None else {"type": kind}
    made = _loosen({"properties": {"a": schema}, "required": ["a"], "type": "object", "additionalProperties": False})
    if not made.dropped and not (place == "multipleOf" and number <= 0):
        for answer in filter(None, (walk(made.schema, seed) for seed in range(3))):
            value = json.loads(answer)["a"]
            if place in {"maximum", "minimum", "exclusiveMinimum"} and isinstance(value, int | float):
                assert {"maximum": value <= number, "minimum": value >= number, "exclusiveMinimum": value > number}[
                    place
                ]
            if place in {"const", "enum"}:
                assert value == number


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_held_exactly(name: str) -> None:
    schema = {"type": "string", "format": name}
    made = _loosen(schema, strict=True)
    assert made.dropped == ()
    assert _breaks(schema, made.schema, 150) == []


@pytest.mark.parametrize(
    ("name", "text", "fits"),
    [
        ("date", "2024-02-29", True),
        ("date", "2023-02-29", False),
        ("date", "1900-02-29", False),
        ("date", "2000-02-29", True),
        ("date", "2024-04-31", False),
        ("date-time", "2024-02-30T10:00:00Z", False),
        ("date-time", "2024-01-31T23:59:59.5+02:00", True),
        ("date-time", "2024-01-31T23:59:60Z", False),
        ("time", "24:00:00Z", False),
        ("email", "ada@example.org", True),
        ("email", "ada.lovelace+x@mail.example.co.uk", True),
        ("email", "ada@", False),
        ("ipv4", "256.1.1.1", False),
        ("ipv6", "2001:db8::8a2e:370:7334", True),
        ("ipv6", "1::2::3", False),
        ("uri", "https://example.org:8080/a/b?c=d#e", True),
        ("uri", "mailto:ada@example.org", True),
        ("uri", "no uri", False),
        ("uuid", "11111111-1111-1111-1111-111111111111", True),
        ("duration", "P1DT12H", True),
        ("duration", "P", False),
    ],
)
def test_what_is_of_a_format_may_be_written_and_what_is_not_may_not(name: str, text: str, fits: bool) -> None:
    written = _loosen({"allOf": [{"type": "string", "format": name}, {"const": text}]}).schema
    try:
        assert (walk(written, 0) is not None) == fits
    except ValueError:
        assert not fits


_HELD: list[Any] = [
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "^(?=.*[A-Z])(?=.*[0-9])[A-Za-z0-9]{4,8}$"},
    {"type": "array", "items": {"type": "boolean"}, "uniqueItems": False, "maxItems": 3},
    {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "maxItems": 1},
    {"type": "array", "items": [{"type": "null"}, {"type": "boolean"}], "additionalItems": False},
    {"type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "boolean"}, "maxItems": 3},
    {"oneOf": [{"const": 1}, {"const": "1"}, {"enum": [None, 2]}]},
    {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 3}]},
    {
        "oneOf": [
            {
                "type": "object",
                "properties": {"k": {"const": kind}, "a": {"type": "null"}},
                "additionalProperties": False,
            }
            for kind in ("x", "y")
        ]
    },
    {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "integer"}},
    {"type": "object", "propertyNames": {"pattern": "^k[0-9]$"}, "additionalProperties": {"type": "null"}},
    {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": False},
    {"type": "object", "properties": {"a": {"not": {}}, "b": {"type": "null"}}, "additionalProperties": False},
    {"type": "object", "minProperties": 1, "additionalProperties": {"type": "null"}},
    {"type": "integer", "minimum": 3, "exclusiveMinimum": 3, "maximum": 9, "multipleOf": 3},
    {
        "type": "integer",
        "exclusiveMinimum": True,
        "minimum": 3,
        "maximum": 5,
        "$schema": "http://json-schema.org/draft-04/schema#",
    },
    {"$ref": "#/definitions/a%20b", "definitions": {"a b": {"enum": [1, 2]}}},
    {"$ref": "#/properties/a~1b", "properties": {"a/b": {"type": "boolean"}}},
    {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "additionalProperties": False,
    },
    {"if": {"type": "string"}, "type": "null"},
    {
        "type": "string",
        "maxLength": 5,
        "description": "A word.",
        "x-order": 3,
        "contentEncoding": "base64",
        "deprecated": True,
    },
    {"dependentRequired": {}, "unevaluatedProperties": True, "type": "null"},
]


@pytest.mark.parametrize("schema", _HELD, ids=json.dumps)
def test_what_a_grammar_can_say_is_held(schema: Any) -> None:
    made = _loosen(schema, strict=True)
    assert made.dropped == ()
    draft = None if "$schema" in schema else schema
    assert draft is None or "items" in draft or _breaks(schema, made.schema) == []


_LOOSENED: list[tuple[Any, str]] = [
    ({"type": "array", "uniqueItems": True}, ":uniqueItems"),
    ({"properties": {"a": {"not": {"const": 1}}}}, "/properties/a:not"),
    ({"type": "array", "contains": {"const": 1}}, ":contains"),
    ({"items": {"if": {"const": 1}, "then": False}}, "/items:if"),
    ({"dependentRequired": {"a": ["b"]}}, ":dependentRequired"),
    ({"dependencies": {"a": ["b"]}}, ":dependencies"),
    ({"unevaluatedProperties": False}, ":unevaluatedProperties"),
    ({"type": "string", "pattern": "^(?!a)b"}, ":pattern"),
    ({"type": "string", "pattern": r"(a)\1"}, ":pattern"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, ":oneOf"),
    ({"patternProperties": {"a": {"type": "null"}, "b": {"type": "null"}}}, ":patternProperties"),
    ({"minProperties": 3, "type": "object"}, ":minProperties"),
    ({"type": "object", "maxProperties": 1, "properties": {"a": {}, "b": {}}}, ":maxProperties"),
    ({"$defs": {"a/b": {"not": {"type": "null"}}}, "$ref": "#/$defs/a~1b"}, "/$defs/a~1b:not"),
    ({"$ref": "https://example.org/a"}, ":$ref"),
    ({"$dynamicRef": "#a"}, ":$dynamicRef"),
    ({"const": 10**30}, ":const"),
    ({"minimum": 2**70, "type": "integer"}, ":minimum"),
    ({"type": "object", "propertyNames": {"pattern": "^a"}, "properties": {"b": {}}}, ":propertyNames"),
]


@pytest.mark.parametrize(("schema", "named"), _LOOSENED, ids=lambda each: json.dumps(each)[:60])
def test_what_no_grammar_can_say_is_left_out_and_named_with_its_place(schema: Any, named: str) -> None:
    assert _dropped(schema) == [named]
    walk(_loosen(schema).schema, 0)  # there is a grammar of the rest


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "maxItems": 4},
        {"type": "array", "items": {"type": "integer"}, "contains": {"const": 5}, "maxItems": 3},
        {
            "type": "object",
            "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
            "dependentRequired": {"a": ["b"]},
            "additionalProperties": False,
        },
        {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "maxProperties": 1},
        {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}},
            "if": {"properties": {"a": {"const": 1}}},
            "then": {"required": ["a"]},
            "additionalProperties": False,
        },
        {"anyOf": [{"type": "string", "pattern": "^(?!a)"}, {"type": "null"}]},
    ],
    ids=json.dumps,
)
def test_what_is_narrowed_fits(schema: Any) -> None:
    assert _breaks(schema, _loosen(schema, narrow=True).schema, 40) == []


def test_a_format_that_is_not_known_is_an_annotation_unless_it_is_strict() -> None:
    assert _dropped({"type": "string", "format": "phone"}) == []
    assert _dropped({"type": "string", "format": "phone"}, strict=True) == [":format: phone"]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, "Invalid type: objekt"),
        ({"properties": {"a": 1}}, "/properties/a is no schema"),
        ({"properties": []}, "'properties' at the top"),
        ({"enum": 1}, "is no list"),
        ({"minimum": "1"}, "no number"),
        ({"minimum": math.inf}, "no number"),
        ({"enum": [math.nan]}, "no finite number"),
        ({"minLength": -1}, "no count"),
        ({"anyOf": {}}, "is no list"),
    ],
)
def test_what_is_no_schema_is_refused_and_says_where(schema: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        _loosen(schema)


@pytest.mark.parametrize("depth", [250, 5000])
def test_what_is_nested_too_deep_is_refused(depth: int) -> None:
    schema: Any = {}
    value: Any = 1
    for _ in range(depth):
        schema, value = {"items": schema}, [value]
    for deep in (schema, {"const": value}, {"enum": [value]}):
        with pytest.raises(LimitExceeded):
            _loosen(deep)


def test_references_in_any_number_are_followed_without_a_stack() -> None:
    chain = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(3000)} | {"d3000": {"type": "null"}}
    made = _loosen({"$ref": "#/$defs/d0", "$defs": chain})
    assert made.dropped == ()
    assert isinstance(made.schema, dict)
    assert len(made.schema["$defs"]) == 3001
