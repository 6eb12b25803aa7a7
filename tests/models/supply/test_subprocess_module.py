"""A program is watched, and does not outlive whoever waits for it."""

import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

from models.clock import ManualClock
from models.supply.subprocess_module import ProgramFailed, run_module

_MODULES = {
    "echoing": "import sys, os; print(*sys.argv[1:], os.environ['WORD'], os.getcwd())",
    "failing": "import sys; sys.stderr.write('first\\nlast\\n\\n'); sys.exit(3)",
    "silent": "import os; os._exit(1)",
    "talking": "import sys; sys.stderr.write('x' * 1_000_000); sys.stdout.write('y' * 1_000_000)",
    "waiting": "import pathlib, threading; pathlib.Path('begun').touch(); threading.Event().wait()",
    "stubborn": (
        "import pathlib, signal, threading; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "pathlib.Path('begun').touch(); threading.Event().wait()"
    ),
}

_RUN = """
import sys
from pathlib import Path
from models.supply.subprocess_module import run_module

for _ in run_module("waiting", folder=Path(sys.argv[1]), measure=int):
    pass
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "modules"
    folder.mkdir()
    for name, text in _MODULES.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def _finish(running: Generator[int, None, str]) -> str:
    while True:
        try:
            next(running)
        except StopIteration as ended:
            return str(ended.value)


def _begin(running: Generator[int, None, str], folder: Path) -> psutil.Process:
    """Let the program begin, and return it."""
    others = set(psutil.Process().children())
    while not (folder / "begun").exists():
        next(running)
    (program,) = set(psutil.Process().children()) - others
    return program


def test_a_program_is_told_its_arguments_and_its_environment_and_where_it_runs(modules: Path, tmp_path: Path) -> None:
    printed = _finish(run_module("echoing", "a", "b c", folder=tmp_path, measure=int, WORD="word"))
    assert printed == f"a b c word {tmp_path}\n"


def test_a_program_that_fails_is_quoted_with_what_it_said_last(modules: Path, tmp_path: Path) -> None:
    with pytest.raises(ProgramFailed) as caught:
        _finish(run_module("failing", folder=tmp_path, measure=int))
    assert caught.value.last_line == "last"
    with pytest.raises(ProgramFailed) as caught:
        _finish(run_module("silent", folder=tmp_path, measure=int))
    assert caught.value.last_line == "it ended without a word."


def test_a_program_that_says_much_is_not_held_up(modules: Path, tmp_path: Path) -> None:
    assert _finish(run_module("talking", folder=tmp_path, measure=int)) == "y" * 1_000_000


def test_a_module_in_the_working_directory_is_not_mistaken_for_an_installed_one(tmp_path: Path) -> None:
    (tmp_path / "intruding.py").write_text("")
    with pytest.raises(ProgramFailed, match="No module named"):
        _finish(run_module("intruding", folder=tmp_path, measure=int))


@pytest.mark.parametrize("module", ["waiting", "stubborn"])
def test_a_program_ends_when_its_watcher_is_closed(
    modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setattr("models.supply.subprocess_module._GRACE_S", 0.2)
    running = run_module(module, folder=tmp_path, measure=lambda: 7)
    program = _begin(running, tmp_path)
    assert next(running) == 7
    running.close()
    assert not program.is_running()


def test_a_program_ends_when_its_watcher_is_killed(modules: Path, tmp_path: Path) -> None:
    with subprocess.Popen((sys.executable, "-c", _RUN, str(tmp_path))) as watcher:
        process = psutil.Process(watcher.pid)
        while not (tmp_path / "begun").exists():
            psutil.wait_procs([process], timeout=0.05)
        programs = process.children()
        assert len(programs) == 1
        watcher.send_signal(signal.SIGKILL)
    assert psutil.wait_procs(programs, timeout=30)[1] == []


def test_a_program_that_does_nothing_for_too_long_is_ended(modules: Path, tmp_path: Path) -> None:
    clock, done = ManualClock(), [0]
    running = run_module("waiting", folder=tmp_path, measure=lambda: done[0], stalled_s=60, clock=clock)
    program = _begin(running, tmp_path)
    for done[0] in range(1, 4):  # slow, but it goes on
        clock.advance(59)
        assert next(running) == done[0]
    clock.advance(59)
    assert next(running) == 3
    clock.advance(1)
    with pytest.raises(ProgramFailed, match="nothing has come for 60 s"):
        next(running)
    assert not program.is_running()
