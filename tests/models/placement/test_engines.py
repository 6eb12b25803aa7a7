"""The registry of engines: names lead to factories that are imported only when asked for."""

import subprocess
import sys

import pytest

from models.catalog import EngineSpec
from models.clock import ManualClock
from models.errors import BadInput, Internal, NotFound
from models.placement.engines import _FACTORIES, build_engine
from models.ports.context import EngineContext


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(NotFound) as caught:
        build_engine(EngineSpec(name="no-such-engine"), EngineContext(clock=ManualClock()))
    assert "'no-such-engine'" in caught.value.message
    assert all(name in caught.value.message for name in _FACTORIES)


def test_a_known_name_builds_its_engine():
    engine = build_engine(EngineSpec(name="scripted"), EngineContext(clock=ManualClock()))
    assert type(engine).__module__ == "models.language.scripted"


def test_options_that_do_not_fit_are_the_callers_error():
    with pytest.raises(BadInput):
        build_engine(EngineSpec(name="scripted", options='{"rules": 7}'), EngineContext(clock=ManualClock()))


def test_an_engine_whose_libraries_are_not_installed_says_how_to_install_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("models.language.")]:
        monkeypatch.delitem(sys.modules, name)  # what was imported before does not ask for torch again
    with pytest.raises(Internal, match=r"pip install 'baton\[local\]'.*remote-server\.md"):
        build_engine(EngineSpec(name="transformers", folder="/nowhere"), EngineContext(clock=ManualClock()))


@pytest.mark.parametrize("module", ["models.placement.engines", "models.placement.client"])
def test_a_process_that_only_names_engines_imports_none(module):
    # In a process of its own, because this one has imported engines for other tests.
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, {module}; print([m for m in sys.modules if m.startswith(('models.language.', 'torch'))])",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert found.stdout.strip() == "[]"
