"""Server-sent events, read strictly: what the specification lets a parser pass over is an error here.

Source: WHATWG HTML, section 9.2.5, "Parsing an event stream".
"""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """One event; `seq` is its id."""

    data: str
    kind: str | None = None
    seq: int | None = None

    def json(self) -> dict[str, Any]:
        """Return the data, which has to be one JSON object."""
        value = json.loads(self.data)
        assert isinstance(value, dict), f"no object: {self.data}"
        return value


class Parser:
    """Takes bytes as they come, however they are cut, and gives the events that are whole."""

    def __init__(self) -> None:
        self.comments: list[str] = []
        self._rest = b""

    def feed(self, data: bytes) -> list[Event]:
        """Take bytes; return the events that they complete."""
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        return [event for block in blocks if (event := self._event(block.decode())) is not None]

    def close(self) -> None:
        """Assert that nothing was left half said."""
        assert not self._rest, f"the stream ends within an event: {self._rest!r}"

    def _event(self, block: str) -> Event | None:
        assert block, "an empty event"
        assert "\r" not in block
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            if line.startswith(":"):
                self.comments.append(line[1:].strip())
                continue
            name, colon, value = line.partition(": ")
            assert colon, f"a line without a field: {line!r}"
            assert name in {"data", "event", "id"}, f"an unknown field: {line!r}"
            assert name not in fields, f"{name} twice in one event"
            fields[name] = value
        if not fields:
            return None
        assert fields.get("data"), f"an event without data: {block!r}"
        seq = fields.get("id")
        assert seq is None or (seq.isascii() and seq.isdecimal()), f"an id that is no row's number: {seq}"
        return Event(data=fields["data"], kind=fields.get("event"), seq=None if seq is None else int(seq))


def parse(data: bytes) -> list[Event]:
    """Return the events of a whole stream."""
    parser = Parser()
    events = parser.feed(data)
    parser.close()
    return events
