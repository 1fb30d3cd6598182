"""A plug-in of Pillow: ``import diffcodec.pillow``, and ``Image.open`` and ``save`` know ``.dfc``.

What builds on Pillow, as imageio does, knows it then, too.
"""

from typing import IO, Any, BinaryIO, cast

from PIL import Image, ImageFile

from diffcodec.codec.decoding import decode
from diffcodec.codec.encoding import encode
from diffcodec.container.header import read_header
from diffcodec.container.parts import MAGIC, VERSION
from diffcodec.container.primitives import ByteReader
from diffcodec.errors import DiffcodecError
from diffcodec.images.metadata import KEPT_FIELDS, apply_metadata, kept_fields
from diffcodec.limits import DEFAULT_LIMITS

FORMAT = "DFC"
EXTENSION = ".dfc"
MIME = "image/x-diffcodec"
OPTIONS = (
    "model",
    "plan",
    "timestep",
    "bpp",
    "psnr",
    "progressive",
    "previews",
    "draws",
    "adapt",
    "label",
    "tile_side",
    "strip",
    "limits",
    "device",
)


class DfcImageFile(ImageFile.ImageFile):
    """A file of diffcodec: its header is read when it is opened, and the rest when it is loaded."""

    format = FORMAT
    format_description = "diffcodec"
    _start: int | None = None  # where the file begins, until it is loaded

    def _open(self) -> None:
        assert self.fp is not None
        self._start = self.fp.tell()
        try:
            container = read_header(ByteReader(cast(BinaryIO, self.fp)), DEFAULT_LIMITS).container
            alike = Image.new(container.mode, (1, 1))
            apply_metadata(alike, container.metadata)
        except DiffcodecError as e:
            raise SyntaxError(str(e)) from e
        self._mode, self._size = container.mode, (container.width, container.height)
        self.info, self.palette = alike.info, alike.palette

    def load(self) -> Any:
        """Decode the image.

        Raises:
            OSError: it is damaged, or its model is not a shipped one.
            ValueError: it was closed before.
        """
        if self._start is not None:
            if self.fp is None:
                raise ValueError("the image is closed: load it before")
            self.fp.seek(self._start)
            try:
                image = decode(self.fp.read())
            except DiffcodecError as e:
                raise OSError(str(e)) from e
            self._start = None
            self.im, self.palette = image.im, image.palette
            self.info.update(image.info)
            if getattr(self, "_exclusive_fp", False):
                self.fp.close()
            self.fp = None
        return Image.Image.load(self)


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(MAGIC + bytes([VERSION]))


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    given = image.encoderinfo
    if unknown := given.keys() - {*OPTIONS, *KEPT_FIELDS}:
        raise TypeError(f"found {', '.join(sorted(unknown))}, expected {', '.join(OPTIONS)}")
    plain = image.copy()
    for name in KEPT_FIELDS & given.keys():
        plain.info[name] = _as_read(name, given[name])
        if plain.info[name] and name != "transparency" and name not in kept_fields(plain):
            raise TypeError(f"{name}: found {given[name]!r:.60}, which cannot be kept")
    try:
        file.write(encode(plain, **{name: given[name] for name in OPTIONS if name in given}))
    except DiffcodecError as e:
        raise OSError(str(e)) from e


def _as_read(name: str, value: Any) -> Any:
    """Metadata in one of the forms that Pillow takes, as it has them of a file that it has read."""
    if isinstance(value, Image.Exif):
        return value.tobytes() if value else b""
    if name == "xmp" and isinstance(value, str):
        return value.encode()
    if name == "dpi" and isinstance(value, int | float):
        return value, value
    return tuple(value) if isinstance(value, list) else value


Image.register_open(FORMAT, DfcImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, EXTENSION)
Image.register_mime(FORMAT, MIME)
