"""What a surface bounds before it asks anything of the conductor."""

from dataclasses import dataclass
from typing import Final

from memory.keys import Key
from models.clock import Clock
from models.errors import Overloaded


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceLimits:
    """Bounds of the surfaces.

    Attributes:
        message_bytes: of one websocket message, or of a request's body; a longer message closes the connection (1009),
            a longer body is refused (413).
        send_timeout_s: how long a client may leave unread what it is sent; then the connection is dropped.
        connections: open at a time, of every kind; see `connections.Connections`.
        request_s: how long a request may take to arrive, from its first byte, or from the connection, to its last; also
            how long TLS and a websocket's handshake may take.
        idle_s: how long a connection may be asked nothing after an answer.
        line_bytes: of a request's address, and of each header of a websocket's handshake; longer is refused (414, 431).
        headers: of a request; more are refused (431).
        header_bytes: of all headers of a request together, and of what frames its body; more is refused (431).
        sockets: websockets open at a time.
        streams: sessions followed by server-sent events at a time.
        tenant_connections: of the connections, those that are being answered to one tenant; those of whom nobody knows
            the key count as a tenant's. This and what follows is by default `shares.share_of` all.
        tenant_sockets: of the websockets, one tenant's.
        tenant_streams: of the sessions followed, one tenant's.
        drain_s: how long the server waits for connections to end once it is told to stop.
    """

    message_bytes: int = 1_048_576
    send_timeout_s: float = 30.0
    connections: int = 4_000
    request_s: float = 30.0
    idle_s: float = 15.0
    line_bytes: int = 8_000
    headers: int = 100
    header_bytes: int = 65_536
    sockets: int = 1_000
    streams: int = 1_000
    tenant_connections: int | None = None
    tenant_sockets: int | None = None
    tenant_streams: int | None = None
    drain_s: float = 5.0


READS_PER_MINUTE: Final = 600
"""What a key with a rate may read, beside what its rate counts: enough for any poll, too little for a flood."""


class RateLimits:
    """Token buckets for each key with a rate: full at first, refilled at the rate, a minute's worth deep.

    What has the server work is counted at the key's rate; what only reads has a bucket of its own, so that asking after
    the server's state never uses up what the key is for.

    Ours rather than a library's because its time is the injected clock, and the libraries keep threads or tasks.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, bool], tuple[float, float]] = {}

    def take(self, key: Key | None, *, reads: bool = False) -> None:
        """Count one request of `key`.

        Args:
            key: whose; one without a rate is not counted.
            reads: whether it only reads.

        Raises:
            Overloaded: the key has had its requests of this minute.
        """
        if key is None or key.requests_per_minute is None:
            return
        bucket, rate = (key.key_id, reads), READS_PER_MINUTE if reads else key.requests_per_minute
        now_s = self._clock.now_s()
        tokens, then_s = self._buckets.get(bucket, (float(rate), now_s))
        tokens = min(float(rate), tokens + (now_s - then_s) * rate / 60)
        if tokens < 1:
            what = "requests that read" if reads else "requests"
            raise Overloaded(
                f"This key may make {rate} {what} a minute. Wait a moment.",
                code="rate_limited",
                retry_after_s=(1 - tokens) * 60 / rate,
            )
        self._buckets[bucket] = (tokens - 1, now_s)
