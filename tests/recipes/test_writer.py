"""The base model as the recipes run it, and the conversations that it writes."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from recipes.base import Base, Rotary
from recipes.script import Line, Role, Script, from_questions, self_written
from recipes.writer import Text, load_text, write

_END = 2


def _write(base: Base, script: Script, *, length: int = 48, seed: int = 0) -> Text:
    return write(base, script, length=length, seed=seed)


@pytest.fixture
def script() -> Script:
    lines = (
        Line(tokens=(_END, 9, 8), then=Role.ANSWER, most=6),
        Line(tokens=(_END, 5, 6, 7), then=Role.ANSWER, most=6),
        Line(tokens=(_END, 4, 4, 4, 4, 4), then=Role.USER, most=3),
    )
    plan = torch.tensor([[1, 2], [2, 1]])
    return Script(lines=lines, plan=plan, greedy=torch.tensor([True, True]))


def test_whole_rows_are_read_as_transformers_reads_them(base: Base, folder: Path):
    tokens = torch.randint(len(base.embedding), (2, 40), generator=torch.Generator().manual_seed(0))
    rotary = Rotary(base.shape, 40, device=base.device, dtype=torch.float32)
    hidden = base.embedding[tokens]
    for block in base.blocks:
        hidden = block(hidden, rotary)
    expected = LlamaForCausalLM.from_pretrained(folder)(tokens).logits
    torch.testing.assert_close(base.logits(hidden.flatten(0, 1)), expected.flatten(0, 1), atol=1e-4, rtol=1e-4)


def test_a_greedy_answer_is_what_transformers_would_write(base: Base, folder: Path, script: Script):
    text = _write(base, script)
    scores = LlamaForCausalLM.from_pretrained(folder)(text.tokens).logits
    answers = text.roles[:, 1:] == Role.ANSWER
    assert answers.sum() >= 12
    assert torch.equal(scores.argmax(-1)[:, :-1][answers], text.tokens[:, 1:][answers])
    assert torch.equal(text.top[:, 1:, 0][answers].long(), text.tokens[:, 1:][answers])


def test_what_is_kept_of_the_models_thoughts_are_log_probabilities_of_its_best_tokens(
    base: Base, folder: Path, script: Script
):
    text = _write(base, script)
    thoughts = LlamaForCausalLM.from_pretrained(folder)(text.tokens).logits.log_softmax(-1)[:, :-1]
    kept = thoughts.gather(2, text.top[:, 1:].long())
    torch.testing.assert_close(kept, text.top_logprobs[:, 1:].float(), atol=2e-2, rtol=1e-2)


def test_every_row_goes_through_its_lines_in_order(base: Base, script: Script):
    text = _write(base, script)
    row, roles = text.tokens[0].tolist(), text.roles[0].tolist()
    assert row[:3] == [5, 6, 7], "the first line follows no turn, so it does not begin with an end"
    assert roles[:4] == [Role.GIVEN] * 3 + [Role.ANSWER]
    given = [token for token, role in zip(row, roles, strict=True) if role == Role.GIVEN and token != _END]
    assert given == [5, 6, 7, 4, 4, 4, 4, 4, 9, 8], "its line, the next turn's, and the one before the answer to that"


def test_nobody_writes_more_than_is_allowed_and_then_the_row_is_over(base: Base, script: Script):
    text = _write(base, script)
    for roles in text.roles.tolist():
        assert roles.count(Role.USER) <= 3
        assert roles.count(Role.ANSWER) <= 12
        assert roles[-1] == Role.NOBODY
    assert (text.tokens[text.roles == Role.NOBODY] == _END).all()


def test_the_same_seed_writes_the_same_and_another_one_something_else(base: Base):
    script = self_written(base.tokenizer, rows=4, length=64, greedy_share=0.5, seed=3, held_out=False)
    first, again, other = (_write(base, script, length=64, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, other.tokens)


def test_what_is_held_out_is_about_other_topics(base: Base):
    def tasks(held_out: bool) -> set[str]:
        script = self_written(base.tokenizer, rows=300, length=512, greedy_share=1, seed=0, held_out=held_out)
        texts = (base.tokenizer.decode(list(line.tokens)) for line in script.lines if line.then == Role.ANSWER)
        return {text.split("user")[-1] for text in texts if "blog post about" in text}

    assert tasks(True)
    assert not tasks(True) & tasks(False)


def test_questions_of_a_file_are_answered_once_each(base: Base, tmp_path: Path):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"turns": ["Who goes there?", "Why?"]}\n{"turns": ["the sea"]}\n')
    text = _write(base, from_questions(base.tokenizer, path, answer=5), length=400)
    for question, row, roles in zip(["Who goes there?", "the sea"], text.tokens, text.roles, strict=True):
        given = base.tokenizer.decode(row[roles == Role.GIVEN].tolist(), skip_special_tokens=True)
        assert question in given
        assert "Why?" not in given
        assert 1 <= (roles == Role.ANSWER).sum() <= 5


def test_text_is_read_back_as_it_was_written(base: Base, script: Script, tmp_path: Path):
    text = _write(base, script)
    text.save(tmp_path / "000.safetensors")
    again = load_text(tmp_path / "000.safetensors", base.device)
    for name in ("tokens", "roles", "top", "top_logprobs"):
        assert torch.equal(getattr(again, name), getattr(text, name)), name
    assert [path.name for path in tmp_path.iterdir()] == ["000.safetensors"]
