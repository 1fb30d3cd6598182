"""Figures of papers and of other people's runs, to stand beside ours, each with its source."""

import json
from pathlib import Path

from bench.report import Table
from bench.store import Row

PUBLISHED = Path(__file__).with_name("published.json")


def published(what: str, data: str) -> tuple[str, list[Row]]:
    """Source and curves for a data set by its name; nothing for others, or for crops."""
    found = json.loads(PUBLISHED.read_text())[what].get(data)
    return (found["source"], found["curves"]) if found else ("", [])


def published_table(data: str) -> Table | None:
    """Published lossless figures for the data set that a name begins with."""
    figures = json.loads(PUBLISHED.read_text())["lossless"]
    rows = next((rows for name, rows in figures.items() if data.startswith(name)), None)
    if rows is None:
        return None
    columns = ["published, not measured here", "bpd", "what", "source"]
    lines = [[r["name"], f"{r['bpd']:.2f}", r["what"], r["source"]] for r in rows]
    return Table("published", "Published figures", columns, lines)
