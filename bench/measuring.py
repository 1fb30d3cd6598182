"""What benchmarks of whole data sets share: options, names of results, and times of files."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from bench import POSITIVE
from bench.inputs import Dataset, dataset
from bench.report import OUT
from bench.store import Row, pixels_digest, source_digest
from diffcodec import decode, encode, load_model
from diffcodec.coding.ans import Stack
from diffcodec.coding.bits_back import check_seed
from diffcodec.models.file import DEFAULT_MODEL
from diffcodec.models.model import Model

Result = TypeVar("Result")

SMALL_SIDE = 64  # images below it are also compared by payload


class Coded(NamedTuple):
    """A file, what it decodes to, and what both took."""

    data: bytes
    shown: NDArray[np.uint8]
    encode_seconds: float
    decode_seconds: float

    def seconds(self) -> Row:
        """The seconds that both took, as fields of a row."""
        return {"encode_seconds": self.encode_seconds, "decode_seconds": self.decode_seconds}


def check_equal(
    image: Image.Image | NDArray[np.uint8], back: Image.Image | NDArray[np.uint8], label: str = ""
) -> None:
    """Hold what was decoded against what was coded, modes too where both have one.

    Raises:
        click.ClickException: if it is other; a label stands before what it says.
    """
    modes = {each.mode for each in (image, back) if isinstance(each, Image.Image)}
    if len(modes) > 1 or not np.array_equal(np.asarray(image), np.asarray(back)):
        said = "the decoded image differs from the original"
        raise click.ClickException(f"{label}: {said}" if label else said)


def timed(work: Callable[[], Result]) -> tuple[Result, float, float]:
    """What work comes to, and the seconds that it takes by the clock and of the processor."""
    start, start_of_processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - start, time.process_time() - start_of_processor


def code(
    encode: Callable[[], bytes], decode: Callable[[bytes], NDArray[np.uint8] | Image.Image]
) -> Coded:
    """Encode and decode once, by the clock."""
    data, encode_seconds, _ = timed(encode)
    decoded, decode_seconds, _ = timed(lambda: decode(data))
    return Coded(data, np.asarray(decoded), encode_seconds, decode_seconds)


def code_exactly(
    label: str,
    image: Image.Image,
    encode: Callable[[], bytes],
    decode: Callable[[bytes], NDArray[np.uint8] | Image.Image],
) -> Coded:
    """The same of a file without loss.

    Raises:
        click.ClickException: if another image comes back.
    """
    coded = code(encode, decode)
    check_equal(image, coded.shown, label)
    return coded


def code_image(model: Model, effort: str, image: Image.Image, draws: int = 1) -> Coded:
    """A file of ours without loss, decoded and found equal."""
    return code_exactly(
        "diffcodec",
        image,
        lambda: encode(image, model, effort, draws=draws),
        lambda data: decode(data, model=model),
    )


@contextmanager
def dips() -> Iterator[list[int]]:
    """Words of the seed that the chains had used up which are decoded meanwhile, one by one."""
    found: list[int] = []

    def counted(stack: Stack, *rest: Any) -> None:
        check_seed(stack, *rest)
        found.append(stack.height - 1)

    with mock.patch("diffcodec.coding.bits_back.check_seed", counted):
        yield found


def described_images(data: Dataset) -> Iterator[tuple[Row, Image.Image]]:
    """Each image, with its name, size and digest; shows progress."""
    for name, image in tqdm(data.images(), data.name, len(data), disable=None):
        size = {"width": image.width, "height": image.height}
        yield {"name": name} | size | {"digest": pixels_digest(image)}, image


def our_key(model: Model, effort: str) -> Row:
    """What a stored row of ours depends on, beside the image."""
    by = {"model": model.info.id.hex(), "source": source_digest()}
    return {"codec": "diffcodec", "effort": effort} | by


def measuring_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of which images, model and efforts, and where results go.

    The command is given the images and the model themselves, as ``data`` and ``model``.
    """

    @wraps(command)
    def measure_given(
        data: Path,
        limit: int | None,
        crop: int | None,
        model: str,
        **more: Any,
    ) -> None:
        command(data=dataset(data, limit, crop), model=load_model(model), **more)

    options = (
        click.option(
            "--data", required=True, type=click.Path(path_type=Path), help="Folder or .npy."
        ),
        click.option("--model", default=DEFAULT_MODEL, help="Name or path."),
        click.option(
            "--effort",
            "efforts",
            multiple=True,
            default=("default",),
            help="More than one: repeat it.",
        ),
        click.option(
            "--crop",
            type=POSITIVE,
            help="Take the central square of so many pixels a side of each image.",
        ),
        click.option("--limit", type=POSITIVE, help="Only the first so many images."),
        click.option(
            "--out", default=OUT, type=click.Path(path_type=Path), help="Folder of results."
        ),
    )
    decorated: Callable[..., None] = measure_given
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


def our_name(effort: str) -> str:
    """The name of the results of an effort."""
    return f"diffcodec-{effort}"


def our_label(effort: str) -> str:
    """The label of an effort in tables and pictures."""
    return f"diffcodec, {effort}"


def run_options(model: Model, efforts: Sequence[str]) -> str:
    """Model and efforts as on the command line; nothing for the defaults."""
    options = [] if model.info.name == DEFAULT_MODEL else [f" --model {model.info.name}"]
    if tuple(efforts) != ("default",):
        options += [f" --effort {effort}" for effort in efforts]
    return "".join(options)


def bits_per_dimension(rows: list[Row], images: list[Row], less: str | None = None) -> list[float]:
    """The bits per dimension of each image; ``less`` names bytes to leave out."""
    return [
        8 * (r["bytes"] - (r[less] if less else 0)) / (3 * i["width"] * i["height"])
        for r, i in zip(rows, images, strict=True)
    ]


def is_small(images: list[Row]) -> bool:
    """Whether container bytes weigh so much that payloads are compared too."""
    return any(min(i["width"], i["height"]) < SMALL_SIDE for i in images)
