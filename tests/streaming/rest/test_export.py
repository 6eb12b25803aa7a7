"""A conversation as a document: whatever was said, every message is there and ends where it ends."""

import re

from hypothesis import given
from hypothesis import strategies as st

from memory.sessions import SessionRecord
from models.content import Call, CallResult, Item, Message, Role, TextPart
from orchestrator.sessions.registry import ToldTurn
from streaming.rest.export import markdown


def _record(title: str | None = "A talk", instructions: str | None = None) -> SessionRecord:
    return SessionRecord(
        session_id="sess_1",
        title=title,
        instructions=instructions,
        model=None,
        created_ms=0,
        updated_ms=0,
        last_seq=1,
    )


def _said(role: Role, text: str) -> Message:
    return Message(item_id="i", role=role, parts=(TextPart(text=text),))


def test_a_conversation_reads_as_one() -> None:
    items: tuple[Item, ...] = (
        _said("user", "What is the weather in Bern?"),
        Call(item_id="i", call_id="c", name="get_weather", arguments='{"city": "Bern"}'),
        CallResult(item_id="i", call_id="c", parts=(TextPart(text="sunny", source="tool"),)),
        _said("assistant", "The sun shines.\n\n* warm\n* dry"),
    )
    assert markdown(_record(instructions="Be kind.\nBe brief."), items) == (
        "# A talk\n\n**Instructions**\n\n> Be kind.\n> Be brief.\n\n"
        "**User**\n\n> What is the weather in Bern?\n\n"
        '**Call of** `get_weather`\n\n```json\n{"city": "Bern"}\n```\n\n'
        "**Result**\n\n```\nsunny\n```\n\n"
        "**Assistant**\n\n> The sun shines.\n>\n> * warm\n> * dry\n"
    )


def test_an_answer_that_was_cut_short_says_so() -> None:
    cut = Message(item_id="i", role="assistant", parts=(TextPart(text="It"),), status="incomplete")
    assert "**Assistant** *(cut short)*\n\n> It\n" in markdown(_record(), (cut,))


def test_a_turn_that_was_cut_off_says_so_where_it_was() -> None:
    asked = Message(item_id="asked", role="user", parts=(TextPart(text="So?"),))
    turns = (
        ToldTurn(turn_id="t1", after="asked", state="interrupted", reason="server_restarted"),
        ToldTurn(turn_id="t2", after="i", state="finished", reason="stop"),
    )
    assert markdown(_record(), (asked, _said("user", "Hm?")), turns) == (
        "# A talk\n\n**User**\n\n> So?\n\n*(cut off: server_restarted)*\n\n**User**\n\n> Hm?\n"
    )


def test_a_session_without_a_title_has_a_heading_and_a_title_is_one_line() -> None:
    assert markdown(_record(title=None), ()) == "# Conversation\n"
    assert markdown(_record(title="two\nlines"), ()) == "# two lines\n"


def test_a_code_block_is_fenced_by_more_ticks_than_it_holds() -> None:
    result = CallResult(item_id="i", call_id="c", parts=(TextPart(text="````\n**User**\n````"),))
    assert "`````\n````\n**User**\n````\n`````\n" in markdown(_record(), (result,))
    call = Call(item_id="i", call_id="c", name="a`b", arguments="{}")
    assert "**Call of** `` a`b ``\n" in markdown(_record(), (call,))


_TEXT = st.text(st.sampled_from("ab >#*`~<!-\n\r\x0b\u2028 "), max_size=40)


@given(texts=st.lists(_TEXT, max_size=4), title=_TEXT)
def test_nothing_that_was_said_can_pass_for_a_message_or_swallow_one(texts: list[str], title: str) -> None:
    items = [_said("user", text) for text in texts]
    lines = markdown(_record(title=title or None), items).split("\n")
    assert lines[0].startswith("# ")
    said = [line for line in lines[1:] if line and not line.startswith(">")]
    assert said == ["**User**"] * len(texts)
    assert not any(re.search("[\r\x0b\u2028]", line) for line in lines), "a line that is none to every reader"
