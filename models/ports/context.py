"""What an engine is built with besides its card: time, media, and its share of the machine."""

from dataclasses import dataclass, field

from models.clock import Clock
from models.ports.media import GrantedMedia, MediaSource


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineContext:
    """What an engine takes from whoever runs it.

    Attributes:
        clock: for deadlines.
        media: opens what a request was granted.
        threads: threads of a step on the processor, this process's share of the machine; None leaves it to the engine's library.
    """

    clock: Clock
    media: MediaSource = field(default_factory=GrantedMedia)
    threads: int | None = None
