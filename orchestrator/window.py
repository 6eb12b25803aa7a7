"""What of a conversation a model is shown: what is said now, and as much of what came before as fits the window. Pure.

*Said now* is the last user message, every call that is open (its result has come since the model last wrote, or has not
come) with its results, and the last item. It is shown whatever has to be left out, or the turn is refused. Of the rest
the oldest leaves first, and a call never without its result.

The beginning of a prompt is found read where it is as it was, so the window is cut in large steps: at the first item
behind a multiple of `Window.step_tokens`, counted from the first item of the conversation. Cuts so depend on the items
alone: turn after turn, and from request to request, what is shown begins with the same item, until the window is full.

Nothing is counted that need not be: a byte is at most one token, so a conversation of fewer bytes than the window has
tokens fits. Of an item no more is counted than shows that it does not fit.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import assert_never

from models.content import (
    AudioPart,
    Call,
    CallResult,
    EvidencePart,
    FilePart,
    ImagePart,
    Item,
    Message,
    Part,
    Said,
    TextPart,
    VideoPart,
    is_beside,
    parts_of,
    text_of,
)
from models.language.tokens import PIECE_CHARACTERS, TokenCounter
from models.ports.generate import ToolConstraint
from orchestrator.events import TurnInput

ITEM_TOKENS = 8
"""What a chat template adds to an item, at most: its role and its marks."""

UNKNOWN_OUTCOME = "The outcome of this call is unknown."
"""What a model is shown in place of a result that is not there: the call may have happened."""

_SPARE_TOKENS = 64
"""What a template may say by itself, such as its own instructions where there are none."""

_OFFER_TOKENS = 96
"""What it says of calling, beside the functions themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What there is room for.

    Attributes:
        tokens: of the prompt and the answer together.
        fixed_tokens: of what every turn of the conversation is shown: instructions, functions, the answer's place.
        answer_tokens: that the answer wants.
        spare_tokens: kept free for what a template adds.
    """

    tokens: int
    fixed_tokens: int
    answer_tokens: int
    spare_tokens: int

    @property
    def step_tokens(self) -> int:
        """By how much it is cut: a little more than half of what items may have, where as little is said now as can be."""
        return max(self.item_tokens(0) * 5 // 9, 1)

    def item_tokens(self, now_tokens: int) -> int:
        """Return what all items may have together, if so much is said now.

        An answer has room for what it wants, but for no more than half of what is said now leaves.
        """
        left = self.tokens - self.fixed_tokens - now_tokens
        return self.tokens - self.fixed_tokens - self.spare_tokens - min(self.answer_tokens, max(left // 2, 1))


def window_of(tokens: int, turn_input: TurnInput, answer_tokens: int, counter: TokenCounter) -> Window:
    """Return what there is room for in a turn."""
    is_offer = turn_input.tools is not None and bool(turn_input.tools.tools)
    return Window(
        tokens=tokens,
        fixed_tokens=count_tokens(fixed(turn_input), counter, enough=tokens),
        answer_tokens=answer_tokens,
        spare_tokens=min(_SPARE_TOKENS + (_OFFER_TOKENS if is_offer else 0), tokens // 16),
    )


def paired(items: Sequence[Item]) -> list[Said]:
    """Return the items that a model may be shown: without calls that were cut short, and results of calls not there.

    What is no part of what is said is left out: work for other tasks, thoughts, and what only programs read.
    """
    kept: list[Said] = []
    called: set[str] = set()
    for item in items:
        if is_beside(item):
            continue
        match item:
            case Call(status="completed"):
                called.add(item.call_id)
                kept.append(item)
            case CallResult() if item.call_id in called:
                kept.append(item)
            case Message():
                kept.append(item)
            case _:
                pass
    return kept


def unanswered(items: Sequence[Item]) -> frozenset[int]:
    """Return the places of the calls that have no result. An id may serve again: a result is that of the last call."""
    waiting: dict[str, int] = {}
    places: set[int] = set()
    for at, item in enumerate(items):
        if isinstance(item, Call):
            waiting[item.call_id] = at
            places.add(at)
        elif isinstance(item, CallResult) and item.call_id in waiting:
            places.discard(waiting[item.call_id])
    return frozenset(places)


def places_now(items: Sequence[Item]) -> frozenset[int]:
    """Return the places of what is said now in `items`, which are `paired`."""
    if not items:
        return frozenset()
    last = len(items) - 1
    user = max((at for at, item in enumerate(items) if _is_said_by(item, "user")), default=-1)
    now = {last, *(at for at in unanswered(items) if at > user)}
    if user >= 0:
        now.add(user)
    # The model has seen what came before it wrote; but an answer begun, at the end, is still to be gone on with.
    end = last
    while end >= 0 and _is_said_by(items[end], "assistant"):
        end -= 1
    written = end
    while written >= 0 and not (isinstance(items[written], Call) or _is_said_by(items[written], "assistant")):
        written -= 1
    calls: dict[str, int] = {}
    for at, item in enumerate(items):
        if isinstance(item, Call):
            calls[item.call_id] = at
        elif isinstance(item, CallResult) and at > written:
            now |= {at, calls[item.call_id]}
    return frozenset(now)


def places_since(items: Sequence[Item], now: frozenset[int]) -> frozenset[int]:
    """Return the places of what is said `now` and of what has come since a model last wrote; `items` are `paired`."""
    written = len(items) - 1
    while written >= 0 and not (isinstance(items[written], Call) or _is_said_by(items[written], "assistant")):
        written -= 1
    return now.union(range(written + 1, len(items)))


def readable(items: Sequence[Said], reads: Collection[str]) -> Sequence[Said]:
    """Return the items with what a model cannot read as words that say what it was; evidence is for people alone."""
    if all(isinstance(item, Call) or all(part.kind in reads for part in item.parts) for item in items):
        return items
    return [
        item if isinstance(item, Call) else replace(item, parts=tuple(_readable(item.parts, reads))) for item in items
    ]


def _readable(parts: Sequence[Part], reads: Collection[str]) -> Iterator[Part]:
    for part in parts:
        if part.kind in reads:
            yield part
        elif not isinstance(part, EvidencePart):
            yield in_words(part)


def in_words(part: Part) -> TextPart:
    """Return words that stand for a part where it cannot be shown itself."""
    match part:
        case TextPart():
            return part
        case ImagePart():
            known = f"picture, {part.width_px} by {part.height_px} pixels"
        case AudioPart():
            known = f"sound, {part.samples / part.rate_hz:.1f} s"
        case VideoPart():
            known = f"video, {part.duration_ms / 1000:.1f} s"
        case FilePart():
            known = f"file, {part.name}"
        case EvidencePart():
            known = f"from {part.title or part.source}"
        case _:
            assert_never(part)
    return TextPart(text=f"[{known}: not shown here]", source="tool")


def words_of(item: Item) -> str:
    """Return the words that stand for an item in a prompt."""
    if isinstance(item, Call):
        return f'<tool_call>{{"name": "{item.name}", "arguments": {item.arguments}}}</tool_call>'
    return text_of(item)


def fixed(turn_input: TurnInput) -> list[str]:
    """Return what every turn of a conversation is shown: instructions, functions, and its answer's place."""
    return [turn_input.instructions or "", *_offered(turn_input.tools), ""]


def said_now(turn_input: TurnInput, history: Sequence[Item]) -> list[str]:
    """Return what a model is shown of a turn whatever has to be left out."""
    items = paired((*history, *turn_input.items))
    return [*fixed(turn_input), *(items_words(items, places_now(items)))]


def items_words(items: Sequence[Item], places: Collection[int]) -> list[str]:
    """Return the words of the items at these places, with what stands for results that are not there."""
    open_calls = unanswered(items)
    words = []
    for at in sorted(places):
        words.append(words_of(items[at]))
        if at in open_calls:
            words.append(UNKNOWN_OUTCOME)
    return words


def most_tokens(texts: Sequence[str]) -> int:
    """Return a bound on the tokens of `texts` as items, whatever the vocabulary."""
    return sum(len(text.encode()) + ITEM_TOKENS for text in texts)


def pieces(text: str) -> Iterator[str]:
    """Yield `text` in pieces that are quickly counted; their tokens are those of the whole, but for a few at the cuts."""
    for start in range(0, len(text), PIECE_CHARACTERS):
        yield text[start : start + PIECE_CHARACTERS]


def count_tokens(texts: Sequence[str], counter: TokenCounter, *, enough: int | None = None) -> int:
    """Return the tokens of `texts` as items; if they are more than `enough`, perhaps only a part that is more, too."""
    tokens = len(texts) * ITEM_TOKENS
    for text in texts:
        for piece in pieces(text):
            tokens += counter.count(piece)
            if enough is not None and tokens > enough:
                return tokens
    return tokens


def costs_of(items: Sequence[Item], window: Window, counter: TokenCounter) -> list[int]:
    """Return what each item takes of the window; of one that is more than the window, some number that is, too."""
    open_calls = unanswered(items)
    return [
        count_tokens([words_of(item), *([UNKNOWN_OUTCOME] if at in open_calls else [])], counter, enough=window.tokens)
        + media_of([item], lambda: counter)
        for at, item in enumerate(items)
    ]


def media_of(items: Iterable[Item], counter: Callable[[], TokenCounter]) -> int:
    """Return the tokens of all parts that are no text, as far as a model reads them; `counter` is asked for if there are any."""
    parts = [part for item in items for part in parts_of(item) if not isinstance(part, TextPart)]
    return sum(map(counter().count_part, parts)) if parts else 0


def shown(items: Sequence[Item], window: Window, counter: TokenCounter) -> Sequence[Item]:
    """Return what a model is shown of `items`, which are `paired`: all, or what is said now and the newest of the rest.

    If something was left out, it begins with a message that is not the assistant's (as far as there is one): half an
    exchange misleads a model.
    """
    now = places_now(items)
    costs = costs_of(items, window, counter)
    room = window.item_tokens(sum(costs[at] for at in now))
    if sum(costs) <= room:
        return items
    for cut in cuts(costs, window, sum(costs) - room):
        kept = kept_from(items, cut, now)
        if sum(costs[at] for at in kept) <= room:
            return [items[at] for at in kept]
    return [items[at] for at in sorted(now)]


def foreseen(
    items: Sequence[Item], window: Window, counter: TokenCounter, *, coming: int | None = None
) -> Sequence[Item]:
    """Return what a model will be shown of `items` once so many more are `coming`; if None, half a step of the window.

    What is said next is taken to be as long as what was said last, and what is coming as what there is.
    """
    costs = costs_of(items, window, counter)
    now = places_now(items) if items and isinstance(items[-1], Call) else frozenset[int]()  # an open call is said still
    said = next((costs[at] for at in reversed(range(len(items))) if _is_said_by(items[at], "user")), ITEM_TOKENS)
    room = window.item_tokens(said) - said
    growth = window.step_tokens // 2 if coming is None else coming * sum(costs) // max(len(costs), 1)
    over = sum(costs) + growth - room
    if over <= 0:
        return items
    for cut in cuts(costs, window, over):
        kept = kept_from(items, cut, now)
        if sum(costs[at] for at in kept) <= room:
            return [items[at] for at in kept]
    return ()


def cuts(costs: Sequence[int], window: Window, over_tokens: int) -> Iterator[int]:
    """Yield the places where items may be cut so that at least so many tokens go, the first place first."""
    before = list(accumulate(costs, initial=0))
    step = window.step_tokens
    gone = -(-over_tokens // step) * step
    for at, tokens in enumerate(before):
        if tokens >= gone:
            yield at
            gone = (tokens // step + 1) * step


def kept_from(items: Sequence[Item], cut: int, now: Collection[int]) -> list[int]:
    """Return the places that stay if what came before `cut` goes, but what is said now, and what must not stand alone."""
    kept = sorted({*range(cut, len(items)), *now})
    while kept and kept[0] not in now and not _opens(items[kept[0]]):
        kept.pop(0)
    calls: dict[str, int] = {}
    whole = []
    for at in range(len(items)):
        item = items[at]
        if isinstance(item, Call):
            calls[item.call_id] = at
        whole.append(calls[item.call_id] if isinstance(item, CallResult) else at)
    there = set(kept)
    return [at for at in kept if whole[at] in there]


def _offered(tools: ToolConstraint | None) -> list[str]:
    return [
        f'{{"name": "{tool.name}", "description": "{tool.description}", "parameters": {tool.parameters}}}'
        for tool in (() if tools is None else tools.tools)
    ]


def _opens(item: Item) -> bool:
    return isinstance(item, Message) and item.role != "assistant"


def _is_said_by(item: Item, role: str) -> bool:
    return isinstance(item, Message) and item.role == role
