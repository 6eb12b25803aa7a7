"""The network that is trained: a few layers of the base's shape between its embedding, or one of its layers, and its head."""

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.language.decoding.drafters.weights import DraftShape, DraftWeights, LayerWeights, StopHead, fingerprint
from recipes.base import Base, Block, Rotary


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to train.

    Attributes:
        kind: what it becomes.
        entry: how many layers of the base are run before it.
        start: the base's layers that its own start as copies of.
        vocabulary: how many tokens it can guess.
        steps: of training.
        batch_tokens: of each step.
        learning_rate: at its peak.
    """

    kind: Literal["pair", "early_exit"]
    entry: int
    start: tuple[int, ...]
    vocabulary: int = 8192
    steps: int = 5000
    batch_tokens: int = 32768
    learning_rate: float = 1e-3


class Student(nn.Module):
    """Guesses the base's next token from its embeddings or from its hidden states at `entry`."""

    def __init__(self, base: Base, blocks: list[Block], norm: Tensor, vocabulary: Tensor, *, entry: int) -> None:
        super().__init__()
        self.shape = base.shape
        self.layers = tuple(blocks)
        self.blocks = nn.ModuleList(blocks)  # for the parameters
        self.norm = nn.Parameter(norm)
        self.entry = entry
        self.vocabulary = vocabulary
        self._base = (base,)  # in a tuple, so that its parameters are not taken for this module's
        self.head = base.embedding[vocabulary]
        self.place = torch.full((base.embedding.shape[0],), -1, device=base.device)
        self.place[vocabulary] = torch.arange(len(vocabulary), device=base.device)

    def forward(self, tokens: Tensor, rotary: Rotary) -> Tensor:
        """Return the normed hidden states [B, S, hidden] from which the head guesses what follows each of `tokens` [B, S]."""
        base = self._base[0]
        with torch.no_grad():
            x = base.embedding[tokens]
            for block in base.blocks[: self.entry]:
                x = block(x, rotary)
        for block in self.layers:
            x = block(x, rotary)
        return functional.rms_norm(x, x.shape[-1:], self.norm, base.shape.eps)


def start_student(base: Base, plan: Plan, vocabulary: Tensor) -> Student:
    """Return a student whose layers are copies of the base's."""
    blocks = [
        Block(base.shape, {name: tensor.detach().float().clone() for name, tensor in base.blocks[i].named_parameters()})
        for i in plan.start
    ]
    return Student(base, blocks, base.norm.float().clone(), vocabulary, entry=plan.entry)


def student_of(base: Base, weights: DraftWeights) -> Student:
    """Return the student that `weights` were taken from, as they were rounded."""
    names = [field.name for field in fields(LayerWeights)]
    blocks = [Block(base.shape, {name: getattr(layer, name) for name in names}) for layer in weights.layers]
    return Student(base, blocks, weights.norm, weights.vocabulary, entry=weights.shape.entry)


def weights_of(base: Base, plan: Plan, student: Student, stop: StopHead, card: dict[str, object]) -> DraftWeights:
    """Return what a file of the trained drafter holds."""
    return DraftWeights(
        shape=DraftShape(
            kind=plan.kind,
            base=base.name,
            fingerprint=fingerprint(base.embedding),
            entry=plan.entry,
            heads=base.shape.heads,
            kv_heads=base.shape.kv_heads,
            eps=base.shape.eps,
            rope_theta=base.shape.rope_theta,
        ),
        layers=tuple(LayerWeights(**dict(block.named_parameters())) for block in student.layers),
        norm=student.norm,
        vocabulary=student.vocabulary,
        stop=stop,
        card=card,
    )
