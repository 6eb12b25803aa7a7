"""How near does decoding on a GPU come to what its memory allows, and what does speculation add? Needs CUDA.

Models of the shapes of Qwen2.5 in bfloat16, with random weights: speed does not depend on their values. Only the embeddings
are chosen, so that a model says with certainty which token follows which. So no rounding can change an answer, which is
checked, and the oracle knows it: a drafter whose every token is right with a given chance.

A stream gets the next request as soon as it has ended one: 128 tokens in, 128 on average out, of different lengths, so that
requests join and leave all the time. `bandwidth_share` is of the most tokens a second that the bytes of the weights allow,
read once a step, at the bandwidth of a copy measured in the same run. `speedup` is that of decoding alone, no prompts among
it, over the same without drafts; `speedup_theory` is (1 - a^(k+1)) / ((1 - a)(1 + kc)) for drafts of k tokens, each right with
chance a, each costing c steps (Leviathan et al. 2023).
"""

import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Annotated, Any

import torch
import typer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config

from benchmarks.report import Json, Quick, Row, report, row
from models.language.decoding.adapters import Adapters
from models.language.decoding.cache import BLOCK_TOKENS, Cache
from models.language.decoding.cuda import CudaDecoder, pack
from models.language.decoding.drafters import Context, DrafterName
from models.language.decoding.loading import decoder_of
from models.language.decoding.loop import Loop, LoopLimits
from models.language.decoding.prefixes import Scope
from models.language.decoding.rows import Prompt
from models.language.decoding.rows import Row as Request
from models.language.decoding.sampling import Chooser
from models.language.decoding.scheduler import Rank
from models.language.decoding.speculation import FixedPolicy, Speculation
from models.language.detokenize import Detokenizer
from models.owner import Owner
from models.ports.generate import Sampling

_TOKENS = 128  # in, and on average out
_STREAMS = (1, 8, 32, 64)
_DRAFTS = {1: (2, 4), 8: (2, 4), 32: (1, 2, 3)}
"""Streams, and the lengths of their drafts: with longer ones at 32 streams, verification is no longer bound by memory."""
_ACCEPTANCES = (0.6, 0.8)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False


_SHAPES = {
    "0.5B": _Shape(
        hidden=896, intermediate=4864, layers=24, heads=14, kv_heads=2, vocabulary=151_936, tied=True
    ),
    "7B": _Shape(hidden=3584, intermediate=18_944, layers=28, heads=28, kv_heads=4, vocabulary=152_064),
    "32B": _Shape(hidden=5120, intermediate=27_648, layers=64, heads=40, kv_heads=8, vocabulary=152_064),
}  # fmt: skip


def _model(shape: _Shape) -> PreTrainedModel:
    config = Qwen2Config(
        hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        max_position_embeddings=32_768,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    embedding: Tensor = model.get_input_embeddings().weight.data
    embedding.normal_(std=10)  # far above what the layers add
    if not shape.tied:
        model.get_output_embeddings().weight.data.copy_(embedding.roll(1, 0))
    ready: PreTrainedModel = model.eval()
    return ready


def _next(shape: _Shape, token: int) -> int:
    """Return what such a model writes after `token`: its successor, or itself where head and embeddings are the same."""
    return token if shape.tied else (token + 1) % shape.vocabulary


def _words(vocabulary: int) -> PreTrainedTokenizerFast:
    words = {f"word{token} ": token for token in range(vocabulary)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="word0 ")))  # type: ignore[no-untyped-call]


class _Oracle:
    """Drafts what the model is going to write, each token right with the same chance."""

    name: DrafterName = "pair"

    def __init__(self, shape: _Shape, acceptance: float) -> None:
        self.spent_s = 0.0
        self.drafted = 0
        self._shape = shape
        self._acceptance = acceptance
        self._chances = random.Random(0)

    def join(self, context: Context) -> None: ...

    def draft(self, asks: Sequence[tuple[Context, int]]) -> list[list[int]]:
        begun_s = time.perf_counter()
        drafts = []
        for context, length in asks:
            draft, token = [], context.tokens[-1]
            for _ in range(length):
                token = _next(self._shape, token)
                right = self._chances.random() < self._acceptance
                draft.append(token if right else (token + 7) % self._shape.vocabulary)
            drafts.append(draft)
        self.spent_s += time.perf_counter() - begun_s
        self.drafted += max((length for _, length in asks), default=0)
        return drafts

    def observe(self, context: Context, drafted: int, accepted: int) -> None: ...

    def leave(self, context: Context) -> None: ...


class _Bench:
    """A model of a shape, served by the engine's own loop."""

    def __init__(self, shape: _Shape, model: PreTrainedModel, streams: int) -> None:
        self.shape = shape
        decoder = decoder_of(model, pack, CudaDecoder)
        assert isinstance(decoder, CudaDecoder)
        self._decoder = decoder
        self._words = _words(shape.vocabulary)
        slots = 4 * streams * _TOKENS // BLOCK_TOKENS * BLOCK_TOKENS
        self._arena = decoder.arena(slots)
        self.failures: list[str] = []

    @property
    def step_bytes(self) -> int:
        """What a step has to read of the weights: all but the embeddings."""
        shape = self.shape
        heads = (shape.heads + shape.kv_heads) * 2 * shape.hidden // shape.heads
        layer = shape.hidden * (heads + 3 * shape.intermediate)
        return 2 * (layer * shape.layers + shape.hidden * shape.vocabulary)

    def warm_up(self, streams: Sequence[int]) -> float:
        begun_s = time.perf_counter()
        self._decoder.warm_up(self._arena, streams)
        torch.cuda.synchronize()
        return time.perf_counter() - begun_s

    def joining(self, streams: int, requests: int) -> float:
        """Return tokens a second while each stream that ends is followed by another."""
        lengths = [_TOKENS // 2 + at * 37 % _TOKENS for at in range(requests)]
        loop, rows = self._loop(streams, Speculation((), FixedPolicy()), lengths)
        while any(each.writer.written == 0 for each in rows[:streams]):
            loop.step()
        return self._rate(loop, rows, lambda: loop.waiting > 0)[0]

    def decoding(self, streams: int, oracle: _Oracle | None, length: int) -> tuple[float, float]:
        """Return tokens a second, and the seconds of a step, while all streams write."""
        policy = FixedPolicy() if oracle is None else FixedPolicy(oracle.name, length)
        drafters = () if oracle is None else (oracle,)
        loop, rows = self._loop(streams, Speculation(drafters, policy), [2 * _TOKENS] * streams)
        while any(each.writer.written < 8 for each in rows):
            loop.step()
        steps = 0

        def going() -> bool:
            nonlocal steps
            steps += 1
            return loop.running == streams

        rate, spent_s = self._rate(loop, rows, going)
        return rate, spent_s / (steps - 1)

    def _loop(self, streams: int, speculation: Speculation, lengths: Sequence[int]) -> tuple[Loop, list[Request]]:
        limits = LoopLimits(rows=streams, prefill_tokens=512)
        loop = Loop(self._decoder, Cache(self._arena), speculation, Adapters((), {}, by_runs=False), limits)
        rows = [self._request(ticket, length) for ticket, length in enumerate(lengths)]
        for each in rows:
            loop.submit(each)
        return loop, rows

    def _request(self, ticket: int, length: int) -> Request:
        prompt = random.Random(ticket).choices(range(self.shape.vocabulary), k=_TOKENS)
        sampling = Sampling(max_output_tokens=length)
        return Request(
            prompt=Prompt(tokens=tuple(prompt)),
            context=Context(owner=Owner("bench"), tokens=list(prompt), prompt_length=_TOKENS),
            scope=Scope(owner=Owner("bench")),
            rank=Rank.of("normal", 0.0, None, ticket),
            chooser=Chooser.of(sampling),
            writer=Detokenizer(self._words, sampling, ends=frozenset(), limit=length),
            limit=length,
            tell=lambda _deltas, error: None if error is None else self.failures.append(str(error)),
        )

    def _rate(self, loop: Loop, rows: Sequence[Request], going: Callable[[], bool]) -> tuple[float, float]:
        """Step while `going`; return the tokens a second, and the seconds. Check what was written."""
        gc.collect()  # what is garbage already is not to be collected meanwhile
        before, begun_s = sum(each.writer.written for each in rows), time.perf_counter()
        while going():
            loop.step()
        spent_s = time.perf_counter() - begun_s
        written = sum(each.writer.written for each in rows) - before
        for each in rows:
            tokens = each.context.tokens[_TOKENS - 1 :]
            wrong = sum(after != _next(self.shape, token) for token, after in pairwise(tokens))
            if wrong:
                self.failures.append(f"{wrong} of {len(tokens)} tokens differ")
            loop.cancel(each)
        return written / spent_s, spent_s


def _copy_bytes_per_s() -> float:
    source = torch.empty(2**31, dtype=torch.bfloat16, device="cuda").normal_()
    target = torch.empty_like(source)
    best_s = float("inf")
    for _ in range(8):
        torch.cuda.synchronize()
        begun_s = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - begun_s)
    return 2 * source.nbytes / best_s


def _transformers(model: Any, system: str, streams: int) -> float:
    """Return tokens a second of transformers, whose streams all begin and end together."""
    given = torch.randint(0, 1000, (streams, _TOKENS), device="cuda")
    config = GenerationConfig(max_new_tokens=_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)  # type: ignore[no-untyped-call]
    settings: dict[str, Any] = {"generation_config": config}
    if system == "transformers_compiled":
        config.cache_implementation = "static"

    def generate() -> None:
        if system == "transformers_batch":
            model.generate_batch(inputs=given.tolist(), **settings)
        else:
            model.generate(given, attention_mask=torch.ones_like(given), min_new_tokens=_TOKENS, **settings)

    generate()
    if system == "transformers_compiled":
        generate()
    torch.cuda.synchronize()
    begun_s = time.perf_counter()
    generate()
    torch.cuda.synchronize()
    return streams * _TOKENS / (time.perf_counter() - begun_s)


def _measure(name: str, bandwidth: float, *, peers: bool, quick: bool) -> list[Row]:
    shape, rows = _SHAPES[name], []
    model = _model(shape)
    if peers:
        asked = [("transformers", 1), ("transformers", 32), ("transformers_batch", 32), ("transformers_compiled", 1)]
        for system, streams in asked[:2] if quick else asked:
            try:
                rate = _transformers(model, system, streams)
            except Exception as exc:  # noqa: BLE001  # a peer that fails is no reason to measure nothing else
                print(f"{system} failed: {exc!r}", flush=True)
                continue
            rows.append(row("tokens_per_s", "tokens/s", [rate], system=system, shape=name, streams=streams))
            _say(rows[-1])
    bench = _Bench(shape, model, max(_STREAMS))
    del model
    gc.collect()
    torch.cuda.empty_cache()
    print(f"{name}: warm after {bench.warm_up(_STREAMS):.1f} s", flush=True)
    limit = bandwidth / bench.step_bytes
    times = 1 if quick else 2
    for streams in _STREAMS:
        bench.joining(streams, 2 * streams)  # captures what is not yet
        rates = [bench.joining(streams, max(3 * streams, 6)) for _ in range(times)]
        labels = {"system": "baton", "shape": name, "streams": streams}
        rows.append(row("tokens_per_s", "tokens/s", rates, **labels))
        rows.append(row("bandwidth_share", "", [rate / (streams * limit) for rate in rates], **labels))
        _say(*rows[-2:])
    for streams, lengths in _DRAFTS.items():
        bench.decoding(streams, None, 0)
        runs = [bench.decoding(streams, None, 0) for _ in range(times)]
        plain, step_s = (statistics.median(column) for column in zip(*runs, strict=True))
        labels = {"system": "baton_steady", "shape": name, "streams": streams}
        rows.append(row("tokens_per_s", "tokens/s", [rate for rate, _ in runs], **labels))
        _say(rows[-1])
        for length, acceptance in product(lengths, _ACCEPTANCES):
            bench.decoding(streams, _Oracle(shape, acceptance), length)
            oracle = _Oracle(shape, acceptance)
            drafted = [bench.decoding(streams, oracle, length)[0] for _ in range(2 * times)]
            cost = oracle.spent_s / oracle.drafted / step_s
            theory = (1 - acceptance ** (length + 1)) / ((1 - acceptance) * (1 + length * cost))
            labels |= {"system": "baton_oracle", "acceptance": acceptance, "length": length}
            rows.append(row("tokens_per_s", "tokens/s", drafted, **labels))
            rows.append(row("speedup", "x", [rate / plain for rate in drafted], **labels))
            rows.append(row("speedup_theory", "x", [theory], **labels))
            _say(*rows[-3:])
    if bench.failures:
        raise RuntimeError(f"{name}: {len(bench.failures)} failures, such as: {bench.failures[0]}")
    return rows


def _say(*rows: Row) -> None:
    for each in rows:
        print(each.metric, " ".join(each.labels.values()), f"{each.value:.3f} {each.unit}", flush=True)


def main(
    quick: Quick = False,
    json: Json = None,
    shape: Annotated[list[str] | None, typer.Option(help="0.5B, 7B, 32B; all by default.")] = None,
    peers: Annotated[bool, typer.Option(help="Measure transformers, too.")] = True,
) -> None:
    """Measure."""
    bandwidth = _copy_bytes_per_s()
    print(f"{torch.cuda.get_device_name()}: a copy moves {bandwidth / 1e12:.2f} TB/s", flush=True)
    rows = [row("copy_bytes_per_s", "B/s", [bandwidth])]
    for name in shape or (["0.5B"] if quick else list(_SHAPES)):
        rows += _measure(name, bandwidth, peers=peers, quick=quick)
        torch.cuda.empty_cache()
    report(rows, json)


if __name__ == "__main__":
    typer.run(main)
