"""What an archive tells of its images: pages of so many each, and the root that lists them."""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from diffcodec.archive.records import Place
from diffcodec.container.parts import MODES
from diffcodec.errors import CorruptError, FormatError, LimitError

PAGE_IMAGES = 4096
MOST_TOLD_BYTES = 1 << 13  # of the name and the label of an image, in JSON
MOST_NESTED = 64  # lists and objects within each other, of a label
_MOST_JSON_BYTES = 1 << 26  # of a page or the root
Value = TypeVar("Value")


class GroupEntry(NamedTuple):
    """A group: where its record lies, and what its images are."""

    offset: int
    size: int
    mode: str
    width: int
    height: int

    @property
    def place(self) -> Place:
        """The place of the group's record."""
        return Place(self.offset, self.size)


@dataclass(frozen=True)
class Entry:
    """An image of an archive.

    Attributes:
        name: by default its number.
        label: whatever JSON can hold, or None.
        group: where it is coded.
        place: in the group.
    """

    name: str
    label: Any
    group: GroupEntry
    place: int

    @property
    def mode(self) -> str:
        """The mode, as Pillow has it."""
        return self.group.mode

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        return self.group.width, self.group.height


class Stored(NamedTuple):
    """An image as a page holds it; without a name it has its number."""

    group: GroupEntry
    place: int
    name: str | None = None
    label: Any = None


@dataclass(frozen=True)
class Root:
    """What the last bytes of an archive say.

    Attributes:
        images: how many there are.
        pages: of ``PAGE_IMAGES`` images each, the last of no more.
        models: that the archive holds itself, by identity.
    """

    images: int = 0
    pages: tuple[Place, ...] = ()
    models: Mapping[bytes, Place] = field(default_factory=dict)

    def pack(self) -> bytes:
        """The index as the content of a record."""
        models = {name.hex(): place for name, place in self.models.items()}
        return _pack({"images": self.images, "pages": self.pages, "models": models})

    @staticmethod
    def unpack(content: bytes) -> "Root":
        """The root of which :meth:`pack` gave this content.

        Raises:
            FormatError: it is laid out in another way.
        """

        def read(found: Any) -> Root:
            pages = tuple(_place(place) for place in found["pages"])
            models = {bytes.fromhex(name): _place(place) for name, place in found["models"].items()}
            root = Root(_count(found["images"]), pages, models)
            if len(pages) != -(-root.images // PAGE_IMAGES):
                raise ValueError(f"{len(pages)} pages for {root.images} images")
            return root

        return _unpack(content, read, "the index")


def pack_page(images: Sequence[Stored]) -> bytes:
    """A page as the content of a record."""
    groups: dict[GroupEntry, int] = {}
    runs: list[list[int]] = []
    for image in images:
        group = groups.setdefault(image.group, len(groups))
        if runs and runs[-1][0] == group and sum(runs[-1][1:]) == image.place:
            runs[-1][2] += 1
        else:
            runs.append([group, image.place, 1])
    page: dict[str, Any] = {"groups": list(groups), "runs": runs}
    for name in ("name", "label"):
        column = [getattr(image, name) for image in images]
        if any(value is not None for value in column):
            page[f"{name}s"] = column
    return _pack(page)


def unpack_page(content: bytes, count: int) -> list[Stored]:
    """The page of so many images of which :func:`pack_page` gave this content.

    Raises:
        FormatError: it is laid out in another way.
    """

    def read(found: Any) -> list[Stored]:
        groups = [_group(*group) for group in found["groups"]]
        runs = [tuple(map(_count, run)) for run in found["runs"]]
        if sum(length for _, _, length in runs) != count:
            raise ValueError("not as many images as the index says")
        places = [
            (groups[group], first + k) for group, first, length in runs for k in range(length)
        ]
        names, labels = (found.get(name) or [None] * count for name in ("names", "labels"))
        if not all(name is None or isinstance(name, str) for name in names):
            raise ValueError("a name that is no text")
        if any(is_deep(label) for label in labels):
            raise ValueError(f"a label of more than {MOST_NESTED} lists within each other")
        return [
            Stored(*place, name, label)
            for place, name, label in zip(places, names, labels, strict=True)
        ]

    return _unpack(content, read, "a page of the index")


def is_deep(label: Any, most: int = MOST_NESTED) -> bool:
    """Whether a label, as JSON gives it, has more lists and objects within each other."""
    if not isinstance(label, (list, dict)):
        return False
    inner = label.values() if isinstance(label, dict) else label
    return most == 0 or any(is_deep(each, most - 1) for each in inner)


def page_images(content: bytes) -> int:
    """How many images a page tells of.

    Raises:
        FormatError: it is laid out in another way, or tells of more than a page may.
    """

    def read(found: Any) -> int:
        images = sum(_count(length) for _, _, length in found["runs"])
        if images > PAGE_IMAGES:
            raise ValueError(f"{images} images, expected {PAGE_IMAGES} at most")
        return images

    return _unpack(content, read, "a page of the index")


def _group(offset: Any, size: Any, mode: Any, width: Any, height: Any) -> GroupEntry:
    if mode not in MODES:
        raise ValueError(f"the mode {mode!r}")
    return GroupEntry(*_place((offset, size)), mode, _count(width), _count(height))


def _place(found: Any) -> Place:
    offset, size = map(_count, found)
    return Place(offset, size)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r} is no count")
    return value


def _pack(value: Any) -> bytes:
    return zlib.compress(json.dumps(value, separators=(",", ":")).encode("ascii"), 9)


def _unpack(content: bytes, read: Callable[[Any], Value], what: str) -> Value:
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(content, _MOST_JSON_BYTES)
        if stream.unconsumed_tail:
            raise LimitError(f"{what} is over {_MOST_JSON_BYTES >> 20} MiB")
        if not stream.eof or stream.unused_data:
            raise CorruptError(f"{what} is no whole zlib stream; get the file again")
        return read(json.loads(text))
    except (zlib.error, ValueError, TypeError, LookupError, AttributeError, RecursionError) as e:
        raise FormatError(f"{what} is not laid out right ({e}); get the file again") from e
