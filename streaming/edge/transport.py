"""How uvicorn speaks to clients that do not do their part: bounds in bytes, number and time where it has none.

Every state of a connection has a deadline and a bound, and all of them hold before anybody knows who is calling:

| state | how long | how much |
| --- | --- | --- |
| TLS is agreed on | `request_s` | |
| nothing has come yet, or the rest of a request has not | `request_s`, counted from its beginning | the head: `line_bytes`, `headers`, `header_bytes`; what frames a body in chunks: `header_bytes`, and in proportion to the body; the body: see `auth` |
| an upgrade is decided on | `request_s` | no body |
| a request is answered | its own deadline; further requests wait meanwhile | `_PIPELINED` of them |
| the client does not read | `send_timeout_s` | the transport's buffer |
| nothing is asked any more | `idle_s` | |
| it was refused | `_LINGER_S` | what still comes is dropped unread |
"""

import asyncio
import json
import ssl
from http import HTTPStatus
from typing import Any

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from models.errors import BadInput, BatonError, LimitExceeded, Overloaded
from streaming.edge.connections import Connections, Deadline
from streaming.limits import SurfaceLimits
from streaming.wire.errors import told

_LINGER_S = 2.0
"""How long a refused client is listened to: whoever closes at once on one that still sends takes the answer from it."""

_PIPELINED = 8
"""How many requests may wait on one connection behind the one that is being answered."""

_FRAMING = 8
"""Bytes that may frame a byte of the body: one that comes alone in its chunk takes five."""


def server_config(
    app: ASGIApp, host: str, port: int, limits: SurfaceLimits, *, tls: ssl.SSLContext | None = None
) -> "ServerConfig":
    """Return how uvicorn serves `app`, over `tls` if it is given."""
    return ServerConfig(
        app,
        limits=limits,
        tls=tls,
        host=host,
        port=port,
        lifespan="off",
        log_level="warning",
        http=_HttpProtocol if tls is None else _TlsDoor,
        ws=_WebSocketProtocol,
        ws_max_size=limits.message_bytes,
        ws_per_message_deflate=False,
        timeout_keep_alive=limits.idle_s,
        timeout_graceful_shutdown=round(limits.drain_s),
    )


class ServerConfig(uvicorn.Config):
    """Uvicorn's, with our bounds, and the connections that are open."""

    def __init__(self, app: ASGIApp, *, limits: SurfaceLimits, tls: ssl.SSLContext | None, **options: Any) -> None:
        super().__init__(app, **options)
        self.limits = limits
        self.tls = tls
        self.open = Connections(limits.connections)


class _Refused(Exception):
    """Stops the parser: what it reads is refused, for the reason that the protocol has noted."""


class _HttpProtocol(HttpToolsProtocol):
    """Uvicorn's, which waits for ever for nothing, and takes of a request only so much before it is known whose it is."""

    config: ServerConfig
    timeout_keep_alive: float  # type: ignore[assignment]  # uvicorn only hands it to the loop

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        limits = self.config.limits
        self._arrival = Deadline(limits.request_s, transport.abort)
        self._reading = Deadline(limits.send_timeout_s, transport.abort)
        self._answering: RequestResponseCycle | None = None
        self._is_whole = True  # whether the request that was begun last has arrived
        self._is_served = True  # whether it has been given to the application
        self._completed = 0
        self._in_head = False
        self._head_bytes = self._line_bytes = self._fed_bytes = self._body_bytes = 0
        self._refusal: BatonError | None = None
        self._is_deaf = False
        self._arrival.set()
        if not self._admitted():
            if not self.config.open.lingers(transport):
                transport.abort()
                return
            self._refuse(
                Overloaded(f"{limits.connections} connections are open, the most there may be. Try again later.")
            )

    def _admitted(self) -> bool:
        return self.config.open.admit(self.transport)

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        self._unset_keepalive_if_required()
        completed = self._completed
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._on_upgrade()
        except httptools.HttpParserError:
            self._refuse(self._refusal or BadInput("This is no request in HTTP/1.1."))
        else:
            self._weigh(len(data) if self._completed == completed else 0)

    def _weigh(self, fed_bytes: int) -> None:
        """Refuse what the parser takes and tells nobody of: a header without end, extensions of chunks, trailers.

        Args:
            fed_bytes: of the request that is arriving, for sure; what came along with the end of another is not.
        """
        self._fed_bytes += fed_bytes
        allowed = self.config.limits.header_bytes
        if self._in_head or self._is_whole:
            framing_bytes = self._fed_bytes
        else:
            framing_bytes = self._fed_bytes - self._head_bytes - self._body_bytes
            allowed += _FRAMING * self._body_bytes
        if self._is_whole and not self._is_served:
            self._refuse(BadInput("An upgrade takes no body."))
        elif framing_bytes > allowed:
            self._refuse(_too_large(self.config.limits))

    def _on_upgrade(self) -> None:
        if not self._should_upgrade():
            # Answered as if none had been asked for. The parser is of no use any more.
            self.cycle.keep_alive = False
            self._is_deaf = True
        elif self._answering is not None and not self._answering.response_complete:
            self._refuse(BadInput("An upgrade waits for the answer before it."))
        else:
            self.handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= _PIPELINED:
            self._stop(LimitExceeded(f"Over {_PIPELINED} requests wait on this connection. Wait for answers."))
        super().on_message_begin()
        self._is_whole = self._is_served = False
        self._in_head = True
        self._head_bytes = self._line_bytes = self._fed_bytes = self._body_bytes = 0
        self._attend(anew=True)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._line_bytes += len(url)
        if self._line_bytes > (most := self.config.limits.line_bytes):
            self._stop(
                LimitExceeded(f"The address is over the limit of {most} bytes. Send a body.", code="uri_too_long")
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        limits = self.config.limits
        if not self._in_head:
            return  # of a trailer; `_weigh` has its size
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > limits.header_bytes or len(self.headers) >= limits.headers:
            self._stop(_too_large(limits))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self.parser.should_upgrade() and self._should_upgrade():
            if any(
                name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
                for name, value in self.headers
            ):
                self._stop(BadInput("An upgrade takes no body."))
            if any(len(name) + len(value) + 4 > self.config.limits.line_bytes for name, value in self.headers):
                self._stop(_too_large(self.config.limits))
            super().on_headers_complete()
        else:
            super().on_headers_complete()
            self._is_served = True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_whole = True
        self._completed += 1
        self._fed_bytes = 0
        super().on_message_complete()
        self._attend()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._attend()

    def handle_websocket_upgrade(self) -> None:
        self._arrival.call_off()
        self._unset_keepalive_if_required()
        self._is_served = True
        self.config.open.works(self.transport)
        super().handle_websocket_upgrade()

    def _attend(self, *, anew: bool = False) -> None:
        """Have the deadline of what is arriving run, from now if it is `anew`; not while an answer keeps it waiting."""
        answering = self._answering
        if self._is_deaf or self.transport.is_closing():
            return
        if answering is not None and not answering.response_complete and not answering.more_body:
            self._arrival.call_off()
            self.config.open.works(self.transport)
            return
        self.config.open.waits(self.transport)
        if anew:
            self._arrival.set()
        else:
            self._arrival.keep()

    def _stop(self, error: BatonError) -> None:
        """Refuse, from within the parser."""
        self._refusal = error
        raise _Refused

    def _refuse(self, error: BatonError) -> None:
        """Answer that this is not taken, and listen no more. An answer that is on its way goes on to its end."""
        self._is_deaf = True
        self._arrival.call_off()
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        if (answering := self._answering) is not None and not answering.response_complete:
            if not answering.more_body:
                answering.keep_alive = False
                return
            answering.disconnected = True
            answering.message_event.set()
            if answering.response_started:
                self.transport.abort()
                return
        if answering is None or answering is not self.cycle or not (answering.response_complete and self._is_served):
            self.transport.write(_refusal(error))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.abort)

    def shutdown(self) -> None:
        if self._answering is not None:
            self._answering.keep_alive = False
        super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading.set()

    def resume_writing(self) -> None:
        self._reading.call_off()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrival.call_off()
        self._reading.call_off()
        self._unset_keepalive_if_required()
        self.config.open.forget(self.transport)
        # Uvicorn tells the request that came last; the one that is being answered may be another.
        if (answering := self._answering) is not None and not answering.response_complete:
            answering.disconnected = True
            answering.message_event.set()
        super().connection_lost(exc)


class _AdmittedHttpProtocol(_HttpProtocol):
    """Of a connection that was admitted before TLS was agreed on."""

    _is_made = False
    _early = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        self._is_made = True
        super().connection_made(transport)
        if self._early:
            super().data_received(self._early)

    def data_received(self, data: bytes) -> None:
        # With the end of the handshake a request may come in one packet, before whoever waits for that end is told of it.
        if self._is_made:
            super().data_received(data)
        else:
            self._early += data

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_made:  # not where TLS could not be agreed on
            super().connection_lost(exc)

    def _admitted(self) -> bool:
        return True


class _TlsDoor(asyncio.Protocol):
    """Agrees with a client on TLS, then hands it on. It is counted from its first moment, which asyncio's own is not."""

    def __init__(self, config: ServerConfig, **options: Any) -> None:
        self._config = config
        self._tasks: set[asyncio.Task[None]] = options["server_state"].tasks
        self._inner = _AdmittedHttpProtocol(config, **options)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a socket's
        self._transport = transport
        if not self._config.open.admit(transport):
            transport.abort()  # without TLS it cannot be told why
            return
        transport.pause_reading()
        task = asyncio.get_running_loop().create_task(self._agree(transport))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _agree(self, transport: asyncio.Transport) -> None:
        assert self._config.tls is not None
        try:
            over_tls = await asyncio.get_running_loop().start_tls(
                transport,
                self._inner,
                self._config.tls,
                server_side=True,
                ssl_handshake_timeout=self._config.limits.request_s,
            )
        except (OSError, EOFError, TimeoutError):  # it has gone, speaks something else, or takes too long
            over_tls = None
        if over_tls is None:
            self._config.open.forget(transport)
            transport.abort()
            return
        self._config.open.replace(transport, over_tls)
        self._inner.connection_made(over_tls)

    def connection_lost(self, exc: Exception | None) -> None:
        self._config.open.forget(self._transport)


class _WebSocketProtocol(WebSocketsSansIOProtocol):
    """Uvicorn's, which lets go of a client that does not read what it is sent, the last of it included."""

    config: ServerConfig

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._reading = Deadline(self.config.limits.send_timeout_s, transport.abort)
        self._deciding = Deadline(self.config.limits.request_s, transport.abort)
        self._deciding.set()

    def handle_parser_exception(self) -> None:
        if self.handshake_initiated:
            super().handle_parser_exception()
            return
        # Uvicorn would look for a close frame, which there is not before the handshake.
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()

    async def send(self, message: Any) -> None:  # uvicorn keeps its type to itself
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            # A refusal completes the handshake too; uvicorn would log it as a fault of the application.
            self.handshake_complete = True
        if self.handshake_complete:
            self._deciding.call_off()

    async def run_asgi(self) -> None:
        await super().run_asgi()
        # `close` waits for what is buffered to be sent, and a client that does not read would hold it for ever.
        self.loop.call_later(_LINGER_S, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading.set()

    def resume_writing(self) -> None:
        self._reading.call_off()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._reading.call_off()
        self._deciding.call_off()
        self.config.open.forget(self.transport)
        super().connection_lost(exc)


def _refusal(error: BatonError) -> bytes:
    """Return the response to an error, for where there is no application yet."""
    said = told(error)
    body = json.dumps(said.body)
    headers = {
        **said.headers,
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {said.status} {HTTPStatus(said.status).phrase}\r\n{head}\r\n{body}".encode()


def _too_large(limits: SurfaceLimits) -> LimitExceeded:
    return LimitExceeded(
        f"The headers are over the limit of {limits.headers} of {limits.line_bytes} bytes, {limits.header_bytes} together. "
        "Send fewer.",
        code="headers_too_large",
    )
