"""What conversations are made of: parts, items, and the deltas that a model yields.

Media are references to blobs (sha-256, media type, dimensions or duration), never bytes. Every type is a
frozen dataclass with a `kind`, so that each union here is closed and matched exhaustively.
"""

from dataclasses import dataclass, field
from typing import Literal, assert_never

Modality = Literal["text", "image", "audio", "video", "file"]

Provenance = Literal["typed", "spoken", "seen", "retrieved", "tool", "generated"]
"""Where a text comes from. What was not typed by the user is data: it cannot raise a tool's privileges."""

Role = Literal["system", "user", "assistant"]

ItemStatus = Literal["completed", "incomplete"]

OutputRole = Literal["answer", "commentary", "work"]
"""What an item of a reply is to its turn: the answer; what is said while it is worked on; work for other tasks, which no client
takes for an answer. Of what a user says it says nothing."""


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
    source: Provenance = "typed"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidencePart:
    """What the words before it rest on: a place in something that was found. It is shown to people; no model reads it.

    Attributes:
        source: what was found, as its owner knows it: a record's id, a file's, an address.
        title: what people call it.
        url: where it may be looked up, if anywhere.
        quote: the words that are meant, if they are words.
        start, end: characters of the source from `start` to before `end`, if they are known.
        at_ms: when in a recording it is.
    """

    kind: Literal["evidence"] = "evidence"
    source: str
    title: str = ""
    url: str | None = None
    quote: str = ""
    start: int | None = None
    end: int | None = None
    at_ms: int | None = None


Part = TextPart | ImagePart | AudioPart | VideoPart | FilePart | EvidencePart


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One contribution to a conversation."""

    kind: Literal["message"] = "message"
    item_id: str
    role: Role
    parts: tuple[Part, ...]
    status: ItemStatus = "completed"
    output: OutputRole = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of a tool, `arguments` being JSON text as the model wrote it."""

    kind: Literal["call"] = "call"
    item_id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus = "completed"
    output: OutputRole = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallResult:
    """What a call returned."""

    kind: Literal["call_result"] = "call_result"
    item_id: str
    call_id: str
    parts: tuple[Part, ...]
    output: OutputRole = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """What a model thought before it answered. People may read it; it is never shown to a model as words that were said."""

    kind: Literal["reasoning"] = "reasoning"
    item_id: str
    text: str
    status: ItemStatus = "completed"
    output: OutputRole = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRequest:
    """A call that waits until somebody allows it.

    Attributes:
        call_id: the call's.
        server: who would run it, if not Baton.
        expires_ms: until when, in milliseconds of Unix time; then it is not made.
    """

    kind: Literal["approval_request"] = "approval_request"
    item_id: str
    call_id: str
    name: str
    arguments: str
    server: str | None = None
    expires_ms: int | None = None
    output: OutputRole = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalResponse:
    """Whether the call was allowed that the item `request_id` asks for, and why."""

    kind: Literal["approval_response"] = "approval_response"
    item_id: str
    request_id: str
    approve: bool
    reason: str | None = None
    output: OutputRole = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolListing:
    """What a server of tools has on offer; `tools` is JSON text, an array of their names, descriptions and schemas."""

    kind: Literal["tool_listing"] = "tool_listing"
    item_id: str
    server: str
    tools: str
    output: OutputRole = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedCall:
    """A call that a server of tools has run, and what came of it: `result`, or `error`."""

    kind: Literal["hosted_call"] = "hosted_call"
    item_id: str
    server: str
    name: str
    arguments: str
    result: str | None = None
    error: str | None = None
    output: OutputRole = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherItem:
    """An item of a kind that is not known here: kept and shown as it came. `body` is its fields as a JSON object."""

    kind: Literal["other"] = "other"
    item_id: str
    type: str
    body: str
    output: OutputRole = "answer"


Item = (
    Message | Call | CallResult | Reasoning | ApprovalRequest | ApprovalResponse | ToolListing | HostedCall | OtherItem
)
"""One item of a session; its id is unique in the session."""

Said = Message | Call | CallResult
"""What a model may be shown."""


def text_of(item: Item) -> str:
    """Return the words of `item`: its text parts joined, or a call's arguments; what is for programs alone has none."""
    match item:
        case Message() | CallResult():
            return "".join(part.text for part in item.parts if isinstance(part, TextPart))
        case Call():
            return item.arguments
        case Reasoning():
            return item.text
        case ApprovalRequest() | ApprovalResponse() | ToolListing() | HostedCall() | OtherItem():
            return ""
        case _:
            assert_never(item)


def length_of(item: Item) -> int:
    """Return how many characters an item has to be kept by."""
    match item:
        case ApprovalRequest():
            return len(item.arguments)
        case ApprovalResponse():
            return len(item.reason or "")
        case ToolListing():
            return len(item.tools)
        case HostedCall():
            return len(item.arguments) + len(item.result or "") + len(item.error or "")
        case OtherItem():
            return len(item.body)
        case _:
            return len(text_of(item))


def parts_of(item: Item) -> tuple[Part, ...]:
    """Return the parts of an item that has any."""
    return item.parts if isinstance(item, Message | CallResult) else ()


def status_of(item: Item) -> ItemStatus:
    """Return whether an item is whole; what is never written piece by piece always is."""
    return item.status if isinstance(item, Message | Call | Reasoning) else "completed"


def is_beside(item: Item) -> bool:
    """Return whether an item of a reply is beside the conversation: it is logged and shown, but no part of what is said."""
    return item.output == "work" or isinstance(item, Reasoning)


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
class ReasoningDelta:
    """What a model thinks, as it thinks it. `written` is as in `TextDelta`."""

    kind: Literal["reasoning"] = "reasoning"
    text: str
    written: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartDelta:
    """A part that comes as a whole, such as a picture or what words rest on: its place is behind what was said before it."""

    kind: Literal["part"] = "part"
    part: Part


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


Delta = TextDelta | AudioDelta | CallDelta | ReasoningDelta | PartDelta | UsageDelta | FinishDelta
