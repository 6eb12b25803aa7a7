"""One session's websocket, and how far its log has been told.

The link is not read while the user types: what others say in the session waits, in the socket's own bounded buffer. A
server that finds it unread for too long drops it, and the next question goes on from the last row, as after any loss.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from streaming.terminal.api import Address, Json, Refused, Unreachable

_MESSAGE_BYTES = 64 * 1024 * 1024
_CLOSE_S = 1.0


@dataclass(slots=True, kw_only=True)
class Bookmark:
    """Where in which session a client is.

    Attributes:
        session_id: the session, once it is known.
        seq: every row of its log up to this one has been told.
        kept: whether the session can be gone back to, which it can from its first row on.
    """

    session_id: str | None = None
    seq: int = 0
    kept: bool = False

    def take(self, event: Json) -> None:
        """Take an event of the server into account."""
        if event["type"] == "baton.session.attached":
            self.session_id = event["session_id"]
        elif event["type"] == "baton.sequence":
            # A turn that runs is told from its beginning, which may lie before rows that were told already.
            self.seq = max(self.seq, event["seq"])
            self.kept = True

    def reconnect(self) -> dict[str, str]:
        """Return what the next connection asks for; a session that was never kept is forgotten."""
        if not self.kept or self.session_id is None:
            self.session_id = None
            return {"baton": "events"}
        return {"baton": "events", "session": self.session_id, "after": str(self.seq)}


class Link:
    """A websocket to one session; whoever holds it opens it anew after `Unreachable`."""

    def __init__(self, address: Address, headers: Mapping[str, str], cursor: Bookmark) -> None:
        self.cursor = cursor
        self._address = address
        self._headers = headers
        self._socket: ClientConnection | None = None

    async def open(self) -> None:
        """Connect, where the cursor is.

        Raises:
            Unreachable: it may work later.
            Refused: it will not: the key, the session or the request is not good.
        """
        try:
            self._socket = await connect(
                f"{self._address.websocket}?{urlencode(self.cursor.reconnect())}",
                additional_headers=self._headers,
                max_size=_MESSAGE_BYTES,
                close_timeout=_CLOSE_S,
                proxy=None if self._address.is_loopback else True,
            )
        except InvalidStatus as exc:
            refused = Refused(exc.response.status_code, _parsed(exc.response.body))
            if refused.status >= 500:
                raise Unreachable(refused.message) from exc
            raise refused from exc
        except (OSError, InvalidHandshake, TimeoutError, EOFError) as exc:
            raise Unreachable(f"{self._address.url} does not answer: {str(exc) or type(exc).__name__}.") from exc

    async def send(self, events: tuple[Json, ...]) -> None:
        """Send events; a loss of the connection shows at the next `receive`."""
        try:
            for event in events:
                if self._socket is not None:
                    await self._socket.send(json.dumps(event))
        except ConnectionClosed:
            pass

    async def receive(self) -> Json:
        """Return the next event; cancelling loses none.

        Raises:
            Unreachable: the connection is lost.
        """
        if self._socket is None:
            raise Unreachable("There is no connection.")
        try:
            event: Json = json.loads(await self._socket.recv())
        except ConnectionClosed as exc:
            raise Unreachable("The connection was lost.") from exc
        self.cursor.take(event)
        return event

    async def aclose(self) -> None:
        """Close the connection; the session stays."""
        if self._socket is not None:
            await self._socket.close()


def _parsed(body: bytes | bytearray | None) -> object:
    try:
        return json.loads(body or b"")
    except ValueError:
        return None
