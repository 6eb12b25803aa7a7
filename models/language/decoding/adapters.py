"""LoRA adapters, mixed in one batch.

An adapter adds a product of low rank to a matrix product: y + s·B(A x), with A of (rank, in) and B of (out, rank) (Hu et al.
2021, "LoRA: Low-Rank Adaptation of Large Language Models"). peft trains and reads them. Here those of all adapters are stacked
for each matrix of a layer, with the scale s in B, and every token of a batch takes its own:

- on a GPU, all tokens go through all adapters, in two products whatever the mix, and between the two what is not a token's
  own is set to nought. The shapes depend on nothing but the number of tokens, so that a CUDA graph holds them;
- on a CPU, where every weight read and every product counts, each run of tokens that have the same adapter goes through that
  one alone, a view of the stack. The fewer the runs the better: whoever packs a batch puts rows of one adapter side by side.

A token without adapter comes out of a product as if none were loaded, to the bit.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor

from models.errors import BadInput, Internal, NotFound, quoted
from models.language.decoding.decoder import Decoder, Shape

if TYPE_CHECKING:
    from peft import LoraConfig

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"

_MATRIX_OF = {
    "q_proj": "qkv",
    "k_proj": "qkv",
    "v_proj": "qkv",
    "o_proj": "o",
    "gate_proj": "gate_up",
    "up_proj": "gate_up",
    "down_proj": "down",
}
"""The fused matrix that holds a projection, in the order in which it holds them."""

_TEXT_LAYERS = r"(?:model\.)?(?:(?:language|text)_model\.)?(?:model\.)?layers\."
_WEIGHT = re.compile(
    r"base_model\.model\.(?P<module>" + _TEXT_LAYERS + r"(?P<layer>\d+)\.(?:self_attn|mlp)\.(?P<projection>"
    rf"{'|'.join(_MATRIX_OF)}))\.lora_(?P<factor>[AB])\.weight"
)

_MORE_THAN_LOW_RANK = frozenset(
    {"layer_replication", "lora_bias", "modules_to_save", "target_parameters", "trainable_token_indices", "use_qalora"}
)
"""Settings of peft, besides those it marks as variants, with which an adapter is more than low-rank products."""

_HARMLESS_STARTS = frozenset({"gaussian", "eva", "orthogonal"})
"""How the weights may have been initialised: in these ways the model's own are left as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Factors:
    """One adapter at one projection.

    Attributes:
        a: (rank, in).
        b: (out, rank), the scale multiplied in.
    """

    a: Tensor
    b: Tensor


_Key = tuple[int, str]  # of a layer, and a matrix of it or a projection


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stack:
    """All adapters at one fused matrix. An adapter that is of lower rank, or leaves the matrix alone, has noughts there.

    Attributes:
        a: (adapters, width, in); the width is a rank for each part of the matrix.
        b: (adapters, width, out): each part's block in its own columns, noughts beside it.
    """

    a: Tensor
    b: Tensor


class Adapters:
    """All adapters of a model. It belongs to the thread that runs the model.

    Attributes:
        names: their names; the first has index 1.
    """

    def __init__(self, names: Sequence[str], stacks: Mapping[_Key, _Stack], *, by_runs: bool) -> None:
        """Take what `load_adapters` read.

        Args:
            names: of the adapters.
            stacks: by layer and matrix, each of all adapters.
            by_runs: as a CPU does, see the module; else as a GPU does.
        """
        self.names = tuple(names)
        self._stacks = stacks
        self._by_runs = by_runs

    def index(self, name: str | None) -> int:
        """Return what `Batch.adapters` holds for the tokens of a request that names this adapter, or None.

        Raises:
            NotFound: there is no adapter of that name; the message lists those there are.
        """
        if name is None:
            return 0
        try:
            return self.names.index(name) + 1
        except ValueError:
            known = f"Known adapters: {', '.join(self.names)}." if self.names else "This model has none."
            raise NotFound(f"There is no adapter {quoted(name)}. {known}", field="adapter") from None

    def mask(self, adapters: Tensor | None) -> Tensor | None:
        """Return what `apply` has to know of a batch: once for all its matrices. On a GPU it waits for nothing.

        Args:
            adapters: `Batch.adapters`, (T,) int64.

        Returns:
            None if nothing is to be applied. On a CPU the runs of tokens, (runs, 3) int64: first token, the one to stop
            before, and index of the adapter. On a GPU which adapters are *not* a token's own, (T, adapters) bool.
        """
        if adapters is None or not self.names:
            return None
        if not self._by_runs:
            return adapters[:, None] != torch.arange(1, len(self.names) + 1, device=adapters.device)
        values, counts = torch.unique_consecutive(adapters, return_counts=True)
        ends = counts.cumsum(0)
        runs = torch.stack((ends - counts, ends, values), dim=1)[values > 0]
        return runs if len(runs) else None

    def apply(self, layer: int, matrix: str, seen: Tensor, out: Tensor, mask: Tensor) -> Tensor:
        """Add each token's adapter to a product, in place.

        Args:
            layer: its index.
            matrix: one of `MATRICES`.
            seen: what the matrix was given, (T, in).
            out: what it made of it, (T, out).
            mask: what `mask` returned for the batch.

        Returns:
            `out`.
        """
        stack = self._stacks.get((layer, matrix))
        if stack is None:
            return out
        if self._by_runs:
            for first, last, index in mask.tolist():
                out[first:last].addmm_(seen[first:last] @ stack.a[index - 1].t(), stack.b[index - 1])
            return out
        low = seen @ stack.a.flatten(0, 1).t()
        # Set to nought rather than multiplied by it: what overflows for one request must be no NaN for another.
        low.view(-1, len(self.names), stack.a.shape[1]).masked_fill_(mask[:, :, None], 0)
        return out.addmm_(low, stack.b.flatten(0, 1))


def load_adapters(folders: Mapping[str, str], decoder: Decoder) -> Adapters:
    """Read adapters, each from a folder as `save_pretrained` of peft writes it: safetensors only, and nothing is fetched.

    Args:
        folders: by the adapters' names.
        decoder: the model that they are for; the adapters take its dtype and device.

    Raises:
        BadInput: one does not fit this model, or is more than low-rank products.
        Internal: one cannot be read.
    """
    if not folders:
        return Adapters((), {}, by_runs=True)
    read = [_read(name, Path(folder), decoder) for name, folder in folders.items()]
    touched = dict.fromkeys((layer, _MATRIX_OF[projection]) for factors in read for layer, projection in factors)
    stacks = {key: _stack(key, read, decoder) for key in touched}
    for index, name in enumerate(folders):
        if not all(
            bool(stack.a[index].isfinite().all() and stack.b[index].isfinite().all()) for stack in stacks.values()
        ):
            raise BadInput(f"The adapter {name!r} has weights that are no finite numbers in {decoder.dtype}.")
    return Adapters(tuple(folders), stacks, by_runs=decoder.device.type == "cpu")


def _stack(key: _Key, adapters: Sequence[Mapping[_Key, _Factors]], decoder: Decoder) -> _Stack:
    layer, matrix = key
    parts = [projection for projection, whole in _MATRIX_OF.items() if whole == matrix]
    sizes = [_sizes(projection, decoder.shape) for projection in parts]
    rank = max(len(factors[layer, part].a) for factors in adapters for part in parts if (layer, part) in factors)
    a = torch.zeros(len(adapters), len(parts), rank, sizes[0][0])
    b = torch.zeros(len(adapters), len(parts), rank, sum(size for _, size in sizes))
    for index, factors in enumerate(adapters):
        column = 0
        for part, (name, (_, size)) in enumerate(zip(parts, sizes, strict=True)):
            if (own := factors.get((layer, name))) is not None:
                a[index, part, : len(own.a)] = own.a
                b[index, part, : len(own.a), column : column + size] = own.b.t()
            column += size
    device, dtype = decoder.device, decoder.dtype
    return _Stack(a=a.flatten(1, 2).to(device, dtype), b=b.flatten(1, 2).to(device, dtype))


def _sizes(projection: str, shape: Shape) -> tuple[int, int]:
    """Return what a projection is given and what it makes of it, in numbers a token."""
    heads, kv_heads = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    match projection:
        case "q_proj":
            return shape.hidden_size, heads
        case "k_proj" | "v_proj":
            return shape.hidden_size, kv_heads
        case "o_proj":
            return heads, shape.hidden_size
        case "down_proj":
            return shape.intermediate_size, shape.hidden_size
        case _:
            return shape.hidden_size, shape.intermediate_size


# What lies in a folder


def _read(name: str, folder: Path, decoder: Decoder) -> dict[_Key, _Factors]:
    """Return an adapter's factors by layer and projection."""
    # peft takes seconds to import; who serves no adapters does not wait for it.
    from peft import LoraConfig, PeftConfig, load_peft_weights

    fault = f"The adapter {name!r} in {folder} cannot be used: "
    for file in (_CONFIG, _WEIGHTS):  # peft would look for what is missing on the hub, or take a pickle
        if not (folder / file).is_file():
            raise BadInput(f"{fault}there is no {file}. Name a folder that save_pretrained of peft wrote.")
    try:
        config = PeftConfig.from_pretrained(str(folder))
        weights = load_peft_weights(str(folder), device="cpu")
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as exc:
        raise Internal(f"The adapter {name!r} in {folder} cannot be read: {exc!r}.") from exc
    if not isinstance(config, LoraConfig):
        raise BadInput(f"{fault}it is of the kind {config.peft_type}, and only LoRA is known here.")
    if reason := _why_not_plain(config):
        raise BadInput(f"{fault}{reason}")
    try:
        return _factors(config, weights, decoder)
    except BadInput as exc:
        raise BadInput(f"{fault}{exc.message}") from None


def _why_not_plain(config: "LoraConfig") -> str | None:
    """Return what makes an adapter more than low-rank products beside the model's own; None if nothing does."""
    more = sorted(
        setting.name
        for setting in fields(config)
        if (setting.metadata.get("is_lora_variant") or setting.name in _MORE_THAN_LOW_RANK)
        and getattr(config, setting.name)
    )
    if config.bias != "none":
        more.append(f"bias={config.bias!r}")
    if more:
        return (
            f"it sets {', '.join(more)}, and only plain low-rank products can be mixed in a batch. Train it without, or "
            "merge it into a model of its own."
        )
    start = config.init_lora_weights
    if isinstance(start, str) and start.lower() not in _HARMLESS_STARTS:
        return (
            f"its training began with init_lora_weights={start!r}, which changed the model's own weights. Save it with "
            "path_initial_model_for_weight_conversion, as peft explains, or merge it into a model of its own."
        )
    return None


def _factors(config: "LoraConfig", weights: Mapping[str, Tensor], decoder: Decoder) -> dict[_Key, _Factors]:
    layers = len(decoder.layers)
    halves: dict[str, Tensor] = {}
    modules: dict[str, _Key] = {}
    for key, weight in weights.items():
        if (found := _WEIGHT.fullmatch(key)) is None:
            raise BadInput(f"it has {key}. Adapted can be {', '.join(_MATRIX_OF)} of the layers that read text.")
        if int(found["layer"]) >= layers:
            raise BadInput(f"it has {key}, and this model has {layers} layers. It was trained for another.")
        modules[found["module"]] = int(found["layer"]), found["projection"]
        halves[f"{found['module']}.{found['factor']}"] = weight.float()
    if not modules:
        raise BadInput("it holds no weights.")
    factors = {}
    for module, (layer, projection) in modules.items():
        rank, scale = _rank_and_scale(config, module)
        size_in, size_out = _sizes(projection, decoder.shape)
        a, b = (halves.get(f"{module}.{factor}") for factor in "AB")
        if a is None or b is None:
            raise BadInput(f"of {module} it has only one of lora_A and lora_B.")
        if a.shape != (rank, size_in) or b.shape != (size_out, rank):
            raise BadInput(
                f"its {module} is of {tuple(a.shape)} and {tuple(b.shape)}, and with its rank and this model it must be of "
                f"{(rank, size_in)} and {(size_out, rank)}. It was trained for another."
            )
        factors[layer, projection] = _Factors(a=a, b=b * scale)
    return factors


def _rank_and_scale(config: "LoraConfig", module: str) -> tuple[int, float]:
    """Return a module's rank and what its product is multiplied by (for rslora: Kalajdzievski 2023)."""
    from peft.utils.other import get_pattern_key

    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    rank: int = ranks.get(get_pattern_key(list(ranks), module), config.r)
    alpha: float = alphas.get(get_pattern_key(list(alphas), module), config.lora_alpha)
    return rank, alpha / (math.sqrt(rank) if config.use_rslora else rank)
