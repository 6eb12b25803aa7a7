"""The forward pass on CUDA, against the plain one.

Without a GPU its kernels run in Triton's interpreter, if TRITON_INTERPRET=1 is set; what only a GPU has, the captured steps,
is then left out.
"""

import os
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (torch.cuda.is_available() or INTERPRETED):
    pytest.skip("needs CUDA, or TRITON_INTERPRET=1", allow_module_level=True)

from models.language.decoding.arena import Arena  # noqa: E402 - only where there is something to run it on
from models.language.decoding.cuda import CudaDecoder, pack, pieces_of  # noqa: E402
from models.language.decoding.decoder import Batch, Decoder, Span  # noqa: E402
from models.language.decoding.loading import decoder_of  # noqa: E402

DEVICE = "cpu" if INTERPRETED else "cuda"
Tokens = list[int]


def decoders(kind: str, dtype: torch.dtype = torch.float32, head_dim: int = 32) -> tuple[Decoder, CudaDecoder]:
    """Return the plain decoder and that for CUDA, of the same weights."""
    config = AutoConfig.for_model(
        kind, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, head_dim=head_dim,
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    both = []
    for make, packed in ((Decoder, None), (CudaDecoder, pack)):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).to(DEVICE)
        for name, weight in model.named_parameters():  # norms and biases that are all alike would hide mistakes
            if weight.ndim == 1:
                torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.1)
        both.append(decoder_of(model, packed, make))
    assert isinstance(both[1], CudaDecoder)
    return both[0], both[1]


class Rows:
    """Rows that are fed to a decoder, each in an extent of its own."""

    def __init__(self, decoder: Decoder, rows: int, room: int = 96) -> None:
        self.decoder, self.arena, self.room = decoder, decoder.arena(rows * room), room
        self.lengths = [0] * rows

    def batch(self, given: Sequence[Tokens], device: str) -> Batch:
        spans, positions, slots = [], [], []
        for row, tokens in enumerate(given):
            if not tokens:
                continue
            begin, end = self.lengths[row], self.lengths[row] + len(tokens)
            spans.append(Span(offset=len(positions), count=len(tokens), start=row * self.room, length=end))
            positions += range(begin, end)
            slots += range(row * self.room + begin, row * self.room + end)
            self.lengths[row] = end
        flat = [token for tokens in given for token in tokens]
        columns = (torch.tensor(column, device=device) for column in (flat, positions, slots))
        return Batch(**dict(zip(("tokens", "positions", "slots"), columns, strict=True)), spans=tuple(spans))

    @torch.inference_mode()
    def feed(self, given: Sequence[Tokens], device: str = DEVICE) -> Tensor:
        """Return the scores behind each token."""
        return self.decoder.logits(self.decoder.run(self.batch(given, device), self.arena)).clone()


STEPS: list[list[Tokens]] = [
    [list(range(40)), [], [7]],  # prompts arrive
    [[3], list(range(100, 120)), [1, 2, 3]],  # a row decodes, one reads its prompt, one verifies a draft
    [[4], [5], [6]],
    [[], [8, 9], [10]],  # a row has left
]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "smollm3"])
@torch.inference_mode()
def test_it_computes_what_the_plain_decoder_computes(kind: str) -> None:
    plain, fast = (Rows(decoder, 3) for decoder in decoders(kind))
    for given in STEPS[:2] if INTERPRETED else STEPS + STEPS[2:] * 4:  # often enough to be captured
        torch.testing.assert_close(fast.feed(given), plain.feed(given), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_layers_run_in_two_stretches_are_the_layers_run_in_one() -> None:
    whole, halves = (Rows(decoder, 3) for decoder in decoders("llama"))
    for given in STEPS[:1] if INTERPRETED else STEPS[2:] * 5:
        wanted = whole.feed(given)
        batch = halves.batch(given, DEVICE)
        middle = halves.decoder.run(batch, halves.arena, last=1)
        got = halves.decoder.run(batch, halves.arena, first=1, hidden=middle)
        torch.testing.assert_close(halves.decoder.logits(got), wanted, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_heads_that_the_kernels_do_not_have_take_the_plain_way() -> None:
    plain, fast = (Rows(decoder, 3) for decoder in decoders("llama", head_dim=24))
    torch.testing.assert_close(fast.feed(STEPS[0]), plain.feed(STEPS[0]), atol=1e-4, rtol=1e-4)


def test_a_long_span_is_cut_into_pieces_that_end_where_it_ends() -> None:
    spans = (Span(offset=0, count=1, start=64, length=9), Span(offset=1, count=35, start=96, length=50))
    assert pieces_of(spans) == [(0, 1, 64, 9), (1, 16, 96, 31), (17, 16, 96, 47), (33, 3, 96, 50)]


@pytest.mark.skipif(INTERPRETED, reason="steps are captured on a GPU only")
@torch.inference_mode()
def test_a_captured_step_is_the_step_itself_wherever_its_batch_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    _, decoder = decoders("qwen2", torch.bfloat16)
    replayed = Rows(decoder, 3)
    got = [replayed.feed(STEPS[2], device) for device in ("cpu", "cuda", "cpu", "cuda", "cpu")]
    monkeypatch.setattr("models.language.decoding.cuda._USES", 1000)
    launched = Rows(decoder, 3)
    wanted = [launched.feed(STEPS[2]) for _ in got]
    torch.testing.assert_close(got, wanted, atol=0, rtol=0)


@pytest.mark.skipif(INTERPRETED, reason="steps are captured on a GPU only")
@torch.inference_mode()
def test_in_half_precision_a_draft_moves_scores_by_rounding_alone() -> None:
    _, decoder = decoders("qwen2", torch.bfloat16)
    single, drafted = Rows(decoder, 1), Rows(decoder, 1)
    tokens = [int(token) for token in torch.randint(0, 128, (12,))]
    one_by_one = torch.cat([single.feed([[token]]) for token in tokens])
    torch.testing.assert_close(drafted.feed([tokens]), one_by_one, atol=0.02, rtol=0)


@pytest.mark.skipif(INTERPRETED, reason="steps are captured on a GPU only")
@torch.inference_mode()
def test_what_only_fills_a_step_up_touches_no_row() -> None:
    _, decoder = decoders("llama")
    rows = Rows(decoder, 3)
    rows.feed([[1], [2], [3]])
    before = [rows.arena.keys[layer][:-1].clone() for layer in range(2)]
    arena = Arena(layers=2, slots=8, kv_heads=2, head_size=32, dtype=torch.float32, device=torch.device(DEVICE))
    decoder.warm_up(arena, [1, 3])
    rows.feed([[], [5], []])
    for layer in range(2):
        written = (rows.arena.keys[layer][:-1] != before[layer]).flatten(1).any(1).nonzero().flatten().tolist()
        assert written == [97]
