"""Conversations are forked, and items are taken out of them for good: asked for over REST, and looked for in every file."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.app import Served, serving_app

from models.content import BlobRef, CallResult, ImagePart, Message, TextPart
from models.errors import NotFound
from models.ports.generate import ToolConstraint, ToolSpec
from orchestrator.events import TurnInput
from streaming.limits import SurfaceLimits

RULES = [
    {"pattern": r"^weather in (.*)$", "reply": r'{"city": "\1"}', "call": "weather"},
    {"pattern": r"(?s)(.*)", "reply": r"you said \1"},
]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving_app(tmp_path, limits=SurfaceLimits(), rules=RULES, models=("scripted",)) as served:
        yield served


def _said(text: str, item_id: str, *more: Any) -> Message:
    return Message(item_id=item_id, role="user", parts=(TextPart(text=text), *more))


async def _turn(session: Any, text: str, item_id: str, **more: Any) -> str:
    after = session.last_seq
    turn_id: str = await session.respond(TurnInput(items=(_said(text, item_id),), **more))
    async for event in session.events(after):
        if event.kind == "committed" and event.event.kind == "turn_ended":
            break
    return turn_id


async def _picture(served: Served, content: bytes) -> ImagePart:
    async def once() -> AsyncIterator[bytes]:
        yield content

    blob: BlobRef = await served.conductor.blobs.put("local", once(), "image/png", max_bytes=1_000)
    return ImagePart(blob=blob, width_px=1, height_px=1)


def _holding(served: Served, *words: str) -> list[tuple[str, str]]:
    """Return which files of the home have which of the words in them, as bytes."""
    home = served.conductor.home.path
    files = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    spellings = [(word, {word.encode(), json.dumps(word)[1:-1].encode()}) for word in words]
    return [
        (str(path.relative_to(home)), word)
        for path, content in files.items()
        for word, spelled in spellings
        if any(one in content for one in spelled)
    ]


async def _words(served: Served, session_id: str) -> list[str]:
    async with served.http() as client:
        items = (await client.get(f"/v1/sessions/{session_id}")).raise_for_status().json()["items"]
    return [
        "".join(part.get("text", "") for part in item.get("content", ())) or item.get("arguments", "") for item in items
    ]


TOOLS = ToolConstraint(tools=(ToolSpec(name="weather", description="Asks the zugspitze.", parameters="{}"),))


async def test_after_a_session_is_deleted_its_bytes_are_in_no_file_and_its_pictures_are_not_found(
    served: Served,
) -> None:
    session = await served.conductor.sessions.create("local")
    other = await served.conductor.sessions.create("local")
    mine, both = await _picture(served, b"a picture of a quagga"), await _picture(served, b"a picture of two")
    await session.change({"instructions": "Speak of the xylophone.", "title": "Nightjar"})
    turn = await session.respond(TurnInput(items=(_said("weather in Uppsala", "item_w"),), tools=TOOLS))
    await session.until_free(served.conductor.clock.now_s() + 10)
    await session.tool_result(session.items[-1].call_id, (TextPart(text="rain of axolotls"),))
    await session.add((_said("the okapi", "item_1", mine, both),))
    await other.add((_said("the moa", "item_1", both),))
    for n in range(30):  # more than a page of them, of which some overflow it
        await session.add((_said(f"the okapi {n} " + "🎻 dodo " * (n * 40), f"item_more_{n}"),))
    await session.remove(("item_1",))  # and its picture with it, which nobody else has
    mine = await _picture(served, b"a picture of a quagga")
    await session.add((_said("the okapi", "item_again", mine, both),))
    words = ("okapi", "dodo", "quagga", "xylophone", "Nightjar", "Uppsala", "axolotls", "zugspitze", turn)
    assert {word for _, word in _holding(served, *words)} == set(words)
    async with served.http() as client:
        assert (await client.delete(f"/v1/sessions/{session.session_id}")).status_code == 204
        assert (await client.get(f"/v1/sessions/{session.session_id}")).status_code == 404
    assert _holding(served, *words, session.session_id) == []
    with pytest.raises(NotFound):
        served.conductor.blobs.open("local", mine.blob.sha256)
    with served.conductor.blobs.open("local", both.blob.sha256) as kept:
        assert kept.read() == b"a picture of two"
    assert await _words(served, other.session_id) == ["the moa"]


async def test_redacted_words_are_in_no_file_and_the_places_stay(served: Served) -> None:
    session = await served.conductor.sessions.create("local")
    picture = await _picture(served, b"a picture of a quagga")
    await session.add((_said("my name is Okapi", "item_1"),))  # it names the session
    await session.change({"model": "scripted"})  # a row with that title in it
    await session.respond(TurnInput(items=(_said("weather in Uppsala", "item_w"),), tools=TOOLS))
    await session.until_free(served.conductor.clock.now_s() + 10)
    call: Any = session.items[-1]
    await session.tool_result(call.call_id, (TextPart(text="rain of axolotls"),), item_id="item_result")
    await _turn(session, "thanks", "item_thanks")
    await session.add((_said("the okapi", "item_picture", picture),))
    before = await served.conductor.sessions.transcript("local", session.session_id)
    seq = session.last_seq
    async with served.http() as client:
        for item_id in ("item_1", "item_w", call.item_id, "item_result", "item_picture"):
            gone = await client.delete(f"/v1/sessions/{session.session_id}/items/{item_id}", params={"redact": "true"})
            assert gone.status_code == 204
        shown = (await client.get(f"/v1/sessions/{session.session_id}")).json()
    assert _holding(served, "Okapi", "okapi", "quagga", "Uppsala", "axolotls") == []
    assert [item["id"] for item in shown["items"]] == [item.item_id for item in before.items]
    assert shown["title"] is None
    assert session.last_seq == seq + 5
    # What is in memory is what is in the log; and the conversation goes on, by what is said next.
    after = await served.conductor.sessions.transcript("local", session.session_id)
    assert after.items == session.items
    await _turn(session, "And now?", "item_now")
    assert (await served.conductor.sessions.record("local", session.session_id)).title == "And now?"
    assert isinstance(session.items[3], CallResult)


async def test_a_deleted_item_leaves_the_conversation_and_takes_its_words_along(served: Served) -> None:
    session = await served.conductor.sessions.create("local")
    await session.add((_said("the okapi", "item_1"), _said("the moa", "item_2")))
    async with served.http() as client:
        where = f"/v1/sessions/{session.session_id}/items"
        assert (await client.delete(f"{where}/item_1")).status_code == 204
        assert (await client.delete(f"{where}/item_1")).status_code == 404
        assert (await client.delete(f"{where}/item_1", params={"redact": "true"})).status_code == 404
        assert (await client.delete("/v1/sessions/sess_none/items/item_2")).status_code == 404
    assert _holding(served, "okapi") == []
    assert await _words(served, session.session_id) == ["the moa"]


async def test_a_fork_goes_on_from_a_turn_and_shares_what_was_before_it(served: Served) -> None:
    session = await served.conductor.sessions.create("local")
    first = await _turn(session, "one", "item_1")
    await _turn(session, "two", "item_2")
    async with served.http() as client:
        where = f"/v1/sessions/{session.session_id}/fork"
        forked = (await client.post(where, json={"turn": "resp_" + first.removeprefix("turn_")})).json()
        whole = (await client.post(where)).json()
        assert (await client.post(where, json={"turn": "turn_none"})).status_code == 404
        assert (await client.post("/v1/sessions/sess_none/fork")).status_code == 404
    assert await _words(served, forked["id"]) == ["one", "you said one"]
    assert await _words(served, whole["id"]) == ["one", "you said one", "two", "you said two"]
    branch = await served.conductor.sessions.open("local", forked["id"])
    await _turn(branch, "instead", "item_2")
    assert await _words(served, forked["id"]) == ["one", "you said one", "instead", "you said instead"]
    assert await _words(served, session.session_id) == ["one", "you said one", "two", "you said two"]


async def test_redaction_reaches_every_branch_and_what_is_open_of_them(served: Served) -> None:
    sessions = served.conductor.sessions
    session = await sessions.create("local")
    await _turn(session, "the okapi", "item_1")
    branch = await sessions.open("local", await sessions.fork("local", session.session_id))
    twig = await sessions.open("local", await sessions.fork("local", branch.session_id))
    await branch.add((_said("the moa", "item_2"),))
    # What only leaves one conversation stays in the others.
    await twig.remove(("item_1",))
    assert (await _words(served, session.session_id))[0] == "the okapi"
    await sessions.redact("local", branch.session_id, ("item_1",))
    answer = session.items[1].item_id
    await sessions.redact("local", session.session_id, (answer,))
    assert _holding(served, "okapi") == []
    for one, words in ((session, ["", ""]), (branch, ["", "", "the moa"]), (twig, [""])):
        assert await _words(served, one.session_id) == words
        assert (await sessions.transcript("local", one.session_id)).items == one.items
        assert one.settings.title is None
        assert (await sessions.record("local", one.session_id)).title is None


async def test_a_deleted_parent_is_gone_while_its_branches_go_on_until_the_last_takes_the_rest(served: Served) -> None:
    sessions = served.conductor.sessions
    session = await sessions.create("local")
    await session.change({"instructions": "Speak of the xylophone."})
    await session.add((_said("the okapi", "item_1", await _picture(served, b"a picture of a quagga")),))
    branch_id = await sessions.fork("local", session.session_id)
    await session.add((_said("the moa", "item_2"),))
    await session.change({"instructions": "Speak of the nightjar."})
    await sessions.delete("local", session.session_id)
    async with served.http() as client:
        assert (await client.get(f"/v1/sessions/{session.session_id}")).status_code == 404
        listed = (await client.get("/v1/sessions")).json()["data"]
    assert [one["id"] for one in listed] == [branch_id]
    assert _holding(served, "moa", "nightjar") == []
    assert await _words(served, branch_id) == ["the okapi"]
    branch = await sessions.open("local", branch_id)
    await branch.add((_said("go on", "item_2"),))
    assert branch.settings.instructions == "Speak of the xylophone."
    await sessions.delete("local", branch_id)
    assert _holding(served, "okapi", "xylophone", "quagga", "go on", session.session_id, branch_id) == []
