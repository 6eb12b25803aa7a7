"""How fast does the embedded model write on a CPU, for one stream and for several, beside other engines on the same weights?

SmolLM2-135M from one GGUF, prompts of Spec-Bench (Xia et al. 2024), greedy, two threads. A round asks as many prompts at once
as there are streams, of every system in turn; no prompt is asked twice of the same process. What Baton keeps from one round to the
next, as in service, is the first tokens that all prompts share (the template's), and as a drafter of `baton_policy` earlier answers.
`baton_policy` may draft, `baton_plain` may not; `transformers` is its `generate` over a padded batch, in the faster of float32
and bfloat16; `llama_cpp` is llama-cpp-python, all streams in one batch; `openvino_genai` its continuous batching.

The prompts are read from `spec_bench/questions.jsonl` in BATON_DATA (../shared/data). The peers are installed the first time.
"""

import itertools
import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import typer
from transformers import PreTrainedTokenizerFast

from benchmarks.decode_peers import peers, python_of
from benchmarks.report import Json, Quick, Row, quantile, report, row
from models.catalog_file import load_catalog
from models.content import Message, TextPart
from models.language.prompts import PromptWriter
from models.supply.store import Store
from orchestrator.settings import Settings

_SYSTEMS = ("baton_plain", "baton_policy", "transformers", "llama_cpp", "openvino_genai")
_THREADS = 2
_LONGEST_PROMPT = 1024
_BUSY = 0.5


class _System:
    """A system at work in its own process."""

    def __init__(self, name: str, process: "subprocess.Popen[str]") -> None:
        self.name = name
        self._process = process
        if self._answer() != "ready\n":
            raise RuntimeError(f"{name} did not start; what it said is above.")

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Return what came of a job; see `decode_worker`."""
        assert self._process.stdin is not None
        print(json.dumps(job), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._answer() or "null")
        if answer is None:
            raise RuntimeError(f"{self.name} ended; what it said is above.")
        return answer

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextmanager
def _running(name: str, python: Path, folder: Path) -> Iterator[_System]:
    """Run a system for the length of the block."""
    command = (str(python), str(Path(__file__).parent / "decode_worker.py"), name, str(folder), str(_THREADS))
    environment = {**os.environ, "OMP_NUM_THREADS": str(_THREADS), "GGML_LOG_LEVEL": "error"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield _System(name, process)
        finally:
            process.kill()


def _questions(count: int) -> list[str]:
    """Return first turns of Spec-Bench, the kinds of question by turns.

    Raises:
        typer.Exit: they are not there.
    """
    path = Path(os.environ.get("BATON_DATA", "../shared/data")) / "spec_bench" / "questions.jsonl"
    if not path.is_file():
        print(f"Spec-Bench's questions are not at {path.resolve()}: name the folder they are in with BATON_DATA.")
        raise typer.Exit(2)
    kinds: dict[str, list[str]] = defaultdict(list)
    for line in path.read_text().splitlines():
        question = json.loads(line)
        kinds[question["category"]].append(question["turns"][0])
    for of_kind in kinds.values():
        random.Random(0).shuffle(of_kind)
    by_turns = itertools.chain.from_iterable(itertools.zip_longest(*kinds.values()))
    return [question for question in by_turns if question][:count]


def _weights(settings: Settings) -> Path:
    """Return the folder of the embedded model, having fetched it if need be."""
    card = load_catalog().card("smollm2-135m")
    store = Store(settings.cache)
    with closing(store.pull(card)) as steps:
        for _ in steps:
            pass
    folder = store.folder(card)
    assert folder is not None
    return folder


def _jobs(folder: Path, streams: Sequence[int], rounds: int, new_tokens: int, longest: int) -> Iterator[dict[str, Any]]:
    """Yield the rounds, each with prompts of its own."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    writer = PromptWriter(tokenizer)
    prompts = []
    for text in _questions(10_000):
        tokens = writer.tokens((Message(item_id="item", role="user", parts=(TextPart(text=text),)),))
        if len(tokens) <= longest:
            prompts.append((text, tokens))
    for several, _ in itertools.product(streams, range(rounds)):
        taken, prompts = prompts[:several], prompts[several:]
        yield {
            "texts": [text for text, _ in taken],
            "prompts": [tokens for _, tokens in taken],
            "new_tokens": new_tokens,
            "ends": [tokenizer.eos_token_id],
        }


def _rows(system: str, streams: int, results: Sequence[dict[str, Any]]) -> list[Row]:
    """Sum up what a system did in the rounds of so many streams."""
    rates, firsts, gaps = [], [], []
    for result in results:
        times = [one for one in result["times"] if one]
        rates.append(sum(map(len, times)) / max(one[-1] for one in times))
        firsts += [one[0] * 1000 for one in times]
        between = [(after - before) * 1000 for one in times for before, after in itertools.pairwise(one)]
        gaps.append(quantile(between, 0.99))
    labels = {"system": system, "streams": streams}
    return [
        row("tokens_per_s", "1/s", rates, **labels),
        row("ttft_ms", "ms", firsts, **labels),
        row("gap_p99_ms", "ms", gaps, **labels),
        row("peak_mb", "MB", [results[-1]["peak_mb"]], **labels),
    ]


def _measure(systems: Sequence[_System], jobs: Iterator[dict[str, Any]]) -> list[Row]:
    results: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for job in jobs:
        for system in systems:
            results[len(job["prompts"]), system.name].append(system.run(job))
    return [one for (streams, name), many in results.items() for one in _rows(name, streams, many)]


def main(quick: Quick = False, json: Json = None, system: list[str] | None = None) -> None:
    """Measure; `--system`, once or several times, leaves the other systems out."""
    if (load := os.getloadavg()[0]) > _BUSY:
        print(f"This machine is at work on something else (load {load:.1f}): every figure will be worse for it.")
    settings = Settings()
    folder = _weights(settings)
    chosen = system or _SYSTEMS
    pythons = {name: python_of(peer, settings.cache) for name, peer in peers().items() if name in chosen}
    with ExitStack() as stack:
        running = [
            stack.enter_context(_running(name, pythons.get(name, Path(sys.executable)), folder)) for name in chosen
        ]
        if quick:
            jobs = _jobs(folder, (1, 4, 8), rounds=1, new_tokens=24, longest=192)
        else:
            jobs = _jobs(folder, (1, 4, 8), rounds=5, new_tokens=128, longest=_LONGEST_PROMPT)
        warm_up = next(_jobs(folder, (1,), rounds=1, new_tokens=4, longest=64))
        for one in running:
            one.run({**warm_up, "texts": ["Hello"]})
        report(_measure(running, jobs), json)


if __name__ == "__main__":
    typer.run(main)
