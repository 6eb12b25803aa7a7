"""`baton`: the command line. Each command is a module of `streaming.commands`."""

import typer

from streaming.commands.backup import backup, restore
from streaming.commands.chat import chat
from streaming.commands.keys import keys_app
from streaming.commands.models import models_app
from streaming.commands.serve import serve

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Baton, a multimodal agent orchestration service.")
app.command()(serve)
app.command()(chat)
app.add_typer(models_app, name="models")
app.add_typer(keys_app, name="keys")
app.command()(backup)
app.command()(restore)
