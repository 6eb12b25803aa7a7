"""Waiting for the models: what `/readyz` says, as bars."""

import asyncio
from collections.abc import Callable

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from models.errors import BatonError
from streaming.terminal.api import Api, Json

_POLL_S = 0.2

_WORDS = {
    "waiting": "waits",
    "fetching": "is being fetched",
    "converting": "is being converted, once",
    "loading": "is being loaded",
    "ready": "is ready",
    "failed": "failed",
}


class NoModel(BatonError):
    """No model of the server can be used; the message says why, of each."""

    code = "no_model"


async def until_ready(api: Api, console: Console, check: Callable[[], None]) -> None:
    """Wait until a model can be asked, and show how far they are.

    Args:
        api: the server.
        console: where to show it.
        check: raises if there is nothing to wait for any more.

    Raises:
        NoModel: all have failed.
    """
    if (readiness := await api.readiness())["status"] == "ready":
        return
    told, size = TextColumn("{task.description}"), TextColumn("{task.fields[size]}")
    with Progress(told, BarColumn(), size, TimeElapsedColumn(), console=console, transient=True) as progress:
        bars: dict[str, TaskID] = {}
        while readiness["status"] == "loading":
            for model in readiness["models"]:
                name = model["id"]
                if name not in bars:
                    bars[name] = progress.add_task("", total=None, size="")
                done, total = model["done_bytes"], model["total_bytes"]
                progress.update(
                    bars[name], description=words(model), completed=done, total=total, size=_size(done, total)
                )
            check()
            await asyncio.sleep(_POLL_S)
            readiness = await api.readiness()
    if readiness["status"] == "failed":
        if "storage" in readiness:
            raise NoModel(readiness["storage"]["message"])
        raise NoModel(" ".join(words(model) for model in readiness["models"]) or "This server serves no model.")


def _size(done: int, total: int | None) -> str:
    return f"{decimal(done)} of {decimal(total)}" if total else ""


def words(model: Json) -> str:
    """Return how far a model is, as a sentence without its end if it goes on."""
    said = f"{model['id']} {_WORDS.get(model['state'], model['state'])}"
    return f"{said}: {model['message']}" if model.get("message") else said
