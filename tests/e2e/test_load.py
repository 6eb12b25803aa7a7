"""Two hundred people chat at once: every token arrives, in order, once, and memory stays flat."""

import asyncio
import statistics
import time
from pathlib import Path

import psutil
import pytest
from support.server import Server, count, say, serving, until, words

_CHATS = 200
_TOKENS = 60
_RULES = [{"pattern": r"^count to (\d+)$", "reply": "{n} ", "times": r"\1", "gap_s": 0.05}]


async def _chat(server: Server, end_s: float) -> int:
    """Chat until `end_s`; return how many answers came, each of them whole."""
    answers = 0
    async with server.connect(open_timeout=60) as socket:
        while time.monotonic() < end_s:
            await say(socket, f"count to {_TOKENS}")
            events = await until(socket, "response.done", timeout_s=60)
            assert words(events) == count(_TOKENS)
            assert events[-1]["response"]["status"] == "completed"
            answers += 1
    return answers


async def _resident_mb(server: Server, end_s: float, every_s: float) -> list[float]:
    """Sample the memory of the server and its worker."""
    process = psutil.Process(server.pid)
    samples = []
    while time.monotonic() < end_s:
        await asyncio.sleep(every_s)
        family = [process, *process.children(recursive=True)]
        samples.append(sum(member.memory_info().rss for member in family) / 2**20)
    return samples


async def _load(home: Path, duration_s: float) -> tuple[list[int], list[float]]:
    async with serving(home, rules=_RULES) as server:
        end_s = time.monotonic() + duration_s
        sampling = asyncio.create_task(_resident_mb(server, end_s, every_s=duration_s / 60))
        answers = await asyncio.gather(*(_chat(server, end_s) for _ in range(_CHATS)))
        return answers, await sampling


@pytest.mark.timeout(240)
async def test_two_hundred_chats_get_every_token_in_order_once(tmp_path: Path) -> None:
    answers, _ = await _load(tmp_path / "home", duration_s=20)
    assert min(answers) >= 1


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_memory_stays_flat_while_two_hundred_chat_for_ten_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A conversation is kept up to a bound; a low one is reached in the first two minutes, and what grows after is a leak.
    monkeypatch.setenv("BATON_HISTORY_ITEMS", "8")
    answers, memory_mb = await _load(tmp_path / "home", duration_s=600)
    early, late = statistics.median(memory_mb[12:24]), statistics.median(memory_mb[-12:])
    with capsys.disabled():
        figures = f"{sum(answers)} answers; {early:.1f} MB in minutes 3 and 4, {late:.1f} MB in the last two"
        print(f"\n{figures}")  # noqa: T201  # the figure is what the run is for
    assert min(answers) >= 1
    assert late < early * 1.05, f"{early:.1f} MB grew to {late:.1f} MB"
