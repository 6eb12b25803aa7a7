"""A client that leaves before its answer is whole: what is of no session stops, what is of one goes by its grace."""

import json
from typing import Any

import httpx
import pytest

_SLOW = json.dumps({"gap_s": 0.02})
_ASKED = {"model": "scripted", "messages": [{"role": "user", "content": "count to 60"}]}


async def _leave(served: Any, *, stream: bool, store: bool, **more: Any) -> None:
    """Ask, and close the connection while the engine writes."""
    async with served.http() as client:
        body = {**_ASKED, "stream": stream, "store": store, **more}
        if stream:
            async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                await anext(answer.aiter_lines())
            return
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/chat/completions", json=body, timeout=0.5)
    assert len(served.engine.requests) == 1


async def _kept(served: Any) -> tuple[dict[str, Any], str]:
    """Return the last turn of the only session, and what was said in it."""
    async with served.http() as client:
        (session,) = (await client.get("/v1/sessions")).json()["data"]
        whole = (await client.get(f"/v1/sessions/{session['id']}")).json()
    return whole["turns"][-1], whole["items"][-1]["content"][0].get("text", "")


@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_not_kept_stops_within_a_second_and_leaves_nothing(serve, stream: bool) -> None:
    async with serve(script=_SLOW, detach_grace_s=60) as served:
        await _leave(served, stream=stream, store=False)
        await served.until(lambda: served.engine.running == 0, timeout_s=1)
        async with served.http() as client:
            assert (await client.get("/v1/sessions")).json()["data"] == []


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("grace_s", [60, float("inf")])
async def test_what_is_kept_goes_on_to_its_end_within_its_grace(serve, stream: bool, grace_s: float) -> None:
    async with serve(script=_SLOW, detach_grace_s=grace_s) as served:
        await _leave(served, stream=stream, store=True)
        assert served.engine.running == 1
        await served.until(lambda: served.engine.running == 0, timeout_s=20)
        await served.until(lambda: served.sample("baton_turns_running") == 0, timeout_s=5)
        turn, said = await _kept(served)
        assert turn["state"] == "finished"
        assert said.split() == [str(n) for n in range(1, 61)]


@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_kept_stops_at_once_where_there_is_no_grace(serve, stream: bool) -> None:
    async with serve(script=_SLOW, detach_grace_s=0) as served:
        await _leave(served, stream=stream, store=True)
        await served.until(lambda: served.engine.running == 0, timeout_s=1)
        turn, said = await _kept(served)
        assert (turn["state"], turn["reason"]) == ("interrupted", "client_detached")
        assert "60" not in said.split()


@pytest.mark.parametrize(
    ("on_leave", "grace_s", "ends"), [("cancel", 60, "interrupted"), ("background", 0, "finished")]
)
async def test_what_becomes_of_a_turn_is_its_own_to_say(serve, on_leave: str, grace_s: float, ends: str) -> None:
    async with serve(script=_SLOW, detach_grace_s=grace_s) as served:
        await _leave(served, stream=True, store=True, baton={"on_leave": on_leave})
        await served.until(lambda: served.engine.running == 0, timeout_s=1 if ends == "interrupted" else 20)
        await served.until(lambda: served.sample("baton_turns_running") == 0, timeout_s=5)
        turn, _ = await _kept(served)
        assert turn["state"] == ends


async def test_an_answer_that_is_not_kept_cannot_go_on_alone(serve) -> None:
    async with serve(script=_SLOW) as served, served.http() as client:
        answer = await client.post("/v1/chat/completions", json={**_ASKED, "baton": {"on_leave": "background"}})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "baton.on_leave"


@pytest.mark.parametrize("stream", [True, False])
async def test_whoever_stays_has_the_whole_answer_also_where_there_is_no_grace(serve, stream: bool) -> None:
    async with serve(script=_SLOW, detach_grace_s=0) as served, served.http() as client:
        body = {**_ASKED, "stream": stream, "store": True}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        turn, said = await _kept(served)
        assert (turn["state"], said.split()[-1]) == ("finished", "60")
