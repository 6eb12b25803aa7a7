"""What every request passes first: how an address may be written, HEAD, and pages of other origins."""

from typing import Any

import httpx
import pytest
import websockets
from pydantic import ValidationError

from orchestrator.settings import Settings

_APP = "https://app.example.org"
_OTHER = "https://evil.example"
_ASKED = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
_PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}


async def _readable(served: Any, client: httpx.AsyncClient) -> list[str]:
    """Return an address of every route that takes GET."""
    fleet = served.conductor.fleet
    await served.until(lambda: all(fleet.standing(card.name).state in {"ready", "failed"} for card in fleet.cards), 10)
    asked = {"messages": [{"role": "user", "content": "hello"}], "store": True}
    session = (await client.post("/v1/chat/completions", json=asked)).json()["baton"]["session"]
    paths = served.app.gate._app.openapi()["paths"]
    described = [path for path, methods in paths.items() if "get" in methods]
    assert len(described) >= 9
    return [
        *("/", "/openapi.json", "/web/app.js"),
        *(path.format(session_id=session, name="scripted", turn="1") for path in described),
    ]


async def test_head_is_answered_wherever_get_is_with_the_same_head_and_nothing_behind_it(serve) -> None:
    async with serve(models=("scripted",)) as served, served.http(limits=httpx.Limits(max_connections=1)) as client:
        for path in await _readable(served, client):
            head = await client.head(path)
            # Of a stream that goes on for ever, too.
            async with client.stream("GET", path) as get:
                assert (head.status_code, head.content) == (200, b""), path
                assert head.headers["content-type"] == get.headers["content-type"], path
                if not path.startswith("/metrics"):
                    assert head.headers.get("content-length") == get.headers.get("content-length"), path
            if path.endswith("/events"):
                await served.until(lambda: served.connections <= 1)
        assert (await client.head("/v1/nonesuch")).status_code == 404
        refused = await client.head("/v1/chat/completions")
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


async def test_head_needs_a_key_where_get_does(serve) -> None:
    async with serve(models=("scripted",)) as served, served.http() as nobody:
        async with served.http(await served.key("acme")) as client:
            paths = await _readable(served, client)
        for path in paths:
            assert (await nobody.head(path)).status_code == (await nobody.get(path)).status_code, path


@pytest.mark.parametrize("slashes", ["/", "//"])
async def test_an_address_is_the_same_with_slashes_at_its_end(serve, slashes: str) -> None:
    async with serve(models=("scripted",)) as served, served.http() as client:
        for path in await _readable(served, client):
            if path in {"/", "/web/app.js"}:
                continue
            async with client.stream("GET", path) as plain, client.stream("GET", path + slashes) as slashed:
                assert plain.status_code == slashed.status_code == 200, path
                assert plain.headers["content-type"] == slashed.headers["content-type"], path
        assert (await client.get(f"/v1/models{slashes}")).json() == (await client.get("/v1/models")).json()
        assert (await client.get(f"/v1/models{slashes}?limit=1")).status_code == 200


async def test_what_is_posted_to_an_address_with_a_slash_is_taken(serve) -> None:
    async with serve() as served, served.http() as client:
        answer = await client.post("/v1/chat/completions/", json=_ASKED)
        assert (answer.status_code, answer.json()["object"]) == (200, "chat.completion")
        assert (await client.post("/v1/sessions/", json={})).status_code == 201
        async with websockets.connect(f"ws://{served.address}/v1/realtime/"):
            pass


async def test_a_slash_opens_no_door_that_a_key_closes(serve) -> None:
    async with serve() as served, httpx.AsyncClient(base_url=f"http://{served.address}") as client:
        await served.key("acme")
        for path in ("/readyz/", "/v1/models/", "/v1/sessions//", "/web/../v1/models/", "/webb/"):
            assert (await client.get(path)).status_code in {401, 404}, path
        assert (await client.get("/v1/models/")).status_code == 401
        assert (await client.get("/healthz/")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("POST", "/v1/models", "HEAD, GET"),
        ("PUT", "/v1/sessions/session_1", "HEAD, GET, PATCH, DELETE"),
        ("DELETE", "/v1/sessions", "HEAD, GET, POST"),
        ("OPTIONS", "/v1/models", "HEAD, GET"),
        ("POST", "/metrics/", "HEAD, GET"),
        ("GET", "/v1/login", "POST"),
    ],
)
async def test_a_wrong_method_is_told_all_those_that_are_right(serve, method: str, path: str, allow: str) -> None:
    async with serve() as served, served.http() as client:
        answer = await client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allow)
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "method_not_allowed")
        assert method in error["message"]
        assert all(one in error["message"] for one in allow.removeprefix("HEAD, ").split(", "))


async def test_an_allowed_origins_preflight_is_answered_before_anybody_is_asked_for_a_key(serve) -> None:
    async with serve(allowed_origins=(_APP,)) as served, served.http() as client:
        await served.key("acme")
        for path in ("/v1/chat/completions", "/v1/models/", "/v1/nonesuch"):
            answer = await client.options(path, headers={"origin": _APP, **_PREFLIGHT})
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == _APP
            assert "POST" in answer.headers["access-control-allow-methods"]
            assert answer.headers["access-control-allow-headers"] == _PREFLIGHT["access-control-request-headers"]
            assert "access-control-allow-credentials" not in answer.headers
            assert "Origin" in answer.headers["vary"]


async def test_a_page_of_an_allowed_origin_reads_answers_and_refusals(serve) -> None:
    async with serve(allowed_origins=("http://localhost:5173", _APP)) as served, served.http() as client:
        key = await served.key("acme")
        shown = {"authorization": f"Bearer {key}", "origin": _APP}
        for headers, status in ((shown, 200), ({"origin": _APP}, 401)):
            for stream in (False, True):
                answer = await client.post("/v1/chat/completions", json={**_ASKED, "stream": stream}, headers=headers)
                assert answer.status_code == status
                assert answer.headers["access-control-allow-origin"] == _APP
                assert "retry-after" in answer.headers["access-control-expose-headers"]
        async with websockets.connect(
            f"ws://{served.address}/v1/realtime", origin=_APP, additional_headers={"authorization": f"Bearer {key}"}
        ):
            pass
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"ws://{served.address}/v1/realtime", origin=_APP)
        assert refused.value.response.status_code == 401, "an origin is no key"


@pytest.mark.parametrize("allowed", [(), (_APP,)])
@pytest.mark.parametrize("origin", [_OTHER, "null", f"{_APP}.evil.example", f"{_APP}:8443", "http://app.example.org"])
async def test_any_other_origin_is_refused_and_told_nothing(serve, allowed: tuple[str, ...], origin: str) -> None:
    async with serve(allowed_origins=allowed) as served, served.http() as client:
        headers = {"origin": origin}
        for answer in (
            await client.options("/v1/chat/completions", headers={**headers, **_PREFLIGHT}),
            await client.post("/v1/chat/completions", json=_ASKED, headers=headers),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")
            assert "access-control-allow-origin" not in answer.headers
        assert "access-control-allow-origin" not in (await client.get("/v1/models", headers=headers)).headers
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"ws://{served.address}/v1/realtime", origin=origin)
        assert refused.value.response.status_code == 403


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", ()),
        ("https://app.example.org", (_APP,)),
        (" https://App.Example.org:443/ , http://localhost:5173,", (_APP, "http://localhost:5173")),
        ("http://[::1]:80", ("http://[::1]",)),
        ("tauri://localhost", ("tauri://localhost",)),
    ],
)
def test_origins_are_set_as_browsers_send_them(
    monkeypatch: pytest.MonkeyPatch, text: str, origins: tuple[str, ...]
) -> None:
    monkeypatch.setenv("BATON_ALLOWED_ORIGINS", text)
    assert Settings().allowed_origins == origins


@pytest.mark.parametrize(
    "text",
    [
        *("*", "https://*.example.org", "null", "app.example.org", "https://", "https://a.example/path"),
        *("https://a.example?x", "https://u@a.example", "https://a.example:port", f"{_APP},*"),
    ],
)
def test_what_is_no_origin_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("BATON_ALLOWED_ORIGINS", text)
    with pytest.raises(ValidationError, match="is no origin"):
        Settings()
