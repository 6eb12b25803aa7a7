"""The forward pass, against transformers' own over each text alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from models.language.decoding.arena import Arena
from models.language.decoding.decoder import Batch, Decoder, Span
from models.language.decoding.loading import decoder_of, is_known

_VOCABULARY = 300
_SIZES = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_SIZES),
    "llama, tied": LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "llama, of its third version": LlamaConfig(**_SIZES, rope_parameters=_LLAMA3),
    "mistral": MistralConfig(**_SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**_SIZES),
    "qwen2, yarn": Qwen2Config(**_SIZES, rope_parameters=_YARN),
    "qwen3": Qwen3Config(**_SIZES, head_dim=32),
    "smollm3": SmolLM3Config(**_SIZES),
}


@dataclass
class Pair:
    """A model as transformers runs it, and as we do."""

    model: PreTrainedModel
    decoder: Decoder

    def logits(self, tokens: Tensor) -> Tensor:
        return self.model(tokens[None]).logits[0]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def _pair(config: PretrainedConfig) -> Pair:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:  # which are ones and noughts to begin with
                torch.nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.3)
    copy = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    copy.load_state_dict(model.state_dict())
    return Pair(model, decoder_of(copy))


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest) -> Pair:
    return _pair(CONFIGS[request.param])


@pytest.fixture(scope="module")
def llama() -> Pair:
    return _pair(CONFIGS["llama"])


@dataclass
class Text:
    """A row: its tokens, where its extent lies, and how far it has been read."""

    tokens: Tensor
    start: int
    read: int = 0
    hidden: list[Tensor] = field(default_factory=list)


def _tokens(length: int, seed: int) -> Tensor:
    return torch.randint(3, _VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))


def _batch(parts: Sequence[tuple[Text, int]]) -> Batch:
    """Return the next so many tokens of each text, end to end."""
    spans, offset = [], 0
    for text, count in parts:
        spans.append(Span(offset=offset, count=count, start=text.start, length=text.read + count))
        offset += count
    places = [torch.arange(text.read, text.read + count) for text, count in parts]
    return Batch(
        tokens=torch.cat([text.tokens[place] for (text, _), place in zip(parts, places, strict=True)]),
        positions=torch.cat(places),
        slots=torch.cat([text.start + place for (text, _), place in zip(parts, places, strict=True)]),
        spans=tuple(spans),
    )


def _read(decoder: Decoder, arena: Arena, parts: Sequence[tuple[Text, int]]) -> None:
    hidden = decoder.run(_batch(parts), arena)
    for (text, count), own in zip(parts, hidden.split([count for _, count in parts]), strict=True):
        text.hidden.append(own)
        text.read += count


def _close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_a_text_read_in_pieces_beside_others_is_what_transformers_makes_of_it(pair: Pair) -> None:
    arena = pair.decoder.arena(300)
    long, short, word = Text(_tokens(90, 1), 100), Text(_tokens(7, 2), 0), Text(_tokens(3, 3), 250)
    for parts in (
        [(long, 40)],  # more than heads are packed for
        [(short, 6), (long, 48), (word, 1)],
        [(word, 1), (long, 1), (short, 1)],
        [(long, 1), (word, 1)],
    ):
        _read(pair.decoder, arena, parts)
    for text in (long, short, word):
        _close(pair.decoder.logits(torch.cat(text.hidden)), pair.logits(text.tokens))


@settings(max_examples=30, derandomize=True)
@given(
    steps=st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=3), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_however_texts_are_cut_and_packed_nothing_changes(llama: Pair, steps: list[list[int]], seed: int) -> None:
    arena = llama.decoder.arena(3 * 240)
    texts = [Text(_tokens(sum(step[row] for step in steps), seed + row), 240 * row) for row in range(3)]
    for step in steps:
        parts = [(text, count) for text, count in zip(texts, step, strict=True) if count]
        if parts:
            _read(llama.decoder, arena, parts)
    for text in texts:
        if len(text.tokens):
            _close(llama.decoder.logits(torch.cat(text.hidden)), llama.logits(text.tokens))


def test_what_was_refused_leaves_no_trace(llama: Pair) -> None:
    arena, text = llama.decoder.arena(64), Text(_tokens(12, 4), 0)
    _read(llama.decoder, arena, [(text, 8)])
    wrong = Text(torch.cat((text.tokens[:8], _tokens(6, 5))), 0, read=8)
    _read(llama.decoder, arena, [(wrong, 6)])
    _read(llama.decoder, arena, [(text, 4)])
    _close(llama.decoder.logits(torch.cat(text.hidden)), llama.logits(text.tokens))


def test_layers_can_be_run_in_two_parts(pair: Pair) -> None:
    text = Text(_tokens(20, 6), 0)
    batch, arena = _batch([(text, 20)]), pair.decoder.arena(20)
    half = pair.decoder.run(batch, arena, last=2)
    whole = pair.decoder.run(batch, arena, first=2, hidden=half)
    assert torch.equal(whole, pair.decoder.run(batch, pair.decoder.arena(20)))


def test_embeddings_stand_for_tokens(llama: Pair) -> None:
    text = Text(_tokens(20, 7), 0)
    batch = _batch([(text, 20)])
    embedded = replace(batch, tokens=torch.zeros_like(batch.tokens), embeddings=llama.decoder.embed(batch.tokens))
    plain = llama.decoder.run(batch, llama.decoder.arena(20))
    assert torch.equal(llama.decoder.run(embedded, llama.decoder.arena(20)), plain)


def test_positions_of_pictures_that_are_those_of_words_change_nothing(llama: Pair) -> None:
    decoder, text = _with_sections(llama, (4, 2, 2)), Text(_tokens(20, 8), 0)
    batch = _batch([(text, 20)])
    wide = replace(batch, positions=batch.positions.expand(3, -1))
    assert torch.equal(decoder.run(wide, decoder.arena(20)), decoder.run(batch, decoder.arena(20)))


def test_time_height_and_width_turn_frequencies_of_their_own(llama: Pair) -> None:
    decoder = _with_sections(llama, (4, 2, 2))
    positions = torch.tensor([[5, 1], [7, 2], [11, 3]])
    cosine, sine = decoder.rotary(positions)
    frequencies = decoder._frequencies
    turned = torch.cat((frequencies[:4] * 5, frequencies[4:6] * 7, frequencies[6:] * 11))
    torch.testing.assert_close(cosine[0, 0], torch.cat((turned, turned)).cos())
    torch.testing.assert_close(sine[0, 0], torch.cat((-turned.sin(), turned.sin())))


def _with_sections(pair: Pair, sections: tuple[int, ...]) -> Decoder:
    own = pair.decoder
    return Decoder(
        shape=replace(own.shape, sections=sections),
        layers=own.layers,
        embedding=own.embedding,
        head=own.head,
        norm=own.norm,
        frequencies=own._frequencies,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_models_of_the_family_are_known(name: str) -> None:
    assert is_known(CONFIGS[name])


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**_SIZES, hidden_act="gelu"),
        LlamaConfig(**_SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}),
        MistralConfig(**_SIZES, sliding_window=64),
        Qwen2Config(**_SIZES, use_sliding_window=True, sliding_window=64, max_window_layers=1),
        PretrainedConfig(),
    ],
    ids=["another activation", "positions that depend on length", "a window", "windows in some layers", "no model"],
)
def test_models_that_differ_where_it_matters_are_not(config: PretrainedConfig) -> None:
    assert not is_known(config)
