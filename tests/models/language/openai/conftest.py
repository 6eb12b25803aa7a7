"""The openai engine and a real server of its own on loopback, on a clock that the test moves."""

import json
from collections.abc import AsyncIterator, Callable

import pytest
from support.openai_server import OpenAIServer, openai_server

from models.catalog import EngineSpec
from models.clock import ManualClock
from models.language.openai.engine import OpenAIEngine, build
from models.ports.context import EngineContext


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with openai_server() as server:
        yield server


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def make(server: OpenAIServer, clock: ManualClock) -> AsyncIterator[Callable[..., OpenAIEngine]]:
    made: list[OpenAIEngine] = []

    def make(**options: object) -> OpenAIEngine:
        options = {"base_url": server.base_url, "model": "fake", **options}
        made.append(build(EngineSpec(name="openai", options=json.dumps(options)), EngineContext(clock=clock)))
        return made[-1]

    yield make
    for engine in made:
        await engine.aclose()


@pytest.fixture
def pauses(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let pauses between attempts pass at once, and say how long they were."""
    lasted: list[float] = []

    async def pass_by(clock: ManualClock, until_s: float) -> None:
        lasted.append(until_s - clock.now_s())
        clock.advance(lasted[-1])

    monkeypatch.setattr("models.language.openai.engine.sleep_until", pass_by)
    return lasted


@pytest.fixture
def engine(make: Callable[..., OpenAIEngine]) -> OpenAIEngine:
    return make()
