"""Training images and their labels: folders of pictures, arrays of pictures, what is held out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffcodec.errors import DiffcodecError
from diffcodec.images.formats import SUFFIXES
from diffcodec.images.modes import in_8_bits
from diffcodec.training.folder import is_picture_of_run

HELD_OUT_EVERY = 20  # one image in so many is kept for validation
ARRAY_SUFFIXES = {".npy", ".npz"}
MAX_CLASSES = 100_000  # more is a mistake
MAPPED_BYTES = 64 << 20  # a .npy file as large as this is memory-mapped, a smaller one is read

Source = Path | NDArray[np.uint8]  # an image: its file, or its pixels, RGB [3, height, width]
Labels = NDArray[np.int64]
Item = TypeVar("Item")


def find_images(data: Path) -> list[Path]:
    """All files of images and of arrays below a folder, sorted; or the one file that is given.

    The pictures that runs have drawn of themselves are none of them.

    Raises:
        DiffcodecError: if there are none.
    """
    suffixes = ARRAY_SUFFIXES | set(SUFFIXES)
    kinds = ", ".join(sorted(suffixes))
    try:
        is_file, is_folder = data.is_file(), data.is_dir()
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise DiffcodecError(f"{data}: {error.strerror}; check the path") from error
    if is_file:
        if data.suffix.lower() not in suffixes:
            raise DiffcodecError(f"{data}: not a file of images ({kinds}), nor a folder of them")
        return [data]
    if not is_folder:
        raise DiffcodecError(
            f"{data}: no such folder; --data takes a folder of images, or a .npy or .npz file"
        )
    paths = sorted(p for p in data.rglob("*") if p.suffix.lower() in suffixes and _is_of_data(p))
    if not paths:
        raise DiffcodecError(f"{data}: holds no images ({kinds})")
    return paths


def _is_of_data(path: Path) -> bool:
    """Whether to read a path: no folder, and no pipe, which would be waited for."""
    if is_picture_of_run(path):
        return False
    try:
        return path.is_file() or not path.exists()  # a link to nothing is named when it is read
    except OSError:  # and so is a folder that may not be looked into
        return True


def list_images(sources: Sequence[Source]) -> list[Source]:
    """The images of files: an array gives all of its own, in their order.

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
    """Training and held-out images: see :func:`hold_out`.

    Raises:
        DiffcodecError: if a file of arrays cannot be read.
    """
    return hold_out(list_images(sources))


def hold_out(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Split for training and held out: every twentieth in order, at least one, is held out."""
    places = range(len(items))
    chosen = places[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY] or places[-1:]
    held_out = [items[i] for i in chosen]
    return [items[i] for i in places if i not in chosen] or held_out, held_out


def read_labels(path: Path) -> Labels:
    """The classes of images, in their order: a text of integers from 0 on, one a line.

    Raises:
        DiffcodecError: if it is anything else.
    """
    try:
        labels = np.array([int(line) for line in path.read_text().split()], np.int64)
    except OSError as e:
        raise DiffcodecError(f"{path}: {e.strerror}; check the path") from e
    except (ValueError, OverflowError) as e:
        raise DiffcodecError(f"{path}: not readable as labels, one integer a line ({e})") from e
    if labels.size == 0 or labels.min() < 0 or labels.max() >= MAX_CLASSES:
        raise DiffcodecError(
            f"{path}: labels are integers from 0 to {MAX_CLASSES - 1}, one a line for each image"
        )
    return labels


def check_labels(labels: Labels, images: Sequence[Source], classes: int) -> None:
    """Hold labels against the images and the network that they are for.

    Raises:
        DiffcodecError: if they do not fit.
    """
    if len(labels) != len(images):
        raise DiffcodecError(f"{len(labels)} labels for {len(images)} images; give one for each")
    if not classes:
        raise DiffcodecError("labels for a network without classes; leave out --labels")
    if labels.max() >= classes:
        raise DiffcodecError(
            f"label {labels.max()} for a network of {classes} classes; give labels from 0 to "
            f"{classes - 1}"
        )


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
            image.load()
            return np.ascontiguousarray(np.asarray(in_8_bits(image, "RGB")).transpose(2, 0, 1))
    except Exception as e:  # Pillow's plug-ins raise almost anything on damaged files
        raise DiffcodecError(
            f"{path}: not readable as an image ({e}); get a whole copy, or take it away"
        ) from e
