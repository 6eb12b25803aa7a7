"""The early-exit adapter: `python -m recipes.early_exit MODEL WORK OUT.safetensors`, after `recipes.text`."""

import sys

from recipes.distil import run
from recipes.student import Plan

PLAN = Plan(kind="early_exit", entry=4, start=(-1,))

if __name__ == "__main__":
    sys.exit(run(PLAN, sys.argv[1:]))
