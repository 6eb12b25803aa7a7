"""What is served, whether it is up, and what is counted: `/v1/models`, `/readyz`, `/metrics`."""

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import websockets
from support.completions import check_model
from support.server import say, send, until

from models.catalog import Card, EngineSpec, Price
from models.placement.fleet import CardState, CardStatus, ServedCards
from streaming.readiness import readiness


async def test_models_are_listed_in_openais_shape_with_what_there_is_to_know(serve) -> None:
    async with serve() as served, served.http() as client:
        listed = (await client.get("/v1/models")).json()
        (model,) = listed["data"]
        assert listed["object"] == "list"
        check_model(model)
        assert (model["id"], model["object"], model["owned_by"]) == ("scripted", "model", "baton")
        assert set(model["baton"]) == {
            *("description", "reads", "writes", "calls_tools", "forms", "context_tokens", "parameters", "licence"),
            *("price", "engine", "port", "state", "adapters"),
        }
        assert model["baton"]["reads"] == ["text"]
        assert (await client.get("/v1/models/scripted")).json() == model
        for name in ("nonesuch", "a/b", "scripte"):
            answer = await client.get(f"/v1/models/{name}")
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
            assert "scripted" in error["message"]


async def test_an_alias_is_listed_as_what_it_stands_for_and_can_be_asked_for(serve, tmp_path) -> None:
    catalog = tmp_path / "own.toml"
    catalog.write_text('[aliases]\n"robot:1" = "scripted"\n')
    async with serve(catalog=catalog) as served, served.http() as client:
        data = (await client.get("/v1/models")).json()["data"]
        assert [(model["id"], model["baton"].get("alias_of")) for model in data] == [
            ("scripted", None),
            ("robot:1", "scripted"),
        ]
        check_model(data[1])
        assert (await client.get("/v1/models/robot:1")).json() == data[1]
        body = {"model": "robot:1", "messages": [{"role": "user", "content": "Hello"}]}
        assert (await client.post("/v1/chat/completions", json=body)).json()["model"] == "scripted"


async def test_a_server_whose_models_are_up_says_so(serve) -> None:
    async with serve() as served, served.http() as client:
        await served.until(lambda: served.conductor.fleet.standing("scripted").state == "ready", timeout_s=20)
        answer = await client.get("/readyz")
        model = {"id": "scripted", "state": "ready", "done_bytes": 0, "total_bytes": None, "message": None}
        assert (answer.status_code, answer.json()) == (200, {"status": "ready", "models": [model]})


class _Standings:
    """A fleet that stands as it is told."""

    others = ()

    def __init__(self, states: Sequence[CardState]) -> None:
        self._standings = {
            f"m{n}": CardStatus(state=state, done_bytes=n, total_bytes=9, message="why" if state == "failed" else None)
            for n, state in enumerate(states)
        }

    @property
    def cards(self) -> list[Card]:
        return [
            Card(
                name=name,
                engine=EngineSpec(name="scripted"),
                reads=frozenset(),
                writes=frozenset(),
                calls_tools=False,
                context_tokens=1,
                price=Price.flat(0),
            )
            for name in self._standings
        ]

    def standing(self, card: str) -> CardStatus:
        return self._standings[card]


@pytest.mark.parametrize(
    ("states", "status", "said"),
    [
        (["ready"], 200, "ready"),
        (["ready", "ready"], 200, "ready"),
        (["failed", "ready"], 200, "ready"),
        (["failed"], 503, "failed"),
        (["failed", "failed"], 503, "failed"),
        (["ready", "waiting"], 503, "loading"),
        (["ready", "fetching"], 503, "loading"),
        (["failed", "converting"], 503, "loading"),
        (["loading"], 503, "loading"),
    ],
)
def test_a_server_is_ready_with_one_model_up_and_none_on_its_way(
    states: list[CardState], status: int, said: str
) -> None:
    answer, body = readiness(cast("ServedCards", _Standings(states)), None)
    assert (answer, body["status"]) == (status, said)
    assert body["models"] == [
        {
            "id": f"m{n}",
            "state": state,
            "done_bytes": n,
            "total_bytes": 9,
            "message": "why" if state == "failed" else None,
        }
        for n, state in enumerate(states)
    ]


def test_a_model_that_failed_and_is_tried_again_keeps_no_other_from_being_ready() -> None:
    class Offer:
        cards = (SimpleNamespace(name="up"), SimpleNamespace(name="down"))
        others = ()

        def standing(self, card: str) -> CardStatus:
            return CardStatus(state="ready") if card == "up" else CardStatus(state="fetching", message="No network.")

    assert readiness(cast("ServedCards", Offer()), None)[0] == 200
    Offer.cards = Offer.cards[1:]
    answer, body = readiness(cast("ServedCards", Offer()), None)
    assert (answer, body["status"]) == (503, "loading")


async def test_errors_are_counted_by_their_codes_whichever_way_they_are_given(serve) -> None:
    async with serve() as served, served.http() as client:

        def counted(code: str) -> float:
            return served.sample("baton_errors_total", tenant="local", code=code)

        await client.get("/v1/sessions/sess_nonesuch")
        await client.get("/v1/sessions?limit=0")
        assert (counted("session_not_found"), counted("invalid_input")) == (1, 1)
        url = f"ws://{served.address}/v1/realtime"
        with pytest.raises(websockets.InvalidStatus):
            await websockets.connect(f"{url}?model=nonesuch")
        assert counted("model_not_found") == 1
        async with websockets.connect(url) as socket:
            await send(socket, type="sing")
            await until(socket, "error")
            await send(socket, type="response.cancel")
            await until(socket, "error")
        assert (counted("unknown_event"), counted("response_cancel_not_active")) == (1, 1)


async def test_what_turns_cost_is_measured_whichever_way_they_came(serve) -> None:
    async with serve() as served, served.http() as client:
        async with websockets.connect(f"ws://{served.address}/v1/realtime") as socket:
            await say(socket, "count to 5")
            await until(socket, "response.done")
        body = {"messages": [{"role": "user", "content": "count to 5"}]}
        await client.post("/v1/chat/completions", json=body)
        await client.post("/v1/chat/completions", json={**body, "stream": True})
        await _check_metrics(client)


async def _check_metrics(client: httpx.AsyncClient) -> None:
    lines = (await client.get("/metrics")).text.splitlines()
    metrics: dict[str, Any] = {}
    for line in lines:
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            metrics[name] = json.loads(value) if value != "+Inf" else value
    assert metrics['baton_turns_total{state="finished",tenant="local"}'] == 3
    assert metrics['baton_tokens_total{direction="out",tenant="local"}'] == 15
    assert metrics['baton_tokens_total{direction="in",tenant="local"}'] == 9
    assert metrics['baton_first_delta_seconds_count{tenant="local"}'] == 3
    assert metrics['baton_turn_seconds_count{tenant="local"}'] == 3
    assert metrics['baton_delta_gap_seconds_count{tenant="local"}'] == 12
    for name in ("turns_running", "sessions_in_memory", "worker_requests", "database_writes_waiting"):
        assert f"baton_{name}" in metrics
