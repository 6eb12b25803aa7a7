"""The command line, as it is typed."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streaming.cli import app


@pytest.fixture
def run(tmp_path: Path):
    runner = CliRunner(env={"BATON_HOME": str(tmp_path / "home"), "COLUMNS": "160"})
    return lambda *arguments: runner.invoke(app, arguments)


def test_a_key_is_made_listed_without_its_secret_and_revoked(run) -> None:
    made = run("keys", "create", "--tenant", "acme", "--name", "laptop", "--per-minute", "60")
    assert made.exit_code == 0
    key = made.stdout.strip()
    assert re.fullmatch(r"baton_key[0-9A-Z]+_[\w-]+", key)
    _, key_id, secret = key.split("_", 2)
    listed = run("keys", "list").stdout
    assert key_id in listed
    assert "acme" in listed
    assert "laptop" in listed
    assert secret not in listed
    assert run("keys", "revoke", key_id).exit_code == 0
    assert "revoked" in run("keys", "list").stdout
    assert run("keys", "revoke", key_id).exit_code == 1, "it was still good"


def test_a_key_is_a_persons_unless_it_is_made_for_an_application_and_the_list_says_so(run) -> None:
    for option in ((), ("--application",)):
        assert run("keys", "create", "--tenant", "acme", *option).exit_code == 0
    listed = run("keys", "list").stdout.splitlines()
    assert [kind for line in listed for kind in ("personal", "application") if kind in line] == [
        "personal",
        "application",
    ]


def test_a_key_that_is_not_there_cannot_be_revoked_and_the_error_says_where_to_look(run) -> None:
    result = run("keys", "revoke", "keyNONE")
    assert result.exit_code == 1
    assert "baton keys list" in result.output


def test_the_version_is_said(run) -> None:
    said = run("--version")
    assert (said.exit_code, said.stdout) == (0, f"baton {version('baton')}\n")


def test_help_says_what_is_true_today(run) -> None:
    assert "A conversation service for language models" in run("--help").output


def test_help_names_every_command(run) -> None:
    text = run("--help").output
    assert "serve" in text
    assert "keys" in text


@pytest.mark.parametrize("command", [("chat", "hello"), ("serve",)])
def test_a_setting_that_is_wrong_is_named_in_one_line(
    run, monkeypatch: pytest.MonkeyPatch, command: tuple[str]
) -> None:
    monkeypatch.setenv("BATON_DRAIN_S", "soon")
    result = run(*command)
    assert result.exit_code == 1
    assert result.output.startswith("baton: BATON_DRAIN_S: ")
    assert result.output.count("\n") == 1
