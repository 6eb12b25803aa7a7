"""Errors as data: what a caller may do about each is in its fields.

```
BatonError
├── BadInput           the caller's request cannot be served as it stands
│   ├── LimitExceeded    a stated limit was passed
│   └── Unsupported      a field or an event that this part cannot honour
├── NotFound           no such thing, or it belongs to another tenant
├── Unauthorized       no key, or a wrong one
├── Conflict           right in itself, but not in this state
├── DeadlineExceeded   the budget's time is over
├── Overloaded         a bound was reached; try again later
├── Unavailable        a part of ours is down and is being brought up again; try again later
│   ├── WorkerDied       the process of an in-process engine ended while it worked
│   └── FetchFailed      weights could not be brought here (`models.supply.fetch`)
└── Internal           a defect of ours; its details stay in our log
```

A surface maps `kind`, `code`, `message` and `field` into its protocol's own shape, by one table (`streaming.wire.errors`).
Third-party errors are translated where they enter, `from exc`.
"""

from typing import ClassVar, Literal

ErrorKind = Literal[
    "bad_input",
    "limit_exceeded",
    "unsupported",
    "not_found",
    "unauthorized",
    "conflict",
    "deadline_exceeded",
    "overloaded",
    "unavailable",
    "worker_died",
    "fetch_failed",
    "internal",
]
"""The classes below by name: what an error is called where it is data, in a log or in another process."""

NOT_INSTALLED = (
    "Baton was installed without what runs models in this process: pip install 'baton[local]', or serve a remote model "
    "(docs/howto/remote-server.md)."
)
"""What to say where the libraries of an engine are missing."""


_QUOTED_CHARACTERS = 64


def quoted(value: str) -> str:
    """Return a value of the caller's as an error quotes it: enough of it to be known again, whatever was sent."""
    text = repr(value[: _QUOTED_CHARACTERS + 1])  # of one character it may make ten
    return text if len(text) <= _QUOTED_CHARACTERS + 2 else f"{text[: _QUOTED_CHARACTERS + 1]}…{text[0]}"


class BatonError(Exception):
    """Base of every error that may reach a caller.

    Attributes:
        kind: its class, by name.
        code: a stable name in snake case, the wire code of every surface.
        message: says what is wrong and what to do, in terms of the caller's own input.
        field: the path of the field at fault in the caller's input, where there is one.
        retryable: whether the same request may succeed later.
        retry_after_s: how long to wait before that, if it is known.
    """

    kind: ClassVar[ErrorKind] = "internal"
    code: str = "internal"
    retryable: bool = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        field: str | None = None,
        retryable: bool | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """Take what differs from the class's own `code` and `retryable`."""
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with keyword fields, so that an error crosses from a worker as it is."""
        return _rebuild, (type(self), self.message, self.code, self.field, self.retryable, self.retry_after_s)


def _rebuild(
    kind: type[BatonError], message: str, code: str, field: str | None, retryable: bool, retry_after_s: float | None
) -> BatonError:
    return kind(message, code=code, field=field, retryable=retryable, retry_after_s=retry_after_s)


class BadInput(BatonError):
    """The caller's request cannot be served as it stands."""

    kind: ClassVar[ErrorKind] = "bad_input"
    code = "invalid_input"


class LimitExceeded(BadInput):
    """A stated limit was passed; the message names it, its value, and the remedy."""

    kind: ClassVar[ErrorKind] = "limit_exceeded"
    code = "limit_exceeded"


def context_overflow(window_tokens: int, prompt_tokens: int, *, or_more: bool = False) -> LimitExceeded:
    """Return the error for a prompt that leaves no room in a model's window, in the words by which clients know it.

    They are OpenAI's, and "prompt is too long": litellm and LangChain look for them in the message.

    Args:
        window_tokens: what the window holds.
        prompt_tokens: how many there are.
        or_more: whether they were counted no further.
    """
    counted = f"{prompt_tokens} tokens or more" if or_more else f"{prompt_tokens} tokens"
    return LimitExceeded(
        f"This model's maximum context length is {window_tokens} tokens. However, your messages resulted in {counted}: the "
        "prompt is too long. Please reduce the length of the messages.",
        code="context_length_exceeded",
        field="input",
    )


def too_long(what: str, length: int, most: int, *, field: str = "input") -> LimitExceeded:
    """Return the error for `what` of more characters than are taken at all, in the same words."""
    return LimitExceeded(
        f"The prompt is too long: {what} has {length} characters, and the maximum here is {most}. Please reduce the length of "
        "the messages.",
        code="context_length_exceeded",
        field=field,
    )


class Unsupported(BadInput):
    """A field or an event that this part cannot honour. Nothing is ever silently dropped."""

    kind: ClassVar[ErrorKind] = "unsupported"
    code = "unsupported"


class NotFound(BatonError):
    """No such thing, or it belongs to another tenant, which looks the same from outside."""

    kind: ClassVar[ErrorKind] = "not_found"
    code = "not_found"


class Unauthorized(BatonError):
    """No key, or a wrong one."""

    kind: ClassVar[ErrorKind] = "unauthorized"
    code = "unauthorized"


class Conflict(BatonError):
    """Right in itself, but not in this state."""

    kind: ClassVar[ErrorKind] = "conflict"
    code = "conflict"


class DeadlineExceeded(BatonError):
    """The budget's time is over."""

    kind: ClassVar[ErrorKind] = "deadline_exceeded"
    code = "deadline_exceeded"
    retryable = True


class Overloaded(BatonError):
    """A bound was reached; the same request may succeed later."""

    kind: ClassVar[ErrorKind] = "overloaded"
    code = "overloaded"
    retryable = True


class Unavailable(BatonError):
    """A part of ours is down and is being brought up again; the same request succeeds once it is there."""

    kind: ClassVar[ErrorKind] = "unavailable"
    code = "unavailable"
    retryable = True


class Internal(BatonError):
    """A fault of ours. The message is safe to show; the cause is in the log."""

    kind: ClassVar[ErrorKind] = "internal"
    code = "internal"
    retryable = True


class WorkerDied(Unavailable):
    """The process of an in-process engine ended while it worked; it is being restarted."""

    kind: ClassVar[ErrorKind] = "worker_died"
    code = "worker_died"


class FetchFailed(Unavailable):
    """Weights could not be brought here. What was there before is untouched, and nothing half-written is left."""

    kind: ClassVar[ErrorKind] = "fetch_failed"
    code = "fetch_failed"


CLASSES: dict[ErrorKind, type[BatonError]] = {
    each.kind: each
    for each in (
        BadInput,
        LimitExceeded,
        Unsupported,
        NotFound,
        Unauthorized,
        Conflict,
        DeadlineExceeded,
        Overloaded,
        Unavailable,
        WorkerDied,
        FetchFailed,
        Internal,
    )
}
"""Every class by its name."""
