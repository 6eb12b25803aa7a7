"""What completions of both kinds say of how tokens are chosen, and what it means here. Types of fields are as OpenAI has them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Protocol

from pydantic import Field

from orchestrator.events import SamplingOverrides
from streaming.wire.shapes import Strict

MOST_CHOICES = 16
"""As many as a local model writes at a time by default."""

_SMALLEST_TOP_P = 1e-9  # 0 is the likeliest token alone, and not every model takes it

AtLeastOne = Annotated[int, Field(ge=1)]
Chance = Annotated[float, Field(ge=0, le=1)]
Copies = Annotated[int, Field(ge=1, le=MOST_CHOICES)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Field(ge=0.01, le=2)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
StopStrings = (
    Annotated[str, Field(min_length=1)] | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)]
)
Temperature = Annotated[float, Field(ge=0, le=2)]
TokenId = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]
LogitBias = Annotated[dict[TokenId, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=300)]
TopK = Annotated[int, Field(ge=-1, lt=2**31)]


class StreamOptions(Strict):
    """How a stream is sent."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Sampled(Protocol):
    """A body that says it."""

    @property
    def temperature(self) -> float | None: ...  # noqa: D102
    @property
    def top_p(self) -> float | None: ...  # noqa: D102
    @property
    def seed(self) -> int | None: ...  # noqa: D102
    @property
    def stop(self) -> str | Sequence[str] | None: ...  # noqa: D102
    @property
    def logit_bias(self) -> Mapping[str, float] | None: ...  # noqa: D102
    @property
    def repetition_penalty(self) -> float | None: ...  # noqa: D102
    @property
    def frequency_penalty(self) -> float | None: ...  # noqa: D102
    @property
    def presence_penalty(self) -> float | None: ...  # noqa: D102
    @property
    def top_k(self) -> int | None: ...  # noqa: D102
    @property
    def min_p(self) -> float | None: ...  # noqa: D102


def overrides_of(body: Sampled) -> SamplingOverrides:
    """Return how tokens are to be chosen."""
    return SamplingOverrides(
        temperature=body.temperature,
        top_p=None if body.top_p is None else max(body.top_p, _SMALLEST_TOP_P),
        seed=body.seed,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        logit_bias=tuple((int(token), bias) for token, bias in (body.logit_bias or {}).items()),
        repetition_penalty=body.repetition_penalty or 1.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p or 0.0,
    )


def wants_usage(options: StreamOptions | None) -> bool:
    """Return whether a stream is to end with what was used."""
    return options is not None and options.include_usage is True
