"""The routes of REST: what they are sent has to be JSON that every parser takes, and what does not fit is named."""

import codecs
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError

from models.errors import BadInput
from streaming.wire.errors import invalid_request

_JSON: TypeAdapter[Any] = TypeAdapter(Any)


class _RestRequest(Request):
    async def json(self) -> Any:
        """Return the body. Python's own parser would let half a surrogate pair through, which no text can be sent as."""
        try:
            return _JSON.validate_json((await self.body()).removeprefix(codecs.BOM_UTF8))  # as RFC 8259, 8.1, allows
        except ValidationError as exc:
            why = str(exc.errors(include_url=False)[0].get("ctx", {}).get("error", "it is no JSON"))
            if "surrogate" in why or "hex escape" in why:
                why += " (an escape of half a surrogate pair is no character)"
            raise json.JSONDecodeError(why, "", 0) from exc  # what FastAPI makes its own error of


class RestRoute(APIRoute):
    """FastAPI's, stricter."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what handles a request of this route."""
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            try:
                return await handle(_RestRequest(request.scope, request.receive))
            except RequestValidationError as exc:
                if not _is_json(request) and isinstance(exc.body, bytes):  # FastAPI parses nothing else
                    raise BadInput(
                        "The body is read only with the header 'content-type: application/json'.", field="content-type"
                    ) from exc
                raise invalid_request(exc) from exc

        return strictly


def _is_json(request: Request) -> bool:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))
