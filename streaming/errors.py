"""Errors as HTTP responses, in OpenAI's shape."""

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse

from models.errors import (
    BadInput,
    BatonError,
    Conflict,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    Unauthorized,
)

_STATUS: tuple[tuple[type[BatonError], int], ...] = (
    (BadInput, 400),
    (Unauthorized, 401),
    (NotFound, 404),
    (Conflict, 409),
    (Overloaded, 503),
    (DeadlineExceeded, 504),
)

_STATUS_BY_CODE = {"rate_limited": 429, "body_too_large": 413, "foreign_origin": 403}


def status_of(error: BatonError) -> int:
    """Return the HTTP status for an error."""
    if error.code in _STATUS_BY_CODE:
        return _STATUS_BY_CODE[error.code]
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def error_response(error: BatonError) -> JSONResponse:
    """Return the response for an error."""
    status = status_of(error)
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    if isinstance(error, Overloaded):
        headers["retry-after"] = "1"
    return _response(status, error.message, error.field, error.code, headers)


def http_error_response(status: int, message: str, headers: Mapping[str, str] | None) -> JSONResponse:
    """Return the response for what the framework refuses: no such path, a wrong method, too large a body."""
    return _response(status, f"{message}.", None, HTTPStatus(status).name.lower(), headers)


def _response(
    status: int, message: str, param: str | None, code: str, headers: Mapping[str, str] | None
) -> JSONResponse:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status_code=status, headers=headers)
