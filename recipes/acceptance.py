"""How many guesses the base accepts, as verification would: counted on greedy text, with no decoding.

A greedy guess made after accepted guesses is made after the base's own tokens, so one pass over the base's text says of every
place whether a guess there is right, and any way of drafting can be replayed on that.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.language.decoding.drafters.weights import StopHead
from recipes.base import Rotary
from recipes.script import Role
from recipes.student import Student
from recipes.writer import Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Guesses:
    """Of each place of one answer, in order.

    Attributes:
        right: whether the guess is the base's token.
        refusal: the predicted chance that it is not.
    """

    right: list[bool]
    refusal: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """What verification would say.

    Attributes:
        by_place: the share of accepted first guesses, of second guesses where the first was accepted, and so on.
        accepted: guesses accepted at one verification, in the mean; it yields one token more.
        drafted: guesses made for one verification, in the mean.
        coverage: the share of the base's tokens that are in the student's vocabulary.
        prompts: how many answers were looked at.
    """

    by_place: tuple[float, ...]
    accepted: float
    drafted: float
    coverage: float
    prompts: int


@torch.inference_mode()
def guess(student: Student, stop: StopHead | None, text: Text, *, rows: int = 16) -> tuple[list[Guesses], float]:
    """Return what a student guesses at each place of the rows' answers, and its vocabulary's coverage of them."""
    device = text.tokens.device
    rotary = Rotary(student.shape, text.tokens.shape[1], device=device, dtype=student.head.dtype)
    found: list[Guesses] = []
    covered: list[Tensor] = []
    for first in range(0, len(text.tokens), rows):
        part = slice(first, first + rows)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            normed = student(text.tokens[part, :-1], rotary)
            scores = (normed @ student.head.T.to(normed.dtype)).float()
        best, place = scores.log_softmax(-1).max(-1)
        target = text.top[part, 1:, 0].long()
        right = student.vocabulary[place] == target
        refusal = stop.refusal(normed, best) if stop else torch.zeros_like(best)
        answers = text.roles[part, 1:] == Role.ANSWER
        covered.append(student.place[target][answers] >= 0)
        for row in range(len(right)):
            mine = answers[row]
            found.append(Guesses(right=right[row][mine].tolist(), refusal=refusal[row][mine].tolist()))
    return [one for one in found if one.right], torch.cat(covered).float().mean().item()


def replay(guesses: list[Guesses], coverage: float, *, length: int, threshold: float = 1.0) -> Acceptance:
    """Draft at most `length` tokens at a time, fewer once the chance that any is refused passes `threshold`."""
    tries, hits = [0] * length, [0] * length
    verifications = drafted = 0
    for one in guesses:
        at = 0
        while at < len(one.right):
            window = slice(at, at + length)
            made = _stopped(one.refusal[window], threshold)
            run = next((i for i, right in enumerate(one.right[window][:made]) if not right), made)
            for place in range(min(run + 1, made)):
                tries[place] += 1
                hits[place] += place < run
            verifications += 1
            drafted += made
            at += run + 1
    return Acceptance(
        by_place=tuple(hit / max(1, tried) for hit, tried in zip(hits, tries, strict=True)),
        accepted=sum(hits) / max(1, verifications),
        drafted=drafted / max(1, verifications),
        coverage=coverage,
        prompts=len(guesses),
    )


def _stopped(refusal: list[float], threshold: float) -> int:
    """Return how many guesses are made: the one that passes the threshold is the first that is not."""
    survival = 1.0
    for place, chance in enumerate(refusal):
        survival *= 1 - chance
        if 1 - survival > threshold:
            return place
    return len(refusal)
