"""Who is calling: every request passes here, before any route.

`KeyGate` is wrapped around the whole application, so that a route cannot forget it; what is public is listed here and
nowhere else. A caller is known by a key (header, or websocket subprotocol), or by the page's cookie, which stands for a
key. Until a key is made, a server on loopback takes everybody on this machine for the tenant `local`.

A browser's requests are held to their origin: another site's page may neither open a websocket here nor post, unless its
origin is one that the operator allowed, and a host name that does not mean this machine is refused while no key protects it (DNS rebinding).
"""

from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from memory import keys
from memory.database import Database
from memory.keys import Key
from models.clock import Clock
from models.errors import BatonError, LimitExceeded, Unauthorized
from models.shares import Shares
from streaming.limits import RateLimits, SurfaceLimits
from streaming.metrics import UNKNOWN, SurfaceMeters
from streaming.wire.errors import error_response, told

PUBLIC: Final = frozenset({"/", "/healthz", "/v1/login"})
"""Paths that need no key: the page's shell, a bare sign of life, and the exchange of a key for a cookie."""

PUBLIC_PREFIX: Final = "/web/"
"""The page's static files."""

COOKIE: Final = "baton"
COOKIE_AGE_S: Final = 30 * 24 * 3600
SUBPROTOCOL: Final = "realtime"
KEY_SUBPROTOCOL: Final = "openai-insecure-api-key."

LOCAL_TENANT: Final = "local"

_BELIEVED_S: Final = 1.0
_KNOWN_KEYS: Final = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who is calling. `key` is None for the tenant `local` on loopback."""

    tenant: str
    key: Key | None


class Authenticator:
    """Turns what a caller shows into a `Caller`.

    What the database says of a key is believed for `_BELIEVED_S`, so that neither every request has to ask nor every
    token that is sent: a key that is revoked is worthless within that time.
    """

    def __init__(self, database: Database, clock: Clock, secret: bytes, *, loopback: bool) -> None:
        self._database = database
        self._clock = clock
        self._known: dict[bytes, tuple[float, Key | None]] = {}
        self._good_until_s: dict[str, float] = {}
        self._open_until_s = 0.0
        self._loopback = loopback
        self._signer = URLSafeTimedSerializer(secret, salt="cookie")

    async def caller(self, headers: Headers) -> Caller:
        """Return who sent these headers.

        Raises:
            Unauthorized: no key, a wrong one, or one that was revoked.
        """
        if self._loopback and await self._is_open():
            # Whatever key is shown: clients that cannot do without one send a placeholder.
            if not _means_this_machine(headers.get("host", "")):
                raise Unauthorized("This server answers to the names of this machine only. Use 127.0.0.1.")
            return Caller(tenant=LOCAL_TENANT, key=None)
        if (presented := _presented_key(headers)) is not None:
            return await self._by_key(presented)
        if (cookie := _cookie(headers)) is not None and (caller := await self._by_cookie(cookie)) is not None:
            return caller
        raise Unauthorized(
            "A key is needed, as 'Authorization: Bearer KEY'. The command 'baton keys create' makes one."
        )

    async def login(self, presented: str) -> str:
        """Return the cookie that stands for a key.

        Raises:
            Unauthorized: the key is not good.
        """
        caller = await self._by_key(presented)
        return str(self._signer.dumps(caller.key.key_id if caller.key else ""))

    async def check(self, caller: Caller) -> None:
        """Check that a caller who was let in earlier may still be here.

        Raises:
            Unauthorized: the key was revoked meanwhile, or the first one was made.
        """
        if caller.key is None:
            if not await self._is_open():
                raise Unauthorized("A key was made meanwhile: from now on one is needed.")
            return
        key_id, now_s = caller.key.key_id, self._clock.now_s()
        if now_s < self._good_until_s.get(key_id, 0.0):
            return
        if await self._database.read(lambda connection: keys.find_key(connection, key_id)) is None:
            raise Unauthorized("This key was revoked.")
        if len(self._good_until_s) >= _KNOWN_KEYS:
            self._good_until_s.clear()
        self._good_until_s[key_id] = now_s + _BELIEVED_S

    async def _is_open(self) -> bool:
        """Return whether no key was ever made."""
        now_s = self._clock.now_s()
        if now_s >= self._open_until_s and not await self._database.read(keys.any_key):
            self._open_until_s = now_s + _BELIEVED_S
        return now_s < self._open_until_s

    async def _verified(self, presented: str) -> Key | None:
        # Under its hash, so that no key lies about in memory, and so that looking it up takes as long for any.
        digest = sha256(presented.encode()).digest()
        now_s = self._clock.now_s()
        if (known := self._known.get(digest)) is not None and now_s < known[0]:
            return known[1]
        key = await self._database.read(lambda connection: keys.verify_key(connection, presented))
        if len(self._known) >= _KNOWN_KEYS:
            self._known.clear()
        self._known[digest] = (now_s + _BELIEVED_S, key)
        return key

    async def _by_key(self, presented: str) -> Caller:
        key = await self._verified(presented)
        if key is None:
            raise Unauthorized("This key is not good here. The command 'baton keys list' shows which are.")
        return Caller(tenant=key.tenant, key=key)

    async def _by_cookie(self, cookie: str) -> Caller | None:
        try:
            key_id = str(self._signer.loads(cookie, max_age=COOKIE_AGE_S))
        except BadSignature:
            return None
        key = await self._database.read(lambda connection: keys.find_key(connection, key_id))
        return None if key is None else Caller(tenant=key.tenant, key=key)


class KeyGate:
    """ASGI middleware: lets a request through to a route only with its caller in `scope["state"]["caller"]`."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        authenticator: Authenticator,
        rates: RateLimits,
        limits: SurfaceLimits,
        meters: SurfaceMeters,
        origins: Collection[str] = (),
    ) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._meters = meters
        self._body_bytes = limits.message_bytes
        self._served = Shares(
            limits.connections,
            limits.tenant_connections,
            what="connections are being answered",
            code="too_many_connections",
        )
        self._authenticator = authenticator
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        tenant = UNKNOWN
        try:
            _check_origin(scope, headers, self._origins)
            _check_length(headers, self._body_bytes)
            if not _is_public(scope["path"]):
                caller = await self._authenticator.caller(headers)
                tenant = caller.tenant
                self._rates.take(caller.key, reads=_only_reads(scope))
                scope.setdefault("state", {})["caller"] = caller
            self._served.enter(tenant)
        except BatonError as exc:
            self._meters.errors.labels(tenant, told(exc).code).inc()
            response = error_response(exc)
            if scope["type"] == "websocket":
                await WebSocket(scope, receive, send).send_denial_response(response)
            else:
                await response(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._served.leave(tenant)


def is_loopback(host: str) -> bool:
    """Return whether a server bound to `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _is_public(path: str) -> bool:
    return path in PUBLIC or path.startswith(PUBLIC_PREFIX)


def _only_reads(scope: Scope) -> bool:
    return scope["type"] == "http" and scope["method"] in {"GET", "HEAD"}


def _presented_key(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    for protocol in headers.get("sec-websocket-protocol", "").split(","):
        if protocol.strip().startswith(KEY_SUBPROTOCOL):
            return protocol.strip().removeprefix(KEY_SUBPROTOCOL)
    return None


def _cookie(headers: Headers) -> str | None:
    # Starlette's parser, which passes over what is not well formed: other applications of this host set cookies too.
    return cookie_parser(headers.get("cookie", "")).get(COOKIE)


def _check_origin(scope: Scope, headers: Headers, allowed: Collection[str]) -> None:
    origin = headers.get("origin")
    if origin is None or origin in allowed or _only_reads(scope):
        return
    if _netloc(origin) != headers.get("host"):
        raise Unauthorized(
            f"A page of {origin} may not call this server. Whoever runs it can allow that: BATON_ALLOWED_ORIGINS.",
            code="foreign_origin",
        )


def _check_length(headers: Headers, most_bytes: int) -> None:
    # Said by the client; what it does not say, or says wrongly, is counted where the body is read.
    length = headers.get("content-length", "0")
    if len(length) > 18 or not length.isdecimal() or int(length) > most_bytes:
        raise LimitExceeded(f"The body is over the limit of {most_bytes} bytes. Send less.", code="body_too_large")


def _means_this_machine(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and is_loopback(name)


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
