"""What every command does with an error that its user can do something about."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from models.errors import BatonError

_err = Console(stderr=True)


@contextmanager
def explained() -> Iterator[None]:
    """Print an error that the user can do something about, and leave with status 1."""
    try:
        yield
    except ValidationError as exc:
        # Of the settings: everything else that is validated has become a BatonError where it was.
        for error in exc.errors():
            name = "BATON_" + "_".join(str(step) for step in error["loc"]).upper()
            _err.print(f"[bold red]baton:[/] {name}: {escape(error['msg'])}", soft_wrap=True)
        raise typer.Exit(1) from exc
    except (BatonError, OSError) as exc:
        text = exc.message if isinstance(exc, BatonError) else str(exc)
        _err.print(f"[bold red]baton:[/] {escape(text)}", soft_wrap=True)
        raise typer.Exit(1) from exc
