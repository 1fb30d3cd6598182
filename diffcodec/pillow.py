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
from diffcodec.images.metadata import KEPT_FIELDS
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

    def _open(self) -> None:
        assert self.fp is not None
        self._start: int | None = self.fp.tell()
        try:
            container = read_header(ByteReader(cast(BinaryIO, self.fp)), DEFAULT_LIMITS).container
        except DiffcodecError as e:
            raise SyntaxError(str(e)) from e
        self._mode, self._size = container.mode, (container.width, container.height)

    def load(self) -> Any:
        """Decode the image.

        Raises:
            OSError: it is damaged, or its model is not a shipped one.
        """
        if self._start is not None:
            assert self.fp is not None
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
    plain.info |= {name: given[name] for name in KEPT_FIELDS if name in given}
    try:
        file.write(encode(plain, **{name: given[name] for name in OPTIONS if name in given}))
    except DiffcodecError as e:
        raise OSError(str(e)) from e


Image.register_open(FORMAT, DfcImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, EXTENSION)
Image.register_mime(FORMAT, MIME)
