"""What a session's readers see.

*Committed* events are rows of the session's log: they have a `seq`, and are sent only after their transaction. *Live*
events show an item that is still open; they are not rows, and each character of an item reaches a reader once, as
`ItemSnapshot`, then `ItemDelta`s that go on from it, then the closing row, which holds the whole item.
"""

import json
from dataclasses import dataclass, replace
from typing import Any, Literal, assert_never

from pydantic import TypeAdapter

from agents.events import Fault
from memory.log import EndState
from models.content import DraftUsage, FormReport, Item, Message, UsageDelta, text_of
from models.ports.generate import Form, ToolConstraint


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOverrides:
    """How the next token is to be chosen, where the turn says so; see `models.ports.generate.Sampling`. None is the card's own."""

    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    top_k: int = 0
    min_p: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnInput:
    """One contribution of the user, and how it is to be answered.

    Attributes:
        items: what is said now; may be empty, if it was added before (`Session.add`).
        instructions: the system message of this turn.
        model: the card asked for; None leaves the choice to the router.
        tools: functions on offer, which the client runs.
        form: what form the answer has, unless it is a call.
        max_output_tokens: the most tokens of the reply; None takes the server's.
        sampling: how tokens are chosen.
        continues: the answer goes on where the last item stops, which is the assistant's.
        raw: the words of the one item are the prompt as it is; see `GenerateRequest`.
        logprobs: a `GenerateRequest`'s; what a session keeps of an answer are its words alone.
        metadata: the client's own pairs, given back with the turn.
    """

    items: tuple[Item, ...] = ()
    instructions: str | None = None
    model: str | None = None
    tools: ToolConstraint | None = None
    form: Form | None = None
    max_output_tokens: int | None = None
    sampling: SamplingOverrides = SamplingOverrides()
    logprobs: int | None = None
    continues: bool = False
    raw: bool = False
    metadata: dict[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """What a session keeps for its turns and its readers.

    Attributes:
        title: what people call it; None until its first message names it.
        instructions: the system message of turns that bring none.
        model: the card of turns that name none; None leaves the choice to the router.
    """

    title: str | None = None
    instructions: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedCard:
    """An alternative that was not taken, and why."""

    card: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the graph decided: a pure function of `inputs`, but for `notes`.

    Attributes:
        agent: who does it.
        card: on which model.
        reasons: why, in words for people.
        refused: the alternatives.
        inputs: what it was decided from, as JSON text, for replay.
        notes: what people should know of how it is carried out; no part of what is decided.
    """

    agent: str
    card: str
    reasons: tuple[str, ...]
    refused: tuple[RefusedCard, ...]
    inputs: str
    notes: tuple[str, ...] = ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """Return what people are told: why, and what else they should know."""
        return (*self.reasons, *self.notes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of a turn, all its tasks together, and what became of its form; see `models.content.UsageDelta`."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    drafts: tuple[DraftUsage, ...] = ()
    form: FormReport | None = None

    def cut_off(self, written: int) -> "Usage":
        """Return it for an answer of which so many tokens were taken, and that told no usage of its own any more."""
        return self if self.output_tokens else replace(self, output_tokens=written)

    def plus(self, used: UsageDelta) -> "Usage":
        """Return it with what was used since."""
        return Usage(
            input_tokens=self.input_tokens + used.input_tokens,
            output_tokens=self.output_tokens + used.output_tokens,
            cached_tokens=self.cached_tokens + used.cached_tokens,
            drafts=self.drafts + used.drafts,
            form=used.form or self.form,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsAdded:
    """Items became part of the conversation without asking for a reply.

    Attributes:
        items: the items.
        after: what they come after: an item, `order.FRONT`, or the last one of all (None).
        after_open: whether `after` was being written at the time.
    """

    kind: Literal["items_added"] = "items_added"
    items: tuple[Item, ...]
    after: str | None = None
    after_open: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnAccepted:
    """A turn was committed: input, generation and decision in one row. It will be answered, or its end reported."""

    kind: Literal["turn_accepted"] = "turn_accepted"
    turn_id: str
    generation: int
    input: TurnInput
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemClosed:
    """An item of the reply is whole, or will get no more (`incomplete`); `audio_ms` is how long its sound is."""

    kind: Literal["item_closed"] = "item_closed"
    turn_id: str
    generation: int
    item: Item
    audio_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsRemoved:
    """Items left the conversation: no model is shown them any more. The log keeps them."""

    kind: Literal["items_removed"] = "items_removed"
    item_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsChanged:
    """What holds for the session from here on."""

    kind: Literal["settings_changed"] = "settings_changed"
    settings: SessionSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaybackHeard:
    """How much of an item's sound the person has heard so far."""

    kind: Literal["playback_heard"] = "playback_heard"
    item_id: str
    heard_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnEnded:
    """The end of a turn.

    Attributes:
        state: `finished` by itself, `interrupted` by somebody, or `failed`.
        reason: the engine's, if finished (`stop`, `length`, `calls`); who interrupted, if interrupted.
        fault: if failed.
        usage: tokens spent, also on what was not finished.
        decided_ms: from when the turn was asked for to its acceptance, which the decision precedes.
        first_delta_ms: from when the turn was asked for to its first delta; None if there was none.
        duration_ms: from when the turn was asked for to its end; None if it was cut off by the end of the process.
    """

    kind: Literal["turn_ended"] = "turn_ended"
    turn_id: str
    generation: int
    state: EndState
    reason: str | None = None
    fault: Fault | None = None
    usage: Usage = Usage()
    decided_ms: int | None = None
    first_delta_ms: int | None = None
    duration_ms: int | None = None


LogEvent = ItemsAdded | ItemsRemoved | SettingsChanged | TurnAccepted | ItemClosed | PlaybackHeard | TurnEnded


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A row of the log."""

    kind: Literal["committed"] = "committed"
    seq: int
    at_ms: int
    event: LogEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemSnapshot:
    """An item as it stands, for a reader who has seen nothing of it yet."""

    kind: Literal["item_snapshot"] = "item_snapshot"
    turn_id: str
    generation: int
    item: Item


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemDelta:
    """What an item has grown by since this reader last heard of it; `offset` counts characters."""

    kind: Literal["item_delta"] = "item_delta"
    turn_id: str
    generation: int
    item_id: str
    offset: int
    text: str


SessionEvent = Committed | ItemSnapshot | ItemDelta

_TITLE_CHARACTERS = 60

_LOG_EVENT: TypeAdapter[LogEvent] = TypeAdapter(LogEvent)


def items_of(event: LogEvent) -> tuple[Item, ...]:
    """Return the items that became part of the conversation with `event`."""
    match event:
        case ItemsAdded():
            return event.items
        case TurnAccepted():
            return event.input.items
        case ItemClosed():
            return (event.item,)
        case PlaybackHeard() | TurnEnded() | ItemsRemoved() | SettingsChanged():
            return ()
        case _:
            assert_never(event)


def title_of(event: LogEvent) -> str | None:
    """Return what a session would be called after the first message of the user in `event`, if there is one."""
    for item in items_of(event):
        if isinstance(item, Message) and item.role == "user" and (words := " ".join(text_of(item).split())):
            return words if len(words) <= _TITLE_CHARACTERS else words[: _TITLE_CHARACTERS - 1].rstrip() + "…"
    return None


def encode(event: LogEvent) -> str:
    """Return the JSON text under which `event` is logged."""
    return _LOG_EVENT.dump_json(event).decode()


def decode(body: str) -> LogEvent:
    """Return the event that was logged as `body`."""
    return _LOG_EVENT.validate_json(body)


def canonical(value: dict[str, Any]) -> str:
    """Return JSON primitives as text, the same text for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
