"""The codecs to compare with, by Pillow, imagecodecs, and two programs where they are installed.

Each has a list of settings, coarsest first. All run in one thread. Sizes are those of whole files;
what a file takes before any content is :meth:`Codec.container_bytes`, the same way for every codec.
"""

import io
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

Array = NDArray[np.uint8]


@dataclass(frozen=True)
class Codec:
    """One way to make files of images.

    Attributes:
        name: of results files.
        label: for tables and pictures.
        settings: from the coarsest on; of a lossless codec one, its effort.
        encode: RGB image and setting -> the bytes of a file.
        decode: the bytes of a file -> [height, width, 3].
        about: library and fixed options.
    """

    name: str
    label: str
    settings: tuple[float, ...]
    encode: Callable[[Image.Image, float], bytes]
    decode: Callable[[bytes], Array]
    about: str

    def container_bytes(self, setting: float) -> int:
        """Bytes of the smallest file: one grey pixel at this setting."""
        return _container_bytes(self, setting)


@cache
def _container_bytes(codec: Codec, setting: float) -> int:
    return len(codec.encode(one_pixel(), setting))


def one_pixel() -> Image.Image:
    """The image whose file is all container."""
    return Image.new("RGB", (1, 1), (128, 128, 128))


def _save(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _open(data: bytes) -> Array:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _array(image: Image.Image) -> Array:
    return np.ascontiguousarray(np.asarray(image))


def _pillow(library: str) -> str:
    return f"{library} {features.version(library)} by Pillow"


def jpeg_xl(effort: int) -> Codec:
    """JPEG XL without loss at an effort, 1 to 9."""
    return Codec(
        f"jpegxl{effort}",
        f"JPEG XL, effort {effort}",
        (effort,),
        lambda image, effort: bytes(
            imagecodecs.jpegxl_encode(
                _array(image), lossless=True, effort=int(effort), numthreads=1
            )
        ),
        lambda data: imagecodecs.jpegxl_decode(data, numthreads=1),
        imagecodecs.jpegxl_version(),
    )


def lossless_codecs() -> list[Codec]:
    """The lossless codecs at hand, weakest first."""
    jpeg2000 = Codec(
        "jpeg2000",
        "JPEG 2000",
        (0,),
        lambda image, _: bytes(
            imagecodecs.jpeg2k_encode(
                _array(image), level=0, codecformat="j2k", reversible=True, numthreads=1
            )
        ),
        lambda data: imagecodecs.jpeg2k_decode(data, numthreads=1),
        imagecodecs.jpeg2k_version(),
    )
    png = Codec(
        "png",
        "PNG",
        (9,),
        lambda image, _: _save(image, "PNG", optimize=True),
        _open,
        f"{_pillow('zlib')}, optimize",
    )
    webp = Codec(
        "webp",
        "WebP",
        (6,),
        lambda image, _: _save(image, "WEBP", lossless=True, quality=100, method=6),
        _open,
        f"{_pillow('webp')}, quality 100, method 6",
    )
    programs = [codec for codec in (_flif(), _bpg(lossless=True)) if codec]
    return [png, jpeg2000, webp, *programs, *(jpeg_xl(effort) for effort in (3, 7, 9))]


def _jpeg(name: str, label: str, subsampling: str) -> Codec:
    return Codec(
        name,
        label,
        (1, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 85, 90, 93, 96, 98, 100),
        lambda image, q: _save(
            image, "JPEG", quality=int(q), optimize=True, subsampling=subsampling
        ),
        _open,
        f"{_pillow('jpg')}, {subsampling}, optimize",
    )


def _avif() -> Codec:
    return Codec(
        "avif",
        "AVIF",
        (0, 10, 20, 30, 40, 50, 60, 70, 75, 80, 85, 90, 93, 96, 98, 99),
        lambda image, q: bytes(
            imagecodecs.avif_encode(
                _array(image), level=int(q), speed=4, pixelformat="444", codec="aom", numthreads=1
            )
        ),
        lambda data: imagecodecs.avif_decode(data, numthreads=1)[..., :3],
        f"{imagecodecs.avif_version()}, 4:4:4, speed 4",
    )


def lossy_codecs() -> list[Codec]:
    """The lossy codecs at hand."""
    webp = Codec(
        "webp",
        "WebP",
        (0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95, 98, 100),
        lambda image, q: _save(image, "WEBP", quality=int(q), method=6),
        _open,
        f"{_pillow('webp')}, method 6",
    )
    jpegxl = Codec(
        "jpegxl",
        "JPEG XL",
        (25, 20, 15, 11, 8, 6, 4, 3, 2, 1.5, 1, 0.7, 0.45, 0.3, 0.2, 0.1, 0.05),
        lambda image, distance: bytes(
            imagecodecs.jpegxl_encode(_array(image), distance=distance, effort=7, numthreads=1)
        ),
        lambda data: imagecodecs.jpegxl_decode(data, numthreads=1),
        f"{imagecodecs.jpegxl_version()}, effort 7, by distance",
    )
    jpeg2000 = Codec(
        "jpeg2000",
        "JPEG 2000",
        (22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 42, 44, 46, 48, 50),
        lambda image, db: bytes(
            imagecodecs.jpeg2k_encode(
                _array(image), level=int(db), codecformat="j2k", reversible=False, numthreads=1
            )
        ),
        lambda data: imagecodecs.jpeg2k_decode(data, numthreads=1),
        f"{imagecodecs.jpeg2k_version()}, irreversible, by PSNR",
    )
    bpg = _bpg(lossless=False)
    return [
        _jpeg("jpeg", "JPEG 4:2:0", "4:2:0"),
        _jpeg("jpeg444", "JPEG 4:4:4", "4:4:4"),
        jpeg2000,
        webp,
        *([bpg] if bpg else []),
        jpegxl,
        _avif(),
    ]


def missing_programs() -> list[str]:
    """A line for each codec that needs a program which is not installed."""
    lines = []
    if _flif() is None:
        lines.append("FLIF was left out: no program `flif` on the path.")
    if _bpg(lossless=True) is None:
        lines.append("BPG was left out: no programs `bpgenc` and `bpgdec` on the path.")
    return lines


def _by_program(encode: list[str], decode: list[str], suffix: str) -> tuple[Any, Any]:
    """Encoder and decoder through files. IN, OUT and SETTING stand for what they say."""

    def run(command: list[str], source: Path, target: Path, setting: float = 0) -> None:
        words = {"IN": str(source), "OUT": str(target), "SETTING": f"{setting:g}"}
        done = [words.get(word, word) for word in command]
        subprocess.run(done, check=True, capture_output=True)

    def to_file(image: Image.Image, setting: float) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "in.png", Path(folder) / f"out{suffix}"
            image.save(source)
            run(encode, source, target, setting)
            return target.read_bytes()

    def from_file(data: bytes) -> Array:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / f"in{suffix}", Path(folder) / "out.png"
            source.write_bytes(data)
            run(decode, source, target)
            return _open(target.read_bytes())

    return to_file, from_file


def _flif() -> Codec | None:
    if not shutil.which("flif"):
        return None
    encode = ["flif", "-e", "--overwrite", "-E100", "IN", "OUT"]
    pair = _by_program(encode, ["flif", "-d", "--overwrite", "IN", "OUT"], ".flif")
    return Codec("flif", "FLIF", (100,), *pair, "flif -E100")


def _bpg(lossless: bool) -> Codec | None:
    if not (shutil.which("bpgenc") and shutil.which("bpgdec")):
        return None
    decode = ["bpgdec", "-o", "OUT", "IN"]
    if lossless:
        pair = _by_program(["bpgenc", "-lossless", "-o", "OUT", "IN"], decode, ".bpg")
        return Codec("bpg", "BPG", (0,), *pair, "bpgenc -lossless")
    pair = _by_program(["bpgenc", "-q", "SETTING", "-f", "444", "-o", "OUT", "IN"], decode, ".bpg")
    settings = (51, 46, 42, 38, 34, 30, 26, 22, 18, 14, 10, 6, 2)
    return Codec("bpg", "BPG 4:4:4", settings, *pair, "bpgenc -f 444")
