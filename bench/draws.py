"""What coding by several draws of the shared randomness gains.

python -m bench draws --data IMAGES [--model photo] [--crop 32] [--effort default] [--draws 4]

Every image by one draw and by the smallest of several, whole files, all decoded and compared.
"""

from functools import partial
from pathlib import Path

import click
import numpy as np
from PIL import Image

import bench
from bench import POSITIVE
from bench.inputs import Dataset
from bench.measuring import (
    bits_per_dimension,
    code_image,
    described_images,
    measuring_options,
    our_key,
    our_label,
    run_options,
)
from bench.metrics import interval
from bench.report import Section, Table
from bench.store import Row, Store, cpu
from diffcodec.models.model import Model

DRAWS = 4


def measure(model: Model, effort: str, draws: int, image: Image.Image) -> Row:
    """Bytes and times of an image's file."""
    coded = code_image(model, effort, image, draws)
    return {"bytes": len(coded.data)} | coded.seconds()


def run(data: Dataset, model: Model, efforts: tuple[str, ...], draws: int, out: Path) -> None:
    """Measure, and write all results of a data set."""
    store = Store(out / "rows.jsonl")
    described: list[Row] = []
    rows: dict[tuple[str, int], list[Row]] = {(e, n): [] for e in efforts for n in (1, draws)}
    for found, image in described_images(data):
        described.append(found)
        for (effort, n), measured in rows.items():
            key: Row = {"what": "draws", "image": found["digest"], "cpu": cpu(), "draws": n}
            key |= our_key(model, effort)
            measured.append(store.get(key, partial(measure, model, effort, n, image)))
    lines = []
    for (effort, n), measured in rows.items():
        bpd = np.array(bits_per_dimension(measured, described))
        first = np.array(bits_per_dimension(rows[effort, 1], described))
        count = bench.evaluations(model, effort)
        times = [
            f"{np.median([r[kind] for r in measured]):.3g}"
            for kind in ("encode_seconds", "decode_seconds")
        ]
        change = "" if n == 1 else interval(bpd - first).text(4)
        lines.append([our_label(effort), str(n), f"{bpd.mean():.4f}", change])
        lines[-1] += [str(n * count), str(count), *times]
    columns = ["", "draws", "bpd", "change, 95 % interval", "evaluations to encode, at least"]
    columns += ["to decode", "encode, s", "decode, s"]
    section = Section(
        f"Draws: {data.name}",
        f"python -m bench draws {data.options}{run_options(model, efforts)} --draws {draws}",
        [
            f"{len(described)} images of {data.name}, whole files, all decoded and found equal. "
            f"Model {bench.identity(model)}."
        ],
        [Table("draws", "The smallest of several draws; median times", columns, lines)],
    )
    section.publish(out / "draws" / data.name)


@click.command()
@measuring_options
@click.option(
    "--draws", default=DRAWS, type=POSITIVE, show_default=True, help="To compare with one."
)
def main(data: Dataset, model: Model, efforts: tuple[str, ...], out: Path, draws: int) -> None:
    """What the smallest of several draws of the shared randomness gains."""
    run(data, model, efforts, draws, out)


if __name__ == "__main__":
    main()
