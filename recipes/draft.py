"""The draft model: `python -m recipes.draft MODEL WORK OUT.safetensors`, after `recipes.text`."""

import sys

from recipes.distil import run
from recipes.student import Plan

PLAN = Plan(kind="pair", entry=0, start=(0, -1))

if __name__ == "__main__":
    sys.exit(run(PLAN, sys.argv[1:]))
