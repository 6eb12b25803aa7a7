"""Cards: what the conductor knows of each model before it runs one."""

from dataclasses import dataclass

from models.content import Modality
from models.engines import EngineSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A catalog entry.

    Attributes:
        name: what callers ask for.
        engine: what runs it.
        reads: modalities that it takes in.
        writes: modalities that it gives out.
        calls_tools: whether it can be offered tools.
        context_tokens: the window.
        cost_per_million_tokens: in one currency for all cards; what "cheapest" is measured by.
    """

    name: str
    engine: EngineSpec
    reads: frozenset[Modality]
    writes: frozenset[Modality]
    calls_tools: bool
    context_tokens: int
    cost_per_million_tokens: float
