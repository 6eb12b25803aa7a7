"""Schemas as people write them are taken, and every answer fits: as functions on offer, and as the form of an answer.

Whoever writes is the tiny model of random weights, at a temperature at which it may write anything that it is let write.
"""

import json
import random
from collections.abc import AsyncIterator

import jsonschema_rs
import pytest
from support.asking import asks
from support.bench_engine import BenchEngine
from support.people import ZOD, Person, people
from support.planning import PlanningHere
from support.tiny_decoding import Tiny

from models.clock import SystemClock
from models.content import CallDelta, Delta, FinishDelta, TextDelta
from models.language.forms.checking import Checker
from models.language.forms.holding import Holding
from models.language.forms.loosen import loosen
from models.language.forms.planning_process import holds
from models.ports.generate import Constraint, JsonSchemaConstraint, ToolConstraint, ToolSpec

_PEOPLE = people()


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture
async def holding(tiny: Tiny) -> AsyncIterator[Holding]:
    engine = Holding(BenchEngine(tiny), Checker(SystemClock()), PlanningHere(), chance=random.Random(1))
    yield engine
    await engine.aclose()


async def _deltas(engine: Holding, tiny: Tiny, constraint: Constraint, seed: int) -> list[Delta]:
    # What ends a string, a list or an object is likelier than the rest: else it writes a page where a word would do.
    bias = tuple((token, 3.0) for text in ('"', "}", "]", "Z") for token in tiny.words(text))
    request = asks("Hello", limit=4000, temperature=1.0, seed=seed, constraint=constraint, logit_bias=bias)
    return [delta async for delta in engine.generate(request)]


def _check(person: Person, text: str) -> None:
    jsonschema_rs.validator_for(person.schema, validate_formats=True, offline=True).validate(json.loads(text))
    if person.model is not None:
        person.model.model_validate_json(text)


def test_there_are_enough_of_them() -> None:
    assert len(_PEOPLE) >= 120


@pytest.mark.parametrize("name", _PEOPLE)
async def test_every_call_of_a_function_that_somebody_wrote_fits_its_schema(
    name: str, holding: Holding, tiny: Tiny
) -> None:
    person = _PEOPLE[name]
    tool = ToolSpec(name="act", description="", parameters=json.dumps(person.schema))
    constraint = ToolConstraint(tools=(tool,), choice="required", parallel=False)
    for seed in range(2):
        deltas = await _deltas(holding, tiny, constraint, seed)
        assert deltas[-1] == FinishDelta(reason="calls")
        _check(person, "".join(delta.arguments for delta in deltas if isinstance(delta, CallDelta)))


@pytest.mark.parametrize("name", [name for name in _PEOPLE if name.startswith("pydantic_")])
async def test_every_answer_in_a_form_that_somebody_wrote_fits_it(name: str, holding: Holding, tiny: Tiny) -> None:
    person = _PEOPLE[name]
    deltas = await _deltas(holding, tiny, JsonSchemaConstraint(schema=json.dumps(person.schema)), 7)
    assert deltas[-1] == FinishDelta(reason="stop")
    _check(person, "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)))


def test_what_zod_writes_in_an_older_draft_is_held_as_in_the_newest() -> None:
    for name in (name for name in ZOD if not name.endswith("_draft7")):
        newest, older = (loosen(ZOD[each], holds=holds).dropped for each in (name, f"{name}_draft7"))
        assert bool(newest) == bool(older), name
