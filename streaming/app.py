"""The application: what is served where. The conductor is given; its owner closes it."""

import asyncio
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from models.errors import BatonError, Internal
from orchestrator.build import Conductor
from streaming.auth import Authenticator, Caller, KeyGate
from streaming.edge.front import Front
from streaming.edge.hints import hint
from streaming.limits import RateLimits, SurfaceLimits
from streaming.metrics import UNKNOWN, SurfaceMeters
from streaming.realtime.follow import follow_routes
from streaming.realtime.socket import RealtimeEndpoint
from streaming.rest.access import access_routes
from streaming.rest.chat import chat_routes
from streaming.rest.embeddings import embedding_routes
from streaming.rest.models import model_routes
from streaming.rest.operations import operation_routes
from streaming.rest.session_edits import session_edit_routes
from streaming.rest.sessions import session_routes
from streaming.rest.texts import text_routes
from streaming.rest.traces import trace_routes
from streaming.wire.errors import error_response, http_error_response, invalid_request, told

_WEB = Path(__file__).parent / "web"

# Ask each time whether it has changed: after an upgrade, the page's modules have to belong together.
_FRESH = {"cache-control": "no-cache", "x-content-type-options": "nosniff"}

# What a page can only be told by a header; the rest of its policy is in index.html.
_SHELL = {**_FRESH, "content-security-policy": "frame-ancestors 'none'", "referrer-policy": "no-referrer"}


class _FreshFiles(StaticFiles):
    """Static files that a browser asks after before it uses them again."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_FRESH)
        return response


async def create_app(conductor: Conductor, limits: SurfaceLimits, *, loopback: bool) -> Front:
    """Build the application.

    Args:
        conductor: what it serves.
        limits: its bounds.
        loopback: whether only this machine can reach it; then, while no key exists, none is asked for.
    """
    secret = await asyncio.to_thread(conductor.home.secret)
    authenticator = Authenticator(conductor.database, conductor.clock, secret, loopback=loopback)
    meters = SurfaceMeters(conductor.registry)
    rates = RateLimits(conductor.clock)
    realtime = RealtimeEndpoint(conductor, limits, authenticator, rates, meters)
    app = FastAPI(
        title="Baton", docs_url=None, redoc_url=None, redirect_slashes=False, max_body_size=limits.message_bytes
    )

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        """Serve the page's shell."""
        return FileResponse(_WEB / "index.html", headers=_SHELL)

    @app.websocket("/v1/realtime")
    async def serve_realtime(websocket: WebSocket) -> None:
        """Serve a realtime connection."""
        await realtime.serve(websocket)

    _handle_errors(app, meters)
    app.include_router(operation_routes(conductor))
    app.include_router(access_routes(authenticator))
    app.include_router(chat_routes(conductor))
    app.include_router(text_routes(conductor))
    app.include_router(embedding_routes(conductor))
    app.include_router(model_routes(conductor))
    app.include_router(session_routes(conductor))
    app.include_router(session_edit_routes(conductor))
    app.include_router(follow_routes(conductor, limits, authenticator))
    app.include_router(trace_routes(conductor))
    app.mount("/web", _FreshFiles(directory=_WEB), name="web")
    origins = conductor.settings.allowed_origins
    gate = KeyGate(app, authenticator=authenticator, rates=rates, limits=limits, meters=meters, origins=origins)
    return Front(gate, origins=origins)


def _handle_errors(app: FastAPI, meters: SurfaceMeters) -> None:
    """Have every error answered in OpenAI's shape, and counted."""

    def count(request: Request, code: str) -> None:
        caller: Caller | None = getattr(request.state, "caller", None)
        meters.errors.labels(UNKNOWN if caller is None else caller.tenant, code).inc()

    @app.exception_handler(BatonError)
    async def on_error(request: Request, error: BatonError) -> Response:
        count(request, told(error).code)
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        return await on_error(request, invalid_request(error))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        count(request, HTTPStatus(error.status_code).name.lower())
        message, headers = f"{error.detail}.", error.headers
        if error.status_code == HTTPStatus.NOT_FOUND and not request.url.path.startswith("/web/"):
            message = hint(request.url.path)
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and (taken := _methods(app, request.scope)):
            # The framework names those of one route only, of all that share the address.
            message = f"{request.method} is not taken at {request.url.path}. Use {' or '.join(taken)}."
            headers = {"allow": ", ".join(("HEAD", *taken) if "GET" in taken else taken)}
        return http_error_response(error.status_code, message, headers)

    @app.exception_handler(Exception)
    async def on_defect(request: Request, _error: Exception) -> Response:
        # Starlette raises it again behind this answer, and uvicorn logs it.
        return await on_error(request, Internal("This request failed on our side. The server's log has the cause."))


def _methods(app: FastAPI, scope: Scope) -> list[str]:
    """Return the methods that an address takes."""
    return [
        method
        for method in ("GET", "POST", "PATCH", "DELETE")
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in app.routes)
    ]
