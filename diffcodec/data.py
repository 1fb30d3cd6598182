"""Training images: folders of pictures as random crops."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from diffcodec.color import to_domain
from diffcodec.errors import DiffcodecError

HELD_OUT_EVERY = 20  # one image in so many is kept for validation
SUFFIXES = {".png", ".webp", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".ppm", ".pgm"}


def find_images(folder: Path) -> list[Path]:
    """All image files below a folder, sorted.

    Raises:
        DiffcodecError: if there are none.
    """
    if not folder.is_dir():
        raise DiffcodecError(f"{folder}: no such folder; --data takes a folder of images")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        kinds = ", ".join(sorted(SUFFIXES))
        raise DiffcodecError(f"{folder}: holds no images ({kinds})")
    return paths


def split_held_out(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Training and held-out files; every twentieth file in order is held out (at least one)."""
    held_out = list(paths[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]) or list(paths[-1:])
    kept = set(held_out)
    return [p for p in paths if p not in kept] or held_out, held_out


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """One image as RGB [3, height, width].

    Raises:
        DiffcodecError: if it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    except Exception as e:  # Pillow's plug-ins raise almost anything on damaged files
        raise DiffcodecError(f"{path}: not readable as an image ({e})") from e


class CropSampler:
    """Random crops with random flips and transpositions, the same for the same seed and step.

    Images are kept decoded in memory up to ``memory_bytes``; the others are read at each use.
    """

    def __init__(self, paths: Sequence[Path], crop: int, memory_bytes: int = 6 << 30):
        self.crop = crop
        self.paths = list(paths)
        self.images: list[NDArray[np.uint8] | None] = [None] * len(self.paths)
        areas = np.zeros(len(self.paths))
        used = 0
        with ThreadPoolExecutor(2) as pool:
            decoded = pool.map(read_rgb, self.paths)
            for i, image in enumerate(tqdm(decoded, "images", len(self.paths), disable=None)):
                areas[i] = image.shape[1] * image.shape[2]
                if min(image.shape[1:]) < crop:
                    areas[i] = 0
                elif used + image.nbytes <= memory_bytes:
                    used += image.nbytes
                    self.images[i] = image
        if areas.sum() == 0:
            raise DiffcodecError(
                f"no image is at least {crop} pixels on each side; use a smaller --crop"
            )
        self.cumulative = np.cumsum(areas / areas.sum())

    def batch(self, size: int, seed: int, step: int, augment: bool = True) -> torch.Tensor:
        """RGB crops as int16 [size, 3, crop, crop], images drawn in proportion to their area."""
        rng = np.random.default_rng((seed, step))
        crops = []
        for _ in range(size):
            i = min(int(np.searchsorted(self.cumulative, rng.random())), len(self.paths) - 1)
            image = self.images[i]
            if image is None:
                image = read_rgb(self.paths[i])
            top = int(rng.integers(image.shape[1] - self.crop + 1))
            left = int(rng.integers(image.shape[2] - self.crop + 1))
            crop = image[:, top : top + self.crop, left : left + self.crop]
            if augment:
                if rng.random() < 0.5:
                    crop = crop[:, :, ::-1]
                if rng.random() < 0.5:
                    crop = crop.transpose(0, 2, 1)
            crops.append(crop)
        return torch.from_numpy(np.stack(crops).astype(np.int16))


def domain_batch(rgb: torch.Tensor, color: str) -> torch.Tensor:
    """Crops in the colour domain as float32, channels last in memory."""
    x = to_domain(rgb, color).float()
    return x.contiguous(memory_format=torch.channels_last)
