"""`baton`: the command line."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from sqlalchemy import Connection

from memory import keys
from memory.database import transaction
from memory.home import Home
from memory.keys import RequestDefaults
from models.clock import SystemClock
from models.errors import BatonError
from orchestrator.settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Baton, a multimodal agent orchestration service.")
keys_app = typer.Typer(no_args_is_help=True, help="Make, list and revoke keys. Each names a tenant.")
app.add_typer(keys_app, name="keys")

_out = Console()
_err = Console(stderr=True)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; beyond loopback a key is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
) -> None:
    """Start the server and print the page's address."""
    # Imported here: the other commands need no web server.
    from streaming.server import serve as run

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    with _explained():
        asyncio.run(run(Settings(), host, port, _announce))


@keys_app.command("create")
def create_key(
    tenant: Annotated[str, typer.Option(help="Who the key is for.")],
    name: Annotated[str, typer.Option(help="What you call it.")] = "",
    per_minute: Annotated[int | None, typer.Option(min=1, help="Requests a minute; unlimited if left out.")] = None,
    model: Annotated[str | None, typer.Option(help="Model of its requests that name none.")] = None,
    instructions: Annotated[str | None, typer.Option(help="System message of its requests that have none.")] = None,
    max_output_tokens: Annotated[int | None, typer.Option(min=1, help="Bound of replies, if none is asked.")] = None,
) -> None:
    """Make a key and print it, for the only time."""
    defaults = RequestDefaults(model=model, instructions=instructions, max_output_tokens=max_output_tokens)
    with _explained(), _transaction() as connection:
        key = keys.create_key(connection, tenant, name, _now_ms(), requests_per_minute=per_minute, defaults=defaults)
    _out.print(key, soft_wrap=True, highlight=False)


@keys_app.command("list")
def list_keys() -> None:
    """List every key, without its secret."""
    # The id whole, however narrow the terminal: it is what `revoke` takes.
    table = Table(Column("id", min_width=29), "state", "tenant", "name", "made", "a minute", box=None, pad_edge=False)
    with _explained(), _transaction() as connection:
        for key in keys.list_keys(connection):
            rate = "any" if key.requests_per_minute is None else str(key.requests_per_minute)
            state = "good" if key.revoked_ms is None else "revoked"
            table.add_row(key.key_id, state, key.tenant, key.name, _date(key.created_ms), rate)
    _out.print(table)


@keys_app.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="The id that `baton keys list` shows.")]) -> None:
    """Make a key worthless from now on."""
    with _explained(), _transaction() as connection:
        keys.revoke_key(connection, key_id, _now_ms())


def _transaction() -> AbstractContextManager[Connection]:
    home = Home(Settings().home.expanduser()).create()
    return transaction(home.database)


@contextmanager
def _explained() -> Iterator[None]:
    """Print an error that the user can do something about, and leave with status 1."""
    try:
        yield
    except ValidationError as exc:
        # Of the settings: everything else that is validated has become a BatonError where it was.
        for error in exc.errors():
            name = "BATON_" + "_".join(str(step) for step in error["loc"]).upper()
            _err.print(f"[bold red]baton:[/] {name}: {escape(error['msg'])}")
        raise typer.Exit(1) from exc
    except (BatonError, OSError) as exc:
        _err.print(f"[bold red]baton:[/] {escape(exc.message if isinstance(exc, BatonError) else str(exc))}")
        raise typer.Exit(1) from exc


def _announce(address: str) -> None:
    _out.print(f"Baton is ready: [bold]{address}[/]", highlight=False)


def _now_ms() -> int:
    return int(SystemClock().wall_s() * 1000)


def _date(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d")
