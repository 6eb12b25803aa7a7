"""From a model that transformers has loaded to a `Decoder`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from models.language.decoding.decoder import Decoder, Layer, Shape
from models.language.decoding.linear import Product, dense

_FAMILY = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"})
"""Model types whose layers are those of `Decoder`."""

_STATIC_ROTARY = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds of rotary positions whose frequencies do not depend on the length of the text."""

Pack = Callable[[list[str], Tensor, Tensor | None], Product]
"""Makes a product: the names of the weights that lie one after another in it, (out, in), and its bias."""


def is_known(config: PretrainedConfig) -> bool:
    """Return whether `decoder_of` can run a model of this configuration."""
    rotary = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in _FAMILY
        and rotary.get("rope_type", "default") in _STATIC_ROTARY
        and getattr(config, "hidden_act", "silu") == "silu"
        and not any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ())
        and not (config.model_type == "mistral" and getattr(config, "sliding_window", None))
    )


def decoder_of(model: PreTrainedModel, pack: Pack | None = None, kind: type[Decoder] = Decoder) -> Decoder:
    """Return a decoder that runs the weights of `model`.

    The model can be let go of afterwards. What is fused is copied, and the model's own matrices are let go of one after
    another, so that both are never in memory.

    Args:
        model: of a configuration that `is_known`.
        pack: makes the products, for instance of four bits; None is dense ones.
        kind: the class to make.
    """
    config: Any = model.config.get_text_config()
    body: Any = model.get_decoder()  # type: ignore[no-untyped-call]
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = Shape(
        hidden_size=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_size=size,
        intermediate_size=config.intermediate_size,
        vocabulary=config.vocab_size,
        norm_eps=config.rms_norm_eps,
        sections=tuple((getattr(config, "rope_parameters", None) or {}).get("mrope_section", ())),
    )
    make = pack or (lambda _names, weight, bias: dense(weight, bias))
    layers = [_layer(index, layer, shape, make) for index, layer in enumerate(body.layers)]
    embedding: Tensor = body.embed_tokens.weight.detach()
    head: nn.Linear = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return kind(
        shape=shape,
        layers=layers,
        embedding=embedding,
        head=make(["lm_head.weight"], head.weight.detach(), None),
        norm=body.norm.weight.detach(),
        frequencies=body.rotary_emb.inv_freq.detach().float(),
        rotary_scale=float(body.rotary_emb.attention_scaling),
    )


def _layer(index: int, layer: Any, shape: Shape, make: Pack) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    q_norm = getattr(attention, "q_norm", None)
    prefix = f"model.layers.{index}."
    return Layer(
        qkv=_fused(prefix + "self_attn.", attention, ("q_proj", "k_proj", "v_proj"), make),
        o=_fused(prefix + "self_attn.", attention, ("o_proj",), make),
        gate_up=_fused(prefix + "mlp.", mlp, ("gate_proj", "up_proj"), make),
        down=_fused(prefix + "mlp.", mlp, ("down_proj",), make),
        input_norm=layer.input_layernorm.weight.detach(),
        post_norm=layer.post_attention_layernorm.weight.detach(),
        qk_norm=None if q_norm is None else _qk_norm(q_norm.weight, attention.k_norm.weight, shape),
        rotary=bool(getattr(attention, "use_rope", True)),
    )


def _fused(prefix: str, module: Any, names: tuple[str, ...], make: Pack) -> Product:
    linears: list[Any] = [getattr(module, name) for name in names]
    weight = torch.cat([linear.weight.detach() for linear in linears])
    bias = None if linears[0].bias is None else torch.cat([linear.bias.detach() for linear in linears])
    product = make([f"{prefix}{name}.weight" for name in names], weight, bias)
    for linear in linears:
        linear.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)
    return product


def _qk_norm(query: Tensor, key: Tensor, shape: Shape) -> Tensor:
    return torch.cat((query.detach().expand(shape.heads, -1), key.detach().expand(shape.kv_heads, -1)))
