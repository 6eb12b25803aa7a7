"""`baton serve`: the server, and in the terminal how its models come up."""

import asyncio
import gc
import logging
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TaskID, TextColumn, TransferSpeedColumn

from models.clock import SystemClock, sleep_until
from models.fleet import Fleet, Standing
from orchestrator.settings import Settings
from streaming.commands.errors import explained

_EVERY_S = 0.2

_out = Console()


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; beyond loopback a key is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
) -> None:
    """Start the server and print the page's address."""
    # Imported here: the other commands need no web server.
    from streaming.server import serve as run

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # The event loop shares the interpreter with the database's thread: it should get it back within a millisecond.
    sys.setswitchinterval(0.001)
    with explained(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(Settings(), host, port, _announce, watch=watch))


def _announce(address: str) -> None:
    _spare_the_collector()
    _out.print(f"Baton is ready: [bold]{address}[/]", highlight=False)


def _spare_the_collector() -> None:
    """Have it pass over what was imported, which stays.

    Looking through all of that again and again stopped every answer for a tenth of a second (`benchmarks/overhead.py`:
    the 99th percentile of the first token over the websocket fell to a third).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


async def watch(fleet: Fleet) -> None:
    """Show how the models come up, until each is up or has failed: bars in a terminal, a line a change elsewhere."""
    clock = SystemClock()
    told: dict[str, str] = {}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    progress = Progress(*columns, console=_out, transient=True)
    live: AbstractContextManager[object] = progress if _out.is_terminal else nullcontext()
    bars: dict[str, TaskID] = {}
    with live:
        while True:
            standings = {card.name: fleet.standing(card.name) for card in fleet.cards}
            for name, standing in standings.items():
                if told.get(name) != standing.state:
                    told[name] = standing.state
                    _tell(name, standing)
                _draw(progress, bars, name, standing)
            if all(standing.state in {"ready", "failed"} for standing in standings.values()):
                return
            await sleep_until(clock, clock.now_s() + _EVERY_S)


def _tell(name: str, standing: Standing) -> None:
    if standing.state == "ready":
        _out.print(f"[green]✓[/] {name} is ready", highlight=False)
    elif standing.state in {"fetching", "converting", "loading"} and not _out.is_terminal:
        _out.print(f"{name}: {standing.state}", highlight=False)
    # A failure is in the log, with its reason.


def _draw(progress: Progress, bars: dict[str, TaskID], name: str, standing: Standing) -> None:
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
