"""An answer in one piece."""

from collections.abc import Awaitable
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from models.errors import BatonError
from streaming.wire.sse import while_connected


class Whole(Response):
    """Sends it once it is there; a client that goes stops it."""

    def __init__(self, answer: Awaitable[dict[str, Any]]) -> None:
        """Take what becomes the answer; it frees what it holds when it is cancelled."""
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        failure: BatonError | None = None
        async with while_connected(receive):
            try:
                await JSONResponse(await self._answer)(scope, receive, send)
            except BatonError as exc:
                failure = exc  # raised outside of the task group, which would wrap it
        if failure is not None:
            raise failure
