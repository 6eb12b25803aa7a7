"""What a client is told of an error: one table of status, type and code, for REST, event streams and the websocket.

The shape is OpenAI's, and so are the words where its clients look for them: `type` says whose fault it is, `x-should-retry`
and `Retry-After` whether and when the official clients ask again.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, assert_never

from fastapi.exceptions import RequestValidationError
from starlette.responses import JSONResponse

from models.errors import BadInput, BatonError, Conflict, ErrorKind, Internal, Unavailable
from orchestrator.events import TurnEnded

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
    # Of the complaints of a union's members, the one furthest in: that member is the one that was meant.
    path, worst = max(((_path(one, error.body), one) for one in error.errors()), key=lambda found: len(found[0]))
    field = ".".join(path)
    if not field:
        return BadInput("The body is not the JSON object it has to be.")
    if worst["type"] == "extra_forbidden":
        return BadInput(f"Unknown or unsupported parameter: '{field}'.", code="unknown_parameter", field=field)
    return BadInput(f"Invalid '{field}': {worst['msg']}.", field=field)


def http_error_response(status: int, message: str, headers: Mapping[str, str] | None) -> JSONResponse:
    """Return the response for what the framework refuses: no such path, a wrong method, too large a body."""
    return _response(
        Told(
            status=status,
            type=_type(status),
            code=HTTPStatus(status).name.lower(),
            message=f"{message}.",
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


def _path(complaint: Mapping[str, Any], body: Any) -> list[str]:
    """Return the steps to a field. Those that only name the member of a union are left out: nobody wrote them."""
    place, *steps = complaint["loc"]
    if place != "body":
        return [str(step) for step in steps]
    path = []
    for at, step in enumerate(steps):
        is_missing = complaint["type"] == "missing" and at == len(steps) - 1
        if isinstance(body, dict) and (step in body or is_missing):
            path.append(str(step))
            body = body.get(step)
        elif isinstance(body, list) and isinstance(step, int):
            path.append(str(step))
            body = body[step]
    return path
