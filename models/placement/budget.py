"""One budget of threads for all worker processes of a machine.

torch, onnxruntime and OpenMP each take all cores if they are let, and then wait for one another's. Answers get the machine;
the senses, which work for milliseconds at a time, a part of it beside them.
"""

import os
from collections.abc import Mapping

from models.placement.engines import Place

_FEW_CORES = 4


def available_threads() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def shares(threads: int, places: frozenset[Place]) -> Mapping[Place, int]:
    """Return how many threads a step may take in each process.

    Below `_FEW_CORES` the senses have one thread that is not taken from the answers': a whole core of two, kept for what works now and then,
    would halve every answer. From there on they have an eighth, at least one, and the answers the rest.

    Args:
        threads: what there is, at least 1.
        places: the processes that there are.
    """
    if places != {"decoding", "senses"}:
        return dict.fromkeys(places, threads if "decoding" in places else max(1, threads // 2))
    senses = max(1, threads // 8)
    return {"decoding": threads if threads < _FEW_CORES else threads - senses, "senses": senses}


def environment(threads: int) -> dict[str, str]:
    """Return what a process is started with, so that no library takes more than `threads`."""
    return {
        name: str(threads)
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    }
