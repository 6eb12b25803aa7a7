"""Run foreign clients against a server, print what works with which, and write the tables of docs/compatibility.md.

    python -m clients.run [NAME ...]      # PYTHONPATH=.:tests; `make clients` says it

Each client has an environment of its own under `.clients/`, made from the pinned versions in this folder, and a script
that prints a line of JSON a feature. Everything runs on loopback. A run that was stopped goes on where it was.
"""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from clients.upstream import Upstream
from support.server import Server

_HERE = Path(__file__).parent
_ROOT = _HERE.parent.parent
_HOME = _ROOT / ".clients"
_RESULTS = _HOME / "results"
_UNFINISHED = _RESULTS / "unfinished"
_PAGE = _ROOT / "docs/compatibility.md"
_BEGIN, _END = "<!-- made by `make clients` -->", "<!-- end -->"
_CLIENT_S = 420
_INSTALL_S = 900


@dataclass(frozen=True, slots=True)
class Client:
    """A foreign client: what it is called in the table, its script, its environment and the packages to name versions of."""

    title: str
    script: str
    environment: str
    packages: tuple[str, ...]


CLIENTS = {
    "openai-python": Client("openai (Python)", "ask_openai.py", "openai", ("openai",)),
    "openai-node": Client("openai (Node)", "ask_openai.mjs", "node", ("openai",)),
    "agents-python": Client("openai-agents (Python)", "ask_agents.py", "openai-agents", ("openai-agents",)),
    "agents-js": Client("openai-agents (JS)", "ask_agents.mjs", "node", ("@openai/agents",)),
    "langchain": Client("LangChain, LangGraph", "ask_langchain.py", "langchain", ("langchain-openai", "langgraph")),
    "llama-index": Client("LlamaIndex", "ask_llama_index.py", "llama-index", ("llama-index-llms-openai-like",)),
    "pydantic-ai": Client("pydantic-ai", "ask_pydantic_ai.py", "pydantic-ai", ("pydantic-ai-slim",)),
    "instructor": Client("instructor", "ask_instructor.py", "instructor", ("instructor",)),
    "litellm": Client("litellm", "ask_litellm.py", "litellm", ("litellm",)),
    "llm": Client("llm", "ask_llm.py", "llm", ("llm",)),
    "ai-sdk": Client("Vercel AI SDK", "ask_ai_sdk.mjs", "node", ("ai", "@ai-sdk/openai-compatible")),
    "livekit": Client("LiveKit", "ask_livekit.py", "livekit", ("livekit-plugins-openai",)),
    "pipecat": Client("Pipecat", "ask_pipecat.py", "pipecat", ("pipecat-ai",)),
}
"""The clients that are tried, in the order of the table."""

FEATURES = (
    "chat",
    "stream",
    "system instructions",
    "history",
    "tools",
    "parallel calls",
    "handoff",
    "structured, strict",
    "structured, not strict",
    "structured, JSON mode",
    "tools and structured",
    "usage",
    "stop",
    "n",
    "logprobs",
    "penalties",
    "context overflow recognised",
    "bad key recognised",
    "cancel in mid-stream",
    "models",
    "legacy completions",
    "embeddings",
    "responses",
    "realtime: text",
    "realtime: instructions",
    "realtime: tools",
    "realtime: history",
    "realtime: handoff",
)

# Nothing of a client's own leaves this machine.
_QUIET = {
    "AI_SDK_TELEMETRY_DISABLED": "1",
    "ANONYMIZED_TELEMETRY": "false",
    "DO_NOT_TRACK": "1",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "LOGFIRE_SEND_TO_LOGFIRE": "false",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}


def _say(text: str) -> None:
    print(text, flush=True)


# Environments


def _install(name: str) -> str:
    """Make the environment unless it is there; return why it could not be made, or nothing."""
    pinned = _HERE / ("package.json" if name == "node" else f"requirements-{name}.txt")
    digest = hashlib.sha256(pinned.read_bytes()).hexdigest()
    folder = _HOME / name
    stamp = folder / ".installed"
    if stamp.is_file() and stamp.read_text() == digest:
        return ""
    _say(f"{name}: installing {pinned.name}")
    folder.mkdir(parents=True, exist_ok=True)
    if name == "node":
        (folder / "package.json").write_bytes(pinned.read_bytes())
        commands = [["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"]]
    else:
        pip = [str(folder / "bin/pip"), "install", "--disable-pip-version-check", "--quiet", "-r", str(pinned)]
        commands = [[sys.executable, "-m", "venv", str(folder)], pip]
    for command in commands:
        try:
            ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as exc:
            return f"not installed: {exc}"
        if ran.returncode:
            return f"not installed: {' '.join(ran.stderr.split())[-300:]}"
    stamp.write_text(digest)
    return ""


def _version(environment: str, package: str) -> str:
    if environment == "node":
        found = json.loads((_HOME / "node/node_modules" / package / "package.json").read_text())["version"]
    else:
        code = f"import importlib.metadata as m; print(m.version({package!r}))"
        found = subprocess.run(
            [str(_HOME / environment / "bin/python"), "-c", code], capture_output=True, text=True, check=False
        ).stdout.strip()
    return str(found)


# Runs


async def _ask(client: Client, environment: dict[str, str]) -> list[dict[str, str]]:
    """Run the script of a client; what it printed becomes rows, and what it did not come to fails."""
    folder = _HOME / client.environment
    if client.environment == "node":
        for script in _HERE.glob("*.mjs"):
            (folder / script.name).write_bytes(script.read_bytes())
        command = ["node", str(folder / client.script)]
    else:
        command = [str(folder / "bin/python"), str(_HERE / client.script)]
    ran = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert ran.stdout is not None
    assert ran.stderr is not None
    complaint = asyncio.create_task(ran.stderr.read())
    rows: list[dict[str, str]] = []
    ended = "the script took too long"
    try:
        async with asyncio.timeout(_CLIENT_S):
            async for line in ran.stdout:
                if line.startswith(b'{"feature"'):
                    rows.append(json.loads(line))
                    _say(f"  {rows[-1]['cell']:<12}{rows[-1]['feature']}  {rows[-1]['reason']}")
            await ran.wait()
            ended = f"the script ended with {ran.returncode}"
    except TimeoutError:
        pass
    finally:
        if ran.returncode is None:
            os.killpg(ran.pid, signal.SIGKILL)  # with the processes that it started
            await ran.wait()
    told = (await complaint).decode(errors="replace")
    if "BATON_CLIENTS_TRACE" in os.environ:
        _say(told)
    if ran.returncode or not rows:
        rows.append({"feature": "chat" if not rows else "script", "cell": "FAILS", "reason": f"{ended}: {told[-300:]}"})
        _say(f"  FAILS       {rows[-1]['reason']}")
    return rows


def _make_key(home: Path) -> str:
    made = subprocess.run(
        [sys.executable, "-m", "streaming", "keys", "create", "--tenant", "clients", "--name", "clients"],
        env={**os.environ, "BATON_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    return made.stdout.split()[-1]


async def _run(names: Iterable[str]) -> None:
    upstream = Upstream().start()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        home.chmod(0o700)
        (home / "catalog.toml").write_text(
            f'[cards.recorded]\nengine = "openai"\ncontext_tokens = 4096\ncalls_tools = true\ncost_per_million_tokens = 0.0\n'
            f'options = {{ base_url = "{upstream.base_url}", model = "upstream" }}\n'
            '[aliases]\ndefault = "recorded"\nreal = "smollm2-135m"\n'
        )
        key = await asyncio.to_thread(_make_key, home)
        server = Server(home, environment={"BATON_MODELS": "smollm2-135m,recorded,embedding"})
        await server.start()
        environment = {
            **{name: os.environ[name] for name in ("PATH", "BATON_CLIENTS_TRACE", "TMPDIR") if name in os.environ},
            **_QUIET,
            "HOME": folder,
            "BATON_CLIENTS_URL": f"{server.address}/v1",
            "BATON_CLIENTS_KEY": key,
            "BATON_CLIENTS_UPSTREAM": upstream.base_url,
        }
        try:
            for name in names:
                client = CLIENTS[name]
                began = time.monotonic()
                _say(f"{name}:")
                if reason := _install(client.environment):
                    rows = [{"feature": "chat", "cell": "FAILS", "reason": reason}]
                    _say(f"  FAILS       {reason}")
                    versions = ""
                else:
                    versions = ", ".join(_version(client.environment, package) for package in client.packages)
                    rows = await _ask(client, environment)
                (_RESULTS / f"{name}.json").write_text(json.dumps({"versions": versions, "rows": rows}))
                _say(f"  {time.monotonic() - began:.0f} s")
        finally:
            await server.stop()


# Tables


def _tables() -> tuple[str, int]:
    """Return the matrix as Markdown, and how many cells fail."""
    found = {name: json.loads(path.read_text()) for name in CLIENTS if (path := _RESULTS / f"{name}.json").is_file()}
    cells = {name: {row["feature"]: row for row in result["rows"]} for name, result in found.items()}
    features = [*FEATURES, *sorted({f for rows in cells.values() for f in rows} - set(FEATURES))]
    failures = [(name, row) for name, rows in cells.items() for row in rows.values() if row["cell"] == "FAILS"]
    lines = ["| client | version |", "| --- | --- |"]
    lines += [f"| {CLIENTS[name].title} | {result['versions']} |" for name, result in found.items()]
    # In two halves, so that a page can hold them.
    names = list(found)
    for half in (names[: (len(names) + 1) // 2], names[(len(names) + 1) // 2 :]):
        shown = [feature for feature in features if any(feature in cells[name] for name in half)]
        lines += ["", f"| | {' | '.join(CLIENTS[name].title for name in half)} |", f"| --- |{' --- |' * len(half)}"]
        lines += [
            f"| {feature} | {' | '.join(cells[name].get(feature, {'cell': ''})['cell'] for name in half)} |"
            for feature in shown
        ]
    if failures:
        lines += ["", "What fails:", ""]
        lines += [
            f"- {CLIENTS[name].title}, {row['feature']}: `{row['reason'].replace('`', '')}`" for name, row in failures
        ]
    return "\n".join(lines), len(failures)


def main() -> int:
    """Run the clients named, or all; return 1 if a cell fails."""
    names = sys.argv[1:] or list(CLIENTS)
    if unknown := set(names) - set(CLIENTS):
        _say(f"No such client: {', '.join(sorted(unknown))}. There are {', '.join(CLIENTS)}.")
        return 2
    _RESULTS.mkdir(parents=True, exist_ok=True)
    if len(sys.argv) == 1:
        if _UNFINISHED.exists():
            names = [name for name in names if not (_RESULTS / f"{name}.json").exists()]
            _say(f"Going on with {', '.join(names)}.")
        else:
            for path in _RESULTS.glob("*.json"):
                path.unlink()
            _UNFINISHED.touch()
    asyncio.run(_run(names))
    tables, failing = _tables()
    _say(tables)
    if all((_RESULTS / f"{name}.json").exists() for name in CLIENTS):
        before, _, rest = _PAGE.read_text().partition(_BEGIN)
        _PAGE.write_text(f"{before}{_BEGIN}\n\n{tables}\n\n{_END}{rest.partition(_END)[2]}")
        _UNFINISHED.unlink(missing_ok=True)
    return 1 if failing else 0


if __name__ == "__main__":
    sys.exit(main())
