"""What a client asks of the server by plain HTTP: is it there, is it ready, its models, its sessions."""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from models.errors import BadInput, BatonError

Json = dict[str, Any]
"""An object as the server sent it."""

_TIMEOUT_S = 30.0
_GLANCE_S = 5.0


class Unreachable(BatonError):
    """No server answers, or the connection broke."""

    code = "unreachable"
    retryable = True


class Refused(BatonError):
    """The server said no; code, message and field are its own.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, status: int, body: Any) -> None:
        error = body.get("error") if isinstance(body, dict) else None
        error = error if isinstance(error, dict) else {}
        message = error.get("message") or f"The server answered with status {status}."
        if status == 401:
            message += " Show one with --key or BATON_KEY."
        super().__init__(message, code=error.get("code") or "refused", field=error.get("param"))
        self.status = status


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, as `http://host:port`, without a slash at the end."""

    url: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what the user gave; the `/v1` that other clients want may be there.

        Raises:
            BadInput: it is no address.
        """
        parts = urlsplit(text.strip())
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise BadInput(f"{text!r} is not an address. Give one like http://127.0.0.1:8000.", field="url")
        try:
            _ = parts.port
        except ValueError:
            raise BadInput(f"The port of {text!r} is not a number below 65536.", field="url") from None
        return cls(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}")

    @property
    def host(self) -> str:
        """The name or number of the machine."""
        return urlsplit(self.url).hostname or ""

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def port(self) -> int:
        """The port, named or implied."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def websocket(self) -> str:
        """Where the realtime websocket is."""
        return "ws" + self.url.removeprefix("http") + "/v1/realtime"


class Api:
    """The server's HTTP surface. Every method raises `Unreachable` or `Refused`."""

    def __init__(self, address: Address, key: str | None) -> None:
        """Prepare to talk to `address`, showing `key`; nothing is sent yet."""
        self.headers: Mapping[str, str] = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx.AsyncClient(
            base_url=address.url,
            headers=self.headers,
            timeout=_TIMEOUT_S,
            # The environment's proxy is not for this machine.
            trust_env=not address.is_loopback,
        )
        self.address = address

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def alive(self) -> bool:
        """Return whether a Baton answers; false if something else does."""
        response = await self._send("GET", "/healthz", timeout=_GLANCE_S)
        return response.status_code == 200 and _json(response) == {"status": "ok"}

    async def readiness(self) -> Json:
        """Return how far the models are."""
        response = await self._send("GET", "/readyz")
        body = _json(response)
        if response.status_code not in {200, 503} or not isinstance(body, dict) or "models" not in body:
            raise Refused(response.status_code, body)
        return body

    async def models(self) -> list[Json]:
        """Return the models that answer, and the other names they have."""
        models: list[Json] = (await self._call("GET", "/v1/models"))["data"]
        others = {model["id"] for model in models if model["baton"].get("port", "generate") != "generate"}
        return [model for model in models if not {model["id"], model["baton"].get("alias_of")} & others]

    async def sessions(self, limit: int) -> list[Json]:
        """Return the newest sessions, newest first."""
        sessions: list[Json] = (await self._call("GET", "/v1/sessions", params={"limit": limit}))["data"]
        return sessions

    async def session(self, session_id: str) -> Json:
        """Return a session."""
        return await self._call("GET", _path(session_id))

    async def change(self, session_id: str, **changes: str | None) -> Json:
        """Change a session's `title`, `instructions` or `model`; None takes one away."""
        return await self._call("PATCH", _path(session_id), json=changes)

    async def export(self, session_id: str, form: str) -> str:
        """Return a session as a file's text; `form` is `json` or `markdown`."""
        response = await self._send("GET", f"{_path(session_id)}/export", params={"format": form})
        if response.is_error:
            raise Refused(response.status_code, _json(response))
        return response.text

    async def _call(self, method: str, path: str, **options: Any) -> Json:
        response = await self._send(method, path, **options)
        body = _json(response)
        if response.is_error or not isinstance(body, dict):
            raise Refused(response.status_code, body)
        return body

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return await self._http.request(method, path, **options)
        except httpx.HTTPError as exc:
            raise Unreachable(f"{self.address.url} does not answer: {str(exc) or type(exc).__name__}.") from exc


def _path(session_id: str) -> str:
    # The id is what somebody typed.
    return f"/v1/sessions/{quote(session_id, safe='')}"


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return {}
