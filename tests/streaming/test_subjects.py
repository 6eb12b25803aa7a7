"""The end users of one application see nothing of each other's, whichever door they come by."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import pytest_asyncio
import websockets
from hypothesis import given, settings
from hypothesis import strategies as st
from support.app import Served, serving_app
from support.rules import RULES
from support.server import say, until

from models.owner import MOST_CHARACTERS, Owner
from streaming.limits import SurfaceLimits
from streaming.subjects import FIELDS, HEADERS

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving_app(
        tmp_path_factory.mktemp("served"), limits=SurfaceLimits(drain_s=1), rules=RULES, session_idle_s=0.05
    ) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def application(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    """A client with an application's key, of a tenant that has nothing yet."""
    async with served.http(await served.key(f"app{next(_tenants)}", kind="application")) as client:
        yield client


_tenants = iter(range(10_000))


def _socket(client: httpx.AsyncClient, query: str = "", **headers: str) -> websockets.connect:
    key = client.headers["authorization"]
    address = str(client.base_url).replace("http", "ws")
    return websockets.connect(f"{address}/v1/realtime{query}", additional_headers={"authorization": key, **headers})


async def _chat(client: httpx.AsyncClient, text: str = "hello", headers: Any = None, **fields: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], **fields}
    return await client.post("/v1/chat/completions", json=body, headers=headers)


async def _listed(client: httpx.AsyncClient, named: str | None) -> list[str]:
    answer = await client.get("/v1/sessions", params={"limit": 200}, headers=_by_header(named))
    assert answer.status_code == 200
    return [session["id"] for session in answer.json()["data"]]


def _by_header(named: str | None) -> dict[str, str]:
    return {} if named is None else {"baton-subject": named}


# Where a subject comes from


@pytest.mark.parametrize("header", HEADERS)
async def test_a_header_names_the_end_user_of_every_route(application: httpx.AsyncClient, header: str) -> None:
    made = (await application.post("/v1/sessions", json={}, headers={header: "ada"})).json()
    assert made["subject"] == "ada"
    assert await _listed(application, "ada") == [made["id"]]
    assert await _listed(application, "eve") == await _listed(application, None) == []
    async with _socket(application, f"?session={made['id']}", **{header: "ada"}) as socket:
        assert json.loads(await socket.recv())["type"] == "session.created"


@pytest.mark.parametrize("name", FIELDS)
async def test_so_does_a_part_of_the_address_and_a_field_of_a_body_that_makes_something(
    application: httpx.AsyncClient, name: str
) -> None:
    made = (await application.post("/v1/sessions", json={name: "ada"})).json()["id"]
    kept = (await _chat(application, store=True, **{name: "ada"})).json()["baton"]["session"]
    async with _socket(application, f"?{name}=ada") as socket:
        assert socket.response is not None
        spoken = socket.response.headers["x-baton-session"]
        await say(socket, "hello")
        await until(socket, "response.done")
    found = (await application.get("/v1/sessions", params={name: "ada"})).json()["data"]
    assert {one["id"] for one in found} == {made, kept, spoken}
    assert await _listed(application, None) == await _listed(application, "eve") == []


async def test_a_name_that_is_not_ascii_is_the_same_one_by_header_address_and_body(
    application: httpx.AsyncClient,
) -> None:
    made = (await application.post("/v1/sessions", json={"user": "Zoë 世界"})).json()["id"]
    raw = [(b"baton-subject", "Zoë 世界".encode())]
    by_header = (await application.get("/v1/sessions", headers=raw)).json()["data"]
    by_address = (await application.get("/v1/sessions", params={"user": "Zoë 世界"})).json()["data"]
    assert [one["id"] for one in (*by_header, *by_address)] == [made, made]
    assert (await application.get("/v1/sessions", headers=[(b"baton-subject", b"Zo\xeb")])).status_code == 400


@pytest.mark.parametrize("named", ["x" * (MOST_CHARACTERS + 1), "*sess_1", " ada", "a\tb"])
@pytest.mark.parametrize("field", ["user", "safety_identifier"])
async def test_a_name_that_is_none_is_refused_by_its_field(
    application: httpx.AsyncClient, field: str, named: str
) -> None:
    answers = [
        await _chat(application, **{field: named}),
        await _chat(application, store=True, **{field: named}),
        await application.post("/v1/sessions", json={field: named}),
        await application.get("/v1/sessions", params={field: named}),
    ]
    if field == "user":
        answers.append(await application.post("/v1/completions", json={"prompt": "hello", field: named}))
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


async def test_a_call_that_names_two_is_refused_by_the_second_and_of_a_body_the_newer_field_counts(
    application: httpx.AsyncClient,
) -> None:
    two = await _chat(application, headers={"baton-subject": "ada"}, user="eve")
    assert (two.status_code, two.json()["error"]["param"]) == (400, "user")
    same = await _chat(application, headers={"baton-subject": "ada"}, user="eve", safety_identifier="ada", store=True)
    assert await _listed(application, "ada") == [same.json()["baton"]["session"]]
    with pytest.raises(websockets.InvalidStatus) as refused:
        await _socket(application, "?user=eve", **{"baton-subject": "ada"})
    assert refused.value.response.status_code == 400


async def test_a_persons_key_has_one_subject_whatever_a_call_names(served: Served) -> None:
    async with served.http(await served.key(f"person{next(_tenants)}")) as client:
        made = (await client.post("/v1/sessions", json={"user": "ada"})).json()
        assert made["subject"] is None
        kept = (await _chat(client, store=True, user="x" * 1_000)).json()["baton"]["session"]
        assert set(await _listed(client, "eve")) == {made["id"], kept}


async def test_a_person_of_the_tenant_does_not_see_what_its_applications_users_said_nor_they_the_persons(
    served: Served,
) -> None:
    tenant = f"both{next(_tenants)}"
    async with (
        served.http(await served.key(tenant)) as person,
        served.http(await served.key(tenant, kind="application")) as application,
    ):
        mine = (await person.post("/v1/sessions", json={})).json()["id"]
        theirs = (await application.post("/v1/sessions", json={"user": "ada"})).json()["id"]
        nobodys = (await application.post("/v1/sessions", json={})).json()["id"]
        assert await _listed(person, None) == [mine]
        for client, named, session_id in (
            (person, None, theirs),
            (person, "ada", theirs),
            (person, None, nobodys),
            (application, None, mine),
            (application, "ada", mine),
        ):
            answer = await client.get(f"/v1/sessions/{session_id}", headers=_by_header(named))
            assert answer.status_code == 404


async def test_a_call_that_names_nobody_sees_the_session_whose_id_it_has_and_lists_none(
    application: httpx.AsyncClient,
) -> None:
    made = (await application.post("/v1/sessions", json={"title": "mine"})).json()
    assert made["subject"] is None
    assert (await application.get(f"/v1/sessions/{made['id']}")).json()["title"] == "mine"
    async with _socket(application, f"?session={made['id']}"):
        pass
    assert await _listed(application, None) == []
    for named in ("ada", made["id"]):
        assert (await application.get(f"/v1/sessions/{made['id']}", headers=_by_header(named))).status_code == 404
    before = await application.get("/v1/sessions", params={"before": made["id"]})
    assert before.status_code == 404
    assert (await application.delete(f"/v1/sessions/{made['id']}")).status_code == 204


async def test_an_engine_is_told_whose_each_request_is_and_of_nobody_twice_the_same(
    served: Served, application: httpx.AsyncClient
) -> None:
    served.engine.requests.clear()
    for named in ("ada", "eve", None, None):
        await _chat(application, user=named)
        await application.post("/v1/completions", json={"prompt": "hello", "user": named})
    named = [request.owner.name for request in served.engine.requests]
    assert named == ["ada", "ada", "eve", "eve", None, None, None, None]
    unnamed = [request.owner for request in served.engine.requests[4:]]
    assert len(set(unnamed)) == 4
    assert Owner(unnamed[0].tenant) not in unnamed
    served.engine.requests.clear()
    await _chat(application, n=3)
    assert len({request.owner for request in served.engine.requests}) == 1  # one prompt, which is read once


async def test_a_response_beside_the_conversation_is_the_sessions_owners(
    served: Served, application: httpx.AsyncClient
) -> None:
    served.engine.requests.clear()
    async with _socket(application, "?user=ada") as socket:
        await say(socket, "hello")
        await until(socket, "response.done")
        beside = {"conversation": "none", "input": [], "instructions": "hello"}
        await socket.send(json.dumps({"type": "response.create", "response": beside}))
        await until(socket, "response.done")
    assert [request.owner.subject for request in served.engine.requests] == ["ada", "ada"]


# Random interleavings


_DOORS = (
    "make",
    "chat",
    "talk",
    "read",
    "change",
    "export",
    "events",
    "socket",
    "before",
    "beside",
    "fork",
    "trace",
    "redact",
    "delete",
)
_USERS = ("ada", "eve", "Ada", None)


@dataclass(kw_only=True)
class _House:
    """An application's sessions, and what may be known of each: by whom, and which words."""

    client: httpx.AsyncClient
    owners: dict[str, str | None] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    said: int = 0

    def word(self) -> str:
        """Return a word that nobody has said."""
        self.said += 1
        return f"word{self.said:04}of{id(self)}"

    def sees(self, named: str | None, session_id: str) -> bool:
        return self.owners[session_id] == named

    def check(self, named: str | None, session_id: str | None, text: str) -> None:
        """Check that nothing in an answer is anybody else's."""
        for other, word in self.words.items():
            if self.owners[other] != named or (named is None and other != session_id):
                is_mine = word == self.words.get(session_id or "")  # a branch has its words from another
                assert word not in text or is_mine, f"{named} was told what {self.owners[other]} said"
                assert other not in text or other == session_id, (
                    f"{named} was told of a session of {self.owners[other]}"
                )

    async def make(self, door: str, named: str | None) -> None:
        word, session_id = self.word(), ""
        if door == "make":
            answer = await self.client.post("/v1/sessions", json={"title": word, "user": named})
            session_id = answer.json()["id"]
        elif door == "chat":
            answer = await _chat(self.client, word, store=True, safety_identifier=named)
            session_id = answer.json()["baton"]["session"]
        else:
            async with _socket(self.client, "?baton=events", **_by_header(named)) as socket:
                assert socket.response is not None
                session_id = socket.response.headers["x-baton-session"]
                await say(socket, word)
                await until(socket, "response.done")
        assert session_id not in self.owners
        self.owners[session_id], self.words[session_id] = named, word

    async def ask(self, door: str, named: str | None, session_id: str) -> None:
        """Come by a door with the id of a session; what is another's has to be as absent as what never was."""
        path, headers = f"/v1/sessions/{session_id}", _by_header(named)
        if door == "socket":
            try:
                async with _socket(self.client, f"?session={session_id}&after=0&baton=events", **headers) as socket:
                    status, text = 200, json.dumps(await until(socket, "baton.sequence"))
            except websockets.InvalidStatus as refused:
                status, text = refused.response.status_code, (refused.response.body or b"").decode()
        elif door == "events":
            async with self.client.stream("GET", f"{path}/events?after=0", headers=headers) as answer:
                status, text = answer.status_code, ""
                async for piece in answer.aiter_text():
                    text += piece
                    if status != 200 or self.words[session_id] in text:
                        break
        else:
            method, address, sent = {
                "read": ("GET", path, None),
                "change": ("PATCH", path, {"instructions": "Be kind."}),
                "export": ("GET", f"{path}/export", None),
                "before": ("GET", f"/v1/sessions?before={session_id}", None),
                "fork": ("POST", f"{path}/fork", {}),
                "trace": ("GET", f"{path}/turns/1/trace", None),
                "redact": ("DELETE", f"{path}/items/item_none?redact=true", None),
                "delete": ("DELETE", path, None),
            }[door]
            answer = await self.client.request(method, address, json=sent, headers=headers)
            status, text = answer.status_code, answer.text
        is_seen = self.sees(named, session_id) and not (door == "before" and named is None)
        if door in {"trace", "redact"} and is_seen:  # there may be no turn, and there is no such item
            is_told = status < 300 or "session_not_found" not in text
        else:
            is_told = status < 300
        assert is_told is is_seen, f"{named} came by {door} to a session of {self.owners[session_id]}: {status}"
        if not is_seen:
            assert status == 404
            text = text.replace(session_id, "")
        self.check(named, session_id, text)
        if door == "fork" and is_seen:
            branch_id = json.loads(text)["id"]
            assert branch_id not in self.owners
            self.owners[branch_id], self.words[branch_id] = named, self.words[session_id]
        if door == "delete" and is_seen:
            del self.owners[session_id], self.words[session_id]

    async def list(self, named: str | None) -> None:
        answer = await self.client.get("/v1/sessions?limit=200", headers=_by_header(named))
        self.check(named, None, answer.text)
        listed = {one["id"] for one in answer.json()["data"]}
        assert listed == {one for one, owner in self.owners.items() if named is not None and owner == named}

    async def beside(self, named: str | None) -> None:
        """Ask what is kept of nobody: the answer is of this call alone."""
        answer = await _chat(self.client, "sunny", user=named)
        self.check(named, None, answer.text)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    calls=st.lists(
        st.tuples(st.sampled_from(_DOORS), st.sampled_from(_USERS), st.integers(0, 9)), min_size=6, max_size=16
    )
)
async def test_no_interleaving_of_calls_shows_an_end_user_anything_of_anothers(
    served: Served, calls: list[tuple[str, str | None, int]]
) -> None:
    async with served.http(await served.key(f"app{next(_tenants)}", kind="application")) as client:
        house = _House(client=client)
        for door in ("make", "chat", "talk"):
            await house.make(door, "ada")
        for door, named, which in calls:
            if door in {"make", "chat", "talk"}:
                await house.make(door, named)
            elif door == "beside":
                await house.beside(named)
            elif house.owners:
                await house.ask(door, named, sorted(house.owners)[which % len(house.owners)])
            await house.list(named)
        for named in _USERS:
            for session_id in sorted(house.owners):
                await house.ask("read", named, session_id)


async def test_whose_a_session_is_may_be_repeated_on_its_connection_but_not_changed(
    application: httpx.AsyncClient,
) -> None:
    async with _socket(application, "?user=ada") as socket:
        await until(socket, "session.created")
        for named, kinds in (("ada", ["session.updated"]), ("eve", ["error", "session.updated"]), (None, [])):
            session = {"type": "realtime", "baton": {"subject": named}, "instructions": f"for {named}"}
            await socket.send(json.dumps({"type": "session.update", "session": session}))
            told = await until(socket, "session.updated")
            assert [event["type"] for event in told if event["type"] != "baton.session.attached"][: len(kinds)] == kinds
            assert told[-1]["session"]["instructions"] == f"for {named}"  # the rest takes effect all the same
            if named == "eve":
                error = told[-2]["error"]
                assert (error["code"], error["param"]) == ("subject_settled", "session.baton.subject")
