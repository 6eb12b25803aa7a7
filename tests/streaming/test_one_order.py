"""One order of a conversation's items: told live, told again, shown over REST, and to the model; and one content.

A reply is the work of three tasks that write at once, one of them for the others.
"""

import json
import random
from collections.abc import Callable, Iterable
from typing import Any

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from agents.events import Origin, TaskFinished, TaskItem, TaskProgress
from memory.keys import RequestDefaults
from memory.log import LogRow
from models.content import (
    ApprovalRequest,
    BlobRef,
    CallDelta,
    ImagePart,
    Item,
    Message,
    OtherItem,
    OutputRole,
    PartDelta,
    ReasoningDelta,
    TextDelta,
    TextPart,
    status_of,
)
from orchestrator.events import (
    AnswerControl,
    Committed,
    Decision,
    ItemsAdded,
    LogEvent,
    SessionSettings,
    SingleRoute,
    TurnInput,
    done_with,
)
from orchestrator.limits import SessionLimits
from orchestrator.sessions.codec import parse
from orchestrator.sessions.cursor import Cursor
from orchestrator.sessions.folding import from_a_turn_on
from orchestrator.sessions.order import FRONT
from orchestrator.sessions.registry import _BOUNDLESS
from orchestrator.sessions.state import SessionState
from streaming.realtime.options import Options
from streaming.realtime.protocol import RealtimeProtocol
from streaming.wire.items import wire_item

_DECISION = Decision(control=AnswerControl(), route=SingleRoute(card="scripted"), reasons=(), refused=(), inputs="{}")


_ROLES: dict[str, OutputRole] = {"1": "answer", "2": "answer", "3": "work"}

_PICTURE = ImagePart(blob=BlobRef(sha256="0" * 64, media_type="image/png", size_bytes=1), width_px=1, height_px=1)


class _Reply:
    """A response as a client puts it together, each item checked against the strict order of its own events."""

    def __init__(self) -> None:
        self.open: dict[str, dict[str, Any]] = {}
        self.output: dict[int, dict[str, Any]] = {}

    def take(self, told: dict[str, Any]) -> None:
        kind = told["type"]
        if kind == "response.output_item.added":
            item = told["item"]
            assert told["output_index"] not in self.output, "two items have one place"
            self.output[told["output_index"]] = {}
            self.open[item["id"]] = {"index": told["output_index"], "content": [], "arguments": "", "is_open": False}
        elif kind == "response.output_item.done":
            known = self.open.pop(told["item"]["id"])
            assert known["index"] == told["output_index"]
            assert not known["is_open"], "a part was left open"
            if told["item"]["type"] == "message":
                written = [part for part in known["content"] if part != {"type": "output_text", "text": ""}]
                assert written == told["item"]["content"]
            elif told["item"]["type"] == "function_call":
                assert known["arguments"] == told["item"]["arguments"]
            self.output[told["output_index"]] = told["item"]
        elif kind.startswith("response.") and "item_id" in told:
            self._grow(kind.removeprefix("response."), told)

    def _grow(self, kind: str, told: dict[str, Any]) -> None:
        known = self.open[told["item_id"]]
        assert known["index"] == told["output_index"]
        content = known["content"]
        match kind:
            case "content_part.added":
                assert told["content_index"] == len(content)
                assert not known["is_open"], "two parts of an item are open"
                part = told["part"]
                content.append({"type": "output_text", "text": ""} if part["type"] == "text" else part)
                known["is_open"] = True
            case "output_text.delta":
                assert known["is_open"]
                assert told["content_index"] == len(content) - 1
                content[-1]["text"] += told["delta"]
            case "output_text.done":
                assert content[-1]["text"] == told["text"]
            case "content_part.done":
                assert told["content_index"] == len(content) - 1
                known["is_open"] = False
            case "function_call_arguments.delta":
                known["arguments"] += told["delta"]
            case "function_call_arguments.done":
                assert known["arguments"] == told["arguments"]


def _words(item: dict[str, Any]) -> str:
    return "".join([part.get("text", "") for part in item.get("content", ())] + [item.get("arguments", "")])


class _Client:
    """Puts items where it is told to, as the API's clients do."""

    def __init__(self, at: SessionState, there: Iterable[str] = ()) -> None:
        self.items = list(there)
        self.wire: dict[str, dict[str, Any]] = {}
        self.replies: dict[str, _Reply] = {}
        self.beside: dict[str, str] = {}
        self.cursor = Cursor(at.last_seq)
        self._protocol = RealtimeProtocol(
            "sess_1",
            at.last_seq,
            options=Options(),
            defaults=RequestDefaults(),
            settings=SessionSettings(),
            order=at.order.copy(),
            baton_events=True,
        )

    def read(self, state: SessionState, log: list[Committed]) -> None:
        batch = self.cursor.advance(state)
        while batch is None:
            batch = self.cursor.take_rows(log[self.cursor.seq :])
        for event in batch:
            for told in self._protocol.session_event(event):
                self._take(told)

    def _take(self, told: dict[str, Any]) -> None:
        if (response_id := told.get("response_id")) is not None and not told["type"].startswith("baton."):
            self.replies.setdefault(response_id, _Reply()).take(told)
        match told["type"]:
            case "baton.item.added":
                self.beside[told["item_id"]] = _words(told["item"])
            case "baton.item.delta":
                self.beside[told["item_id"]] += told["delta"]
            case "baton.item.done":
                assert self.beside[told["item_id"]] == _words(told["item"])
            case "conversation.item.done":
                self.wire[told["item"]["id"]] = told["item"]
            case "response.done":
                reply = self.replies.setdefault(told["response"]["id"], _Reply())
                assert not reply.open, "an item was left open"
                assert told["response"]["output"] == [reply.output[index] for index in sorted(reply.output)]
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
        self.calls: list[str] = []

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
        written = [self.words, self.words, self.words, self.call, self.call, self.part, self.think, self.whole]
        return [self.add, self.add, *written, self.task_ends, self.end, self.cancel, self.lag]

    def add(self, chance: random.Random) -> None:
        known = [*self.state.order.ids]
        if self.state.turn is not None:
            known += [item.item_id for item in self.state.turn.open.values() if item.index is not None] * 3
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

    def origin(self, chance: random.Random) -> Origin:
        turn, task = self.state.turn, chance.choice(list(_ROLES))
        assert turn is not None
        return Origin(
            agent="writer",
            task_id=f"{turn.turn_id}.{task}",
            turn_id=turn.turn_id,
            generation=turn.generation,
            role=_ROLES[task],
        )

    def words(self, chance: random.Random) -> None:
        self.yields(TaskProgress(origin=self.origin(chance), delta=TextDelta(text=chance.choice(("word", "é ", "")))))

    def call(self, chance: random.Random) -> None:
        call_id = chance.choice([*self.calls, self.new_id("call")])
        self.calls = [*self.calls, call_id][-2:]
        delta = CallDelta(call_id=call_id, name="f", arguments=chance.choice(("{}", "{", "}")))
        self.yields(TaskProgress(origin=self.origin(random.Random(call_id)), delta=delta))

    def part(self, chance: random.Random) -> None:
        self.yields(TaskProgress(origin=self.origin(chance), delta=PartDelta(part=_PICTURE)))

    def think(self, chance: random.Random) -> None:
        self.yields(TaskProgress(origin=self.origin(chance), delta=ReasoningDelta(text="hm ")))

    def whole(self, chance: random.Random) -> None:
        origin = self.origin(chance)
        item_id = self.new_id("item")
        other = OtherItem(item_id=item_id, type="hologram", body='{"depth": 3}', output=origin.role)
        asked = ApprovalRequest(item_id=item_id, call_id="c", name="pay", arguments="{}", output=origin.role)
        self.yields(TaskItem(origin=origin, item=chance.choice((other, asked))))

    def task_ends(self, chance: random.Random) -> None:
        self.yields(TaskFinished(origin=self.origin(chance), reason="stop"))

    def end(self, chance: random.Random) -> None:
        self.yields(done_with(TaskFinished(origin=self.origin(chance), reason="stop")))

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
        rest = {item.item_id: wire_item(item, status_of(item)) for item in self.state.items}
        for client in (self.live, self.lagging):
            client.read(self.state, self.log)
            assert client.items == shown, "told live"
            assert client.wire == {item_id: rest.get(item_id, wire) for item_id, wire in client.wire.items()}
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
