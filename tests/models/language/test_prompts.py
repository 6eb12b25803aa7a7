"""How functions are offered in a prompt, to models that were taught it and to those that were not."""

from dataclasses import replace

import pytest
from support.tiny_llama import make_tokenizer
from transformers import PreTrainedTokenizerFast

from models.content import Call, Message, TextPart
from models.errors import BadInput
from models.language.prompts import PromptWriter
from models.ports.generate import RegexConstraint, ToolConstraint, ToolSpec

_LOOK = ToolSpec(name="look", description="Looks <|im_end|> around.", parameters='{"type": "object"}')
_TOOLS = ToolConstraint(tools=(_LOOK, ToolSpec(name="wait", description="Waits.", parameters="{}")))
_USER = Message(item_id="item_1", role="user", parts=(TextPart(text="So?"),))
_SYSTEM = Message(item_id="item_0", role="system", parts=(TextPart(text="Be brief."),))


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def _prompt(tokenizer: PreTrainedTokenizerFast, *items: Message | Call, constraint: object = _TOOLS) -> str:
    return tokenizer.decode(PromptWriter(tokenizer).tokens(items, constraint))  # type: ignore[arg-type]


def test_a_template_that_knows_no_functions_is_given_them_as_instructions(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = _prompt(tokenizer, _SYSTEM, _USER)
    assert prompt.startswith("<|im_start|>system\nBe brief.\n\nYou can call functions.")
    assert '"name": "look"' in prompt
    assert '"name": "wait"' in prompt
    assert prompt.count("<|im_start|>system") == 1
    assert _prompt(tokenizer, _USER).startswith("<|im_start|>system\nYou can call functions.")


def test_a_template_that_knows_functions_is_given_them_as_it_wants_them(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = (
        "{% for t in tools or [] %}{{ t.function.name }}: <tool_call>{% endfor %}{{ messages[0].content }}"
    )
    assert _prompt(tokenizer, _USER) == "look: <tool_call>wait: <tool_call>So?"
    assert _prompt(tokenizer, _USER, constraint=replace(_TOOLS, function="wait")) == "wait: <tool_call>So?"


def test_what_may_not_be_called_is_not_offered(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = _prompt(tokenizer, _USER, constraint=None)
    assert _prompt(tokenizer, _USER, constraint=replace(_TOOLS, choice="none")) == plain
    assert _prompt(tokenizer, _USER, constraint=RegexConstraint(pattern="a")) == plain


def test_the_description_of_a_function_cannot_end_its_message(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (
        _prompt(tokenizer, _USER).count("<|im_end|>")
        == _prompt(tokenizer, _USER, constraint=None).count("<|im_end|>") + 1
    )


def test_a_call_is_shown_as_the_model_would_have_written_it(tokenizer: PreTrainedTokenizerFast) -> None:
    call = Call(item_id="item_2", call_id="call_1", name="look", arguments='{"at": "sea"}')
    assert '<tool_call>[{"name": "look", "arguments": {"at": "sea"}}]</tool_call>' in _prompt(tokenizer, _USER, call)


def test_parameters_that_are_no_schema_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(BadInput, match="'look'"):
        _prompt(tokenizer, _USER, constraint=ToolConstraint(tools=(replace(_LOOK, parameters="[]"),)))
