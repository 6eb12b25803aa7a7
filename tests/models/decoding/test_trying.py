"""Small schemas are tried where what takes for ever takes it from nobody."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from models.clock import SystemClock
from models.decoding.trying import Trying
from models.errors import LimitExceeded

_ENDLESS = {"type": "number", "multipleOf": 134217727}


@pytest.fixture
async def trying() -> AsyncIterator[Trying]:
    made = Trying(SystemClock())
    yield made
    await made.aclose()


async def test_what_a_grammar_can_be_made_of_is_held_and_what_not_is_not(trying):
    holds = trying.begin()
    assert await asyncio.to_thread(holds, {"type": "string", "pattern": "^a+$"})
    assert not await asyncio.to_thread(holds, {"type": "string", "pattern": "("})


async def test_what_takes_too_long_is_not_held_and_the_next_is_tried_all_the_same(trying):
    holds = trying.begin()
    async with asyncio.timeout(30):
        assert not await asyncio.to_thread(holds, _ENDLESS)
        assert await asyncio.to_thread(holds, {"type": "integer", "minimum": 3})


async def test_a_request_may_try_only_so_long(trying, monkeypatch):
    monkeypatch.setattr("models.decoding.trying._MOST_S", 0.5)
    holds = trying.begin()
    assert not await asyncio.to_thread(holds, _ENDLESS)
    with pytest.raises(LimitExceeded):
        await asyncio.to_thread(holds, {"type": "integer", "minimum": 3})
    assert await asyncio.to_thread(trying.begin(), {"type": "integer", "minimum": 3})
