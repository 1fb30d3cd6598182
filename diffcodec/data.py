"""Training images: folders of pictures, and arrays of pictures, as random crops."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from diffcodec.color import to_domain
from diffcodec.errors import DiffcodecError

HELD_OUT_EVERY = 20  # one image in so many is kept for validation
SUFFIXES = {".png", ".webp", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".ppm", ".pgm"}
ARRAY_SUFFIXES = {".npy", ".npz"}
AUGMENTATIONS = ("all", "mirror", "none")  # left and right; with "all" also rows and columns
MAPPED_BYTES = 64 << 20  # a .npy file as large as this is memory-mapped, a smaller one is read

Source = Path | NDArray[np.uint8]  # an image: its file, or its pixels, RGB [3, height, width]


def find_images(data: Path) -> list[Path]:
    """All files of images and of arrays below a folder, sorted; or the one file that is given.

    Raises:
        DiffcodecError: if there are none.
    """
    suffixes = SUFFIXES | ARRAY_SUFFIXES
    kinds = ", ".join(sorted(suffixes))
    if data.is_file():
        if data.suffix.lower() not in suffixes:
            raise DiffcodecError(f"{data}: not a file of images ({kinds}), nor a folder of them")
        return [data]
    if not data.is_dir():
        raise DiffcodecError(
            f"{data}: no such folder; --data takes a folder of images, or a .npy or .npz file"
        )
    paths = sorted(p for p in data.rglob("*") if p.suffix.lower() in suffixes)
    if not paths:
        raise DiffcodecError(f"{data}: holds no images ({kinds})")
    return paths


def list_images(sources: Sequence[Source]) -> list[Source]:
    """The same with each file of arrays replaced by its images, in their order.

    Raises:
        DiffcodecError: if a file of arrays cannot be read.
    """
    images: list[Source] = []
    for source in sources:
        if isinstance(source, Path) and source.suffix.lower() in ARRAY_SUFFIXES:
            for array in read_arrays(source):
                images.extend(array)
        else:
            images.append(source)
    return images


def split_held_out(sources: Sequence[Source]) -> tuple[list[Source], list[Source]]:
    """Training and held-out images; every twentieth in order is held out (at least one).

    Raises:
        DiffcodecError: if a file of arrays cannot be read.
    """
    images = list_images(sources)
    places = range(len(images))
    chosen = places[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY] or places[-1:]
    held_out = [images[i] for i in chosen]
    return [images[i] for i in places if i not in chosen] or held_out, held_out


def read_arrays(path: Path) -> list[NDArray[np.uint8]]:
    """The arrays of a .npy or .npz file, each as RGB [images, 3, height, width], in order of name.

    A large .npy file is memory-mapped; everything else is read whole.

    Raises:
        DiffcodecError: if it cannot be read, or an array in it is not of images.
    """
    try:
        if path.suffix.lower() == ".npz":
            with path.open("rb") as f, np.lib.npyio.NpzFile(f, allow_pickle=False) as archive:
                arrays = {f"the array {name!r}": archive[name] for name in sorted(archive.files)}
        else:
            array = np.lib.format.open_memmap(path, mode="r")
            arrays = {"the array": np.array(array) if array.nbytes < MAPPED_BYTES else array}
    except Exception as e:  # NumPy and zipfile raise almost anything on damaged files
        reason = " ".join(str(e).split())
        raise DiffcodecError(
            f"{path}: not readable as an array of numbers ({reason}); write it again with NumPy, "
            "or take it out of --data"
        ) from e
    if not arrays:
        raise DiffcodecError(f"{path}: holds no array; take it out of --data")
    try:
        return [as_rgb(array, name) for name, array in arrays.items()]
    except DiffcodecError as e:
        raise DiffcodecError(f"{path}: {e}") from e


def as_rgb(array: Any, name: str) -> NDArray[np.uint8]:
    """An array of images as RGB [images, 3, height, width], without a copy.

    Three axes of which the last has length 3 are one colour image; any other three are grey images.

    Raises:
        DiffcodecError: if it is not of images, or not of 8 bits; names the array as ``name``.
    """
    shape: tuple[int, ...] = getattr(array, "shape", ())  # an archive may hold plain bytes too
    kind = getattr(array, "dtype", type(array).__name__)
    is_color = shape[-1:] == (3,)
    if kind != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and is_color)) or 0 in shape:
        raise DiffcodecError(
            f"{name} is {kind} {list(shape)}; images are uint8 [n, h, w, 3], [n, h, w] (grey) or "
            "[h, w, 3]: convert it, or take it out of --data"
        )
    plain = np.asarray(array)  # views of a memmap are slow to make
    if not is_color:
        return np.broadcast_to(plain[:, None], (shape[0], 3, *shape[1:]))
    return plain.reshape(-1, *shape[-3:]).transpose(0, 3, 1, 2)


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
    """Random crops, the same for the same seed and step.

    ``augment``, one of ``AUGMENTATIONS``, says what is exchanged at random, with probability 1/2.
    Image files are kept decoded in memory up to ``memory_bytes``; the others are read at each use.
    Images of arrays stay where they are.
    """

    def __init__(
        self, paths: Sequence[Source], crop: int, augment: str = "all", memory_bytes: int = 6 << 30
    ):
        self.crop = crop
        self.augment = augment
        self.paths = list_images(paths)
        self.files = {i: path for i, path in enumerate(self.paths) if isinstance(path, Path)}
        self.images = [None if isinstance(image, Path) else image for image in self.paths]
        areas = np.array([0 if image is None else self._area(image) for image in self.images], "f8")
        used = 0
        hide = None if self.files else True
        with ThreadPoolExecutor(2) as pool:
            decoded = tqdm(
                pool.map(read_rgb, self.files.values()), "images", len(self.files), disable=hide
            )
            for i, image in zip(self.files, decoded, strict=True):
                areas[i] = self._area(image)
                if areas[i] > 0 and used + image.nbytes <= memory_bytes:
                    used += image.nbytes
                    self.images[i] = image
        if areas.sum() == 0:
            raise DiffcodecError(
                f"no image is at least {crop} pixels on each side; use a smaller --crop"
            )
        self.cumulative = np.cumsum(areas / areas.sum())

    def _area(self, image: NDArray[np.uint8]) -> int:
        """Pixels of an image; 0 if it is smaller than a crop."""
        height, width = image.shape[1:]
        return height * width if min(height, width) >= self.crop else 0

    def batch(self, size: int, seed: int, step: int) -> torch.Tensor:
        """RGB crops as int16 [size, 3, crop, crop], images drawn in proportion to their area."""
        rng = np.random.default_rng((seed, step))
        crops = []
        for _ in range(size):
            i = min(int(np.searchsorted(self.cumulative, rng.random())), len(self.paths) - 1)
            image = self.images[i]
            if image is None:
                image = read_rgb(self.files[i])
            top = int(rng.integers(image.shape[1] - self.crop + 1))
            left = int(rng.integers(image.shape[2] - self.crop + 1))
            crop = image[:, top : top + self.crop, left : left + self.crop]
            if self.augment != "none" and rng.random() < 0.5:
                crop = crop[:, :, ::-1]
            if self.augment == "all" and rng.random() < 0.5:
                crop = crop.transpose(0, 2, 1)
            crops.append(crop)
        return torch.from_numpy(np.stack(crops).astype(np.int16))


def domain_batch(rgb: torch.Tensor, color: str) -> torch.Tensor:
    """Crops in the colour domain as float32, channels last in memory."""
    x = to_domain(rgb, color).float()
    return x.contiguous(memory_format=torch.channels_last)
