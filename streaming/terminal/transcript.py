"""What the server's events come to: questions, answers with their route and times, in the order they are shown.

Everything is kept by its id, so that an event that is told twice, as after a loss of the connection, changes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from streaming.terminal.api import Json

_ENDINGS = {"cancelled": "Stopped.", "failed": "Failed.", "incomplete": "Cut at its length limit."}
_CAUSES = {
    "server_restarted": "The server was restarted before this answer was whole.",
    "server_stopped": "The server was stopped before this answer was whole.",
}


@dataclass(slots=True, kw_only=True)
class ShownAnswer:
    """A response, as far as it is known.

    Attributes:
        response_id: its id on the wire.
        texts: by item, in order; of a call, its arguments.
        calls: the function's name, by item.
        status: as the wire has it.
        problem: in words, what kept it from being whole.
    """

    response_id: str
    texts: dict[str, str] = field(default_factory=dict)
    calls: dict[str, str] = field(default_factory=dict)
    model: str | None = None
    reasons: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    decided_ms: int | None = None
    first_delta_ms: int | None = None
    duration_ms: int | None = None
    output_tokens: int | None = None
    status: str = "in_progress"
    problem: str | None = None

    @property
    def text(self) -> str:
        """The whole answer, as Markdown."""
        return "\n\n".join(
            f"`{self.calls[item_id]}({text})`" if item_id in self.calls else text
            for item_id, text in self.texts.items()
        )

    def facts(self) -> str:
        """Return its route and where its time went, in one line."""
        facts = [self.model, "; ".join(self.reasons)]
        facts += [
            f"{what} {duration(ms)}"
            for what, ms in (
                ("decided", self.decided_ms),
                ("first word", self.first_delta_ms),
                ("total", self.duration_ms),
            )
            if ms is not None
        ]
        if self.output_tokens:
            facts.append(f"{self.output_tokens} token{'s' if self.output_tokens > 1 else ''}{self._rate()}")
        return " · ".join(fact for fact in facts if fact)

    def _rate(self) -> str:
        writing_ms = (self.duration_ms or 0) - (self.first_delta_ms or 0)
        return f", {(self.output_tokens or 0) * 1000 / writing_ms:.0f}/s" if writing_ms > 0 else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownWords:
    """Something entered the conversation that is not part of an answer."""

    item_id: str
    role: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A question is on its way, and its answer has not begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """An answer has begun, or has grown."""

    answer: ShownAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An answer is over."""

    answer: ShownAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """Something was taken out of the conversation."""

    item_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSettings:
    """The session's title, model and system prompt, each None where there is none."""

    title: str | None
    model: str | None
    instructions: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownFault:
    """The server reports an error; `about` is the event of ours that was at fault."""

    message: str
    code: str
    about: str | None


Shown = ShownWords | Waiting | Answering | Answered | Removed | ShownSettings | ShownFault
"""What a screen is given."""


class Display:
    """Takes what the server sends and says what is to be shown."""

    def __init__(self) -> None:
        self.settings = ShownSettings(title=None, model=None, instructions=None)
        self._running: dict[str, ShownAnswer] = {}
        self._known: set[str] = set()

    @property
    def running(self) -> ShownAnswer | None:
        """The answer that is being written."""
        return next(iter(self._running.values()), None)

    def settle(self, told: Json) -> None:
        """Take the settings of the session into account, from an event or a session as the server shows it."""
        self.settings = ShownSettings(title=told["title"], model=told["model"], instructions=told["instructions"])

    def take(self, event: Json) -> Iterator[Shown]:
        """Take an event of the server into account, and yield what it changes on the screen."""
        if event["type"].startswith("response."):
            yield from self._of_answer(event)
        else:
            yield from self._of_session(event)

    def _of_answer(self, event: Json) -> Iterator[Shown]:
        match event["type"]:
            case "response.created":
                yield from self._begun(event["response"]["id"])
            case "response.output_item.added":
                yield from self._item(event["response_id"], event["item"])
            case "response.output_text.delta" | "response.function_call_arguments.delta":
                yield from self._grown(event["response_id"], event["item_id"], event["delta"], whole=False)
            case "response.output_text.done" if not event.get(
                "content_index"
            ):  # what comes behind another part is added
                yield from self._grown(event["response_id"], event["item_id"], event["text"], whole=True)
            case "response.function_call_arguments.done":
                yield from self._grown(event["response_id"], event["item_id"], event["arguments"], whole=True)
            case "response.done":
                yield from self._ended(event["response"])
            case _:
                pass  # said by others of these already

    def _of_session(self, event: Json) -> Iterator[Shown]:
        match event["type"]:
            case "conversation.item.added":
                yield from self._said(event["item"])
            case "conversation.item.deleted":
                yield Removed(item_id=event["item_id"])
            case "baton.turn.routed":
                self._routed(event)
            case "baton.turn.timed":
                self._timed(event)
            case "baton.session.updated":
                self.settle(event)
                yield self.settings
            case "error":
                error = event["error"]
                yield ShownFault(message=error["message"], code=error["code"], about=error["event_id"])
            case _:
                pass  # of the connection, or newer than this client

    def _said(self, item: Json) -> Iterator[Shown]:
        if item["id"] in self._known:
            return
        self._known.add(item["id"])
        if item["type"] == "message":
            text = "".join(part.get("text", "") for part in item["content"])
            yield ShownWords(item_id=item["id"], role=item["role"], text=text)
        elif item["type"] == "function_call_output":
            yield ShownWords(item_id=item["id"], role="tool", text=item["output"])

    def _begun(self, response_id: str) -> Iterator[Shown]:
        if response_id not in self._known:
            self._known.add(response_id)
            self._running[response_id] = ShownAnswer(response_id=response_id)
            yield Answering(answer=self._running[response_id])

    def _item(self, response_id: str, item: Json) -> Iterator[Shown]:
        self._known.add(item["id"])
        if answer := self._running.get(response_id):
            # Announced again after a loss, it is told again from its beginning.
            answer.texts[item["id"]] = ""
            if item["type"] == "function_call":
                answer.calls[item["id"]] = item["name"]
            yield Answering(answer=answer)

    def _grown(self, response_id: str, item_id: str, text: str, *, whole: bool) -> Iterator[Shown]:
        if answer := self._running.get(response_id):
            answer.texts[item_id] = text if whole else answer.texts.get(item_id, "") + text
            yield Answering(answer=answer)

    def _routed(self, event: Json) -> None:
        if answer := self._running.get(event["response_id"]):
            answer.model = event["model"]
            answer.reasons = tuple(event["reasons"])
            answer.refused = tuple(f"not {other['model']}: {other['reason']}" for other in event["refused"])

    def _timed(self, event: Json) -> None:
        if answer := self._running.get(event["response_id"]):
            answer.decided_ms = event.get("decided_ms")
            answer.first_delta_ms = event["first_delta_ms"]
            answer.duration_ms = event["duration_ms"]

    def _ended(self, response: Json) -> Iterator[Shown]:
        if answer := self._running.pop(response["id"], None):
            answer.status = response["status"]
            answer.output_tokens = (response.get("usage") or {}).get("output_tokens")
            answer.problem = _problem(response)
            yield Answered(answer=answer)


def duration(ms: int) -> str:
    """Return a time in milliseconds, or in seconds from one second on."""
    return f"{ms} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


def _problem(response: Json) -> str | None:
    ending = _ENDINGS.get(response["status"])
    error = (response.get("status_details") or {}).get("error") or {}
    cause = error.get("message") or _CAUSES.get(error.get("code") or "")
    return f"{ending} {cause}" if ending and cause else ending
