"""Forms are tried out in a process that may die: of what ends it only its own request hears."""

import asyncio
import sys
from collections.abc import AsyncIterator

import pytest
from llguidance import LLMatcher
from support.deep_forms import EXPRESSIONS, GRAMMARS, SCHEMAS

from models.clock import SystemClock
from models.errors import LimitExceeded, Unavailable
from models.language.decoding.form_trial import FormTrial
from models.owner import Owner

_DEEP = [
    *((name, LLMatcher.grammar_from_json_schema(SCHEMAS[name](6_000))) for name in SCHEMAS if "nested" not in name),
    ("rules", LLMatcher.grammar_from_lark(GRAMMARS["rules"](8_000))),
    ("a schema within", LLMatcher.grammar_from_lark(GRAMMARS["a schema within"](4_000))),
]


@pytest.fixture
async def trial() -> AsyncIterator[FormTrial]:
    started = FormTrial(SystemClock())
    yield started
    await started.aclose()


async def test_a_form_that_ends_the_process_is_refused_and_the_next_is_tried_by_another(trial):
    for _, source in _DEEP:
        with pytest.raises(LimitExceeded):
            await trial.compiles(source, 1_000, field="response_format", owner=Owner("ada"))
    assert await trial.compiles(LLMatcher.grammar_from_regex("a+"), 1_000, field="response_format", owner=Owner("ada"))


async def test_what_is_no_grammar_is_left_to_the_engine_to_refuse(trial):
    assert not await trial.compiles(
        LLMatcher.grammar_from_regex("("), 1_000, field="response_format", owner=Owner("ada")
    )


async def test_what_came_of_a_form_is_remembered(trial):
    passes, too_deep = LLMatcher.grammar_from_regex(EXPRESSIONS["options"](20)), _DEEP[0][1]
    for _ in range(2):
        assert await trial.compiles(passes, 1_000, field="response_format", owner=Owner("ada"))
        with pytest.raises(LimitExceeded):
            await trial.compiles(too_deep, 1_000, field="response_format", owner=Owner("ada"))
        await trial.aclose()  # whoever asks again now is told that it is closed
    with pytest.raises(Unavailable):
        await trial.compiles(LLMatcher.grammar_from_regex("b"), 1_000, field="response_format", owner=Owner("ada"))


async def test_a_form_that_takes_long_is_given_up(trial):
    endless = LLMatcher.grammar_from_json_schema('{"type": "number", "multipleOf": 134217727}')
    async with asyncio.timeout(30):
        with pytest.raises(LimitExceeded):
            await trial.compiles(endless, 1_000, field="response_format", owner=Owner("ada"))
        assert await trial.compiles(
            LLMatcher.grammar_from_regex("a+"), 1_000, field="response_format", owner=Owner("ada")
        )


async def test_a_process_that_somebody_ended_is_no_fault_of_the_next_form(trial):
    for pattern in ("a", "b", "c"):
        assert await trial.compiles(
            LLMatcher.grammar_from_regex(pattern), 1_000, field="response_format", owner=Owner("ada")
        )
        process = trial._process._process
        assert process is not None
        process.kill()
        if pattern == "b":
            await process.wait()  # else it is found out only by asking


async def test_a_process_that_cannot_be_started_is_an_outage_of_ours(trial, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(Unavailable):
        await trial.compiles(LLMatcher.grammar_from_regex("a"), 1_000, field="response_format", owner=Owner("ada"))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Unavailable):
        await trial.compiles(LLMatcher.grammar_from_regex("a"), 1_000, field="response_format", owner=Owner("ada"))


async def test_the_tail_of_a_form_is_followed_too(trial):
    source = LLMatcher.grammar_from_json_schema(
        '{"type": "object", "properties": {"a": {"const": 1}, "b": {"type": "string", "pattern": "^(a{1000}){1000}$"}},'
        ' "required": ["a", "b"], "additionalProperties": false}'
    )
    assert not await trial.compiles(source, 1_000, field="response_format", owner=Owner("ada"))
