"""`baton serve`: the server, and in the terminal how its models come up."""

import asyncio
import gc
import logging
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TaskID, TextColumn, TransferSpeedColumn

from models.clock import SystemClock, sleep_until
from models.placement.fleet import CardStatus, ServedCards
from orchestrator.settings import Settings
from streaming.commands.errors import explained
from streaming.readiness import readiness

_EVERY_S = 0.2

_out = Console()


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; beyond loopback a key is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate in PEM, with its chain: the server speaks TLS.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key in PEM, without a password.")] = None,
) -> None:
    """Start the server and print the page's address."""
    # Imported here: the other commands need no web server.
    from streaming.edge.tls import tls_context
    from streaming.server import serve as run

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # The event loop shares the interpreter with the database's thread: it should get it back within a millisecond.
    sys.setswitchinterval(0.001)
    with explained():
        tls, told = tls_context(tls_cert, tls_key), _Told()
        # With TLS not uvloop's: it reads what a client sends at once although `connection_made` has paused it, so that
        # the first bytes, which `start_tls` needs, would be lost.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop if tls is None else None) as runner:
            runner.run(run(Settings(), host, port, told.announce, watch=told.watch, tls=tls))


def _spare_the_collector() -> None:
    """Have it pass over what was imported, which stays.

    Looking through all of that again and again stopped every answer for a tenth of a second (`benchmarks/overhead.py`:
    the 99th percentile of the first token over the websocket fell to a third).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


class _Told:
    """What the terminal is told: the address at once, how the models come up, and when one can answer."""

    def __init__(self) -> None:
        self._address = ""
        self._is_announced = asyncio.Event()

    def announce(self, address: str) -> None:
        """Say where the server is; a model is still on its way."""
        _spare_the_collector()
        self._address = address
        self._is_announced.set()
        _out.print(
            f"The page is open, and its model still on the way: [bold]{address}[/]", highlight=False, soft_wrap=True
        )

    async def watch(self, fleet: ServedCards) -> None:
        """Show how the models come up, until one can answer: bars in a terminal, a line a change elsewhere."""
        await self._is_announced.wait()
        clock = SystemClock()
        told: dict[str, str] = {}
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
        )
        progress = Progress(*columns, console=_out, transient=True)
        live: AbstractContextManager[object] = progress if _out.is_terminal else nullcontext()
        bars: dict[str, TaskID] = {}
        has_failed = False
        with live:
            while True:
                for card in fleet.cards:
                    standing = fleet.standing(card.name)
                    if told.get(card.name) != standing.state:
                        told[card.name] = standing.state
                        _tell(card.name, standing)
                    _draw(progress, bars, card.name, standing)
                _, body = readiness(fleet, None)
                if body["status"] == "ready":
                    break
                if body["status"] == "failed" and not has_failed:
                    has_failed = True
                    _out.print("No model can answer; the log says why. It is tried again.", highlight=False)
                await sleep_until(clock, clock.now_s() + _EVERY_S)
        _out.print(f"Baton is ready: [bold]{self._address}[/]", highlight=False, soft_wrap=True)


def _tell(name: str, standing: CardStatus) -> None:
    if standing.state == "ready":
        _out.print(f"[green]✓[/] {name} is ready", highlight=False)
    elif standing.state in {"fetching", "converting", "loading"} and not _out.is_terminal:
        _out.print(f"{name}: {standing.state}", highlight=False)
    # A failure is in the log, with its reason.


def _draw(progress: Progress, bars: dict[str, TaskID], name: str, standing: CardStatus) -> None:
    if standing.state in {"ready", "failed", "waiting"}:
        if (bar := bars.pop(name, None)) is not None:
            progress.remove_task(bar)
        return
    if name not in bars:
        bars[name] = progress.add_task(name, total=None)
    progress.update(
        bars[name],
        description=f"{name}: {standing.state}",
        completed=standing.done_bytes,
        total=standing.total_bytes if standing.state == "fetching" else None,
    )
