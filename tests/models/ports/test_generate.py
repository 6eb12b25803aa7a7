"""An engine refuses a field that it cannot honour; nothing is silently dropped."""

from dataclasses import MISSING, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.content import Message, TextPart
from models.errors import Unsupported
from models.ports.generate import (
    PROCESSORS,
    Draft,
    GenerateRequest,
    GrammarConstraint,
    JsonSchemaConstraint,
    RegexConstraint,
    Sampling,
    ToolConstraint,
    refuse_unsupported,
)

_USER = Message(item_id="item_0", role="user", parts=(TextPart(text="Go"),))
_PLAIN = GenerateRequest(messages=(_USER,), tenant="local")

# Leave to read media asks for nothing: the messages do.
_EVERY_ENGINE_HONOURS = {"sampling", "priority", "deadline", "fork", "media", "subject"}

# What a request may ask besides, by the name under which an engine declares that it honours it.
_CONSTRAINTS = {
    "constraint.json_schema": JsonSchemaConstraint(schema="{}"),
    "constraint.regex": RegexConstraint(pattern="a+"),
    "constraint.grammar": GrammarConstraint(grammar='start: "a"'),
    "constraint.tools": ToolConstraint(tools=()),
}
_SIGNALS = ("token_ids", "logprobs", "entropies", "margins")
_ASKABLE = {
    **{name: {"constraint": constraint} for name, constraint in _CONSTRAINTS.items()},
    **{f"signals.{signal}": {"signals": frozenset({signal})} for signal in _SIGNALS},
    "adapter": {"adapter": "support-tone"},
    "reads_ahead": {"reads_ahead": True},
    "draft": {"draft": Draft(text="The answer")},
    "logprobs": {"logprobs": 0},
    "continues": {"continues": True},
    "raw": {"raw": True},
    "logit_bias": {"sampling": Sampling(logit_bias=((5, 1.0),))},
    "repetition_penalty": {"sampling": Sampling(repetition_penalty=1.1)},
    "frequency_penalty": {"sampling": Sampling(frequency_penalty=-0.5)},
    "presence_penalty": {"sampling": Sampling(presence_penalty=0.5)},
    "top_k": {"sampling": Sampling(top_k=5)},
    "min_p": {"sampling": Sampling(min_p=0.1)},
}


def test_a_request_without_optional_fields_is_taken_by_every_engine():
    refuse_unsupported(_PLAIN, frozenset(), "plain")


@pytest.mark.parametrize("name", _ASKABLE)
def test_a_field_that_is_not_honoured_is_refused_by_name(name):
    with pytest.raises(Unsupported, match=name) as caught:
        refuse_unsupported(replace(_PLAIN, **_ASKABLE[name]), frozenset(_ASKABLE) - {name}, "plain")
    assert caught.value.field == name
    assert "'plain'" in caught.value.message


@pytest.mark.parametrize("name", _ASKABLE)
def test_a_field_that_is_honoured_is_taken(name):
    refuse_unsupported(replace(_PLAIN, **_ASKABLE[name]), frozenset({name}), "plain")


def test_no_optional_field_of_a_request_escapes_the_check():
    optional = {field.name for field in fields(GenerateRequest) if field.default is not MISSING}
    checked = {name for asked in _ASKABLE.values() for name in asked}
    assert optional == checked | _EVERY_ENGINE_HONOURS


@given(
    constraint=st.none() | st.sampled_from(sorted(_CONSTRAINTS)),
    adapter=st.booleans(),
    draft=st.booleans(),
    signals=st.frozensets(st.sampled_from(_SIGNALS)),
    honoured=st.frozensets(st.sampled_from(sorted(_ASKABLE))),
)
def test_the_refusal_names_all_that_was_asked_and_is_not_honoured(constraint, adapter, draft, signals, honoured):
    request = replace(
        _PLAIN,
        constraint=constraint and _CONSTRAINTS[constraint],
        adapter="support-tone" if adapter else None,
        draft=Draft(text="") if draft else None,  # an empty draft is a draft
        signals=signals,
    )
    asked = {f"signals.{signal}" for signal in signals}
    asked |= {name for name, is_asked in (("adapter", adapter), ("draft", draft)) if is_asked}
    asked |= {constraint} if constraint else set()
    refused: set[str] = set()
    try:
        refuse_unsupported(request, honoured, "plain")
    except Unsupported as exc:
        refused = set(exc.message.partition("honour ")[2].partition(". ")[0].split(", "))
    assert refused == asked - honoured


def test_no_way_of_choosing_tokens_escapes_the_check_but_what_every_engine_knows():
    every_engine_knows = {"temperature", "top_p", "seed", "max_output_tokens", "stop"}
    assert {field.name for field in fields(Sampling)} == PROCESSORS | every_engine_knows
    assert set(_ASKABLE) >= PROCESSORS
