"""Images drawn from a model, for Python and the command sample."""

from math import isfinite
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffcodec.errors import UnsupportedError
from diffcodec.limits import Limits
from diffcodec.models.file import DEFAULT_MODEL
from diffcodec.models.model import Model, loaded
from diffcodec.sampling.denoiser import Denoiser, Guidance, Noise, to_images
from diffcodec.sampling.samplers import SAMPLERS, draw_prior, go_down
from diffcodec.values import flag, integer, number, optional_integer, several_integers

MOST_SEED, MOST_STEPS = 1 << 63, 10_000


def sample(
    model: str | PathLike[str] | Model = DEFAULT_MODEL,
    n: int = 16,
    size: tuple[int, int] = (64, 64),
    *,
    steps: int | None = None,
    sampler: str = "ancestral",
    eta: float = 0.0,
    corrector_steps: int = 0,
    seed: int = 0,
    label: int | None = None,
    guidance: float = 1.0,
    progress: bool = False,
    device: str | None = None,
    **more: Any,
) -> NDArray[np.uint8]:
    """Draw images from a model.

    Args:
        model: a name or path, which is loaded in float arithmetic, or a loaded model; an integer
            one answers at the levels of its plans alone.
        n: how many images.
        size: width and height, any.
        steps: noise levels on the way down; 50, or the plan with the most of an integer model.
        sampler: "ancestral" (DDPM), "ddim", or "heun" (the probability-flow ODE).
        eta: of "ddim": 0 for none, 1 for as much noise as DDPM.
        corrector_steps: by Langevin dynamics at each level.
        seed: of the first image; of the next one more. The same images for the same seeds, sampler
            and machine, whatever n is.
        label: class of all images, of a model of classes.
        guidance: scale of classifier-free guidance, 1 for none.
        progress: show a bar on a terminal.
        device: where the model computes; see :func:`diffcodec.load_model`.
        more: ``classifier`` and ``classifier_scale`` of
            :class:`~diffcodec.sampling.denoiser.Guidance`.

    Returns:
        RGB, uint8 [n, height, width, 3].

    Raises:
        DiffcodecError: if there is no such model, sampler or class, or the numbers are no sizes.
    """
    n, (width, height) = integer("n", n), _two_sides(size)
    seed, label = integer("seed", seed), optional_integer("label", label)
    if min(n, width, height) < 1 or not 0 <= seed <= MOST_SEED - n:
        found = f"{n} images of {width} x {height}, seed {seed}"
        raise UnsupportedError(f"{found}: expected sizes above 0, seeds below {MOST_SEED}")
    Limits().check_image(width, height * n)
    _check_way(sampler, steps, corrector_steps, eta)
    _check_guidance(label, guidance, **more)
    used = loaded(model, "float", device)
    denoiser = Denoiser(used, Guidance(label, guidance, **more))
    levels, noise = denoiser.levels(steps), Noise(seed, n)
    z = draw_prior(denoiser, levels[0], noise(height, width))
    options: dict[str, Any] = {"sampler": sampler, "eta": eta, "corrector_steps": corrector_steps}
    x = go_down(denoiser, z, levels, noise, **options, progress=flag("progress", progress))
    return np.stack([np.asarray(image) for image in to_images(x, used)])


def _two_sides(size: Any) -> tuple[int, ...]:
    sides = several_integers("size", size, "width and height")
    if len(sides) != 2:
        raise UnsupportedError(f"size {size}: expected width and height")
    return sides


def _check_way(sampler: str, steps: int | None, corrector_steps: int, eta: float) -> None:
    if sampler not in SAMPLERS:
        raise UnsupportedError(f"sampler {sampler!r}: expected one of {', '.join(SAMPLERS)}")
    few = optional_integer("steps", steps), integer("corrector_steps", corrector_steps)
    if not 2 <= (few[0] or 2) <= MOST_STEPS or steps == 0 or not 0 <= few[1] <= MOST_STEPS:
        raise UnsupportedError(
            f"{steps} steps, {corrector_steps} corrector steps: expected 2 to {MOST_STEPS}, and "
            f"0 to {MOST_STEPS}"
        )
    if not 0 <= (number("eta", eta) or 0) <= 1:
        raise UnsupportedError(f"eta {eta}: expected 0 to 1")
    if eta and sampler != "ddim":
        raise UnsupportedError(f"eta {eta} of the sampler {sampler!r}: only 'ddim' has one")


def _check_guidance(label: int | None, guidance: float, **more: Any) -> None:
    for name, value in {"guidance": guidance, **more}.items():
        if name != "classifier" and not isfinite(number(name, value) or 0):
            raise UnsupportedError(f"{name} {value}: expected a finite number")
    if label is None and guidance != 1:
        raise UnsupportedError(f"guidance {guidance} without a class: give label, or leave it out")


def grid(images: NDArray[np.uint8], columns: int | None = None, gap: int = 2) -> Image.Image:
    """Images side by side in rows.

    Args:
        images: [n, height, width, 3], or 4 with alpha.
        columns: how many in a row; as many as make a square if it is not given.
        gap: pixels between them, white.
    """
    n, height, width, channels = images.shape
    columns = columns or int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    sheet = Image.new("RGB" if channels == 3 else "RGBA", size, "white")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        sheet.paste(Image.fromarray(image), (column * (width + gap), row * (height + gap)))
    return sheet
