"""The terminal's client without a server: what is typed, what is sent, what is shown."""

import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from rich.console import Console

from models.errors import BadInput
from streaming.terminal.api import Address, Refused
from streaming.terminal.commands import COMMANDS, Say, SlashCommand, parse
from streaming.terminal.exchange import Exchange
from streaming.terminal.link import Bookmark
from streaming.terminal.loading import words
from streaming.terminal.markdown import Block, Growing, blocks, printable
from streaming.terminal.prompt import _Commands
from streaming.terminal.screen import MARK, StreamScreen, TerminalScreen
from streaming.terminal.transcript import (
    Answered,
    Answering,
    Display,
    Removed,
    ShownAnswer,
    ShownFault,
    ShownSettings,
    ShownWords,
    Waiting,
)

# What is typed


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("  ", None),
        ("hello\nyou ", Say(text="hello\nyou")),
        ("//etc/hosts has what?", Say(text="/etc/hosts has what?")),
        ("/new", SlashCommand(name="new", argument="")),
        ("/MODEL  smollm2 ", SlashCommand(name="model", argument="smollm2")),
        ("/system be brief\nand kind", SlashCommand(name="system", argument="be brief\nand kind")),
    ],
)
def test_a_line_is_something_to_say_or_a_command(typed: str, read: SlashCommand | Say | None) -> None:
    assert parse(typed) == read


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("/opne 3", "Did you mean /open"),
        ("/zzz", "/help lists"),
        ("/open", "/open NUMBER or ID"),
        ("/new one", "takes nothing"),
    ],
)
def test_a_command_that_does_not_fit_is_answered_with_what_would(typed: str, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        parse(typed)


def test_commands_and_their_arguments_are_completed_and_nothing_else_is() -> None:
    completer = _Commands(lambda name: ["scripted", "smollm2"] if name == "model" else [])

    def completed(typed: str) -> list[str]:
        return [found.text for found in completer.get_completions(Document(typed), CompleteEvent())]

    assert completed("/") == list(COMMANDS)
    assert completed("/s") == ["sessions", "system"]
    assert completed("/model sm") == ["smollm2"]
    assert completed("say /s") == []


@pytest.mark.parametrize(
    ("given_url", "url", "websocket", "port"),
    [
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000", "ws://127.0.0.1:8000/v1/realtime", 8000),
        ("https://baton.example/v1", "https://baton.example", "wss://baton.example/v1/realtime", 443),
        ("https://example.org/chat/", "https://example.org/chat", "wss://example.org/chat/v1/realtime", 443),
    ],
)
def test_an_address_may_be_given_as_other_clients_want_it(given_url: str, url: str, websocket: str, port: int) -> None:
    address = Address.parse(given_url)
    assert (address.url, address.websocket, address.port) == (url, websocket, port)


@pytest.mark.parametrize("text", ["localhost:8000", "ftp://example.org", "http://:8000", "http://a:99999"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        Address.parse(text)


def test_a_refusal_says_what_the_server_said_and_how_to_show_a_key() -> None:
    error = {"error": {"message": "A key is needed.", "code": "unauthorized", "param": None}}
    assert "--key" in Refused(401, error).message
    assert Refused(404, error).message == "A key is needed."
    assert "418" in Refused(418, ["tea"]).message


# What is sent


def _made(item_id: str) -> dict[str, Any]:
    return {"type": "conversation.item.done", "item": {"id": item_id}}


def _error(about: str, code: str) -> dict[str, Any]:
    return {"type": "error", "error": {"message": f"{code}!", "code": code, "event_id": about}}


def _kinds(events: tuple[dict[str, Any], ...]) -> list[str]:
    return [event["type"] for event in events]


def test_a_question_is_added_then_asked_then_answered() -> None:
    exchange = Exchange("hello")
    (create,) = exchange.pending()
    assert create["item"]["content"][0]["text"] == "hello"
    assert exchange.take(_made("item_other")) == ()
    assert _kinds(exchange.take(_made(exchange.item_id))) == ["response.create"]
    assert exchange.take({"type": "response.created", "response": {"id": "resp_1"}}) == ()
    exchange.take({"type": "response.done", "response": {"id": "resp_0"}})
    assert not exchange.over
    exchange.take({"type": "response.done", "response": {"id": "resp_1"}})
    assert exchange.over
    assert exchange.failure is None


def test_after_a_loss_only_what_did_not_arrive_is_sent_again() -> None:
    exchange = Exchange("hello")
    assert exchange.pending() == exchange.pending()
    exchange.take(_made(exchange.item_id))
    assert _kinds(exchange.pending()) == ["response.create"]
    exchange.take({"type": "response.created", "response": {"id": "resp_1"}})
    assert exchange.pending() == ()


def test_a_question_that_is_there_already_has_arrived() -> None:
    exchange = Exchange("hello")
    assert _kinds(exchange.take(_error(exchange.item_id, "item_exists"))) == ["response.create"]


def test_a_question_that_is_refused_has_failed_and_says_why() -> None:
    exchange = Exchange("hello")
    exchange.take(_error("something_else", "unsupported"))
    assert not exchange.over
    exchange.take(_error(exchange.item_id, "limit_exceeded"))
    assert exchange.failure == "limit_exceeded!"
    asked = Exchange("hello")
    (create,) = asked.take(_made(asked.item_id))
    asked.take(_error(create["event_id"], "conversation_already_has_active_response"))
    assert asked.over


def test_an_answer_is_stopped_also_if_it_begins_later_and_not_asked_for_if_it_was_not_yet() -> None:
    running = Exchange("hello")
    running.take(_made(running.item_id))
    assert running.stop() == ()
    (cancel,) = running.take({"type": "response.created", "response": {"id": "resp_1"}})
    assert cancel == {"type": "response.cancel", "response_id": "resp_1"}
    assert running.pending() == (cancel,), "the loss of a connection must not lose the wish"
    early = Exchange("hello")
    early.stop()
    assert early.take(_made(early.item_id)) == ()
    assert early.over


def test_a_reconnection_goes_on_from_the_last_row_of_a_session_that_was_kept() -> None:
    cursor = Bookmark()
    assert cursor.reconnect() == {"baton": "events"}
    cursor.take({"type": "baton.session.attached", "session_id": "sess_1", "seq": 0})
    assert cursor.session_id == "sess_1"
    assert cursor.reconnect() == {"baton": "events"}, "it has no row yet, so it is not kept"
    cursor.take({"type": "baton.session.attached", "session_id": "sess_2", "seq": 0})
    for seq in (1, 2, 3, 2):
        cursor.take({"type": "baton.sequence", "seq": seq})
    assert cursor.reconnect() == {"baton": "events", "session": "sess_2", "after": "3"}


# What is shown


def _message(item_id: str, role: str, text: str = "") -> dict[str, Any]:
    part = "output_text" if role == "assistant" else "input_text"
    return {"id": item_id, "type": "message", "role": role, "content": [{"type": part, "text": text}] if text else []}


def _turn(text: str, status: str = "completed", error: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    place = {"response_id": "resp_1", "item_id": "item_2"}
    details = {"type": status, **({"error": error} if error else {})}
    usage = {"input_tokens": 9, "output_tokens": 20, "total_tokens": 29}
    routed = {"agent": "writer", "model": "small", "reasons": ["the cheapest"]}
    refused = [{"model": "big", "reason": "costs more"}]
    return [
        {"type": "conversation.item.added", "item": _message("item_1", "user", "hello")},
        {"type": "response.created", "response": {"id": "resp_1"}},
        {"type": "baton.turn.routed", "response_id": "resp_1", **routed, "refused": refused},
        {"type": "response.output_item.added", "response_id": "resp_1", "item": _message("item_2", "assistant")},
        {"type": "conversation.item.added", "item": _message("item_2", "assistant")},
        *({"type": "response.output_text.delta", **place, "delta": letter} for letter in text),
        {"type": "response.output_text.done", **place, "text": text},
        {
            **{"type": "baton.turn.timed", "response_id": "resp_1"},
            **{"decided_ms": 3, "first_delta_ms": 500, "duration_ms": 2500},
        },
        {
            "type": "response.done",
            "response": {"id": "resp_1", "status": status, "status_details": details, "usage": usage},
        },
    ]


def _told(transcript: Display, events: list[dict[str, Any]]) -> list[Any]:
    return [shown for event in events for shown in transcript.take(event)]


def test_a_turn_comes_to_a_question_and_an_answer_with_its_route_and_times() -> None:
    transcript = Display()
    told = _told(transcript, _turn("fine"))
    assert told[0] == ShownWords(item_id="item_1", role="user", text="hello")
    assert all(isinstance(one, Answering) for one in told[1:-1])
    answer = told[-1].answer
    assert isinstance(told[-1], Answered)
    assert answer.text == "fine"
    assert answer.problem is None
    assert answer.facts() == "small · the cheapest · decided 3 ms · first word 500 ms · total 2.5 s · 20 tokens, 10/s"
    assert answer.refused == ("not big: costs more",)
    assert transcript.running is None


def test_what_is_told_twice_after_a_loss_changes_nothing() -> None:
    transcript = Display()
    events = _turn("all of it")
    _told(transcript, events[:8])
    assert transcript.running is not None
    again = _told(transcript, events[1:])
    assert not [one for one in again if isinstance(one, ShownWords)]
    assert again[-1].answer.text == "all of it"
    assert _told(transcript, events) == []


def test_words_behind_another_part_are_added_to_those_before_it() -> None:
    transcript = Display()
    *begun, done = _turn("It was. ")
    place = {"response_id": "resp_1", "item_id": "item_2", "content_index": 2}
    more = [
        {"type": "response.output_text.delta", **place, "delta": "Yes."},
        {"type": "response.output_text.done", **place, "text": "Yes."},
    ]
    assert _told(transcript, [*begun, *more, done])[-1].answer.text == "It was. Yes."


@pytest.mark.parametrize(
    ("status", "error", "problem"),
    [
        ("cancelled", None, "Stopped."),
        ("incomplete", None, "Cut at its length limit."),
        ("failed", {"code": "internal", "message": "Try again."}, "Failed. Try again."),
        ("failed", {"code": "server_restarted"}, "Failed. The server was restarted before this answer was whole."),
    ],
)
def test_an_answer_that_is_not_whole_says_why(status: str, error: dict[str, Any] | None, problem: str) -> None:
    assert _told(Display(), _turn("x", status, error))[-1].answer.problem == problem


def test_a_call_of_a_function_is_shown_as_one_and_its_result_as_what_the_tool_said() -> None:
    transcript = Display()
    call = {"id": "item_3", "type": "function_call", "name": "weather"}
    place = {"response_id": "resp_1", "item_id": "item_3"}
    result = {"id": "item_4", "type": "function_call_output", "output": "sunny"}
    told = _told(
        transcript,
        [
            {"type": "response.created", "response": {"id": "resp_1"}},
            {"type": "response.output_item.added", "response_id": "resp_1", "item": call},
            {"type": "response.function_call_arguments.delta", **place, "delta": "{}"},
            {"type": "conversation.item.added", "item": result},
        ],
    )
    assert told[-2].answer.text == "`weather({})`"
    assert told[-1] == ShownWords(item_id="item_4", role="tool", text="sunny")


def test_settings_removals_and_faults_are_told_and_unknown_events_are_passed_over() -> None:
    changed = {"title": "A", "model": None, "instructions": "be kind"}
    told = _told(
        Display(),
        [
            {"type": "baton.session.updated", "session_id": "sess_1", **changed},
            {"type": "conversation.item.deleted", "item_id": "item_1"},
            _error("ev_1", "unsupported"),
            {"type": "rate_limits.updated"},
            {"type": "response.of_the_future"},
        ],
    )
    assert told == [
        ShownSettings(title="A", model=None, instructions="be kind"),
        Removed(item_id="item_1"),
        ShownFault(message="unsupported!", code="unsupported", about="ev_1"),
    ]


def test_a_script_gets_the_answer_alone_once_and_whole() -> None:
    out = io.StringIO()
    screen = StreamScreen(out, None)
    answer = ShownAnswer(response_id="resp_1", texts={"item_1": "one "})
    screen.show(Waiting(), ours=True)
    screen.show(Answering(answer=answer), ours=True)
    screen.show(Answering(answer=ShownAnswer(response_id="resp_0", texts={"item_0": "of somebody else"})), ours=False)
    answer.texts["item_1"] = "o"  # told again after a loss
    screen.show(Answering(answer=answer), ours=True)
    answer.texts["item_1"] = "one two"
    screen.show(Answered(answer=answer), ours=True)
    assert out.getvalue() == "one two\n"


def test_a_terminal_shows_what_was_said_and_how_an_answer_ended() -> None:
    out = io.StringIO()
    screen = TerminalScreen(Console(file=out, width=60))
    answer = ShownAnswer(response_id="resp_1", texts={"item_2": "All **good**."}, model="small", problem="Stopped.")
    for shown in (
        ShownWords(item_id="item_1", role="user", text="hello\nyou"),
        Answered(answer=answer),
        ShownWords(item_id="item_3", role="tool", text="sunny"),
        Removed(item_id="item_1"),
        ShownSettings(title="A", model=None, instructions=None),
        ShownFault(message="No.", code="unsupported", about=None),
    ):
        screen.show(shown, ours=False)
    assert out.getvalue().split("\n") == [
        *(f"{MARK}hello", "  you", "", "All good.", "", "Stopped.", "small", ""),
        *("tool: sunny", "", "A message was taken out of this conversation elsewhere.", "No.", ""),
    ]


# Markdown

_PIECES = st.sampled_from(
    [
        *("*", "**", "_", "`", "```", "```py\n", "\n", "\n\n", "# ", "- ", "1. ", "> ", "|a|b|\n", "|-|-|\n", "---\n"),
        *("[x](y)", "![a](b)", "[![a](b)](c)", "<kbd>", "</kbd>", "<b>", "~~", " ", "    ", "a", "\t", "&amp;"),
        *("\x1b[31m", "\x1b]0;x\x07", "[/red]", "[red]", "<http://a.b>", "\r", "\x85", "\u2028", "\x00"),
    ]
)
_MARKDOWN = st.lists(_PIECES | st.text(max_size=3), max_size=25).map("".join)


def _drawn(text: str, *, width: int = 40) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(Block(text))
    written: str = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO of above
    return written


@given(_MARKDOWN)
def test_whatever_a_model_writes_can_be_drawn_and_commands_no_terminal(text: str) -> None:
    drawn = _drawn(printable(text))
    assert not set(drawn) & {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160))}


@given(_MARKDOWN)
def test_the_blocks_of_a_text_are_the_text_and_all_but_the_last_end_with_a_line(text: str) -> None:
    text = printable(text)
    *whole, last = blocks(text)
    assert "".join(whole) + last == text
    assert all(block.endswith("\n") for block in whole)


def test_links_and_pictures_show_where_they_lead_and_html_shows_as_it_is() -> None:
    drawn = _drawn("See [here](https://a.example/x), ![cat](c.png) and <https://b.example>. <b>x</b>", width=200)
    assert drawn.strip() == "See here (https://a.example/x), cat (c.png) and https://b.example. <b>x</b>"


def test_the_lines_of_a_poem_stay_lines_and_carry_no_blanks() -> None:
    assert _drawn("The sea\nis wide\n\nand deep") == "The sea\nis wide\n\nand deep\n"


def test_an_answer_longer_than_the_screen_is_printed_once_and_whole() -> None:
    out = io.StringIO()
    console = Console(file=out, width=40, height=10, force_terminal=True, color_system=None)
    text = "\n\n".join(f"Paragraph {n}." for n in range(40))
    growing = Growing(console)
    for end in range(0, len(text), 7):
        growing.show(text[:end])
    growing.show(text[:3])  # told again after a loss
    growing.show(text)
    growing.end()
    printed = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in out.getvalue().splitlines()]
    assert next(filter(None, reversed(printed))) == "Paragraph 39."
    for paragraph in text.split("\n\n"):
        assert paragraph in printed


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"id": "a", "state": "fetching", "message": None}, "a is being fetched"),
        ({"id": "a", "state": "failed", "message": "No network."}, "a failed: No network."),
        ({"id": "a", "state": "new", "message": None}, "a new"),
    ],
)
def test_how_far_a_model_is_is_said_in_words(model: dict[str, Any], said: str) -> None:
    assert words(model) == said


def test_a_long_block_is_drawn_as_far_as_the_screen_reaches_and_is_whole_in_the_end() -> None:
    out = io.StringIO()
    console = Console(file=out, width=40, height=10, force_terminal=True, color_system=None)
    growing = Growing(console)
    growing.show("```python\n" + "".join(f"line_{n}()\n" for n in range(500)))
    lines = console.render_lines(growing._last_lines(), pad=False)
    shown = ["".join(segment.text for segment in line).strip() for line in lines]
    assert shown == [f"line_{n}()" for n in range(492, 500)]
    growing.end()
    printed = out.getvalue()
    assert all(f"line_{n}()" in printed for n in range(500))
