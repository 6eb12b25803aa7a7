"""Compares plans by short trainings: `python -m recipes.choose MODEL WORK`. The recipes' own plans were chosen so."""

import argparse
import sys
import time
from pathlib import Path

from recipes.acceptance import guess, replay
from recipes.base import load_base
from recipes.distil import load_shards, most_written, train
from recipes.script import Role
from recipes.student import Plan
from recipes.text import device_of, held_out, say

_PLANS = (
    Plan(kind="pair", entry=0, start=(0,)),
    Plan(kind="pair", entry=0, start=(0, -1)),
    Plan(kind="pair", entry=0, start=(0, 1)),
    Plan(kind="early_exit", entry=4, start=(-1,)),
    Plan(kind="early_exit", entry=6, start=(-1,)),
    Plan(kind="early_exit", entry=6, start=(6,)),
    Plan(kind="early_exit", entry=10, start=(-1,)),
)


def main(arguments: list[str]) -> int:
    """Train each plan for a few steps and say what the base would accept."""
    parser = argparse.ArgumentParser(prog="python -m recipes.choose", description="Compare plans by short trainings.")
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-tokens", type=int, default=32768)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(arguments)
    device, dtype = device_of(args.device)
    base = load_base(args.model, device=device, dtype=dtype)
    texts = load_shards(args.work, device)
    text = held_out(base, args.work / "text", prompts=0)
    truth = text.top[text.roles == Role.ANSWER][:, 0].long()
    for count in (4096, 8192, 12288, 16384):
        known = most_written(texts, count, len(base.embedding))
        say(f"{count} tokens cover {(truth[:, None] == known).any(1).float().mean():.2%} of held-out answers")
    for number, plan in enumerate(_PLANS):
        begun = time.monotonic()
        short = Plan(
            kind=plan.kind, entry=plan.entry, start=plan.start, steps=args.steps, batch_tokens=args.batch_tokens
        )
        student = train(base, short, texts, args.work / f"choose-{number}.checkpoint", seconds=1e9)
        if student is not None:
            found = replay(*guess(student, None, text), length=4)
            places = " ".join(f"{share:.3f}" for share in found.by_place)
            say(
                f"{plan.kind} after {plan.entry} from {plan.start}: {places}, {found.accepted:.3f} accepted of 4, "
                f"{time.monotonic() - begun:.0f} s"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
