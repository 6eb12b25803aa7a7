"""Options of the transformers engine, as a card or a file of the user's writes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, with_config

from models.errors import BadInput


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersOptions:
    """Options of the engine.

    Attributes:
        device: a device of torch; `auto` is CUDA where there is one, else the CPU.
        dtype: of the weights in memory; `auto` is float32 on a CPU, and on a GPU what they were saved in.
        threads: CPU threads of a step; None leaves it to torch.
        prefill_tokens: the most tokens of a prompt that a step reads; a stop, and every other request, waits for one step.
            None is what suits the device.
        max_requests: how many are written at the same time, each with its cache; the others wait for their turn.
        context_tokens: the window; None is the model's own.
        cache_tokens: how many tokens the key-value cache holds, of all requests and of what is kept for later ones; None is
            what fits into memory.
        speculation: `auto` lets the engine find out what pays; `off` never drafts.
        adapters: folders of LoRA adapters, by the names that requests ask for them with.
        template: what the model's chat template is told besides the conversation, such as `enable_thinking`.
    """

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None
    prefill_tokens: Annotated[int, Field(ge=1, le=512)] | None = None
    max_requests: Annotated[int, Field(ge=1)] = 16
    context_tokens: Annotated[int, Field(ge=1)] | None = None
    cache_tokens: Annotated[int, Field(ge=32)] | None = None
    speculation: Literal["auto", "off", "suffix", "pair", "early_exit"] = "auto"
    adapters: Mapping[str, str] = field(default_factory=dict)
    template: Mapping[str, JsonValue] = field(default_factory=dict)


_OPTIONS = TypeAdapter(TransformersOptions)


def options_of(text: str) -> TransformersOptions:
    """Read options from JSON text.

    Raises:
        BadInput: they do not fit.
    """
    try:
        return _OPTIONS.validate_json(text)
    except ValidationError as exc:
        raise BadInput(f"The options of the transformers engine do not fit: {exc}") from exc
