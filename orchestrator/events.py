"""What a session's readers see.

*Committed* events are rows of the session's log: they have a `seq`, and are sent only after their transaction. *Live*
events show the items that are still open; they are not rows, and each character and each part of an item reaches a reader
once, as `ItemSnapshot`, then `ItemDelta`s and `PartAdded` that go on from it, then the closing row, which holds the whole item.

A turn is the work of tasks. What a generation yields is what its agents yield, and what the conductor adds: the plan, and
`TurnDone`, which alone ends the turn.
"""

import json
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Annotated, Any, Literal, assert_never, get_args

from pydantic import BeforeValidator, Field

from agents.events import AgentEvent, Fault, Origin, TaskFailed, TaskFinished
from memory.log import EndState
from models.content import DraftUsage, FormReport, Item, Message, OutputRole, Part, UsageDelta, text_of
from models.ports.generate import EffectKind, Form, ToolConstraint

_KINDS = frozenset(one.__dataclass_fields__["kind"].default for one in get_args(Item))


def _kept(value: Any) -> Any:
    """Return an item of a kind that is not known here as one that is kept as it came, when it is read."""
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str) or value["kind"] in _KINDS:
        return value
    body = json.dumps({name: field for name, field in value.items() if name not in {"kind", "item_id", "output"}})
    role = value.get("output") if value.get("output") in get_args(OutputRole) else "answer"
    return {"kind": "other", "item_id": value.get("item_id"), "type": value.get("kind"), "body": body, "output": role}


KeptItem = Annotated[Item, Field(discriminator="kind"), BeforeValidator(_kept)]
"""An item in a row: by its kind, and one of a kind that a newer server wrote is an `OtherItem`."""

ANSWERING_AGENT = "writer"
"""Who answers a conversation, where nobody else is to."""

OnLeave = Literal["cancel", "grace", "background"]
"""What becomes of a turn that nobody follows any more: it is cancelled at once, after a while, or runs to its end."""


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
        on_leave: what becomes of it when nobody follows it any more; the grace is the session's `detach_grace_s`.
    """

    items: tuple[KeptItem, ...] = ()
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
    on_leave: OnLeave = "grace"


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
class AnswerControl:
    """The conversation is answered, by the agent that writes."""

    kind: Literal["answer"] = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class DelegateControl:
    """Another agent does it."""

    kind: Literal["delegate"] = "delegate"
    agent: str


Control = AnswerControl | DelegateControl
"""What is done about a turn; a plan that is carried out will be another kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleRoute:
    """One card does it; cascades and pairs will be other kinds."""

    kind: Literal["single"] = "single"
    card: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the graph decided: a pure function of `inputs`, but for `notes`.

    Attributes:
        control: what is done.
        route: on which model.
        reasons: why, in words for people.
        refused: the alternatives.
        inputs: what it was decided from, as JSON text, for replay.
        notes: what people should know of how it is carried out; no part of what is decided.
        history_seq: the last row of the log that it was made in sight of: the answer is to the conversation as it was then.
            None if that was another one.
        as_of_cards: the sha-256 of the cards that there were, and of how they stood.
    """

    control: Control
    route: SingleRoute
    reasons: tuple[str, ...]
    refused: tuple[RefusedCard, ...]
    inputs: str
    notes: tuple[str, ...] = ()
    history_seq: int | None = None
    as_of_cards: str | None = None

    @property
    def agent(self) -> str:
        """Who does it."""
        match self.control:
            case AnswerControl():
                return ANSWERING_AGENT
            case DelegateControl(agent=agent):
                return agent
            case _:
                assert_never(self.control)

    @property
    def card(self) -> str:
        """On which model."""
        return self.route.card

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

    def plus(self, used: "UsageDelta | Usage") -> "Usage":
        """Return it with what was used since, or by another task."""
        return Usage(
            input_tokens=self.input_tokens + used.input_tokens,
            output_tokens=self.output_tokens + used.output_tokens,
            cached_tokens=self.cached_tokens + used.cached_tokens,
            drafts=_merged(self.drafts, used.drafts),
            form=used.form or self.form,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsAdded:
    """Items became part of the conversation without asking for a reply.

    Attributes:
        items: the items.
        after: what they come after: an item, `order.FRONT`, or the last one of all (None).
        after_open: whether `after` was being written at the time.
        after_index: which item of the reply that was, if it was; None in rows of when only one was written at a time.
    """

    kind: Literal["items_added"] = "items_added"
    items: tuple[KeptItem, ...]
    after: str | None = None
    after_open: bool = False
    after_index: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInput:
    """What a task of a plan works from: the output of that name of another one, under a name of its own."""

    name: str
    task_id: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTask:
    """A task of a plan: who does it, on which card, from what, and what its output is to the turn."""

    task_id: str
    agent: str
    card: str
    inputs: tuple[TaskInput, ...] = ()
    output: str = "answer"
    role: OutputRole = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """An output of a task: its name, and the item of the log that holds it."""

    name: str
    item_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEffect:
    """What a call does to the world, and under which key: of turn, task and ordinal, so that one made again is recognised."""

    key: str
    effect: EffectKind
    runner: str = "client"


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
    """An item of the reply is whole, or will get no more (`incomplete`).

    Attributes:
        item: the item.
        audio_ms: how long its sound is.
        task_id: the task that wrote it; empty in rows of when a turn was one task.
        index: its place among the items of the reply that are part of the conversation, in the order in which they were
            begun; None if it is none of them, and in rows of when only one was written at a time.
        output: the name that it has for tasks that read it, if it is an output.
        effect: if it is a whole call, what that does.
    """

    kind: Literal["item_closed"] = "item_closed"
    turn_id: str
    generation: int
    item: KeptItem
    audio_ms: int = 0
    task_id: str = ""
    index: int | None = None
    output: str | None = None
    effect: CallEffect | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanMade:
    """Which tasks a turn consists of. A turn of one task, which its decision names, has no plan."""

    kind: Literal["plan_made"] = "plan_made"
    turn_id: str
    generation: int
    tasks: tuple[PlannedTask, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRevised:
    """A plan was changed: why, which tasks came, and which are not going to be done. `revision` counts from 1."""

    kind: Literal["plan_revised"] = "plan_revised"
    turn_id: str
    generation: int
    revision: int
    reason: str
    added: tuple[PlannedTask, ...] = ()
    dropped: tuple[str, ...] = ()


TaskState = Literal["finished", "failed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEnded:
    """The end of a task, which ends no turn.

    Attributes:
        agent: who did it.
        card: on which model; empty if it had not begun.
        role: what its output was to the turn.
        state: `finished`, `failed`, or `cancelled` by the end of the turn.
        reason: the engine's, if finished.
        fault: if failed.
        outputs: what it has put out; the contents are in the items.
        usage: what it has spent.
        started_ms: from when the turn was asked for to its start; None if it had not begun.
        ended_ms: from when the turn was asked for to its end; None if it was cut off by the end of the process.
    """

    kind: Literal["task_ended"] = "task_ended"
    turn_id: str
    generation: int
    task_id: str
    agent: str
    card: str
    role: OutputRole = "answer"
    state: TaskState
    reason: str | None = None
    fault: Fault | None = None
    outputs: tuple[TaskResult, ...] = ()
    usage: Usage = Usage()
    started_ms: int | None = None
    ended_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsRemoved:
    """Items left the conversation: no model is shown them any more.

    Attributes:
        item_ids: the items.
        redacted: those whose content went with them: no other conversation had them.
        untitled: whether the session's title went, too, which was made of their words.
    """

    kind: Literal["items_removed"] = "items_removed"
    item_ids: tuple[str, ...]
    redacted: tuple[str, ...] = ()
    untitled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsRedacted:
    """The content of items was taken out for good, from the log and from every conversation; their places stay."""

    kind: Literal["items_redacted"] = "items_redacted"
    item_ids: tuple[str, ...]
    untitled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsChanged:
    """What holds for the session from here on."""

    kind: Literal["settings_changed"] = "settings_changed"
    settings: SessionSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaybackHeard:
    """How much of an item's sound the person has heard so far.

    Attributes:
        item_id: the item.
        heard_ms: of its sound.
        heard_characters: of its text, up to a word's end; None in rows of when that was not told.
        is_over: whether playback stopped there, so that no more will be heard.
    """

    kind: Literal["playback_heard"] = "playback_heard"
    item_id: str
    heard_ms: int
    heard_characters: int | None = None
    is_over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnEnded:
    """The end of a turn.

    Attributes:
        state: `finished` by itself, `interrupted` by somebody, or `failed`.
        reason: the engine's, if finished (`stop`, `length`, `calls`); who interrupted, if interrupted.
        fault: if failed.
        usage: tokens spent by all its tasks, also on what was not finished.
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


LogEvent = (
    ItemsAdded
    | ItemsRemoved
    | ItemsRedacted
    | SettingsChanged
    | TurnAccepted
    | PlanMade
    | PlanRevised
    | ItemClosed
    | TaskEnded
    | PlaybackHeard
    | TurnEnded
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnDone:
    """The conductor's word that a turn is over: nothing else ends it.

    Attributes:
        origin: of the conductor.
        state: how.
        reason: if finished, the one of the task that answered.
        fault: if failed.
        ends: ends of tasks that were not told before: they are logged with the turn's, in one transaction. Tasks that still
            run are cancelled.
    """

    kind: Literal["turn_done"] = "turn_done"
    origin: Origin
    state: Literal["finished", "failed"]
    reason: str | None = None
    fault: Fault | None = None
    ends: tuple[TaskFinished | TaskFailed, ...] = ()


GenerationEvent = AgentEvent | PlanMade | PlanRevised | TurnDone
"""What a generation yields; the last is `TurnDone`."""


def effect_key(turn_id: str, task_id: str, ordinal: int) -> str:
    """Return the key of the effect of a task's call: the same for the same call of the same task, if that is run again."""
    key = f"{turn_id}/{task_id.removeprefix(turn_id + '.')}/{ordinal}"
    return key if len(key) <= _KEY_CHARACTERS else sha256(key.encode()).hexdigest()


def failed(turn_id: str, generation: int, fault: Fault) -> TurnDone:
    """Return the end of a generation that failed as a whole."""
    origin = Origin(agent="conductor", task_id=turn_id, turn_id=turn_id, generation=generation)
    return TurnDone(origin=origin, state="failed", fault=fault)


def done_with(end: TaskFinished | TaskFailed) -> TurnDone:
    """Return the end of a generation that is over with one of its tasks."""
    at = end.origin
    origin = Origin(agent="conductor", task_id=at.turn_id, turn_id=at.turn_id, generation=at.generation)
    if isinstance(end, TaskFailed):
        return TurnDone(origin=origin, state="failed", fault=end.fault, ends=(end,))
    return TurnDone(origin=origin, state="finished", reason=end.reason, ends=(end,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A row of the log."""

    kind: Literal["committed"] = "committed"
    seq: int
    at_ms: int
    event: LogEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemSnapshot:
    """An item as it stands, for a reader who has seen nothing of it yet; `task_id` and `index` are as in `ItemClosed`."""

    kind: Literal["item_snapshot"] = "item_snapshot"
    turn_id: str
    generation: int
    item: Item
    task_id: str = ""
    index: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemDelta:
    """What an item has grown by since this reader last heard of it; `offset` counts characters."""

    kind: Literal["item_delta"] = "item_delta"
    turn_id: str
    generation: int
    item_id: str
    offset: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartAdded:
    """A part that an item has grown by: the `number`-th (from 0) that is not words, behind `offset` characters."""

    kind: Literal["part_added"] = "part_added"
    turn_id: str
    generation: int
    item_id: str
    offset: int
    number: int
    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioChunk:
    """Sound that an item has grown by: 16-bit mono samples, little-endian.

    Attributes:
        offset: samples of the item before it.
        missed: how many of those right before it this reader was not given: it was too slow, or came too late.
        rate_hz: samples a second.
        pcm: the samples.
    """

    kind: Literal["audio_chunk"] = "audio_chunk"
    turn_id: str
    generation: int
    item_id: str
    offset: int
    missed: int = 0
    rate_hz: int
    pcm: bytes


SessionEvent = Committed | ItemSnapshot | ItemDelta | PartAdded | AudioChunk

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))

_TITLE_CHARACTERS = 60

_KEY_CHARACTERS = 128
"""Of an effect's key, at most; see `memory.schema`."""


def items_of(event: LogEvent) -> tuple[Item, ...]:
    """Return the items that became part of the conversation with `event`."""
    match event:
        case ItemsAdded():
            return event.items
        case TurnAccepted():
            return event.input.items
        case ItemClosed():
            return (event.item,)
        case (
            PlaybackHeard()
            | TurnEnded()
            | TaskEnded()
            | PlanMade()
            | PlanRevised()
            | ItemsRemoved()
            | ItemsRedacted()
            | SettingsChanged()
        ):
            return ()
        case _:
            assert_never(event)


def title_of(event: LogEvent) -> str | None:
    """Return what a session would be called after the first message of the user in `event`, if there is one."""
    for item in items_of(event):
        if isinstance(item, Message) and item.role == "user" and (words := " ".join(text_of(item).split())):
            return words if len(words) <= _TITLE_CHARACTERS else words[: _TITLE_CHARACTERS - 1].rstrip() + "…"
    return None


def _merged(drafts: tuple[DraftUsage, ...], more: tuple[DraftUsage, ...]) -> tuple[DraftUsage, ...]:
    """Return what each drafter did, all together, in the order in which they began."""
    if not more:
        return drafts
    sums: dict[str, DraftUsage] = {}
    for one in (*drafts, *more):
        before = sums.get(one.drafter)
        sums[one.drafter] = (
            one
            if before is None
            else replace(one, drafted=before.drafted + one.drafted, accepted=before.accepted + one.accepted)
        )
    return tuple(sums.values())


def canonical(value: dict[str, Any]) -> str:
    """Return JSON primitives as text, the same text for the same value."""
    return _CANONICAL.encode(value)
