"""Crops of images in batches: what a run trains on, is validated on and is quantised by."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int16, Int64, Integer
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from diffcodec.diffusion.color import to_domain
from diffcodec.errors import DiffcodecError
from diffcodec.training.data import Source, find_images, list_images, read_rgb, split_held_out
from diffcodec.training.log import say

AUGMENTATIONS = ("all", "mirror", "none")  # left and right; with "all" also rows and columns

CALIBRATION_CROPS = 64
MOST_NAMED = 20  # of the images that cannot be read


class Crop(NamedTuple):
    """Where a crop lies in an image, by its number, and what is exchanged in it."""

    image: int
    top: int
    left: int
    mirror: bool
    transpose: bool


class CropSampler:
    """Random crops, the same for the same seed and step.

    ``augment``, one of ``AUGMENTATIONS``, says what is exchanged at random, with probability 1/2.
    Image files are kept decoded in memory up to ``memory_bytes``; the others are read at each use.
    Images of arrays stay where they are. Files that cannot be read are left out, and images that
    are too small; that is said, unless it is to be ``quiet``.
    """

    def __init__(
        self,
        paths: Sequence[Source],
        crop: int,
        augment: str = "all",
        memory_bytes: int = 6 << 30,
        labels: Sequence[int] | None = None,
        quiet: bool = False,
    ):
        self.crop = crop
        self.augment = augment
        self.image_labels = labels
        self.paths = list_images(paths)
        self.files = {i: path for i, path in enumerate(self.paths) if isinstance(path, Path)}
        self.images = [None if isinstance(image, Path) else image for image in self.paths]
        self.sizes = np.array([(0, 0) if i is None else i.shape[1:] for i in self.images], np.int64)
        used, damaged = 0, []
        hide = None if self.files and not quiet else True
        with ThreadPoolExecutor(2) as pool:
            decoded = tqdm(
                pool.map(_read, self.files.values()), "images", len(self.files), disable=hide
            )
            for i, image in zip(self.files, decoded, strict=True):
                if isinstance(image, DiffcodecError):
                    damaged.append(image)
                    continue
                self.sizes[i] = image.shape[1:]
                if self.sizes[i].min() >= crop and used + image.nbytes <= memory_bytes:
                    used += image.nbytes
                    self.images[i] = image
        is_used = self.sizes.min(1) >= crop
        if len(damaged) == len(self.paths):
            raise damaged[0]
        if not is_used.any():
            raise DiffcodecError(
                f"no image is at least {crop} pixels on each side; use a smaller --crop, "
                "or larger images"
            )
        if not quiet:
            _say_left_out(damaged, int((~is_used).sum()) - len(damaged), len(self.paths), crop)
        areas = np.where(is_used, self.sizes.prod(1), 0).astype("f8")
        self.cumulative = np.cumsum(areas / areas.sum())

    def choose(self, size: int, seed: int, step: int) -> list[Crop]:
        """The crops of a batch, images drawn in proportion to their area."""
        rng = np.random.default_rng((seed, step))
        crops = []
        for _ in range(size):
            i = min(int(np.searchsorted(self.cumulative, rng.random())), len(self.paths) - 1)
            top, left = (int(rng.integers(side - self.crop + 1)) for side in self.sizes[i])
            mirror = self.augment != "none" and rng.random() < 0.5
            transpose = self.augment == "all" and rng.random() < 0.5
            crops.append(Crop(i, top, left, mirror, transpose))
        return crops

    def cut(self, crop: Crop) -> NDArray[np.uint8]:
        """The pixels of a crop, RGB [3, crop, crop]."""
        image = self.images[crop.image]
        if image is None:
            image = read_rgb(self.files[crop.image])
        part = image[:, crop.top : crop.top + self.crop, crop.left : crop.left + self.crop]
        if crop.mirror:
            part = part[:, :, ::-1]
        return part.transpose(0, 2, 1) if crop.transpose else part

    def batch(
        self, size: int, seed: int, step: int, rows: slice = slice(None)
    ) -> Int16[Tensor, "crops 3 side side"]:
        """The RGB crops of a batch, or those of some rows alone."""
        crops = [self.cut(crop) for crop in self.choose(size, seed, step)[rows]]
        return torch.from_numpy(np.stack(crops).astype(np.int16))

    def labels(self, size: int, seed: int, step: int) -> Int64[Tensor, " size"]:
        """The labels of a batch's images, -1 where they have none."""
        if self.image_labels is None:
            return torch.full((size,), -1)
        return torch.tensor([self.image_labels[c.image] for c in self.choose(size, seed, step)])


def _read(path: Path) -> NDArray[np.uint8] | DiffcodecError:
    """An image, or why there is none: one of a hundred thousand is often damaged."""
    try:
        return read_rgb(path)
    except DiffcodecError as e:
        return e


def _say_left_out(damaged: Sequence[DiffcodecError], small: int, count: int, crop: int) -> None:
    for error in damaged[:MOST_NAMED]:
        say(f"left out: {error}")
    if more := len(damaged[MOST_NAMED:]):
        say(f"left out: {more:,} more that are not readable")
    if small:
        say(f"left out: {small:,} of {count:,} images, with a side below {crop} pixels (--crop)")


def domain_batch(
    rgb: Integer[Tensor, "crops 3 side side"], color: str
) -> Float32[Tensor, "crops 3 side side"]:
    """Crops in the colour domain as float32, channels last in memory."""
    x = to_domain(rgb.short(), color).float()
    return x.contiguous(memory_format=torch.channels_last)


def calibration_crops(images: CropSampler, color: str) -> Tensor:
    """The crops that show :func:`serialise_model` the range of activations, always the same."""
    return domain_batch(images.batch(CALIBRATION_CROPS, seed=0, step=0), color)


def calibration_images(data: str, crop: int, color: str) -> Tensor:
    """The calibration crops of a run on these images with the default augmentation.

    Raises:
        DiffcodecError: if there are no images, or none that is large enough.
    """
    images, _ = split_held_out(find_images(Path(data)))
    return calibration_crops(CropSampler(images, crop, memory_bytes=0), color)
