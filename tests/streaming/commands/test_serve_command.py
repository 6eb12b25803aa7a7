"""What `baton serve` says in the terminal: its address at once, and that it is ready when a model can answer."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

_CATALOG = """
[cards.missing]
description = "Nowhere."
engine = "transformers"
context_tokens = 2048
parameters = 1_000_000
sources = ["file:nowhere"]
"""


@contextmanager
def _said(tmp_path: Path, models: str) -> Iterator[Iterator[str]]:
    """Yield the lines of a server, as they come."""
    (tmp_path / "catalog.toml").write_text(_CATALOG)
    kept = {"BATON_HOME": str(tmp_path / "home"), "BATON_CACHE": str(tmp_path / "cache"), "BATON_MODELS": models}
    with subprocess.Popen(
        [sys.executable, "-m", "streaming", "serve", "--port", "0"],
        env={**os.environ, **kept, "BATON_CATALOG": str(tmp_path / "catalog.toml"), "BATON_DRAIN_S": "0.2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield iter(process.stdout)
        finally:
            process.terminate()
            process.wait(30)


def test_the_address_is_said_at_once_and_ready_when_a_model_can_answer(tmp_path: Path) -> None:
    with _said(tmp_path, "scripted") as lines:
        first = next(lines)
        assert "ready" not in first
        found = re.search(r": (http://127\.0\.0\.1:\d+/)$", first)
        assert found is not None
        assert f"Baton is ready: {found[1]}\n" in iter(lambda: next(lines), "")
        assert httpx.get(f"{found[1]}readyz").status_code == 200


def test_a_server_whose_only_model_cannot_come_up_never_says_that_it_is_ready(tmp_path: Path) -> None:
    with _said(tmp_path, "missing") as lines:
        said = [next(lines)]
        while "No model can answer" not in said[-1]:
            said.append(next(lines))
        assert not any("ready" in line for line in said)
