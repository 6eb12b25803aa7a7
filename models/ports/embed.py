"""What models are asked that turn texts into vectors, and the Protocol through which they are asked it."""

from dataclasses import dataclass
from typing import Literal, Protocol

from models.ports.generate import Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """Texts to be embedded.

    Attributes:
        texts: one or more.
        priority: who goes first when there is not room for all.
        deadline: absolute time in seconds of the injected clock.
        tenant: whose request it is.
        subject: the end user of the tenant that it is for.
    """

    kind: Literal["embed"] = "embed"
    texts: tuple[str, ...]
    priority: Priority = "normal"
    deadline: float | None = None
    tenant: str
    subject: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """A vector for each text, in the order of the texts.

    Attributes:
        dimensions: how many numbers a vector has.
        data: little-endian float32 of (texts, dimensions), row after row. Each row has the length 1, so that the product of two
            is the cosine of their angle.
        input_tokens: of all texts, with the marks that the model puts around each.
    """

    kind: Literal["embeddings"] = "embeddings"
    dimensions: int
    data: bytes
    input_tokens: int


class Embedder(Protocol):
    """Something that knows which texts are near each other. Equal texts get equal vectors, whatever they come with."""

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Return the vectors of `request.texts`. A caller that is cancelled stops the work within a step.

        Raises:
            BadInput: there is no text.
            LimitExceeded: a text is longer than the window, `context_length_exceeded`; nothing is cut off unsaid.
            DeadlineExceeded: the deadline passed.
            Overloaded: there is no room for another request now.
        """
        ...

    async def aclose(self) -> None:
        """Stop all work and free everything. Idempotent."""
        ...
