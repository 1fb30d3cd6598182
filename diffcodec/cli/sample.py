"""The commands sample, forward, denoise, interpolate, inpaint and enlarge."""

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from diffcodec.cli.encode import read_picture
from diffcodec.cli.options import (
    PATH,
    SEED,
    Finite,
    Option,
    device_option,
    force_option,
    parse_numbers,
    quiet_option,
    together,
    used_model_option,
)
from diffcodec.cli.program import cli, examples
from diffcodec.cli.running import CommandError, check_target, failing_as, printable, say
from diffcodec.limits import DEFAULT_LIMITS
from diffcodec.models.file import DEFAULT_MODEL
from diffcodec.system.files import STANDARD, write_file

if TYPE_CHECKING:
    from PIL import Image

    from diffcodec.models.model import Model

MOST_NOISE = 10_000  # grey levels: nothing is left of an image long before
seed_option = click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    metavar="N",
    help="Of the noise: the same image for the same seed, here.",
)
steps_option = click.option(
    "--steps",
    type=click.IntRange(min=2),
    default=50,
    show_default=True,
    metavar="N",
    help="Noise levels on the way down.",
)
out_option = click.option(
    "--out", type=PATH, metavar="FILE", required=True, help="Where to write the picture (.png)."
)
sigma_option = click.option(
    "--sigma",
    type=Finite(0, MOST_NOISE, min_open=True),
    required=True,
    metavar="S",
    help="Noise in grey levels.",
)
resamplings_option = click.option(
    "--resamplings",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="How often each step is taken, so that the new part comes to fit the known one.",
)
_written: tuple[Option, ...] = (out_option, force_option, quiet_option)
_drawn: tuple[Option, ...] = (used_model_option, steps_option, seed_option, device_option)
image_argument = click.argument("image", type=PATH, metavar="IMAGE")


def parse_size(text: str) -> tuple[int, int]:
    """Width and height: WxH, or one number for both."""
    found = re.fullmatch(r"([0-9]+)(?:x([0-9]+))?", text)
    size = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 0 < min(size) <= max(size) <= 8192:
        raise ValueError(f"{text!r} is no WxH with sides of 1 to 8192.")
    return size


def parse_levels(text: str) -> tuple[int, ...]:
    """Noise levels between commas."""
    levels = parse_numbers(text)
    if max(levels) > MOST_NOISE:
        raise ValueError(f"{max(levels)} is above {MOST_NOISE}.")
    return levels


def _check(out: str, force: bool, model: str | None, *sources: str) -> None:
    """Check the output, before anything is computed."""
    if out != STANDARD and not out.lower().endswith(".png"):
        raise click.UsageError(f"--out {out}: expected a name that ends with .png, or -")
    with failing_as(out):
        for source in sources or (STANDARD,):
            check_target(out, source, force, model)


def _load(name: str | None, device: str) -> "Model":
    """A model in float arithmetic: it answers at any noise level."""
    name = name or DEFAULT_MODEL
    with failing_as(name):
        from diffcodec.models.model import load_model

        return load_model(name, "float", device)


def _read(path: str) -> "Image.Image":
    """Read an image as RGB, or RGBA if anything of it may be transparent."""
    with failing_as(path):
        from diffcodec.images.modes import in_8_bits

        image = read_picture(path, DEFAULT_LIMITS)
        return in_8_bits(image, "RGBA" if image.has_transparency_data else "RGB")


def _read_mask(path: str) -> "Image.Image":
    """Read a mask as L; what is transparent of it is black."""
    from PIL import Image

    mask = _read(path).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", mask.size, "black"), mask).convert("L")


def _write(
    images: "Sequence[Image.Image]", out: str, force: bool, quiet: bool, source: str = STANDARD
) -> None:
    """Write a picture, or several side by side, with the permissions of what it is made from."""
    import numpy as np

    from diffcodec.sampling.draw import grid

    shown = images[0]
    if len(images) > 1:
        shown = grid(np.stack([np.asarray(image) for image in images]), len(images))
    stream = io.BytesIO()
    shown.save(stream, "PNG")
    with failing_as(out):
        write_file(out, stream.getvalue(), force, source)
    if out != STANDARD and not quiet:
        say(f"{printable(out)}: {shown.width} x {shown.height}")


@cli.command(
    short_help="Draw images from a model.",
    epilog=examples("diffcodec sample --model cifar10 --size 32 -n 64 --out samples.png"),
)
@used_model_option
@click.option(
    "-n",
    "--images",
    type=click.IntRange(1, 4096),
    default=16,
    show_default=True,
    metavar="N",
    help="How many.",
)
@click.option(
    "--size",
    type=parse_size,
    default="64",
    show_default=True,
    metavar="WxH",
    help="Of each, in pixels.",
)
@click.option(
    "--sampler",
    type=click.Choice(["ancestral", "ddim", "heun"]),
    default="ancestral",
    show_default=True,
    help="DDPM's, DDIM's, or the probability-flow ODE by Heun's method.",
)
@click.option(
    "--eta",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    metavar="E",
    help="Of ddim: how much of DDPM's noise.",
)
@click.option(
    "--corrector",
    type=click.IntRange(0, 100),
    default=0,
    show_default=True,
    metavar="N",
    help="Langevin steps at each noise level.",
)
@click.option(
    "--class",
    "label",
    type=click.IntRange(min=0),
    metavar="K",
    help="Of all images, of a model of classes.",
)
@click.option(
    "--guidance",
    type=Finite(min=0),
    default=1.0,
    show_default=True,
    metavar="W",
    help="Scale of classifier-free guidance; 1 for none.",
)
@steps_option
@seed_option
@device_option
@together(*_written)
def sample(
    *,
    model: str | None,
    images: int,
    size: tuple[int, int],
    sampler: str,
    eta: float,
    corrector: int,
    label: int | None,
    guidance: float,
    steps: int,
    seed: int,
    device: str,
    out: str,
    force: bool,
    quiet: bool,
) -> None:
    """Draw images from a model, and write them side by side.

    The image at place i has the seed SEED + i, whatever --images is. A model that codes in phases
    is drawn phase by phase by ancestral; the other samplers take its posterior alone.
    """
    if eta and sampler != "ddim":
        raise click.UsageError("--eta is of --sampler ddim; give both")
    if guidance != 1 and label is None:
        raise click.UsageError("--guidance is towards a --class; give both")
    _check(out, force, model)
    used = _load(model, device)
    from PIL import Image

    from diffcodec.sampling import draw

    with failing_as(model or DEFAULT_MODEL):
        drawn = draw.sample(
            used,
            images,
            size,
            steps=steps,
            sampler=sampler,
            eta=eta,
            corrector_steps=corrector,
            seed=seed,
            label=label,
            guidance=guidance,
            progress=not quiet,
        )
    _write([draw.grid(drawn) if images > 1 else Image.fromarray(drawn[0])], out, force, quiet)


@cli.command(
    short_help="Show an image at rising noise levels.",
    epilog=examples("diffcodec forward photo.png --out strip.png"),
)
@image_argument
@used_model_option
@click.option(
    "--levels",
    type=parse_levels,
    default="2,10,30,100,300",
    show_default=True,
    metavar="S,S,...",
    help="Noise levels in grey levels.",
)
@seed_option
@together(*_written)
def forward(
    *,
    image: str,
    model: str | None,
    levels: tuple[int, ...],
    seed: int,
    out: str,
    force: bool,
    quiet: bool,
) -> None:
    """Show the forward process: an image with more and more of one noise, side by side.

    The noise is that of the model's colour domain.
    """
    _check(out, force, model, image)
    used, source = _load(model, "cpu"), _read(image)
    from diffcodec.sampling import edits

    _write([source, *edits.forward(used, source, levels, seed)], out, force, quiet, image)


@cli.command(
    short_help="Take Gaussian noise out of an image.",
    epilog=examples("diffcodec denoise noisy.png --sigma 25 --out clean.png"),
)
@image_argument
@used_model_option
@sigma_option
@device_option
@together(*_written)
def denoise(
    *,
    image: str,
    model: str | None,
    sigma: float,
    device: str,
    out: str,
    force: bool,
    quiet: bool,
) -> None:
    """Take Gaussian noise out of an image: the mean of all images that it can be of.

    SIGMA is of the noise in each of red, green and blue. One evaluation of the network.
    """
    _check(out, force, model, image)
    used, source = _load(model, device), _read(image)
    from diffcodec.sampling import edits

    with failing_as(image):
        _write([edits.denoise(used, source, sigma)], out, force, quiet, image)


@cli.command(
    short_help="Show what lies between two images.",
    epilog=examples("diffcodec interpolate a.png b.png --sigma 100 --out between.png"),
)
@click.argument("a", type=PATH, metavar="A")
@click.argument("b", type=PATH, metavar="B")
@click.option(
    "-n",
    "--images",
    type=click.IntRange(2, 64),
    default=7,
    show_default=True,
    metavar="N",
    help="How many, both ends included.",
)
@sigma_option
@together(*_drawn)
@together(*_written)
def interpolate(
    *,
    a: str,
    b: str,
    images: int,
    sigma: float,
    model: str | None,
    steps: int,
    seed: int,
    device: str,
    out: str,
    force: bool,
    quiet: bool,
) -> None:
    """Show what lies between two images of one size, in the latents of a noise level.

    The higher SIGMA, the freer: at the least that the model takes, 2.8 of the default one, the
    images are blended, at hundreds little is left of them.
    """
    _check(out, force, model, a, b)
    used, ends = _load(model, device), (_read(a), _read(b))
    from diffcodec.sampling import edits

    options: dict[str, Any] = {"images": images, "steps": steps, "seed": seed}
    with failing_as(b):
        shown = edits.interpolate(used, *ends, sigma=sigma, progress=not quiet, **options)
    _write(shown, out, force, quiet, a)


@cli.command(
    short_help="Draw what is missing of an image.",
    epilog=examples("diffcodec inpaint photo.png mask.png --out whole.png"),
)
@image_argument
@click.argument("mask", type=PATH, metavar="MASK")
@resamplings_option
@together(*_drawn)
@together(*_written)
def inpaint(
    *,
    image: str,
    mask: str,
    resamplings: int,
    model: str | None,
    steps: int,
    seed: int,
    device: str,
    out: str,
    force: bool,
    quiet: bool,
) -> None:
    """Draw what is missing of an image, to fit the rest: invented, not recovered.

    MASK is an image of the same size, white where IMAGE is missing. What is known stays as it is,
    with its alpha; what is drawn is opaque.
    """
    _check(out, force, model, image, mask)
    used, source, missing = _load(model, device), _read(image), _read_mask(mask)
    import numpy as np

    from diffcodec.sampling import edits

    if not np.greater(np.asarray(missing), 127).any():
        with failing_as(mask):
            raise CommandError("no part of it is white; make white what is missing")
    with failing_as(mask):
        filled = edits.inpaint(
            used,
            source,
            np.asarray(missing) > 127,
            steps=steps,
            resamplings=resamplings,
            seed=seed,
            progress=not quiet,
        )
    _write([filled], out, force, quiet, image)


@cli.command(
    short_help="Draw a larger image of a small one.",
    epilog=examples("diffcodec enlarge small.png --factor 2 --out large.png"),
)
@image_argument
@click.option(
    "--factor",
    type=click.IntRange(2, 16),
    default=2,
    show_default=True,
    metavar="N",
    help="How often larger each side is to be.",
)
@resamplings_option
@together(*_drawn)
@together(*_written)
def enlarge(
    *,
    image: str,
    factor: int,
    resamplings: int,
    model: str | None,
    steps: int,
    seed: int,
    device: str,
    out: str,
    force: bool,
    quiet: bool,
) -> None:
    """Draw a larger image whose means over squares are the pixels of a small one.

    The detail is invented.
    """
    _check(out, force, model, image)
    used, source = _load(model, device), _read(image)
    from diffcodec.sampling import edits

    options: dict[str, Any] = {"steps": steps, "resamplings": resamplings, "seed": seed}
    with failing_as(image):
        large = edits.enlarge(used, source, factor, progress=not quiet, **options)
    _write([large], out, force, quiet, image)
