"""What every request passes first, before anybody asks who is calling: how an address may be written, HEAD, other origins.

- An address is the same with and without slashes at its end: no redirect, which would lose a POST's body.
- HEAD is answered as GET would be, without the body (RFC 9110, section 9.3.2): here, so that no route can forget it.
- A browser asks before a page of another origin may send a key (Fetch standard, section 3.3): that is answered without
  one, for the origins that the operator named.
"""

from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS: Final = ("GET", "HEAD", "POST", "PATCH", "DELETE")

_TOLD: Final = ("retry-after", "x-should-retry")
"""Headers of answers that a page's client goes by."""

_LEFT_ALONE: Final = "/web/"
"""The folder whose slash is its name."""


class Front:
    """ASGI middleware before the gate."""

    def __init__(self, gate: ASGIApp, *, origins: Collection[str]) -> None:
        """Take what is behind it, and the origins that browsers may call from."""
        self.gate = gate
        self._origins = frozenset(origins)
        self._across: ASGIApp = CORSMiddleware(
            gate,
            allow_origins=self._origins,
            allow_methods=_METHODS,
            allow_headers=("*",),
            expose_headers=_TOLD,
            allow_private_network=True,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] not in {"http", "websocket"}:
            await self.gate(scope, receive, send)
            return
        scope = {**scope, "path": _plain(scope["path"])}
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope["method"] = "GET"
            send = _Head(send)
        origin = Headers(scope=scope).get("origin")
        await (self._across if origin in self._origins else self.gate)(scope, receive, send)


class _Head:
    """Sends of an answer its head only. What would go on then ends, as if the client had gone."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._is_answered = False

    async def __call__(self, message: Message) -> None:
        if not self._is_answered:
            self._is_answered = True
            await self._send(message)
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _plain(path: str) -> str:
    return path if path.startswith(_LEFT_ALONE) else path.rstrip("/") or "/"
