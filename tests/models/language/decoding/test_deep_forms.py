"""However deep a form goes, the engine lives: it answers in the form, or refuses it as its caller's."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.asking import asks, collect
from support.deep_forms import FORMS

from models.catalog import EngineSpec
from models.clock import SystemClock
from models.content import FinishDelta
from models.errors import BadInput
from models.language.decoding.engine import DecodingEngine
from models.language.transformers import build
from models.ports.context import EngineContext
from models.ports.generate import Constraint, GrammarConstraint

_DEPTHS = (1, 30, 90, 160, 170, 300, 500, 900, 2_400, 3_000)

_FIELDS = {
    "schema": {"constraint.json_schema"},
    "tool": {"tools[0].parameters", "tools", "input"},
    "grammar": {"constraint.grammar"},
    "expression": {"constraint.regex"},
}
"""What is at fault; a function is a part of the prompt, which may be too long for the model because of it."""


@pytest.fixture
async def engine(tiny_llama: Path) -> AsyncIterator[DecodingEngine]:
    options = json.dumps({"threads": 1, "cache_tokens": 4096})
    engine = build(
        EngineSpec(name="transformers", options=options, folder=str(tiny_llama)), EngineContext(clock=SystemClock())
    )
    assert isinstance(engine, DecodingEngine)
    yield engine
    await engine.aclose()


async def _refused(engine: DecodingEngine, constraint: Constraint) -> str | None:
    """Return the field that is at fault, or None if there was an answer."""
    request = asks("hello", constraint=constraint, limit=4)
    try:
        deltas = await collect(engine, request)
    except BadInput as refused:
        return str(refused.field)
    assert isinstance(deltas[-1], FinishDelta)
    return None


@pytest.mark.parametrize("group", ["schema", "tool", "grammar", "expression"])
async def test_a_form_of_any_depth_is_answered_or_refused_as_its_callers(engine, group):
    for kind, made in FORMS.items():
        if kind.startswith(group):
            refused = [await _refused(engine, made(depth)) for depth in _DEPTHS]
            assert refused[0] in {None, "input"} or "oneOf" in kind, kind  # which llguidance itself refuses
            assert {*refused} <= {None, *_FIELDS[group]}, kind
            assert refused[-1] is not None or kind in {"expression: many options", "expression: choices"}


@pytest.mark.parametrize("rule", ['"(" start ")" | "a"', 'start "a" | "a"', '"a" start | "a"'])
async def test_an_answer_may_nest_as_deep_as_it_is_long(engine, rule):
    request = asks("hello", constraint=GrammarConstraint(grammar=f"start: {rule}"), limit=200)
    assert isinstance((await collect(engine, request))[-1], FinishDelta)
