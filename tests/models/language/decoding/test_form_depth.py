"""How deep forms go is found without recursion, and without judging what only looks deep."""

import json

import pytest
from support.deep_forms import FORMS

from models.errors import LimitExceeded
from models.language.decoding.form_depth import MOST_DEPTH, check_depth
from models.ports.generate import JsonSchemaConstraint

_FLAT = {"expression: many options", "expression: choices"}


@pytest.mark.parametrize("kind", sorted(FORMS))
@pytest.mark.parametrize("depth", [0, 1, 40])
def test_what_people_write_is_not_too_deep(kind, depth):
    check_depth(FORMS[kind](depth))


@pytest.mark.parametrize("kind", sorted({*FORMS} - _FLAT - {"grammar: a schema within"}))
@pytest.mark.parametrize("depth", [MOST_DEPTH + 1, 3_000])
def test_what_goes_deeper_than_native_code_can_is_refused(kind, depth):
    with pytest.raises(LimitExceeded) as refused:
        check_depth(FORMS[kind](depth))
    assert refused.value.field in {
        "constraint.json_schema",
        "constraint.grammar",
        "constraint.regex",
        "tools[0].parameters",
    }


def test_a_schema_that_refers_to_itself_is_not_deep():
    tree = {"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}
    check_depth(JsonSchemaConstraint(schema=json.dumps(tree)))


def test_many_members_are_not_deep():
    wide = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(5_000)}}
    check_depth(JsonSchemaConstraint(schema=json.dumps(wide)))


def test_what_is_no_json_is_left_to_who_reads_it():
    check_depth(JsonSchemaConstraint(schema="{"))
