"""`baton keys`: who may call a server that is not on loopback alone."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Column, Table

from memory.home import Home
from models.clock import SystemClock
from orchestrator.settings import Settings
from streaming.commands.errors import explained

if TYPE_CHECKING:
    from sqlalchemy import Connection

T = TypeVar("T")

keys_app = typer.Typer(no_args_is_help=True, help="Make, list and revoke keys. Each names a tenant.")

_out = Console()


@keys_app.command("create")
def create_key(
    tenant: Annotated[str, typer.Option(help="Who the key is for.")],
    name: Annotated[str, typer.Option(help="What you call it.")] = "",
    application: Annotated[
        bool, typer.Option("--application", help="It speaks for many end users, and names one with each call.")
    ] = False,
    per_minute: Annotated[
        int | None, typer.Option(min=1, help="Requests a minute, reading apart; unlimited if left out.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model of its requests that name none.")] = None,
    instructions: Annotated[str | None, typer.Option(help="System message of its requests that have none.")] = None,
    max_output_tokens: Annotated[int | None, typer.Option(min=1, help="Bound of replies, if none is asked.")] = None,
) -> None:
    """Make a key and print it, for the only time."""
    from memory import keys

    defaults = keys.RequestDefaults(model=model, instructions=instructions, max_output_tokens=max_output_tokens)
    kind: keys.KeyKind = "application" if application else "personal"
    key = _run(
        lambda connection: keys.create_key(
            connection, tenant, name, _now_ms(), kind=kind, requests_per_minute=per_minute, defaults=defaults
        )
    )
    _out.print(key, soft_wrap=True, highlight=False)


@keys_app.command("list")
def list_keys() -> None:
    """List every key, without its secret."""
    from memory import keys

    # The id whole, however narrow the terminal: it is what `revoke` takes.
    table = Table(
        Column("id", min_width=29), "state", "kind", "tenant", "name", "made", "a minute", box=None, pad_edge=False
    )
    for key in _run(keys.list_keys):
        rate = "any" if key.requests_per_minute is None else str(key.requests_per_minute)
        state = "good" if key.revoked_ms is None else "revoked"
        table.add_row(key.key_id, state, key.kind, key.tenant, key.name, _date(key.created_ms), rate)
    _out.print(table)


@keys_app.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="The id that `baton keys list` shows.")]) -> None:
    """Make a key worthless, within a second."""
    from memory import keys

    _run(lambda connection: keys.revoke_key(connection, key_id, _now_ms()))


def _run(unit: Callable[["Connection"], T]) -> T:
    """Run one transaction. The database is imported here: it takes longer than the other commands altogether."""
    from memory.database import transaction

    with explained(), transaction(Home(Settings().home).create().database) as connection:
        return unit(connection)


def _now_ms() -> int:
    return int(SystemClock().wall_s() * 1000)


def _date(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d")
