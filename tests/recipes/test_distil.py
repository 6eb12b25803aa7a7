"""Training: it learns, goes on where it stopped, and writes a file that fits its base alone."""

import dataclasses
from pathlib import Path

import pytest
import torch

from models.errors import BadInput
from models.language.decoding.drafters.weights import load_draft
from recipes import draft, early_exit
from recipes.acceptance import Guesses, guess, replay
from recipes.base import Base
from recipes.distil import most_written, run, train, train_stop
from recipes.script import Role
from recipes.student import Plan
from recipes.text import held_out, write_shards
from recipes.writer import Text, load_text

_PLAN = Plan(kind="pair", entry=0, start=(0, -1), vocabulary=200, steps=20, batch_tokens=256)


@pytest.fixture(scope="module")
def work(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("work")
    write_shards(base, place / "text", shards=2, tokens=512, seconds=1e9)
    held_out(base, place / "text", prompts=2)
    return place


@pytest.fixture(scope="module")
def texts(base: Base, work: Path) -> list[Text]:
    return [load_text(path, base.device) for path in sorted((work / "text").glob("0*.safetensors"))]


def test_shards_that_are_there_are_not_written_again(base: Base, work: Path):
    before = {path: path.stat().st_mtime_ns for path in (work / "text").iterdir()}
    write_shards(base, work / "text", shards=2, tokens=512, seconds=1e9)
    assert before == {path: path.stat().st_mtime_ns for path in (work / "text").iterdir()}


def test_training_raises_acceptance(base: Base, texts: list[Text], tmp_path: Path):
    plan = dataclasses.replace(_PLAN, steps=60)
    shares = []
    for steps in (1, 60):
        checkpoint = tmp_path / f"{steps}.checkpoint"
        student = train(base, dataclasses.replace(plan, steps=steps), texts, checkpoint, seconds=60)
        assert student is not None
        shares.append(replay(*guess(student, None, texts[0]), length=1).accepted)
    assert shares[1] > shares[0] + 0.1


def test_training_that_was_interrupted_ends_as_if_it_had_not_been(base: Base, texts: list[Text], tmp_path: Path):
    whole = train(base, _PLAN, texts, tmp_path / "whole.checkpoint", seconds=60)
    assert whole is not None
    runs = 0
    while (pieces := train(base, _PLAN, texts, tmp_path / "pieces.checkpoint", seconds=0)) is None:
        runs += 1
    assert runs == _PLAN.steps - 1, "each run does one step when its time is over"
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(pieces.state_dict()[name], value)


def test_the_stop_head_tells_right_guesses_from_wrong_ones(base: Base, texts: list[Text], tmp_path: Path):
    student = train(base, _PLAN, texts, tmp_path / "checkpoint", seconds=60)
    assert student is not None
    stop = train_stop(student, texts, batch_tokens=512, steps=60)
    found, _ = guess(student, stop, texts[0])
    refusals = {
        verdict: [
            chance for one in found for chance, right in zip(one.refusal, one.right, strict=True) if right is verdict
        ]
        for verdict in (True, False)
    }
    means = {verdict: sum(chances) / len(chances) for verdict, chances in refusals.items()}
    assert means[True] < means[False]


def test_the_vocabulary_is_what_answers_hold_most(base: Base, texts: list[Text]):
    known = most_written(texts, 5, len(base.embedding))
    answers = torch.cat([text.tokens[text.roles == Role.ANSWER] for text in texts])
    uses = torch.bincount(answers, minlength=len(base.embedding))
    assert uses[known].sum() == uses.topk(5).values.sum()
    assert known.tolist() == sorted(known.tolist())


@pytest.mark.parametrize(
    "plan", [draft.PLAN, dataclasses.replace(early_exit.PLAN, entry=1)], ids=lambda plan: plan.kind
)
def test_a_recipe_writes_a_file_that_fits_its_base_and_no_other(
    plan: Plan, base: Base, folder: Path, work: Path, tmp_path: Path
):
    out = tmp_path / "out.safetensors"
    assert (
        run(plan, [str(folder), str(work), str(out), "--steps", "2", "--batch-tokens", "256", "--device", "cpu"]) == 0
    )
    weights = load_draft(out, base.embedding, dtype=torch.float32)
    assert weights.shape.kind == plan.kind
    assert weights.shape.entry == plan.entry
    assert len(weights.layers) == len(plan.start)
    assert weights.card["steps"] == 2
    assert weights.card["held_out"]
    with pytest.raises(BadInput, match="another model"):
        load_draft(out, base.embedding + 1, dtype=torch.float32)


def test_a_recipe_whose_time_is_over_asks_to_be_run_again(folder: Path, work: Path, tmp_path: Path):
    out = tmp_path / "out.safetensors"
    plan = dataclasses.replace(early_exit.PLAN, entry=1)
    arguments = [str(folder), str(work), str(out), "--steps", "9", "--batch-tokens", "256", "--seconds", "0"]
    assert run(plan, [*arguments, "--device", "cpu"]) == 3
    assert not out.exists()


def test_a_replay_goes_on_behind_the_first_refused_guess():
    right = [True, True, False, True, False, False]
    found = replay([Guesses(right=right, refusal=[0.0] * 6)], 1.0, length=4)
    # Guesses 0 to 3, of which two hold; the base writes the third; then 3 and 4 and 5, of which one holds; then 5, refused.
    assert found.by_place == (2 / 3, 1 / 2, 0.0, 0.0)
    assert found.accepted == 1.0
    assert found.drafted == (4 + 3 + 1) / 3


def test_a_replay_leaves_out_the_guess_that_passes_the_threshold_and_all_after_it():
    found = replay([Guesses(right=[True] * 3, refusal=[0.2, 0.2, 0.2])], 1.0, length=3, threshold=0.4)
    assert found.by_place == (1.0, 1.0, 0.0)
    assert found.drafted == 2.0
