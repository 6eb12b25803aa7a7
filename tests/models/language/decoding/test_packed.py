"""Blocks of a GGUF are read as llama.cpp writes them, and become products."""

import gguf
import pytest
import torch

from models.language.decoding.packed import KINDS, PackedMatrix, packer, write_packed

_QKV = ["q.weight", "k.weight", "v.weight"]


def _blocks(kind: str, outer: int = 48, inner: int = 64) -> PackedMatrix:
    weight = torch.randn(outer, inner, generator=torch.Generator().manual_seed(outer)).numpy()
    data = gguf.quants.quantize(weight, gguf.GGMLQuantizationType[kind])
    return PackedMatrix(kind=kind, data=torch.from_numpy(data))


def _error(product, blocks: list[PackedMatrix]) -> float:
    seen = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    exact = seen @ torch.cat([one.dense() for one in blocks]).t()
    return float((product(seen) - exact).norm() / exact.norm())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_blocks_say_what_gguf_reads_in_them(kind):
    blocks = _blocks(kind)
    expected = gguf.quants.dequantize(blocks.data.numpy(), gguf.GGMLQuantizationType[kind])
    torch.testing.assert_close(blocks.dense(), torch.from_numpy(expected))


@pytest.mark.parametrize("kinds", [("Q4_1", "Q4_1", "Q4_1"), ("Q4_0", "Q4_1", "Q4_0"), ("Q8_0", "Q8_0", "Q8_0")])
def test_a_product_is_made_of_the_blocks_of_all_its_weights(tmp_path, kinds):
    blocks = [_blocks(kind, outer) for kind, outer in zip(kinds, (64, 16, 16), strict=True)]
    write_packed(tmp_path, dict(zip(_QKV, blocks, strict=True)))
    pack = packer(tmp_path)
    assert pack is not None
    assert _error(pack(_QKV, torch.empty(0), None), blocks) < 0.02


@pytest.mark.parametrize("kept", [("Q4_1", "Q8_0", "Q4_1"), ("Q4_1", "Q4_1")])
def test_weights_whose_blocks_do_not_go_together_make_a_dense_product(tmp_path, kept):
    write_packed(tmp_path, {name: _blocks(kind) for name, kind in zip(_QKV, kept, strict=False)})
    pack = packer(tmp_path)
    assert pack is not None
    weight = torch.ones(144, 64)
    assert torch.equal(pack(_QKV, weight, None)(torch.ones(1, 64)), torch.full((1, 144), 64.0))


def test_the_bias_may_be_of_a_smaller_dtype(tmp_path):
    blocks = _blocks("Q4_1")
    write_packed(tmp_path, {"q.weight": blocks})
    pack = packer(tmp_path)
    assert pack is not None
    bias = torch.arange(48.0).bfloat16()
    shown = pack(["q.weight"], torch.empty(0), bias)(torch.zeros(1, 64))
    assert torch.equal(shown, bias.float()[None])


def test_a_folder_without_blocks_packs_nothing(tmp_path):
    assert packer(tmp_path) is None
