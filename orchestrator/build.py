"""The composition root of the conductor: constructors in order, closed in reverse."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from prometheus_client import CollectorRegistry

from agents.tools.python import Tools, load_tools
from agents.writer import Writer
from memory.blobs import BlobStore
from memory.database import Database
from memory.home import Home
from memory.log import Lease
from models.catalog import Card, unknown_model
from models.catalog_file import load_catalog
from models.clock import Clock, SystemClock
from models.errors import BadInput
from models.owner import Owner
from models.placement.budget import available_threads, shares
from models.placement.client import Worker
from models.placement.engines import Place, place_of
from models.placement.fleet import ServedCards
from models.shares import share_of
from models.supply.store import Store
from orchestrator.act.completions import Completions
from orchestrator.act.context import Contexts
from orchestrator.act.execute import Executor, TurnLimits
from orchestrator.act.vetting import Vetting
from orchestrator.decide.decider import Decider
from orchestrator.limits import SessionLimits
from orchestrator.meters import Meters
from orchestrator.sessions.registry import Sessions
from orchestrator.settings import Settings

_log = logging.getLogger(__name__)

_FORGET_S = 10.0
_LEASE_MARGIN_S = 60.0
"""How much longer than a turn may take a server may be taken to run it: for its decision, and for clocks that differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conductor:
    """What the surfaces are given. Everything in it is owned by `conduct`."""

    settings: Settings
    home: Home
    clock: Clock
    registry: CollectorRegistry
    database: Database
    blobs: BlobStore
    fleet: ServedCards
    workers: Mapping[Place, Worker]
    sessions: Sessions
    completions: Completions
    executor: Executor
    vetting: Vetting
    tools: Tools

    async def drain(self) -> None:
        """Take no turn any more, and wait for those that run, `settings.drain_s` at most."""
        deadline_s = self.clock.now_s() + self.settings.drain_s
        await self.executor.admission.drain(deadline_s)
        await self.sessions.until_free(deadline_s)

    async def forget(self, owner: Owner) -> None:
        """Have every engine let go of what it keeps of an owner, a tenant's own being all of the tenant's; waits for `_FORGET_S` at most."""
        try:
            async with self.clock.timeout_at(self.clock.now_s() + _FORGET_S):
                await self.fleet.forget(owner.tenant, owner.subject)
        except TimeoutError:
            _log.error("what engines keep of a tenant was not forgotten within %s s; it is when they go on", _FORGET_S)

    def check_model(self, name: str) -> None:
        """Check that a model is served.

        Raises:
            NotFound: it is not; the message lists those that are.
        """
        if name not in self.fleet.names:
            raise unknown_model(name, self.fleet.names)


@asynccontextmanager
async def conduct(settings: Settings) -> AsyncIterator[Conductor]:
    """Build the conductor, run it, and close it again.

    Raises:
        Conflict: another server holds the home.
        BadInput: a setting names a file that cannot be read, or tools that cannot be loaded.
        Internal: the database cannot be opened.
    """
    clock = SystemClock()
    registry = CollectorRegistry()
    meters = Meters(registry)
    with Home(settings.home) as home, _unwrapped():
        database = Database(home.database, clock)
        try:
            cards, aliases = served(settings)
            workers = _workers(cards, settings, clock)
            fleet = ServedCards(cards, aliases, Store(settings.cache, allowed=settings.trusts), workers, clock)
            fleet.build()
            decider = Decider(fleet, max_characters=settings.max_input_characters)
            tools = Tools() if settings.tools is None else load_tools(settings.tools)
            agents = {"writer": Writer(fleet.engines)}
            executor = Executor(decider, fleet, agents, clock, _turn_limits(settings), tools)
            contexts = Contexts(fleet, max_output_tokens=settings.max_output_tokens)
            vetting = Vetting(fleet, decider, contexts, clock)
            blobs = BlobStore(home.blobs, database, clock)
            sessions = Sessions(
                database,
                executor,
                clock,
                meters,
                _session_limits(settings),
                max_open=settings.max_sessions,
                max_tenant_open=settings.max_tenant_sessions,
                blobs=blobs,
                lease=Lease(owner=home.identity(), length_ms=round((settings.turn_timeout_s + _LEASE_MARGIN_S) * 1000)),
            )
            meters.worker_restarts.set_function(lambda: sum(worker.restarts for worker in workers.values()))
            meters.worker_requests.set_function(lambda: sum(worker.requests for worker in workers.values()))
            meters.writes_waiting.set_function(lambda: database.waiting)
            meters.turns.set_function(lambda: executor.admission.turns)
            try:
                await blobs.sweep()
                if recovered := await sessions.recover():
                    _log.warning("%d turns were cut off by the last stop; their logs say so now", recovered)
                async with asyncio.TaskGroup() as tasks:
                    running = [
                        *(tasks.create_task(worker.run()) for worker in workers.values()),
                        tasks.create_task(fleet.run()),
                    ]
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
                            blobs=blobs,
                            fleet=fleet,
                            workers=workers,
                            sessions=sessions,
                            completions=Completions(executor, meters, _session_limits(settings)),
                            executor=executor,
                            vetting=vetting,
                            tools=tools,
                        )
                    finally:
                        await sessions.stop()
                        for task in running:
                            task.cancel()
            finally:
                tools.close()
                await vetting.aclose()
                await fleet.aclose()
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


def served(settings: Settings) -> tuple[tuple[Card, ...], Mapping[str, str]]:
    """Return the cards that are on offer, and further names of them.

    Raises:
        BadInput: a catalog or a script cannot be read, or does not fit.
        NotFound: a model that is to be served is not in the catalog.
    """
    catalog = load_catalog(*settings.catalogs)
    cards = catalog.select(settings.models)
    if settings.script is not None:
        script = _read_script(settings.script.expanduser())
        cards = tuple(
            replace(card, engine=replace(card.engine, options=script)) if card.engine.name == "scripted" else card
            for card in cards
        )
    return cards, catalog.aliases


def _workers(cards: Sequence[Card], settings: Settings, clock: Clock) -> Mapping[Place, Worker]:
    """Return the worker processes that the cards need; the one that answers is started in any case, at once."""
    places: frozenset[Place] = frozenset(
        ("decoding", *(place for card in cards if (place := place_of(card.engine.name)) is not None))
    )
    all_threads = settings.threads or available_threads()
    return {
        place: Worker(
            {},
            clock,
            place=place,
            # All of the machine is what libraries take by themselves, who know its cores better than their number.
            threads=None if settings.threads is None and threads == all_threads else threads,
            lazy=place != "decoding",
            max_requests=settings.max_requests,
            max_tenant_requests=settings.max_tenant_requests,
        )
        for place, threads in shares(all_threads, places).items()
    }


def _turn_limits(settings: Settings) -> TurnLimits:
    return TurnLimits(
        turn_timeout_s=settings.turn_timeout_s,
        max_output_tokens=settings.max_output_tokens,
        turns=settings.max_turns,
        tenant_turns=settings.max_tenant_turns or min(256, share_of(settings.max_turns)),
        guesses=settings.max_guesses,
        approval_s=settings.approval_timeout_s,
    )


def _session_limits(settings: Settings) -> SessionLimits:
    return SessionLimits(
        item_characters=settings.max_input_characters,
        items=settings.history_items,
        detach_grace_s=settings.detach_grace_s,
        idle_s=settings.session_idle_s,
    )


def _read_script(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput(f"BATON_SCRIPT names {path}, which cannot be read: {exc}.", field="script") from exc
