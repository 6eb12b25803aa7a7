"""What a person has heard of what was said to them: a ledger from milliseconds of playback to characters. Pure; part of `state`.

Whoever turns words into sound tells how far into the words each stretch of sound reaches (`speak`), and whoever plays it how
far that has come (`hear`, `stop`). Both may be surfaces; the ledger is the session's. What is logged is folded as it was
lived: a row holds the characters, so that the marks need not be kept.

A model is shown what was heard of an answer, cut at a word's end, and told that it was cut off: it goes on from there, and
does not refer to what nobody heard.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from models.content import AudioPart, Item, Message, Part, TextPart, text_of
from models.errors import BadInput, LimitExceeded, quoted
from orchestrator.events import PlaybackHeard

CUT_OFF = " [The user interrupted here and has not heard the rest of this answer.]"
"""What a model is told where an answer was cut off. It is data as what tools say is, and no part of what was said."""

_TOKEN = re.compile(r"[^\W_]+(?:['\u2019_.,:/@\-][^\W_]+)*")
"""Letters and digits, and what joins them to one word or number."""

_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF))
"""Thai and Lao, Burmese, Khmer: words are not told apart there without a dictionary."""


@dataclass(frozen=True, slots=True)
class Mark:
    """That an item's first `characters` are spoken once `ms` milliseconds of its sound were played."""

    characters: int
    ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """How far playback of an item has come; `characters` is None where that was not known. Once it `is_over`, no more is heard."""

    ms: int
    characters: int | None = None
    is_over: bool = False


@dataclass(slots=True)
class Playback:
    """The ledger of one conversation.

    Attributes:
        sounds_ms: how long the sound of items is that came with some.
        heard: what is logged.
        coming: what is heard and yet to be logged.
        marks: of items that are spoken, by whoever speaks them; they live as long as the process.
    """

    sounds_ms: dict[str, int] = field(default_factory=dict)
    heard: dict[str, Heard] = field(default_factory=dict)
    coming: dict[str, Heard] = field(default_factory=dict)
    marks: dict[str, list[Mark]] = field(default_factory=dict, compare=False)

    def speak(self, item_id: str, marks: Iterable[tuple[int, int]], characters: int) -> None:
        """Take marks, which go on where those before ended, of an item that has so many characters.

        Raises:
            BadInput: they go back, or beyond the words.
        """
        known = self.marks.get(item_id, [])
        last = known[-1] if known else Mark(0, 0)
        fresh = [Mark(*mark) for mark in marks]
        for mark in fresh:
            if not (last.characters <= mark.characters <= characters and mark.ms > last.ms):
                raise BadInput(
                    f"The mark of {mark.characters} characters at {mark.ms} ms does not follow {last.characters} at {last.ms} ms "
                    f"within the {characters} characters of {quoted(item_id)}. Marks go forward, in both.",
                    field="marks",
                )
            last = mark
        if not fresh:
            return
        known = self.marks.setdefault(item_id, known)
        for mark in fresh:
            if len(known) > 1 and known[-2].characters == known[-1].characters == mark.characters:
                known.pop()  # of a silence, its beginning and its end are enough
            known.append(mark)

    def sound_ms(self, item_id: str, ms: int = 0) -> int:
        """Return how long the sound of an item is, `ms` being what it came with if it is still written."""
        marks = self.marks.get(item_id)
        return max(ms, self.sounds_ms.get(item_id, 0), marks[-1].ms if marks else 0)

    def check(self, item_id: str, ms: int, sound_ms: int) -> None:
        """Check that so much can have been heard.

        Raises:
            LimitExceeded: its sound is not that long.
        """
        if not 0 <= ms <= sound_ms:
            raise LimitExceeded(
                f"The item {quoted(item_id)} has {sound_ms} ms of sound; {ms} ms of it cannot have been heard.",
                field="ms",
            )

    def hear(self, item_id: str, ms: int) -> None:
        """Note how far playback has come; what comes late is known already."""
        now = self.coming.get(item_id) or self.heard.get(item_id)
        if now is None or (ms > now.ms and not now.is_over):
            self.coming[item_id] = Heard(ms=ms)

    def stop(self, item_id: str, ms: int) -> None:
        """Note that playback has ended there, also if it was taken to have come further."""
        self.coming[item_id] = Heard(ms=ms, is_over=True)

    def characters(self, item_id: str, text: str, sound_ms: int) -> int | None:
        """Return how many characters of an item were heard; None if nobody told."""
        coming = self.coming.get(item_id)
        if coming is not None:
            return heard_characters(text, self.marks.get(item_id, ()), sound_ms, coming.ms)
        logged = self.heard.get(item_id)
        return None if logged is None else logged.characters

    def row(self, item_id: str, text: str, sound_ms: int) -> PlaybackHeard:
        """Return the row of what is yet to be logged of an item."""
        coming = self.coming[item_id]
        return PlaybackHeard(
            item_id=item_id,
            heard_ms=coming.ms,
            heard_characters=self.characters(item_id, text, sound_ms),
            is_over=coming.is_over,
        )

    def logged(self, row: PlaybackHeard) -> None:
        """Take in a row. What was heard while it was being written is still to be logged."""
        before = self.heard.get(row.item_id)
        if before is None or row.is_over or row.heard_ms >= before.ms:
            self.heard[row.item_id] = Heard(ms=row.heard_ms, characters=row.heard_characters, is_over=row.is_over)
        coming = self.coming.get(row.item_id)
        if coming is not None and (row.is_over or (coming.ms <= row.heard_ms and not coming.is_over)):
            del self.coming[row.item_id]

    def forget(self, item_id: str) -> None:
        """Let go of an item."""
        for known in (self.sounds_ms, self.heard, self.coming, self.marks):
            known.pop(item_id, None)

    def as_heard(self, item: Item, sound_ms: int | None = None) -> Item:
        """Return an item as a model is shown it: what was heard of it, if that is not all of it."""
        if not isinstance(item, Message) or item.role != "assistant":
            return item
        if item.item_id not in self.coming and item.item_id not in self.heard:
            return item
        text = text_of(item)
        sound_ms = self.sound_ms(item.item_id) if sound_ms is None else sound_ms
        characters = self.characters(item.item_id, text, sound_ms)
        return item if characters is None or characters >= len(text) else cut_off(item, characters)

    def all_as_heard(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return items as a model is shown them."""
        return items if not (self.coming or self.heard) else [self.as_heard(item) for item in items]


def heard_characters(text: str, marks: Sequence[Mark], sound_ms: int, ms: int) -> int:
    """Return how many characters of `text` were heard by `ms`, up to a word's end.

    Between two marks they are taken to be spoken evenly; without marks, over all of the sound.
    """
    before = Mark(0, 0)
    for mark in marks or (Mark(len(text), sound_ms),):
        if ms < mark.ms:
            at = before.characters + (mark.characters - before.characters) * (ms - before.ms) // (mark.ms - before.ms)
            return word_end(text, at)
        before = mark
    return word_end(text, before.characters)


def word_end(text: str, at: int) -> int:
    """Return the end of the last word that is whole in the first `at` characters; all of `text` if no word is behind them."""
    if not any(_TOKEN.finditer(text, at)) if at < len(text) else True:
        return len(text)
    while 0 < at < len(text) and (inside := _inside(text, at)) is not None:
        at = inside
    while at > 0 and text[at - 1].isspace():
        at -= 1
    return at


def cut_off(message: Message, characters: int) -> Message:
    """Return a message as far as so many characters of it, with the word that it was cut off. Its sound goes; pictures stay."""
    parts: list[Part] = []
    left = characters
    for part in message.parts:
        if isinstance(part, TextPart):
            if left:
                parts.append(replace(part, text=part.text[:left]))
            left -= min(left, len(part.text))
        elif not isinstance(part, AudioPart):
            parts.append(part)
    words = CUT_OFF if any(isinstance(part, TextPart) for part in parts) else CUT_OFF.lstrip()
    return replace(message, parts=(*parts, TextPart(text=words, source="tool")), status="incomplete")


def _inside(text: str, at: int) -> int | None:
    """Return an earlier place to cut at if `at` is inside of a character or a word; None if it is not."""
    if (
        unicodedata.category(text[at])[0] == "M"
        or "\u200d" in text[at - 1 : at + 1]
        or "\U0001f3fb" <= text[at] <= "\U0001f3ff"
    ):
        return at - 1
    if _stands_alone(text[at - 1]) or _stands_alone(text[at]):
        return None
    start = at
    while start > 0 and not text[start - 1].isspace():
        start -= 1
    for token in _TOKEN.finditer(text, start):
        if token.start() >= at:
            return None
        if at < token.end():
            return token.start() if not any(map(_stands_alone, text[token.start() : at])) else at - 1
    return None


def _stands_alone(character: str) -> bool:
    """Return whether it is of a script that does not put spaces between words."""
    code = ord(character)
    return unicodedata.east_asian_width(character) in "WF" or any(first <= code <= last for first, last in _UNSPACED)
