"""MiniLM beside the same model as transformers computes it, a text at a time."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ports import spec_of
from torch import Tensor

from models.embeddings.minilm import STEP_TOKENS, MiniLm
from models.errors import BadInput, LimitExceeded


@pytest.fixture(scope="module")
def folder() -> Path:
    found = spec_of("all-minilm-l6-v2").folder
    assert found is not None
    return Path(found)


@pytest.fixture(scope="module")
def model(folder: Path) -> MiniLm:
    return MiniLm(folder, window_tokens=256)


@pytest.fixture(scope="module")
def peer(folder: Path) -> torch.nn.Module:
    from transformers import BertModel  # takes seconds, which most tests need not wait for

    return BertModel.from_pretrained(folder).eval()


def _vectors(model: MiniLm, texts: list[str]) -> Tensor:
    vectors = torch.full((len(texts), model.dimensions), torch.nan)
    for which, found in model.embed(model.tokens(texts)):
        vectors[torch.tensor(which)] = found
    return vectors


_WORDS = st.text(st.characters(codec="utf-8"), max_size=40)


@settings(max_examples=15)
@given(texts=st.lists(st.one_of(_WORDS, st.integers(1, 200).map("word ".__mul__)), min_size=1, max_size=12))
def test_a_batch_has_the_numbers_that_transformers_has_for_each_text_alone(
    model: MiniLm, peer: torch.nn.Module, texts: list[str]
) -> None:
    found = _vectors(model, texts)
    for text, vector in zip(texts, found, strict=True):
        with torch.inference_mode():
            states = peer(input_ids=torch.tensor(model.tokens([text]))).last_hidden_state
        expected = torch.nn.functional.normalize(states.mean(1), dim=1)[0]
        assert torch.allclose(vector, expected, atol=1e-5)


def test_sentences_are_as_near_as_the_models_card_says(model: MiniLm) -> None:
    """The pairs that sentence-transformers shows the model by; the figures are of the first release, to two places."""
    pairs = [
        ("The cat sits outside", "The dog plays in the garden"),
        ("A man is playing guitar", "A woman watches TV"),
        ("The new movie is awesome", "The new movie is so great"),
    ]
    near = [float(left @ right) for left, right in (_vectors(model, list(pair)) for pair in pairs)]
    assert near == pytest.approx([0.28, -0.03, 0.89], abs=0.01)


def test_no_run_is_longer_than_a_step(model: MiniLm) -> None:
    tokens = model.tokens(["word " * n for n in (1, 250, 3, 120, 120, 120, 120, 9, 2)])
    sizes = [(max(len(tokens[text]) for text in texts), len(texts)) for texts, _ in model.embed(tokens)]
    assert all(longest * texts <= STEP_TOKENS for longest, texts in sizes)
    assert sorted(text for texts, _ in model.embed(tokens) for text in texts) == list(range(len(tokens)))


def test_a_text_is_refused_from_the_first_token_beyond_the_window(model: MiniLm) -> None:
    assert len(model.tokens(["word " * 254])[0]) == 256
    with pytest.raises(LimitExceeded, match="256"):
        model.tokens(["word " * 255])


def test_what_is_no_such_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="places"):
        MiniLm(folder, window_tokens=513)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BadInput, match="'llama'"):
        MiniLm(tmp_path, window_tokens=256)
