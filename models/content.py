"""What conversations are made of: parts, items, and the deltas that a model yields.

Media are references to blobs (sha-256, media type, dimensions or duration), never bytes. Every type is a
frozen dataclass with a `kind`, so that each union here is closed and matched exhaustively.
"""

from dataclasses import dataclass, field
from typing import Literal

Modality = Literal["text", "image", "audio", "video", "file"]

Source = Literal["typed", "spoken", "seen", "retrieved", "tool", "generated"]
"""Where a text comes from. What was not typed by the user is data: it cannot raise a tool's privileges."""

Role = Literal["system", "user", "assistant"]

ItemStatus = Literal["completed", "incomplete"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRef:
    """A blob by its content.

    Attributes:
        sha256: 64 hexadecimal digits.
        media_type: an IANA media type.
        size_bytes: the length of the content.
    """

    sha256: str
    media_type: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """Written words, tagged with their source."""

    kind: Literal["text"] = "text"
    text: str
    source: Source = "typed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePart:
    """One picture."""

    kind: Literal["image"] = "image"
    blob: BlobRef
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioPart:
    """A recording, counted in samples per channel."""

    kind: Literal["audio"] = "audio"
    blob: BlobRef
    rate_hz: int
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPart:
    """Moving pictures."""

    kind: Literal["video"] = "video"
    blob: BlobRef
    width_px: int
    height_px: int
    duration_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePart:
    """Any other file, under the name that its owner gave it."""

    kind: Literal["file"] = "file"
    blob: BlobRef
    name: str


Part = TextPart | ImagePart | AudioPart | VideoPart | FilePart


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One contribution to a conversation."""

    kind: Literal["message"] = "message"
    item_id: str
    role: Role
    parts: tuple[Part, ...]
    status: ItemStatus = "completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of a tool, `arguments` being JSON text as the model wrote it."""

    kind: Literal["call"] = "call"
    item_id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus = "completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallResult:
    """What a call returned."""

    kind: Literal["call_result"] = "call_result"
    item_id: str
    call_id: str
    parts: tuple[Part, ...]


Item = Message | Call | CallResult
"""One message, call or result within a session; its id is unique in the session."""


def text_of(item: Item) -> str:
    """Return the words of `item`: a message's or a result's text parts joined, a call's arguments."""
    match item:
        case Call():
            return item.arguments
        case Message() | CallResult():
            return "".join(part.text for part in item.parts if isinstance(part, TextPart))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredToken:
    """A token, and how likely a model found it.

    Attributes:
        text: how it reads; U+FFFD where it is only part of a character.
        data: what it stands for in UTF-8, which may be part of a character.
        logprob: natural logarithm of its chance, before bias, penalties, temperature and truncation.
    """

    text: str
    data: bytes
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenToken:
    """A token of an answer, and the likeliest ones at its place, which it need not be among."""

    chosen: ScoredToken
    top: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """Words as they are written.

    The statistics are there if the request asked for signals: one entry a token, as long as `token_ids`.

    Attributes:
        text: the words; may be empty while a token is only part of a character.
        token_ids: the engine's own token ids.
        logprobs: natural log-probability of each chosen token.
        entropies: entropy in nats of each distribution that was sampled.
        margins: probability of the first choice minus that of the second.
        written: tokens of the answer so far, this delta's included; 0 where the engine does not count. It is what is known of
            an answer that is cut off before its `UsageDelta`.
        tokens: those whose words these are the last of, if the request asked for `logprobs`.
    """

    kind: Literal["text"] = "text"
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    entropies: tuple[float, ...] = ()
    margins: tuple[float, ...] = ()
    written: int = field(default=0, compare=False)
    tokens: tuple[WrittenToken, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioDelta:
    """Sound as it is spoken: little-endian 16-bit mono samples."""

    kind: Literal["audio"] = "audio"
    pcm: bytes
    rate_hz: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDelta:
    """A fragment of a call. Fragments of one call share its `call_id` and come one after another.

    `written` is as in `TextDelta`.
    """

    kind: Literal["call"] = "call"
    call_id: str
    name: str
    arguments: str
    written: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftUsage:
    """What one drafter did for an answer.

    Attributes:
        drafter: its name.
        drafted: tokens that it guessed.
        accepted: those that were right.
    """

    drafter: str
    drafted: int
    accepted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FormReport:
    """What became of an answer that was held back until it was checked against its schema.

    Attributes:
        attempts: how often it was written; the last is the one that is given.
        valid: whether it fits. One that was cut short is given all the same, and does not.
    """

    attempts: int
    valid: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageDelta:
    """Tokens used since the last `UsageDelta` of this request.

    Attributes:
        input_tokens: of the prompt.
        output_tokens: of the answer.
        cached_tokens: those of the prompt that were found in a cache and did not have to be read.
        drafts: what was guessed of the answer, and how much of it was right.
        form: said once, before the end, of an answer that was held back.
    """

    kind: Literal["usage"] = "usage"
    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    drafts: tuple["DraftUsage", ...] = ()
    form: FormReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishDelta:
    """The last delta of a request that was not cancelled, and why it ended."""

    kind: Literal["finish"] = "finish"
    reason: Literal["stop", "length", "calls"]


Delta = TextDelta | AudioDelta | CallDelta | UsageDelta | FinishDelta
