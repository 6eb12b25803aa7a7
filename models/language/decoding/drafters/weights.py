"""Trained drafters as files: a few layers of a base model's own shape, without its embedding and its head.

Both kinds are the same network at another place. A `pair` reads the base's embeddings; an `early_exit` reads what the base's
first `entry` layers make of them. After its layers and a norm comes the base's own head, of whose rows only those of the
`vocabulary` are used: the tokens that the base writes most, so that a guess costs little. Such a file fits one base model,
which it knows by the fingerprint of the embedding, and is refused for any other.

A matrix is stored as int8 with one scale for each of its rows, and norms as float32; what describes the network is JSON in
the file's metadata, under `draft`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from models.errors import BadInput

_FORMAT = 1
_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One layer of a Llama. Matrices are [out, in], norms [hidden]; the names are those of transformers, shortened."""

    input_norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    post_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class StopHead:
    """Predicts whether the base refuses a guess (SpecDec++, arXiv:2405.19715), from what the guess was made of.

    Attributes:
        weight: [hidden + 1], for the normed hidden state and the logarithm of the guess's probability.
        bias: [].
    """

    weight: Tensor
    bias: Tensor

    def refusal(self, normed: Tensor, log_probability: Tensor) -> Tensor:
        """Return the chance that each guess is refused, given that those before it were accepted.

        Args:
            normed: [T, hidden], what the head was applied to.
            log_probability: [T], of the guessed token among the `vocabulary`.
        """
        score = normed.float() @ self.weight[:-1] + log_probability.float() * self.weight[-1] + self.bias
        return score.sigmoid()


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftShape:
    """What the tensors do not say.

    Attributes:
        kind: what it is.
        base: the base model's name, for people.
        fingerprint: of the base's embedding.
        entry: how many layers of the base come before it; 0 for a pair.
        heads: for queries.
        kv_heads: for keys and values.
        eps: of the norms.
        rope_theta: the base of the rotary frequencies.
    """

    kind: Literal["pair", "early_exit"]
    base: str
    fingerprint: str
    entry: int
    heads: int
    kv_heads: int
    eps: float
    rope_theta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftWeights:
    """A trained drafter.

    Attributes:
        shape: what the tensors do not say.
        layers: its layers, in order.
        norm: [hidden], before the head.
        vocabulary: [N] int64, the tokens that it can guess: row `i` of its logits is token `vocabulary[i]`.
        stop: when to stop drafting.
        card: what the recipe noted: steps, data, acceptance.
    """

    shape: DraftShape
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    vocabulary: Tensor
    stop: StopHead
    card: Mapping[str, object]


def shipped() -> list[Path]:
    """Return the drafters that come with Baton."""
    return sorted((Path(__file__).parents[3] / "pretrained").glob("*/*.safetensors"))


def kind_of(path: Path) -> str:
    """Return which kind of drafter is in a file: `pair` or `early_exit`."""
    with safe_open(path, "pt") as file:
        return str(json.loads(file.metadata()["draft"])["kind"])


def fits(path: Path, embedding: Tensor) -> bool:
    """Return whether the drafter in a file is one for the model that `embedding` belongs to."""
    with safe_open(path, "pt") as file:
        if file.get_slice("norm").get_shape() != [embedding.shape[1]]:
            return False  # a large embedding takes seconds to be told from another
        known: str = json.loads(file.metadata()["draft"])["fingerprint"]
    return known == fingerprint(embedding)


def fingerprint(embedding: Tensor) -> str:
    """Return what tells one base model's embedding [vocabulary, hidden] from another's, whatever dtype it is held in."""
    known = _FINGERPRINTS.get(embedding)  # type: ignore[no-untyped-call]  # torch's own
    if known is None:
        data = embedding.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy()
        known = _FINGERPRINTS[embedding] = hashlib.sha256(data.tobytes()).hexdigest()
    return str(known)


_FINGERPRINTS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Of embeddings in memory, which nobody writes to: half a second of a start each."""


def save_draft(weights: DraftWeights, path: Path) -> None:
    """Write a drafter; its matrices are rounded to eight bits."""
    tensors = {
        "norm": weights.norm.float(),
        "vocabulary": weights.vocabulary.to(torch.int32),
        "stop.weight": weights.stop.weight.float(),
        "stop.bias": weights.stop.bias.float(),
    }
    for index, layer in enumerate(weights.layers):
        tensors[f"layers.{index}.input_norm"] = layer.input_norm.float()
        tensors[f"layers.{index}.post_norm"] = layer.post_norm.float()
        for name in _MATRICES:
            rows, scales = _round_rows(getattr(layer, name))
            tensors[f"layers.{index}.{name}"] = rows
            tensors[f"layers.{index}.{name}.scale"] = scales
    about = {"format": _FORMAT, "layers": len(weights.layers), **asdict(weights.shape), "card": dict(weights.card)}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={"draft": json.dumps(about)})


def load_draft(path: Path, embedding: Tensor, *, dtype: torch.dtype) -> DraftWeights:
    """Read a drafter for the model that `embedding` [vocabulary, hidden] belongs to.

    Args:
        path: as `save_draft` wrote it.
        embedding: the base's, on any device.
        dtype: of the matrices and norms; they come on the embedding's device.

    Raises:
        BadInput: the file is no drafter, or is one for another base.
    """
    try:
        with safe_open(path, "pt", device=str(embedding.device)) as file:
            about = json.loads(file.metadata()["draft"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as exc:
        raise BadInput(f"{path} is no trained drafter ({exc}). Write it with a recipe of recipes/.") from exc
    if about.pop("format") != _FORMAT:
        raise BadInput(f"{path} is of another version of the format. Write it anew with its recipe.")
    count, card = about.pop("layers"), about.pop("card")
    shape = DraftShape(**about)
    if shape.fingerprint != fingerprint(embedding):
        raise BadInput(f"{path} was trained for {shape.base}, and this is another model. Train one with recipes/.")

    def matrix(name: str) -> Tensor:
        rows: Tensor = tensors[name]
        scales: Tensor = tensors[f"{name}.scale"]
        return (rows.float() * scales[:, None]).to(dtype)

    return DraftWeights(
        shape=shape,
        layers=tuple(
            LayerWeights(
                input_norm=tensors[f"layers.{index}.input_norm"].to(dtype),
                post_norm=tensors[f"layers.{index}.post_norm"].to(dtype),
                **{name: matrix(f"layers.{index}.{name}") for name in _MATRICES},
            )
            for index in range(count)
        ),
        norm=tensors["norm"].to(dtype),
        vocabulary=tensors["vocabulary"].long(),
        stop=StopHead(weight=tensors["stop.weight"], bias=tensors["stop.bias"]),
        card=card,
    )


def _round_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 rows and the scale [out] of each."""
    exact = matrix.float()
    scales = exact.abs().amax(1).clamp(min=1e-12) / 127
    return (exact / scales[:, None]).round().to(torch.int8), scales
