"""Rate against distortion of lossy files: real bytes beside JPEG, WebP, AVIF, JPEG XL, JPEG 2000.

python -m bench rd --data DIR [--crop 128] [--limit 200] [--every 2]

diffcodec has a file for each timestep, or every Nth. Curves are means over images at each setting,
as in the literature.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from bench import POSITIVE, identity
from bench.codecs import Codec, lossy_codecs, missing_programs, one_pixel
from bench.inputs import Dataset
from bench.measuring import (
    Coded,
    code,
    described_images,
    is_small,
    measuring_options,
    our_key,
    our_label,
    our_name,
    run_options,
)
from bench.metrics import (
    MS_SSIM_SIDE,
    SSIM_SIDE,
    Interval,
    bd_rate,
    interval,
    qualities,
    quality_at,
    rate_at,
    similarity_name,
)
from bench.published import PUBLISHED, published
from bench.report import Section, Table
from bench.store import Row, Store, cpu, write_json
from diffcodec import decode, encode
from diffcodec.arrays import Array
from diffcodec.models.model import Model

LOWEST_RATE = 0.02  # bits per pixel, of pictures
RATIOS_SHOWN = (0.4, 6.0)  # the lower end goes as far down as any codec does
RATES = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # bits per pixel, of the table


def measure_codec(codec: Codec, image: Image.Image) -> Row:
    """Points of an image by a codec: bytes, qualities and times at each setting."""
    points = []
    for setting in codec.settings:
        coded = code(partial(codec.encode, image, setting), codec.decode)
        points.append(point(setting, coded, codec.container_bytes(setting), image))
    return {"points": points}


def point(setting: float, coded: Coded, container_bytes: int, image: Image.Image) -> Row:
    """The row of one file of an image."""
    return {
        "setting": setting,
        "bytes": len(coded.data),
        "container_bytes": container_bytes,
        **qualities(coded.shown, np.asarray(image)),
        "encoding_time": coded.encode_seconds,
        "decoding_time": coded.decode_seconds,
    }


def measure(model: Model, effort: str, image: Image.Image, timestep: int) -> Row:
    """The same of diffcodec's file that ends at a timestep."""

    def file(of: Image.Image) -> bytes:
        return encode(of, model, effort, timestep=timestep, previews=[timestep])

    coded = code(partial(file, image), partial(decode, model=model))
    return point(timestep, coded, len(file(one_pixel())), image)


def check_size(image: Row, first: Row) -> None:
    """Check that an image has the similarity that the first of all has, and has one.

    Raises:
        click.ClickException: if not: means of two kinds would be of nothing.
    """
    size, first_size = ((i["width"], i["height"]) for i in (image, first))
    found = f"{image['name']}: found {size[0]} x {size[1]} pixels"
    if min(size) < SSIM_SIDE:
        raise click.ClickException(
            f"{found}, expected {SSIM_SIDE} a side or more, for SSIM: take it out of --data"
        )
    if similarity_name(size) != similarity_name(first_size):
        raise click.ClickException(
            f"{found}, and {first['name']} has {first_size[0]} x {first_size[1]}: MS-SSIM is of "
            f"images of {MS_SSIM_SIDE} a side or more and SSIM of smaller ones, and means are of "
            "one kind; give --crop, or a folder for each kind"
        )


def measure_all(
    data: Dataset, model: Model, efforts: Sequence[str], out: Path, every: int
) -> tuple[list[Row], dict[str, list[list[Row]]]]:
    """Images, and by codec's name and image the points."""
    store = Store(out / "rows.jsonl")
    images: list[Row] = []
    points: dict[str, list[list[Row]]] = {}
    codecs = lossy_codecs()
    for described, image in described_images(data):
        images.append(described)
        check_size(described, images[0])
        common: Row = {"what": "rd", "image": described["digest"], "cpu": cpu()}
        for codec in codecs:
            key = common | {"codec": codec.name, "settings": codec.settings, "by": codec.about}
            row = store.get(key, partial(measure_codec, codec, image))
            points.setdefault(codec.name, []).append(row["points"])
        for effort in efforts:
            levels = len(model.plans[model.info.lossy_plan(effort)].levels)
            ours = [
                store.get(
                    common | our_key(model, effort) | {"timestep": t},
                    partial(measure, model, effort, image, t),
                )
                for t in reversed(range(1, levels + 1, every))
            ]
            points.setdefault(our_name(effort), []).append(ours)
    return images, points


class Curves:
    """The curves of one codec: bits per pixel and qualities, [images][points]."""

    def __init__(self, images: list[Row], points: list[list[Row]]):
        self.points = points
        self.pixels = [i["width"] * i["height"] for i in images]
        self.settings = [p["setting"] for p in points[0]]

    def of_images(self, name: str) -> list[list[float]]:
        """A field of the points; ``bpp`` counts files, ``payload-bpp`` leaves containers out."""
        if name not in ("bpp", "payload-bpp"):
            return [[p[name] for p in image] for image in self.points]
        less = "container_bytes" if name == "payload-bpp" else None
        return [
            [8 * max(0, p["bytes"] - (p[less] if less else 0)) / n for p in image]
            for n, image in zip(self.pixels, self.points, strict=True)
        ]

    def mean(self, name: str) -> list[float]:
        """The mean of a field over images, by setting."""
        return [float(value) for value in np.mean(self.of_images(name), 0)]


def decibels(similarity: Sequence[float]) -> list[float]:
    """-10 log10(1 - s): how SSIM and MS-SSIM are drawn and compared."""
    return [-10 * math.log10(1 - s) if s < 1 else math.inf for s in similarity]


def compressai_result(name: str, about: str, curves: Curves, similarity: str) -> Row:
    """CompressAI's schema: means over images by setting; and fields of our own."""
    fields = ("psnr-rgb", similarity, "encoding_time", "decoding_time", "bytes", "container_bytes")
    results = {"bpp": curves.mean("bpp")} | {field: curves.mean(field) for field in fields}
    results["bpd"] = [value / 3 for value in results["bpp"]]
    results["settings"] = curves.settings
    return {"name": name, "description": about, "results": results, "images": curves.points}


def bd_table(
    curves: Mapping[str, Curves],
    labels: Mapping[str, str],
    ours: str,
    rate: str,
    similarity: str,
    references: Sequence[Row] = (),
) -> Table:
    """Bjontegaard delta rates of diffcodec over each codec.

    Published curves, of means and whole files, stand below those that were measured.
    """
    named = "payload" if rate == "payload-bpp" else "file"
    measures = {"PSNR": "psnr-rgb", similarity.removesuffix("-rgb").upper(): similarity}
    columns = ["diffcodec over"]
    for label in measures:
        columns += [f"{label}, curves of means", f"{label}, mean of images", "95 % interval"]
    lines = []
    for name, label in labels.items():
        if name == ours:
            continue
        cells = [label]
        for field in measures.values():
            whole = bd_rate(*(_curve(curves[n], rate, field) for n in (name, ours)))
            pairs = (
                zip(
                    curves[n].of_images(rate),
                    _scaled(curves[n].of_images(field), field),
                    strict=True,
                )
                for n in (name, ours)
            )
            each = [bd_rate(*pair) for pair in zip(*pairs, strict=True)]
            each = [value for value in each if math.isfinite(value)]
            found = interval(each) if each else Interval(math.nan, math.nan, math.nan)
            cells += [f"{whole:+.1f} %", f"{found.mean:+.1f} %", found.text(1, " %")]
        lines.append(cells)
    for reference in references if rate == "bpp" else ():
        cells = [f"{reference['name']} {PUBLISHED}"]
        for field in measures.values():
            whole = bd_rate(_published_curve(reference, field), _curve(curves[ours], rate, field))
            cells += [f"{whole:+.1f} %", "", ""]
        lines.append(cells)
    caption = (
        f"Bjontegaard delta rate, {named} against {named}: percent of bits that diffcodec takes "
        "more (+) or less (-) at equal quality"
    )
    return Table(f"bd-{named}", caption, columns, lines)


def _scaled(values: list[list[float]], field: str) -> list[list[float]]:
    return values if field == "psnr-rgb" else [decibels(image) for image in values]


def _curve(curves: Curves, rate: str, field: str) -> tuple[list[float], list[float]]:
    quality = curves.mean(field)
    return curves.mean(rate), quality if field == "psnr-rgb" else decibels(quality)


def _published_curve(reference: Row, field: str) -> tuple[list[float], list[float]]:
    quality = reference[field]
    return reference["bpp"], quality if field == "psnr-rgb" else decibels(quality)


def equal_quality_table(
    curves: Mapping[str, Curves],
    labels: Mapping[str, str],
    ours: str,
    rate: str,
    references: Sequence[Row] = (),
) -> Table:
    """What the others take at the PSNR that diffcodec has at a rate, over diffcodec's bits."""
    named = "payload" if rate == "payload-bpp" else "file"
    others = {
        label: _curve(curves[name], rate, "psnr-rgb")
        for name, label in labels.items()
        if name != ours
    }
    others |= {
        f"{reference['name']} {PUBLISHED}": _published_curve(reference, "psnr-rgb")
        for reference in references
        if rate == "bpp"
    }
    quality = quality_at(*_curve(curves[ours], rate, "psnr-rgb"))
    at = {label: rate_at(*curve) for label, curve in others.items()}
    lines = []
    for wanted in RATES:
        decibel = quality(wanted)
        if math.isnan(decibel):
            continue
        ratios = (rate_of(decibel) / wanted for rate_of in at.values())
        cells = ["" if math.isnan(r) else f"{r:.2f}" for r in ratios]
        lines.append([f"{wanted:g}", f"{decibel:.2f}", *cells])
    columns = [f"diffcodec, bpp ({named})", "PSNR, dB", *others]
    caption = f"Bits of the others over diffcodec's at equal PSNR, {named} against {named}"
    return Table(f"equal-{named}", caption, columns, lines)


def points_table(curves: Curves, similarity: str, label: str) -> Table:
    """diffcodec's own points."""
    fields = ("bpp", "payload-bpp", "psnr-rgb", similarity, "encoding_time", "decoding_time")
    columns = ["timestep", "bpp", "without container", "PSNR, dB", similarity.removesuffix("-rgb")]
    columns = [*columns, "encoding, s", "decoding, s"]
    digits = (3, 3, 2, 4, 2, 2)
    values = zip(*(curves.mean(name) for name in fields), strict=True)
    lines = [
        [str(setting), *(f"{v:.{d}f}" for v, d in zip(row, digits, strict=True))]
        for setting, row in zip(curves.settings, values, strict=True)
    ]
    return Table(f"points-{label}", f"Points of {label}", columns, lines)


def draw_curves(
    curves: Mapping[str, Curves],
    labels: Mapping[str, str],
    rates: Sequence[str],
    similarity: str,
    references: list[Row],
    folder: Path,
) -> str:
    """PSNR, and similarity, against the rate."""
    from bench import pictures

    panels = [(rate, "psnr-rgb") for rate in rates] + [("bpp", similarity)]
    drawn, all_axes = pictures.figure(5.6 * len(panels), 5, len(panels))
    for axes, (rate, field) in zip(all_axes, panels, strict=True):
        texts = []
        ours = [_curve(curves[n], rate, field) for n in labels if n.startswith("diffcodec")]
        left = 0.7 * min(min(r for r in rate if r > LOWEST_RATE) for rate, _ in ours)
        right = 1.15 * max(max(rate) for rate, _ in ours)
        lowest = min(
            q for rate, quality in ours for r, q in zip(rate, quality, strict=True) if r > left
        )
        highest = max(q for _, quality in ours for q in quality if math.isfinite(q))
        for name, label in labels.items():
            rate_values, quality = _curve(curves[name], rate, field)
            shade = pictures.colour(name)
            ours_style = name.startswith("diffcodec")
            width = 2.2 if ours_style else 1.2
            axes.plot(
                rate_values, quality, "o-", ms=3.5 if ours_style else 2, lw=width, color=shade
            )
            texts.append((*_last_seen(rate_values, quality, left, right, highest), label, shade))
        lines = zip(references, pictures.PUBLISHED_LINES, strict=False)
        for reference, line in lines if rate == "bpp" else ():
            rate_values, quality = _published_curve(reference, field)
            axes.plot(rate_values, quality, ls=line, lw=1, color="#444444")
            text = f"{reference['name']} {PUBLISHED}"
            end = _last_seen(rate_values, quality, left, right, highest)
            texts.append((*end, text, "#444444"))
        counted = "without container" if rate == "payload-bpp" else "whole files"
        axes.set(xscale="log", xlim=(left, right), xlabel=f"bits per pixel, {counted}")
        axes.set_ylim(lowest - 1, highest + 1)
        axes.set_ylabel("PSNR, dB" if field == "psnr-rgb" else _similarity_label(field))
        pictures.plain_ticks(axes.xaxis)
        pictures.label_curves(axes, texts)
    return pictures.save(drawn, folder, "rd")


def _similarity_label(field: str) -> str:
    name = field.removesuffix("-rgb").upper()
    return f"{name} in dB, -10 log10(1 - {name})"


def _last_seen(
    rate: Sequence[float], quality: Sequence[float], left: float, right: float, highest: float
) -> tuple[float, float]:
    """The last point of a curve before it leaves the picture."""
    inside = [
        (r, q)
        for r, q in zip(rate, quality, strict=True)
        if left <= r <= right and q <= highest + 1
    ]
    return inside[-1] if inside else (right, highest)


def lowest_ratio(ratios: Iterable[Array]) -> float:
    """The lower end of the picture: below every curve, so that none leaves it where we lose."""
    values = np.concatenate([[RATIOS_SHOWN[0]], *(0.9 * ratio for ratio in ratios)])
    return float(np.nanmin(values))


def draw_ratios(
    curves: Mapping[str, Curves],
    labels: Mapping[str, str],
    ours: str,
    rates: Sequence[str],
    references: list[Row],
    folder: Path,
) -> str:
    """Bits of the others over diffcodec's at equal PSNR, along the whole of diffcodec's curve."""
    from bench import pictures

    drawn, all_axes = pictures.figure(6.5 * len(rates), 4.6, len(rates), squeeze=False)
    for axes, rate in zip(all_axes[0], rates, strict=True):
        texts = []
        own_rate, own_quality = _curve(curves[ours], rate, "psnr-rgb")
        quality = quality_at(own_rate, own_quality)
        positive = [r for r in own_rate if r > LOWEST_RATE]
        grid = np.geomspace(min(positive) * 1.0001, max(positive) * 0.9999, 200)
        wanted = [quality(r) for r in grid]
        others: dict[str, tuple[Sequence[float], Sequence[float], str, Any]] = {
            labels[n]: (*_curve(curves[n], rate, "psnr-rgb"), pictures.colour(n), "-")
            for n in labels
            if n != ours
        }
        lines = zip(references, pictures.PUBLISHED_LINES, strict=False)
        for reference, dashes in lines if rate == "bpp" else ():
            name = f"{reference['name']} {PUBLISHED}"
            others[name] = (reference["bpp"], reference["psnr-rgb"], "#444444", dashes)
        ratios = {}
        for label, (their_rate, their_quality, _, _) in others.items():
            at = rate_at(their_rate, their_quality)
            ratios[label] = np.array([at(q) / r for q, r in zip(wanted, grid, strict=True)])
        lowest, highest = lowest_ratio(ratios.values()), RATIOS_SHOWN[1]
        for label, (_, _, shade, line) in others.items():
            axes.plot(grid, ratios[label], ls=line, color=shade, lw=1.5)
            shown = zip(grid, ratios[label], strict=True)
            seen = [(r, v) for r, v in shown if lowest < v < highest]
            if seen:
                texts.append((*seen[-1], label, shade))
        axes.axhline(1, color=pictures.OURS, lw=2)
        axes.set_title(
            "above 1 the others take more bits than diffcodec, below 1 fewer", loc="left"
        )
        counted = "without container" if rate == "payload-bpp" else "whole files"
        axes.set(xscale="log", xlabel=f"bits per pixel of diffcodec, {counted}")
        axes.set_ylabel("bits over diffcodec's at equal PSNR")
        axes.set(yscale="log", ylim=(lowest, highest))
        pictures.plain_ticks(axes.xaxis)
        pictures.plain_ticks(axes.yaxis, (1, 1.5, 2, 3, 4, 5, 7))
        pictures.label_curves(axes, texts)
    return pictures.save(drawn, folder, "ratio")


def run(data: Dataset, model: Model, efforts: Sequence[str], out: Path, every: int = 1) -> None:
    """Measure, and write all results of a data set.

    Args:
        data: the images.
        model: that codes them.
        efforts: at which it does.
        out: folder of the results.
        every: of so many timesteps diffcodec has one file, the last from 1 on.
    """
    images, points = measure_all(data, model, efforts, out, every)
    folder = out / "rd" / data.name
    codecs = lossy_codecs()
    labels = {codec.name: codec.label for codec in codecs}
    labels |= {our_name(effort): our_label(effort) for effort in efforts}
    about = {codec.name: codec.about for codec in codecs}
    similarity = next(name for name in points[our_name(efforts[0])][0][0] if "ssim" in name)
    curves = {name: Curves(images, found) for name, found in points.items()}
    for name, found in curves.items():
        described = about.get(name, f"model {identity(model)}")
        result = compressai_result(labels[name], described, found, similarity)
        write_json(folder / f"{name}.json", result)
    ours = our_name(efforts[-1])
    rates = ["bpp", "payload-bpp"] if is_small(images) else ["bpp"]
    source, references = published("rd", data.name)
    tables = []
    for rate in rates:
        tables.append(bd_table(curves, labels, ours, rate, similarity, references))
        tables.append(equal_quality_table(curves, labels, ours, rate, references))
    tables += [points_table(curves[our_name(e)], similarity, our_name(e)) for e in efforts]
    pictures = [
        draw_curves(curves, labels, rates, similarity, references, folder),
        draw_ratios(curves, labels, ours, rates, references, folder),
    ]
    paragraphs = [
        f"{len(images)} images of {data.name}, real bytes of files that were decoded. Model "
        f"{identity(model)}. Curves are means over images at each setting.",
        *([f"Published curves, dashed, were not measured here: {source}."] if references else []),
        *missing_programs(),
    ]
    command = f"python -m bench rd {data.options}{run_options(model, efforts)}"
    command += f" --every {every}" if every > 1 else ""
    section = Section(f"Rate and distortion: {data.name}", command, paragraphs, tables, pictures)
    section.publish(folder)


@click.command()
@measuring_options
@click.option(
    "--every", default=1, type=POSITIVE, show_default=True, help="Timesteps from point to point."
)
def main(data: Dataset, model: Model, efforts: tuple[str, ...], out: Path, every: int) -> None:
    """Rate against PSNR and MS-SSIM of lossy files, beside other codecs."""
    run(data, model, efforts, out, every)


if __name__ == "__main__":
    main()
