"""`baton chat`: the terminal's client."""

import asyncio
import sys
from typing import Annotated

import typer

from memory.home import Home
from models.errors import BadInput
from orchestrator.settings import Settings
from streaming.commands.errors import explained

_SIGNALLED = 128


def chat(
    message: Annotated[
        list[str] | None,
        typer.Argument(help="What to say: prints the answer and leaves. '-' stands for the standard input."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(envvar="BATON_URL", help="The server; on this machine one is started if none answers there."),
    ] = None,
    key: Annotated[str | None, typer.Option(envvar="BATON_KEY", help="Your key, if the server asks for one.")] = None,
    session: Annotated[str | None, typer.Option(help="Go on with this conversation.")] = None,
    resume: Annotated[bool, typer.Option("--resume", "-r", help="Go on with the newest conversation.")] = False,
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model that answers.")] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="The system prompt.")] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Beside a single answer, say its route and times on stderr.")
    ] = False,
) -> None:
    """Talk to a model in the terminal; starts a server if none runs on this machine."""
    # Imported here: the other commands need no client.
    from streaming.terminal.chat import ChatOptions, say_once
    from streaming.terminal.chat import chat as converse
    from streaming.terminal.interrupts import Interrupts

    interrupts = Interrupts()

    async def run(options: ChatOptions, text: str | None) -> int:
        with interrupts.installed():
            if text is not None:
                return await say_once(options, interrupts, text)
            await converse(options, interrupts)
            return 0

    with explained():
        text = _text(message or [])
        options = ChatOptions(
            url=url,
            key=key,
            session=session,
            resume=resume,
            model=model,
            system=system,
            verbose=verbose,
            history=Home(Settings().home.expanduser()).create().chat_history,
        )
        try:
            status = asyncio.run(run(options, text))
        except asyncio.CancelledError:
            if interrupts.left_by is None:
                raise
            status = _SIGNALLED + interrupts.left_by
    raise typer.Exit(status)


def _text(words: list[str]) -> str | None:
    """Return what is to be said once, or None for a conversation."""
    # With a message, the standard input is read only if asked for: in a script it may be somebody else's.
    if "-" in words or not (words or sys.stdin.isatty()):
        words = [" ".join(word for word in words if word != "-") + "\n\n" + sys.stdin.read()]
    if text := " ".join(words).strip():
        return text
    if sys.stdin.isatty() and sys.stdout.isatty():
        return None
    raise BadInput("There is nothing to say. Give a message, or run this in a terminal.")
