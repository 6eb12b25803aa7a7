"""Engines by name.

The registry maps a name to a factory that is imported only when it is asked for, so that a process holds the
libraries of the engines it runs and no others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, get_args, runtime_checkable

from models.clock import Clock
from models.errors import Internal, NotFound
from models.ports import Engine, FormKind

NOT_INSTALLED = (
    "Baton was installed without what runs models in this process: pip install 'baton[local]', or serve a remote model "
    "(docs/howto/remote-server.md)."
)
"""What to say where the libraries of an engine are missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What a process needs to build an engine; small and plain, because it crosses to a worker.

    Attributes:
        name: a name in the registry.
        options: JSON text, whose fields are the engine's own.
        folder: where the card's weights lie; None if it needs none.
    """

    name: str
    options: str = "{}"
    folder: str | None = None


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
        "models.engines.openai:build", in_worker=False, forms=("json_schema",), holding="models.engines.held:remote"
    ),
    "scripted": _Entry("models.engines.scripted:build", in_worker=True),
    "transformers": _Entry(
        "models.engines.transformers:build",
        in_worker=True,
        forms=get_args(FormKind),
        holding="models.engines.held:local",
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


@runtime_checkable
class Watched(Protocol):
    """An engine that works in a thread of its own, which may come to stand still while the process still answers."""

    def stalled_s(self) -> float:
        """Return for how long it has been at the same step, in seconds; 0 if it rests, infinity if it has come to an end."""
        ...


def stalled_s(engine: Engine) -> float:
    """Return for how long an engine has been at the same step, as far as that can be known."""
    return engine.stalled_s() if isinstance(engine, Watched) else 0.0


def _entry(name: str) -> _Entry:
    try:
        return _FACTORIES[name]
    except KeyError:
        known = ", ".join(sorted(_FACTORIES))
        raise NotFound(f"There is no engine {name!r}. Known engines: {known}.") from None
