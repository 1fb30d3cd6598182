"""Time and memory: ratios in one run, and how the cost grows with pixels, steps and parameters.

python -m bench speed [--image examples/kodim23.png] [--side 256] [--quick]

Everything runs in one thread, and times are its processor time, which other work on the machine
hardly changes. On another machine they differ; their ratios differ less, so the table shows these.
An evaluation's multiplications are counted by torch, a whole chain's are its networks' own
figures. Every tile is coded by the chain alone.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from bench import POSITIVE, chain_only, identity, middle
from bench.codecs import lossless_codecs
from bench.inputs import EXAMPLES, open_rgb
from bench.measuring import timed
from bench.report import OUT, Section, Table
from bench.store import Row, child_peak_mb, cpu, write_json
from diffcodec import decode, encode, load_model
from diffcodec.coding.chain import Answer
from diffcodec.container.parts import PLAN_NAMES
from diffcodec.diffusion.plan import geometric_plan
from diffcodec.models.answering import answer
from diffcodec.models.export import serialise_model
from diffcodec.models.file import DEFAULT_MODEL
from diffcodec.models.model import Model
from diffcodec.networks.config import NetworkConfig, UNetConfig, one_network
from diffcodec.networks.experts import ExpertDenoisers, FloatNetwork

SIDES = (32, 64, 128, 256, 512)
CHANNELS = tuple(  # the default network, narrower and wider
    tuple(quarters * width // 4 for width in UNetConfig().channels) for quarters in (1, 2, 3, 4, 6)
)
STEPS = (4, 8, 16, 32)
NETWORK_SIDE = 128  # of the tile on which networks are compared
CALIBRATION_SIDE = 64
GPU_TFLOPS, GPU_SHARE = 50.0, 0.3  # a data-centre GPU's float32 on paper, and what is had of it


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Processor time, the least of some runs after one to warm up."""
    work()
    return min(timed(work)[2] for _ in range(repeats))


def compare_codecs(image: Image.Image, model: Model, floating: Model, repeats: int) -> list[Row]:
    """Encoding and decoding of one image by every lossless codec, and by each effort."""
    rows = []

    def add(label: str, coded: Callable[[], bytes], back: Callable[[bytes], object]) -> None:
        data = coded()
        rows.append(
            {
                "name": label,
                "bytes": len(data),
                "encode_seconds": seconds(coded, repeats),
                "decode_seconds": seconds(partial(back, data), repeats),
            }
        )

    for codec in lossless_codecs():
        setting = codec.settings[0]
        add(codec.label, partial(codec.encode, image, setting), codec.decode)
    for used in (model, floating):
        for effort in (plan for plan in PLAN_NAMES if plan in used.plans):
            label = f"diffcodec, {effort}" + (", float" if used.arithmetic == "float" else "")
            add(label, partial(encode, image, used, effort), partial(decode, model=used))
    return rows


def network_share(image: Image.Image, model: Model, effort: str, repeats: int) -> float:
    """The network's part in the time of encoding."""
    spent = []

    def answered(*asked: Any) -> list[Answer]:
        answers, _, of_processor = timed(partial(answer, *asked))
        spent.append(of_processor)
        return answers

    with mock.patch("diffcodec.models.answering.answer", answered):
        whole = sum(timed(partial(encode, image, model, effort))[2] for _ in range(repeats))
    return sum(spent) / whole


def by_pixels(photo: Image.Image, model: Model, sides: tuple[int, ...], repeats: int) -> list[Row]:
    """Encoding and decoding of squares from the middle."""
    rows = []
    for side in tqdm(sides, "pixels", disable=None):
        image = middle(photo, side)
        data = encode(image, model)
        rows.append(
            {
                "pixels": side * side,
                "encode_seconds": seconds(partial(encode, image, model), repeats),
                "decode_seconds": seconds(partial(decode, data, model=model), repeats),
            }
        )
    return rows


def random_model(config: NetworkConfig, timesteps: int, folder: Path) -> Model:
    """An integer model of random weights: as fast as a trained one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ExpertDenoisers(config)
    size = (2, 3, CALIBRATION_SIDE, CALIBRATION_SIDE)
    images = torch.randint(0, 256, size, generator=torch.Generator().manual_seed(0)).float()
    plan = geometric_plan(timesteps)
    path = folder / f"{'-'.join(map(str, config.main.channels))}-{timesteps}.safetensors"
    path.write_bytes(serialise_model(network, images, {"default": plan}, {}))
    return load_model(path)


def by_steps(photo: Image.Image, steps: tuple[int, ...], folder: Path, repeats: int) -> list[Row]:
    """Encoding by plans of so many evaluations."""
    image, config = middle(photo, NETWORK_SIDE), one_network(channels=CHANNELS[1])
    rows = []
    for count in tqdm(steps, "steps", disable=None):
        model = random_model(config, count, folder)
        spent = seconds(partial(encode, image, model), repeats)
        rows.append({"steps": count, "encode_seconds": spent})
    return rows


def multiplications(network: ExpertDenoisers, side: int) -> int:
    """The multiplications of one evaluation, per pixel."""
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        network.posterior_x(torch.zeros(1, 3, side, side), torch.ones(1))
    return int(counter.get_total_flops() / 2 / (side * side))


def by_parameters(channels: tuple[tuple[int, ...], ...], folder: Path, repeats: int) -> list[Row]:
    """One evaluation of networks of different widths, in integers and in float32."""
    z = np.random.default_rng(0).normal(100, 50, (1, 3, NETWORK_SIDE, NETWORK_SIDE))
    rows = []
    for widths in tqdm(channels, "parameters", disable=None):
        config = one_network(channels=widths)
        model = random_model(config, 4, folder)
        sigma = model.plans["default"].levels[2]
        network = ExpertDenoisers(config)
        floating = FloatNetwork(network)
        with torch.inference_mode():
            real = seconds(partial(floating.posterior_x, torch.from_numpy(z), sigma), repeats)
        rows.append(
            {
                "channels": widths,
                "parameters": sum(p.numel() for p in network.parameters()),
                "multiplications_per_pixel": multiplications(network, NETWORK_SIDE),
                "integer_seconds": seconds(partial(model.posterior_x, z, sigma), repeats),
                "float_seconds": real,
            }
        )
    return rows


def memory(photo: Image.Image, sides: tuple[int, ...]) -> list[Row]:
    """Peak memory of encoding and decoding by the command line, each in a process of its own."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        source, coded, copy = (str(Path(name) / f) for f in ("in.png", "in.dfc", "out.png"))
        for side in tqdm(sides, "memory", disable=None):
            middle(photo, side).save(source)
            row: Row = {"pixels": side * side}
            for command in (["encode", "-f", source, coded], ["decode", "-f", coded, copy]):
                row[f"{command[0]}_mb"] = child_peak_mb("-m", "diffcodec", *command)
            rows.append(row)
    return rows


def linear_fit(x: list[float], y: list[float]) -> tuple[float, float]:
    """Intercept and slope of y = a + b x, errors weighed by y; neither is negative."""
    from scipy.optimize import nnls

    design = np.column_stack([np.ones(len(x)), x]) / np.array(y)[:, None]
    (intercept, slope), _ = nnls(design, np.ones(len(y)))
    return float(intercept), float(slope)


def fits(found: Row) -> Row:
    """Each kind of growth as a straight line."""
    lines = {
        "pixels": ("by_pixels", "pixels", "encode_seconds"),
        "steps": ("by_steps", "steps", "encode_seconds"),
        "multiplications": ("by_parameters", "multiplications_per_pixel", "integer_seconds"),
    }
    return {
        name: linear_fit([r[x] for r in found[rows]], [r[y] for r in found[rows]])
        for name, (rows, x, y) in lines.items()
    }


def codec_table(rows: list[Row], ours: str) -> Table:
    """Times as ratios to diffcodec's."""
    base = next(r for r in rows if r["name"] == ours)
    lines = []
    for r in rows:
        cells = [r["name"], str(r["bytes"])]
        for name in ("encode_seconds", "decode_seconds"):
            cells += [f"{r[name]:.3g}", f"{r[name] / base[name]:.3g}"]
        lines.append(cells)
    columns = ["codec", "bytes", "encoding, s", f"of {ours}", "decoding, s", f"of {ours}"]
    return Table("codecs", "Processor time of one image, lossless, one thread", columns, lines)


def parameter_table(rows: list[Row]) -> Table:
    """The table of one evaluation, by parameters."""
    lines = [
        [
            ", ".join(map(str, r["channels"])),
            f"{r['parameters'] / 1e6:.2f}",
            f"{r['multiplications_per_pixel'] / 1e3:.1f}",
            f"{1e6 * r['integer_seconds'] / NETWORK_SIDE**2:.2f}",
            f"{1e6 * r['float_seconds'] / NETWORK_SIDE**2:.2f}",
            f"{r['integer_seconds'] / r['float_seconds']:.2f}",
        ]
        for r in rows
    ]
    columns = ["channels", "million parameters", "thousand multiplications per pixel"]
    columns += ["integer, us per pixel", "float, us per pixel", "integer / float"]
    caption = f"One evaluation on {NETWORK_SIDE} x {NETWORK_SIDE} pixels, one thread"
    return Table("parameters", caption, columns, lines)


def memory_table(rows: list[Row]) -> Table:
    """The table of peak memory by pixels."""
    lines = [[str(r["pixels"]), str(r["encode_mb"]), str(r["decode_mb"])] for r in rows]
    columns = ["pixels", "encoding, MB", "decoding, MB"]
    return Table("memory", "Peak memory of a process, the interpreter included", columns, lines)


def outlook_table(found: Row) -> Table:
    """The table of what the fits and the multiplications mean for many images."""
    intercept, slope = found["fits"]["pixels"]
    per_pixel = found["multiplications_per_pixel"]
    lines = []
    for label, pixels in (("32 x 32", 1024), ("256 x 256", 2**16), ("768 x 512", 768 * 512)):
        core = intercept + slope * pixels
        work = per_pixel * pixels
        gpu = 2 * work / (GPU_TFLOPS * 1e12 * GPU_SHARE)
        hours = (f"{1e6 * s / 3600:.3g}" for s in (core, gpu))
        lines.append([label, f"{core:.3g}", next(hours), f"{work / 1e9:.3g}", next(hours)])
    columns = ["image", "s on this core", "core hours per million images"]
    columns += ["billion multiplications", "GPU hours per million images (estimate)"]
    caption = (
        f"What that means: {per_pixel / 1e3:.1f} thousand multiplications per pixel, of all the "
        "network's evaluations. The GPU is arithmetic, not a measurement: the network alone, "
        f"in batches, at {100 * GPU_SHARE:.0f} % of {GPU_TFLOPS:.0f} Tflop/s"
    )
    return Table("outlook", caption, columns, lines)


def draw(found: Row, folder: Path) -> str:
    """Three panels with their straight lines."""
    from bench import pictures

    drawn, axes = pictures.figure(13, 4, 3)
    panels: list[tuple[str, str, str, str, float]] = [
        ("by_pixels", "pixels", "encode_seconds", "pixels of the image", 1),
        ("by_steps", "steps", "encode_seconds", "network evaluations (steps)", 1),
        (
            *("by_parameters", "multiplications_per_pixel", "integer_seconds"),
            "thousand multiplications per pixel",
            1e-3,
        ),
    ]
    titles = ("encoding", f"encoding, {NETWORK_SIDE} x {NETWORK_SIDE}", "one evaluation")
    for ax, (rows, x, y, label, unit), fit, title in zip(
        axes, panels, found["fits"].values(), titles, strict=True
    ):
        xs = np.array([r[x] for r in found[rows]], np.float64)
        ax.plot(unit * xs, [r[y] for r in found[rows]], "o", color=pictures.OURS, label="measured")
        line = np.geomspace(xs.min(), xs.max(), 50)
        text = f"{fit[0]:.2g} s + {fit[1]:.2g} s x {x.replace('_', ' ')}"
        ax.plot(unit * line, fit[0] + fit[1] * line, color="#333333", lw=1, label=text)
        if rows == "by_parameters":
            for r in found[rows]:
                note = f"{r['parameters'] / 1e6:.1f} M"
                at = (unit * r[x], r[y])
                ax.annotate(note, at, (6, -10), textcoords="offset points", fontsize=8)
            floats = [r["float_seconds"] for r in found[rows]]
            ax.plot(unit * xs, floats, "s", ms=4, color="#777777", label="float32")
        ax.set(xscale="log", yscale="log", xlabel=label, ylabel="seconds, one thread")
        ax.set_title(title, loc="left")
        pictures.plain_ticks(ax.xaxis, (1, 2, 4))
        pictures.plain_ticks(ax.yaxis)
        ax.legend(frameon=False, fontsize=8)
    return pictures.save(drawn, folder, "speed")


def run(photo: Image.Image, model_name: str, side: int, quick: bool, out: Path) -> None:
    """Measure everything in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with chain_only():
            section = measure(photo, model_name, side, quick, out)
    finally:
        torch.set_num_threads(threads)
    section.publish(out / "speed")


def measure(photo: Image.Image, model_name: str, side: int, quick: bool, out: Path) -> Section:
    """All measurements, and what is said of them."""
    model, floating = load_model(model_name), load_model(model_name, "float")
    repeats = 1 if quick else 3
    sides = tuple(s for s in (SIDES[:-1] if quick else SIDES) if s <= min(photo.size))
    image = middle(photo, side)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found: Row = {
            "cpu": cpu(),
            "side": side,
            "codecs": compare_codecs(image, model, floating, repeats),
            "by_pixels": by_pixels(photo, model, sides, repeats),
            "by_steps": by_steps(photo, STEPS[:-1] if quick else STEPS, folder, repeats),
            "by_parameters": by_parameters(CHANNELS[:-1] if quick else CHANNELS, folder, repeats),
            "memory": memory(photo, (32, *sides[-1:])),
            "network_share": network_share(image, model, "default", repeats),
            "multiplications_per_pixel": model.info.multiplications()["default"],
        }
    found["fits"] = fits(found)
    write_json(out / "speed" / "speed.json", found)
    times: dict[str, Any] = {r["name"]: r for r in found["codecs"]}
    integer, real = times["diffcodec, default"], times["diffcodec, default, float"]
    text = (
        f"One thread of {found['cpu']}; model {identity(model)}. On the "
        f"square of {side} x {side} pixels the network takes {100 * found['network_share']:.0f} % "
        "of the time of encoding (every tile by the chain, WebP not tried); exact integers take "
        f"{integer['encode_seconds'] / real['encode_seconds']:.2f} times as long as float32."
    )
    tables = [
        codec_table(found["codecs"], "diffcodec, default"),
        parameter_table(found["by_parameters"]),
        outlook_table(found),
        memory_table(found["memory"]),
    ]
    picture = draw(found, out / "speed")
    command = f"python -m bench speed --side {side}" + (" --quick" if quick else "")
    return Section("Speed and memory", command, [text], tables, [picture])


@click.command()
@click.option("--image", default=EXAMPLES / "kodim23.png", type=click.Path(path_type=Path))
@click.option("--model", default=DEFAULT_MODEL, help="Name or path.")
@click.option(
    "--side", default=256, type=POSITIVE, show_default=True, help="Of the square in its middle."
)
@click.option("--quick", is_flag=True, help="Fewer sizes, one run of each.")
@click.option("--out", default=OUT, type=click.Path(path_type=Path), help="Folder of results.")
def main(image: Path, model: str, side: int, quick: bool, out: Path) -> None:
    """Times as ratios in one run; growth with pixels, steps and parameters; memory."""
    run(open_rgb(image), model, side, quick, out)


if __name__ == "__main__":
    main()
