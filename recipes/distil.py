"""Trains a student on what the base wrote and thought, then its stop head, and writes the file: what both recipes share.

A target is half the base's likeliest token, half its distribution over the candidates kept with the text. Run again after
it stopped for time, it goes on from its checkpoint; batches depend on the step alone, so the result is the same.
"""

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from models.language.decoding.drafters.weights import StopHead, load_draft, save_draft
from recipes.acceptance import guess, replay
from recipes.base import Base, Rotary, load_base
from recipes.script import Role
from recipes.student import Plan, Student, start_student, student_of, weights_of
from recipes.text import device_of, held_out, questions, say
from recipes.writer import Text, load_text

_HARD = 0.5
"""The share of the base's likeliest token in a target: most answers are greedy, and nothing else counts for those."""

_WARM_UP_STEPS = 100
_STOP_STEPS = 300
_CHECKPOINT_EVERY_S = 60.0


def train(base: Base, plan: Plan, texts: Sequence[Text], checkpoint: Path, *, seconds: float) -> Student | None:
    """Train a student, from the checkpoint if there is one.

    Args:
        base: the model to guess.
        plan: what to train.
        texts: what to train on.
        checkpoint: written now and then, and at the end.
        seconds: to stop after, with a checkpoint.

    Returns:
        None when time was over first.
    """
    state = torch.load(checkpoint, map_location=base.device, weights_only=True) if checkpoint.exists() else None
    known = state["vocabulary"] if state else most_written(texts, plan.vocabulary, len(base.embedding))
    student = start_student(base, plan, known)
    optimizer = torch.optim.AdamW(student.parameters(), lr=plan.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    step = 0
    if state:
        student.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]

    def keep() -> None:
        part = checkpoint.with_suffix(".part")
        parts = {"student": student.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**parts, "vocabulary": known, "step": step}, part)
        part.rename(checkpoint)

    rotary = Rotary(
        base.shape, max(text.tokens.shape[1] for text in texts), device=base.device, dtype=student.head.dtype
    )
    started = kept = time.monotonic()
    losses: list[Tensor] = []
    while step < plan.steps:
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * _schedule(step, plan.steps)
        tokens, answers, top, top_logprobs = _batch(texts, plan.batch_tokens, seed=step)
        with torch.autocast(base.device.type, torch.bfloat16, enabled=base.device.type == "cuda"):
            normed = student(tokens, rotary)[answers]
            scores = normed @ student.head.T.to(normed.dtype)
        loss = _loss(scores.float().log_softmax(-1), student.place[top], top_logprobs)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        step += 1
        now = time.monotonic()
        if step % 100 == 0 or step == plan.steps:
            loss = torch.stack(losses).mean()
            say(f"{plan.kind}: step {step} of {plan.steps}, loss {loss:.3f}, {now - started:.0f} s")
            losses.clear()
        if now - started > seconds:
            break
        if now - kept > _CHECKPOINT_EVERY_S:
            keep()
            kept = now
    keep()
    return student if step >= plan.steps else None


def train_stop(student: Student, texts: Sequence[Text], *, batch_tokens: int, steps: int) -> StopHead:
    """Train the prediction whether a guess is refused: a logistic regression on what the guess was made of."""
    device = student.head.device
    head = StopHead(
        weight=torch.zeros(student.head.shape[1] + 1, device=device, requires_grad=True),
        bias=torch.zeros((), device=device, requires_grad=True),
    )
    optimizer = torch.optim.Adam([head.weight, head.bias], lr=1e-2)
    longest = max(text.tokens.shape[1] for text in texts)
    rotary = Rotary(student.shape, longest, device=device, dtype=student.head.dtype)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        tokens, answers, top, _ = _batch(texts, batch_tokens, seed=-1 - step)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            normed = student(tokens, rotary)[answers]
            best, place = (normed @ student.head.T.to(normed.dtype)).float().log_softmax(-1).max(-1)
        refused = (student.vocabulary[place] != top[:, 0]).float()
        loss = functional.binary_cross_entropy(head.refusal(normed, best).clamp(1e-6, 1 - 1e-6), refused)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        optimizer.step()
    return StopHead(weight=head.weight.detach(), bias=head.bias.detach())


def most_written(texts: Sequence[Text], count: int, vocabulary: int) -> Tensor:
    """Return the tokens that answers hold most often, in order of their numbers."""
    uses = sum(
        (torch.bincount(text.tokens[text.roles == Role.ANSWER], minlength=vocabulary) for text in texts),
        start=torch.zeros((), dtype=torch.int64, device=texts[0].tokens.device),
    )
    return uses.topk(min(count, vocabulary)).indices.sort().values


def measure(base: Base, path: Path, text: Text) -> dict[str, object]:
    """Return what a written drafter achieves on greedy text, at several lengths and with its stop head."""
    weights = load_draft(path, base.embedding, dtype=torch.float32)
    guesses, coverage = guess(student_of(base, weights).to(base.device), weights.stop, text)
    rounds = [replay(guesses, coverage, length=length) for length in (1, 4, 8)]
    rounds += [replay(guesses, coverage, length=12, threshold=threshold) for threshold in (0.3, 0.5, 0.7)]
    labels = ("1", "4", "8", "12, stop at 0.3", "12, stop at 0.5", "12, stop at 0.7")
    return {label: _rounded(dataclasses.asdict(one)) for label, one in zip(labels, rounds, strict=True)}


def run(plan: Plan, arguments: list[str]) -> int:
    """Do a recipe as its command line says; return 3 when it has to be run again to go on."""
    parser = argparse.ArgumentParser(description=f"Train the {plan.kind} drafter.")
    parser.add_argument("model", type=Path, help="the base model's folder, as models.supply.convert writes it")
    parser.add_argument("work", type=Path, help="where recipes.text wrote; checkpoints go there too")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--steps", type=int, default=plan.steps)
    parser.add_argument("--batch-tokens", type=int, default=plan.batch_tokens)
    parser.add_argument("--seconds", type=float, default=420, help="stop after so long; run again to go on")
    parser.add_argument("--questions", type=Path, help="a JSONL file of turns to measure acceptance on as well")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(arguments)
    plan = dataclasses.replace(plan, steps=args.steps, batch_tokens=args.batch_tokens)
    begun = time.monotonic()
    device, dtype = device_of(args.device)
    base = load_base(args.model, device=device, dtype=dtype)
    texts = load_shards(args.work, device)
    student = train(base, plan, texts, args.work / f"{plan.kind}.checkpoint", seconds=args.seconds)
    if student is None:
        say("time is over; run it again to go on from the checkpoint")
        return 3
    card: dict[str, object] = {
        "steps": plan.steps,
        "batch_tokens": plan.batch_tokens,
        "text_tokens": sum(text.tokens.numel() for text in texts),
        "answer_tokens": sum(int((text.roles == Role.ANSWER).sum()) for text in texts),
    }
    stop = train_stop(student, texts, batch_tokens=plan.batch_tokens, steps=min(_STOP_STEPS, plan.steps))
    save_draft(weights_of(base, plan, student, stop, card), args.out)
    card["held_out"] = measure(base, args.out, held_out(base, args.work / "text", prompts=0))
    save_draft(weights_of(base, plan, student, stop, card), args.out)
    say(json.dumps(card, indent=1))
    if args.questions:
        say("questions: " + json.dumps(measure(base, args.out, questions(base, args.questions, answer=128)), indent=1))
    say(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB after {time.monotonic() - begun:.0f} s")
    return 0


def load_shards(work: Path, device: torch.device) -> list[Text]:
    """Read all shards of text, but not what is held out."""
    return [load_text(path, device) for path in sorted((work / "text").glob("[0-9]*.safetensors"))]


def _batch(texts: Sequence[Text], tokens: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rows of one text, [B, S], which of their tokens an answer follows, and the base's thoughts at those."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    text = texts[int(torch.randint(len(texts), (1,), generator=generator))]
    count = max(1, tokens // text.tokens.shape[1])
    rows = torch.randint(len(text.tokens), (count,), generator=generator).to(text.tokens.device)
    answers = text.roles[rows, 1:] == Role.ANSWER
    return text.tokens[rows, :-1], answers, text.top[rows, 1:][answers].long(), text.top_logprobs[rows, 1:][answers]


def _loss(logprobs: Tensor, places: Tensor, top_logprobs: Tensor) -> Tensor:
    """Return the cross-entropy to the base's thoughts.

    Args:
        logprobs: [M, N], the student's.
        places: [M, KEPT], where its vocabulary has the base's candidates; -1 where it has not.
        top_logprobs: [M, KEPT], the base's.
    """
    shares = top_logprobs.float().exp() * (1 - _HARD)
    shares[:, 0] += _HARD
    shares = shares.masked_fill(places < 0, 0.0)
    return -(shares * logprobs.gather(1, places.clamp(min=0))).sum(1).mean()


def _schedule(step: int, steps: int) -> float:
    warm = min(_WARM_UP_STEPS, max(1, steps // 10))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _rounded(values: dict[str, object]) -> dict[str, object]:
    def short(value: object) -> object:
        if isinstance(value, float):
            return round(value, 4)
        return [short(one) for one in value] if isinstance(value, tuple) else value

    return {name: short(value) for name, value in values.items()}
