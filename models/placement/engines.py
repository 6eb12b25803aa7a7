"""Engines by name.

The registry maps a name to a factory that is imported only when it is asked for, so that a process holds the
libraries of the engines it runs and no others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, get_args

from models.catalog import EngineSpec
from models.clock import Clock
from models.errors import NOT_INSTALLED, Internal, NotFound
from models.ports.generate import Engine, FormKind

EngineFactory = Callable[[EngineSpec, Clock], Engine]


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a factory is, and where it runs: what computes does so in a worker process, what only waits need not.

    `forms` are those that it can hold answers to; `holding` is where what holds answers back is put around it.
    """

    path: str
    in_worker: bool
    forms: tuple[FormKind, ...] = ()
    holding: str | None = None


_FACTORIES: Mapping[str, _Entry] = {
    "openai": _Entry(
        "models.language.openai.engine:build",
        in_worker=False,
        forms=("json_schema",),
        holding="models.language.held:remote",
    ),
    "scripted": _Entry("models.language.scripted:build", in_worker=True),
    "transformers": _Entry(
        "models.language.transformers:build",
        in_worker=True,
        forms=get_args(FormKind),
        holding="models.language.held:local",
    ),
}


def runs_in_worker(name: str) -> bool:
    """Return whether the engine of that name runs in a worker process, and not in the gateway's own.

    Raises:
        NotFound: there is no engine of that name; the message lists those there are.
    """
    return _entry(name).in_worker


def forms_of(name: str) -> tuple[FormKind, ...]:
    """Return the forms that the engine of that name can hold an answer to.

    Raises:
        NotFound: there is no engine of that name; the message lists those there are.
    """
    return _entry(name).forms


def build_engine(spec: EngineSpec, clock: Clock) -> Engine:
    """Import the engine's module and build it.

    Raises:
        NotFound: there is no engine of that name; the message lists those there are.
        BadInput: the options do not fit the engine.
        Internal: the libraries that the engine needs are not installed.
    """
    entry = _entry(spec.name)
    try:
        factory: EngineFactory = _imported(entry.path)
        holding = (lambda engine, clock: engine) if entry.holding is None else _imported(entry.holding)
    except ModuleNotFoundError as exc:
        raise Internal(f"{NOT_INSTALLED} Missing is {exc.name!r}.") from exc
    engine: Engine = holding(factory(spec, clock), clock)
    return engine


def _imported(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


def _entry(name: str) -> _Entry:
    try:
        return _FACTORIES[name]
    except KeyError:
        known = ", ".join(sorted(_FACTORIES))
        raise NotFound(f"There is no engine {name!r}. Known engines: {known}.") from None
