"""Engines by name.

The registry maps a name to a factory that is imported only when it is asked for, so that a process holds the
libraries of the engines it runs and no others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args

from models.catalog import EngineSpec
from models.errors import NOT_INSTALLED, Internal, NotFound
from models.ports.activity import ActivityDetector
from models.ports.context import EngineContext
from models.ports.embed import Embedder
from models.ports.generate import Engine, FormKind
from models.ports.synthesize import Synthesizer
from models.ports.transcribe import Transcriber

Port = Literal["generate", "embed", "activity", "transcribe", "synthesize"]
"""The ports, by name: what a card's engine can be asked."""

Place = Literal["decoding", "senses"]
"""The worker processes, by name."""

AnyEngine = Engine | Embedder | ActivityDetector | Transcriber | Synthesizer

EngineFactory = Callable[[EngineSpec, EngineContext], AnyEngine]


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a factory is, what it makes, and where that runs: what computes does so in a worker process, what only waits need not.

    `forms` are those that it can hold answers to; `holding` is where what holds answers back is put around it.
    """

    path: str
    place: Place | None
    port: Port = "generate"
    forms: tuple[FormKind, ...] = ()
    holding: str | None = None


_FACTORIES: Mapping[str, _Entry] = {
    "openai": _Entry(
        "models.language.openai.engine:build",
        place=None,
        forms=("json_schema",),
        holding="models.language.held:remote",
    ),
    "scripted": _Entry("models.language.scripted:build", "decoding"),
    "transformers": _Entry(
        "models.language.transformers:build",
        "decoding",
        forms=get_args(FormKind),
        holding="models.language.held:local",
    ),
    "minilm": _Entry("models.embeddings.engine:build", "senses", "embed"),
    "silero": _Entry("models.speech.activity:build", "senses", "activity"),
    "scripted-embed": _Entry("models.embeddings.scripted:build", "senses", "embed"),
    "scripted-activity": _Entry("models.speech.scripted:build_detector", "senses", "activity"),
    "scripted-transcribe": _Entry("models.speech.scripted:build_transcriber", "senses", "transcribe"),
    "scripted-synthesize": _Entry("models.speech.scripted:build_synthesizer", "senses", "synthesize"),
}


def place_of(name: str) -> Place | None:
    """Return the worker process that the engine of that name runs in, None if it runs in the gateway's own.

    Raises:
        NotFound: there is no engine of that name; the message lists those there are.
    """
    return _entry(name).place


def port_of(name: str) -> Port:
    """Return what the engine of that name can be asked.

    Raises:
        NotFound: there is no engine of that name; the message lists those there are.
    """
    return _entry(name).port


def forms_of(name: str) -> tuple[FormKind, ...]:
    """Return the forms that the engine of that name can hold an answer to.

    Raises:
        NotFound: there is no engine of that name; the message lists those there are.
    """
    return _entry(name).forms


def makes_grammars(name: str) -> bool:
    """Return whether the engine of that name makes grammars of schemas by itself, rather than its server, or nobody.

    Raises:
        NotFound: there is no engine of that name; the message lists those there are.
    """
    return _entry(name).holding == "models.language.held:local"


def build_engine(spec: EngineSpec, context: EngineContext) -> AnyEngine:
    """Import the engine's module and build it. It keeps the port that `port_of` names.

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
    engine: AnyEngine = holding(factory(spec, context), context.clock)
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
