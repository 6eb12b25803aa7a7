"""Makes the training text: `python -m recipes.text MODEL WORK`. The base model writes all of it itself.

It goes into WORK/text in shards, each written whole; run again, it goes on after the last. Run it on a GPU: two thousand
rows are written side by side.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from recipes.base import Base, load_base
from recipes.script import Role, Script, from_questions, self_written
from recipes.writer import Text, load_text, write

_LENGTHS = (512, 512, 1024)
"""Tokens of a row, shard by shard."""

_GREEDY_SHARE = 0.75
"""Answers are greedy unless a request says otherwise, so most of the text is."""

HELD_OUT_SEED = 1_000_003


def write_shards(base: Base, folder: Path, *, shards: int, tokens: int, seconds: float) -> None:
    """Write what is missing of so many shards.

    Args:
        base: the model that writes.
        folder: where to; made if need be.
        shards: how many there shall be.
        tokens: of one shard.
        seconds: no shard is started that would likely end later than that from now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    longest = 0.0
    for index in range(shards):
        path = folder / f"{index:03}.safetensors"
        if path.exists():
            continue
        begun = time.monotonic()
        if begun - started + longest > seconds:
            say(f"{index} of {shards} shards are written; run it again for the rest")
            return
        length = min(_LENGTHS[index % len(_LENGTHS)], tokens)
        script = self_written(
            base.tokenizer,
            rows=tokens // length,
            length=length,
            greedy_share=_GREEDY_SHARE,
            seed=index,
            held_out=False,
        )
        text = write(base, script, length=length, seed=index)
        text.save(path)
        longest = max(longest, time.monotonic() - begun)
        answers = (text.roles == Role.ANSWER).float().mean().item()
        say(f"shard {index}: {tokens / (time.monotonic() - begun):,.0f} tokens/s, {answers:.0%} of them in answers")


def held_out(base: Base, folder: Path, *, prompts: int) -> Text:
    """Return greedy first answers to prompts that no shard has, written if need be."""
    path = folder / "held_out.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = self_written(
            base.tokenizer, rows=prompts, length=512, greedy_share=1.0, seed=HELD_OUT_SEED, held_out=True
        )
        script = Script(lines=made.lines, plan=made.plan[:, :1], greedy=made.greedy)
        write(base, script, length=512, seed=HELD_OUT_SEED).save(path)
    return load_text(path, base.device)


def questions(base: Base, path: Path, *, answer: int) -> Text:
    """Return greedy answers to the questions in a file, to measure on and never to train on."""
    script = from_questions(base.tokenizer, path, answer=answer)
    longest = max(len(script.lines[int(line)].tokens) for line in script.plan[:, 0])
    return write(base, script, length=longest + answer, seed=0)


def say(line: str) -> None:
    """Report progress."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def device_of(name: str) -> tuple[torch.device, torch.dtype]:
    """Return a device by name, `auto` for the best, and the dtype to compute in there."""
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    return torch.device(kind), torch.bfloat16 if kind == "cuda" else torch.float32


def main(arguments: list[str]) -> int:
    """Write text as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m recipes.text", description="Let the base model write text.")
    parser.add_argument("model", type=Path, help="the base model's folder, as models.supply.convert writes it")
    parser.add_argument("work", type=Path, help="where intermediate files go")
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=1 << 20, help="of a shard")
    parser.add_argument("--prompts", type=int, default=512, help="held out")
    parser.add_argument("--seconds", type=float, default=420, help="stop after so long; run again to go on")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(arguments)
    device, dtype = device_of(args.device)
    base = load_base(args.model, device=device, dtype=dtype)
    held_out(base, args.work / "text", prompts=args.prompts)
    write_shards(base, args.work / "text", shards=args.shards, tokens=args.tokens, seconds=args.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
