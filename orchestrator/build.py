"""The composition root of the conductor: constructors in order, closed in reverse."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from agents.writer import Writer
from memory.blobs import BlobStore
from memory.database import Database
from memory.home import Home
from models.catalog import Card
from models.clock import Clock, SystemClock
from models.engines import EngineSpec
from models.errors import BadInput
from models.worker.client import Worker
from orchestrator.graph import DecisionGraph
from orchestrator.meters import Meters
from orchestrator.sessions import Sessions
from orchestrator.settings import Settings
from orchestrator.state import SessionLimits
from orchestrator.turn import Band

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conductor:
    """What the surfaces are given. Everything in it is owned by `conduct`."""

    settings: Settings
    home: Home
    clock: Clock
    registry: CollectorRegistry
    database: Database
    blobs: BlobStore
    cards: tuple[Card, ...]
    worker: Worker
    sessions: Sessions


@asynccontextmanager
async def conduct(settings: Settings) -> AsyncIterator[Conductor]:
    """Build the conductor, run it, and close it again.

    Raises:
        Conflict: another server holds the home.
        BadInput: a setting names a file that cannot be read.
        Internal: the database cannot be opened.
    """
    clock = SystemClock()
    registry = CollectorRegistry()
    meters = Meters(registry)
    with Home(settings.home.expanduser()) as home, _unwrapped():
        database = Database(home.database)
        try:
            cards = catalog(settings)
            worker = Worker({card.name: card.engine for card in cards}, clock, max_requests=settings.max_requests)
            writer = Writer({card.name: worker.engine(card.name) for card in cards})
            band = Band(
                DecisionGraph(cards, max_characters=settings.max_input_characters),
                {"writer": writer},
                clock,
                turn_timeout_s=settings.turn_timeout_s,
                max_output_tokens=settings.max_output_tokens,
            )
            limits = SessionLimits(
                item_characters=settings.max_input_characters,
                items=settings.history_items,
                detach_grace_s=settings.detach_grace_s,
                idle_s=settings.session_idle_s,
            )
            sessions = Sessions(database, band, clock, meters, limits, max_open=settings.max_sessions)
            meters.worker_restarts.set_function(lambda: worker.restarts)
            meters.worker_requests.set_function(lambda: worker.requests)
            meters.writes_waiting.set_function(lambda: database.waiting)
            if recovered := await sessions.recover():
                _log.warning("%d turns were cut off by the last stop; their logs say so now", recovered)
            async with asyncio.TaskGroup() as tasks:
                working = tasks.create_task(worker.run())
                started = asyncio.Event()
                tasks.create_task(sessions.run(started))
                await started.wait()
                try:
                    yield Conductor(
                        settings=settings,
                        home=home,
                        clock=clock,
                        registry=registry,
                        database=database,
                        blobs=BlobStore(home.blobs, database, clock),
                        cards=cards,
                        worker=worker,
                        sessions=sessions,
                    )
                finally:
                    await sessions.stop()
                    working.cancel()
        finally:
            database.close()


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Raise what a task group wraps as it was raised, if it is one thing: callers handle errors, not groups."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None


def catalog(settings: Settings) -> tuple[Card, ...]:
    """Return the cards that are on offer: so far the scripted engine's."""
    options = "{}" if settings.script is None else _read_script(settings.script.expanduser())
    return (
        Card(
            name="scripted",
            engine=EngineSpec(name="scripted", options=options),
            reads=frozenset({"text"}),
            writes=frozenset({"text"}),
            calls_tools=True,
            context_tokens=32_768,
            cost_per_million_tokens=0.0,
        ),
    )


def _read_script(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput(f"BATON_SCRIPT names {path}, which cannot be read: {exc}.", field="script") from exc
