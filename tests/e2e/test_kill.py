"""The server is killed at random instants of turns; what it had accepted must be there, once, after a restart."""

import asyncio
import contextlib
import random
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import websockets
from support.server import Server, count, say, serving, until, words

from models.ids import new_id

_CLIENTS = 6
_RULES = [{"pattern": r"^count to (\d+)$", "reply": "{n} ", "times": r"\1", "gap_s": 0.002}]


@dataclass
class _Told:
    """What the clients were told before the kill, and so may rely on."""

    sessions: dict[str, None] = field(default_factory=dict)
    items: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    finished: dict[str, str] = field(default_factory=dict)


async def _chat(server: Server, told: _Told, seed: int) -> None:
    """Talk until the connection breaks."""
    dice = random.Random(seed)
    with contextlib.suppress(websockets.WebSocketException, OSError):
        async with server.connect() as socket:
            assert socket.response is not None
            told.sessions[socket.response.headers["x-baton-session"]] = None
            while True:
                item_id = new_id("item")
                await say(socket, f"count to {dice.randint(1, 60)}", item_id=item_id)
                (*_, done) = await until(socket, "conversation.item.done")
                assert done["item"]["id"] == item_id
                told.items.append(item_id)
                (*_, created) = await until(socket, "response.created")
                turn = created["response"]["id"].replace("resp_", "turn_")
                told.accepted.append(turn)
                if dice.random() < 0.2:
                    await asyncio.sleep(dice.random() * 0.05)
                    await socket.send('{"type": "response.cancel"}')
                events = await until(socket, "response.done")
                told.finished[turn] = events[-1]["response"]["status"]


def _check(database: Path, told: _Told) -> None:
    """Hold the database against what was told."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = connection.execute("SELECT session_id, seq, kind, turn_id, body FROM events ORDER BY session_id, seq")
        log: list[tuple[str, int, str, str, str]] = rows.fetchall()
        turns: dict[str, str] = dict(connection.execute("SELECT id, state FROM turns").fetchall())
    per_session: dict[str, list[int]] = {}
    for session, seq, *_ in log:
        per_session.setdefault(session, []).append(seq)
    for seqs in per_session.values():
        assert seqs == list(range(1, len(seqs) + 1)), "a gap in seq"

    accepted = Counter(turn for _, _, kind, turn, _ in log if kind == "turn_accepted")
    ended = Counter(turn for _, _, kind, turn, _ in log if kind == "turn_ended")
    assert set(told.accepted) <= set(accepted), "an accepted turn is missing"
    assert set(accepted.values()) <= {1}, "a turn is doubled"
    assert ended == accepted, "a turn did not end exactly once"
    assert turns.keys() == accepted.keys()
    assert "accepted" not in turns.values(), "a turn was left open"

    state = {"completed": "finished", "cancelled": "interrupted"}
    assert {turn: turns[turn] for turn in told.finished} == {turn: state[s] for turn, s in told.finished.items()}

    added = Counter(
        item for item in told.items for row in log if row[2] in {"items_added", "turn_accepted"} and item in row[4]
    )
    assert added == Counter(told.items), "an item is missing or doubled"


async def _kill_and_check(home: Path, kills: int) -> None:
    dice = random.Random(kills)
    told = _Told()
    server = Server(home, rules=_RULES)
    for round_ in range(kills):
        await server.start()
        async with asyncio.TaskGroup() as tasks:
            for client in range(_CLIENTS):
                tasks.create_task(_chat(server, told, seed=round_ * 100 + client))
            await asyncio.sleep(dice.uniform(0.05, 1.0))
            await server.kill()
    assert len(told.accepted) > kills, "too little happened for the kills to mean anything"
    async with serving(home, rules=_RULES) as restarted:
        _check(home / "baton.sqlite3", told)
        for session in list(told.sessions)[-3:]:
            await _goes_on(restarted, session)


async def _goes_on(server: Server, session: str) -> None:
    async with server.connect(f"?session={session}") as socket:
        await say(socket, "count to 7")
        events: list[dict[str, Any]] = await until(socket, "response.done")
        assert words(events) == count(7)


@pytest.mark.timeout(180)
async def test_ten_kills_lose_no_accepted_turn_and_double_none(tmp_path: Path) -> None:
    await _kill_and_check(tmp_path / "home", kills=10)


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_fifty_kills_lose_no_accepted_turn_and_double_none(tmp_path: Path) -> None:
    await _kill_and_check(tmp_path / "home", kills=50)
