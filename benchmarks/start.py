"""How long does it take from the command to the page, and to a model's first token: the first time, and the second?

The first start fetches and converts the embedded model's weights, so it depends on the network and on pip's own cache. The
second finds them. Each is `baton serve` in a process of its own, asked as soon as it says that it is ready.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import typer

from benchmarks.processes import free_port, running
from benchmarks.report import Json, Quick, Row, report, row

_PATIENCE_S = 600.0
_QUESTION = {"stream": True, "messages": [{"role": "user", "content": "What is the capital of France?"}]}


async def _start(folder: Path) -> tuple[float, float]:
    """Start a server whose state and weights are in `folder`; return the seconds to its page and to a first token."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    environment = {"BATON_HOME": str(folder / "home"), "BATON_CACHE": str(folder / "cache"), "BATON_MODELS": "embedded"}
    command = (sys.executable, "-m", "streaming", "serve", "--port", str(port))
    began_s = time.perf_counter()
    async with running(*command, answers=f"{address}/", environment=environment), asyncio.timeout(_PATIENCE_S):
        page_s = time.perf_counter() - began_s
        async with aiohttp.ClientSession(base_url=address, raise_for_status=True) as session:
            while not await _ready(session):  # noqa: ASYNC110  # what is waited for is in another process
                await asyncio.sleep(0.1)
            async with session.post("/v1/chat/completions", json={"model": "default", **_QUESTION}) as response:
                async for line in response.content:
                    if b'"content":"' in line and b'"content":""' not in line:
                        return page_s, time.perf_counter() - began_s
    raise RuntimeError("The answer has no words.")


async def _ready(session: aiohttp.ClientSession) -> bool:
    async with session.get("/readyz", raise_for_status=False) as response:
        standing = await response.json()
    if standing["status"] == "failed":
        raise RuntimeError(f"No model could be brought up: {standing['models'][0]['message']}")
    return response.status == 200


async def _measure(firsts: int, seconds: int) -> list[Row]:
    times: dict[str, list[tuple[float, float]]] = {"first": [], "second": []}
    for n in range(firsts):
        with tempfile.TemporaryDirectory() as folder:
            times["first"].append(await _start(Path(folder)))
            for _ in range(seconds if n == 0 else 0):
                times["second"].append(await _start(Path(folder)))
    return [
        row(metric, "s", [pair[n] for pair in pairs], system="baton", start=start)
        for start, pairs in times.items()
        for n, metric in enumerate(("page_s", "first_token_s"))
    ]


def main(quick: Quick = False, json: Json = None) -> None:
    """Measure."""
    report(asyncio.run(_measure(1, 1) if quick else _measure(3, 5)), json)


if __name__ == "__main__":
    typer.run(main)
