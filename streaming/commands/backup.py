"""`baton backup` and `baton restore`: a home in one file, and back."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal

from memory.backup import backup as write_backup
from memory.backup import restore as read_backup
from memory.home import Home
from models.clock import SystemClock
from orchestrator.settings import Settings
from streaming.commands.errors import explained

_out = Console()


def backup(
    archive: Annotated[
        Path | None, typer.Argument(help="The file to write; baton-DATE-TIME.tar.gz here if left out.")
    ] = None,
) -> None:
    """Write all state to one file: conversations, keys, blobs. The server may go on meanwhile."""
    with explained():
        target = archive or Path(
            datetime.fromtimestamp(SystemClock().wall_s(), UTC).strftime("baton-%Y%m%d-%H%M%S.tar.gz")
        )
        size = write_backup(Home(Settings().home), target)
        _out.print(f"{target}: {decimal(size)}", soft_wrap=True, highlight=False)


def restore(archive: Annotated[Path, typer.Argument(help="A file that `baton backup` has written.")]) -> None:
    """Unpack a backup into BATON_HOME, which must hold no state yet."""
    with explained():
        home = Home(Settings().home)
        read_backup(archive, home)
        _out.print(f"{home.path}: restored", soft_wrap=True, highlight=False)
