"""Server-sent events, read as they arrive. Pure: bytes in, data out.

Of the format (https://html.spec.whatwg.org/multipage/server-sent-events.html) only `data` is kept; comments and all other
fields are passed over.
"""

from collections.abc import Iterator

from models.errors import Internal

MAX_EVENT_BYTES = 1 << 20
"""The longest event that is read."""


class EventReader:
    """Reads one stream, however it is cut into pieces."""

    def __init__(self) -> None:
        self._line = b""
        self._data: list[bytes] = []
        self._size = 0
        self._after_cr = False

    def feed(self, received: bytes) -> Iterator[bytes]:
        """Yield the data of each event that `received` completes; to be run to its end.

        Raises:
            Internal: an event is longer than `MAX_EVENT_BYTES`.
        """
        if not received:
            return
        second_half = self._after_cr and received.startswith(b"\n")  # of a line's end that was cut in two
        self._after_cr = received.endswith(b"\r")
        lines = (self._line + received[second_half:]).splitlines(keepends=True)
        self._line = lines.pop() if lines and not lines[-1].endswith((b"\n", b"\r")) else b""
        for line in lines:
            if (data := self._take(line.rstrip(b"\r\n"))) is not None:
                yield data
        if self._size + len(self._line) > MAX_EVENT_BYTES:
            raise Internal(f"The model server sent an event of more than {MAX_EVENT_BYTES} bytes.")

    def _take(self, line: bytes) -> bytes | None:
        """Take a line without its end; return the event's data if the line ends one that has any."""
        if line:
            field, _, value = line.partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
                self._size += len(value)
            return None
        if not self._data:
            return None
        data = b"\n".join(self._data)
        self._data.clear()
        self._size = 0
        return data
