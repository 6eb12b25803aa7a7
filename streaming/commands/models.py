"""`baton models`: what there is to choose from, and what of it is on this machine."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Annotated

import typer
from rich.console import Console, JustifyMethod
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn
from rich.table import Column, Table
from rich.text import Text

from models.catalog import Card, Catalog, Price
from models.catalog_file import load_catalog
from models.supply.fetch import Stage
from models.supply.store import Store
from orchestrator.settings import Settings
from streaming.commands.errors import explained

models_app = typer.Typer(no_args_is_help=True, help="List, fetch, show and remove models.")

_STAGES: Mapping[Stage, str] = {
    "waiting": "another process fetches it",
    "fetching": "fetching",
    "checking": "checking",
    "converting": "converting",
}

_COLUMNS: Mapping[str, JustifyMethod] = {
    "model": "left",
    "state": "left",
    "size": "right",
    "params": "right",
    "context": "right",
    "licence": "left",
    "$/M tokens": "right",
    "from": "left",
}

_DISPENSABLE = ("from", "licence", "$/M tokens", "params", "context", "size")
"""What a narrow terminal is not shown, in this order."""

_WIDEST = 100_000

_out = Console()


@models_app.command("list")
def list_models() -> None:
    """List every model of the catalog, and whether its weights are here."""
    with explained():
        catalog, store = _opened()
        rows = [_row(card, store) for card in catalog.cards.values()]
        stray = sorted(set(store.names()) - catalog.cards.keys())
        rows += [{"model": name, "state": "in no catalog", "size": _size(store.size_bytes(name))} for name in stray]
    table, left_out = _fitting(rows)
    # At least as wide as its words: a terminal breaks a line better than a table cuts names.
    Console(width=max(_natural(table), _out.width)).print(table)
    if left_out:
        _say(f"\n{_listed(left_out)}: a wider terminal, or `baton models show NAME`.")


@models_app.command("pull")
def pull_models(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="Models or profiles; by default those that the server would serve."),
    ] = None,
) -> None:
    """Fetch the weights of models, if they are not here."""
    with explained():
        catalog, store = _opened()
        for card in catalog.select(names or Settings().models):
            if not card.sources:
                _say(f"{card.name} needs no weights.")
            elif store.folder(card) is not None:
                _say(f"{card.name} is here already.")
            else:
                _pull(card, store)
                _say(f"{card.name} is here: {_size(store.size_bytes(card.name))} in {store.folder(card)}")


@models_app.command("show")
def show_model(name: Annotated[str, typer.Argument(help="A model, or an alias of one.")]) -> None:
    """Show everything that is known of a model."""
    table = Table(
        Column(style="dim", no_wrap=True), Column(overflow="fold"), box=None, pad_edge=False, show_header=False
    )
    with explained():
        catalog, store = _opened()
        for field, value in _facts(catalog.card(name), catalog, store):
            _add(table, field, value)
    _out.print(table)


@models_app.command("remove")
def remove_model(name: Annotated[str, typer.Argument(help="A model that `baton models list` shows.")]) -> None:
    """Remove a model's weights from this machine."""
    with explained():
        catalog, store = _opened()
        # Weights may be stored of a card that is in no catalog any more.
        stored = name if name in store.names() else catalog.card(name).name
        freed = store.remove(stored)
        _say(f"{stored} is removed: {_size(freed)}." if freed else f"Nothing is stored of {stored}.")


def _row(card: Card, store: Store) -> dict[str, str]:
    # A commit is forty digits; `show` has it.
    sources = ", ".join(str(source).partition("@")[0] for source in card.sources)
    return {
        "model": card.name,
        "state": _state(card, store),
        "size": _size(store.size_bytes(card.name)),
        "params": _count(card.parameters),
        "context": _count(card.context_tokens),
        "licence": card.licence or "",
        "$/M tokens": _dollars(card.price, ".2g"),
        "from": sources or f"engine {card.engine.name}",
    }


def _dollars(price: Price, form: str) -> str:
    """Return what a million tokens cost: one number where all cost the same, else input, cached input and output."""
    numbers = (price.input, price.cached_input, price.output)
    return f"{price.input:{form}}" if len(set(numbers)) == 1 else "/".join(f"{number:{form}}" for number in numbers)


def _extras(price: Price) -> str:
    told = [(price.per_second, "a second"), (price.per_image, "a picture")]
    return "".join(f", ${number:.3g} for {what}" for number, what in told if number)


def _fitting(rows: Sequence[Mapping[str, str]]) -> tuple[Table, list[str]]:
    """Return the table of as many columns as the terminal has room for, and the names of the others."""
    shown, left_out = list(_COLUMNS), []
    for dispensable in (None, *_DISPENSABLE):
        if dispensable is not None:
            shown.remove(dispensable)
            left_out.append(dispensable)
        columns = (Column(name, no_wrap=True, justify=_COLUMNS[name]) for name in shown)
        table = Table(*columns, box=None, pad_edge=False)
        for row in rows:
            _add(table, *(row.get(name, "") for name in shown))
        if _natural(table) <= _out.width:
            break
    return table, left_out


def _natural(table: Table) -> int:
    """Return how wide a table is of which nothing is cut."""
    return _out.measure(table, options=_out.options.update(max_width=_WIDEST)).maximum


def _listed(words: Sequence[str]) -> str:
    *rest, last = words
    return f"For {', '.join(rest)} and {last}" if rest else f"For {last}"


def _opened() -> tuple[Catalog, Store]:
    settings = Settings()
    return load_catalog(*settings.catalogs), Store(settings.cache, allowed=settings.trusts)


def _pull(card: Card, store: Store) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=_out, transient=True) as bar, closing(store.pull(card)) as steps:
        task, stage = bar.add_task(card.name, total=None), None
        for step in steps:
            if step.stage != stage:
                # A new one, because a task that has a total once keeps one.
                bar.remove_task(task)
                task, stage = bar.add_task(f"{card.name}: {_STAGES[step.stage]}", total=None), step.stage
            bar.update(task, completed=step.done_bytes, total=step.total_bytes)


def _facts(card: Card, catalog: Catalog, store: Store) -> Iterator[tuple[str, str]]:
    yield "model", card.name
    yield "aliases", ", ".join(sorted(alias for alias, name in catalog.aliases.items() if name == card.name)) or "none"
    yield (
        "profiles",
        ", ".join(sorted(name for name, cards in catalog.profiles.items() if card.name in cards)) or "none",
    )
    yield "description", card.description
    yield "state", _state(card, store)
    if (folder := store.folder(card)) is not None:
        yield "folder", str(folder)
        yield "size", _size(store.size_bytes(card.name))
    yield "reads", ", ".join(sorted(card.reads))
    yield "writes", ", ".join(sorted(card.writes))
    yield "calls tools", "yes" if card.calls_tools else "no"
    yield "forms", ", ".join(sorted(card.forms)) or "none"
    yield "context", f"{card.context_tokens:,} tokens"
    yield "parameters", "not stated" if card.parameters is None else f"{card.parameters:,}"
    yield "licence", card.licence or "not stated"
    yield "price", f"${_dollars(card.price, '.3g')} for a million tokens{_extras(card.price)}"
    yield "temperature", f"{card.temperature:g}, unless a request names another"
    yield "top_p", f"{card.top_p:g}, unless a request names another"
    yield "engine", card.engine.name
    if card.engine.options != "{}":
        yield "options", card.engine.options
    for source in card.sources:
        yield "source", f"{source} ({source.trust})"
        for file in source.files:
            size = "" if file.size_bytes is None else f", {_size(file.size_bytes)}"
            yield "", f"{file.path}{size}"
            if file.sha256 is not None:
                yield "", f"sha-256 {file.sha256}"


def _state(card: Card, store: Store) -> str:
    if not card.sources:
        return "no weights"
    return "not fetched" if store.folder(card) is None else "ready"


def _size(size_bytes: int) -> str:
    return decimal(size_bytes) if size_bytes else ""


def _count(number: int | None) -> str:
    """Return a number as people say it of models: 135M, 4.0B, 8K."""
    if number is None:
        return ""
    for unit, letter in ((10**9, "B"), (10**6, "M")):
        if number >= unit:
            scaled = number / unit
            return f"{scaled:.0f}{letter}" if scaled >= 10 else f"{scaled:.1f}{letter}"
    return f"{number // 1024}K"


def _add(table: Table, *cells: str) -> None:
    """Add a row of plain text: a card's words are the user's, and may hold what rich takes for markup."""
    table.add_row(*map(Text, cells))


def _say(line: str) -> None:
    _out.print(line, soft_wrap=True, highlight=False, markup=False)
