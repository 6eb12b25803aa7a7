"""What is put into a conversation rather than written by the model: its lines, and which of them each row goes through.

A row is one conversation. It alternates between a line, whose tokens are given, and a part that the model writes: the rest
of the user's turn, or the answer. Lines start with the end of the turn before them, which is left out where the model wrote it.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from recipes.prompts import FOLLOW_UPS, OPENINGS, PASSAGES, SYSTEMS, TASKS, TOPICS

START, END = "<|im_start|>", "<|im_end|>"
_TAUGHT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_HELD_OUT = 7
"""Every so-manieth topic is kept for conversations that are held out."""


class Role(IntEnum):
    """Who wrote a token."""

    GIVEN = 0
    USER = 1
    ANSWER = 2
    NOBODY = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Given tokens, and what comes after them.

    Attributes:
        then: who writes next.
        most: how many tokens that may be.
    """

    tokens: tuple[int, ...]
    then: Role
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Lines, and the way of each row through them.

    Attributes:
        lines: the first is the one between a user's turn and the answer.
        plan: [rows, turns] int64, the line that starts each user turn.
        greedy: [rows] bool, whether answers are the likeliest tokens or sampled.
    """

    lines: tuple[Line, ...]
    plan: Tensor
    greedy: Tensor


def self_written(
    tokenizer: Tokenizer, *, rows: int, length: int, greedy_share: float, seed: int, held_out: bool
) -> Script:
    """Make a script of conversations that the model invents.

    Args:
        tokenizer: in ChatML.
        rows: how many conversations.
        length: tokens in each; texts that a user brings take a third of it at most.
        greedy_share: of the rows.
        seed: another one gives other conversations.
        held_out: whether tasks are about the topics kept for measuring, or about the others.
    """
    chance = random.Random(seed)
    topics = [topic for place, topic in enumerate(TOPICS) if (place % _HELD_OUT == 0) is held_out]
    writer = _Lines(tokenizer, answer=min(256, length // 2))
    heads = [writer.head(_TAUGHT_SYSTEM)] * (4 * len(SYSTEMS)) + [writer.head(system) for system in SYSTEMS]
    later = f"{END}\n{START}user\n"

    def turn(opening: str) -> int:
        kind = chance.random()
        if kind < 0.35 or (opening == later and kind < 0.45):
            return writer.open(opening, most=length // 6)
        if opening == later and kind < 0.75:
            return writer.whole(opening + chance.choice(FOLLOW_UPS))
        if kind < 0.6:
            return writer.open(opening + chance.choice(OPENINGS[1:]), most=length // 6)
        if kind < 0.75:
            return writer.open(opening + chance.choice(PASSAGES), most=length // 3)
        return writer.whole(opening + chance.choice(TASKS).format(topic=chance.choice(topics)))

    turns = max(1, length // 32)
    plan = [[turn(chance.choice(heads))] + [turn(later) for _ in range(turns - 1)] for _ in range(rows)]
    greedy = [chance.random() < greedy_share for _ in range(rows)]
    return Script(lines=tuple(writer.lines), plan=torch.tensor(plan), greedy=torch.tensor(greedy))


def from_questions(tokenizer: Tokenizer, path: Path, *, answer: int) -> Script:
    """Make a script of questions, each answered greedily once: `path` has a JSON object a line, with a list `turns`.

    Only the first turn is asked.
    """
    writer = _Lines(tokenizer, answer=answer)
    questions = [json.loads(line)["turns"][0] for line in path.read_text().splitlines()]
    head = writer.head(_TAUGHT_SYSTEM)
    plan = [[writer.whole(head + question)] for question in questions]
    greedy = torch.ones(len(plan), dtype=torch.bool)
    return Script(lines=tuple(writer.lines), plan=torch.tensor(plan), greedy=greedy)


class _Lines:
    """Lines by their text, each only once."""

    def __init__(self, tokenizer: Tokenizer, *, answer: int) -> None:
        self.lines: list[Line] = []
        self._tokenizer = tokenizer
        self._answer = answer
        self._known: dict[str, int] = {}
        self._add(f"{END}\n{START}assistant\n", Role.ANSWER, answer)

    def head(self, system: str) -> str:
        """Return how a conversation starts."""
        return f"{END}{START}system\n{system}{END}\n{START}user\n"

    def open(self, text: str, *, most: int) -> int:
        """Return the line that the model completes as the user."""
        return self._add(text.rstrip(" "), Role.USER, most)  # the space belongs to the word that follows

    def whole(self, text: str) -> int:
        """Return the line that is all of the user's turn."""
        return self._add(f"{text}{END}\n{START}assistant\n", Role.ANSWER, self._answer)

    def _add(self, text: str, then: Role, most: int) -> int:
        if text not in self._known:
            self._known[text] = len(self.lines)
            self.lines.append(Line(tokens=tuple(self._tokenizer.encode(text).ids), then=then, most=most))
        return self._known[text]


def padded(lines: Sequence[Line]) -> tuple[Tensor, Tensor]:
    """Return all lines' tokens [lines, longest] and their lengths [lines]."""
    longest = max(len(line.tokens) for line in lines)
    table = torch.zeros((len(lines), longest), dtype=torch.int64)
    for row, line in zip(table, lines, strict=True):
        row[: len(line.tokens)] = torch.tensor(line.tokens)
    return table, torch.tensor([len(line.tokens) for line in lines])
