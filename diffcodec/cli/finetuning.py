"""Fine-tuning for pack: a model made for the images, and whether it pays for itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffcodec.errors import DiffcodecError

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLED = 64  # images that both models code
LARGEST_CROP, CROP_MULTIPLE = 64, 8
SMALL_CROP, BATCH, SMALL_BATCH = 32, 16, 64  # crops in each update, and of small ones


@dataclass(frozen=True)
class Comparison:
    """What a fine-tuned model saves on a sample, and what it takes.

    Attributes:
        images: of the whole set.
        saved_bytes: of an image, in the mean.
        model_bytes: of the model's file.
    """

    images: int
    saved_bytes: float
    model_bytes: int

    @property
    def pays_from(self) -> float:
        """How many images it takes for the model to pay for itself."""
        return self.model_bytes / self.saved_bytes if self.saved_bytes > 0 else math.inf

    @property
    def pays(self) -> bool:
        """Whether there are so many."""
        return self.images >= self.pays_from

    def describe(self) -> str:
        """The comparison in a line."""
        if self.saved_bytes <= 0:
            return "fine-tuning saves nothing on these images; coded by the model as it was"
        saving = (
            f"fine-tuning saves {8 * self.saved_bytes:.0f} bits an image, and its model takes "
            f"{self.model_bytes} bytes: it pays from {math.ceil(self.pays_from)} images on"
        )
        if self.pays:
            return f"{saving}; here are {self.images}, so the model goes into the archive"
        return f"{saving}; here are {self.images}, so they are coded by the model as it was"


def finetune(
    data: str, init: str, minutes: float, folder: Path, side: int, quiet: bool, device: str
) -> Path:
    """Train a model on a folder or an array of images.

    Args:
        data: the images.
        init: the model to start from.
        minutes: of training.
        folder: of the run; it stays.
        side: the shorter one of most images.
        quiet: whether to say nothing meanwhile.
        device: where to train.

    Raises:
        DiffcodecError: there is a run in the folder, or training fails.
    """
    from diffcodec.models.model import load_weights
    from diffcodec.training.run import train

    multiple = math.lcm(CROP_MULTIPLE, load_weights(init)[0].multiple)
    crop = min(max(LARGEST_CROP, multiple), side) // multiple * multiple
    if not crop:
        raise DiffcodecError(
            f"images of {side} pixels are too small to train on, expected {multiple} or more; "
            "leave out --finetune"
        )
    batch = SMALL_BATCH if crop <= SMALL_CROP else BATCH
    settings: dict[str, Any] = {"crop": crop, "batch": batch, "augment": "mirror"}
    settings["device"] = device
    return train(data, folder, init=init, minutes=minutes, quiet=quiet, **settings)


def compare(
    images: "Sequence[Image]",
    count: int,
    model: str,
    finetuned: Path,
    effort: str,
    group: int,
    adapt: bool,
    device: str,
) -> Comparison:
    """What a model saves on a sample of so many images, in groups as the archive's.

    Raises:
        DiffcodecError: the images cannot be coded.
    """
    from diffcodec.archive.coding import encode_images
    from diffcodec.archive.writing import group_room
    from diffcodec.codec.encoding import load_planned

    kinds: dict[Any, list[Image]] = {}
    for image in images:
        kinds.setdefault((image.mode, image.size), []).append(image)
    groups = []
    for (_, size), kind in kinds.items():
        room = group_room(size, group)
        groups += [kind[i : i + room] for i in range(0, len(kind), room)]

    def coded_bytes(name: str | Path) -> int:
        used = load_planned(name, effort, device)
        return sum(len(encode_images(each, used, effort, adapt=adapt)) for each in groups)

    saved = (coded_bytes(model) - coded_bytes(finetuned)) / len(images)
    return Comparison(count, saved, finetuned.stat().st_size)
