"""Rows of figures: how they are summed up, printed and written."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

Quick = Annotated[bool, typer.Option("--quick", help="End within a minute on two cores.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the rows here as well.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure: the median of `n` values, which lie between `low` and `high`."""

    metric: str
    labels: dict[str, str]
    value: float
    unit: str
    n: int
    low: float
    high: float


def row(metric: str, unit: str, values: Sequence[float], **labels: object) -> Row:
    """Sum values up: their median, between the 5th and the 95th percentile."""
    ordered = sorted(values)
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.05, 0.95)]
    return Row(
        metric=metric,
        labels={name: str(label) for name, label in labels.items()},
        value=statistics.median(ordered),
        unit=unit,
        n=len(ordered),
        low=at[0],
        high=at[1],
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of the values do not pass."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def report(rows: Sequence[Row], path: Path | None) -> None:
    """Print the rows as a table, and write them to `path` if there is one."""
    table = Table("metric", "labels", "median", "5 %", "95 %", "unit", "n")
    for one in rows:
        labels = " ".join(f"{name}={label}" for name, label in one.labels.items())
        table.add_row(one.metric, labels, f"{one.value:.2f}", f"{one.low:.2f}", f"{one.high:.2f}", one.unit, str(one.n))
    Console().print(table)
    if path is not None:
        path.write_text(json.dumps([asdict(one) for one in rows], indent=1))
