"""Where the bits of a file go: by timestep and channel, and against the bound or the expected cost.

python -m bench anatomy FILE [--model NAME]

**The chain of a tile** is coded again, and each step's bits are read off the stack. The encoder
pops z_t before it pushes z_{t-1}, so the bits of one step of the bound are

    bits_s = push(z_s | z_t) - pop(z_t | z_s) + h_t - h_s,    h_t = -log2 q(z_t | z_1) delta_t

for s from 2 up and t = s + 1: the popped chain q(z_2..z_T | z_1) in the order in which the bound
takes it, q(z_T | z_1) q(z_{T-1} | z_T, z_1) ... The steps add up to what the stack holds. Below a
preview of the tile's own all this is given the preview too, whose bits are shared out to its
timesteps by their expected cost.

**A file with previews** has the bits of each layer in it. Beside them stands what both sides expect
of its steps, 0.5 log2(1 + W / Q) per sample, which an exact sample would cost on average.
"""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
from PIL import Image
from scipy.special import log_ndtr

from bench.lossless import bound_by_step
from bench.report import OUT, Section, Table
from bench.store import Row, write_json
from diffcodec import decode
from diffcodec.arrays import Array
from diffcodec.codec.batches import progress_bar, run
from diffcodec.codec.jobs import Job, Part, chain_parts
from diffcodec.codec.opening import find_model
from diffcodec.codec.planes import allowed, coded_channels, color_set, crop, integers
from diffcodec.codec.tiles import add_to_chains
from diffcodec.coding.ans import Stack
from diffcodec.coding.bits_back import EncodedTile, encode_tile, most_seed_words, seed
from diffcodec.coding.chain import TileChain
from diffcodec.coding.codecs import Candidates, Codec, GaussianBins
from diffcodec.coding.steps import Forward, Step, coding_steps
from diffcodec.coding.steps import Part as StepPart
from diffcodec.coding.top_down import Descent, Transition
from diffcodec.container.info import dimensions
from diffcodec.container.parts import Container
from diffcodec.container.reader import parse
from diffcodec.diffusion.process import LOG2_E
from diffcodec.images.modes import pixel_crc
from diffcodec.models.model import Model

CHANNELS = {"ycocg": ("Y", "Co", "Cg"), "rgb": ("R", "G", "B")}
LEAST_PROBABILITY = 2.0**-24  # that the coder gives a symbol


class MeasuredChain(TileChain):
    """A chain that keeps its variables, and then tells the code length of each step by channel."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.z = Keeping()
        self.bits: dict[Step, Array] = {}  # [channels]; popped bits are negative

    def measure(self) -> Job[None]:
        """Find the code lengths, of a tile that has been coded."""
        for step in coding_steps(len(self.levels), self.preview, self.phased):
            bits = np.zeros(self.coded)
            for part in step.parts(self):
                codec = yield from step.codec(self, part)
                lengths = code_lengths(codec, self.z[step.timestep][part])
                bits[channels_of(part)] += lengths.sum((-2, -1))
            self.bits[step] = bits if step.pushes else -bits

    def marginal_bits(self) -> dict[int, Array]:
        """-log2 q(z_t | z_1) delta_t of the popped z_t, given the preview too, [channels].

        Of z_2 it is its pop. All of them are linear in z_1, the preview and Gaussian noise.
        """
        c = slice(0, self.coded)
        first, top = np.ones((3, 1, 1)), np.zeros((3, 1, 1))  # coefficients of z_1 and the preview
        variance = np.zeros((3, 1, 1))
        preview = self.z[self.preview] if self.preview else np.zeros(1)
        found = {}
        for t in range(2, self.top + 1):
            level = self.levels[t - 1]
            first, top = (
                (1 - level.bridge_weight) * first,
                (1 - level.bridge_weight) * top + level.bridge_weight,
            )
            noise = level.draw_std**2 + level.spacing**2 / 12
            variance = (1 - level.bridge_weight) ** 2 * variance + noise
            error = (self.z[t] - first * self.z[1] - top * preview) ** 2 / variance
            bits = 0.5 * LOG2_E * error + 0.5 * np.log2(2 * math.pi * variance / level.spacing**2)
            found[t] = bits[c].sum((1, 2))
        if 2 in found:
            found[2] = -self.bits[Forward(2)]
        return found

    @property
    def top(self) -> int:
        """The last timestep on the stack."""
        return self.preview - 1 if self.preview else len(self.levels)


class Keeping(dict[int, Array]):
    """Forgets nothing."""

    def __delitem__(self, key: int) -> None:
        pass


class MeasuredDescent(Descent):
    """A descent that notes what each step is expected to cost: 0.5 log2(1 + W / Q) by channel."""

    def __init__(self, chain: TileChain):
        super().__init__(chain)
        self.expected: dict[int, Array] = defaultdict(lambda: np.zeros(chain.coded))

    def _transition(self, step: Step, part: StepPart) -> Job[Transition]:
        p = yield from super()._transition(step, part)
        bits = 0.5 * np.log2(1 + p.excess / p.variance)
        self.expected[step.timestep][channels_of(part)] += bits.sum((-2, -1))
        return p


def channels_of(part: StepPart) -> int | slice:
    """The channels of a part of a variable."""
    return part[0] if isinstance(part, tuple) else part


def code_lengths(codec: Codec, values: Array) -> Array:
    """The bits that a codec pushes for each value."""
    if isinstance(codec, Candidates):
        symbols = (values - codec.lowest).ravel().astype(int)
        picked = codec.table[np.arange(len(symbols)), symbols] / codec.table.sum(1)
        bits: Array = -np.log2(np.maximum(picked, LEAST_PROBABILITY)).reshape(values.shape)
        return bits
    assert isinstance(codec, GaussianBins)
    mass = log_bin((values - codec.mean) / codec.std, codec.spacing / codec.std)
    return -LOG2_E * np.maximum(mass, math.log(LEAST_PROBABILITY))


def log_bin(centre: Array, width: Array) -> Array:
    """Log of a standard normal's mass of bins, without cancellation in the tails."""
    far, near = np.abs(centre) + width / 2, np.abs(centre) - width / 2
    upper, lower = log_ndtr(-near), log_ndtr(-far)
    result: Array = upper + np.log1p(-np.exp(lower - upper))
    return result


def step_name(timestep: int, last: int) -> str:
    """The name of what the bits at a timestep buy."""
    if timestep == 0:
        return "remainder"
    return "prior" if timestep == last else f"z_{timestep}"


def dissect_chain(container: Container, model: Model, image: Image.Image) -> tuple[Row, list[Row]]:
    """Bits of the chain tiles of a file without previews: what is no step's, and by timestep."""
    parts = chain_parts(container)
    effort = parts[0].plan
    source, image = image, image.copy()
    add_to_chains(image, zip(container.boxes(), container.tiles, strict=True), undo=True)
    coded = coded_channels(container.mode, model.color)
    last = len(model.plans[effort].levels)
    can_occur = allowed(color_set(container), model.color)
    rows: list[Row] = [
        {
            "timestep": t,
            "name": step_name(t, last),
            "bits": 0.0,
            "pushed_bits": 0.0,
            "popped_bits": 0.0,
            "by_channel": dict.fromkeys(CHANNELS[model.color][:coded], 0.0),
        }
        for t in range(last + 1)
    ]

    def job(part: Part) -> Job[EncodedTile]:
        size = (part.box.height, part.box.width)
        fields = (model.plans[effort], model.domain, part.index, coded, size)
        tile, phased = container.tiles[part.index], model.phased
        kind, fitted = (tile.draw, can_occur, phased, phased, part.label), part.adaptation
        chain = MeasuredChain(*fields, tile.preview, *kind, adaptation=fitted)
        if tile.preview:
            descent = MeasuredDescent(TileChain(*fields, 0, *kind, adaptation=fitted))
            yield from descent.decode_layer(tile.preview_payload, tile.preview)
            add_preview(rows, descent.expected, 8 * len(tile.preview_payload))
            chain.z[tile.preview] = descent.z
        x = integers(image, part.box, model.color).astype("f8")
        again = yield from encode_tile(chain, x, checksum=pixel_crc(crop(source, part.box)))
        yield from chain.measure()
        if again.payload != tile.payload:
            raise click.ClickException(f"tile {part.index} came out otherwise when coded again")
        add_tile(rows, chain, again)
        return again

    tiles = list(run(map(job, parts), parts, model, progress_bar(0, False)))
    if container.mode == "RGB":
        bound = sum(
            bound_by_step(model, effort, crop(image, part.box), part.label) for part in parts
        )
        for row, bits in zip(rows, np.asarray(bound), strict=True):
            row["bound_bits"] = float(bits)
    previews = sum(8 * len(container.tiles[part.index].preview_payload) for part in parts)
    payload = previews + sum(8 * len(tile.payload) for tile in tiles)
    seed_bits = 32 * sum(tile.seed_words for tile in tiles)
    rest = payload - seed_bits - sum(row["bits"] for row in rows)
    return {"seed dip": seed_bits, "last words": rest}, rows


def add_preview(rows: list[Row], expected: dict[int, Array], bits: int) -> None:
    """The bits of a tile's preview to the rows of its timesteps, by expected cost."""
    total = sum(cost.sum() for cost in expected.values())
    for t, cost in expected.items():
        row, share = rows[t], cost / total * bits
        row["bits"] += float(share.sum())
        for name, value in zip(row["by_channel"], share, strict=False):
            row["by_channel"][name] += float(value)


def add_tile(rows: list[Row], chain: MeasuredChain, tile: EncodedTile) -> None:
    """Bits of one tile to the rows of their timesteps, real ones by the words on the stack."""
    start = Stack(seed(chain.tile, most_seed_words(chain))).height
    changes = np.diff([start, *tile.heights]) * 32.0
    steps = coding_steps(len(chain.levels), chain.preview, chain.phased)
    real = dict(zip(steps, changes, strict=True))
    marginal = chain.marginal_bits()
    for row in rows[: chain.top + 1]:
        t = row["timestep"]
        push = next(step for step in steps if step.pushes and step.timestep == t)
        bits, channels = real[push], chain.bits[push]
        row["pushed_bits"] += float(bits)
        if t >= 2:
            row["popped_bits"] -= float(real[Forward(t)])
            bits, channels = bits - marginal[t].sum(), channels - marginal[t]
        if 2 <= t < chain.top:
            bits += real[Forward(t + 1)] + marginal[t + 1].sum()
            channels = channels + chain.bits[Forward(t + 1)] + marginal[t + 1]
        row["bits"] += float(bits)
        for name, value in zip(row["by_channel"], channels, strict=True):
            row["by_channel"][name] += float(value)


def dissect_layers(data: bytes, container: Container, model: Model) -> list[Row]:
    """Bits of each layer, and what both sides expect of its steps, by channel."""
    layers = container.layers
    assert layers is not None
    coded = coded_channels(container.mode, model.color)
    channels = CHANNELS[model.color][:coded]
    top = len(model.plans[layers.plan].levels)
    descents: list[MeasuredDescent] = []

    def measured(chain: TileChain) -> MeasuredDescent:
        descents.append(MeasuredDescent(chain))
        return descents[-1]

    with mock.patch("diffcodec.codec.descents.Descent", measured):
        decode(data, layers.timesteps[-1], model)
    rows: list[Row] = []
    for t, payloads in zip(layers.timesteps, layers.payloads, strict=True):
        expected = sum(d.expected[s] for d in descents for s in range(t, top + 1))
        by_channel = {n: float(v) for n, v in zip(channels, np.asarray(expected), strict=True)}
        name = f"z_{t}" if t == top else f"z_{top} to z_{t}"
        rows.append(
            {
                "timestep": t,
                "name": name,
                "bits": 8.0 * sum(map(len, payloads)),
                "expected_bits": sum(by_channel.values()),
                "by_channel": by_channel,
            }
        )
        top = t - 1
    return rows[::-1]


def dissect(data: bytes, given: str | Model | None = None) -> Row:
    """Where the bits of a file go; ``given`` is its model, if it is not a shipped one.

    Returns:
        ``bytes``, ``dimensions``; ``blocks``, bits of what is no step: container, outliers,
        fallback tiles, seed dip, last words; ``steps``, by timestep from 0 up, with ``bits``, their
        share by channel, and ``bound_bits`` or, of layers, ``expected_bits``. Blocks and steps add
        up to the file.
    """
    container = parse(data)
    payloads = [part for tile in container.tiles for part in (tile.payload, tile.preview_payload)]
    if container.layers:
        payloads += [part for layer in container.layers.payloads for part in layer]
    outliers = sum(len(tile.outliers) for tile in container.tiles)
    blocks: Row = {"container": 8.0 * (len(data) - sum(map(len, payloads)) - outliers)}
    if outliers:
        blocks["outliers"] = 8.0 * outliers
    for tile in container.tiles:
        if not tile.plan or container.layers:
            label = "exact rest, by the chain" if tile.plan else tile.coder
            blocks[label] = blocks.get(label, 0.0) + 8 * (
                len(tile.payload) + len(tile.preview_payload)
            )
    steps: list[Row] = []
    if container.uses_model:
        model = find_model(container, given)
        if container.layers:
            steps = dissect_layers(data, container, model)
        else:
            found, steps = dissect_chain(container, model, decode(data, model=model))
            blocks |= found
    return {
        "bytes": len(data),
        "dimensions": dimensions(container),
        "blocks": blocks,
        "steps": steps,
    }


def step_table(found: Row) -> Table:
    """Bits per dimension of steps and blocks."""
    n = found["dimensions"]
    steps = found["steps"]
    against = next((k for k in ("bound_bits", "expected_bits") if steps and k in steps[0]), None)
    channels = list(steps[0]["by_channel"]) if steps else []
    columns = ["part", "bits per dimension"]
    columns += [against.removesuffix("_bits"), "difference"] if against else []
    columns += [f"of it {channel}" for channel in channels]
    lines = []
    for step in reversed(steps):
        cells = [step["name"], f"{step['bits'] / n:.4f}"]
        if against:
            cells += [f"{step[against] / n:.4f}", f"{(step['bits'] - step[against]) / n:+.4f}"]
        lines.append([*cells, *(f"{bits / n:.4f}" for bits in step["by_channel"].values())])
    for name, bits in found["blocks"].items():
        lines.append([name, f"{bits / n:.4f}", *[""] * (len(columns) - 2)])
    total = [f"{8 * found['bytes'] / n:.4f}"]
    if against == "bound_bits":
        bound = sum(step[against] for step in steps) / n
        total += [f"{bound:.4f}", f"{8 * found['bytes'] / n - bound:+.4f}"]
    lines.append(["the file", *total, *[""] * (len(columns) - 1 - len(total))])
    return Table("steps", "Where the bits go", columns, lines)


def draw(found: Row, title: str, folder: Path) -> str:
    """Bars by step, stacked by channel, with the bound; then the other blocks."""
    from bench import pictures

    n, steps = found["dimensions"], found["steps"][::-1]
    blocks = {name: bits / n for name, bits in found["blocks"].items()}
    names = [step["name"] for step in steps] + list(blocks)
    drawn, axes = pictures.figure(max(6.0, 0.5 * len(names) + 2), 4.6)
    places = np.arange(len(steps))
    floor = np.zeros(len(steps))
    shades = ("#4d4d4d", "#e08214", "#5aae61")
    channels = list(steps[0]["by_channel"]) if steps else []
    for channel, shade in zip(channels, shades, strict=False):
        # The channels' shares by code length, scaled to the real bits of the step.
        shares = np.array([s["by_channel"][channel] / sum(s["by_channel"].values()) for s in steps])
        heights = shares * [step["bits"] / n for step in steps]
        axes.bar(places, heights, bottom=floor, color=shade, label=f"{channel}, real bits")
        floor += heights
    for key, label in (("bound_bits", "bound of the step"), ("expected_bits", "expected")):
        if steps and key in steps[0]:
            values = [step[key] / n for step in steps]
            axes.plot(places, values, "_", color="black", ms=16, mew=1.8, label=label)
    axes.bar(len(steps) + np.arange(len(blocks)), blocks.values(), color=pictures.OURS)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set(xlabel="steps of the chain, then the rest of the file", ylabel="bits per dimension")
    axes.set_title(f"{title}: {found['bytes']} bytes, {8 * found['bytes'] / n:.3f} bpd", loc="left")
    axes.grid(axis="x", visible=False)
    if steps:
        axes.legend(frameon=False)
    return pictures.save(drawn, folder, "anatomy")


def run_anatomy(file: Path, model: str | Model | None, out: Path) -> None:
    """Dissect a file and write the results."""
    found = dissect(file.read_bytes(), model)
    folder = out / "anatomy" / file.stem
    write_json(folder / "anatomy.json", found)
    picture = draw(found, file.name, folder)
    text = f"{file.name}, {found['bytes']} bytes: every bit of the file by what it is spent on."
    command = f"python -m bench anatomy {file.name}"
    section = Section(f"Anatomy: {file.name}", command, [text], [step_table(found)], [picture])
    section.publish(folder)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", help="Name or path, if it is not a shipped one.")
@click.option("--out", default=OUT, type=click.Path(path_type=Path), help="Folder of results.")
def main(file: Path, model: str | None, out: Path) -> None:
    """Where the bits of a FILE go: steps, channels, container, against the bound."""
    run_anatomy(file, model, out)


if __name__ == "__main__":
    main()
