"""Errors as HTTP responses, in OpenAI's shape."""

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

_STATUS_BY_CODE = {"rate_limited": 429, "foreign_origin": 403}


def status_of(error: BatonError) -> int:
    """Return the HTTP status for an error."""
    if error.code in _STATUS_BY_CODE:
        return _STATUS_BY_CODE[error.code]
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def error_response(error: BatonError) -> JSONResponse:
    """Return the response for an error."""
    status = status_of(error)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = {"error": {"message": error.message, "type": kind, "param": error.field, "code": error.code}}
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(body, status_code=status, headers=headers)
