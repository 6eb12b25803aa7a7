"""What a generation works with: who decides, who acts, on which models, within which budget.

`decide` and `play` are all there is to a turn; `generation.Generation` runs them for a session, `completions` without one.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace

from agents.events import Fault, Origin, TaskFailed, TaskFinished, TaskProgress
from agents.port import Agent, Budget, Task
from models.catalog import Card
from models.clock import Clock, wait_for_event
from models.content import Call, CallResult, Item, Message, Said, TextPart, UsageDelta
from models.errors import Internal, Overloaded
from models.ids import new_id
from models.placement.fleet import CardView
from models.ports.generate import Constraint, Sampling
from models.shares import share_of
from orchestrator.decide.decider import Decider
from orchestrator.events import Decision, GenerationEvent, TurnInput, done_with
from orchestrator.window import (
    ITEM_TOKENS,
    UNKNOWN_OUTCOME,
    costs_of,
    fixed,
    foreseen,
    items_words,
    most_tokens,
    paired,
    pieces,
    places_now,
    readable,
    said_now,
    shown,
    unanswered,
    window_of,
)

_LIGHT_TOKENS = 16_000
"""What is surely no more than this is counted in a few milliseconds, so without a pause."""

_AHEAD = 16
"""Prompts that are read ahead at a time."""

_AHEAD_S = 60.0
"""How long one may wait until nobody has work, and be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BandLimits:
    """Bounds of turns.

    Attributes:
        turn_timeout_s: how long a turn may take.
        max_output_tokens: of an answer; a turn may ask for fewer.
        turns: that run at a time; the next is refused and may be retried.
        tenant_turns: likewise, of one tenant.
    """

    turn_timeout_s: float = 120.0
    max_output_tokens: int = 1024
    turns: int = 512
    tenant_turns: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A decision with everything that is needed to play it."""

    decision: Decision
    task: Task


class Band:
    """One for all tenants and sessions."""

    def __init__(
        self, decider: Decider, offer: CardView, agents: Mapping[str, Agent], clock: Clock, limits: BandLimits
    ) -> None:
        self.clock = clock
        self.limits = limits
        self._draining = False
        self._decider = decider
        self._offer = offer
        self._agents = agents
        self._cards = {card.name: card for card in offer.cards}
        self._seats: Counter[str] = Counter()
        self._quiet = asyncio.Event()
        self._ahead: Counter[str] = Counter()
        self._cannot_read_ahead: set[str] = set()

    @property
    def turns(self) -> int:
        """How many turns run now."""
        return self._seats.total()

    @contextmanager
    def seat(self, tenant: str) -> Iterator[None]:
        """Count a turn in while it runs.

        Raises:
            Overloaded: too many run already, or the server is stopping.
        """
        if self._draining:
            raise Overloaded("The server is stopping. Try again in a moment.", code="server_stopping")
        if self.turns >= self.limits.turns:
            raise Overloaded(
                f"{self.limits.turns} turns are running, the most this server takes. Try again in a moment."
            )
        if self._seats[tenant] >= self.limits.tenant_turns:
            raise Overloaded(
                f"{self.limits.tenant_turns} turns of yours are running, the most you may have at a time. "
                "Wait for one to end.",
                code="too_many_turns",
            )
        self._seats[tenant] += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._seats[tenant] -= 1
            if not self._seats[tenant]:
                del self._seats[tenant]
            if not self._seats:
                self._quiet.set()

    async def drain(self, deadline_s: float) -> None:
        """Take no turn any more, and wait until those that run have ended, or until `deadline_s`."""
        self._draining = True
        if self._seats:
            await wait_for_event(self.clock, self._quiet, deadline_s)

    async def decide(
        self,
        *,
        tenant: str,
        turn_id: str,
        generation: int,
        turn_input: TurnInput,
        history: Sequence[Item],
        deadline_s: float | None = None,
    ) -> Score:
        """Decide who answers a turn, from what, and within which budget.

        Counting holds the loop up, and long conversations take it hundreds of milliseconds: they are counted ahead, and
        others work after each piece (counters remember pieces). Short ones are left alone.

        Args:
            tenant: whose turn it is.
            turn_id: the turn.
            generation: which of its generations.
            turn_input: what is answered.
            history: the conversation before it.
            deadline_s: until when the turn may take; None is `turn_timeout_s` from now.

        Raises:
            BatonError: the turn is refused; see `Decider.decide`.
        """
        if deadline_s is None:
            deadline_s = self.clock.now_s() + self.limits.turn_timeout_s
        asked = self._output_tokens(turn_input)
        most = most_tokens(self._words(turn_input, paired((*history, *turn_input.items))))
        is_heavy = most > _LIGHT_TOKENS and not self._decider.is_too_long(turn_input)
        if is_heavy:
            now = said_now(turn_input, history)
            for card in self._cards.values():
                if most_tokens(now) >= card.context_tokens:
                    await self._count_ahead(card, now, card.context_tokens)
        decision = await self._decider.decide(turn_input, history, tenant=tenant, key=(turn_id, generation))
        card, budget = self._cards[decision.card], Budget(deadline_s=deadline_s, output_tokens=asked)
        items = readable(paired((*history, *turn_input.items)), card.reads)
        if is_heavy and most + asked > card.context_tokens:
            for words in (*fixed(turn_input), *items_words(items, range(len(items)))):
                await self._count_ahead(card, [words], card.context_tokens)
        shown_items, budget = self._fit(card, turn_input, items, budget)
        if (note := _left_out(shown_items, items)) is not None:
            decision = replace(decision, notes=(note,))
        task = Task(
            origin=Origin(agent=decision.agent, task_id=f"{turn_id}.1", turn_id=turn_id, generation=generation),
            tenant=tenant,
            card=decision.card,
            messages=messages(turn_input, shown_items),
            constraint=_constraint(turn_input),
            sampling=self._sampling(card, turn_input, budget.output_tokens),
            budget=budget,
            logprobs=turn_input.logprobs,
            continues=turn_input.continues,
            raw=turn_input.raw,
        )
        return Score(decision=decision, task=task)

    async def play(self, score: Score) -> AsyncGenerator[GenerationEvent, None]:
        """Yield what the agent does, and last `TurnDone`: the turn is one task, so it is over with that."""
        end: TaskFinished | TaskFailed | None = None
        async with aclosing(self._agents[score.decision.agent].run(score.task)) as events:
            async for event in events:
                if isinstance(event, TaskFinished | TaskFailed):
                    end = event
                    break
                yield event
        if end is None:
            error = Internal(f"The {score.decision.agent} stopped without an end. Try again.")
            end = TaskFailed(origin=score.task.origin, fault=Fault.of(error))
        yield done_with(end)

    async def read_ahead(
        self, last: Task, turn_input: TurnInput, history: Sequence[Item], *, coming: int | None = None
    ) -> AsyncGenerator[UsageDelta, None]:
        """Have read what the prompts of coming turns will begin with, if that is going to be another item: see `foreseen`.

        The engine does it while nobody has work. Where it cannot, or so many are at it already, nothing is done.

        Args:
            last: the task of the turn that has ended.
            turn_input: what was asked then; the next turn is taken to have the same instructions and functions.
            history: the conversation, as far as it is going to be shown.
            coming: how many items are added before it is shown so; None if it is shown so now.

        Yields:
            What was read, as it is read.
        """
        if (
            last.card in self._cannot_read_ahead
            or self._draining
            or self._ahead.total() >= _AHEAD
            or self._ahead[last.tenant] >= share_of(_AHEAD)
        ):
            return
        turn_input = replace(turn_input, items=())
        card, asked = self._cards[last.card], self._output_tokens(turn_input)
        items = readable(paired(history), card.reads)
        words = self._words(turn_input, items)
        if most_tokens(words) > _LIGHT_TOKENS:
            for each in words:
                await self._count_ahead(card, [each], card.context_tokens)
        window = window_of(card.context_tokens, turn_input, asked, self._offer.counter(card.name))
        beginning = foreseen(items, window, self._offer.counter(card.name), coming=coming)
        if not beginning or any(item.item_id == beginning[0].item_id for item in last.messages[:2]):
            return  # nothing is going to be cut, or it has been
        task = replace(
            last,
            origin=replace(last.origin, task_id=f"{last.origin.turn_id}.ahead"),
            messages=messages(turn_input, beginning),
            budget=replace(last.budget, deadline_s=self.clock.now_s() + _AHEAD_S),
            reads_ahead=True,
        )
        self._ahead[last.tenant] += 1
        try:
            async with aclosing(self._agents[task.origin.agent].run(task)) as events:
                async for event in events:
                    match event:
                        case TaskProgress(delta=UsageDelta() as used):
                            yield used
                        case TaskFailed(fault=fault) if fault.code == "unsupported":
                            self._cannot_read_ahead.add(task.card)
                        case _:
                            pass
        finally:
            self._ahead[last.tenant] -= 1

    async def _count_ahead(self, card: Card, texts: Sequence[str], enough: int) -> None:
        counter = self._offer.counter(card.name)
        for text in texts:
            enough -= ITEM_TOKENS
            for piece in pieces(text):
                enough -= counter.count(piece)
                if enough < 0:
                    return
                await asyncio.sleep(0)

    @staticmethod
    def _words(turn_input: TurnInput, items: Sequence[Item]) -> list[str]:
        return [*fixed(turn_input), *items_words(items, range(len(items)))]

    def _output_tokens(self, turn_input: TurnInput) -> int:
        asked, most = turn_input.max_output_tokens, self.limits.max_output_tokens
        return most if asked is None else min(asked, most)

    def _fit(
        self, card: Card, turn_input: TurnInput, items: Sequence[Item], budget: Budget
    ) -> tuple[Sequence[Item], Budget]:
        """Return which items fit the window of a card, and the budget of what is left of it."""
        tokens, asked = card.context_tokens, budget.output_tokens
        if most_tokens(self._words(turn_input, items)) + asked <= tokens:
            return items, budget
        counter = self._offer.counter(card.name)
        window = window_of(tokens, turn_input, asked, counter)
        # What is said now comes first, then an answer: as much as was asked for, but not more than half of what is left;
        # then the history; and what the history does not fill is the answer's again.
        fitting = shown(items, window, counter)
        left = tokens - window.fixed_tokens - sum(costs_of(fitting, window, counter))
        return fitting, replace(budget, output_tokens=max(min(asked, left), 1))

    @staticmethod
    def _sampling(card: Card, turn_input: TurnInput, output_tokens: int) -> Sampling:
        asked = turn_input.sampling
        return Sampling(
            temperature=card.temperature if asked.temperature is None else asked.temperature,
            top_p=card.top_p if asked.top_p is None else asked.top_p,
            seed=asked.seed,
            stop=asked.stop,
            max_output_tokens=output_tokens,
            logit_bias=asked.logit_bias,
            repetition_penalty=asked.repetition_penalty,
            frequency_penalty=asked.frequency_penalty,
            presence_penalty=asked.presence_penalty,
            top_k=asked.top_k,
            min_p=asked.min_p,
        )


def _constraint(turn_input: TurnInput) -> Constraint | None:
    """Return what an engine is held to: calls of the functions on offer, or the form, or either."""
    tools, form = turn_input.tools, turn_input.form
    if tools is None or tools.choice == "none" or not tools.tools:
        return form or tools
    return replace(tools, form=form)


def messages(turn_input: TurnInput, items: Sequence[Item]) -> tuple[Said, ...]:
    """Return what a model is shown: the instructions, and of `items` what it may be shown.

    A call whose outcome is not known is said to be so, since it may have happened.
    """
    told: list[Said] = []
    if turn_input.instructions:
        told.append(Message(item_id=new_id("item"), role="system", parts=(TextPart(text=turn_input.instructions),)))
    said = paired(items)
    open_calls = unanswered(said)
    for at, item in enumerate(said):
        told.append(item)
        if isinstance(item, Call) and at in open_calls:
            unknown = TextPart(text=UNKNOWN_OUTCOME, source="tool")
            told.append(CallResult(item_id=new_id("item"), call_id=item.call_id, parts=(unknown,)))
    return tuple(told)


def _left_out(shown_items: Sequence[Item], items: Sequence[Item]) -> str | None:
    """Return what a decision says of items that the window has no room for; None if all have."""
    if len(shown_items) == len(items):
        return None
    earlier = len(items) - len(places_now(items))
    kept = len(shown_items) - len(places_now(shown_items))
    return f"is shown {kept} of {earlier} earlier items: its window holds no more"
