"""What previews cost and show: real bytes of files, on crops of photographs.

python -m bench progressive previews     bits per pixel and PSNR at each timestep
python -m bench progressive exact        the cost of previews in an exact file, by where they end
python -m bench progressive times        seconds and memory of coding to a rate, at any size
python -m bench progressive cuts         PSNR of every beginning of a file
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from bench import POSITIVE, chain_only, check_side, identity
from bench.inputs import EXAMPLES, dataset
from bench.measuring import check_equal
from bench.overhead import measure
from bench.report import markdown
from bench.store import peak_memory_mb
from diffcodec import decode, encode, load_model
from diffcodec.arrays import Array
from diffcodec.codec.batches import progress_bar
from diffcodec.codec.decoding import decode_finest
from diffcodec.codec.previews import Previews
from diffcodec.container.reader import parse
from diffcodec.diffusion.color import from_domain, to_domain
from diffcodec.images.modes import psnr
from diffcodec.models.model import Model

Command = Callable[..., None]
LEAST_BEGINNING = 40  # bytes: the header and some of the first layer


def crops(data: Path, size: int, count: int) -> Iterator[Image.Image]:
    """Squares from random places of each photograph."""
    for name, image in dataset(data).images():
        rng = np.random.default_rng(1)
        check_side(image, size, name)
        for _ in range(count):
            y, x = (int(rng.integers(0, side - size + 1)) for side in (image.height, image.width))
            yield image.crop((x, y, x + size, y + size))


def coded(model: Model, effort: str, image: Image.Image) -> Array:
    """Bits per pixel of the steps, PSNR and noise of z_t, by timestep from T down. [T, 3]"""
    x = to_domain(np.asarray(image).transpose(2, 0, 1).astype(np.int32), model.color)
    multipliers = np.array(model.domain.noise_multipliers)[:, None, None]
    rows, bits = [], 0
    previews = Previews(model, "RGB", image.size, effort, progress_bar(0, False), exact=False)
    for sigma in reversed(model.plans[effort].levels):
        bits += sum(map(len, previews.encode_step(image)))
        noise = (previews.descent(previews.parts[0]).z - x) / (sigma * multipliers)
        shown = psnr(previews.picture(), image)
        rows.append((bits / x[0].size, shown, float(np.mean(noise**2))))
    return np.array(rows)


def sampled(model: Model, effort: str, image: Image.Image, seed: int) -> Array:
    """The same of exact samples, whose bits are the KL summed on the way. [T, 2]"""
    rgb = np.asarray(image).transpose(2, 0, 1).astype(np.int32)
    x = to_domain(rgb, model.color).astype(np.float64)
    rng, bits, above = np.random.default_rng(seed), 0.0, np.inf
    multipliers = np.array(model.domain.noise_multipliers)[:, None, None]
    rows, z = [], np.zeros(x.shape)
    mean, v = (
        np.array(a)[:, None, None] for a in (model.domain.center, np.square(model.domain.data_std))
    )
    for sigma in reversed(model.plans[effort].levels):
        s, r = sigma * multipliers, (sigma / above) ** 2
        fields = (r * z + (1 - r) * x, r * z + (1 - r) * mean, s * s * (1 - r), (1 - r) ** 2 * v)
        q, p, variance, excess = (np.broadcast_to(a, x.shape) for a in fields)
        z, above = q + np.sqrt(variance) * rng.normal(size=x.shape), sigma
        bits += measure(q, p, variance, excess, z).kl
        mean, v = (a[0] for a in model.posterior_x(z[None], sigma))
        shown = np.clip(from_domain(np.rint(mean).astype(np.int32), model.color), 0, 255)
        rows.append((bits / x[0].size, psnr(shown, rgb)))
    return np.array(rows)


@click.group()
def main() -> None:
    """Choose one."""
    torch.set_num_threads(1)


def model_options(command: Command) -> Command:
    """Options of what to code with."""
    command = click.option("--effort", default="default")(command)
    return click.option("--model", default="photo", help="Name or path.")(command)


def crop_options(command: Command) -> Command:
    """Options of what to code; see :func:`crops`."""
    path = click.Path(path_type=Path)
    command = click.option("--data", default=EXAMPLES, type=path, help="Photographs.")(command)
    command = click.option("--count", default=2, type=POSITIVE, help="Crops of each photograph.")(
        command
    )
    return click.option("--size", default=128, type=POSITIVE, help="Of the crops.")(command)


@main.command()
@model_options
@crop_options
def previews(model: str, effort: str, size: int, count: int, data: Path) -> None:
    """Each timestep of lossy files: without their 25 bytes of overhead and 6 for each layer."""
    used = load_model(model)
    effort = used.info.lossy_plan(effort)
    real, ideal = [], []
    for i, image in enumerate(crops(data, size, count)):
        real.append(coded(used, effort, image))
        ideal.append(sampled(used, effort, image, i))
    rows, exact = np.mean(real, 0), np.mean(ideal, 0)
    click.echo(f"{identity(used)}, {len(real)} crops of {size}, {effort}\n")
    columns = ["timestep", "sigma", "bpp", "PSNR", "noise of z"]
    levels, lines = used.plans[effort].levels, []
    for t, row in zip(range(len(levels), 0, -1), rows, strict=True):
        ratio = row[0] / np.exp(np.interp(row[1], exact[:, 1], np.log(exact[:, 0])))
        figures = (f"{row[0]:.3f}", f"{row[1]:.2f}", f"{row[2]:.3f}", f"{ratio:.2f}")
        lines.append([str(t), f"{levels[t - 1]:g}", *figures])
    click.echo(markdown([*columns, "bits by exact sampling at this PSNR"], lines))


@main.command()
@model_options
@crop_options
@click.option("--ends", default="6,7,8,9", help="Timesteps at which previews end.")
@chain_only()  # what the chain costs is to be seen also where WebP would win
def exact(model: str, effort: str, size: int, count: int, data: Path, ends: str) -> None:
    """Exact files with previews over plain ones, in bits per dimension; without fallback coders."""
    used = load_model(model)
    timesteps = [int(t) for t in ends.split(",")]
    rows = []
    for image in crops(data, size, count):
        dimensions = 3 * image.width * image.height
        start = time.perf_counter()
        plain = len(encode(image, used, effort))
        seconds = [time.perf_counter() - start]
        row = [8 * plain / dimensions]
        for t in timesteps:
            start = time.perf_counter()
            file = encode(image, used, effort, progressive=True, timestep=t)
            seconds.append(time.perf_counter() - start)
            layers = parse(file).layers
            assert layers is not None
            check_equal(image, decode(file, model=used))
            row += [
                8 * (len(file) - plain) / dimensions,
                8 * sum(len(part) for payload in layers.payloads for part in payload) / dimensions,
            ]
        rows.append(row + seconds)
    mean = np.mean(rows, 0)
    click.echo(f"{identity(used)}, {len(rows)} crops of {size}, {effort}\n")
    click.echo(f"plain: {mean[0]:.4f} bpd, {mean[-len(timesteps) - 1]:.1f} s\n")
    columns = ["previews end at", "sigma", "cost in bpd", "of previews in bpd", "encoded in s"]
    lines = []
    for i, t in enumerate(timesteps):
        cost, of_previews, seconds = mean[1 + 2 * i], mean[2 + 2 * i], mean[i - len(timesteps)]
        figures = (f"{cost:+.4f}", f"{of_previews:.3f}", f"{seconds:.1f}")
        lines.append([str(t), f"{used.plans[effort].levels[t - 1]:g}", *figures])
    click.echo(markdown(columns, lines))


@main.command()
@model_options
@click.option("--size", nargs=2, type=POSITIVE, default=(768, 512), help="Of the image.")
@click.option("--bpp", type=float, help="Bits per pixel to code to.")
@click.option("--timestep", type=POSITIVE, help="To code to instead.")
def times(
    model: str, effort: str, size: tuple[int, int], bpp: float | None, timestep: int | None
) -> None:
    """Each photograph, cut or repeated to a size; memory is the process's peak so far."""
    used = load_model(model)
    encode(Image.new("RGB", (32, 32)), used, effort, timestep=1)  # the first call sets up torch
    click.echo(f"{identity(used)}, {size[0]} x {size[1]}, {effort}\n")
    columns, lines = ["photograph", "bpp", "encoded in CPU s", "MB", "decoded in CPU s", "MB"], []
    for path in sorted(EXAMPLES.glob("*.png")):
        with Image.open(path) as opened:
            samples = np.asarray(opened.convert("RGB"))
        more = [(0, max(0, n - have)) for n, have in zip(size[::-1], samples.shape, strict=False)]
        samples = np.pad(samples, (*more, (0, 0)), "wrap")[: size[1], : size[0]]
        image = Image.fromarray(samples)
        start = time.process_time()
        data = encode(image, used, effort, bpp=bpp, timestep=timestep)
        row = [path.name, f"{8 * len(data) / (size[0] * size[1]):.3f}"]
        row += [f"{time.process_time() - start:.2f}", str(peak_memory_mb())]
        start = time.process_time()
        decode(data, model=used)
        lines.append([*row, f"{time.process_time() - start:.2f}", str(peak_memory_mb())])
    click.echo(markdown(columns, lines))


@main.command()
@model_options
@crop_options
@click.option(
    "--step",
    default=1.02,
    type=click.FloatRange(min=1, min_open=True),
    help="From one beginning to the next.",
)
def cuts(model: str, effort: str, size: int, count: int, data: Path, step: float) -> None:
    """Beginnings of a lossy file of each crop: the timestep that all of it came to, PSNR."""
    used = load_model(model)
    for number, image in enumerate(crops(data, size, count)):
        file = encode(image, used, effort, timestep=1)
        sizes = [len(file)]
        while (shorter := int(sizes[-1] / step)) > LEAST_BEGINNING:
            sizes.append(shorter)
        click.echo(f"\ncrop {number}, {len(file)} bytes\n\nbytes timestep PSNR change")
        before = 0.0
        for bytes_there in reversed(sizes):
            t, shown = decode_finest(file[:bytes_there], model=used, allow_partial=True)
            quality = psnr(shown, image)
            click.echo(f"{bytes_there} {t} {quality:.3f} {quality - before:+.3f}")
            before = quality


if __name__ == "__main__":
    main()
