"""Every door, and who may pass it."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import pytest
import websockets
from fastapi import FastAPI
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute

from memory import keys
from memory.keys import RequestDefaults
from models.clock import ManualClock
from streaming.auth import COOKIE, PUBLIC, PUBLIC_PREFIX, KeyGate, is_loopback
from streaming.edge.front import Front

pytestmark = pytest.mark.usefixtures("tmp_path")

_WRONG = {
    "none": {},
    "wrong": {"authorization": "Bearer baton_key01ABC_wrong"},
    "empty": {"authorization": "Bearer"},
    "scheme": {"authorization": "Basic abc"},
    "cookie": {"cookie": f"{COOKIE}=abc.def.ghi"},
}


_WEBSOCKET = "WEBSOCKET"


def _doors(app: object) -> Iterator[tuple[str, str]]:
    """Yield method and path of every route and websocket that is not public, those of included routers too."""
    assert isinstance(app, Front)
    assert isinstance(app.gate, KeyGate)
    assert isinstance(app.gate._app, FastAPI)
    yield from _doors_of(app.gate._app.routes)


def _doors_of(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, str]]:
    for route in routes:
        if hasattr(route, "effective_route_contexts"):  # how FastAPI keeps what it includes
            for context in route.effective_route_contexts():
                yield from _door(context.starlette_route or context.original_route, context.path)
        elif isinstance(route, Mount):
            assert (route.path + "/").startswith(PUBLIC_PREFIX), f"{route.path} is mounted and not public"
        else:
            yield from _door(route, getattr(route, "path", None))


def _door(route: Any, path: str | None) -> Iterator[tuple[str, str]]:
    assert path, f"{route} is of no kind that this test knows"
    if path in PUBLIC:
        return
    if isinstance(route, WebSocketRoute):
        yield _WEBSOCKET, path
        return
    assert isinstance(route, Route) or hasattr(route, "methods"), f"{path} is of no kind that this test knows"
    for method in route.methods:
        yield method, path


async def _key(served, tenant: str, **options) -> str:
    return await served.key(tenant, **options)


async def test_every_route_and_websocket_refuses_a_missing_or_wrong_key_except_those_named_public(serve) -> None:
    async with serve() as served, served.http() as client:
        await _key(served, "acme")
        doors = set(_doors(served.app))
        for method, path in doors:
            for shown, headers in _WRONG.items():
                if method == _WEBSOCKET:
                    with pytest.raises(websockets.InvalidStatus) as refused:
                        await websockets.connect(f"ws://{served.address}{path}", additional_headers=headers)
                    assert refused.value.response.status_code == 401, f"{path} with {shown} key"
                    continue
                response = await client.request(method, path, headers=headers)
                assert response.status_code == 401, f"{method} {path} with {shown} key"
                assert response.headers["www-authenticate"] == "Bearer"
                if method != "HEAD":
                    assert response.json()["error"]["code"] == "unauthorized"


async def test_no_route_is_missed_by_the_test_that_tries_every_one(serve) -> None:
    async with serve() as served:
        doors = set(_doors(served.app))
        described = {
            (method.upper(), path)
            for path, methods in served.app.gate._app.openapi()["paths"].items()
            for method in methods
            if path not in PUBLIC
        }
    assert described <= {(method, path.replace(":path}", "}")) for method, path in doors}
    session = "/v1/sessions/{session_id}"
    assert {
        (_WEBSOCKET, "/v1/realtime"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/readyz"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{name:path}"),
        ("GET", "/v1/sessions"),
        ("POST", "/v1/sessions"),
        ("GET", session),
        ("PATCH", session),
        ("DELETE", session),
        ("GET", f"{session}/events"),
        ("GET", f"{session}/export"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/logout"),
    } <= doors


SCOPES = {
    # By whom it is: what is asked with an id is found by its owner alone; `test_subjects` has the rest of each.
    (_WEBSOCKET, "/v1/realtime"): "subject",
    ("GET", "/v1/sessions"): "subject",
    ("POST", "/v1/sessions"): "subject",
    ("POST", "/v1/chat/completions"): "subject",
    ("POST", "/v1/completions"): "subject",
    ("POST", "/v1/embeddings"): "subject",
    # Counted for the key's tenant, whoever it speaks for.
    ("GET", "/metrics"): "tenant",
    # The same for everybody who is let in.
    ("GET", "/openapi.json"): "everybody",
    ("GET", "/readyz"): "everybody",
    ("GET", "/v1/models"): "everybody",
    ("GET", "/v1/models/{name:path}"): "everybody",
    ("POST", "/v1/logout"): "everybody",
}
"""Whose each door's answers are. What has a session in its path is the session's owner's, and tried below."""


_SENT = {
    "PATCH /v1/sessions/{session_id}": {"title": "taken"},
    "POST /v1/sessions/{session_id}/fork": {},
    "POST /v1/sessions/{session_id}/approvals": {"approval_request_id": "appr_1", "approve": True},
}
"""What is sent to the doors to a session that want a body."""


async def test_every_door_says_whose_its_answers_are_and_those_to_a_session_let_its_owner_in_alone(serve) -> None:
    async with serve() as served, served.http(await served.key("acme", kind="application")) as client:
        doors = {(method, path) for method, path in _doors(served.app) if method != "HEAD"}
        within = {(method, path) for method, path in doors if "{session_id}" in path}
        assert doors - within == SCOPES.keys(), "a new door: say whose its answers are, and try it in `test_subjects`"
        kept = await client.post(
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "hello"}], "store": True, "user": "ada"},
        )
        session_id, ada = kept.json()["baton"]["session"], {"baton-subject": "ada"}

        async def knock(method: str, path: str, headers: dict[str, str]) -> tuple[int, bool]:
            address = re.sub(r"{[^}]*}", "1", path.replace("{session_id}", session_id))
            sent = _SENT.get(f"{method} {path}")
            async with client.stream(method, address, headers=headers, json=sent) as answer:
                told = "" if answer.status_code < 300 else (await answer.aread()).decode()
                return answer.status_code, "session_not_found" in told

        before = (await client.get(f"/v1/sessions/{session_id}", headers=ada)).json()
        for headers in ({"baton-subject": "eve"}, {"baton-subject": session_id}, {}):
            for method, path in sorted(within):
                assert await knock(method, path, headers) == (404, True), f"{method} {path} for {headers or 'nobody'}"
        assert (await client.get(f"/v1/sessions/{session_id}", headers=ada)).json() == before
        for method, path in sorted(within, key=lambda door: door == ("DELETE", "/v1/sessions/{session_id}")):
            status, is_absent = await knock(method, path, ada)
            assert not is_absent, f"{method} {path} does not let its owner in"
            assert status != 422
        assert (await client.get(f"/v1/sessions/{session_id}", headers=ada)).status_code == 404


async def test_every_key_that_is_shown_is_compared_in_constant_time_also_one_that_is_not_there(
    serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[str, str]] = []

    def compare(left: str, right: str) -> bool:
        compared.append((left, right))
        return left == right

    async with serve() as served, served.http() as client:
        key = await _key(served, "acme")
        monkeypatch.setattr(keys.hmac, "compare_digest", compare)
        for shown in (key, key[:-1] + "~", "baton_key01ABC_wrong", "nonsense"):
            status = (await client.get("/metrics", headers={"authorization": f"Bearer {shown}"})).status_code
            assert status == (200 if shown == key else 401)
    assert len(compared) == 4
    assert {(len(left), len(right)) for left, right in compared} == {(64, 64)}, "hashes of one length"


async def test_a_path_that_does_not_exist_is_not_told_from_one_that_does_without_a_key(serve) -> None:
    async with serve() as served:
        await _key(served, "acme")
        async with httpx.AsyncClient(base_url=f"http://{served.address}") as client:
            assert (await client.get("/v1/nonesuch")).status_code == 401


async def test_what_is_public_is_served_without_a_key(serve) -> None:
    async with serve() as served:
        await _key(served, "acme")
        async with httpx.AsyncClient(base_url=f"http://{served.address}") as client:
            assert (await client.get("/healthz")).json() == {"status": "ok"}
            assert "text/html" in (await client.get("/")).headers["content-type"]


@pytest.mark.parametrize("way", ["header", "subprotocol", "cookie"])
async def test_a_key_opens_a_websocket_by_header_subprotocol_and_cookie(serve, way: str) -> None:
    async with serve() as served:
        key = await _key(served, "acme")
        headers, subprotocols = {}, None
        if way == "header":
            headers = {"authorization": f"Bearer {key}"}
        elif way == "subprotocol":
            subprotocols = ["realtime", f"openai-insecure-api-key.{key}"]
        else:
            async with httpx.AsyncClient(base_url=f"http://{served.address}") as client:
                answer = await client.post("/v1/login", json={"key": key})
                assert answer.status_code == 204
                assert "HttpOnly" in answer.headers["set-cookie"]
                assert "SameSite=strict" in answer.headers["set-cookie"]
                assert key not in answer.headers["set-cookie"]
                headers = {"cookie": f"{COOKIE}={answer.cookies[COOKIE]}"}
        async with websockets.connect(
            f"ws://{served.address}/v1/realtime", additional_headers=headers, subprotocols=subprotocols
        ) as socket:
            assert json.loads(await socket.recv())["type"] == "session.created"
            assert socket.subprotocol == ("realtime" if subprotocols else None)


async def test_a_revoked_key_is_refused_within_a_second_and_the_cookie_that_stood_for_it_at_once(serve) -> None:
    clock = ManualClock()
    async with serve(clock=clock) as served, served.http() as client:
        key, other = await _key(served, "acme"), await _key(served, "other")
        headers = {"authorization": f"Bearer {key}"}
        await client.post("/v1/login", json={"key": key})
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/metrics", headers=headers)).status_code == 200
        (first, _) = await served.conductor.database.read(keys.list_keys)
        await served.conductor.database.write(lambda c: keys.revoke_key(c, first.key_id, 2))
        assert (await client.get("/metrics")).status_code == 401
        clock.advance(1)
        assert (await client.get("/metrics", headers=headers)).status_code == 401
        assert (await client.get("/metrics", headers={"authorization": f"Bearer {other}"})).status_code == 200


async def test_the_first_key_closes_the_door_within_a_second(serve) -> None:
    clock = ManualClock()
    async with serve(clock=clock) as served, served.http() as client:
        assert (await client.get("/metrics")).status_code == 200
        await _key(served, "acme")
        clock.advance(1)
        assert (await client.get("/metrics")).status_code == 401


async def test_what_is_believed_of_keys_is_bounded_and_holds_no_key(serve) -> None:
    async with serve() as served, served.http() as client:
        key = await _key(served, "acme")
        await client.get("/metrics", headers={"authorization": f"Bearer {key}"})
        known = served.app.gate._authenticator._known
        assert list(known) == [hashlib.sha256(key.encode()).digest()]
        known.update({bytes([n % 256, n // 256]): (0.0, None) for n in range(5_000)})
        await client.get("/metrics", headers={"authorization": "Bearer other"})
        assert len(known) <= 4_096


async def test_another_tenants_session_is_not_found(serve) -> None:
    async with serve() as served:
        mine, theirs = await _key(served, "acme"), await _key(served, "umbrella")
        url = f"ws://{served.address}/v1/realtime"
        async with websockets.connect(url, additional_headers={"authorization": f"Bearer {mine}"}) as socket:
            assert socket.response is not None
            session = socket.response.headers["x-baton-session"]
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(
                f"{url}?session={session}", additional_headers={"authorization": f"Bearer {theirs}"}
            )
        assert refused.value.response.status_code == 404


async def test_metrics_show_a_tenant_its_own_and_nobody_elses(serve) -> None:
    async with serve() as served:
        mine, theirs = await _key(served, "acme"), await _key(served, "umbrella")
        url = f"ws://{served.address}/v1/realtime"
        async with (
            websockets.connect(url, additional_headers={"authorization": f"Bearer {mine}"}),
            websockets.connect(url, additional_headers={"authorization": f"Bearer {theirs}"}),
            httpx.AsyncClient(base_url=f"http://{served.address}") as client,
        ):
            text = (await client.get("/metrics", headers={"authorization": f"Bearer {mine}"})).text
    assert 'baton_websockets{tenant="acme"} 1.0' in text
    assert "umbrella" not in text
    assert "baton_worker_restarts 0.0" in text


async def test_without_any_key_loopback_is_the_tenant_local_and_a_placeholder_is_not_minded(serve) -> None:
    async with serve() as served, httpx.AsyncClient(base_url=f"http://{served.address}") as client:
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/metrics", headers={"authorization": "Bearer placeholder"})).status_code == 200


async def test_beyond_loopback_nothing_is_open_even_while_there_is_no_key(serve) -> None:
    async with serve(loopback=False) as served, httpx.AsyncClient(base_url=f"http://{served.address}") as client:
        assert (await client.get("/metrics")).status_code == 401


async def test_a_name_that_is_not_this_machines_is_refused_while_no_key_protects_it(serve) -> None:
    async with serve() as served, httpx.AsyncClient(base_url=f"http://{served.address}") as client:
        assert (await client.get("/metrics", headers={"host": "evil.example:8000"})).status_code == 401


async def test_another_sites_page_may_neither_connect_nor_post(serve) -> None:
    async with serve() as served:
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"ws://{served.address}/v1/realtime", origin="https://evil.example")
        assert refused.value.response.status_code == 403
        async with websockets.connect(f"ws://{served.address}/v1/realtime", origin=f"http://{served.address}"):
            pass
        async with httpx.AsyncClient(base_url=f"http://{served.address}") as client:
            answer = await client.post("/v1/login", json={"key": "x"}, headers={"origin": "https://evil.example"})
            assert answer.status_code == 403


async def test_a_key_over_its_rate_waits_and_says_so(serve) -> None:
    async with serve() as served, httpx.AsyncClient(base_url=f"http://{served.address}") as client:
        key = await _key(served, "acme", requests_per_minute=2)
        headers = {"authorization": f"Bearer {key}"}
        answers = [await client.post("/v1/sessions", json={}, headers=headers) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [201, 201, 429]
        assert answers[2].json()["error"]["code"] == "rate_limited"
        assert served.sample("baton_errors_total", tenant="acme", code="rate_limited") == 1
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"ws://{served.address}/v1/realtime", additional_headers=headers)
        assert refused.value.response.status_code == 429


async def test_reading_does_not_use_up_what_a_key_is_for(serve) -> None:
    async with serve() as served, served.http(await served.key("acme", requests_per_minute=1)) as client:
        for path in ("/readyz", "/metrics", "/v1/models", "/v1/sessions") * 3:
            assert (await client.get(path)).status_code != 429
        assert (await client.post("/v1/sessions", json={})).status_code == 201


async def test_whoever_is_turned_away_at_the_door_is_counted_and_everybody_may_see_it(serve) -> None:
    async with serve() as served, served.http() as client, served.http(await served.key("acme")) as mine:
        await client.get("/metrics")
        await client.post("/v1/sessions", json={}, headers={"origin": "https://evil.example"})
        await client.post("/v1/login", json={"key": "wrong"})
        await client.post("/v1/login", content=b"x" * 2_000_000)
        text = (await mine.get("/metrics")).text
    for code, times in (("unauthorized", 2), ("foreign_origin", 1), ("body_too_large", 1)):
        assert f'baton_errors_total{{code="{code}",tenant=""}} {times}.0' in text


async def test_a_keys_defaults_hold_for_its_connections(serve) -> None:
    async with serve() as served:
        key = await _key(served, "acme", defaults=RequestDefaults(instructions="Be kind.", max_output_tokens=7))
        async with websockets.connect(
            f"ws://{served.address}/v1/realtime", additional_headers={"authorization": f"Bearer {key}"}
        ) as socket:
            session = json.loads(await socket.recv())["session"]
    assert (session["instructions"], session["max_output_tokens"]) == ("Be kind.", 7)


async def test_a_login_without_a_key_names_the_field(serve) -> None:
    async with serve() as served, httpx.AsyncClient(base_url=f"http://{served.address}") as client:
        answer = await client.post("/v1/login", json={})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "key")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_loopback_is_told_from_what_others_can_reach(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://["}, {"host": "["}, {"cookie": "a/b=1; =; ;;"}, {"authorization": "Bearer \xff_\xfe_"}],
    ids=lambda headers: next(iter(headers)),
)
@pytest.mark.parametrize("with_a_key", [False, True])
async def test_headers_that_are_not_well_formed_get_an_answer_in_the_shape_of_every_error(
    serve, headers: dict[str, str], with_a_key: bool
) -> None:
    async with serve() as served, httpx.AsyncClient(base_url=f"http://{served.address}") as client:
        if with_a_key:
            await _key(served, "acme")
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        answer = await client.post("/v1/logout", headers=raw)
        assert answer.status_code in {204, 401, 403}
        assert answer.status_code == 204 or answer.json()["error"]["code"]


async def test_a_revoked_key_gets_no_further_answer_on_a_connection_that_is_open(serve) -> None:
    async with serve() as served:
        key = await _key(served, "acme")
        async with websockets.connect(
            f"ws://{served.address}/v1/realtime", additional_headers={"authorization": f"Bearer {key}"}
        ) as socket:
            await socket.recv()
            (found,) = await served.conductor.database.read(keys.list_keys)
            await served.conductor.database.write(lambda c: keys.revoke_key(c, found.key_id, 2))
            await socket.send('{"type": "response.create"}')
            assert json.loads(await socket.recv())["error"]["code"] == "unauthorized"
            await _is_let_go(socket)
        async with httpx.AsyncClient(base_url=f"http://{served.address}") as client:
            assert (await client.get("/metrics")).status_code == 401, "revoking the last key opened the server"


async def _is_let_go(socket: websockets.ClientConnection) -> None:
    with pytest.raises(websockets.ConnectionClosed) as closed:
        await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


async def _revoke(served, clock: ManualClock) -> None:
    (found,) = await served.conductor.database.read(keys.list_keys)
    await served.conductor.database.write(lambda c: keys.revoke_key(c, found.key_id, 2))
    clock.advance(1)


@pytest.mark.parametrize(
    "message",
    [
        {"type": "session.update", "session": {"type": "realtime"}},
        {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": []}},
        {"type": "conversation.item.delete", "item_id": "x"},
        {"type": "response.cancel"},
    ],
    ids=lambda message: message["type"],
)
async def test_a_revoked_key_has_nothing_done_on_a_websocket_that_is_open(serve, message: dict[str, Any]) -> None:
    clock = ManualClock()
    async with serve(clock=clock) as served:
        headers = {"authorization": f"Bearer {await _key(served, 'acme')}"}
        async with websockets.connect(f"ws://{served.address}/v1/realtime", additional_headers=headers) as socket:
            await socket.recv()
            await socket.send('{"type": "response.cancel"}')
            assert json.loads(await socket.recv())["error"]["code"] == "response_cancel_not_active"
            await _revoke(served, clock)
            await socket.send(json.dumps(message))
            assert json.loads(await socket.recv())["error"]["code"] == "unauthorized"
            await _is_let_go(socket)


async def test_a_revoked_key_is_told_nothing_more_on_a_websocket_that_is_open(serve) -> None:
    clock = ManualClock()
    async with serve(clock=clock) as served:
        key = await _key(served, "acme")
        url = f"ws://{served.address}/v1/realtime?baton=events"
        async with websockets.connect(url, additional_headers={"authorization": f"Bearer {key}"}) as socket:
            session = await served.conductor.sessions.open("acme", socket.response.headers["x-baton-session"])
            await session.change({"title": "heard"})
            while json.loads(await socket.recv())["type"] != "baton.sequence":
                pass
            await _revoke(served, clock)
            await session.change({"title": "secret"})
            assert json.loads(await socket.recv())["error"]["code"] == "unauthorized"
            await _is_let_go(socket)


async def test_a_revoked_key_is_told_nothing_more_on_an_event_stream_that_is_open(serve) -> None:
    clock = ManualClock()
    async with serve(clock=clock) as served, served.http(await served.key("acme")) as client:
        session_id = (await client.post("/v1/sessions", json={})).json()["id"]
        session = await served.conductor.sessions.open("acme", session_id)
        async with client.stream("GET", f"/v1/sessions/{session_id}/events") as answer:
            data = answer.aiter_text()
            assert "here" in await anext(data)
            await _revoke(served, clock)
            await session.change({"title": "secret"})
            rest = "".join([text async for text in data])
    assert "secret" not in rest
    assert json.loads(rest.removeprefix("data: "))["error"]["code"] == "unauthorized"


async def test_the_first_key_closes_the_connections_that_were_opened_without_one(serve) -> None:
    clock = ManualClock()
    async with serve(clock=clock) as served, websockets.connect(f"ws://{served.address}/v1/realtime") as socket:
        await socket.recv()
        await _key(served, "acme")
        clock.advance(1)
        await socket.send('{"type": "response.create"}')
        assert json.loads(await socket.recv())["error"]["code"] == "unauthorized"
        await _is_let_go(socket)
