"""Sentence embeddings by MiniLM: a BERT encoder, the mean of its last states, at length 1.

all-MiniLM-L6-v2 is Sentence-BERT's recipe (Reimers and Gurevych 2019, arXiv:1908.10084) on MiniLM (Wang et al. 2020,
arXiv:2002.10957). The encoder is BERT's (Devlin et al. 2019, arXiv:1810.04805), written out here over its own weights: texts of
a batch lie one after another without padding but for attention, and transformers, which takes seconds to import, is not needed.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from models.errors import BadInput, context_overflow

STEP_TOKENS = 512
"""The most tokens, padding included, that one run of the encoder takes: a stop, and what is more urgent, waits for one."""


class MiniLm:
    """The encoder and its tokenizer. Blocks; not for two threads at once.

    Attributes:
        dimensions: of a vector.
        window_tokens: the most tokens of a text, its two marks included.
    """

    def __init__(self, folder: Path, *, window_tokens: int) -> None:
        """Read `config.json`, `tokenizer.json` and `model.safetensors` of a folder.

        Args:
            folder: where they lie.
            window_tokens: the most tokens that the model was made for; at most as many as it has places.

        Raises:
            BadInput: it is no BERT, or has fewer places.
            OSError: a file cannot be read.
            ValueError: the weights do not fit the configuration.
        """
        config = json.loads((folder / "config.json").read_text())
        if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
            raise BadInput(f"What lies in {folder} is no BERT with GELU: 'model_type' is {config.get('model_type')!r}.")
        places = int(config["max_position_embeddings"])
        if window_tokens > places:
            raise BadInput(f"context_tokens is {window_tokens}, and the model has {places} places.")
        self.dimensions = int(config["hidden_size"])
        self.window_tokens = window_tokens
        self._heads = int(config["num_attention_heads"])
        self._layers = int(config["num_hidden_layers"])
        self._epsilon = float(config["layer_norm_eps"])
        self._weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
        if self._weights["embeddings.word_embeddings.weight"].shape != (config["vocab_size"], self.dimensions):
            raise ValueError(f"the weights in {folder} are of another model than its config.json")
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, `[CLS]` first and `[SEP]` last.

        Raises:
            LimitExceeded: a text is longer than the window. Nothing is cut off unsaid.
        """
        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        if (longest := max(map(len, encoded), default=0)) > self.window_tokens:
            raise context_overflow(self.window_tokens, longest)
        return encoded

    def embed(self, tokens: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the vectors of texts, some at a time: which texts, and float32 of (texts, `dimensions`), each of length 1.

        Those of like length go together, the longest first; between two yields nothing is under way.
        """
        order = sorted(range(len(tokens)), key=lambda text: -len(tokens[text]))
        at = 0
        while at < len(order):
            texts = order[at : at + max(1, STEP_TOKENS // len(tokens[order[at]]))]
            at += len(texts)
            yield texts, self._run([tokens[text] for text in texts])

    @torch.inference_mode()
    def _run(self, texts: Sequence[Sequence[int]]) -> Tensor:
        lengths = torch.tensor([len(text) for text in texts])
        longest = int(lengths[0])
        there = torch.arange(longest) < lengths[:, None]
        ids = torch.zeros(len(texts), longest, dtype=torch.long)
        ids[there] = torch.tensor([token for text in texts for token in text])
        weights = self._weights
        states = (
            functional.embedding(ids, weights["embeddings.word_embeddings.weight"])
            + weights["embeddings.position_embeddings.weight"][:longest]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        states = self._normed(states, "embeddings.LayerNorm")
        mask = None if bool(there.all()) else there[:, None, None, :]
        for layer in range(self._layers):
            states = self._layer(states, mask, f"encoder.layer.{layer}")
        summed = (states * there[:, :, None]).sum(1)
        return functional.normalize(summed / lengths[:, None], dim=1)

    def _layer(self, states: Tensor, mask: Tensor | None, name: str) -> Tensor:
        texts, tokens, width = states.shape

        def heads(part: str) -> Tensor:
            projected = self._linear(states, f"{name}.attention.self.{part}")
            return projected.view(texts, tokens, self._heads, width // self._heads).transpose(1, 2)

        attended = functional.scaled_dot_product_attention(
            heads("query"), heads("key"), heads("value"), attn_mask=mask, scale=1 / math.sqrt(width // self._heads)
        )
        attended = attended.transpose(1, 2).reshape(texts, tokens, width)
        attended = self._linear(attended, f"{name}.attention.output.dense")
        states = self._normed(states + attended, f"{name}.attention.output.LayerNorm")
        inner = functional.gelu(self._linear(states, f"{name}.intermediate.dense"))
        return self._normed(states + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _linear(self, states: Tensor, name: str) -> Tensor:
        return functional.linear(states, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _normed(self, states: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return functional.layer_norm(states, (self.dimensions,), weight, bias, self._epsilon)
