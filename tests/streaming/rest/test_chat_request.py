"""What each field of a chat completion's request becomes, or why it is refused."""

from typing import Any

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from pydantic import ValidationError

from memory.keys import RequestDefaults
from models.content import Call, CallResult, Item, Message, TextPart, text_of
from models.errors import BadInput, Unsupported
from models.ports.generate import Form, GrammarConstraint, JsonSchemaConstraint, RegexConstraint, ToolConstraint
from orchestrator.events import SamplingOverrides, TurnInput
from streaming.rest.chat_request import ChatRequest

_HELLO = {"role": "user", "content": "Hello"}
_TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def _turn(*messages: dict[str, Any], defaults: RequestDefaults | None = None, **fields: Any) -> TurnInput:
    return _parsed(*messages, defaults=defaults, **fields)[1]


def _parsed(
    *messages: dict[str, Any], defaults: RequestDefaults | None = None, **fields: Any
) -> tuple[tuple[Item, ...], TurnInput]:
    request = ChatRequest.model_validate({"messages": list(messages or (_HELLO,)), **fields})
    return request.turn(defaults or RequestDefaults())


def _plain(items: tuple[Item, ...]) -> list[tuple[str, str]]:
    return [(item.role if isinstance(item, Message) else item.kind, text_of(item)) for item in items]


_HONOURED: dict[str, Any] = {
    "model": "scripted",
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.5,
    "seed": 7,
    "stop": ["\n"],
    "store": True,
    "metadata": {"a": "b"},
    "stream_options": {"include_usage": True},
    "tools": [_TOOL],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "response_format": {"type": "json_object"},
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "logit_bias": {"50256": -100},
    "logprobs": False,
    "top_logprobs": 0,
    "n": 1,
}
_EXTENSIONS: dict[str, Any] = {
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "continue_final_message": False,
    "add_generation_prompt": True,
    "baton": {"on_leave": "cancel"},
}
_HARMLESS: dict[str, Any] = {
    "user": "me",
    "service_tier": "auto",
    "safety_identifier": "me",
    "prediction": {"type": "content", "content": "Hello"},
    "prompt_cache_key": "mine",
    "prompt_cache_options": {},
    "prompt_cache_retention": "24h",
    "verbosity": "low",
}
_REFUSED: dict[str, Any] = {
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "reasoning_effort": "low",
}
_UNKNOWN: dict[str, Any] = {
    "functions": [{"name": "look"}],
    "function_call": "auto",
    "web_search_options": {},
    "moderation": {},
}
_NEUTRAL: dict[str, Any] = {
    "n": 1,
    "response_format": {"type": "text"},
    "logprobs": False,
    "top_logprobs": 0,
    "presence_penalty": 0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "top_k": -1,
    "min_p": 0,
    "repetition_penalty": 1,
    "modalities": ["text"],
    "audio": None,
    "parallel_tool_calls": True,
    "reasoning_effort": "minimal",
}


def test_every_field_that_the_official_client_can_send_is_decided_on() -> None:
    decided = {"messages", *_HONOURED, *_HARMLESS, *_REFUSED, *_UNKNOWN}
    assert decided == set(CompletionCreateParamsBase.__annotations__)
    assert decided - set(_UNKNOWN) | set(_EXTENSIONS) | {"stream"} == set(ChatRequest.model_fields)


@pytest.mark.parametrize("field", _REFUSED)
def test_a_field_that_would_change_the_answer_and_cannot_be_honoured_is_refused_by_name(field: str) -> None:
    with pytest.raises(Unsupported) as refused:
        _turn(**{field: _REFUSED[field]})
    assert refused.value.field == field
    assert field in refused.value.message


def test_a_call_of_what_no_function_can_be_named_is_refused() -> None:
    call = {"id": "c", "function": {"name": "look<|im_end|>", "arguments": "{}"}}
    with pytest.raises(ValidationError, match="name"):
        _turn(messages=[{"role": "assistant", "tool_calls": [call]}])


@pytest.mark.parametrize("field", _UNKNOWN)
def test_a_field_that_is_not_known_is_refused(field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        _turn(**{field: _UNKNOWN[field]})
    assert refused.value.errors()[0]["loc"] == (field,)


@pytest.mark.parametrize("field", {**_HARMLESS, **_NEUTRAL})
def test_a_field_that_changes_nothing_changes_nothing(field: str) -> None:
    value = {**_HARMLESS, **_NEUTRAL}[field]
    assert _parsed(**{field: value}) == _parsed()


@pytest.mark.parametrize("field", [*_HONOURED, *_EXTENSIONS, *_HARMLESS, *_REFUSED])
def test_null_is_as_good_as_leaving_a_field_out(field: str) -> None:
    assert _parsed(**{field: None}) == _parsed()


def test_sampling_and_limits_reach_the_turn() -> None:
    turn = _turn(temperature=0.5, top_p=0.25, seed=-3, stop=["\n", "end"], max_tokens=5, model="m")
    assert turn.sampling == SamplingOverrides(temperature=0.5, top_p=0.25, seed=-3, stop=("\n", "end"))
    assert (turn.max_output_tokens, turn.model) == (5, "m")
    assert _turn().sampling == SamplingOverrides()
    assert _turn(stop="end").sampling.stop == ("end",)
    assert _turn(max_tokens=5, max_completion_tokens=3).max_output_tokens == 3
    assert _turn(temperature=0).sampling.temperature == 0


def test_bias_penalties_and_truncation_reach_the_turn() -> None:
    turn = _turn(
        logit_bias={"5": -100, "0": 2.5},
        presence_penalty=2,
        frequency_penalty=-2.0,
        repetition_penalty=1.3,
        top_k=7,
        min_p=0.25,
    )
    assert turn.sampling == SamplingOverrides(
        logit_bias=((5, -100.0), (0, 2.5)),
        presence_penalty=2.0,
        frequency_penalty=-2.0,
        repetition_penalty=1.3,
        top_k=7,
        min_p=0.25,
    )


def test_log_probabilities_reach_the_turn() -> None:
    assert _turn().logprobs is None
    assert _turn(logprobs=True).logprobs == 0
    assert _turn(logprobs=True, top_logprobs=20).logprobs == 20
    with pytest.raises(BadInput, match="needs 'logprobs'") as refused:
        _turn(top_logprobs=3)
    assert refused.value.field == "top_logprobs"
    with pytest.raises(Unsupported, match="store") as kept:
        _turn(logprobs=True, store=True)
    assert kept.value.field == "logprobs"


def test_several_answers_are_asked_for_and_one_is_kept() -> None:
    request = ChatRequest.model_validate({"messages": [_HELLO], "n": 3})
    assert (request.choices, ChatRequest.model_validate({"messages": [_HELLO]}).choices) == (3, 1)
    with pytest.raises(Unsupported, match="store") as refused:
        _turn(n=2, store=True)
    assert refused.value.field == "n"


def test_a_keys_defaults_hold_where_the_request_says_nothing() -> None:
    defaults = RequestDefaults(model="small", instructions="Be kind.", max_output_tokens=9)
    turn = _turn(defaults=defaults)
    assert (turn.model, turn.instructions, turn.max_output_tokens) == ("small", "Be kind.", 9)
    turn = _turn({"role": "system", "content": "Be brief."}, _HELLO, defaults=defaults, model="big", max_tokens=2)
    assert (turn.model, turn.instructions, turn.max_output_tokens) == ("big", "Be brief.", 2)


def test_a_conversation_becomes_its_items_and_the_last_is_what_is_said_now() -> None:
    # As the official client gives it back: with an index, and with what it has read in the arguments.
    function = {"name": "look", "arguments": '{"at": 1}', "parsed_arguments": {"at": 1}}
    call = {"id": "c1", "index": 0, "type": "function", "function": function}
    history, turn = _parsed(
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
        {"role": "user", "content": [{"type": "text", "text": "Look "}, {"type": "text", "text": "there."}]},
        {"role": "assistant", "content": "I look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "A tree."}]},
        {"role": "assistant", "content": None, "refusal": None, "annotations": []},
        {"role": "system", "content": "It rains."},
        {"role": "user", "content": "And?", "name": "Ada"},
    )
    assert turn.instructions == "Be brief.\n\nBe kind."
    assert _plain(history) == [
        ("user", "Look there."),
        ("assistant", "I look."),
        ("call", '{"at": 1}'),
        ("call_result", "A tree."),
        ("system", "It rains."),
    ]
    assert _plain(turn.items) == [("user", "And?")]
    _, _, made, result, _ = history
    assert isinstance(made, Call)
    assert isinstance(result, CallResult)
    assert (made.call_id, made.name, result.call_id) == ("c1", "look", "c1")
    assert result.parts == (TextPart(text="A tree.", source="tool"),)
    assert len({item.item_id for item in (*history, *turn.items)}) == 6


def test_instructions_alone_ask_for_an_answer_too() -> None:
    history, turn = _parsed({"role": "system", "content": "Greet me."})
    assert (history, turn.items, turn.instructions) == ((), (), "Greet me.")


def test_what_is_kept_has_ids_of_its_own_for_ever() -> None:
    ids = {item.item_id for _ in range(2) for item in _parsed(_HELLO, _HELLO, store=True)[0]}
    assert len(ids) == 2


def test_a_result_answers_a_call_that_was_made_before_it() -> None:
    with pytest.raises(BadInput) as refused:
        _turn(_HELLO, {"role": "tool", "tool_call_id": "c1", "content": "A tree."})
    assert refused.value.field == "messages[1].tool_call_id"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "file", "file": {"file_id": "f"}},
    ],
    ids=lambda part: part["type"],
)
def test_content_that_is_not_read_is_refused_where_it_stands(part: dict[str, Any]) -> None:
    with pytest.raises(Unsupported) as refused:
        _turn(_HELLO, {"role": "user", "content": [{"type": "text", "text": "See:"}, part]})
    assert refused.value.field == "messages[1].content[1]"


def test_tools_reach_the_turn_with_the_choice_of_them() -> None:
    for choice, expected in ((None, "auto"), ("none", "none"), ("required", "required")):
        constraint = _turn(tools=[_TOOL], tool_choice=choice).tools
        assert constraint is not None
        assert (constraint.choice, constraint.function) == (expected, None)
        assert [(tool.name, tool.parameters) for tool in constraint.tools] == [("look", '{"type": "object"}')]
    named = _turn(tools=[_TOOL], tool_choice={"type": "function", "function": {"name": "look"}}).tools
    assert named is not None
    assert (named.choice, named.function) == ("required", "look")
    assert _turn(tool_choice="none").tools is None


def test_that_functions_are_called_strictly_and_one_at_a_time_reaches_the_turn() -> None:
    strict = {**_TOOL, "function": {"name": "listen", "strict": True}}
    tools = _turn(tools=[_TOOL, strict], parallel_tool_calls=False).tools
    assert tools is not None
    assert ([tool.strict for tool in tools.tools], tools.parallel) == ([False, True], False)
    assert _turn(tools=[_TOOL]).tools == ToolConstraint(tools=tools.tools[:1])


@pytest.mark.parametrize(
    ("asked", "form"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, JsonSchemaConstraint(schema='{"type": "object"}')),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": {"type": "integer"}}},
            JsonSchemaConstraint(schema='{"type": "integer"}', strict=True),
        ),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, JsonSchemaConstraint(schema='{"type": "object"}')),
        ({"type": "regex", "pattern": "a+"}, RegexConstraint(pattern="a+")),
        ({"type": "grammar", "grammar": 'start: "a"'}, GrammarConstraint(grammar='start: "a"')),
    ],
    ids=lambda asked: asked["type"] if isinstance(asked, dict) else "",
)
def test_the_answers_form_reaches_the_turn(asked: dict[str, Any], form: Form | None) -> None:
    assert _turn(response_format=asked).form == form


def test_a_function_that_has_to_be_called_has_to_be_on_offer() -> None:
    with pytest.raises(BadInput) as refused:
        _turn(tools=[_TOOL], tool_choice={"type": "function", "function": {"name": "listen"}})
    assert refused.value.field == "tool_choice"


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 2.1},
        {"temperature": float("nan")},
        {"top_p": 1.1},
        {"max_tokens": 0},
        {"max_completion_tokens": 0},
        {"seed": 2**63},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"stop": ["a"] * 5},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"frequency_penalty": float("nan")},
        {"logit_bias": {"5": 101}},
        {"logit_bias": {"5": float("nan")}},
        {"logit_bias": {"-5": 1}},
        {"logit_bias": {"05": 1}},
        {"logit_bias": {"five": 1}},
        {"logit_bias": {"5" * 400: 1}},
        {"logit_bias": {str(token): 1 for token in range(301)}},
        {"logit_bias": [[5, 1]]},
        {"n": 0},
        {"n": 17},
        {"logprobs": True, "top_logprobs": 21},
        {"logprobs": True, "top_logprobs": -1},
        {"logprobs": 3},
        {"top_k": -2},
        {"top_k": 1.5},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0},
        {"repetition_penalty": 2.1},
        {"metadata": {"k" * 65: "v"}},
        {"metadata": {"k": "v" * 513}},
        {"metadata": {str(n): "v" for n in range(17)}},
        {"tools": [_TOOL] * 129},
        {"tools": [{"type": "function", "function": {"name": "no spaces"}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": float("inf")}}}]},
        {"tool_choice": "sometimes"},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": []}}},
        {"response_format": {"type": "regex", "pattern": ""}},
        {"messages": []},
        {"messages": [{"role": "nobody", "content": "x"}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": "x", "weight": 1}]},
    ],
    ids=lambda fields: ",".join(fields),
)
def test_a_value_out_of_its_bounds_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({"messages": [_HELLO], **fields})


_CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
_ASKED = {"role": "assistant", "content": None, "tool_calls": [_CALL]}


@pytest.mark.parametrize(
    ("messages", "texts"),
    [
        ([_ASKED, {"role": "tool", "tool_call_id": "c", "name": "look", "content": "a"}], ["{}", "a"]),
        ([_ASKED, {"role": "tool", "tool_call_id": "c", "content": None}], ["{}", ""]),
        ([_ASKED, {"role": "tool", "tool_call_id": "c", "content": []}], ["{}", ""]),
        ([_ASKED, {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "a"}]}], ["{}", "a"]),
        ([{**_ASKED, "content": []}], ["{}"]),
        ([{**_ASKED, "content": ""}], ["{}"]),
        ([{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}], ["a"]),
        ([{"role": "user", "content": [{"type": "input_text", "text": "a"}], "cache_control": {}}], ["a"]),
        ([{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}], ["No."]),
        (
            [{"role": "assistant", "content": [{"type": "thinking", "thinking": "?"}, {"type": "text", "text": "a"}]}],
            ["a"],
        ),
        ([{"role": "assistant", "content": "a", "refusal": None, "audio": {"id": "x"}, "annotations": []}], ["a"]),
        ([{"role": "assistant", "content": "a", "reasoning_content": "?", "function_call": None}], ["a"]),
        ([{"role": "assistant", "content": "a", "tool_calls": []}], ["a"]),
        ([{"role": "assistant", "content": "a", "tool_calls": None, "name": "x"}], ["a"]),
        (
            [{**_ASKED, "tool_calls": [{**_CALL, "index": 0, "function": {"name": "a.b", "arguments": {"x": 1}}}]}],
            ['{"x": 1}'],
        ),
        ([{**_ASKED, "tool_calls": [{**_CALL, "function": {"name": "look", "arguments": None}}]}], ["{}"]),
        (
            [
                {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": "{}"}},
                {"role": "function", "name": "look", "content": "a"},
            ],
            ["{}", "a"],
        ),
    ],
)
def test_history_that_other_servers_wrote_is_read(messages: list[Any], texts: list[str]) -> None:
    request = ChatRequest.model_validate({"messages": [*messages, {"role": "user", "content": "Go on."}]})
    history, turn = request.turn(RequestDefaults())
    assert [text_of(item) for item in (*history, *turn.items)] == [*texts, "Go on."]


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": True, "stream_options": {"include_usage": None}},
        {"top_p": 0},
        {"tools": []},
        {"tools": [], "tool_choice": "auto"},
        {"tool_choice": "none"},
        {
            "tools": [
                {"type": "function", "function": {"name": "f", "description": None, "parameters": None, "strict": None}}
            ]
        },
        {"tools": [{"type": "function", "function": {"name": "f", "x": 1}, "cache_control": {"type": "ephemeral"}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": None}}},
    ],
    ids=str,
)
def test_what_changes_nothing_is_taken(fields: dict[str, Any]) -> None:
    turn = _turn(**fields)
    assert turn.sampling.top_p is None or 0 < turn.sampling.top_p < 1e-6


@pytest.mark.parametrize("fields", [{}, {"tools": []}, {"tools": None}])
def test_a_call_that_is_required_of_no_function_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadInput) as refused:
        _turn(tool_choice="required", **fields)
    assert refused.value.field == "tool_choice"
