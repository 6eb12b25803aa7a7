"""`/healthz`, `/readyz` and `/metrics`: for whoever runs the server."""

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from orchestrator.build import Conductor
from streaming.auth import Caller
from streaming.metrics import render
from streaming.readiness import readiness


def operation_routes(conductor: Conductor) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Say that the process is alive."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> Response:
        """Say whether a first token is possible, and how far each model has come."""
        status, body = readiness(conductor.fleet, await conductor.database.trouble())
        return JSONResponse(body, status_code=status)

    @router.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Serve what the caller's tenant may see, in Prometheus' text format."""
        caller: Caller = request.state.caller
        return Response(render(conductor.registry, caller.tenant), media_type="text/plain; version=0.0.4")

    return router
