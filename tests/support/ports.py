"""The implementations of each port, in this process and in a worker's.

To add one: a name and its spec in `SPECS`; weights are those of the catalog's card of that name.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import pytest

from models.catalog import EngineSpec
from models.catalog_file import load_catalog
from models.clock import SystemClock
from models.placement.client import Worker
from models.placement.engines import build_engine
from models.ports.context import EngineContext
from models.supply.fetch import FetchFailed
from models.supply.store import Store
from orchestrator.settings import Settings

Opened = Callable[[EngineSpec], AbstractAsyncContextManager[object]]


def spec_of(card: str) -> EngineSpec:
    """Return what builds the engine of a card of the catalog, its weights fetched if need be."""
    found, store = load_catalog().card(card), Store(Settings().cache)
    try:
        deque(store.pull(found), maxlen=0)
    except FetchFailed as exc:
        pytest.skip(f"the weights of {card} are not here: {exc.message}")
    return EngineSpec(name=found.engine.name, options=found.engine.options, folder=str(store.folder(found)))


SPECS: Mapping[str, Callable[[], EngineSpec]] = {
    "minilm": lambda: spec_of("all-minilm-l6-v2"),
    "silero": lambda: spec_of("silero-vad"),
    **{
        f"scripted-{port}": lambda port=port: EngineSpec(name=f"scripted-{port}")
        for port in ("embed", "activity", "transcribe", "synthesize")
    },
}


@asynccontextmanager
async def here(spec: EngineSpec) -> AsyncIterator[object]:
    """Run an engine in this process."""
    engine = await asyncio.to_thread(build_engine, spec, EngineContext(clock=SystemClock(), threads=1))
    try:
        yield engine
    finally:
        await engine.aclose()


@asynccontextmanager
async def through_a_worker(spec: EngineSpec) -> AsyncIterator[object]:
    """Run an engine in a worker process of the senses."""
    worker = Worker({"card": spec}, SystemClock(), place="senses", threads=1)
    running = asyncio.create_task(worker.run())
    try:
        await worker.until_settled("card")
        yield worker.door("card")
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
