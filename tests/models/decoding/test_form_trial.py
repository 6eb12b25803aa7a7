"""Forms are tried out in a process that may die: of what ends it only its own request hears."""

from collections.abc import AsyncIterator

import pytest
from llguidance import LLMatcher
from support.deep_forms import EXPRESSIONS, GRAMMARS, SCHEMAS

from models.clock import SystemClock
from models.decoding.form_trial import FormTrial
from models.errors import LimitExceeded

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
            await trial.compiles(source, 1_000, field="response_format")
    assert await trial.compiles(LLMatcher.grammar_from_regex("a+"), 1_000, field="response_format")


async def test_what_is_no_grammar_is_left_to_the_engine_to_refuse(trial):
    assert not await trial.compiles(LLMatcher.grammar_from_regex("("), 1_000, field="response_format")


async def test_a_form_that_passed_is_not_tried_again(trial):
    source = LLMatcher.grammar_from_regex(EXPRESSIONS["options"](20))
    assert await trial.compiles(source, 1_000, field="response_format")
    await trial._process.aclose()
    assert await trial.compiles(source, 1_000, field="response_format")
    with pytest.raises(LimitExceeded):
        await trial.compiles(LLMatcher.grammar_from_regex("b"), 1_000, field="response_format")


async def test_a_form_that_takes_long_is_given_up(trial, monkeypatch):
    monkeypatch.setattr("models.decoding.form_trial._MOST_CPU_S", 0.0)
    with pytest.raises(LimitExceeded):
        await trial.compiles(LLMatcher.grammar_from_regex("a+"), 1_000, field="response_format")
