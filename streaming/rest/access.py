"""`/v1/login` and `/v1/logout`: the page exchanges a key for a cookie, and drops it again."""

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from streaming.auth import COOKIE, COOKIE_AGE_S, Authenticator
from streaming.wire.route import RestRoute


class Login(BaseModel):
    """A key, to be exchanged for a cookie."""

    model_config = ConfigDict(strict=True)

    key: Annotated[str, Field(min_length=1, max_length=256)]


def access_routes(authenticator: Authenticator) -> APIRouter:
    """Return the routes."""
    router = APIRouter(route_class=RestRoute)

    @router.post("/v1/login", status_code=204)
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

    @router.post("/v1/logout", status_code=204)
    async def logout() -> Response:
        """Drop the cookie."""
        response = Response(status_code=204)
        response.delete_cookie(COOKIE)
        return response

    return router
