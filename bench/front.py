"""Bits against processor time of lossless files: which codec is worth its time.

python -m bench front --data DIR [--limit 6] --effort fast --effort default --effort best

Each image is coded and decoded once by each codec, in one thread, and the seconds of the processor
are counted: other work on the machine disturbs them less than those of the clock, but does. On the
front is what no other beats in both bits and time.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

import bench
from bench.codecs import Codec, jpeg_xl, lossless_codecs, one_pixel
from bench.inputs import Dataset
from bench.measuring import (
    bits_per_dimension,
    check_equal,
    described_images,
    measuring_options,
    our_key,
    our_label,
    our_name,
    run_options,
    timed,
)
from bench.report import Section, Table
from bench.store import Row, Store, cpu
from diffcodec import decode, encode
from diffcodec.models.model import Model

OTHERS = ("jpeg2000", "webp", "flif", "bpg")
JPEG_XL_EFFORTS = range(3, 10)
NAMED = ("jpegxl3", "jpegxl7", "jpegxl9")  # of JPEG XL's points, in the picture
WAYS = ("encoding", "decoding")


def codecs(model: Model, efforts: tuple[str, ...]) -> dict[str, Codec]:
    """All that are compared, by name: ours by efforts too."""
    others = [codec for codec in lossless_codecs() if codec.name in OTHERS]
    ours = [_ours(model, effort) for effort in efforts]
    listed = [*others, *map(jpeg_xl, JPEG_XL_EFFORTS), *ours]
    return {codec.name: codec for codec in listed}


def _ours(model: Model, effort: str) -> Codec:
    return Codec(
        our_name(effort),
        our_label(effort),
        (0,),
        lambda image, _: encode(image, model, effort),
        lambda data: np.asarray(decode(data, model=model)),
        "",
    )


def measure(codec: Codec, image: Image.Image) -> Row:
    """Bytes, and the processor's seconds each way, of one image.

    Raises:
        click.ClickException: if another image comes back.
    """
    codec.decode(codec.encode(one_pixel(), codec.settings[0]))  # what is loaded at first
    data, _, encoding = timed(lambda: codec.encode(image, codec.settings[0]))
    shown, _, decoding = timed(lambda: codec.decode(data))
    check_equal(image, shown, codec.label)
    return {"bytes": len(data), "encoding": encoding, "decoding": decoding}


def on_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of points (seconds, bits) that none is at or below in both, the quickest first."""
    found: list[str] = []
    for name in sorted(points, key=lambda name: points[name]):
        if not found or points[name][1] < points[found[-1]][1]:
            found.append(name)
    return found


def draw(
    points: Mapping[str, Mapping[str, tuple[float, float]]], labels: Mapping[str, str], folder: Path
) -> str:
    """Bits by seconds, encoding and decoding; the front as a line of steps."""
    from bench import pictures

    drawn, axes = pictures.figure(11, 4.8, 2, sharey=True)
    for way, panel in zip(WAYS, axes, strict=True):
        front = [points[way][name] for name in on_front(points[way])]
        panel.plot(
            *zip(*front, strict=True), drawstyle="steps-post", color="#bbbbbb", lw=4, zorder=0
        )
        texts = []
        for family in ("jpegxl", "diffcodec"):
            line = [point for name, point in points[way].items() if name.startswith(family)]
            panel.plot(*zip(*line, strict=True), "-", color=pictures.colour(family), lw=1)
        for name, (seconds, bits) in points[way].items():
            shade = pictures.colour(name)
            panel.plot(seconds, bits, "o", ms=5, color=shade)
            short = labels[name].replace("JPEG XL, effort ", "JPEG XL ", 1)
            if name in NAMED or not name.startswith("jpegxl"):
                texts.append((seconds, bits, short, shade))
        panel.set(xscale="log", xlabel=f"{way}, seconds of one core a megapixel")
        panel.set(ylabel="bits per dimension, mean of images")
        panel.margins(x=0.1)
        pictures.label_curves(panel, texts)
    return pictures.save(drawn, folder, "front")


def run(data: Dataset, model: Model, efforts: tuple[str, ...], color_sets: bool, out: Path) -> None:
    """Measure, and write table and picture of a data set."""
    compared = codecs(model, efforts)
    store, images = Store(out / "rows.jsonl"), []
    rows: dict[str, list[Row]] = {name: [] for name in compared}
    with nullcontext() if color_sets else bench.no_color_sets():
        for described, image in described_images(data):
            images.append(described)
            common: Row = {"what": "front", "image": described["digest"], "cpu": cpu()}
            for name, codec in compared.items():
                key = common | {"codec": name, "by": codec.about}
                if name.startswith("diffcodec"):
                    effort = name.removeprefix("diffcodec-")
                    key |= our_key(model, effort) | {"color_sets": color_sets}
                rows[name].append(store.get(key, partial(measure, codec, image)))
    megapixels = sum(image["width"] * image["height"] for image in images) / 1e6
    labels = {name: codec.label for name, codec in compared.items()}
    bits = {name: float(np.mean(bits_per_dimension(rows[name], images))) for name in compared}
    points = {
        way: {n: (sum(r[way] for r in rows[n]) / megapixels, bits[n]) for n in compared}
        for way in WAYS
    }
    fronts = {way: on_front(points[way]) for way in WAYS}
    lines = [
        [labels[name], f"{bits[name]:.3f}"]
        + [f"{points[way][name][0]:.3g}{' *' if name in fronts[way] else ''}" for way in WAYS]
        for name in sorted(compared, key=lambda name: -bits[name])
    ]
    columns = ["codec", "bpd", *(f"{way}, s a megapixel" for way in WAYS)]
    caption = "Bits per dimension, and seconds of one core; * is on the front"
    folder = out / "front" / data.name
    said = (
        f"{len(images)} images of {data.name}, {'with' if color_sets else 'without'} colour sets, "
        f"whole files, all decoded and found equal. Model {bench.identity(model)}."
    )
    command = f"python -m bench front {data.options}{run_options(model, efforts)}"
    command += "" if color_sets else " --no-color-sets"
    picture = draw(points, labels, folder)
    table = Table("table", caption, columns, lines)
    Section(f"Bits against time: {data.name}", command, [said], [table], [picture]).publish(folder)


@click.command()
@measuring_options
@click.option("--color-sets/--no-color-sets", default=True, help="Whether files may use them.")
def main(
    data: Dataset, model: Model, efforts: tuple[str, ...], color_sets: bool, out: Path
) -> None:
    """Bits against processor time beside other codecs, in one thread."""
    torch.set_num_threads(1)
    run(data, model, efforts, color_sets, out)


if __name__ == "__main__":
    main()
