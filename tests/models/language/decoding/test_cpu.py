"""The forward pass of few calls: what the longer one computes, and for each token alike in whatever company."""

from functools import partial

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from models.language.decoding import linear
from models.language.decoding.decoder import Batch, Decoder, Span
from models.language.decoding.linear import four_bit
from models.language.decoding.loading import decoder_of
from models.language.decoding.packed import PackedMatrix

if not linear.FASTEST:
    pytest.skip("no C compiler where Baton was installed, or no AVX-512", allow_module_level=True)

from models.language.decoding.cpu import CpuDecoder

_VOCABULARY = 97
_SIZES = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
_MODELS = {
    "llama": partial(LlamaForCausalLM, LlamaConfig(**_SIZES)),
    "qwen2, with biases": partial(Qwen2ForCausalLM, Qwen2Config(**_SIZES)),
    "qwen3, with norms of queries and keys": partial(Qwen3ForCausalLM, Qwen3Config(**_SIZES)),
}


def _pack(_names, weight, bias):
    data = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q4_1)
    return four_bit(*PackedMatrix(kind="Q4_1", data=torch.from_numpy(data)).unpack(), bias)


def _decoder(name: str, kind: type[Decoder] = CpuDecoder) -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _MODELS[name]()
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.2)
    return decoder_of(model.eval(), _pack, kind)


_LLAMA = _decoder("llama")


def _batch(*rows: tuple[list[int], int, int]) -> Batch:
    """Return a batch of rows, each its new tokens, where its extent begins, and how many tokens are in it already."""
    spans, offset = [], 0
    for tokens, start, before in rows:
        spans.append(Span(offset=offset, count=len(tokens), start=start, length=before + len(tokens)))
        offset += len(tokens)
    places = [torch.arange(before, before + len(tokens)) for tokens, _, before in rows]
    return Batch(
        tokens=torch.tensor([token for tokens, _, _ in rows for token in tokens]),
        positions=torch.cat(places),
        slots=torch.cat([place + start for place, (_, start, _) in zip(places, rows, strict=True)]),
        spans=tuple(spans),
    )


@torch.inference_mode()
def _scores(decoder: Decoder, tokens: list[int], cuts: list[int], start: int = 3) -> torch.Tensor:
    """Return the scores after every token, read in pieces of so many tokens."""
    arena, at, scores = decoder.arena(80), 0, []
    for size in cuts:
        piece = tokens[at : at + size]
        scores.append(decoder.logits(decoder.run(_batch((piece, start, at)), arena)))
        at += size
    return torch.cat(scores)


@pytest.mark.parametrize("name", _MODELS)
def test_it_computes_what_the_longer_way_does(name):
    tokens = torch.randint(_VOCABULARY, (50,), generator=torch.Generator().manual_seed(1)).tolist()
    short, long = (_scores(_decoder(name, kind), tokens, [37, 1, 5, 7]) for kind in (CpuDecoder, Decoder))
    torch.testing.assert_close(short, long, rtol=0.005, atol=0.005 * float(long.std()))


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_a_prompt_may_be_cut_anywhere_and_a_draft_be_of_any_length(data):
    tokens = data.draw(st.lists(st.integers(0, _VOCABULARY - 1), min_size=2, max_size=40))
    cuts, left = [], len(tokens)
    while left:
        cuts.append(data.draw(st.integers(1, left)))
        left -= cuts[-1]
    assert torch.equal(_scores(_LLAMA, tokens, [len(tokens)]), _scores(_LLAMA, tokens, cuts, start=20))


@torch.inference_mode()
def test_rows_do_not_feel_each_other():
    first, second = [5, 6, 7, 8, 9], [40, 41, 42]
    alone = [_scores(_LLAMA, tokens, [len(tokens)]) for tokens in (first, second)]
    arena = _LLAMA.arena(80)
    _LLAMA.run(_batch((second[:2], 50, 0)), arena)
    both = _LLAMA.logits(_LLAMA.run(_batch((first, 0, 0), (second[2:], 50, 2)), arena))
    assert torch.equal(both, torch.cat((alone[0], alone[1][2:])))


@torch.inference_mode()
def test_what_it_is_given_stays_as_it_was():
    arena, batch = _LLAMA.arena(8), _batch(([1, 2, 3], 0, 0))
    hidden = torch.randn(3, 64)
    before = hidden.clone()
    _LLAMA.run(batch, arena, first=1, hidden=hidden)
    assert torch.equal(hidden, before)
    parts = _LLAMA.run(batch, arena, first=1, hidden=_LLAMA.run(batch, arena, last=1))
    assert torch.equal(parts, _LLAMA.run(batch, arena))


@torch.inference_mode()
def test_embeddings_take_the_place_of_tokens():
    arena, batch = _LLAMA.arena(8), _batch(([1, 2, 3], 0, 0))
    embeddings = _LLAMA.embed(batch.tokens)
    given_them = Batch(
        tokens=torch.zeros(3, dtype=torch.int64),
        positions=batch.positions,
        slots=batch.slots,
        spans=batch.spans,
        embeddings=embeddings,
    )
    assert torch.equal(_LLAMA.run(given_them, arena), _LLAMA.run(batch, arena))
    assert torch.equal(embeddings, _LLAMA.embed(batch.tokens))


def test_dense_products_take_the_longer_way():
    model = _MODELS["llama"]().eval()
    with torch.inference_mode():
        tokens = torch.tensor([[3, 1, 4, 1, 5]])
        expected = model(tokens).logits[0]
        scores = _scores(decoder_of(model, None, CpuDecoder), tokens[0].tolist(), [5])
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-4)
