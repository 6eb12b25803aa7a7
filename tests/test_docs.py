"""What the documents say is true: their examples run, and the files that they name exist."""

import json
import re
import sys
from asyncio import create_subprocess_exec, subprocess, timeout
from pathlib import Path

import pytest
from support.server import count, receive, say, serving, until, words

_ROOT = Path(__file__).parent.parent


def _blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (_ROOT / document).read_text(), flags=re.DOTALL)


async def test_the_readmes_client_prints_the_answer(tmp_path: Path) -> None:
    (example,) = _blocks("README.md", "python")
    async with serving(tmp_path / "home") as server:
        example = example.replace("http://127.0.0.1:8000", server.address)
        ran = await create_subprocess_exec(sys.executable, "-W", "error", "-c", example, stdout=subprocess.PIPE)
        async with timeout(60):
            printed, _ = await ran.communicate()
    assert ran.returncode == 0
    assert printed.decode() == count(5)


async def test_the_messages_of_the_realtime_page_get_an_answer(tmp_path: Path) -> None:
    lines = [line[2:] for block in _blocks("docs/realtime.md", "sh") for line in block.splitlines() if line[:2] == "> "]
    assert len(lines) == 2
    async with serving(tmp_path / "home") as server, server.connect() as socket:
        await receive(socket)
        for line in lines:
            await socket.send(line)
        assert words(await until(socket, "response.done")) == count(3)


async def test_the_script_of_the_realtime_page_is_taken(tmp_path: Path) -> None:
    (script,) = _blocks("docs/realtime.md", "json")
    options = json.loads(script)
    async with (
        serving(tmp_path / "home", rules=options["rules"], gap_s=options["gap_s"]) as server,
        server.connect() as socket,
    ):
        await say(socket, "count to 3")
        assert words(await until(socket, "response.done")) == count(3)


@pytest.mark.parametrize("document", ["docs/architecture.md", "docs/dependencies.md", "CONTRIBUTING.md", "README.md"])
def test_every_file_that_a_document_names_exists(document: str) -> None:
    text = (_ROOT / document).read_text()
    named = re.findall(r"`((?:models|memory|agents|orchestrator|streaming|tests|benchmarks|docs)/[\w./-]+)`", text)
    linked = list(re.findall(r"\]\(([\w./-]+)\)", text))
    missing = [name for name in named if not (_ROOT / name).exists()]
    missing += [name for name in linked if not ((_ROOT / document).parent / name).exists()]
    assert not missing


def test_the_life_of_a_turn_is_told_in_ten_files_and_climbs_no_floor() -> None:
    text = (_ROOT / "docs/architecture.md").read_text()
    told = re.findall(r"^\d+\. \*\*`([\w/]+\.py)`\*\*", text, flags=re.MULTILINE)
    assert len(told) == 10
    assert all((_ROOT / path).is_file() for path in told)
    floors = ["streaming", "orchestrator", "agents", "memory", "models"]
    visited = [floors.index(path.split("/")[0]) for path in told]
    assert visited == sorted(visited), "the way down climbs up somewhere"
