"""Homes that earlier Batons left open, are migrated, and every conversation in them reads as it did.

`tests/fixtures/make_home.py` has made them, with the earlier code.
"""

import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.app import serving_app

from models.content import Message, TextPart
from models.errors import NotFound
from orchestrator.events import TurnAccepted, TurnInput
from streaming.limits import SurfaceLimits

FIXTURES = Path(__file__).parent.parent / "fixtures"

EARLIER = ("8a0183e", "c872478")


def _unpacked(folder: Path, commit: str) -> dict[str, Any]:
    """Unpack a home into a folder; return what was told of it then."""
    with tarfile.open(FIXTURES / f"home-{commit}.tar.gz") as tar:
        tar.extractall(folder / "home", filter="data")
    told: dict[str, Any] = json.loads((FIXTURES / f"home-{commit}.json").read_text())
    return told


def _serving(folder: Path) -> Any:
    return serving_app(
        folder, limits=SurfaceLimits(), rules=[{"pattern": "(.*)", "reply": "it goes on"}], models=("scripted",)
    )


async def _whole(client: httpx.AsyncClient, session_id: str) -> dict[str, Any]:
    told: dict[str, Any] = (await client.get(f"/v1/sessions/{session_id}")).raise_for_status().json()
    return told


def _as_then(now: Any, then: Any) -> Any:
    """Return what is told now, without fields that were not told then, and without media, which were not."""
    if isinstance(now, dict) and isinstance(then, dict):
        if "content" in then:
            now = {**now, "content": [part for part in now["content"] if part["type"].endswith("_text")]}
        return {name: _as_then(now[name], then[name]) for name in then if name in now}
    if isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        return [_as_then(one, other) for one, other in zip(now, then, strict=True)]
    return now


@pytest.fixture(params=EARLIER)
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    return _unpacked(tmp_path, request.param)


async def test_every_conversation_of_an_earlier_home_reads_as_it_did(tmp_path: Path, earlier: dict[str, Any]) -> None:
    names = {session_id: name for name, session_id in earlier["names"].items()}
    async with _serving(tmp_path) as served, served.http() as client:
        listed = (await client.get("/v1/sessions", params={"limit": 100})).json()["data"]
        assert {one["id"] for one in listed} == set(earlier["sessions"])
        for session_id, then in earlier["sessions"].items():
            now = await _whole(client, session_id)
            if names.get(session_id) == "open":
                # Its turn ran when the process ended: what is new is that this is said of it.
                assert then["turns"][-1]["state"] == "running"
                then["turns"][-1] |= {"state": "interrupted", "reason": "server_restarted"}
                then |= {"last_seq": then["last_seq"] + 1, "updated_at": now["updated_at"]}
            assert _as_then(now, then) == then, names.get(session_id)


async def test_conversations_of_an_earlier_home_go_on(tmp_path: Path, earlier: dict[str, Any]) -> None:
    async with _serving(tmp_path) as served:
        for name, session_id in earlier["names"].items():
            if name == "pictures":
                continue  # no card of this server can read them
            session = await served.conductor.sessions.open("local", session_id)
            before = session.items
            said = Message(item_id="item_new", role="user", parts=(TextPart(text="And now?"),))
            turn_id = await session.respond(TurnInput(items=(said,)))
            await session.until_free(served.conductor.clock.now_s() + 10)
            assert session.items[: len(before)] == before
            assert session.items[-1].parts[0].text == "it goes on"  # type: ignore[union-attr]
            history = await served.conductor.sessions.transcript("local", session_id)
            assert history.items[-len(session.items) :] == session.items
            assert history.turns[-1].turn_id == turn_id


async def test_what_turns_of_an_earlier_home_were_asked_is_told_by_their_rows(
    tmp_path: Path, earlier: dict[str, Any]
) -> None:
    async with _serving(tmp_path) as served:
        session = await served.conductor.sessions.open("local", earlier["names"]["settings"])
        accepted = [row.event for row in await session._journal.read(0, 100) if isinstance(row.event, TurnAccepted)]
        assert [one.input.instructions for one in accepted] == [*["Answer in Latin."] * 3, None]
        assert all(one.input.tools is not None and len(one.input.tools.tools) == 20 for one in accepted)
        assert all("form" in json.loads(one.decision.inputs) for one in accepted)
        await session.change({"instructions": "Answer in Greek."})
        assert (await served.conductor.sessions.record("local", session.session_id)).title == "Named by hand"


async def test_the_ledger_and_the_tenants_of_an_earlier_home_are_as_they_were(
    tmp_path: Path, earlier: dict[str, Any]
) -> None:
    async with _serving(tmp_path) as served:
        session = await served.conductor.sessions.open("local", earlier["names"]["calls"])
        call: Any = session.items[-1]
        result = (TextPart(text="sun", source="tool"),)
        await session.tool_result(call.call_id, result)
        theirs = await served.conductor.sessions.records("theirs", limit=9)
        assert [one.title for one in theirs] == ["Hello, Zoë."]
        with pytest.raises(NotFound):
            await served.conductor.sessions.record("theirs", session.session_id)
    with closing(sqlite3.connect(tmp_path / "home" / "baton.sqlite3")) as connection:
        states = connection.execute("SELECT state, call_id FROM effects WHERE call_id = ?", (call.call_id,))
        assert states.fetchall() == [("completed", call.call_id)]
        assert connection.execute("SELECT count(*) FROM turns WHERE state = 'accepted'").fetchone() == (0,)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


async def test_pictures_of_an_earlier_home_go_with_the_last_conversation_that_has_them(
    tmp_path: Path, earlier: dict[str, Any]
) -> None:
    blobs = tmp_path / "home" / "blobs"
    contents = {path.read_bytes() for path in blobs.rglob("*") if path.is_file()}
    assert contents == {b"red picture", b"blue picture", b"a paper", b"a picture of nobody's"}
    pictures = earlier["names"]["pictures"]
    (other,) = earlier["sessions"].keys() - set(earlier["names"].values())
    async with _serving(tmp_path) as served, served.http() as client:
        # What nobody used went when the server started.
        assert _kept(blobs) == {b"red picture", b"blue picture", b"a paper"}
        shown = [part for item in (await _whole(client, pictures))["items"] for part in item["content"]]
        assert [part["type"] for part in shown] == ["input_text", "input_image", "input_image", "input_file"]
        assert (await client.delete(f"/v1/sessions/{pictures}")).status_code == 204
        assert _kept(blobs) == {b"red picture"}
        assert (await client.delete(f"/v1/sessions/{other}")).status_code == 204
        assert _kept(blobs) == set()


async def test_words_of_an_earlier_home_are_taken_out_of_its_rows_too(tmp_path: Path, earlier: dict[str, Any]) -> None:
    home = tmp_path / "home"
    calls = earlier["names"]["calls"]
    async with _serving(tmp_path) as served, served.http() as client:
        before = await _whole(client, calls)
        for item in before["items"]:
            where = f"/v1/sessions/{calls}/items/{item['id']}"
            assert (await client.delete(where, params={"redact": "true"})).status_code == 204
        after = await _whole(client, calls)
        assert [item["id"] for item in after["items"]] == [item["id"] for item in before["items"]]
        assert after["title"] is None
        held = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
        for word in ("rain, 4", "Oslo", "weather in", "thanks"):
            assert word.encode() not in held, word
        assert "Hello, Zoë".encode() in held  # another one's


def _kept(blobs: Path) -> set[bytes]:
    return {path.read_bytes() for path in blobs.rglob("*") if path.is_file()}


# A row that is not known here


@pytest.fixture
def strange(tmp_path: Path) -> tuple[str, str]:
    """A home with a row of a newer Baton in one of its sessions, whose turn was cut off; that session and another."""
    told = _unpacked(tmp_path, "c872478")["names"]
    with closing(sqlite3.connect(tmp_path / "home" / "baton.sqlite3")) as connection:
        connection.execute(
            "UPDATE events SET kind = 'dreamt' WHERE session_id = ? AND seq = (SELECT max(seq) FROM events e"
            " WHERE e.session_id = events.session_id)",
            (told["open"],),
        )
        connection.commit()
    return told["open"], told["plain"]


async def test_a_row_of_an_unknown_kind_is_one_clear_error_of_its_session_and_harms_no_other(
    tmp_path: Path, strange: tuple[str, str]
) -> None:
    bad, good = strange
    async with _serving(tmp_path) as served, served.http() as client:
        for refused in (
            await client.get(f"/v1/sessions/{bad}"),
            await client.get(f"/v1/sessions/{bad}/export"),
            await client.patch(f"/v1/sessions/{bad}", json={"title": "New"}),
        ):
            assert refused.status_code == 500
            error = refused.json()["error"]
            assert error["code"] == "unknown_row"
            assert "of kind 'dreamt'" in error["message"]
            assert refused.headers["x-should-retry"] == "false"
        assert bad in {one["id"] for one in (await client.get("/v1/sessions", params={"limit": 100})).json()["data"]}
        assert (await _whole(client, good))["items"]
        assert await served.conductor.database.trouble() is None
        session = await served.conductor.sessions.open("local", good)
        await session.add((Message(item_id="item_new", role="user", parts=(TextPart(text="on"),)),))
        # It can be deleted all the same.
        assert (await client.delete(f"/v1/sessions/{bad}")).status_code == 204
        assert (await client.get(f"/v1/sessions/{bad}")).status_code == 404


async def test_a_forked_session_with_an_unknown_row_can_be_deleted_too(
    tmp_path: Path, strange: tuple[str, str]
) -> None:
    _, good = strange
    async with _serving(tmp_path) as served, served.http() as client:
        branch_id = await served.conductor.sessions.fork("local", good)
        branch = await served.conductor.sessions.open("local", branch_id)
        await branch.remove((branch.items[0].item_id,))
        await served.conductor.database.write(
            lambda c: c.exec_driver_sql("UPDATE events SET v = 99 WHERE session_id = ? AND seq = 1", (good,)) and None
        )
        assert (await client.delete(f"/v1/sessions/{good}")).status_code == 204
        assert (await client.get(f"/v1/sessions/{branch_id}")).json()["error"]["code"] == "unknown_row"
        assert (await client.delete(f"/v1/sessions/{branch_id}")).status_code == 204
        assert await served.conductor.database.read(
            lambda c: c.exec_driver_sql("SELECT count(*) FROM events WHERE session_id = ?", (good,)).scalar() == 0
        )
