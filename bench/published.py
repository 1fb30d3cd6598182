"""Figures of papers and of other people's runs, to stand beside ours, each with its source."""

import json
from collections.abc import Sequence
from pathlib import Path

from bench.report import Table
from bench.store import Row

FIGURES = Path(__file__).with_name("published.json")
PUBLISHED = "(published)"  # behind the names of curves


def published(what: str, data: str) -> tuple[str, list[Row]]:
    """Source and curves for a data set by its name; nothing for others, or for crops."""
    found = json.loads(FIGURES.read_text())[what].get(data)
    return (found["source"], found["curves"]) if found else ("", [])


def published_table(data: str, measured: Sequence[Row]) -> Table | None:
    """Published lossless figures for the data set that a name begins with, below our own.

    Args:
        data: the name of the results.
        measured: ``name``, ``bpd``, ``what`` and ``evaluations`` of each figure of this run.
    """
    figures = json.loads(FIGURES.read_text())["lossless"]
    rows = next((rows for name, rows in figures.items() if data.startswith(name)), None)
    if rows is None:
        return None
    ours = [row | {"source": "measured here"} for row in measured]
    lines = [
        [r["name"], f"{r['bpd']:.2f}", r["what"], str(r["evaluations"] or ""), r["source"]]
        for r in [*ours, *rows]
    ]
    columns = ["", "bpd", "what", "network evaluations", "source"]
    return Table("published", "Beside published figures, not measured here", columns, lines)
