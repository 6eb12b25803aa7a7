"""The base model as the recipes see it: its layers as modules that read whole rows of tokens or one token of each row.

Only for Llamas whose head is their embedding, in one safetensors file, as `models.supply.convert` writes them.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.errors import BadInput

_NAMES = {
    "input_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "post_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of a Llama."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    rope_theta: float


class Block(nn.Module):
    """One layer. Its parameters have the names of `LayerWeights`."""

    input_norm: nn.Parameter
    q: nn.Parameter
    k: nn.Parameter
    v: nn.Parameter
    o: nn.Parameter
    post_norm: nn.Parameter
    gate: nn.Parameter
    up: nn.Parameter
    down: nn.Parameter

    def __init__(self, shape: Shape, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.shape = shape
        for name, tensor in weights.items():
            self.register_parameter(name, nn.Parameter(tensor))

    def forward(self, x: Tensor, rotary: "Rotary") -> Tensor:
        """Read whole rows: [B, S, hidden] to the same, each token after those before it."""
        batch, length, _ = x.shape
        q, k, v = (part.transpose(1, 2) for part in self._project(x, rotary.cos[:length], rotary.sin[:length]))
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self._finish(x, attended.transpose(1, 2).reshape(batch, length, -1))

    def step(self, x: Tensor, rotary: "Rotary", keys: Tensor, values: Tensor, at: int) -> Tensor:
        """Read one token of each row.

        Args:
            x: [B, hidden]; what is returned is the same.
            rotary: its angles.
            keys: [B, S, kv_heads, head_dim], of which the first `at` are filled; this fills the next.
            values: the same.
            at: the position, which all rows are at.
        """
        q, k, v = self._project(x[:, None], rotary.cos[at : at + 1], rotary.sin[at : at + 1])
        keys[:, at], values[:, at] = k[:, 0], v[:, 0]
        # The query heads that share a key head are read as if they were tokens: no copy of the cache is made for them.
        grouped = q.reshape(x.shape[0], self.shape.kv_heads, -1, self.shape.head_dim)
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):  # cuDNN would plan anew for every length
            attended = functional.scaled_dot_product_attention(
                grouped, keys[:, : at + 1].transpose(1, 2), values[:, : at + 1].transpose(1, 2)
            )
        return self._finish(x, attended.reshape(x.shape[0], -1))

    def _project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, [B, S, heads, head_dim]."""
        normed = functional.rms_norm(x, x.shape[-1:], self.input_norm, self.shape.eps)
        q, k, v = (
            functional.linear(normed, weight).view(*normed.shape[:-1], -1, self.shape.head_dim)
            for weight in (self.q, self.k, self.v)
        )
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + functional.linear(attended, self.o)
        normed = functional.rms_norm(x, x.shape[-1:], self.post_norm, self.shape.eps)
        gated = functional.silu(functional.linear(normed, self.gate)) * functional.linear(normed, self.up)
        return x + functional.linear(gated, self.down)


class Rotary:
    """Rotary angles of the first `length` positions: `cos` and `sin` are [length, 1, head_dim]."""

    def __init__(self, shape: Shape, length: int, *, device: torch.device, dtype: torch.dtype) -> None:
        steps = torch.arange(0, shape.head_dim, 2, device=device, dtype=torch.float32) / shape.head_dim
        angles = torch.arange(length, device=device)[:, None] * shape.rope_theta**-steps
        both = torch.cat((angles, angles), dim=-1)[:, None]
        self.cos, self.sin = both.cos().to(dtype), both.sin().to(dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The base model: frozen.

    Attributes:
        name: for model cards.
        embedding: [vocabulary, hidden]; the head as well.
        norm: [hidden], before the head.
    """

    name: str
    shape: Shape
    embedding: Tensor
    blocks: tuple[Block, ...]
    norm: Tensor
    tokenizer: Tokenizer

    @property
    def device(self) -> torch.device:
        """Where all of it lies."""
        return self.embedding.device

    def logits(self, hidden: Tensor) -> Tensor:
        """Return scores of all tokens, [M, vocabulary] float32, for what the last layer made, [M, hidden]."""
        normed = functional.rms_norm(hidden, hidden.shape[-1:], self.norm, self.shape.eps)
        if normed.is_cuda:  # bfloat16 has too few digits to tell the two best tokens apart
            return torch.mm(normed, self.embedding.T, out_dtype=torch.float32)
        return functional.linear(normed.float(), self.embedding.float())


def load_base(folder: Path, *, device: torch.device, dtype: torch.dtype) -> Base:
    """Load a Llama from a folder as transformers writes it.

    Raises:
        BadInput: it is of another family.
    """
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "llama" or not config["tie_word_embeddings"] or config["attention_bias"]:
        raise BadInput(f"{folder} holds no Llama with a tied embedding. The recipes know no other family.")
    tensors = load_file(folder / "model.safetensors", device=str(device))
    heads = config["num_attention_heads"]
    shape = Shape(
        hidden=config["hidden_size"],
        heads=heads,
        kv_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        eps=config["rms_norm_eps"],
        rope_theta=config["rope_parameters"]["rope_theta"],
    )
    blocks = tuple(
        Block(shape, {short: tensors[f"model.layers.{i}.{long}.weight"].to(dtype) for short, long in _NAMES.items()})
        for i in range(config["num_hidden_layers"])
    )
    for block in blocks:
        block.requires_grad_(requires_grad=False)
    return Base(
        name=config.get("_name_or_path") or config.get("_model_name_or_path") or folder.name,
        shape=shape,
        embedding=tensors["model.embed_tokens.weight"].to(dtype),
        blocks=blocks,
        norm=tensors["model.norm.weight"].to(dtype),
        tokenizer=Tokenizer.from_file(str(folder / "tokenizer.json")),
    )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
