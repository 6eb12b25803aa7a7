"""Baton as an application: the wheel holds all of it, and what is installed from it serves."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from zipfile import ZipFile

import httpx
import pytest

_ROOT = Path(__file__).parent.parent
_FLOORS = ("agents", "memory", "models", "orchestrator", "streaming")


def _sources(root: Path) -> set[str]:
    return {
        str(path.relative_to(root))
        for floor in _FLOORS
        for path in (root / floor).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, because building leaves things behind, and without any index."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for floor in _FLOORS:
        shutil.copytree(_ROOT / floor, source / floor, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(_ROOT / name, source)
    command = [*(sys.executable, "-m", "pip", "wheel"), "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run(
        [*command, "--wheel-dir", str(target), str(source)], capture_output=True, text=True, timeout=100
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = target.glob("*.whl")
    return wheel


def test_the_wheel_holds_every_file_of_the_five_packages_and_no_other(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entries,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        scripts = ConfigParser()
        scripts.read_string(archive.read(entries).decode())
    assert names == _sources(_ROOT)
    assert dict(scripts["console_scripts"]) == {"baton": "streaming.cli:app"}


async def test_what_is_installed_from_the_wheel_serves_the_page(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with ZipFile(wheel) as archive:
        archive.extractall(site)
    # Before the packages of this tree, which the environment also knows.
    environment = {**os.environ, "PYTHONPATH": str(site), "BATON_HOME": str(tmp_path / "home")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "import streaming; print(streaming.__file__); from streaming.cli import app; app()"),
        *("serve", "--port", "0"),
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert (await process.stdout.readline()).decode().startswith(str(site))
        while (found := re.search(r"http://\S+", (await process.stdout.readline()).decode())) is None:
            assert process.returncode is None
    async with httpx.AsyncClient(base_url=found.group()) as client:
        page = await client.get("/")
        script = await client.get("/web/app.js")
        models = await client.get("/v1/models")
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        await process.communicate()
    assert process.returncode == 0
    assert [page.status_code, script.status_code, models.status_code] == [200, 200, 200]
    assert "scripted" in {model["id"] for model in models.json()["data"]}


def test_the_image_is_given_all_that_it_is_built_from() -> None:
    given = {line[1:] for line in (_ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert given >= {*_FLOORS, "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert all((_ROOT / name).exists() for name in given)
