"""Writes many conversations at once with the base model. All rows are at the same position at every step.

So there is no padding, no prefill and no mask: a row whose line is given reads it token by token while others write, and
what the device does at a step depends on nothing that it would have to wait for.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from recipes.base import Base, Rotary
from recipes.script import Role, Script, padded

_CANDIDATES = 64
"""A token is sampled from so many of the likeliest: a small model's tail is noise."""

_LOOK_EVERY = 64
"""Whether every row is over is looked up so seldom because the device has to be waited for."""

KEPT = 16
"""So many candidates are kept with each token, for the student to learn from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Conversations with what the base model thought at each place.

    Attributes:
        tokens: [rows, length] int64.
        roles: [rows, length] uint8, of `Role`.
        top: [rows, length, KEPT] the base's likeliest tokens at this place, the best first.
        top_logprobs: [rows, length, KEPT] float16.
    """

    tokens: Tensor
    roles: Tensor
    top: Tensor
    top_logprobs: Tensor

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        part = path.with_suffix(".part")
        narrow = {"tokens": self.tokens.to(torch.uint16), "top": self.top.to(torch.uint16)}
        plain = {"roles": self.roles, "top_logprobs": self.top_logprobs, **narrow}
        save_file({name: tensor.cpu().contiguous() for name, tensor in plain.items()}, part)
        part.rename(path)


def load_text(path: Path, device: torch.device) -> Text:
    """Read what `Text.save` wrote. `top` stays narrow: widen what is used of it."""
    tensors = load_file(path)
    return Text(
        tokens=tensors["tokens"].to(torch.int64).to(device),
        roles=tensors["roles"].to(device),
        top=tensors["top"].to(torch.int32).to(device),
        top_logprobs=tensors["top_logprobs"].to(device),
    )


@torch.no_grad()
def write(base: Base, script: Script, *, length: int, seed: int) -> Text:
    """Write every row of a script up to `length` tokens.

    Users' turns are sampled at temperature 1, answers of rows that are not greedy at 0.7.
    """
    device, rows = base.device, script.plan.shape[0]
    rotary = Rotary(base.shape, length, device=device, dtype=base.embedding.dtype)
    room = (rows, length, base.shape.kv_heads, base.shape.head_dim)
    keys, values = (
        [torch.empty(room, device=device, dtype=base.embedding.dtype) for _ in base.blocks] for _ in range(2)
    )
    end = script.lines[0].tokens[0]
    text = Text(
        tokens=torch.full((rows, length), end, dtype=torch.int64, device=device),
        roles=torch.full((rows, length), Role.NOBODY, dtype=torch.uint8, device=device),
        top=torch.zeros((rows, length, KEPT), dtype=torch.int32, device=device),
        top_logprobs=torch.zeros((rows, length, KEPT), dtype=torch.float16, device=device),
    )
    stage = _Stage(script, device)
    generator = torch.Generator(device).manual_seed(seed)
    cold = torch.where(script.greedy, 0.0, 0.7).to(device)
    written = torch.zeros(rows, dtype=torch.int64, device=device)
    for at in range(length):
        if at > 0:
            hidden = base.embedding[written]
            for index, block in enumerate(base.blocks):
                hidden = block.step(hidden, rotary, keys[index], values[index], at - 1)
            scores = base.logits(hidden)
            best = scores.topk(_CANDIDATES)
            text.top[:, at] = best.indices[:, :KEPT]
            text.top_logprobs[:, at] = best.values[:, :KEPT] - scores.logsumexp(1, keepdim=True)
            warmth = torch.where(stage.role == Role.USER, 1.0, cold)
            written = _choose(best.values, best.indices, warmth, generator)
        written, text.roles[:, at] = stage.step(written)
        text.tokens[:, at] = written
        if at % _LOOK_EVERY == 0 and bool((stage.role == Role.NOBODY).all()):
            break
    return text


def _choose(scores: Tensor, tokens: Tensor, temperature: Tensor, generator: torch.Generator) -> Tensor:
    """Return one of `tokens` [rows, n] for each row, by `scores` in falling order; at temperature 0 the first."""
    chances = (scores / temperature.clamp(min=1e-3)[:, None]).softmax(1)
    race = chances / torch.empty_like(chances).exponential_(generator=generator)
    pick = torch.where(temperature > 0, race.argmax(1), 0)
    return tokens.gather(1, pick[:, None])[:, 0]


class _Stage:
    """Where each row is in its script. Every step is a handful of operations on all rows, and none waits for the device.

    Attributes:
        role: [rows], who writes next.
    """

    def __init__(self, script: Script, device: torch.device) -> None:
        self._end = script.lines[0].tokens[0]
        self._plan = script.plan.to(device)
        self._table, self._lengths = (part.to(device) for part in padded(script.lines))
        self._then = torch.tensor([line.then for line in script.lines], device=device)
        self._most = torch.tensor([line.most for line in script.lines], device=device)
        rows = self._plan.shape[0]
        self._turn = torch.zeros(rows, dtype=torch.int64, device=device)
        self._line = self._plan[:, 0].clone()
        self._place = torch.ones_like(self._turn)  # the first line follows no turn that would have to end
        self._count = torch.zeros_like(self._turn)
        self.role = torch.full_like(self._turn, Role.GIVEN)

    def step(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Given what the model would write in each row, return what stands there and who wrote it."""
        role = self.role
        given, user, answer = (role == one for one in (Role.GIVEN, Role.USER, Role.ANSWER))
        line = self._table[self._line, self._place.clamp(max=self._table.shape[1] - 1)]
        token = torch.where(given, line, torch.where(role == Role.NOBODY, self._end, chosen))

        self._place = self._place + given
        read = given & (self._place >= self._lengths[self._line])
        self._count = torch.where(read, 0, self._count + 1)
        closed = token == self._end
        over = (user | answer) & (closed | (self._count >= self._most[self._line]))
        self._turn = self._turn + (over & answer)
        following = self._plan.gather(1, self._turn.clamp(max=self._plan.shape[1] - 1)[:, None])[:, 0]
        after = torch.where(read, self._then[self._line], torch.where(over, int(Role.GIVEN), role))
        self.role = torch.where(self._turn >= self._plan.shape[1], int(Role.NOBODY), after)
        self._line = torch.where(over, torch.where(user, 0, following), self._line)
        self._place = torch.where(over, closed.long(), self._place)
        return token, role.to(torch.uint8)
