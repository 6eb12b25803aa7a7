"""Puts the engine's parts together for one model: weights, cache, drafters, policy, adapters."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from models.language.causal import CausalModel, load_causal_model
from models.language.decoding.adapters import load_adapters
from models.language.decoding.cache import BLOCK_TOKENS, Cache
from models.language.decoding.constrain import Constrainer
from models.language.decoding.decoder import Decoder
from models.language.decoding.drafters import Drafter, DrafterName
from models.language.decoding.drafters.suffix import SuffixDrafter
from models.language.decoding.drafters.trained import shipped_for
from models.language.decoding.engine import Language
from models.language.decoding.linear import FASTEST
from models.language.decoding.loading import decoder_of
from models.language.decoding.loop import Loop, LoopLimits
from models.language.decoding.packed import packer
from models.language.decoding.policy import Policy
from models.language.decoding.speculation import Speculation
from models.language.options import TransformersOptions

# The early exit of a model that has a draft as well guesses worse and takes longer: only who asks for it gets it.
_MAY_DRAFT: dict[str, set[DrafterName]] = {
    "auto": {"suffix", "pair"},
    "off": set(),
    "suffix": {"suffix"},
    "pair": {"pair"},
    "early_exit": {"early_exit"},
}

_CPU_CACHE_BYTES = 4 * 1024**3
"""The most that a cache takes of a CPU's memory by default."""


def build_loop(folder: str, options: TransformersOptions) -> tuple[Loop, Language]:
    """Load the model in `folder` and make all that serves it."""
    causal = load_causal_model(
        folder,
        device=options.device,
        dtype=options.dtype,
        window_tokens=options.context_tokens,
        prefill_tokens=options.prefill_tokens,
        template=options.template,
    )
    with ThreadPoolExecutor(1, "constrainer") as beside:  # while weights are packed, which takes as long
        constrainer = beside.submit(
            Constrainer,
            causal.tokenizer,
            vocabulary=causal.vocabulary,
            ends=causal.ends,
            calls=causal.prompts.calls,
        )
        decoder = _decoder(Path(folder), causal, options)
    adapters = load_adapters(options.adapters, decoder)
    decoder.low_rank = adapters.apply
    slots = options.cache_tokens or _slots_that_fit(decoder, causal.window_tokens * options.max_requests)
    cache = Cache(decoder.arena(slots // BLOCK_TOKENS * BLOCK_TOKENS))
    if decoder.device.type == "cuda":
        _warm_up(decoder, cache, options.max_requests)
    drafters = _drafters(decoder, options)
    language = Language(
        prompts=causal.prompts,
        ends=causal.ends,
        window_tokens=min(causal.window_tokens, cache.capacity),
        vocabulary=causal.vocabulary,
        constrainer=constrainer.result(),
        adapters=adapters,
    )
    limits = LoopLimits(rows=options.max_requests, prefill_tokens=causal.prefill_tokens)
    return Loop(decoder, cache, Speculation(drafters, Policy()), adapters, limits), language


def _decoder(folder: Path, causal: CausalModel, options: TransformersOptions) -> Decoder:
    """Return what runs the model fastest where it is."""
    if causal.model.device.type == "cuda":
        from models.language.decoding.cuda import CudaDecoder, pack  # needs Triton, which comes with CUDA

        return decoder_of(causal.model, pack, CudaDecoder)
    # Who names a dtype wants the weights in it; else they are as they were quantised, if they were.
    packed = packer(folder) if options.dtype == "auto" else None
    if not FASTEST:
        return decoder_of(causal.model, packed)
    from models.language.decoding.cpu import CpuDecoder  # needs what a C compiler made

    return decoder_of(causal.model, packed, CpuDecoder)


def _warm_up(decoder: Decoder, cache: Cache, rows: int) -> None:
    """Have kernels compiled and graphs captured now, and not while the first requests wait."""
    from models.language.decoding.cuda import CudaDecoder  # see `_decoder`

    if isinstance(decoder, CudaDecoder):
        decoder.warm_up(cache.arena, [size for size in (1, 2, 4, 8, 16, 24, 32) if size <= rows])


def _drafters(decoder: Decoder, options: TransformersOptions) -> list[Drafter]:
    names = _MAY_DRAFT[options.speculation]
    suffix: list[Drafter] = [SuffixDrafter()] if "suffix" in names else []
    return [*suffix, *shipped_for(decoder, names, rows=options.max_requests)]


def _slots_that_fit(decoder: Decoder, most: int) -> int:
    """Return how many tokens of cache there is memory for, up to `most`."""
    if decoder.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(decoder.device)
        room = free * 4 // 5  # the rest is for what a step computes
    else:
        room = min(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4, _CPU_CACHE_BYTES)
    return max(min(most, room // decoder.arena(0).slot_bytes), BLOCK_TOKENS)
