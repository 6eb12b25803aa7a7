"""Plans are made where what takes for ever takes it from nobody, and remembered."""

import asyncio
import base64
import json
import pickle
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from models.clock import SystemClock
from models.errors import BadInput, LimitExceeded, Unavailable
from models.language.forms.judge import validator_of
from models.language.forms.planning import PlanningApart
from models.language.forms.planning_process import _holds, planned
from models.owner import Owner
from models.ports.generate import JsonSchemaConstraint, ToolConstraint, ToolSpec

_DOUBLING = {"oneOf": [{"enum": [f"{n}-{m}" for m in range(256)]} for n in range(64)]}


def _form(schema: Any, *, strict: bool = False) -> JsonSchemaConstraint:
    return JsonSchemaConstraint(schema=json.dumps(schema), strict=strict)


@pytest.fixture
async def planning() -> AsyncIterator[PlanningApart]:
    made = PlanningApart(SystemClock())
    yield made
    await made.aclose()


async def test_a_plan_is_that_of_this_process(planning):
    made = await planning.plan(_form({"type": "array", "uniqueItems": True}), "whole", Owner("ada"))
    assert made.is_checked
    assert not (await planning.plan(_form({"type": "string", "pattern": "^a+$"}), "whole", Owner("ada"))).is_checked


async def test_what_is_wrong_with_a_schema_is_said_as_it_was_found_each_time(planning):
    for _ in range(2):
        with pytest.raises(BadInput, match="uniqueItems") as refused:
            await planning.plan(_form({"type": "array", "uniqueItems": True}, strict=True), "whole", Owner("ada"))
        assert refused.value.field == "constraint.json_schema"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {f"p{n}": _DOUBLING for n in range(10)}},
        {"$ref": "#/$defs/d0", "$defs": {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}]} for n in range(15_000)}},
    ],
    ids=["choices", "definitions"],
)
async def test_a_schema_whose_walk_takes_long_is_given_up_and_harms_nobody_else(planning, schema):
    async with asyncio.timeout(40):
        for _ in range(2):  # the second time it is known
            with pytest.raises(LimitExceeded):
                await planning.plan(_form(schema), "whole", Owner("eve"))
        assert not (await planning.plan(_form({"type": "string"}), "whole", Owner("ada"))).is_checked


async def test_a_remote_servers_schemas_are_planned_without_grammars(planning):
    remote = PlanningApart(SystemClock(), remote=True)
    try:
        assert (await remote.plan(_form({"not": {"type": "string"}}), "whole", Owner("ada"))).is_checked
    finally:
        await remote.aclose()


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "fault",
    [
        {"required": "a"},
        {"required": 5},
        {"$defs": 5},
        {"definitions": [1]},
        {"dependentRequired": 5},
        {"$id": 5},
        {"if": 5},
    ],
    ids=lambda fault: next(iter(fault)),
)
async def test_what_is_no_schema_by_the_standard_is_refused_however_little_of_it_is_held(planning, fault, strict):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False, **fault}
    with pytest.raises(BadInput) as refused:
        await planning.plan(_form(schema, strict=strict), "whole", Owner("ada"))
    assert refused.value.field == "constraint.json_schema"


async def test_what_native_code_can_make_nothing_of_is_its_callers(planning):
    with pytest.raises(LimitExceeded):
        await planning.plan(
            JsonSchemaConstraint(schema='{"type": "string", "pattern": "\\ud800"}'), "whole", Owner("ada")
        )


_GOOD = {"type": "object", "properties": {"a": {"type": "string"}}}
_TOO_MUCH = '{"type": "object", "properties": {"a": {"type": "string", "pattern": "\\ud800"}}}'


def _functions(*schemas: str) -> ToolConstraint:
    return ToolConstraint(
        tools=tuple(ToolSpec(name=f"f{n}", description="", parameters=schema) for n, schema in enumerate(schemas))
    )


@pytest.mark.parametrize("ask", ["plan", "faults"])
@pytest.mark.parametrize(("at", "count"), [(0, 1), (0, 3), (2, 3), (5, 7)])
async def test_of_functions_the_one_that_is_too_much_is_named(planning, ask, at, count):
    schemas = [json.dumps(_GOOD)] * count
    schemas[at] = _TOO_MUCH
    asked = _functions(*schemas)
    with pytest.raises(LimitExceeded) as refused:
        await (planning.plan(asked, "whole", Owner("ada")) if ask == "plan" else planning.faults(asked, Owner("ada")))
    assert refused.value.field == f"tools[{at}].parameters"


async def test_of_functions_and_a_form_the_form_is_named_if_it_is_too_much(planning):
    form = JsonSchemaConstraint(schema='{"type": "string", "pattern": "\\ud800"}')
    with pytest.raises(LimitExceeded) as refused:
        await planning.plan(replace(_functions(json.dumps(_GOOD)), form=form), "whole", Owner("ada"))
    assert refused.value.field == "constraint.json_schema"


async def test_what_is_wrong_with_functions_is_said_of_each_by_its_place(planning):
    deep = json.dumps({"$defs": {f"D{n}": {"properties": {"a": {"$ref": f"#/$defs/D{n + 1}"}}} for n in range(900)}})
    bad = [
        {"type": "object", "properties": {"a": {"type": "objekt"}}},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/nowhere"}}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "(("}}},
        {"type": "object", "properties": {"a": {"type": "integer", "minimum": "a"}}},
        {"type": "object", "required": ["a"], "properties": {"a": {"minimum": 2, "maximum": 1, "type": "integer"}}},
        {**json.loads(deep), "type": "object", "properties": {"a": {"$ref": "#/$defs/D0"}}},
    ]
    schemas = [json.dumps(each) for one in bad for each in (_GOOD, one)]
    for _ in range(2):  # what was found is remembered, and changed by nobody
        faults = await planning.faults(_functions(*schemas), Owner("ada"))
        assert {at: fault.field for at, fault in faults.items()} == {
            at: f"tools[{at}].parameters" for at in range(1, len(schemas), 2)
        }
        faults[1].field = "elsewhere"


@pytest.mark.parametrize("eve", [Owner("eve"), Owner("ada", "eve"), Owner.unnamed("ada").within("call_1")])
async def test_nobody_learns_what_another_has_asked_not_even_an_end_user_of_the_same_tenant(planning, eve):
    await planning.plan(_form({"type": "string"}), "whole", Owner("ada"))
    await planning.aclose()
    assert not (await planning.plan(_form({"type": "string"}), "whole", Owner("ada"))).is_checked
    with pytest.raises(Unavailable):  # it would have to be asked anew
        await planning.plan(_form({"type": "string"}), "whole", eve)


def test_what_the_processes_remember_of_a_form_serves_one_question_or_one_owner():
    asked = base64.b64encode(pickle.dumps((_form({"type": "string", "pattern": "^a+$"}), "whole", False))).decode()
    planned(asked)
    assert (_holds.cache_info().currsize, validator_of.cache_info().currsize) == (0, 0)
    mine = validator_of("true", owner=("acme", "ada"))
    assert validator_of("true", owner=("acme", "ada")) is mine
    assert mine not in {validator_of("true", owner=other) for other in (("acme", "eve"), ("acme", None), ())}
