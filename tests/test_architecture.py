"""The layers are kept, the contracts that keep them would notice, and the names are Baton's alone."""

import ast
import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
_FLOORS = ("models", "memory", "agents", "orchestrator", "streaming")

# At least one violation for each contract that was promised: the module it goes to, the import, and what must be reported.
# What is imported need not be installed: the linter reads, it does not run.
_VIOLATIONS = [
    ("floors", "memory/backup.py", "import orchestrator.sessions.handle", {"floors"}),
    ("langgraph", "agents/writer.py", "import langgraph", {"langgraph"}),
    ("faiss", "memory/log.py", "import faiss", {"faiss"}),
    ("web", "orchestrator/route/choose.py", "import fastapi", {"web"}),
    # The gateway's contract forbids torch as well, and more: it also sees what is imported indirectly.
    ("torch", "streaming/__init__.py", "import torch", {"torch", "gateway"}),
    ("gateway", "agents/writer.py", "import models.language.scripted", {"gateway"}),
    ("models", "models/language/stopping.py", "import models.placement.fleet", {"models"}),
    ("models", "models/a_new_room.py", "import models.ids", {"models"}),  # nobody has said where it stands
    ("orchestrator", "orchestrator/route/choose.py", "import orchestrator.decide.decision", {"orchestrator"}),
    ("orchestrator", "orchestrator/decide/decision.py", "import orchestrator.sessions.state", {"orchestrator"}),
    ("streaming", "streaming/rest/chat.py", "import streaming.realtime.options", {"streaming"}),
    ("streaming", "streaming/wire/tools.py", "import streaming.auth", {"streaming"}),
    ("streaming", "streaming/a_new_room.py", "import streaming.limits", {"streaming"}),
    ("orchestrator", "orchestrator/a_new_room.py", "import orchestrator.events", {"orchestrator"}),
]


def _contracts() -> dict[str, str]:
    """Return the names of the contracts by their ids."""
    config = configparser.ConfigParser()
    config.read(_ROOT / ".importlinter")
    sections = [section for section in config.sections() if section.startswith("importlinter:contract:")]
    return {section.rpartition(":")[2]: config[section]["name"] for section in sections}


def _broken_contracts(tree: Path) -> set[str]:
    """Check the tree in a process of its own, because this one has imported the packages from elsewhere."""
    linter = shutil.which("lint-imports", path=f"{_ROOT / '.venv/bin'}{os.pathsep}{os.environ.get('PATH', '')}")
    assert linter is not None
    checked = subprocess.run(
        [linter, "--no-cache", "--no-logo"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    verdicts = {
        contract: re.search(rf"^{re.escape(name)} (KEPT|BROKEN)", checked.stdout, re.MULTILINE)
        for contract, name in _contracts().items()
    }
    assert all(verdicts.values()), checked.stdout + checked.stderr
    broken = {contract for contract, verdict in verdicts.items() if verdict is not None and verdict[1] == "BROKEN"}
    assert checked.returncode == (1 if broken else 0)
    return broken


@pytest.fixture
def copy(tmp_path):
    """A copy of the packages and of their contracts."""
    for floor in _FLOORS:
        shutil.copytree(_ROOT / floor, tmp_path / floor, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_ROOT / ".importlinter", tmp_path)
    return tmp_path


def test_the_contracts_hold():
    assert _broken_contracts(_ROOT) == set()


def test_every_contract_has_a_violation_that_it_is_tried_with():
    assert {contract for contract, *_ in _VIOLATIONS} == set(_contracts())


@pytest.mark.parametrize(
    ("module", "line", "reported"),
    [violation[1:] for violation in _VIOLATIONS],
    ids=[violation[0] for violation in _VIOLATIONS],
)
def test_a_contract_reports_its_violation_and_no_other_does(copy, module, line, reported):
    with (copy / module).open("a") as file:
        file.write(f"\n{line}\n")
    assert _broken_contracts(copy) == reported


def test_a_library_may_be_imported_where_it_belongs(copy):
    for module, line in [
        ("orchestrator/decide/graph.py", "import langgraph"),
        ("streaming/__init__.py", "import fastapi"),
        ("models/language/scripted.py", "import torch"),
    ]:
        with (copy / module).open("a") as file:
            file.write(f"\n{line}\n")
    (copy / "memory/vectors.py").write_text('"""The only module that may."""\n\nimport faiss\n')
    assert _broken_contracts(copy) == set()


def test_nothing_else_in_the_environment_owns_the_names_of_the_floors():
    owners = importlib.metadata.packages_distributions()
    assert {floor: set(owners[floor]) for floor in _FLOORS} == {floor: {"baton"} for floor in _FLOORS}


def test_the_distribution_lists_exactly_the_packages_in_the_tree():
    listed = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [
        ".".join(module.parent.relative_to(_ROOT).parts)
        for floor in _FLOORS
        for module in (_ROOT / floor).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted(found)


def test_every_folder_of_a_floor_that_has_modules_is_a_package():
    folders = {module.parent for floor in _FLOORS for module in (_ROOT / floor).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_a_name_says_one_thing_in_the_whole_house():
    places = defaultdict(list)
    for path in (path for floor in _FLOORS for path in (_ROOT / floor).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            match node:
                case ast.ClassDef(name=name):
                    places[name].append(str(path.relative_to(_ROOT)))
                case ast.Assign(targets=[ast.Name(id=name)]) if re.fullmatch("[A-Z][a-z]+([A-Z][a-z]+)*", name):
                    places[name].append(str(path.relative_to(_ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1 and not name.startswith("_")} == {}
