"""What the documents say is true: their examples run, and the files that they name exist."""

import json
import os
import re
import sys
from asyncio import create_subprocess_exec, subprocess, timeout
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from clients.run import CLIENTS
from support.server import Server, count, receive, say, serving, until, words

from models.catalog_file import load_catalog
from models.language.openai.engine import OpenAIOptions
from orchestrator.settings import Settings

_ROOT = Path(__file__).parent.parent
_DOCUMENTS = sorted(str(path.relative_to(_ROOT)) for path in (*_ROOT.glob("*.md"), *(_ROOT / "docs").rglob("*.md")))

_ANSWER = "The capital of France is Paris."
_RULES = [{"pattern": "capital of France", "reply": _ANSWER}, {"pattern": "(?s)(.*)", "reply": "You said: \\1"}]

# What a document shows and a test cannot run: it installs, needs a daemon, a remote machine or somebody at the keyboard.
_NOT_RUN = re.compile(
    r"^(make|docker|pipx|sudo|pip|git|BATON_MODELS=|export|baton models (pull|remove)|baton chat$|([A-Z_]+=\S+ )*baton serve\b)"
)


def _blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (_ROOT / document).read_text(), flags=re.DOTALL)


def _commands(document: str) -> str:
    """Return the shell commands of a document that can be run, as one script."""
    lines = "".join(_blocks(document, "sh")).replace("\\\n", " ").splitlines()
    return "\n".join(line for line in lines if not _NOT_RUN.match(line))


@asynccontextmanager
async def _documented(tmp_path: Path, **environment: str) -> AsyncIterator[Server]:
    """Run a server that knows the answer to the documents' question, and calls it the default model's; it embeds by rules, too."""
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(
        '[cards.words]\nengine = "scripted-embed"\nwrites = []\ncontext_tokens = 256\ncost_per_million_tokens = 0\n'
        '[aliases]\ndefault = "scripted"\nembedding = "words"\n'
    )
    environment = {"BATON_CATALOG": str(catalog), "BATON_MODELS": "scripted,words", **environment}
    async with serving(tmp_path / "home", rules=_RULES, environment=environment) as server:
        yield server


async def _run(server: Server, *command: str, cwd: Path, **environment: str) -> str:
    ran = await create_subprocess_exec(
        *(part.replace("127.0.0.1:8000", server.address.removeprefix("http://")) for part in command),
        cwd=cwd,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "BATON_HOME": str(server.home),
            "BATON_URL": server.address,
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with timeout(100):
        printed, complaint = await ran.communicate()
    assert ran.returncode == 0, f"{printed.decode()}\n{complaint.decode()}"
    return printed.decode()


async def test_the_readmes_clients_print_the_answer(tmp_path: Path) -> None:
    examples = _blocks("README.md", "python")
    assert len(examples) == 3
    async with _documented(tmp_path) as server:
        for example in examples:
            printed = await _run(server, sys.executable, "-W", "error", "-c", example, cwd=tmp_path)
            assert printed.endswith(_ANSWER)
        assert '"content":"capital' in (await _run(server, "bash", "-c", _commands("README.md"), cwd=tmp_path))


@pytest.mark.parametrize("document", ["docs/rest.md", "docs/howto/another-model.md", "docs/howto/keys.md"])
async def test_the_commands_of_a_page_work_one_after_another(document: str, tmp_path: Path) -> None:
    script = _commands(document)
    assert script
    async with _documented(tmp_path) as server:
        printed = await _run(server, "bash", "-euo", "pipefail", "-c", script, cwd=tmp_path)
    assert printed


async def test_the_backup_of_the_deployment_page_is_restored(tmp_path: Path) -> None:
    script = _commands("docs/howto/deployment.md")
    assert "backup" in script
    async with _documented(tmp_path) as server:
        async with server.connect() as socket:
            await say(socket, "hello")
            await until(socket, "response.done")
        await _run(server, "bash", "-euo", "pipefail", "-c", script, cwd=tmp_path)
    assert (tmp_path / "elsewhere/baton.sqlite3").is_file()


async def test_the_messages_of_the_realtime_page_get_an_answer(tmp_path: Path) -> None:
    lines = [line[2:] for block in _blocks("docs/realtime.md", "sh") for line in block.splitlines() if line[:2] == "> "]
    assert len(lines) == 2
    async with serving(tmp_path / "home") as server, server.connect() as socket:
        await receive(socket)
        for line in lines:
            await socket.send(line)
        assert words(await until(socket, "response.done")) == count(3)


async def test_the_tools_of_their_page_are_called_and_allowed(tmp_path: Path) -> None:
    tools, client = _blocks("docs/howto/tools.md", "python")
    (tmp_path / "tools.py").write_text(tools)
    rules = [
        {"pattern": "^Remind me to (.*)$", "reply": '{"text": "\\1"}', "call": "remind"},
        {"pattern": "It is written down", "reply": "I will remind you."},
    ]
    environment = {"BATON_TOOLS": str(tmp_path / "tools.py")}
    async with serving(tmp_path / "home", rules=rules, environment=environment) as server:
        printed = await _run(server, sys.executable, "-W", "error", "-c", client, cwd=tmp_path)
    assert printed == """May remind be called with {"text": "water the plants."}? Yes.\nI will remind you.\n"""
    assert re.fullmatch(r"water the plants\. \(turn_\w+/1/0\)\n", (tmp_path / "reminders.txt").read_text())


async def test_the_script_of_the_realtime_page_is_taken(tmp_path: Path) -> None:
    (script,) = _blocks("docs/realtime.md", "json")
    options = json.loads(script)
    async with (
        serving(tmp_path / "home", rules=options["rules"], gap_s=options["gap_s"]) as server,
        server.connect() as socket,
    ):
        await say(socket, "count to 3")
        assert words(await until(socket, "response.done")) == count(3)


@pytest.mark.parametrize("document", ["docs/howto/another-model.md", "docs/howto/remote-server.md"])
def test_the_cards_of_a_page_are_a_catalog(document: str, tmp_path: Path) -> None:
    (cards,) = _blocks(document, "toml")
    path = tmp_path / "catalog.toml"
    path.write_text(cards)
    catalog = load_catalog(path)
    assert catalog.own


def _rows(document: str) -> list[list[str]]:
    """Return the cells of a document's tables."""
    lines = (_ROOT / document).read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| `")]


def test_the_configuration_page_lists_every_setting_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BATON_")]:
        monkeypatch.delenv(name)
    settings: Mapping[str, Any] = Settings().model_dump()
    told = {row[0].strip("`"): row[1].strip("`") for row in _rows("docs/configuration.md")}
    clients = {"BATON_URL", "BATON_KEY"}
    assert told.keys() - clients == {f"BATON_{name.upper()}" for name in settings}
    for name, value in settings.items():
        if isinstance(value, int | float):
            assert float(told[f"BATON_{name.upper()}"]) == value


def test_the_page_of_remote_servers_lists_every_option_of_the_engine() -> None:
    told = {name for row in _rows("docs/howto/remote-server.md") for name in re.findall(r"`(\w+)`", row[0])}
    assert told == {field.name for field in fields(OpenAIOptions)}


@pytest.mark.parametrize("document", _DOCUMENTS)
def test_every_file_that_a_document_names_exists(document: str) -> None:
    text = (_ROOT / document).read_text()
    named = re.findall(r"`((?:models|memory|agents|orchestrator|streaming|tests|benchmarks|docs)/[\w./-]+)`", text)
    linked = list(re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text))
    missing = [name for name in named if not (_ROOT / name).exists()]
    missing += [name for name in linked if not ((_ROOT / document).parent / name).exists()]
    assert not missing


@pytest.mark.parametrize("document", _DOCUMENTS)
def test_every_place_in_a_document_that_a_link_leads_to_is_there(document: str) -> None:
    for name, place in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", (_ROOT / document).read_text()):
        target = (_ROOT / document).parent / name if name else _ROOT / document
        headings = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
        assert place in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_life_of_a_turn_is_told_in_ten_files_and_climbs_no_floor() -> None:
    text = (_ROOT / "docs/architecture.md").read_text()
    told = re.findall(r"^\d+\. \*\*`([\w/]+\.py)`\*\*", text, flags=re.MULTILINE)
    assert len(told) == 10
    assert all((_ROOT / path).is_file() for path in told)
    floors = ["streaming", "orchestrator", "agents", "memory", "models"]
    visited = [floors.index(path.split("/")[0]) for path in told]
    assert visited == sorted(visited), "the way down climbs up somewhere"


def test_every_client_that_is_tried_is_in_the_tables_and_no_cell_of_theirs_fails() -> None:
    text = (_ROOT / "docs/compatibility.md").read_text().partition("<!-- made by `make clients` -->")[2]
    assert all(f"| {client.title} |" in text for client in CLIENTS.values())
    cells = [cell.strip() for line in text.splitlines() if line.startswith("| ") for cell in line.split("|")]
    assert cells.count("works") > 150
    assert "FAILS" not in cells
