"""One file per question. Each prints its figures beside its peers' on the same work, and writes them with `--json`."""
