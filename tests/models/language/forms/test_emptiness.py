"""A schema that nothing fits is refused before anything is written, and none that something fits is."""

import base64
import json
import pickle
from collections.abc import Callable
from typing import Any

import jsonschema_rs as rs
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from support.people import people

from models.errors import BadInput, BatonError
from models.language.forms.emptiness import why_empty
from models.language.forms.plan import Plan
from models.language.forms.planning_process import planned
from models.ports.generate import Constraint, JsonSchemaConstraint, ToolConstraint, ToolSpec

_EMPTY: dict[str, Any] = {
    "no size of an object": {"type": "object", "minProperties": 3, "maxProperties": 1},
    "no size of an array": {"type": "array", "minItems": 3, "maxItems": 1},
    "no length": {"type": "string", "minLength": 3, "maxLength": 1},
    "no number": {"type": "number", "exclusiveMinimum": 1, "maximum": 1},
    "no integer": {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2},
    "no integer between fractions": {"type": "integer", "minimum": 1.2, "maximum": 1.8},
    "types that contradict": {"allOf": [{"type": "string"}, {"type": "integer"}]},
    "bounds that contradict": {"type": "integer", "minimum": 5, "allOf": [{"maximum": 3}]},
    "an empty list of values": {"enum": []},
    "a constant of another type": {"const": "a", "type": "integer"},
    "a constant out of bounds": {"const": 9, "maximum": 5},
    "a constant that is too long": {"const": "abc", "maxLength": 2},
    "a constant beside a list": {"const": "a", "enum": ["b", "c"]},
    "true is not one": {"const": True, "enum": [1]},
    "a required member that is refused": {"type": "object", "properties": {"a": False}, "required": ["a"]},
    "a required member that is none of the others": {
        "type": "object",
        "properties": {"b": {}},
        "required": ["a"],
        "additionalProperties": False,
    },
    "a required member of no name": {"type": "object", "required": ["ab"], "propertyNames": {"maxLength": 1}},
    "more required than admitted": {"type": "object", "required": ["a", "b"], "maxProperties": 1},
    "more by another than admitted": {
        "type": "object",
        "required": ["a"],
        "dependentRequired": {"a": ["b"]},
        "maxProperties": 1,
    },
    "more members than are named": {
        "type": "object",
        "properties": {"a": {}, "b": False},
        "additionalProperties": False,
        "minProperties": 2,
    },
    "elements that are refused": {"type": "array", "items": False, "minItems": 1},
    "a place that is refused": {"type": "array", "prefixItems": [{}, False], "minItems": 2},
    "an element that cannot be": {"type": "array", "contains": {"enum": []}},
    "more of an element than elements": {"type": "array", "contains": {}, "minContains": 3, "maxItems": 2},
    "choices of nothing": {"anyOf": [False, {"type": "string", "minLength": 2, "maxLength": 1}]},
    "choices that all contradict": {"type": "null", "oneOf": [{"type": "string"}, {"type": "object"}]},
    "one twice": {"oneOf": [{"type": "string"}, {"type": "string"}]},
    "nothing at all": {"not": {}},
    "none of its type": {"type": "string", "not": {"type": "string"}},
    "itself within itself": {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
}


def _behind(way: str, schema: Any) -> Any:
    match way:
        case "itself":
            return schema
        case "a member":
            return {"type": "object", "properties": {"m": schema}, "required": ["m"]}
        case "an element":
            return {"type": "array", "items": {"allOf": [{}, schema]}, "minItems": 1}
        case "a reference":
            return {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"$ref": "#/$defs/c"}, "c": schema}}
        case _:
            one = {"type": "object", "properties": {"m": {"$ref": "#/$defs/c"}}, "required": ["m"]}
            return {"anyOf": [one, {"allOf": [{"type": "null"}, {"type": "array"}]}], "$defs": {"c": schema}}


_WAYS = ["itself", "a member", "an element", "a reference", "a choice"]


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("name", _EMPTY)
def test_what_nothing_fits_is_seen_wherever_it_is(name: str, way: str) -> None:
    assert why_empty(_behind(way, _EMPTY[name])) is not None


@pytest.fixture(scope="module")
def planning_in_words() -> Callable[[Constraint], BatonError | Plan]:
    """Ask what the process is asked, here: starting one is for `test_planning`."""

    def ask(constraint: Constraint) -> BatonError | Plan:
        said = planned(base64.b64encode(pickle.dumps((constraint, "whole", False))).decode())
        answer: BatonError | Plan = pickle.loads(base64.b64decode(said))
        return answer

    return ask


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("name", ["no size of an object", "no size of an array", "a constant of another type"])
def test_a_form_that_nothing_fits_is_refused_when_it_is_planned(
    name: str, way: str, planning_in_words: Callable[[Constraint], BatonError | Plan]
) -> None:
    schema = _behind(way, _EMPTY[name])
    parameters = {"type": "object", "properties": {"a": _EMPTY[name]}, "required": ["a"]}
    tool = ToolSpec(name="act", description="", parameters=json.dumps(parameters))
    form = JsonSchemaConstraint(schema=json.dumps(schema))
    for constraint, field in (
        (form, "constraint.json_schema"),
        (ToolConstraint(tools=(tool,)), "tools[0].parameters"),
        (ToolConstraint(tools=(), form=form), "constraint.json_schema"),
    ):
        refused = planning_in_words(constraint)
        assert isinstance(refused, BadInput)
        assert (refused.code, refused.field, refused.retryable) == ("form_unsatisfiable", field, False)
    assert isinstance(planning_in_words(ToolConstraint(tools=(tool,), choice="none")), Plan)


@pytest.mark.parametrize(
    "schema",
    [
        {"minProperties": 3, "maxProperties": 1},  # a number fits it
        {"type": "object", "properties": {"a": False}},
        {"type": "array", "items": False},
        {"type": "array", "items": {"$ref": "#"}},
        {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]},
        {"type": ["string", "integer"], "minLength": 2, "maxLength": 1},
        {"type": "object", "required": ["a"], "additionalProperties": False, "patternProperties": {"a": {}}},
        {"oneOf": [{"type": "string"}, {"type": "string"}, {"type": "null"}]},
        {"const": 1.0, "type": "integer"},
        {"const": 1, "enum": [1.0]},
        {"not": {"enum": []}},
        {"contains": False, "minContains": 0, "type": "array"},
        {"minimum": 10**400, "maximum": 10**400},
        {"$ref": "#"},
        {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    ],
    ids=str,
)
def test_what_something_fits_is_left(schema: Any) -> None:
    assert why_empty(schema) is None


def test_beside_a_reference_nothing_counts_in_older_drafts() -> None:
    schema = {"$ref": "#/definitions/a", "type": "integer", "definitions": {"a": {"type": "string"}}}
    assert rs.Draft7Validator(schema).is_valid("x")
    assert why_empty(schema, is_newest=False) is None
    assert why_empty(schema) is not None


@pytest.mark.parametrize("name", people())
def test_no_schema_that_people_write_is_taken_for_one_that_nothing_fits(name: str) -> None:
    assert why_empty(people()[name].schema, is_object=True) is None


def test_much_work_is_given_up() -> None:
    either = [{"anyOf": [{"minimum": n}, {"multipleOf": n}]} for n in range(1, 40)]
    assert why_empty({"allOf": [*either, {"anyOf": [False, False]}], "type": "integer"}) is None
    wide = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(15_000)}}
    wide["required"] = [*wide["properties"]]
    assert why_empty(wide) is None


# No schema that something fits is refused, whatever it is made of

_NAMES = st.sampled_from(["a", "b", "c"])
_PLAIN = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, 2.5]) | st.text("ab", max_size=3)
_VALUES = st.recursive(
    _PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3), max_leaves=5
)
_TYPE = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
_COUNT = st.integers(0, 3)
_BOUND = st.integers(-3, 3) | st.sampled_from([-0.5, 0.5, 1.5])


def _schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {},
        optional={
            "type": _TYPE | st.lists(_TYPE, min_size=1, max_size=3, unique=True),
            "enum": st.lists(_VALUES, max_size=3),
            "const": _VALUES,
            **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _BOUND),
            **dict.fromkeys(
                ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _COUNT
            ),
            "minContains": _COUNT,
            "required": st.lists(_NAMES, max_size=2, unique=True),
            "dependentRequired": st.dictionaries(_NAMES, st.lists(_NAMES, max_size=2, unique=True), max_size=2),
            "patternProperties": st.dictionaries(st.sampled_from(["a", "^b$"]), inner, max_size=1),
            "properties": st.dictionaries(_NAMES, inner, max_size=3),
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            **dict.fromkeys(("additionalProperties", "propertyNames", "items", "contains", "not", "if", "then"), inner),
            **dict.fromkeys(("allOf", "anyOf", "oneOf"), st.lists(inner, min_size=1, max_size=3)),
            "$ref": st.sampled_from(["#/$defs/one", "#/$defs/two"]),
        },
    )


_INNER = st.recursive(
    st.booleans() | st.just({}) | st.fixed_dictionaries({"type": _TYPE}) | st.fixed_dictionaries({"const": _VALUES}),
    _schemas,
    max_leaves=4,
)


@st.composite
def _fitted(draw: st.DrawFn) -> tuple[Any, Any]:
    """Return a value and a schema of several that it fits."""
    value = draw(_VALUES)
    definitions = {"one": draw(_INNER), "two": draw(_INNER)}
    for name, each in definitions.items():
        if '"$ref"' in json.dumps(each):  # circles without end fit nothing, or nobody can tell
            definitions[name] = {}
    parts = draw(st.lists(_schemas(_INNER), min_size=1, max_size=4))
    kept: dict[str, Any] = {}
    fit: list[Any] = []
    for part in parts:
        for keyword, each in part.items():
            one = {keyword: each}
            if not rs.Draft202012Validator({**one, "$defs": definitions}).is_valid(value):
                continue
            if keyword in kept:
                fit.append(one)
            elif rs.Draft202012Validator({**kept, **one, "$defs": definitions}).is_valid(value):
                kept |= one
    schema = {**kept, "$defs": definitions}
    if fit:
        schema["allOf"] = [*schema.get("allOf", ()), *fit]
    return value, schema


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_fitted())
def test_a_schema_that_a_value_fits_is_never_taken_for_one_that_nothing_fits(case: tuple[Any, Any]) -> None:
    value, schema = case
    assert rs.Draft202012Validator(schema).is_valid(value)
    assert why_empty(schema) is None
    if isinstance(value, dict):
        assert why_empty(schema, is_object=True) is None


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_INNER, st.lists(_VALUES, min_size=1, max_size=10))
@example({"type": "array", "prefixItems": [True, False]}, [[1]])
def test_of_what_is_taken_for_empty_no_value_is_found(inner: Any, values: list[Any]) -> None:
    assume(inner is not True)
    schema = {"allOf": [inner], "$defs": {"one": {"type": "string"}, "two": {"minItems": 1}}}
    if why_empty(schema) is not None:
        validator = rs.Draft202012Validator(schema)
        assert not any(validator.is_valid(value) for value in [*values, None, True, 0, 1, 0.5, "", "a", [], [1], {}])
