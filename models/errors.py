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
│   └── WorkerDied       the process of an in-process engine ended while it worked
├── FetchFailed        weights could not be brought here (`models.fetch`)
└── Internal           a defect of ours; its details stay in our log
```

A surface maps `code`, `message` and `field` into its protocol's own shape. Third-party errors are translated
where they enter, `from exc`.
"""

from typing import ClassVar


class BatonError(Exception):
    """Base of every error that may reach a caller.

    Attributes:
        code: a stable name in snake case, the wire code of every surface.
        message: says what is wrong and what to do, in terms of the caller's own input.
        field: the path of the field at fault in the caller's input, where there is one.
        retryable: whether the same request may succeed later.
    """

    code: str = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, code: str | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        if code is not None:
            self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with keyword fields, so that an error crosses from a worker as it is."""
        return _rebuild, (type(self), self.message, self.code, self.field)


def _rebuild(kind: type[BatonError], message: str, code: str, field: str | None) -> BatonError:
    return kind(message, code=code, field=field)


class BadInput(BatonError):
    """The caller's request cannot be served as it stands."""

    code = "invalid_input"


class LimitExceeded(BadInput):
    """A stated limit was passed; the message names it, its value, and the remedy."""

    code = "limit_exceeded"


class Unsupported(BadInput):
    """A field or an event that this part cannot honour. Nothing is ever silently dropped."""

    code = "unsupported"


class NotFound(BatonError):
    """No such thing, or it belongs to another tenant, which looks the same from outside."""

    code = "not_found"


class Unauthorized(BatonError):
    """No key, or a wrong one."""

    code = "unauthorized"


class Conflict(BatonError):
    """Right in itself, but not in this state."""

    code = "conflict"


class DeadlineExceeded(BatonError):
    """The budget's time is over."""

    code = "deadline_exceeded"
    retryable = True


class Overloaded(BatonError):
    """A bound was reached; the same request may succeed later."""

    code = "overloaded"
    retryable = True


class Unavailable(BatonError):
    """A part of ours is down and is being brought up again; the same request succeeds once it is there."""

    code = "unavailable"
    retryable = True


class Internal(BatonError):
    """A fault of ours. The message is safe to show; the cause is in the log."""

    code = "internal"
    retryable = True


class WorkerDied(Unavailable):
    """The process of an in-process engine ended while it worked; it is being restarted."""

    code = "worker_died"
