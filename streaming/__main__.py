"""`python -m streaming` is `baton`."""

from streaming.cli import app

app(prog_name="baton")
