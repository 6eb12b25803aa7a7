"""One system of `decode_cpu`, in a process of its own: `python decode_worker.py SYSTEM FOLDER THREADS`.

It runs in the system's own virtual environment, so that it imports of Baton only what Baton's systems need. It loads the model
in FOLDER and says so with a line on stdout; then each line on stdin, a job, is answered with a line, a `Result`, both as JSON.
A job is `{"prompts": [[1, 2], ...], "texts": [...], "ends": [2], "new_tokens": 128}`: all its prompts are asked at once, as token
ids, or as words by who makes its own tokens of them; answers are greedy, and end before one of `ends`.
"""

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast


@dataclass(slots=True, kw_only=True)
class Result:
    """What came of a job. Times are seconds since it began; one for each token, by prompts."""

    times: list[list[float]]
    tokens: list[list[int]] = field(default_factory=list)
    peak_mb: float = 0.0


class _Watch:
    """Notes tokens as they come."""

    def __init__(self, prompts: int) -> None:
        self._began = time.perf_counter()
        self.result = Result(times=[[] for _ in range(prompts)], tokens=[[] for _ in range(prompts)])

    def note(self, prompt: int, tokens: list[int]) -> None:
        now = time.perf_counter() - self._began
        self.result.tokens[prompt] += tokens
        self.result.times[prompt] += [now] * len(tokens)


Run = Callable[[dict[str, Any]], Result]


def _baton(speculation: str, folder: Path, threads: int) -> Run:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the server's worker process (models/placement/child.py)
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from models.catalog import EngineSpec
    from models.clock import SystemClock
    from models.content import Message, TextDelta, TextPart
    from models.placement.engines import build_engine
    from models.ports.context import EngineContext
    from models.ports.generate import Engine, GenerateRequest, Sampling

    options = json.dumps({"threads": threads, "device": "cpu", "speculation": speculation})
    spec = EngineSpec(name="transformers", options=options, folder=str(folder))
    engine = cast("Engine", build_engine(spec, EngineContext(clock=SystemClock())))

    async def ask(text: str, new_tokens: int, watch: _Watch, prompt: int) -> None:
        request = GenerateRequest(
            messages=(Message(item_id="item", role="user", parts=(TextPart(text=text),)),),
            sampling=Sampling(max_output_tokens=new_tokens),
            tenant="local",
            signals=frozenset({"token_ids"}),
        )
        async for delta in engine.generate(request):
            if isinstance(delta, TextDelta):
                watch.note(prompt, list(delta.token_ids))

    async def all_at_once(job: dict[str, Any]) -> Result:
        watch = _Watch(len(job["texts"]))
        async with asyncio.TaskGroup() as group:
            for n, text in enumerate(job["texts"]):
                group.create_task(ask(text, job["new_tokens"], watch, n))
        return watch.result

    runner = asyncio.Runner()  # the engine belongs to one event loop
    return lambda job: runner.run(all_at_once(job))


def _transformers(folder: Path, threads: int) -> Run:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.generation.streamers import BaseStreamer

    torch.set_num_threads(threads)
    # The faster one: a CPU that does not compute in bfloat16 takes minutes for a long prompt in it.
    dtype = torch.bfloat16 if "avx512_bf16" in Path("/proc/cpuinfo").read_text() else torch.float32
    print(f"transformers computes in {dtype}.")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=dtype)
    end = model.generation_config.eos_token_id

    class Streamer(BaseStreamer):
        def __init__(self, watch: _Watch) -> None:
            self._watch = watch
            self._read = False
            self._ended: set[int] = set()

        def put(self, value: torch.Tensor) -> None:
            if self._read:  # the prompt comes first
                for n, token in enumerate(value.tolist()):
                    if token == end:
                        self._ended.add(n)
                    elif n not in self._ended:
                        self._watch.note(n, [token])
            self._read = True

        def end(self) -> None:
            pass

    def run(job: dict[str, Any]) -> Result:
        longest = max(map(len, job["prompts"]))
        ids = torch.tensor([[end] * (longest - len(prompt)) + prompt for prompt in job["prompts"]])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in job["prompts"]])
        watch = _Watch(len(job["prompts"]))
        model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=job["new_tokens"],
            do_sample=False,
            pad_token_id=end,
            streamer=Streamer(watch),
        )
        return watch.result

    return run


class _LlamaCpp:
    """All streams in one batch, by llama.cpp's own interface: the wrapper around it knows but one stream."""

    _STREAMS = 8
    _MOST_TOKENS = 2048

    def __init__(self, folder: Path, threads: int) -> None:
        import llama_cpp  # type: ignore[import-not-found]  # is in the peer's own environment
        import numpy as np

        self._np, self._llama = np, llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)  # it is told of every tensor, and must outlive them
        llama_cpp.llama_log_set(self._quiet, None)
        llama_cpp.llama_backend_init()
        source = str(folder / "source.gguf").encode()
        model = llama_cpp.llama_model_load_from_file(source, llama_cpp.llama_model_default_params())
        given = llama_cpp.llama_context_default_params()
        given.n_ctx, given.n_seq_max = self._STREAMS * self._MOST_TOKENS, self._STREAMS
        given.n_batch = self._MOST_TOKENS
        given.n_threads = given.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(model, given)
        self._vocabulary = llama_cpp.llama_model_get_vocab(model)
        self._size = llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        self._batch = llama_cpp.llama_batch_init(self._MOST_TOKENS, 0, 1)

    def __call__(self, job: dict[str, Any]) -> Result:
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        prompts, watch = job["prompts"], _Watch(len(job["prompts"]))
        writing: dict[int, int] = {}

        def take(n: int, token: int) -> None:
            ended = self._llama.llama_vocab_is_eog(self._vocabulary, token)
            if not ended:
                watch.note(n, [token])
            writing[n] = token
            if ended or len(watch.result.tokens[n]) == job["new_tokens"]:
                del writing[n]

        for n, prompt in enumerate(prompts):
            take(n, *self._decode([(token, at, n, at == len(prompt) - 1) for at, token in enumerate(prompt)]))
        while writing:
            places = {n: len(prompts[n]) + len(watch.result.tokens[n]) - 1 for n in writing}
            followed = self._decode([(token, places[n], n, True) for n, token in writing.items()])
            for n, token in zip(places, followed, strict=True):
                take(n, token)
        return watch.result

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> list[int]:
        """Run tokens, as (token, position, sequence, whether it is followed); return the likeliest next of those."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for n, (token, position, sequence, followed) in enumerate(entries):
            batch.token[n], batch.pos[n], batch.n_seq_id[n], batch.seq_id[n][0] = token, position, 1, sequence
            batch.logits[n] = followed
        if self._llama.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp could not decode a batch.")
        scores = (self._llama.llama_get_logits_ith(self._context, n) for n, entry in enumerate(entries) if entry[3])
        return [int(self._np.ctypeslib.as_array(one, shape=(self._size,)).argmax()) for one in scores]


def _openvino_genai(folder: Path, threads: int) -> Run:
    import numpy as np
    import openvino as ov  # type: ignore[import-not-found]  # both are in the peer's own environment
    import openvino_genai as genai  # type: ignore[import-not-found]

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1  # GB, so much as eight conversations need and more
    # The file's name says nothing to it if it is a link.
    source = str((folder / "source.gguf").resolve())
    pipeline = genai.ContinuousBatchingPipeline(source, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads})

    def run(job: dict[str, Any]) -> Result:
        settings = genai.GenerationConfig()
        settings.max_new_tokens, settings.do_sample = job["new_tokens"], False
        ends = set(job["ends"])
        settings.stop_token_ids = ends
        watch = _Watch(len(job["prompts"]))
        handles = [
            pipeline.add_request(n, ov.Tensor(np.array([prompt], dtype=np.int64)), settings)
            for n, prompt in enumerate(job["prompts"])
        ]
        while pipeline.has_non_finished_requests():
            pipeline.step()
            for n, handle in enumerate(handles):
                while handle.can_read():
                    for output in handle.read().values():
                        watch.note(n, [token for token in output.generated_ids if token not in ends])
        return watch.result

    return run


_SYSTEMS: dict[str, Callable[[Path, int], Run]] = {
    "baton_plain": lambda folder, threads: _baton("off", folder, threads),
    "baton_policy": lambda folder, threads: _baton("auto", folder, threads),
    "transformers": _transformers,
    "llama_cpp": _LlamaCpp,
    "openvino_genai": _openvino_genai,
}


def main() -> None:
    """Load, then answer jobs until stdin ends."""
    system, folder, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    run = _SYSTEMS[system](Path(folder), int(threads))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        result = run(json.loads(line))
        result.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(asdict(result)), file=answers, flush=True)


if __name__ == "__main__":
    main()
