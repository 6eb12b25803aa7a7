"""What an answer over REST consists of, whoever keeps it: words in one order, thoughts, other parts, calls, and the end.

Of a turn of many tasks only what answers is told: neither work for other tasks nor what is said while it is done.
"""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import assert_never

from agents.events import Origin, TaskFailed, TaskFinished, TaskOutput, TaskProgress
from models.content import (
    AudioDelta,
    Call,
    CallDelta,
    Delta,
    FinishDelta,
    Item,
    Message,
    Part,
    PartDelta,
    Reasoning,
    ReasoningDelta,
    TextDelta,
    TextPart,
    UsageDelta,
    WrittenToken,
)
from models.errors import Internal
from orchestrator.act.completions import Completion
from orchestrator.events import (
    AudioChunk,
    Committed,
    GenerationEvent,
    ItemClosed,
    ItemDelta,
    ItemSnapshot,
    PartAdded,
    SessionEvent,
    TurnEnded,
)
from orchestrator.sessions.handle import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Text of the answer, and the tokens that it is, if they were asked for."""

    text: str
    tokens: tuple[WrittenToken, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Thought:
    """What the model thinks before it answers; no words of the answer."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inset:
    """A part of the answer that is no words, behind what was said before it."""

    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPiece:
    """A piece of a call; the first of each carries its name."""

    call_id: str
    name: str
    arguments: str


Answer = Words | Thought | Inset | CallPiece | TurnEnded
"""What an answer consists of; `TurnEnded` is its end."""


Piece = Words | Thought | Inset | CallPiece


class _OneByOne:
    """Has the words that several write at a time said one after the other: a completion has one string for all of them.

    Attributes:
        first: whose words are said as they come; None before the first.
    """

    def __init__(self) -> None:
        self.first: str | None = None
        self._waiting: dict[str, list[Piece]] = {}

    def say(self, who: str, *pieces: Piece) -> list[Piece]:
        """Return what may be said now of what somebody says; the rest is kept."""
        now: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, Words | Inset):
                if self.first is None:
                    self.first = who
                if self.first != who:
                    self._waiting.setdefault(who, []).append(piece)
                    continue
            now.append(piece)
        return now

    def end(self, who: str) -> list[Piece]:
        """Return what may be said once somebody has ended: what the next has said, if it was its turn."""
        if self.first != who:
            return []
        self.first = next(iter(self._waiting), None)
        return [] if self.first is None else self._waiting.pop(self.first)

    def rest(self) -> list[Piece]:
        """Return what was kept."""
        return [piece for pieces in self._waiting.values() for piece in pieces]


async def of_completion(completion: Completion) -> AsyncGenerator[Answer, None]:
    """Yield the answer of a turn that belongs to no session."""
    order = _OneByOne()
    async with aclosing(completion.events()) as events:
        async for one in events:
            match one:
                case TaskProgress(origin=Origin(role="answer", task_id=who), delta=TextDelta() as said) if (
                    who == order.first
                ):
                    if said.text or said.tokens:
                        yield Words(text=said.text, tokens=said.tokens)
                case _:
                    for piece in _of_event(one, order):
                        yield piece
    for piece in order.rest():
        yield piece
    yield completion.ended()


def _of_event(event: GenerationEvent, order: _OneByOne) -> list[Piece]:
    match event:
        case TaskProgress(origin=Origin(role="answer") as origin, delta=delta):
            return order.say(origin.task_id, *_of_delta(delta))
        case TaskOutput(origin=Origin(role="answer") as origin, parts=parts):
            return order.say(origin.task_id, *_of_parts(parts))
        case TaskFinished() | TaskFailed():
            return order.end(event.origin.task_id)
        case _:
            return []


async def of_session(session: Session, turn_id: str, after: int) -> AsyncGenerator[Answer, None]:
    """Yield the answer of a session's turn, which was accepted after row `after`."""
    told = _Told()
    async with aclosing(session.events(after)) as events:
        async for one in events:
            if isinstance(one, ItemDelta) and one.item_id == told.order.first:
                yield Words(text=one.text)
                continue
            for piece in told.take(one):
                yield piece
            if isinstance(one, Committed) and isinstance(one.event, TurnEnded) and one.event.turn_id == turn_id:
                for piece in told.order.rest():
                    yield piece
                yield one.event
                return


class _Told:
    """What a session has told of an answer: its items as they began."""

    def __init__(self) -> None:
        self.order = _OneByOne()
        self._items: dict[str, Item] = {}

    def take(self, event: SessionEvent) -> list[Piece]:
        """Return what may be said now."""
        match event:
            case ItemSnapshot(item=item):
                if item.output != "answer":
                    return []
                self._items[item.item_id] = item
                return self.order.say(item.item_id, *_of_item(item))
            case ItemDelta():
                begun = self._items.get(event.item_id)
                return [] if begun is None else self.order.say(event.item_id, _grown(begun, event.text))
            case PartAdded():
                return self.order.say(event.item_id, Inset(part=event.part)) if event.item_id in self._items else []
            case AudioChunk():
                return []  # who asked for words is told words
            case Committed(event=ItemClosed(item=item)):
                self._items.pop(item.item_id, None)
                return self.order.end(item.item_id)
            case Committed():
                return []
            case _:
                assert_never(event)


def _of_delta(delta: Delta) -> Iterator[Piece]:
    match delta:
        case TextDelta(text=text, tokens=tokens):
            if text or tokens:
                yield Words(text=text, tokens=tokens)
        case CallDelta():
            yield CallPiece(call_id=delta.call_id, name=delta.name, arguments=delta.arguments)
        case ReasoningDelta():
            if delta.text:
                yield Thought(text=delta.text)
        case PartDelta():
            yield Inset(part=delta.part)
        case AudioDelta():
            raise Internal("The model answered with sound, which this surface cannot carry.")
        case UsageDelta() | FinishDelta():
            pass
        case _:
            assert_never(delta)


def _of_item(item: Item) -> Iterator[Piece]:
    match item:
        case Message():
            yield from _of_parts(item.parts)
        case Call():
            yield CallPiece(call_id=item.call_id, name=item.name, arguments=item.arguments)
        case Reasoning():
            if item.text:
                yield Thought(text=item.text)
        case _:
            pass  # what is no part of an answer in words


def _of_parts(parts: Sequence[Part]) -> Iterator[Piece]:
    for part in parts:
        yield Words(text=part.text) if isinstance(part, TextPart) else Inset(part=part)


def _grown(item: Item, text: str) -> Piece:
    if isinstance(item, Call):
        return CallPiece(call_id=item.call_id, name=item.name, arguments=text)
    return Thought(text=text) if isinstance(item, Reasoning) else Words(text=text)
