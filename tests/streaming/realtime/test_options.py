"""What clients ask of a session and of a response, field by field: what asks for nothing, what is honoured, what is refused."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.realtime import confirmed
from support.wire import check_event

from memory.keys import RequestDefaults
from models.errors import NotFound
from models.ports.generate import ToolConstraint
from orchestrator.events import SamplingOverrides, SessionSettings, TurnInput
from orchestrator.sessions.order import Order
from streaming.realtime.options import Bounds, Options
from streaming.realtime.protocol import RealtimeProtocol, Received, Respond

_TOOL = {"type": "function", "name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}}
_OTHER = {"type": "function", "name": "listen"}

_ASK_NOTHING: list[tuple[str, Any]] = [
    *((name, None) for name in ("audio", "tracing", "truncation", "prompt", "include", "reasoning", "temperature")),
    *((name, None) for name in ("instructions", "tools", "tool_choice", "parallel_tool_calls", "max_output_tokens")),
    *((name, None) for name in ("output_modalities", "modalities", "model", "baton", "max_response_output_tokens")),
    *((name, None) for name in ("turn_detection", "voice", "input_audio_format", "input_audio_transcription", "speed")),
    ("audio", {}),
    ("audio", {"input": None, "output": None}),
    (
        "audio",
        {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "transcription": {"model": "gpt-4o-mini-transcribe"},
                "turn_detection": {"type": "semantic_vad", "create_response": True, "interrupt_response": True},
                "noise_reduction": {"type": "near_field"},
            },
            "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin", "speed": 1.0},
        },
    ),
    ("tracing", "auto"),
    ("truncation", "auto"),
    ("include", []),
    ("reasoning", {}),
    ("reasoning", {"effort": None}),
    ("reasoning", {"effort": "minimal"}),
    ("output_modalities", ["text"]),
    ("modalities", ["text"]),
    ("max_output_tokens", "inf"),
    ("max_response_output_tokens", "inf"),
    ("tool_choice", "auto"),
    ("tools", []),
    ("parallel_tool_calls", True),
    ("voice", "alloy"),
    ("speed", 1.0),
    ("input_audio_format", "pcm16"),
    ("output_audio_format", "pcm16"),
    ("input_audio_transcription", {"model": "whisper-1"}),
    ("input_audio_noise_reduction", {"type": "near_field"}),
    ("turn_detection", {"type": "server_vad", "threshold": 0.5}),
    ("id", "sess_2"),
    ("object", "realtime.session"),
    ("expires_at", 1),
]

_NOT_OFFERED: list[tuple[str, Any, str]] = [
    ("output_modalities", ["audio"], "output_modalities"),
    ("output_modalities", ["text", "audio"], "output_modalities"),
    ("modalities", ["text", "audio"], "modalities"),
    ("tracing", {"workflow_name": "mine"}, "tracing"),
    ("truncation", "disabled", "truncation"),
    ("truncation", {"type": "retention_ratio", "retention_ratio": 0.8}, "truncation"),
    ("prompt", {"id": "pmpt_1"}, "prompt"),
    ("include", ["item.input_audio_transcription.logprobs"], "include"),
    ("reasoning", {"effort": "high"}, "reasoning"),
    ("tool_choice", {"type": "mcp", "server_label": "s"}, "tool_choice.type"),
    ("tools", [_TOOL, {"type": "mcp", "server_label": "s", "server_url": "https://example.org"}], "tools[1].type"),
]

_IMPOSSIBLE: list[tuple[str, Any, str]] = [
    ("model", "nope", "model"),
    ("model", 5, "model"),
    ("instructions", "x" * 101, "instructions"),
    ("instructions", ["x"], "instructions"),
    ("output_modalities", [], "output_modalities"),
    ("output_modalities", ["smell"], "output_modalities[0]"),
    ("tool_choice", {"type": "function", "name": "other"}, "tool_choice"),
    ("tool_choice", "sometimes", "tool_choice"),
    ("tools", [_TOOL, {"type": "function", "name": "two words"}], "tools[1].name"),
    ("tools", [_TOOL, {"type": "function", "name": ""}], "tools[1].name"),
    ("tools", [_TOOL, {"type": "function"}], "tools[1].name"),
    ("tools", [_TOOL, _TOOL], "tools[1].name"),
    ("tools", [_TOOL, {**_OTHER, "parameters": {"type": "array"}}], "tools[1].parameters.type"),
    (
        "tools",
        [_TOOL, {**_OTHER, "parameters": {"type": "object", "properties": []}}],
        "tools[1].parameters.properties",
    ),
    ("tools", [_TOOL, {**_OTHER, "parameters": "none"}], "tools[1].parameters"),
    ("tools", [_TOOL, "look"], "tools[1]"),
    ("tools", "look", "tools"),
    ("tools", [{"type": "function", "name": f"f{n}"} for n in range(129)], "tools"),
    ("max_output_tokens", 0, "max_output_tokens"),
    ("max_output_tokens", 5000, "max_output_tokens"),
    ("max_output_tokens", True, "max_output_tokens"),
    ("max_response_output_tokens", "many", "max_response_output_tokens"),
    ("temperature", 3, "temperature"),
    ("temperature", "hot", "temperature"),
    ("parallel_tool_calls", "yes", "parallel_tool_calls"),
    ("audio", "loud", "audio"),
    ("nonsense", 1, "nonsense"),
]


def _check_model(name: str) -> None:
    if name != "m":
        raise NotFound(f"There is no model {name!r}.", code="model_not_found", field="model")


class _Connection:
    def __init__(self) -> None:
        self._protocol = RealtimeProtocol(
            "sess_1",
            0,
            options=Options(),
            bounds=Bounds(check_model=_check_model, characters=100),
            defaults=RequestDefaults(),
            settings=SessionSettings(),
            order=Order(),
        )

    def send(self, kind: str, **fields: Any) -> Received:
        text = json.dumps({"type": kind, "event_id": "mine", **fields})
        received = confirmed(self._protocol, self._protocol.receive(text, SessionSettings()), SessionSettings())
        for reply in received.replies:
            check_event(reply)
        return received

    def update(self, **session: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return the errors, and the session as it was told."""
        *errors, updated = self.send("session.update", session={"type": "realtime", **session}).replies
        assert updated["type"] == "session.updated"
        assert all(error["error"]["event_id"] == "mine" for error in errors)
        return [error["error"] for error in errors], updated["session"]

    def respond(self, **response: Any) -> TurnInput:
        command = self.send("response.create", response=response).command
        assert isinstance(command, Respond)
        return command.turn_input


@pytest.mark.parametrize(("name", "value"), _ASK_NOTHING)
def test_what_asks_for_nothing_is_taken_and_loses_nothing(name: str, value: Any) -> None:
    connection = _Connection()
    fields = {"instructions": "Be brief.", "tools": [_TOOL], name: value}
    errors, session = connection.update(**fields)
    assert errors == []
    turn = connection.respond()
    assert turn.instructions == fields["instructions"]
    assert session["instructions"] == (fields["instructions"] or "")
    assert [tool["name"] for tool in session["tools"]] == ["look"] * bool(fields["tools"])
    assert (turn.tools is not None) == bool(fields["tools"])
    if name not in {"id", "object", "expires_at", "model", "baton"}:
        assert _Connection().respond(instructions="Be brief.", **{name: value} if name != "instructions" else {})


@pytest.mark.parametrize(("name", "value", "param"), [*_NOT_OFFERED, *_IMPOSSIBLE])
def test_what_cannot_be_is_refused_by_its_name_there_and_then_and_the_rest_takes_effect(
    name: str, value: Any, param: str
) -> None:
    connection = _Connection()
    (first, *_), session = connection.update(**{"instructions": "Be brief.", "tools": [_TOOL], name: value})
    assert first["param"] == f"session.{param}"
    assert f"session.{param}" in first["message"] or name in {"model", "instructions"}
    if name != "instructions":
        assert connection.respond().instructions == session["instructions"] == "Be brief."
    if name != "tools" or (isinstance(value, list) and len(value) <= 2):
        assert [tool["name"] for tool in session["tools"]] == ["look"]
        assert connection.respond().tools is not None
    if name != "model":
        (reply,) = connection.send("response.create", response={name: value}).replies
        assert reply["error"]["param"] == f"response.{param}"


@pytest.mark.parametrize(("name", "value", "param"), _NOT_OFFERED)
def test_what_is_not_offered_is_unsupported(name: str, value: Any, param: str) -> None:
    (error,), _ = _Connection().update(**{name: value})
    assert (error["code"], error["param"]) == ("unsupported", f"session.{param}")


def test_several_faults_are_each_told_and_the_rest_holds() -> None:
    errors, session = _Connection().update(
        model="nope", audio=None, prompt={"id": "p"}, nonsense=1, instructions="Be brief.", tools=[_TOOL, _TOOL, _OTHER]
    )
    params = ["session.model", "session.prompt", "session.tools[1].name", "session.nonsense"]
    assert [error["param"] for error in errors] == params
    assert session["instructions"] == "Be brief."
    assert [tool["name"] for tool in session["tools"]] == ["look", "listen"]
    assert "model" not in session


def test_what_was_set_stays_where_a_later_value_is_refused() -> None:
    connection = _Connection()
    connection.update(model="m", instructions="Be brief.", max_output_tokens=7, tools=[_TOOL])
    _, session = connection.update(model="nope", instructions=5, max_output_tokens=0, tools="none")
    assert (session["model"], session["instructions"], session["max_output_tokens"]) == ("m", "Be brief.", 7)
    assert connection.respond().tools is not None


_CHOICE = {"type": "function", "name": "look"}


def test_a_choice_may_come_with_its_tool_or_after_it() -> None:
    for updates in ([{"tool_choice": _CHOICE, "tools": [_TOOL]}], [{"tools": [_TOOL]}, {"tool_choice": _CHOICE}]):
        connection = _Connection()
        for update in updates:
            errors, session = connection.update(**update)
            assert errors == []
        assert session["tool_choice"] == _CHOICE
        tools = connection.respond().tools
        assert tools is not None
        assert (tools.choice, tools.function) == ("required", "look")


def test_a_choice_whose_tool_goes_makes_way_and_that_is_said() -> None:
    connection = _Connection()
    connection.update(tools=[_TOOL], tool_choice=_CHOICE)
    (error,), session = connection.update(tools=[_OTHER])
    assert error["param"] == "session.tool_choice"
    assert ([tool["name"] for tool in session["tools"]], session["tool_choice"]) == (["listen"], "auto")


def test_a_refused_choice_leaves_the_one_before_it() -> None:
    connection = _Connection()
    connection.update(tools=[_TOOL], tool_choice=_CHOICE)
    (error,), session = connection.update(tool_choice={"type": "function", "name": "other"})
    assert (error["param"], session["tool_choice"]) == ("session.tool_choice", _CHOICE)


def test_a_call_that_is_required_needs_a_function() -> None:
    (reply,) = _Connection().send("response.create", response={"tool_choice": "required"}).replies
    assert reply["error"]["param"] == "response.tool_choice"


def test_a_sessions_choice_does_not_outlive_its_tools_in_a_response_with_its_own() -> None:
    connection = _Connection()
    connection.update(tools=[_TOOL], tool_choice=_CHOICE)
    tools = connection.respond(tools=[_OTHER]).tools
    assert tools is not None
    assert (tools.choice, tools.function) == ("auto", None)
    assert connection.respond(tools=[]).tools is None
    connection.update(tool_choice="required")
    assert connection.respond(tools=[]).tools is None
    tools = connection.respond(tools=[_OTHER]).tools
    assert tools is not None
    assert tools.choice == "required"


def test_what_is_honoured_reaches_the_turn_and_a_responses_own_goes_first() -> None:
    connection = _Connection()
    connection.update(
        model="m", tools=[_TOOL], parallel_tool_calls=False, temperature=0.5, max_response_output_tokens=9
    )
    turn = connection.respond()
    assert isinstance(turn.tools, ToolConstraint)
    assert (turn.model, turn.tools.parallel, turn.max_output_tokens) == ("m", False, 9)
    assert turn.sampling == SamplingOverrides(temperature=0.5)
    turn = connection.respond(parallel_tool_calls=True, temperature=1, max_output_tokens="inf", tools=[_OTHER])
    assert turn.tools is not None
    assert (turn.tools.parallel, turn.tools.tools[0].name, turn.max_output_tokens) == (True, "listen", None)
    assert turn.sampling == SamplingOverrides(temperature=1.0)


_ITEM = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}


def test_a_field_that_is_null_asks_for_nothing_wherever_it_is() -> None:
    content = [{"type": "input_text", "text": "hi", "audio": None, "transcript": None}]
    item = {**_ITEM, "content": content, "id": None, "status": None, "call_id": None, "name": None}
    for fields in ({"previous_item_id": None}, {"nonsense": None}):
        assert _Connection().send("conversation.item.create", item=item, **fields).command is not None
    errors, session = _Connection().update(tools=[{**_TOOL, "strict": None, "nonsense": None}], nonsense=None)
    assert (errors, len(session["tools"])) == ([], 1)
    assert _Connection().respond(nonsense=None, metadata=None, input=None, conversation=None)
    assert _Connection().send("response.create", response=None).command is not None
    (reply,) = _Connection().send("conversation.item.create", item={**_ITEM, "role": None}).replies
    assert reply["error"]["param"] == "item.role"


def test_another_kind_of_session_is_refused_whole() -> None:
    (reply,) = _Connection().send("session.update", session={"type": "transcription", "instructions": "x"}).replies
    assert reply["error"]["param"] == "session.type"
    for old in ({}, {"type": None}):
        assert _Connection().send("session.update", session=old).replies[0]["type"] == "session.updated"


@example(fields={"tools": [{"": None}]})
@given(
    fields=st.dictionaries(
        st.sampled_from(sorted({name for name, *_ in [*_ASK_NOTHING, *_NOT_OFFERED, *_IMPOSSIBLE]} - {"instructions"})),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=6,
        ),
    )
)
def test_whatever_comes_with_them_instructions_are_never_lost_in_silence(fields: dict[str, Any]) -> None:
    connection = _Connection()
    errors, session = connection.update(instructions="Be brief.", **fields)
    assert session["instructions"] == "Be brief."
    assert all(error["param"].startswith("session.") for error in errors)
    sent = fields.get("tools")
    if isinstance(sent, list):
        told = {error["param"].split("]")[0] for error in errors}
        for at in range(len(sent)):
            assert f"session.tools[{at}" in told or len(session["tools"]) > 0
