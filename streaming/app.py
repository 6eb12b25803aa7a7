"""The application: what is served where. The conductor is given; its owner closes it."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from models.errors import BadInput, BatonError
from orchestrator.build import Conductor
from streaming.auth import COOKIE, COOKIE_AGE_S, Authenticator, Caller, KeyGate
from streaming.errors import error_response, http_error_response
from streaming.limits import RateLimits, SurfaceLimits
from streaming.metrics import SurfaceMeters, render
from streaming.realtime.socket import RealtimeEndpoint

_WEB = Path(__file__).parent / "web"

# Ask each time whether it has changed: after an upgrade, the page's modules have to belong together.
_FRESH = {"cache-control": "no-cache"}


class _FreshFiles(StaticFiles):
    """Static files that a browser asks after before it uses them again."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_FRESH)
        return response


class Login(BaseModel):
    """A key, to be exchanged for a cookie."""

    key: Annotated[str, Field(min_length=1, max_length=256)]


async def create_app(conductor: Conductor, limits: SurfaceLimits, *, loopback: bool) -> ASGIApp:
    """Build the application.

    Args:
        conductor: what it serves.
        limits: its bounds.
        loopback: whether only this machine can reach it; then, while no key exists, none is asked for.
    """
    secret = await asyncio.to_thread(conductor.home.secret)
    authenticator = Authenticator(conductor.database, secret, loopback=loopback)
    rates = RateLimits(conductor.clock)
    realtime = RealtimeEndpoint(conductor, limits, authenticator, rates, SurfaceMeters(conductor.registry))
    app = FastAPI(title="Baton", docs_url=None, redoc_url=None, max_body_size=limits.message_bytes)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> FileResponse:
        """Serve the page's shell."""
        return FileResponse(_WEB / "index.html", headers=_FRESH)

    @app.api_route("/healthz", methods=["GET", "HEAD"])
    async def healthz() -> dict[str, str]:
        """Say that the process is alive."""
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Serve what the caller's tenant may see, in Prometheus' text format."""
        caller: Caller = request.state.caller
        return Response(render(conductor.registry, caller.tenant), media_type="text/plain; version=0.0.4")

    @app.post("/v1/login", status_code=204)
    async def login(body: Login, request: Request) -> Response:
        """Exchange a key for a cookie that scripts cannot read."""
        response = Response(status_code=204)
        response.set_cookie(
            COOKIE,
            await authenticator.login(body.key),
            max_age=COOKIE_AGE_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    @app.post("/v1/logout", status_code=204)
    async def logout() -> Response:
        """Drop the cookie."""
        response = Response(status_code=204)
        response.delete_cookie(COOKIE)
        return response

    @app.websocket("/v1/realtime")
    async def serve_realtime(websocket: WebSocket) -> None:
        """Serve a realtime connection."""
        await realtime.serve(websocket)

    @app.exception_handler(BatonError)
    async def on_error(_request: Request, error: BatonError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_request: Request, error: RequestValidationError) -> Response:
        first: dict[str, Any] = error.errors()[0]
        field = ".".join(step for step in first["loc"][1:] if isinstance(step, str))
        message = f"Invalid '{field}': {first['msg']}." if field else "The body is not the JSON object it has to be."
        return error_response(BadInput(message, field=field or None))

    @app.exception_handler(HTTPException)
    async def on_http(_request: Request, error: HTTPException) -> Response:
        return http_error_response(error.status_code, str(error.detail), error.headers)

    app.mount("/web", _FreshFiles(directory=_WEB), name="web")
    return KeyGate(app, authenticator=authenticator, rates=rates, limits=limits)
