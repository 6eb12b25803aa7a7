"""Routes, and what the framework refuses before them."""

import httpx
import pytest


@pytest.mark.parametrize("path", ["/", "/healthz", "/web/app.js"])
async def test_what_is_public_answers_head_too(serve, path: str) -> None:
    async with serve() as served, httpx.AsyncClient(base_url=f"http://{served.address}") as client:
        assert (await client.head(path)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code", "param"),
    [
        ("GET", "/v1/nonesuch", None, 404, "not_found", None),
        ("GET", "/v1/realtime", None, 404, "not_found", None),
        ("DELETE", "/metrics", None, 405, "method_not_allowed", None),
        ("POST", "/v1/login", b"{", 400, "invalid_input", None),
        ("POST", "/v1/login", b"", 400, "invalid_input", None),
        ("POST", "/v1/login", b'{"key": 5}', 400, "invalid_input", "key"),
        ("POST", "/v1/login", b'{"key": "\\ud800"}', 400, "invalid_input", None),
        ("POST", "/v1/login", b'{"key": "' + b"x" * 2_000_000 + b'"}', 413, "body_too_large", None),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else str(value),
)
async def test_every_refusal_has_the_shape_of_openais_errors(
    serve, method: str, path: str, content: bytes | None, status: int, code: str, param: str | None
) -> None:
    async with serve() as served, httpx.AsyncClient(base_url=f"http://{served.address}") as client:
        answer = await client.request(method, path, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == status
        error = answer.json()["error"]
        assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")
        assert error["message"]


async def test_the_pages_modules_are_asked_after_each_time(serve) -> None:
    async with serve() as served, httpx.AsyncClient(base_url=f"http://{served.address}") as client:
        for path in ("/", "/web/app.js"):
            assert (await client.get(path)).headers["cache-control"] == "no-cache"


async def test_what_the_framework_refuses_is_counted_like_every_error(serve) -> None:
    async with serve() as served, served.http() as client:
        await client.get("/v1/nonesuch")
        await client.delete("/metrics")
        await client.post("/v1/login", content=b"{", headers={"content-type": "application/json"})
        assert served.sample("baton_errors_total", tenant="local", code="not_found") == 1
        assert served.sample("baton_errors_total", tenant="local", code="method_not_allowed") == 1
        assert served.sample("baton_errors_total", tenant="", code="invalid_input") == 1


async def test_a_defect_in_a_route_is_answered_in_the_shape_of_every_error_and_logged(
    serve, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    async with serve() as served, served.http() as client:
        served.app.gate._app.add_api_route("/broken", broken)
        answer = await client.get("/broken")
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
        assert served.sample("baton_errors_total", tenant="local", code="internal") == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
