"""Any OpenAI-compatible server as a model: vLLM, SGLang, llama.cpp, Ollama, a hosted API.

```toml
[cards.mine]
engine = "openai"
options = { base_url = "http://localhost:8001/v1", model = "Qwen/Qwen3-4B", api_key_env = "MY_KEY" }
context_tokens = 32768
price = { input = 0.1, output = 0.4 }
```

It runs in the gateway's own process, since all it does is wait. A request holds a place and a connection of its own
until it ends, through the proxy that `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` say, except to this machine itself;
closing its iterator closes the connection, and so stops the server's work. What fails before the
first byte of an answer is tried again, with a delay that doubles, as long as the deadline allows it.
"""

import ipaddress
import json
import logging
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, ClassVar, Literal
from urllib.request import getproxies, proxy_bypass

import aiohttp
from pydantic import (
    ConfigDict,
    Field,
    HttpUrl,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from models.catalog import EngineSpec
from models.clock import Clock, sleep_until
from models.content import Delta
from models.errors import BadInput, BatonError, DeadlineExceeded, Internal, Overloaded
from models.language.openai.sse import EventReader
from models.language.openai.wire import (
    REFUSED,
    TIMEOUT,
    UNAVAILABLE,
    ChunkReader,
    Dialect,
    Fixed,
    body,
    explain,
    parse_error,
)
from models.language.priority_semaphore import PrioritySemaphore
from models.ports.context import EngineContext
from models.ports.generate import PROCESSORS, GenerateRequest, Priority, refuse_unsupported

_log = logging.getLogger(__name__)

_HONOURED = PROCESSORS | {
    "logprobs",
    "continues",
    "raw",
    "constraint.tools",
    "constraint.json_schema",
    "signals.logprobs",
    "signals.margins",
}

_RETRIED = frozenset({408, 429, 500, 502, 503, 504, 529})
_MAX_ERROR_BYTES = 16_384
# How long the end of a response is waited for once the answer is whole, so that its connection can be used again.
_LINGER_S = 0.1
# An event loop counts in milliseconds, and may wake somebody before the time.
_TICK_S = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIOptions:
    """Options of the engine.

    Attributes:
        base_url: up to and with `/v1`.
        model: the model's name at that server.
        api_key_env: the environment variable that holds the key; none is sent without it.
        headers: sent with each request.
        max_tokens_field: see `Dialect`.
        fixed: see `Dialect`.
        tenant_field: see `Dialect`.
        connect_timeout_s: for a connection to be made.
        read_timeout_s: for the first byte of an answer, and between any two.
        max_retries: of a request that failed before the first byte of its answer.
        retry_delay_s: before the first of them, half at random; it doubles each time.
        max_requests: that run at a time; each has a connection.
        max_waiting: that wait for one to end; the next is refused.
        wait_timeout_s: how long each waits at most.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    base_url: HttpUrl
    model: Annotated[str, Field(min_length=1)]
    api_key_env: str | None = None
    headers: Mapping[str, str] = Field(default_factory=dict)
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    fixed: frozenset[Fixed] = frozenset()
    tenant_field: str | None = None
    connect_timeout_s: PositiveFloat = 5.0
    read_timeout_s: PositiveFloat = 60.0
    max_retries: NonNegativeInt = 3
    retry_delay_s: PositiveFloat = 0.25
    max_requests: PositiveInt = 256
    max_waiting: PositiveInt = 1024
    wait_timeout_s: PositiveFloat = 10.0


_OPTIONS = TypeAdapter(OpenAIOptions)


def build(spec: EngineSpec, context: EngineContext) -> "OpenAIEngine":
    """Build the engine; its options have the fields of `OpenAIOptions`.

    Raises:
        BadInput: they do not fit, the key's variable is not set, or the environment's proxy is none of HTTP.
    """
    try:
        options = _OPTIONS.validate_json(spec.options)
    except ValidationError as exc:
        raise BadInput(f"The options of the openai engine do not fit: {exc}") from exc
    return OpenAIEngine(
        options, context.clock, headers=_headers(options), proxy=_proxy(options.base_url), chance=random.Random()
    )


def _headers(options: OpenAIOptions) -> dict[str, str]:
    if (
        options.base_url.username
        or options.base_url.password
        or any(name.lower() == "authorization" for name in options.headers)
    ):
        raise BadInput(
            "A key is not kept in the catalog. Name the variable that holds it: api_key_env.", field="headers"
        )
    headers = {"User-Agent": "baton", "Accept": "text/event-stream", "Accept-Encoding": "identity", **options.headers}
    if options.api_key_env is not None:
        key = os.environ.get(options.api_key_env, "").strip()
        if not key:
            raise BadInput(
                f"The environment variable {options.api_key_env}, which is to hold the key for {options.base_url}, is not "
                "set. Set it before Baton starts.",
                field="api_key_env",
            )
        headers["Authorization"] = f"Bearer {key}"
    return headers | {"Content-Type": "application/json"}


def _proxy(url: HttpUrl) -> str | None:
    """Return the proxy that the environment names for `url`.

    aiohttp would find it too (`trust_env`), but would take keys from a `.netrc` along with it.
    """
    host = (url.host or "").strip("[]")
    if _is_loopback(host) or proxy_bypass(host):
        return None
    proxy = getproxies().get(url.scheme)
    if proxy is not None and not proxy.startswith(("http://", "https://")):
        # Not shown: it may hold a password.
        raise BadInput(f"The proxy in {url.scheme}_proxy is none of HTTP. Write http://HOST:PORT there, or unset it.")
    return proxy


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@dataclass(frozen=True, slots=True)
class _Failure:
    """An attempt that got no answer; `after_s` is how long the server asks to be left alone."""

    error: BatonError
    cause: Exception | None = None
    retried: bool = False
    after_s: float = 0.0
    refused: str = ""


class OpenAIEngine:
    """One model at one server; see the module."""

    def __init__(
        self,
        options: OpenAIOptions,
        clock: Clock,
        *,
        headers: Mapping[str, str],
        proxy: str | None,
        chance: random.Random,
    ) -> None:
        """Take what `build` has checked; `chance` scatters retries."""
        self._options = options
        self._clock = clock
        self._headers = headers
        self._proxy = proxy
        self._chance = chance
        address, _, query = str(options.base_url).partition("?")
        self._urls = {
            raw: f"{address.rstrip('/')}/{path}" + (f"?{query}" if query else "")
            for raw, path in ((False, "chat/completions"), (True, "completions"))
        }
        self._server = f"The model server {options.base_url.host}:{options.base_url.port}"
        self._dialect = Dialect(
            model=options.model,
            max_tokens_field=options.max_tokens_field,
            fixed=options.fixed,
            tenant_field=options.tenant_field,
        )
        self._places = PrioritySemaphore(options.max_requests)
        self._waiting = 0
        self._knows_usage = True
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        """Yield the answer as the server streams it; usage, if it tells any, comes right before the end.

        Raises:
            Internal: the server cannot be reached, fails, or breaks its answer off; may be retried. Or it refuses our key.
            Overloaded: it has no room; `retry_after_s` is what it says.
            BadInput: it refuses the request.
            NotFound: it does not have the model.
            DeadlineExceeded: it says nothing for too long.
        """
        refuse_unsupported(request, _HONOURED, "openai")
        fields = body(request, self._dialect)
        answer, events = ChunkReader(request, self._server), EventReader()
        deadline_s = request.deadline
        async with self._place(request.priority, deadline_s), self._answered(fields, deadline_s) as content:
            while not answer.done and (received := await self._read(content, deadline_s)):
                for data in events.feed(received):
                    for delta in answer.take(data):
                        self._check_deadline(deadline_s)
                        yield delta
            await self._linger(content)
            for delta in answer.end():
                yield delta

    async def aclose(self) -> None:
        """Close all connections; what runs on them fails."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def _place(self, priority: Priority, deadline_s: float | None) -> AsyncIterator[None]:
        """Hold one of the places for the length of the block."""
        if self._waiting >= self._options.max_waiting:
            raise Overloaded(f"{self._waiting} requests wait for this model already. Try again later.")
        until_s = self._clock.now_s() + self._options.wait_timeout_s
        self._waiting += 1
        try:
            async with self._clock.timeout_at(until_s if deadline_s is None else min(until_s, deadline_s)):
                await self._places.take(priority)
        except TimeoutError as exc:
            self._check_deadline(deadline_s)
            raise Overloaded("This model has been busy for too long. Try again later.") from exc
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._places.give()

    @asynccontextmanager
    async def _answered(self, fields: dict[str, Any], deadline_s: float | None) -> AsyncIterator[aiohttp.StreamReader]:
        """Ask until there is an answer; the block reads it. Its connection is kept if it was read to its end."""
        response = await self._ask(fields, deadline_s)
        try:
            yield response.content
        finally:
            response.release()

    async def _ask(self, fields: dict[str, Any], deadline_s: float | None) -> aiohttp.ClientResponse:
        if not self._knows_usage:
            fields.pop("stream_options", None)
        attempt = 0
        while True:
            outcome = await self._post(fields, deadline_s)
            if isinstance(outcome, aiohttp.ClientResponse):
                return outcome
            if "stream_options" in outcome.refused and fields.pop("stream_options", None):
                self._knows_usage = False  # an older server, which does not know how to tell usage
                continue
            if not outcome.retried or attempt >= self._options.max_retries:
                raise outcome.error from outcome.cause
            backoff_s = self._options.retry_delay_s * 2**attempt * self._chance.uniform(0.5, 1)
            again_s = self._clock.now_s() + max(backoff_s, outcome.after_s)
            if again_s > self._last_s(deadline_s):
                raise outcome.error from outcome.cause
            await sleep_until(self._clock, again_s)
            attempt += 1

    async def _post(self, fields: dict[str, Any], deadline_s: float | None) -> "aiohttp.ClientResponse | _Failure":
        """Ask once."""
        try:
            async with self._clock.timeout_at(self._last_s(deadline_s)):
                response = await self._open().post(
                    self._urls["prompt" in fields], data=json.dumps(fields).encode(), allow_redirects=False
                )
                if response.status == 200 and response.content_type == "text/event-stream":
                    return response
                try:
                    return self._refusal(response, await _start(response.content), raw="prompt" in fields)
                finally:
                    response.close()
        except TimeoutError as exc:
            if isinstance(exc, aiohttp.ClientError):  # of the connection
                return self._unreachable(exc)
            self._check_deadline(deadline_s)
            return _Failure(self._silent(), exc)
        except aiohttp.ClientError as exc:
            return self._unreachable(exc)

    def _check_deadline(self, deadline_s: float | None) -> None:
        if deadline_s is not None and self._clock.now_s() >= deadline_s - _TICK_S:
            raise DeadlineExceeded("The deadline passed before the answer was whole.")

    def _check_open(self) -> None:
        if self._closed:
            raise Overloaded("The server is stopping. Try again in a moment.", code="server_stopping")

    def _open(self) -> aiohttp.ClientSession:
        self._check_open()
        if self._session is None:  # made here, because it belongs to the running event loop
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # the places are the limit
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                proxy=self._proxy,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._options.connect_timeout_s),
            )
        return self._session

    async def _read(self, content: aiohttp.StreamReader, deadline_s: float | None) -> bytes:
        """Return what has arrived of an answer, as soon as anything has; nothing at its end."""
        self._check_open()
        try:
            async with self._clock.timeout_at(self._last_s(deadline_s)):
                return await content.readany()
        except TimeoutError as exc:
            self._check_deadline(deadline_s)
            raise self._silent() from exc
        except aiohttp.ClientError as exc:
            _log.warning("%s broke an answer off: %r", self._server, exc)
            raise Internal(f"{self._server} broke its answer off. Try again.", code=UNAVAILABLE) from exc

    async def _linger(self, content: aiohttp.StreamReader) -> None:
        """Read what is left behind a whole answer."""
        with suppress(TimeoutError, aiohttp.ClientError):
            async with self._clock.timeout_at(self._clock.now_s() + _LINGER_S):
                while not content.at_eof():
                    await content.readany()

    def _last_s(self, deadline_s: float | None) -> float:
        """Return when waiting for the server ends."""
        patience_s = self._clock.now_s() + self._options.read_timeout_s
        return patience_s if deadline_s is None else min(patience_s, deadline_s)

    def _silent(self) -> DeadlineExceeded:
        patience_s = self._options.read_timeout_s
        return DeadlineExceeded(f"{self._server} has not said anything for {patience_s:g} s. Try again.", code=TIMEOUT)

    def _unreachable(self, exc: Exception) -> _Failure:
        _log.warning("%s cannot be reached: %r", self._server, exc)
        message = f"{self._server} cannot be reached. Try again later."
        if isinstance(exc, TimeoutError):
            return _Failure(DeadlineExceeded(message, code=TIMEOUT), exc, retried=True)
        return _Failure(Internal(message, code=UNAVAILABLE), exc, retried=True)

    def _refusal(self, response: aiohttp.ClientResponse, content: bytes, *, raw: bool) -> _Failure:
        status = response.status
        if status < 400:
            _log.warning("%s answers %d, %s", self._server, status, response.content_type)
            return _Failure(
                Internal(
                    f"{self._server} does not answer with a stream of events. Whoever runs Baton has to look at "
                    "base_url in the catalog.",
                    code=UNAVAILABLE,
                    retryable=False,
                )
            )
        told = parse_error(content)
        error = explain(status, told, self._server, raw=raw)
        after_s = self._retry_after_s(response.headers.get("Retry-After"))
        error.retry_after_s = after_s or None
        # What is said of a key may hold part of it.
        _log.warning("%s refuses a request (%d): %s", self._server, status, "" if status in (401, 403) else told)
        return _Failure(
            error,
            retried=status in _RETRIED and error.code != REFUSED,
            after_s=after_s,
            refused=str(told) if status in (400, 422) else "",
        )

    def _retry_after_s(self, value: str | None) -> float:
        """Return the seconds that a `Retry-After` asks for, however it does (RFC 9110, section 10.2.3)."""
        if value is None:
            return 0.0
        if value.strip().isdecimal():
            return float(value)
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - self._clock.wall_s())


async def _start(content: aiohttp.StreamReader) -> bytes:
    """Return the first bytes of a response that refuses."""
    start = b""
    while len(start) < _MAX_ERROR_BYTES and (received := await content.readany()):
        start += received
    return start[:_MAX_ERROR_BYTES]
