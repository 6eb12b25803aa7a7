"""What does Baton add to what a model takes, and how much does it carry? Beside it: LiteLLM's proxy, in the same run.

`added_first_token_ms`, `added_gap_ms` (labels `surface`, `rps`, `q`): what comes on top of the scripted engine, over REST
and the websocket, when so many answers a second are asked for at random moments: a quantile of what a client sees, less
the same quantile of the engine alone. An answer is 20 tokens, one every 20 ms.

`proxy_added_first_token_ms`, `proxy_added_gap_ms` (labels `system`, `rps`, `q`): the same for Baton's `openai` engine and
for LiteLLM, both before one fake model server of the same pace, less the server alone. LiteLLM is not asked for more than
it sustains.

`sustained_rps` (label `system`): answers a second that clients get who ask again as soon as they have been answered: the
most among several numbers of clients, of those at which no answer fails and 99 of 100 first tokens come within 2 s.
`cpu_ms`: processor time that the gateway spends on each of these answers.

`sessions_at_100ms`: websocket sessions that all stream, a token every 50 ms, before the 99th percentile of the gap between
two tokens passes 100 ms; between `low`, which did not pass it, and `high`, which did.

Everything runs on this machine and shares its processors: the load generator and the model server too. The first is a
process of bare protocols, the second does nothing but write; what they cost is in the figures of both systems.
"""

import asyncio
import json as jsonlib
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from benchmarks import litellm
from benchmarks.load import PLAN, SEEN, Plan, Seen, Surface
from benchmarks.processes import Process, free_port, running
from benchmarks.report import Json, Quick, Row, quantile, report, row
from orchestrator.settings import Settings

_RATES = (1, 10, 50)
_QUANTILES = {"p50": 0.5, "p99": 0.99}
_GAP_S = 0.02
_SLOW_GAP_S = 0.05
_FIRST_TOKEN_MS = 2000.0
_GAP_LIMIT_MS = 100.0

_TWENTY = {"reply": "{n} ", "times": "20"}
_SCRIPT = {"rules": [{"pattern": "slow", "gap_s": _SLOW_GAP_S, **_TWENTY}, {"pattern": "", "gap_s": _GAP_S, **_TWENTY}]}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Effort:
    """How much is done.

    Attributes:
        seconds: of each measurement.
        warm_s: before those of clients.
        rounds: of those at a rate.
        proxy_rates: at which the gateways are compared, in answers a second.
        clients: of which the most answers a second are looked for.
        sessions: that are tried first; then twice or half as many each time, until there is one side and the other.
        steps: of looking for the number between.
    """

    seconds: float
    warm_s: float
    rounds: int
    proxy_rates: tuple[int, ...]
    clients: tuple[int, ...]
    sessions: int
    steps: int


_QUICK = _Effort(seconds=1.5, warm_s=1, rounds=1, proxy_rates=(10, 50), clients=(8, 16, 64), sessions=100, steps=0)
_FULL = _Effort(
    seconds=15,
    warm_s=3,
    rounds=3,
    proxy_rates=_RATES,
    clients=(4, 8, 16, 24, 32, 48, 64, 96, 128),
    sessions=25,
    steps=3,
)


@dataclass(frozen=True, slots=True)
class _System:
    """One that answers chats over HTTP; the model server alone has no gateway."""

    name: str
    address: str
    gateway: Process | None = None


class _Load:
    """The load generator's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def __call__(self, plan: Plan) -> Seen:
        """Carry out a plan."""
        assert self._process.stdin is not None  # both were asked for
        assert self._process.stdout is not None
        self._process.stdin.write(PLAN.dump_json(plan) + b"\n")
        return SEEN.validate_json(await self._process.stdout.readline())


@asynccontextmanager
async def _load() -> AsyncIterator[_Load]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.load"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=1 << 26,
    )
    try:
        yield _Load(process)
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def _upstream() -> AsyncIterator[str]:
    port = free_port()
    command = (sys.executable, "-m", "benchmarks.upstream", "--port", str(port), "--gap-s", str(_GAP_S))
    async with running(*command, answers=f"http://127.0.0.1:{port}/"):
        yield f"http://127.0.0.1:{port}/v1"


@asynccontextmanager
async def _baton(upstream: str, folder: Path) -> AsyncIterator[tuple[Process, str]]:
    script, catalog = folder / "script.json", folder / "catalog.toml"
    script.write_text(jsonlib.dumps(_SCRIPT))
    catalog.write_text(
        f"""[cards.upstream]
        engine = "openai"
        options = {{ base_url = "{upstream}", model = "upstream" }}
        context_tokens = 32768
        cost_per_million_tokens = 0.0
        """
    )
    environment = {
        "BATON_HOME": str(folder / "home"),
        "BATON_CATALOG": str(catalog),
        "BATON_MODELS": "scripted,upstream",
        "BATON_SCRIPT": str(script),
        # The bounds of one tenant, who is all there is here, would be met before the machine's.
        "BATON_MAX_TENANT_TURNS": "4000",
        "BATON_MAX_TURNS": "4000",
        "BATON_MAX_REQUESTS": "4000",
    }
    address = f"127.0.0.1:{(port := free_port())}"
    command = (sys.executable, "-m", "streaming", "serve", "--port", str(port))
    async with running(*command, answers=f"http://{address}/readyz", environment=environment) as process:
        yield process, address


def _added(metric: str, seen: list[Seen], floor: list[Seen], **labels: object) -> list[Row]:
    """Return what the first tokens and the gaps of `seen` have on top of `floor`, round by round."""
    rows = []
    for q, share in _QUANTILES.items():
        pairs = list(zip(seen, floor, strict=True))
        first = [quantile(ours.first_ms, share) - quantile(least.first_ms, share) for ours, least in pairs]
        gaps = [quantile(ours.gap_ms, share) - quantile(least.gap_ms, share) for ours, least in pairs]
        rows.append(row(f"{metric}_first_token_ms", "ms", first, **labels, q=q))
        rows.append(row(f"{metric}_gap_ms", "ms", gaps, **labels, q=q))
    return rows


async def _surfaces(load: _Load, address: str, effort: _Effort) -> list[Row]:
    """What Baton adds to the scripted engine."""
    addresses: dict[Surface, str] = {
        "rest": f"http://{address}/v1/chat/completions",
        "websocket": f"http://{address}/v1/realtime?model=scripted",
    }
    seen: dict[tuple[Surface, int], list[Seen]] = {}
    floor: list[Seen] = []
    for _ in range(effort.rounds):
        # The engine only waits for its clock, so its pace does not depend on the rate.
        alone = Plan(surface="engine", address=jsonlib.dumps(_SCRIPT), rate=10, seconds=effort.seconds)
        floor.append(await load(alone))
        for surface, where in addresses.items():
            for rate in _RATES:
                plan = Plan(surface=surface, address=where, model="scripted", rate=rate, seconds=effort.seconds)
                seen.setdefault((surface, rate), []).append(await load(plan))
    rows = []
    for (surface, rate), ours in seen.items():
        rows += _added("added", ours, floor, system="baton", surface=surface, rps=rate)
    return rows


async def _sustained(load: _Load, system: _System, effort: _Effort) -> tuple[float, list[Row]]:
    """How many answers a second a gateway gives, and what each costs it."""
    assert system.gateway is not None  # the model server alone is not asked
    rates, costs = [0.0], [0.0]
    for clients in effort.clients:
        plan = _chat(system, effort, clients=clients)
        before_s = system.gateway.cpu_s()
        seen = await load(plan)
        cost_ms = (system.gateway.cpu_s() - before_s) / max(1, seen.total) * 1000
        rate = seen.answered / effort.seconds
        if seen.failed or not seen.answered or quantile(seen.first_ms, 0.99) > _FIRST_TOKEN_MS:
            break
        rates.append(rate)
        costs.append(cost_ms)
    best = max(rates)
    return best, [
        row("sustained_rps", "1/s", [best], system=system.name),
        row("cpu_ms", "ms", [costs[rates.index(best)]], system=system.name),
    ]


def _chat(system: _System, effort: _Effort, *, rate: float | None = None, clients: int = 0) -> Plan:
    return Plan(
        surface="rest",
        address=system.address,
        model="upstream",
        seconds=effort.seconds,
        warm_s=effort.warm_s,
        rate=rate,
        clients=clients,
    )


async def _gateways(load: _Load, alone: _System, gateways: list[_System], effort: _Effort) -> list[Row]:
    """How the gateways compare before one model server."""
    rows: list[Row] = []
    most = {}
    for system in gateways:
        await load(_chat(system, effort, rate=2))  # the first answers of a process are slow
        most[system.name], found = await _sustained(load, system, effort)
        rows += found
    for rate in effort.proxy_rates:
        able = [system for system in gateways if rate <= most[system.name]]
        seen: dict[str, list[Seen]] = {}
        for _ in range(effort.rounds):
            for system in (alone, *able):
                seen.setdefault(system.name, []).append(await load(_chat(system, effort, rate=rate)))
        for system in able:
            rows += _added("proxy_added", seen[system.name], seen[alone.name], system=system.name, rps=rate)
    return rows


async def _sessions(load: _Load, address: str, effort: _Effort) -> Row:
    """How many sessions stream without a gap that is noticed."""

    async def too_many(sessions: int) -> bool:
        seen = await load(
            Plan(
                surface="websocket",
                address=f"http://{address}/v1/realtime?model=scripted",
                text="slow",
                clients=sessions,
                seconds=effort.seconds,
                warm_s=effort.warm_s,
            )
        )
        return seen.failed > 0 or not seen.gap_ms or quantile(seen.gap_ms, 0.99) > _GAP_LIMIT_MS

    fine, many, tried = 0, 0, effort.sessions
    while tried and not (fine and many):
        if await too_many(tried):
            many, tried = tried, tried // 2
        else:
            fine, tried = tried, tried * 2
    for _ in range(effort.steps):
        between = (fine + many) // 2
        fine, many = (fine, between) if await too_many(between) else (between, many)
    labels = {"system": "baton", "surface": "websocket"}
    return Row(metric="sessions_at_100ms", labels=labels, value=fine, unit="sessions", n=1, low=fine, high=many)


async def _measure(effort: _Effort, peer: Path | None, folder: Path) -> list[Row]:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(_upstream())
        baton, address = await stack.enter_async_context(_baton(upstream, folder))
        load = await stack.enter_async_context(_load())
        rows = await _surfaces(load, address, effort)
        rows.append(await _sessions(load, address, effort))
        gateways = [_System("baton", f"http://{address}/v1/chat/completions", baton)]
        if peer is not None:
            process, chats = await stack.enter_async_context(litellm.proxy(peer, upstream, folder))
            gateways.append(_System("litellm", chats, process))
        rows += await _gateways(load, _System("direct", f"{upstream}/chat/completions"), gateways, effort)
        return rows


def main(quick: Quick = False, json: Json = None) -> None:
    """Measure."""
    try:
        peer = litellm.prepare(Settings().cache)
    except subprocess.CalledProcessError:
        print("LiteLLM cannot be installed here; its rows are left out.")
        peer = None
    with tempfile.TemporaryDirectory() as folder:
        report(asyncio.run(_measure(_QUICK if quick else _FULL, peer, Path(folder))), json)


if __name__ == "__main__":
    typer.run(main)
