"""`baton`: the command line. Each command is a module of `streaming.commands`."""

from importlib.metadata import version
from typing import Annotated

import typer

from streaming.commands.backup import backup, restore
from streaming.commands.chat import chat
from streaming.commands.keys import keys_app
from streaming.commands.models import models_app
from streaming.commands.replay import replay
from streaming.commands.serve import serve

app = typer.Typer(no_args_is_help=True, add_completion=False)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"baton {version('baton')}")
        raise typer.Exit


@app.callback()
def baton(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="Print the version and leave.")
    ] = False,
) -> None:
    """A conversation service for language models: each turn goes to the cheapest model that can take it."""


app.command()(serve)
app.command()(chat)
app.add_typer(models_app, name="models")
app.add_typer(keys_app, name="keys")
app.command()(replay)
app.command()(backup)
app.command()(restore)
