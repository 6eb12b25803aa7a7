"""`baton replay`: how a turn was decided, what was done about it, and what would have been decided otherwise."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from memory.home import Home
from models.clock import SystemClock
from models.errors import NotFound
from orchestrator.settings import Settings
from streaming.commands.errors import explained

if TYPE_CHECKING:
    from orchestrator.trace.record import TracedCall, TurnTrace
    from orchestrator.trace.replay import Replayed

_out = Console()


def replay(
    session: Annotated[str, typer.Argument(help="The session's id.")],
    turn: Annotated[
        str | None, typer.Argument(help="The turn: its place (1 is the first) or its id; the last if left out.")
    ] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option(help="Decide it from other inputs: KEY=VALUE, such as card.small=down or model=large."),
    ] = None,
    tenant: Annotated[str, typer.Option(help="Whose session it is.")] = "local",
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show how a turn was decided and done, and decide it again. The server may go on meanwhile."""
    # Imported here: they take longer than the other commands altogether.
    from orchestrator.trace.wire import changes_of, wire_replay, wire_trace

    with explained():
        changes = changes_of(what_if or [])
        trace, again = asyncio.run(_replayed(tenant, session, turn, changes))
    if as_json:
        _out.print_json(json.dumps({**wire_trace(trace), "replay": wire_replay(again, changes)}))
        return
    _show_turn(trace)
    _show_tasks(trace)
    _show_again(again, changes)


async def _replayed(
    tenant: str, session: str, turn: str | None, changes: Mapping[str, str]
) -> tuple["TurnTrace", "Replayed"]:
    from memory.database import Database
    from memory.sessions import owner_of
    from orchestrator.sessions.journal import read_rows
    from orchestrator.trace.record import Tracer
    from orchestrator.trace.replay import replay as decide_again

    home = Home(Settings().home)
    if not home.database.exists():
        raise NotFound(f"There is no home at {home.path}: nothing was ever served from it.")
    database = Database(home.database)
    try:
        tracer, owner = Tracer(session), await database.read(lambda c: owner_of(c, tenant, session))
        async with aclosing(read_rows(database, SystemClock(), owner, session)) as pages:
            async for rows in pages:
                tracer.take(rows)
        trace = tracer.turn(turn)
        return trace, await decide_again(trace.decision, changes)
    finally:
        database.close()


def _show_turn(trace: "TurnTrace") -> None:
    ended, decision = trace.ended, trace.decision
    took = "" if ended is None or ended.duration_ms is None else f" after {ended.duration_ms:,} ms"
    why = "" if ended is None else f" ({ended.fault.message if ended.fault else ended.reason})"
    _out.print(
        f"[bold]Turn {trace.ordinal}[/] of {trace.session_id}, {trace.turn_id}: {trace.state}{took}{escape(why)}"
    )
    _out.print(f"[bold]{decision.agent}[/] on [bold]{escape(decision.card)}[/]: {escape(', '.join(decision.remarks))}")
    if decision.refused:
        table = Table("not", "because", box=None, pad_edge=False)
        for refused in decision.refused:
            table.add_row(escape(refused.card), escape(refused.reason))
        _out.print(table)


def _show_tasks(trace: "TurnTrace") -> None:
    if not trace.tasks:
        return
    right: Any = {"justify": "right"}
    table = Table(
        "task", "who", "model", "state", *(Column(name, **right) for name in ("in", "cached", "out", "from", "to")),
        box=None, pad_edge=False,
    )  # fmt: skip
    for task in trace.tasks:
        state = task.state if task.fault is None else f"{task.state}: {task.fault.code}"
        used = task.usage
        counts = (used.input_tokens, used.cached_tokens, used.output_tokens)
        table.add_row(
            task.task_id.rpartition(".")[2],
            task.agent,
            escape(task.card),
            state,
            *(f"{count:,}" if count else "" for count in counts),
            "" if task.started_ms is None else f"{task.started_ms:,} ms",
            "" if task.ended_ms is None else f"{task.ended_ms:,} ms",
        )
    _out.print(table)
    for call in trace.calls:
        _out.print(f"call of [bold]{escape(call.name)}[/]: {escape(', '.join(_facts(call)))}")


def _facts(call: "TracedCall") -> Sequence[str]:
    facts = [f"run by the {call.runner}"]
    if call.effect is not None:
        facts.append(call.effect)
    if call.approval is not None:
        said = {"asked": "waits to be allowed", "given": "was allowed", "refused": "was not allowed"}[call.approval]
        facts.append(said if call.why is None else f"{said}: {call.why}")
    facts.append("has its result" if call.is_answered else "has no result")
    return facts


def _show_again(again: "Replayed", changes: Mapping[str, str]) -> None:
    what = "Decided again" if not changes else f"With {', '.join(f'{key}={value}' for key, value in changes.items())}"
    if not again.differences:
        _out.print(f"[bold green]{escape(what)}: the same[/]")
        return
    _out.print(f"[bold yellow]{escape(what)}: different[/]")
    for difference in again.differences:
        _out.print(f"  {escape(difference)}", soft_wrap=True)
