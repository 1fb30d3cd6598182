"""PNG as chunks: those that Pillow is given, and those that are kept beside the pixels.

Pillow refuses files with more than 1 MiB of text or profile, and drops what it does not know. So it
gets the chunks that make the pixels alone, and what describes them is read here.
"""

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from diffcodec.errors import FormatError, UnsupportedError

Chunk = tuple[bytes, bytes]  # type and content

MOST_CHUNKS = 1 << 16  # that describe an image
SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT = (b"tEXt", b"zTXt", b"iTXt")
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", *_ANIMATION)
_BEFORE_PALETTE = (b"cICP", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"mDCV", b"mDCv", b"cLLI")
_KEPT_IF_UNSAFE = (  # they hold for other code of the same pixels
    *_BEFORE_PALETTE,
    *(b"bKGD", b"hIST", b"pHYs", b"sPLT", b"eXIf", b"tIME", b"cLLi"),
    *TEXT,
)
_OF_THE_CODE = (b"iDOT",)  # where pieces of the file are, which is nobody's loss
_TYPE = re.compile(rb"[a-z][A-Za-z]{3}")
_XMP = b"XML:com.adobe.xmp\0\0\0\0\0"
_NAMED = {  # by Pillow's name in ``info``: type, layout, and what the numbers are multiplied by
    "gamma": (b"gAMA", ">I", 100000),
    "chromaticity": (b"cHRM", ">8I", 100000),
    "srgb": (b"sRGB", ">B", 1),
    "aspect": (b"pHYs", ">2Ix", 1),  # of a pixel, the unit 0
}
NAMED_FIELDS = tuple(_NAMED)
NAMED_TYPES = tuple(kind for kind, _, _ in _NAMED.values())
_INCH = 0.0254  # metres


def _chunks(data: bytes) -> Iterator[Chunk]:
    """The chunks up to the end, each of which matches its checksum."""
    position = len(SIGNATURE)
    while True:
        length, name = (
            int.from_bytes(data[position : position + 4]),
            data[position + 4 : position + 8],
        )
        end = position + 12 + length
        if end > len(data):
            raise FormatError(
                "damaged PNG: it is cut short, before its chunk IEND; get a whole copy"
            )
        content = data[position + 8 : end - 4]
        if zlib.crc32(content, zlib.crc32(name)) != int.from_bytes(data[end - 4 : end]):
            raise FormatError(
                f"damaged PNG: the checksum of its chunk {name.decode('latin-1')!r} is wrong; "
                "get a whole copy"
            )
        yield name, content
        if name == b"IEND":
            return
        position = end


def _joined(chunks: Iterable[Chunk]) -> bytes:
    return b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(content, zlib.crc32(name)))
        for name, content in chunks
    )


class Parts(NamedTuple):
    """A PNG taken apart.

    Attributes:
        pixels: a PNG of the same pixels alone.
        fields: what describes them, by Pillow's names in ``info``; what has none as ``png_chunks``,
            and what is not kept, in words, as ``not_kept``.
        late: the names of those that stand behind the pixels.
    """

    pixels: bytes
    fields: dict[str, Any]
    late: frozenset[str]


def split(data: bytes, most_profile_bytes: int) -> Parts:
    """Take apart what Pillow is to read, and what is kept beside the pixels.

    Args:
        data: the file, which begins with ``SIGNATURE``.
        most_profile_bytes: a profile that is larger stays in its chunk, compressed.

    Raises:
        FormatError: it is damaged.
    """
    pixels: list[Chunk] = []
    fields: dict[str, Any] = {}
    others: list[Chunk] = []
    lost: list[str] = []
    late: set[str] = set()
    size, bits, color = len(SIGNATURE), 8, 0
    for name, content in _chunks(data):
        size += 12 + len(content)
        if name == b"IHDR" and len(content) == 13:
            bits, color = content[8:10]
        if name in _PIXELS:
            pixels.append((name, content))
        elif not _TYPE.fullmatch(name):
            raise UnsupportedError(
                f"found the PNG chunk {name.decode('latin-1')!r}, which is not in the standard and "
                "changes what the others mean: convert the file to a plain PNG"
            )
        elif field := _named(name, content, most_profile_bytes):
            fields.update(field)
            late.update(field if any(kind == b"IDAT" for kind, _ in pixels) else ())
        elif name in _KEPT_IF_UNSAFE or name[3:].islower():
            is_grey_level = name == b"bKGD" and color == 0
            others.append((name, _scaled(content, bits) if is_grey_level else content))
        elif name not in _OF_THE_CODE:
            lost.append(f"chunk {name.decode('latin-1')!r}")
    if not any(kind == b"IDAT" for kind, _ in pixels):
        raise FormatError("damaged PNG: it has no chunk 'IDAT', of pixels; get a whole copy")
    if size < len(data):
        lost.append(f"{len(data) - size} bytes behind the end of the PNG")
    fields |= {"png_chunks": tuple(others), "not_kept": tuple(lost)}
    return Parts(SIGNATURE + _joined(pixels), fields, frozenset(late))


def fields_of(chunks: Iterable[Chunk]) -> dict[str, Any]:
    """What chunks mean by Pillow's names in ``info``; those without as ``png_chunks``."""
    fields: dict[str, Any] = {}
    unnamed = []
    for chunk in chunks:
        if chunk[0] in NAMED_TYPES and (field := _named(*chunk, 0)):
            fields.update(field)
        else:
            unnamed.append(chunk)
    return fields | ({"png_chunks": tuple(unnamed)} if unnamed else {})


def grey_scale(bits: int) -> int:
    """What Pillow multiplies grey levels of so few bits by, to have 8 of them."""
    return {2: 85, 4: 17}.get(bits, 1)


def _scaled(content: bytes, bits: int) -> bytes:
    """The background as a level of 8 bits."""
    return struct.pack(">H", int.from_bytes(content[:2]) * grey_scale(bits) & 0xFFFF)


def _named(name: bytes, content: bytes, most_profile_bytes: int) -> dict[str, Any]:
    """A chunk that has a name of Pillow's in ``info``, if it has and is well-formed."""
    if name == b"iCCP":
        profile = inflated(content[content.find(b"\0") + 2 :], most_profile_bytes)
        return {"icc_profile": profile} if profile and b"\0\0" in content else {}
    if name == b"eXIf":
        return {"exif": b"Exif\0\0" + content} if content else {}
    if name == b"iTXt" and content.startswith(_XMP):
        return {"xmp": content[len(_XMP) :]}
    if name == b"pHYs" and len(content) == 9 and content[8] == 1:
        per_metre = struct.unpack(">2I", content[:8])
        return {"dpi": tuple(_INCH * n for n in per_metre)} if all(per_metre) else {}
    for key, (kind, layout, factor) in _NAMED.items():
        if name == kind and len(content) == struct.calcsize(layout):
            numbers = tuple(n / factor if factor > 1 else n for n in struct.unpack(layout, content))
            value = numbers if len(numbers) > 1 else numbers[0]
            return {key: value} if named_chunk(key, value) == (name, content) else {}
    return {}


def named_chunk(key: str, value: object) -> Chunk | None:
    """A field of ``info`` that Pillow has but does not write; None if it makes no sense."""
    kind, layout, factor = _NAMED[key]
    numbers = value if isinstance(value, tuple) else (value,)
    try:
        whole = [round(factor * n) for n in numbers if isinstance(n, (int, float))]
        return kind, struct.pack(layout, *whole)
    except (struct.error, ValueError, OverflowError):
        return None


def inflated(data: bytes, most_bytes: int) -> bytes | None:
    """What zlib has compressed; None if it is damaged or larger."""
    decompressor = zlib.decompressobj()
    try:
        content = decompressor.decompress(data, most_bytes + 1)
    except zlib.error:
        return None
    return content if decompressor.eof and len(content) <= most_bytes else None


def is_chunk(value: object) -> bool:
    """Whether it is a chunk that may stand among ``png_chunks``."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(part, bytes) for part in value)
        and _TYPE.fullmatch(value[0]) is not None
        and value[0] not in _PIXELS
    )


def xmp_chunk(xmp: bytes) -> Chunk:
    """XMP as a PNG holds it."""
    return b"iTXt", _XMP + xmp


def insert(data: bytes, chunks: Iterable[Chunk]) -> bytes:
    """A PNG with more chunks, each where the standard wants it."""
    wanted, out = list(chunks), list[Chunk]()
    for name, content in _chunks(data):
        if name == b"IDAT":  # before the first of them
            out += wanted
            wanted = []
        out.append((name, content))
        if name == b"IHDR":
            out += [chunk for chunk in wanted if chunk[0] in _BEFORE_PALETTE]
            wanted = [chunk for chunk in wanted if chunk[0] not in _BEFORE_PALETTE]
    return SIGNATURE + _joined(out)


def pack_chunks(chunks: Iterable[Chunk]) -> bytes:
    """Chunks without their checksums, one after another."""
    return b"".join(struct.pack(">I", len(content)) + name + content for name, content in chunks)


def unpack_chunks(data: bytes) -> tuple[Chunk, ...] | None:
    """Inverse of :func:`pack_chunks`; None where it is malformed."""
    chunks: list[Chunk] = []
    position = 0
    while position < len(data):
        start = position + 8
        end = start + int.from_bytes(data[position : position + 4])
        chunk = data[position + 4 : start], data[start:end]
        if end > len(data) or not is_chunk(chunk) or len(chunks) == MOST_CHUNKS:
            return None
        chunks.append(chunk)
        position = end
    return tuple(chunks)
