"""Lossless sizes, whole files, beside the codecs that people use, and against the chain's bound.

python -m bench lossless --data DIR [--crop 32] [--effort default]

Every file is decoded and compared. Sizes count every byte; beside them stands the payload, without
the bytes of the codec's smallest file (one grey pixel). The bound is the chain's variational bound
for the same image and plan, estimated by one sample of the chain.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import bench
from bench.codecs import Codec, lossless_codecs, missing_programs, one_pixel
from bench.inputs import Dataset
from bench.measuring import (
    bits_per_dimension,
    code_exactly,
    code_image,
    described_images,
    dips,
    is_small,
    measuring_options,
    our_key,
    our_label,
    our_name,
    run_options,
)
from bench.metrics import Interval, interval, ratio_interval
from bench.published import published_table
from bench.report import Section, Table
from bench.store import Row, Store, cpu, write_json
from diffcodec import encode
from diffcodec.container.info import tiles_by_coder
from diffcodec.container.parts import PLAN_NAMES
from diffcodec.container.reader import parse
from diffcodec.evaluation import measure as evaluation
from diffcodec.models.model import Model

LARGEST_TABLE = 30  # images that get a row each


def bound_bits(model: Model, effort: str, image: Image.Image) -> float:
    """The chain's bound on an RGB image, in bits, by one sample of the chain."""
    return float(bound_by_step(model, effort, image).sum())


def bound_by_step(
    model: Model, effort: str, image: Image.Image, label: int | None = None
) -> NDArray[np.float64]:
    """The same in its parts, [T + 1], of a class if one is told.

    See :func:`diffcodec.evaluation.measure.bound_bits`.
    """
    generator = torch.Generator().manual_seed(0)
    labels = None if label is None else [label]
    return evaluation.bound_bits(model, [image], model.plans[effort], generator, labels=labels)[0]


def measure_codec(codec: Codec, image: Image.Image) -> Row:
    """Sizes and times of a lossless codec for one image."""
    setting = codec.settings[0]
    coded = code_exactly(codec.label, image, lambda: codec.encode(image, setting), codec.decode)
    sizes = {"bytes": len(coded.data), "container_bytes": codec.container_bytes(setting)}
    return sizes | coded.seconds()


def measure(model: Model, effort: str, image: Image.Image, bound: bool) -> Row:
    """The same as :func:`measure_codec`, of diffcodec; and the bound and the tiles' coders."""
    with dips() as seed_words:
        coded = code_image(model, effort, image)
    container = parse(coded.data)
    return {
        "bytes": len(coded.data),
        "container_bytes": len(encode(one_pixel(), model, effort)),
        "payload_bytes": sum(tile.size for tile in container.tiles),
        "seed_words": sum(seed_words),
        "tiles": tiles_by_coder(container),
        "bound_bits": bound_bits(model, effort, image) if bound else None,
    } | coded.seconds()


def measure_all(
    data: Dataset, model: Model, efforts: tuple[str, ...], chain_only: bool, bound: bool, out: Path
) -> tuple[list[Row], dict[str, list[Row]]]:
    """Images (name, samples), and rows by codec's name in the images' order."""
    store = Store(out / "rows.jsonl")
    images: list[Row] = []
    rows: dict[str, list[Row]] = {}
    codecs = lossless_codecs()
    for described, image in described_images(data):
        images.append(described)
        common: Row = {"what": "lossless", "image": described["digest"], "cpu": cpu()}
        for codec in codecs:
            key = common | {"codec": codec.name, "setting": codec.settings[0], "by": codec.about}
            row = store.get(key, partial(measure_codec, codec, image))
            rows.setdefault(codec.name, []).append(row)
        for effort in efforts:
            key = common | our_key(model, effort) | {"chain_only": chain_only, "bound": bound}
            row = store.get(key, partial(measure, model, effort, image, bound))
            rows.setdefault(our_name(effort), []).append(row)
    return images, rows


def compressai_result(name: str, about: str, rows: list[Row], images: list[Row]) -> Row:
    """Means over images in CompressAI's schema, then per image in fields of our own."""
    bpp = [8 * r["bytes"] / (i["width"] * i["height"]) for r, i in zip(rows, images, strict=True)]
    return {
        "name": name,
        "description": about,
        "results": {
            "bpp": [float(np.mean(bpp))],
            "psnr-rgb": [math.inf],
            "encoding_time": [float(np.mean([r["encode_seconds"] for r in rows]))],
            "decoding_time": [float(np.mean([r["decode_seconds"] for r in rows]))],
            "bpd": [float(np.mean(bpp)) / 3],
            "bytes": [float(np.mean([r["bytes"] for r in rows]))],
        },
        "images": [i | r | {"bpd": b / 3} for i, r, b in zip(images, rows, bpp, strict=True)],
    }


def bounds_per_dimension(rows: list[Row], images: list[Row]) -> list[float]:
    """The bound of each image."""
    return [
        r["bound_bits"] / (3 * i["width"] * i["height"]) for r, i in zip(rows, images, strict=True)
    ]


def summary_table(
    images: list[Row], rows: dict[str, list[Row]], labels: Mapping[str, str], ours: str
) -> Table:
    """Means with their intervals, and how much smaller diffcodec's files are."""
    small = is_small(images)
    columns = ["codec", "bpd", "95 % interval", "diffcodec's files smaller by", "95 % interval"]
    columns += ["bpd without container"] if small else []
    columns += ["encoding, s", "decoding, s"]
    table = []
    for name, label in labels.items():
        mean = interval(bits_per_dimension(rows[name], images))
        cells = [label, f"{mean.mean:.3f}", mean.text(3)]
        if name == ours:
            cells += ["", ""]
        else:
            sizes = ([r["bytes"] for r in rows[n]] for n in (ours, name))
            ratio = ratio_interval(*sizes)
            saved = Interval(*(100 * (1 - r) for r in (ratio.mean, ratio.high, ratio.low)))
            cells += [f"{saved.mean:.1f} %", saved.text(1, " %")]
        if small:
            payload = bits_per_dimension(rows[name], images, "container_bytes")
            cells.append(f"{np.mean(payload):.3f}")
        for times in ("encode_seconds", "decode_seconds"):
            cells.append(f"{np.median([r[times] for r in rows[name]]):.3g}")
        table.append(cells)
    return Table("summary", "Mean over images of bits per dimension; median times", columns, table)


def image_table(images: list[Row], rows: dict[str, list[Row]], labels: Mapping[str, str]) -> Table:
    """Every image's bits per dimension, the bound beside diffcodec's."""
    columns: dict[str, list[float]] = {}
    for name, label in labels.items():
        columns[label] = bits_per_dimension(rows[name], images)
        if name.startswith("diffcodec") and rows[name][0]["bound_bits"] is not None:
            effort = name.removeprefix("diffcodec-")
            columns[f"bound, {effort}"] = bounds_per_dimension(rows[name], images)
    lines = [
        [image["name"], *(f"{values[k]:.3f}" for values in columns.values())]
        for k, image in enumerate(images)
    ]
    means = [f"{np.mean(values):.3f}" for values in columns.values()]
    if len(lines) > LARGEST_TABLE:
        lines = []
    lines.append([f"mean of {len(images)}", *means])
    return Table("images", "Bits per dimension", ["image", *columns], lines)


def our_figures(
    images: list[Row], rows: dict[str, list[Row]], model: Model, efforts: Sequence[str]
) -> list[Row]:
    """Files, and the bound if it was measured, to stand above published figures."""
    figures: list[Row] = []
    for effort in efforts:
        label, found = our_label(effort), rows[our_name(effort)]
        counted = f"{len(images)} images, whole files, per image"
        common = {"evaluations": bench.evaluations(model, effort)}
        bpd = float(np.mean(bits_per_dimension(found, images)))
        figures.append(common | {"name": label, "bpd": bpd, "what": counted})
        if found[0]["bound_bits"] is not None:
            bpd = float(np.mean(bounds_per_dimension(found, images)))
            figures.append(common | {"name": label, "bpd": bpd, "what": "its bound"})
    return figures


def overhead_table(images: list[Row], ours: dict[str, list[Row]]) -> Table:
    """Where files and bound differ, on the images that are chains alone; bits per dimension."""
    lines = []
    for effort, rows in ours.items():
        kept = [
            (r, 3 * i["width"] * i["height"])
            for r, i in zip(rows, images, strict=True)
            if set(r["tiles"]) <= set(PLAN_NAMES)
        ]
        figures = [
            (
                8 * r["bytes"] / n,
                r["bound_bits"] / n,
                8 * (r["bytes"] - r["payload_bytes"]) / n,
                32 * r["seed_words"] / n,
            )
            for r, n in kept
        ]
        if not figures:
            lines.append([effort, "0", *[""] * 5])
            continue
        whole, bound, header, seed = np.mean(figures, 0)
        rest = whole - bound - header - seed
        cells = [whole, bound, header, seed, rest]
        lines.append([effort, str(len(kept)), *(f"{value:.4f}" for value in cells)])
    columns = ["effort", "images that are chains", "file", "bound", "container", "seed dip", "rest"]
    return Table(
        "overhead",
        "Files against their bound: file = bound + container + seed + rest",
        columns,
        lines,
    )


def draw(
    images: list[Row],
    rows: dict[str, list[Row]],
    labels: Mapping[str, str],
    ours: str,
    folder: Path,
) -> str:
    """Means as bars, and diffcodec's files by image against two others."""
    from bench import pictures

    drawn, (left, right) = pictures.figure(11, 4.4, 2)
    order = sorted(labels, key=lambda n: -float(np.mean(bits_per_dimension(rows[n], images))))
    values = {labels[n]: interval(bits_per_dimension(rows[n], images)) for n in order}
    pictures.bars(left, values, [pictures.colour(n) for n in order])
    left.set(xlabel="bits per dimension, whole files (mean of images, 95 % interval)")
    left.set_title(f"{len(images)} images", loc="left")
    texts = []
    for other in ("webp", "jpegxl9"):
        pairs = zip(rows[ours], rows[other], strict=True)
        gain = sorted(100 * (a["bytes"] / b["bytes"] - 1) for a, b in pairs)
        places = np.arange(1, len(gain) + 1)
        right.plot(places, gain, "o-", ms=3, color=pictures.colour(other))
        texts.append((len(gain), gain[-1], f"over {labels[other]}", pictures.colour(other)))
    right.axhline(0, color="#333333", lw=1)
    right.set(xlabel="images, each curve sorted", ylabel="size of diffcodec's file, %")
    right.set_title("below 0 diffcodec is smaller, above 0 larger", loc="left")
    right.set_xlim(0.5, len(images) + 0.5)
    right.xaxis.get_major_locator().set_params(integer=True)
    pictures.label_curves(right, texts)
    return pictures.save(drawn, folder, "lossless")


def section_name(data: Dataset, chain_only: bool) -> str:
    """The name of a section, and of the folder of its results."""
    return f"lossless/{data.name}-chain" if chain_only else f"lossless/{data.name}"


def run(
    data: Dataset,
    model: Model,
    efforts: tuple[str, ...],
    chain_only: bool,
    bound: bool,
    out: Path,
    color_sets: bool = True,
) -> None:
    """Measure, and write all results of a data set."""
    out = out if color_sets else out / "no-color-sets"
    with (
        bench.chain_only() if chain_only else nullcontext(),
        nullcontext() if color_sets else bench.no_color_sets(),
    ):
        images, rows = measure_all(data, model, efforts, chain_only, bound, out)
    folder = out / section_name(data, chain_only)
    labels = {codec.name: codec.label for codec in lossless_codecs()}
    labels |= {our_name(effort): our_label(effort) for effort in efforts}
    about = {codec.name: codec.about for codec in lossless_codecs()}
    for name, found in rows.items():
        described = about.get(name, f"model {bench.identity(model)}")
        write_json(
            folder / f"{name}.json", compressai_result(labels[name], described, found, images)
        )
    ours = our_name(efforts[-1])
    tables = [summary_table(images, rows, labels, ours)]
    if bound:
        tables.append(overhead_table(images, {e: rows[our_name(e)] for e in efforts}))
    tables.append(image_table(images, rows, labels))
    beside = published_table(data.name, our_figures(images, rows, model, efforts))
    tables += [beside] if beside else []
    counts: dict[str, int] = {}
    for row in rows[ours]:
        for coder, count in row["tiles"].items():
            counts[coder] = counts.get(coder, 0) + count
    shares = ", ".join(f"{count} by {coder}" for coder, count in sorted(counts.items()))
    paragraphs = [
        f"{len(images)} images of {data.name}, whole files, all decoded and found equal. Model "
        f"{bench.identity(model)}. Tiles of {our_label(efforts[-1])}: {shares}.",
        *missing_programs(),
    ]
    command = f"python -m bench lossless {data.options}{run_options(model, efforts)}"
    command += " --chain-only" if chain_only else ""
    command += "" if bound else " --no-bound"
    command += "" if color_sets else " --no-color-sets"
    picture = draw(images, rows, labels, ours, folder)
    section = Section(f"Lossless: {folder.name}", command, paragraphs, tables, [picture])
    section.publish(folder)


@click.command()
@measuring_options
@click.option("--chain-only", is_flag=True, help="Let no tile take WebP.")
@click.option("--bound/--no-bound", default=True, help="The bound takes as long as encoding.")
@click.option("--color-sets/--no-color-sets", default=True, help="Whether files may use them.")
def main(
    data: Dataset,
    model: Model,
    efforts: tuple[str, ...],
    chain_only: bool,
    bound: bool,
    color_sets: bool,
    out: Path,
) -> None:
    """Lossless sizes and times beside other codecs, and against the bound."""
    run(data, model, efforts, chain_only, bound, out, color_sets)


if __name__ == "__main__":
    main()
