"""Errors as HTTP responses, in OpenAI's shape."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.responses import JSONResponse

from models.errors import (
    BadInput,
    BatonError,
    Conflict,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    Unauthorized,
    Unavailable,
)

_STATUS: tuple[tuple[type[BatonError], int], ...] = (
    (BadInput, 400),
    (Unauthorized, 401),
    (NotFound, 404),
    (Conflict, 409),
    (Overloaded, 503),
    (Unavailable, 503),
    (DeadlineExceeded, 504),
)

_STATUS_BY_CODE = {
    "body_too_large": 413,
    "foreign_origin": 403,
    "rate_limited": 429,
    "too_many_turns": 429,
    "upstream_refused": 502,
    "upstream_unavailable": 502,
}


def status_of(error: BatonError) -> int:
    """Return the HTTP status for an error."""
    if error.code in _STATUS_BY_CODE:
        return _STATUS_BY_CODE[error.code]
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def error_response(error: BatonError) -> JSONResponse:
    """Return the response for an error."""
    status = status_of(error)
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    if isinstance(error, Overloaded | Unavailable):
        headers["retry-after"] = "1"
    return _response(status, error.message, error.field, error.code, headers)


def error_body(error: BatonError) -> str:
    """Return the JSON text of an error, for where there is no status to send any more."""
    return json.dumps(_body(status_of(error), error.message, error.field, error.code))


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
    return _response(status, f"{message}.", None, HTTPStatus(status).name.lower(), headers)


def _response(
    status: int, message: str, param: str | None, code: str, headers: Mapping[str, str] | None
) -> JSONResponse:
    return JSONResponse(_body(status, message, param, code), status_code=status, headers=headers)


def _body(status: int, message: str, param: str | None, code: str) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


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
