"""What tenants share: one that takes all it can get leaves room for the others, whatever it takes."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import websockets
from hypothesis import given
from hypothesis import strategies as st
from support.app import Served

from models.errors import Overloaded
from models.shares import Shares, share_of
from orchestrator.settings import Settings
from streaming.limits import SurfaceLimits

_SLOW = [{"pattern": "", "reply": "a b c d e f g h", "gap_s": 2.0}]
_ASKED = {"messages": [{"role": "user", "content": "go"}]}

Taken = tuple[int, str]
"""A status and a code; 200 while there is room."""


@asynccontextmanager
async def _websocket(served: Served, key: str) -> AsyncIterator[Taken]:
    headers = {"authorization": f"Bearer {key}"}
    try:
        socket = await websockets.connect(f"ws://{served.address}/v1/realtime", additional_headers=headers)
    except websockets.InvalidStatus as refused:
        yield refused.response.status_code, refused.response.body.decode()
        return
    async with socket:
        yield 200, ""


@asynccontextmanager
async def _follower(served: Served, key: str) -> AsyncIterator[Taken]:
    async with served.http(key) as client:
        made = await client.post("/v1/sessions", json={})
        if made.status_code != 201:
            yield made.status_code, made.text
            return
        async with client.stream("GET", f"/v1/sessions/{made.json()['id']}/events") as answer:
            if answer.status_code != 200:
                await answer.aread()
            yield answer.status_code, "" if answer.status_code == 200 else answer.text


@asynccontextmanager
async def _answer(served: Served, key: str) -> AsyncIterator[Taken]:
    async with served.http(key) as client:
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=_ASKED))
        await asyncio.wait({asking}, timeout=0.5)
        if asking.done():
            yield asking.result().status_code, asking.result().text
            return
        yield 200, ""
        asking.cancel()
        await asyncio.wait({asking})


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Bound:
    take: Callable[[Served, str], Any]
    code: str
    limits: SurfaceLimits = dataclasses.field(default_factory=lambda: SurfaceLimits(drain_s=1))
    settings: dict[str, int] = dataclasses.field(default_factory=dict)


_BOUNDS = {
    "sockets": _Bound(take=_websocket, code="too_many_connections", limits=SurfaceLimits(sockets=4, drain_s=1)),
    "streams": _Bound(take=_follower, code="too_many_connections", limits=SurfaceLimits(streams=4, drain_s=1)),
    "connections": _Bound(take=_answer, code="too_many_connections", limits=SurfaceLimits(connections=6, drain_s=1)),
    "max_sessions": _Bound(take=_websocket, code="too_many_sessions", settings={"max_sessions": 4}),
    "max_turns": _Bound(take=_answer, code="too_many_turns", settings={"max_turns": 4}),
    "max_requests": _Bound(take=_answer, code="too_many_requests", settings={"max_requests": 4}),
}

_OF_ONE = {"message_bytes", "line_bytes", "headers", "header_bytes", "max_output_tokens", "max_input_characters"}
"""Bounds of one message, request or answer, which nobody shares."""

_OF_NO_SURFACE = {"max_guesses"}
"""No surface guesses yet: what a tenant can take of these is tried in tests/orchestrator/act/test_admission.py."""


@pytest.mark.parametrize("bound", _BOUNDS.values(), ids=list(_BOUNDS))
async def test_a_tenant_that_takes_all_it_can_get_is_told_so_and_leaves_room_for_others(serve, bound: _Bound) -> None:
    async with serve(limits=bound.limits, rules=_SLOW, **bound.settings) as served, AsyncExitStack() as stack:
        greedy, other = await served.key("greedy"), await served.key("other")
        taken = 0
        while (refused := await stack.enter_async_context(bound.take(served, greedy)))[0] == 200:
            taken += 1
        assert taken >= 3
        assert refused[0] == 429
        assert f'"code":"{bound.code}"' in refused[1]
        assert (await stack.enter_async_context(bound.take(served, other)))[0] == 200


def test_every_bound_that_tenants_share_has_a_share_of_each_and_is_tried_above() -> None:
    surface = {field.name for field in dataclasses.fields(SurfaceLimits) if "int" in str(field.type)} - _OF_ONE
    settings = {name for name in Settings.model_fields if name.startswith("max_")} - _OF_ONE
    shared = {name for name in surface | settings if "tenant_" not in name}
    shared -= _OF_NO_SURFACE
    assert shared == set(_BOUNDS)
    assert {name.replace("tenant_", "") for name in surface | settings if "tenant_" in name} == shared


@given(st.integers(2, 10_000), st.lists(st.sampled_from("abc"), max_size=200))
def test_no_tenant_can_have_it_all_and_what_is_given_back_can_be_had_again(most: int, tenants: list[str]) -> None:
    shares = Shares(most, None, what="things are used", code="too_many_things")
    for tenant in tenants:
        with shares.held(tenant):
            assert len(shares) == 1
    had = 0
    while had < share_of(most):
        shares.enter("greedy")
        had += 1
    assert had < most
    with pytest.raises(Overloaded) as refused:
        shares.enter("greedy")
    assert refused.value.code == "too_many_things"
    for _ in range(most - had):
        shares.enter("other" + str(len(shares)))
    with pytest.raises(Overloaded) as full:
        shares.enter("another")
    assert full.value.code == "overloaded"
    shares.leave("greedy")
    shares.enter("greedy")
