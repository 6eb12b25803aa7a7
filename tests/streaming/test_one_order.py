"""One order of a conversation's items: told live, told again, shown over REST, and to the model."""

import json
import random
from collections.abc import Callable, Iterable
from typing import Any

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from agents.events import Origin, TaskFinished, TaskProgress
from memory.keys import RequestDefaults
from memory.log import LogRow
from models.content import CallDelta, Item, Message, TextDelta, TextPart
from orchestrator.events import Committed, Decision, ItemsAdded, LogEvent, SessionSettings, TurnInput, done_with
from orchestrator.limits import SessionLimits
from orchestrator.sessions.codec import parse
from orchestrator.sessions.cursor import Cursor
from orchestrator.sessions.folding import from_a_turn_on
from orchestrator.sessions.order import FRONT
from orchestrator.sessions.registry import _BOUNDLESS
from orchestrator.sessions.state import SessionState
from streaming.realtime.options import Options
from streaming.realtime.protocol import RealtimeProtocol

_DECISION = Decision(agent="writer", card="scripted", reasons=(), refused=(), inputs="{}")


class _Client:
    """Puts items where it is told to, as the API's clients do."""

    def __init__(self, at: SessionState, there: Iterable[str] = ()) -> None:
        self.items = list(there)
        self.cursor = Cursor(at.last_seq)
        self._protocol = RealtimeProtocol(
            "sess_1",
            at.last_seq,
            options=Options(),
            defaults=RequestDefaults(),
            settings=SessionSettings(),
            order=at.order.copy(),
        )

    def read(self, state: SessionState, log: list[Committed]) -> None:
        batch = self.cursor.advance(state)
        while batch is None:
            batch = self.cursor.take_rows(log[self.cursor.seq :])
        for event in batch:
            for told in self._protocol.session_event(event):
                self._take(told)

    def _take(self, told: dict[str, Any]) -> None:
        match told["type"]:
            case "conversation.item.added":
                previous = told["previous_item_id"]
                at = 0 if previous is None else self.items.index(previous) + 1
                self.items.insert(at, told["item"]["id"])
            case "conversation.item.deleted":
                self.items.remove(told["item_id"])
            case _:
                pass


class _Play:
    """A session in which anything may happen, and clients that come and lag."""

    def __init__(self) -> None:
        self.state = SessionState(SessionLimits(rows=3))
        self.log: list[Committed] = []
        self.live = _Client(self.state)
        self.lagging = _Client(self.state)
        self.ids = 0

    def new_id(self, prefix: str) -> str:
        self.ids += 1
        return f"{prefix}_{self.ids}"

    def said(self) -> Message:
        return Message(item_id=self.new_id("said"), role="user", parts=(TextPart(text="x"),))

    def write(self, events: tuple[LogEvent, ...]) -> None:
        rows = tuple(Committed(seq=self.state.last_seq + n, at_ms=0, event=e) for n, e in enumerate(events, start=1))
        self.log += rows
        self.state.apply(rows, 0.0)

    def steps(self) -> list[Callable[[random.Random], None]]:
        if self.state.turn is None:
            return [self.add, self.add, self.delete, self.begin, self.lag]
        return [self.add, self.add, self.words, self.words, self.call, self.end, self.cancel, self.lag]

    def add(self, chance: random.Random) -> None:
        known = [*self.state.order.ids]
        if self.state.turn is not None:
            known += [item.item_id for item in self.state.turn.open.values()] * 3
        after = chance.choice([None, None, FRONT, *known])
        note(f"add after {after}")
        self.write(self.state.plan_add(tuple(self.said() for _ in range(chance.randint(1, 2))), after))

    def delete(self, chance: random.Random) -> None:
        ids = self.state.order.ids
        self.write(self.state.plan_remove(tuple(chance.sample(ids, min(len(ids), chance.randint(0, 2))))))

    def begin(self, chance: random.Random) -> None:
        turn_input = TurnInput(items=tuple(self.said() for _ in range(chance.randint(0, 2))))
        generation, _ = self.state.propose(self.new_id("turn"), turn_input, 0.0)
        assert self.state.proposal is not None
        self.write(self.state.plan_accept(self.state.proposal.turn_id, generation, _DECISION, asked_s=0.0))

    def yields(self, event: Any) -> None:
        if not self.state.take(event, self.new_id("item"), 0.0):
            self.write(self.state.plan(event, self.new_id("item"), 0.0))
            if self.state.turn is not None:
                self.state.take(event, self.new_id("item"), 0.0)

    @property
    def origin(self) -> Origin:
        turn = self.state.turn
        assert turn is not None
        return Origin(agent="writer", task_id="t", turn_id=turn.turn_id, generation=turn.generation)

    def words(self, _: random.Random) -> None:
        self.yields(TaskProgress(origin=self.origin, delta=TextDelta(text="word")))

    def call(self, _: random.Random) -> None:
        delta = CallDelta(call_id=self.new_id("call"), name="f", arguments="{}")
        self.yields(TaskProgress(origin=self.origin, delta=delta))

    def end(self, _: random.Random) -> None:
        self.yields(done_with(TaskFinished(origin=self.origin, reason="stop")))

    def cancel(self, _: random.Random) -> None:
        assert self.state.turn is not None
        self.write(self.state.plan_cancel(self.state.turn.turn_id, "client_cancelled", 0.0))

    def lag(self, _: random.Random) -> None:
        self.lagging.read(self.state, self.log)

    def step(self, chance: random.Random) -> None:
        chosen = chance.choice(self.steps())
        note(chosen.__name__)
        chosen(chance)
        self.live.read(self.state, self.log)
        if self.state.turn is None:
            assert self.live.items == _ids(self.state.items)

    def finish(self) -> None:
        if self.state.turn is not None:
            self.cancel(random.Random(0))
        shown = _ids(self.state.items)
        for client in (self.live, self.lagging):
            client.read(self.state, self.log)
            assert client.items == shown, "told live"
        over_rest = SessionState(_BOUNDLESS)
        for row in self.log:
            over_rest.apply((row,), 0.0)
        assert _ids(over_rest.items) == shown, "over REST"
        for seq in range(len(self.log) + 1):
            self.tell_again(seq, shown)

    def tell_again(self, seq: int, shown: list[str]) -> None:
        """A client who was told of everything up to a row comes back."""
        before = SessionState(self.state.limits)
        before.apply(self.log[:seq], 0.0)
        client = _Client(before, before.order.ids)
        client.read(self.state, self.log)
        assert client.items == shown, f"told again after {seq}"


def _ids(items: Iterable[Item]) -> list[str]:
    return [item.item_id for item in items]


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 65_535), min_size=3, max_size=40))
def test_live_in_replay_over_rest_and_for_the_model_the_order_is_one(steps: list[int]) -> None:
    play = _Play()
    for number in steps:
        play.step(random.Random(number))
    play.finish()


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 65_535), min_size=10, max_size=60))
def test_the_end_of_the_log_gives_the_same_order_as_the_whole(steps: list[int]) -> None:
    play = _Play()
    for number in steps:
        play.step(random.Random(number))
    for reach in range(1, len(play.log)):
        limits = SessionLimits(items=4)
        lived, folded = SessionState(limits), SessionState(limits)
        for row in play.log:
            lived.apply((row,), 0.0)
        folded.apply(from_a_turn_on(tuple(play.log[-reach:])), 0.0)
        if folded.full:
            assert _ids(folded.items) == _ids(lived.items)


def test_a_log_without_places_is_read_as_it_was_meant() -> None:
    old = json.dumps({"kind": "items_added", "items": []})
    assert parse(LogRow(seq=1, turn_id=None, kind="items_added", v=1, body=old, at_ms=1)).event == ItemsAdded(items=())
