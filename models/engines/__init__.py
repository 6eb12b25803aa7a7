"""Engines by name.

The registry maps a name to a factory that is imported only when it is asked for, so that a process holds the
libraries of the engines it runs and no others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

from models.clock import Clock
from models.errors import NotFound
from models.ports import Engine

EngineFactory = Callable[[str, Clock], Engine]
"""Takes the options of an `EngineSpec` and a clock."""

_FACTORIES: Mapping[str, str] = {
    "scripted": "models.engines.scripted:build",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What a process needs to build an engine; small and plain, because it crosses to a worker.

    Attributes:
        name: a name in the registry.
        options: JSON text, whose fields are the engine's own.
    """

    name: str
    options: str = "{}"


def build_engine(spec: EngineSpec, clock: Clock) -> Engine:
    """Import the engine's module and build it.

    Raises:
        NotFound: there is no engine of that name; the message lists those there are.
        BadInput: the options do not fit the engine.
    """
    try:
        path = _FACTORIES[spec.name]
    except KeyError:
        known = ", ".join(sorted(_FACTORIES))
        raise NotFound(f"There is no engine {spec.name!r}. Known engines: {known}.") from None
    module, _, attribute = path.partition(":")
    factory: EngineFactory = getattr(import_module(module), attribute)
    return factory(spec.options, clock)
