"""A base model of a few kilobytes, in a folder as `models.supply.convert` writes it."""

from pathlib import Path

import pytest
import torch
from support.tiny_llama import make_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from recipes.base import Base, load_base


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny base model lies."""
    place = tmp_path_factory.mktemp("base")
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def base(folder: Path) -> Base:
    """The tiny base model."""
    return load_base(folder, device=torch.device("cpu"), dtype=torch.float32)
