"""What a client is told of an error: one table of status, type and code, for REST, event streams and the websocket.

The shape is OpenAI's, and so are the words where its clients look for them: `type` says whose fault it is, `x-should-retry`
and `Retry-After` whether and when the official clients ask again.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, assert_never, cast

from fastapi.exceptions import RequestValidationError
from pydantic_core import ErrorDetails
from starlette.responses import JSONResponse

from models.errors import BadInput, BatonError, Conflict, ErrorKind, Internal, Unavailable
from orchestrator.events import TurnEnded
from streaming.wire.complaints import complaint

ErrorType = Literal["invalid_request_error", "rate_limit_error", "server_error"]

STATUS: Mapping[ErrorKind, int] = {
    "bad_input": 400,
    "limit_exceeded": 400,
    "unsupported": 400,
    "unauthorized": 401,
    "not_found": 404,
    "conflict": 409,
    "internal": 500,
    "overloaded": 503,
    "unavailable": 503,
    "worker_died": 503,
    "fetch_failed": 503,
    "deadline_exceeded": 504,
}
"""The status of each class of error."""

STATUS_BY_CODE: Mapping[str, int] = {
    "body_too_large": 413,
    "foreign_origin": 403,
    "form_not_held": 422,
    "storage_full": 507,
    "headers_too_large": 431,
    "rate_limited": 429,
    "too_many_connections": 429,
    "too_many_requests": 429,
    "too_many_sessions": 429,
    "too_many_turns": 429,
    "upstream_rate_limited": 429,
    "upstream_refused": 502,
    "upstream_unavailable": 502,
    "uri_too_long": 414,
}
"""The codes whose status is not that of their class."""

WIRE_CODES: Mapping[str, str] = {
    "turn_active": "conversation_already_has_active_response",
    "turn_not_active": "response_cancel_not_active",
}
"""Our codes for which OpenAI's API has names of its own."""

OURS_TO_END: Mapping[str, str] = {
    "server_restarted": "The server was restarted before this answer was whole. Ask again.",
    "server_stopped": "The server was stopped before this answer was whole. Ask again.",
    "storage_failed": "The server could not store this answer. Its log says why.",
}
"""Why a turn was cut off, where that was nobody's wish."""

_RETRY_AFTER_S = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An error as a client is told it. `status` is only sent where nothing was sent before."""

    status: int
    type: ErrorType
    code: str
    message: str
    param: str | None
    headers: Mapping[str, str]

    @property
    def body(self) -> dict[str, Any]:
        """The body of the response, or the data of the event."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def told(error: BatonError) -> Told:
    """Return what a client is told of an error, on whatever surface."""
    status = STATUS_BY_CODE.get(error.code, STATUS[error.kind])
    headers = {"x-should-retry": "true" if error.retryable else "false"}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status in {429, 503}:
        headers["retry-after"] = str(max(_RETRY_AFTER_S, math.ceil(error.retry_after_s or 0)))
    return Told(
        status=status,
        type=_type(status),
        code=WIRE_CODES.get(error.code, error.code),
        message=error.message,
        param=error.field,
        headers=headers,
    )


def failure(ended: TurnEnded) -> BatonError | None:
    """Return what a turn ended in; None if it finished."""
    match ended.state:
        case "finished":
            return None
        case "interrupted":
            if (why := OURS_TO_END.get(ended.reason or "")) is not None:
                return Unavailable(why, code=ended.reason)
            return Conflict(f"The answer was interrupted ({ended.reason}).", code="interrupted")
        case "failed":
            return Internal("The turn failed. Try again.") if ended.fault is None else ended.fault.error()
        case _:
            assert_never(ended.state)


def error_response(error: BatonError) -> JSONResponse:
    """Return the response for an error."""
    return _response(told(error))


def error_body(error: BatonError) -> str:
    """Return the JSON text of an error, for where there is no status to send any more."""
    return json.dumps(told(error).body)


def invalid_request(error: RequestValidationError) -> BadInput:
    """Return the error for a request that does not fit, naming its field as the caller wrote it."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return BadInput(f"The body is not the JSON object it has to be: {first['ctx']['error']}.")
    place, *steps = first["loc"]
    errors = [{**one, "loc": one["loc"][1:]} for one in error.errors() if one["loc"][0] == place]
    # In a query, a header or a path each has a name of its own.
    sent = error.body if place == "body" else {str(steps[0]): first["input"]}
    return complaint(cast("list[ErrorDetails]", errors[:1] if place != "body" else errors), sent)


def http_error_response(status: int, message: str, headers: Mapping[str, str] | None) -> JSONResponse:
    """Return the response for what the framework refuses: no such path, a wrong method, too large a body."""
    return _response(
        Told(
            status=status,
            type=_type(status),
            code=HTTPStatus(status).name.lower(),
            message=message,
            param=None,
            headers={"x-should-retry": "false", **(headers or {})},
        )
    )


def _type(status: int) -> ErrorType:
    if status >= 500:
        return "server_error"
    return "rate_limit_error" if status == 429 else "invalid_request_error"


def _response(said: Told) -> JSONResponse:
    return JSONResponse(said.body, status_code=said.status, headers=said.headers)
