"""`baton chat`: finds a server or starts one, and holds a conversation with it."""

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from models.errors import BadInput
from streaming.terminal.api import Address, Api, Unreachable
from streaming.terminal.conversation import Chat
from streaming.terminal.interactive import Interactive
from streaming.terminal.interrupts import Interrupts
from streaming.terminal.loading import until_ready
from streaming.terminal.local_server import local_server
from streaming.terminal.markdown import dim, printable
from streaming.terminal.prompt import unechoed
from streaming.terminal.screen import StreamScreen, TerminalScreen

DEFAULT_URL = "http://127.0.0.1:8000"

_SCRIPT_PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """What the command line says.

    Attributes:
        url: where the server is; None takes the usual place, or a free port if that is taken.
        key: shown with every request.
        session: the session to go on with.
        resume: whether to go on with the newest one.
        model: the model that answers.
        system: the system prompt.
        verbose: whether a single answer's route and times are said too, beside it.
        history: the file of what was typed before.
    """

    url: str | None = None
    key: str | None = None
    session: str | None = None
    resume: bool = False
    model: str | None = None
    system: str | None = None
    verbose: bool = False
    history: Path


async def chat(options: ChatOptions, interrupts: Interrupts) -> None:
    """Converse until the user leaves.

    Raises:
        BatonError: it cannot be begun, or gone on with; the message says why.
    """
    console = Console()
    screen = TerminalScreen(console)
    async with _server(options, console) as (api, check):
        conversation = Chat(api, screen, interrupts, patience_s=float("inf"), check=check)
        console.print(f"[bold]Baton[/] [dim]{api.address.url} · /help lists the commands, Ctrl-D leaves[/]\n")
        try:
            with unechoed():
                await _begin(options, api, conversation, tell=True)
            await Interactive(api, conversation, console, options.history).run()
        finally:
            await conversation.aclose()


async def say_once(options: ChatOptions, interrupts: Interrupts, text: str) -> int:
    """Say `text`, write the answer to the standard output, and return the exit status.

    Raises:
        BatonError: there is no answer; the message says why.
    """
    told = Console(stderr=True)
    notes = told if options.verbose or told.is_terminal else None
    screen = StreamScreen(sys.stdout, told if options.verbose else None)
    async with _server(options, notes) as (api, check):
        conversation = Chat(api, screen, interrupts, patience_s=_SCRIPT_PATIENCE_S, check=check)
        try:
            await _begin(options, api, conversation, tell=False)
            answer = await conversation.ask(text)
        finally:
            await conversation.aclose()
    if answer is None or answer.status == "cancelled":
        return 130
    if answer.problem is not None:
        Console(stderr=True).print(f"baton: {printable(answer.problem)}", style="yellow", markup=False)
    return 1 if answer.status == "failed" else 0


@asynccontextmanager
async def _server(options: ChatOptions, notes: Console | None) -> AsyncIterator[tuple[Api, Callable[[], None]]]:
    """Yield a server that is ready, and what raises once it is known not to come back."""
    quiet = Console(stderr=True, quiet=True)
    address = Address.parse(options.url or DEFAULT_URL)
    api = Api(address, options.key)
    try:
        port = await _port_to_start_on(api, named=bool(options.url))
        if port is None:
            await until_ready(api, notes or quiet, _never_ends)
            yield api, _never_ends
            return
        if notes is not None:
            notes.print(
                dim(f"No server answers at {address.url}: this chat starts one, and ends it on leaving."),
                soft_wrap=True,
            )
        async with local_server(address.host, port) as server:
            await api.aclose()
            api = Api(server.address, options.key)
            await until_ready(api, notes or quiet, server.check)
            yield api, server.check
    finally:
        await api.aclose()


async def _port_to_start_on(api: Api, *, named: bool) -> int | None:
    """Return None if a server answers."""
    try:
        if await api.alive():
            return None
    except Unreachable:
        if not api.address.is_loopback or not api.address.url.startswith("http:"):
            raise
        return api.address.port
    if named:
        raise BadInput(f"What answers at {api.address.url} is not a server of Baton's. Name another --url.")
    return 0


def _never_ends() -> None:
    """Know nothing of a server that somebody else runs."""


async def _begin(options: ChatOptions, api: Api, conversation: Chat, *, tell: bool) -> None:
    """Open the session that the command line names, with the settings that it names."""
    asked = {"model": options.model, "instructions": options.system}
    conversation.chosen = {name: value for name, value in asked.items() if value is not None}
    session_id = options.session
    if options.resume and session_id is None:
        newest = await api.sessions(1)
        if not newest:
            raise BadInput("There is no conversation to go on with. Leave --resume out to begin one.")
        session_id = newest[0]["id"]
    await conversation.open(session_id, tell=tell)
    if session_id is not None and conversation.chosen:
        await conversation.change(**conversation.chosen)
