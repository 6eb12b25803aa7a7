"""What a turn is given to work with: a model, what fits its window, a budget, and a seat."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.events import AgentEvent, Origin, TaskFinished, TaskStarted
from agents.port import Task
from models.catalog import Card, Price
from models.clock import ManualClock
from models.content import (
    AudioPart,
    BlobRef,
    Call,
    CallResult,
    FilePart,
    ImagePart,
    Message,
    Part,
    TextPart,
    VideoPart,
    text_of,
)
from models.errors import BadInput, LimitExceeded, NotFound, Unavailable
from models.language.tokens import PIECE_CHARACTERS, TokenCounter, media_tokens
from models.owner import Owner
from models.placement.fleet import CardStatus, FixedCardView
from models.ports.generate import RegexConstraint, Sampling, ToolConstraint, ToolSpec
from orchestrator.act.execute import Executor, TurnLimits, Work
from orchestrator.decide.decider import Decider
from orchestrator.decide.graph import DecisionGraph
from orchestrator.events import SamplingOverrides, TurnDone, TurnInput, done_with
from orchestrator.window import count_tokens, said_now

TOOLS = ToolConstraint(tools=(ToolSpec(name="add", description="Adds two numbers.", parameters="{}"),))


class Words:
    """Counts words."""

    def count(self, text: str) -> int:
        return len(text.split())

    def count_part(self, part: Part) -> int:
        return media_tokens(part)


class WordsOffer(FixedCardView):
    """Cards whose tokens are words; refuses to count where nobody should."""

    def __init__(self, *cards: Card, standings: Mapping[str, CardStatus] | None = None, counts: bool = True) -> None:
        super().__init__(cards, standings)
        self.aliases = {"default": cards[0].name}
        self.counts = counts

    def counter(self, card: str) -> TokenCounter:
        assert self.counts, "tokens are counted although the bytes fit"
        return Words()


@pytest.fixture
def new_executor(clock: ManualClock) -> Callable[..., Executor]:
    def make(offer: FixedCardView, agents: Mapping[str, Any] | None = None, **limits: float) -> Executor:
        return Executor(Decider(offer, max_characters=10_000), offer, agents or {}, clock, TurnLimits(**limits))  # type: ignore[arg-type]

    return make


@pytest.fixture
def small(new_card: Callable[..., Card]) -> Card:
    return replace(new_card("small"), context_tokens=100, temperature=0.6, top_p=0.9)


def said(words: int, n: int = 0, role: Any = "user") -> Message:
    return Message(item_id=f"item_{n}", role=role, parts=(TextPart(text="wörd " * words),))


async def decide(executor: Executor, turn_input: TurnInput, *history: Message) -> Work:
    return await executor.decide(
        owner=Owner("local"), turn_id="turn_1", generation=2, turn_input=turn_input, history=history
    )


def asking(words: int = 1, **more: Any) -> TurnInput:
    return TurnInput(items=(said(words, 99),), **more)


# Deciding


async def test_a_task_says_whose_turn_it_is_and_until_when(new_executor: Any, small: Card, clock: ManualClock) -> None:
    work = await decide(new_executor(WordsOffer(small), turn_timeout_s=30.0, max_output_tokens=20), asking(tools=TOOLS))
    task = work.task
    assert task.origin == Origin(agent="writer", task_id="turn_1.1", turn_id="turn_1", generation=2)
    assert (task.owner, task.card, task.constraint) == (Owner("local"), "small", TOOLS)
    assert (task.budget.deadline_s, task.budget.output_tokens) == (clock.now_s() + 30.0, 20)
    assert work.decision.card == "small"


async def test_an_answer_is_held_to_a_form_or_calls_a_function_on_offer_or_either(
    new_executor: Any, small: Card
) -> None:
    executor, form = new_executor(WordsOffer(replace(small, forms=frozenset({"regex"})))), RegexConstraint(pattern="a+")
    assert (await decide(executor, asking(form=form))).task.constraint == form
    assert (await decide(executor, asking(form=form, tools=replace(TOOLS, choice="none")))).task.constraint == form
    assert (await decide(executor, asking(form=form, tools=TOOLS))).task.constraint == replace(TOOLS, form=form)
    assert (await decide(executor, asking(tools=TOOLS))).task.constraint == TOOLS


async def test_a_turn_that_says_nothing_of_sampling_gets_the_cards(new_executor: Any, small: Card) -> None:
    work = await decide(new_executor(WordsOffer(small), max_output_tokens=20), asking())
    assert work.task.sampling == Sampling(temperature=0.6, top_p=0.9, max_output_tokens=20)


async def test_what_a_turn_says_of_sampling_holds_also_where_it_is_zero(new_executor: Any, small: Card) -> None:
    asked = SamplingOverrides(temperature=0.0, top_p=0.1, seed=0, stop=("END",))
    work = await decide(new_executor(WordsOffer(small)), asking(sampling=asked, max_output_tokens=7))
    assert work.task.sampling == Sampling(temperature=0.0, top_p=0.1, seed=0, stop=("END",), max_output_tokens=7)
    work = await decide(
        new_executor(WordsOffer(small)), asking(sampling=SamplingOverrides(top_p=0.1), max_output_tokens=7)
    )
    assert work.task.sampling == Sampling(temperature=0.6, top_p=0.1, max_output_tokens=7)


async def test_everything_that_a_turn_may_say_of_sampling_reaches_the_engine(new_executor: Any, small: Card) -> None:
    said: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.4,
        "seed": 3,
        "stop": ("END",),
        "logit_bias": ((5, -1.5),),
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "top_k": 9,
        "min_p": 0.1,
    }
    assert {field.name for field in fields(SamplingOverrides)} == set(said)
    work = await decide(
        new_executor(WordsOffer(small)), asking(sampling=SamplingOverrides(**said), max_output_tokens=7)
    )
    assert work.task.sampling == Sampling(**said, max_output_tokens=7)


@pytest.mark.parametrize(("asked", "given"), [(None, 20), (7, 7), (21, 20)])
async def test_an_answer_is_as_long_as_asked_for_within_the_servers_limit(
    new_executor: Any, small: Card, asked: int | None, given: int
) -> None:
    task = (await decide(new_executor(WordsOffer(small), max_output_tokens=20), asking(max_output_tokens=asked))).task
    assert task.budget.output_tokens == task.sampling.max_output_tokens == given


async def test_a_model_may_be_asked_for_by_another_name(
    new_executor: Any, small: Card, new_card: Callable[..., Card]
) -> None:
    offer = WordsOffer(small, new_card("cheaper", -1.0))
    assert (await decide(new_executor(offer), asking())).task.card == "cheaper"
    work = await decide(new_executor(offer), asking(model="default"))
    assert (work.task.card, work.decision.reasons[0]) == ("small", "asked for by name")


async def test_an_unknown_name_is_refused_with_the_names_there_are_aliases_and_all(
    new_executor: Any, small: Card
) -> None:
    with pytest.raises(NotFound, match=r"'smal'.*Did you mean 'small'.*default, small") as refused:
        await decide(new_executor(WordsOffer(small)), asking(model="smal"))
    assert (refused.value.code, refused.value.field) == ("model_not_found", "model")


# Standing


async def test_a_card_that_is_up_goes_before_a_cheaper_one_that_is_coming(
    new_executor: Any, new_card: Callable[..., Card]
) -> None:
    cards = (new_card("cheap", 1.0), new_card("dear", 9.0))
    executor = new_executor(WordsOffer(*cards, standings={"cheap": CardStatus(state="loading")}))
    decision = (await decide(executor, asking())).decision
    assert decision.card == "dear"
    assert [(refused.card, refused.reason) for refused in decision.refused] == [("cheap", "is loading")]
    # But where it is asked for, it is waited for; and so is the cheapest where none is up.
    assert (await decide(executor, asking(model="cheap"))).decision.reasons == (
        "asked for by name",
        "reads text",
        "is loading",
    )
    coming = {card.name: CardStatus(state="fetching") for card in cards}
    assert (await decide(new_executor(WordsOffer(*cards, standings=coming)), asking())).decision.card == "cheap"


async def test_a_card_that_failed_is_not_taken_and_its_reason_is_told(
    new_executor: Any, new_card: Callable[..., Card]
) -> None:
    failed = {"cheap": CardStatus(state="failed", message="The disk is full.")}
    executor = new_executor(WordsOffer(new_card("cheap", 1.0), new_card("dear", 9.0), standings=failed))
    decision = (await decide(executor, asking())).decision
    assert decision.card == "dear"
    assert decision.refused[0].reason == "is not up: The disk is full."
    with pytest.raises(Unavailable, match=r"\(cheap: is not up: The disk is full\.\)") as refused:
        await decide(executor, asking(model="cheap"))
    assert refused.value.retry_after_s


async def test_what_no_card_could_ever_take_is_the_callers_error_also_while_all_are_down(
    new_executor: Any, new_card: Callable[..., Card]
) -> None:
    failed = {"cheap": CardStatus(state="failed", message="The disk is full.")}
    executor = new_executor(WordsOffer(replace(new_card("cheap", 1.0), calls_tools=False), standings=failed))
    with pytest.raises(BadInput) as refused:
        await decide(executor, asking(tools=TOOLS))
    assert (refused.value.code, refused.value.field) == ("no_capable_model", "tools")


# Fitting


async def test_what_fits_by_its_bytes_is_not_counted(new_executor: Any, new_card: Callable[..., Card]) -> None:
    offer = WordsOffer(new_card("large"), counts=False)
    history = [said(50, n) for n in range(10)]
    work = await decide(new_executor(offer), asking(instructions="Be brief.", tools=TOOLS), *history)
    assert work.task.messages[1:-1] == tuple(history)


async def test_the_oldest_are_left_out_of_a_window_that_is_too_small_and_the_decision_says_so(
    new_executor: Any, small: Card
) -> None:
    history = [said(10, n) for n in range(8)]
    work = await decide(new_executor(WordsOffer(small), max_output_tokens=20), asking(), *history)
    # 100 of the window, less 8 + 8 for instructions and answer, less 20 that the answer wants and 6 to spare, are 58 for items.
    # 8 times 10 + 8, and 9, are 95 too many: cut by three times 32, before the seventh.
    assert [item.item_id for item in work.task.messages] == ["item_6", "item_7", "item_99"]
    assert work.decision.remarks[-1] == "is shown 2 of 8 earlier items: its window holds no more"
    assert work.task.budget.output_tokens == 20


async def test_what_a_window_leaves_out_is_no_part_of_what_is_replayed(new_executor: Any, small: Card) -> None:
    decision = (await decide(new_executor(WordsOffer(small)), asking(), *(said(10, n) for n in range(8)))).decision
    replayed = await DecisionGraph().replay(("sess_1", "turn_1", 2), json.loads(decision.inputs))
    assert decision.notes
    assert replayed == replace(decision, notes=())


async def test_where_all_is_shown_the_decision_does_not_speak_of_it(new_executor: Any, small: Card) -> None:
    work = await decide(new_executor(WordsOffer(small), max_output_tokens=20), asking(), said(20))
    assert work.decision.remarks == ("the only one that can", "reads text")


async def test_an_answer_gets_what_the_history_leaves_over(new_executor: Any, small: Card) -> None:
    # Too many bytes to be sure, so the tokens are counted: 25 for what is said now and 18 for the history leave 57.
    executor = new_executor(WordsOffer(small), max_output_tokens=1_000)
    assert (await decide(executor, asking(), said(10))).task.budget.output_tokens == 57
    assert (await decide(executor, asking(max_output_tokens=50), said(10))).task.budget.output_tokens == 50


async def test_a_long_history_leaves_the_answer_half_of_the_room(new_executor: Any, small: Card) -> None:
    executor = new_executor(WordsOffer(small), max_output_tokens=1_000)
    work = await decide(executor, asking(), *(said(1, n) for n in range(50)))
    # 75 are left, 38 of them for the answer and 6 to spare: 31 for the history. Of 450 a multiple of 20 goes that leaves that.
    assert len(work.task.messages) == 1 + 3
    assert work.task.budget.output_tokens == 75 - 27


@settings(max_examples=150, derandomize=True)
@given(
    st.integers(26, 200),
    st.integers(1, 300),
    st.integers(0, 60),
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(("user", "assistant"))), max_size=12),
)
async def test_prompt_and_answer_never_exceed_the_window_and_there_is_always_an_answer(
    window: int, output: int, words: int, history: list[tuple[int, str]]
) -> None:
    card = Card(
        name="small",
        engine=None,  # type: ignore[arg-type]  # nothing runs here
        reads=frozenset({"text"}),
        writes=frozenset({"text"}),
        calls_tools=True,
        context_tokens=window,
        price=Price.flat(0.0),
    )
    offer, clock = WordsOffer(card), ManualClock()
    executor = Executor(Decider(offer, max_characters=10_000), offer, {}, clock, TurnLimits(max_output_tokens=output))
    turn_input = asking(words, tools=TOOLS)
    now = count_tokens(said_now(turn_input, ()), Words())
    items = [said(count, n, role) for n, (count, role) in enumerate(history)]
    if now >= window:
        with pytest.raises(LimitExceeded):
            await decide(executor, turn_input, *items)
        return
    task = (await decide(executor, turn_input, *items)).task
    shown = task.messages[:-1]
    spent = now + count_tokens([text_of(item) for item in shown], Words())
    assert spent + task.budget.output_tokens <= window
    assert 1 <= task.budget.output_tokens <= output
    # The history takes no more than half of what is left, if the answer wants the other half.
    assert task.budget.output_tokens >= min(output, max((window - now) // 2, 1))
    assert list(shown) == items[len(items) - len(shown) :]
    # Nothing is held back from an answer that asked for it.
    assert task.budget.output_tokens == min(output, window - spent)
    assert task.sampling.max_output_tokens == task.budget.output_tokens


@pytest.mark.parametrize("where", ["items", "instructions", "tools"])
async def test_what_is_more_than_the_window_holds_is_refused_with_both_numbers(
    new_executor: Any, small: Card, where: str
) -> None:
    much = "wörd " * 100
    turn_input = {
        "items": asking(100),
        "instructions": asking(instructions=much),
        "tools": asking(tools=ToolConstraint(tools=(ToolSpec(name="add", description=much, parameters="{}"),))),
    }[where]
    with pytest.raises(
        LimitExceeded, match=r"length is 100 tokens\. However, your messages resulted in 1[0-9][0-9] tokens"
    ) as refused:
        await decide(new_executor(WordsOffer(small)), turn_input)
    assert (refused.value.code, refused.value.field) == ("context_length_exceeded", "input")


async def test_what_is_too_much_for_one_model_goes_to_another(
    new_executor: Any, small: Card, new_card: Callable[..., Card]
) -> None:
    decision = (await decide(new_executor(WordsOffer(small, new_card("large", 9.0))), asking(100))).decision
    assert decision.card == "large"
    assert decision.refused[0].reason.startswith("its window has 100 tokens")


async def test_what_no_model_can_do_is_not_blamed_on_a_window(new_executor: Any, small: Card) -> None:
    mute = replace(small, calls_tools=False)
    with pytest.raises(BadInput) as refused:
        await decide(new_executor(WordsOffer(mute)), asking(100, tools=TOOLS))
    assert refused.value.code == "no_capable_model"


# Media of the conversation

BLOB = BlobRef(sha256="0" * 64, media_type="image/png", size_bytes=1)
MEDIA = (
    ImagePart(blob=BLOB, width_px=640, height_px=480),
    AudioPart(blob=BLOB, rate_hz=16_000, samples=24_000),
    VideoPart(blob=BLOB, width_px=640, height_px=480, duration_ms=2_500),
    FilePart(blob=BLOB, name="plan.pdf"),
)
_IN_WORDS = {
    "image": "[picture, 640 by 480 pixels: not shown here]",
    "audio": "[sound, 1.5 s: not shown here]",
    "video": "[video, 2.5 s: not shown here]",
    "file": "[file, plan.pdf: not shown here]",
}


def _two_cards(new_card: Callable[..., Card]) -> WordsOffer:
    every = frozenset({"text", *_IN_WORDS})
    return WordsOffer(new_card("cheap", 0.1), new_card("dear", 9.0, every))


def _shows(part: Any) -> Message:
    return Message(item_id="item_shown", role="user", parts=(TextPart(text="what is it?"), part))


ANSWERED = Message(item_id="item_answer", role="assistant", parts=(TextPart(text="a barn"),))


@pytest.mark.parametrize("part", MEDIA, ids=lambda part: part.kind)
async def test_what_was_shown_and_answered_asks_nothing_of_later_turns(
    new_executor: Any, new_card: Callable[..., Card], part: Any
) -> None:
    executor = new_executor(_two_cards(new_card))
    first = await decide(executor, TurnInput(items=(_shows(part),)))
    assert (first.decision.card, first.task.messages) == ("dear", (_shows(part),))
    joke = await decide(executor, asking(), _shows(part), ANSWERED)
    assert joke.decision.card == "cheap"
    assert text_of(joke.task.messages[0]) == f"what is it?{_IN_WORDS[part.kind]}"
    # A model that can read it is shown it as it was.
    named = await decide(executor, asking(model="dear"), _shows(part), ANSWERED)
    assert named.task.messages[0] == _shows(part)


@pytest.mark.parametrize("part", MEDIA, ids=lambda part: part.kind)
async def test_what_was_shown_and_not_answered_is_a_need_whoever_asks_for_the_answer(
    new_executor: Any, new_card: Callable[..., Card], part: Any
) -> None:
    executor = new_executor(_two_cards(new_card))
    assert (await decide(executor, TurnInput(), _shows(part))).decision.card == "dear"
    assert (await decide(executor, asking(), _shows(part))).decision.card == "dear"
    called = Call(item_id="item_call", call_id="call_1", name="add", arguments="{}")
    result = CallResult(item_id="item_result", call_id="call_1", parts=(TextPart(text="4"),))
    assert (await decide(executor, TurnInput(), _shows(part), called, result)).decision.card == "dear"
    shown = replace(result, parts=(part,))
    assert (await decide(executor, TurnInput(), said(1), called, shown)).decision.card == "dear"
    assert (await decide(executor, asking(), said(1), called, shown, ANSWERED)).decision.card == "cheap"


async def test_words_for_what_is_not_shown_take_their_place_in_the_window(new_executor: Any, small: Card) -> None:
    executor = new_executor(WordsOffer(small), max_output_tokens=10)
    pictures = [replace(_shows(MEDIA[0]), item_id=f"item_{n}") for n in range(8)]
    history = [item for n, each in enumerate(pictures) for item in (each, replace(ANSWERED, item_id=f"item_a{n}"))]
    work = await decide(executor, asking(), *history)
    assert work.decision.notes
    assert count_tokens([text_of(item) for item in work.task.messages], Words()) <= 100


# Counting holds the loop up


class Pieces:
    """Counts words as a tokenizer would, remembers what it has counted, and how much it counted at a time."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.counted: list[int] = []

    def count(self, text: str) -> int:
        if text not in self.known:
            self.known.add(text)
            self.counted.append(len(text))
        return len(text) // 5

    def count_part(self, part: Part) -> int:
        return media_tokens(part)


class PiecesOffer(WordsOffer):
    """A card whose tokens are counted in pieces."""

    def __init__(self, card: Card) -> None:
        super().__init__(card)
        self.pieces = Pieces()

    def counter(self, card: str) -> TokenCounter:
        return self.pieces


def long(n: int, characters: int) -> Message:
    text = "".join(f"{n}:{at:06d} " for at in range(0, characters, 9))
    return Message(item_id=f"item_{n}", role="user", parts=(TextPart(text=text),))


@pytest.fixture
def new_long_executor(clock: ManualClock) -> Callable[[FixedCardView], Executor]:
    return lambda offer: Executor(Decider(offer, max_characters=100_000), offer, {}, clock, TurnLimits())


async def test_an_input_over_the_limit_is_refused_uncounted(new_executor: Any, small: Card) -> None:
    with pytest.raises(LimitExceeded, match="the maximum here is 10000"):
        await decide(new_executor(WordsOffer(small, counts=False)), asking(100_000))


async def test_what_a_window_cannot_hold_is_counted_no_further_than_shows_it(
    new_long_executor: Any, small: Card
) -> None:
    offer = PiecesOffer(replace(small, context_tokens=2_000))
    with pytest.raises(LimitExceeded, match=r"2000 tokens\. However, your messages resulted in 2\d\d\d tokens or more"):
        await decide(new_long_executor(offer), TurnInput(items=(long(1, 90_000),)))
    assert sum(offer.pieces.counted) <= 2_000 * 5 + PIECE_CHARACTERS
    offer.pieces.counted.clear()
    await decide(new_long_executor(offer), asking(), long(2, 90_000), long(3, 90_000))
    assert sum(offer.pieces.counted) <= 2 * (2_000 * 5 + PIECE_CHARACTERS)


async def test_long_texts_are_counted_in_pieces_between_which_others_work(new_long_executor: Any, small: Card) -> None:
    offer = PiecesOffer(replace(small, context_tokens=90_000))
    executor, turn_input = new_long_executor(offer), TurnInput(items=(long(99, 85_000),))
    history = [long(n, 95_000) for n in range(5)]
    done = asyncio.Event()
    strides: list[int] = []

    async def others() -> None:
        while not done.is_set():
            before = len(offer.pieces.counted)
            await asyncio.sleep(0)
            strides.append(len(offer.pieces.counted) - before)

    working = asyncio.create_task(others())
    await asyncio.sleep(0)
    task = (await decide(executor, turn_input, *history)).task
    done.set()
    await working
    assert len(offer.pieces.counted) > 100
    assert max(strides) == 1
    assert max(offer.pieces.counted) <= PIECE_CHARACTERS
    assert 1 < len(task.messages) < 6


async def test_what_will_be_refused_for_its_length_is_not_counted(new_long_executor: Any, small: Card) -> None:
    offer = PiecesOffer(small)
    with pytest.raises(LimitExceeded):
        await decide(new_long_executor(offer), TurnInput(items=(long(1, 200_000),)))
    assert not offer.pieces.counted


# Playing


class Agent:
    """Yields what it is given."""

    def __init__(self, *events: AgentEvent) -> None:
        self.events = events
        self.closed = False

    async def run(self, task: Task) -> AsyncGenerator[AgentEvent, None]:
        try:
            for event in self.events:
                yield event
        finally:
            self.closed = True


async def test_a_play_ends_with_the_agents_end(new_executor: Any, small: Card) -> None:
    origin = Origin(agent="writer", task_id="turn_1.1", turn_id="turn_1", generation=2)
    events = (TaskStarted(origin=origin, card="small"), TaskFinished(origin=origin, reason="stop"))
    executor = new_executor(WordsOffer(small), {"writer": Agent(*events)})
    started, done = [event async for event in executor.run(await decide(executor, asking()))]
    assert started == events[0]
    assert done == done_with(events[1])
    assert (done.state, done.reason, done.ends) == ("finished", "stop", (events[1],))


async def test_an_agent_that_stops_without_an_end_has_failed(new_executor: Any, small: Card) -> None:
    executor = new_executor(WordsOffer(small), {"writer": Agent()})
    (failed,) = [event async for event in executor.run(await decide(executor, asking()))]
    assert isinstance(failed, TurnDone)
    assert (failed.fault.code, failed.fault.retryable) == ("internal", True)
    assert failed.origin.generation == 2


async def test_closing_a_play_closes_the_agent(new_executor: Any, small: Card) -> None:
    origin = Origin(agent="writer", task_id="turn_1.1", turn_id="turn_1", generation=2)
    agent = Agent(TaskStarted(origin=origin, card="small"), TaskFinished(origin=origin, reason="stop"))
    executor = new_executor(WordsOffer(small), {"writer": agent})
    playing = executor.run(await decide(executor, asking()))
    await anext(playing)
    await playing.aclose()
    assert agent.closed
