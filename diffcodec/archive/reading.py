"""Reading an archive: any image by its number or name, at the cost of its group."""

import copy
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from diffcodec.archive.index import PAGE_IMAGES, Entry, GroupEntry, Stored, unpack_page
from diffcodec.archive.records import (
    GROUP,
    MODEL,
    PAGE,
    Source,
    check_header,
    read_record,
)
from diffcodec.archive.repair import last_root
from diffcodec.errors import CorruptError, ModelMismatchError
from diffcodec.limits import DEFAULT_LIMITS, Limits
from diffcodec.values import integer

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffcodec.models.model import Model

HELD_PIXELS = 1 << 24  # of decoded groups: images of several sizes take turns
HELD_PAGES = 16


class ArchiveReader:
    """The images of an archive, a sequence.

    Numbers are looked up in no time; the first name that is asked for reads the whole index.
    Reading is safe in several threads, and in processes made by fork or by pickling.
    """

    def __init__(
        self,
        source: Source,
        model: "str | PathLike[str] | Model | None" = None,
        limits: Limits = DEFAULT_LIMITS,
        device: str | None = None,
        is_appended: bool = False,
    ):
        """Open one.

        Args:
            source: of its bytes.
            model, limits, device: see :func:`diffcodec.decode`.
            is_appended: whether the model is that of new images, and others may be another's.
        """
        check_header(source)
        self._source, self._model, self._limits, self._device = source, model, limits, device
        self._is_appended = is_appended
        self._root = last_root(source)
        self._forget()

    def _forget(self) -> None:
        """Drop what is held of the file."""
        self._locks: dict[int, threading.RLock] = {}  # by process
        self._pages: OrderedDict[int, list[Stored]] = OrderedDict()
        self._groups: OrderedDict[GroupEntry, list[Image]] = OrderedDict()
        self._held = 0  # pixels
        self._numbers: dict[str, int] | None = None
        self._embedded: dict[tuple[bytes, bool], Model] = {}

    @property
    def _lock(self) -> threading.RLock:
        """The lock of this process: in a fork nobody releases what its parent's threads held."""
        return self._locks.setdefault(os.getpid(), threading.RLock())

    def __getstate__(self) -> dict[str, Any]:
        kept = {"_source", "_model", "_limits", "_device", "_root", "_is_appended"}
        return {name: value for name, value in self.__dict__.items() if name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        return self._root.images

    def __iter__(self) -> "Iterator[Image]":
        for number in range(len(self)):
            yield self[number]

    @overload
    def __getitem__(self, which: int | str) -> "Image": ...

    @overload
    def __getitem__(self, which: slice) -> "list[Image]": ...

    def __getitem__(self, which: int | str | slice) -> "Image | list[Image]":
        """An image by its number or name, or those of a slice.

        Raises:
            IndexError, KeyError: there is none.
            DiffcodecError: its group does not decode; see :func:`diffcodec.decode`.
        """
        if isinstance(which, slice):
            return self.images(range(*which.indices(len(self))))
        return self.images([self.number(which)])[0]

    def images(self, numbers: Iterable[int]) -> "list[Image]":
        """Images by their numbers; each group is decoded once, whatever their order.

        Raises:
            IndexError, DiffcodecError: as for one.
        """
        places: dict[GroupEntry, list[tuple[int, int]]] = {}
        all_stored = [self._stored(self.number(number)) for number in numbers]
        for i, stored in enumerate(all_stored):
            places.setdefault(stored.group, []).append((i, stored.place))
        found: dict[int, Image] = {}
        for group, wanted in places.items():
            decoded = self._decoded(group)
            if (last := max(place for _, place in wanted)) >= len(decoded):
                raise CorruptError(
                    f"the group at {group.offset} holds {len(decoded)} images, the index has "
                    f"one at {last} of it; get the file again"
                )
            found.update((i, decoded[place].copy()) for i, place in wanted)
        return [found[i] for i in range(len(all_stored))]

    def number(self, which: int | str) -> int:
        """The number of an image, from 0 on; numbers below 0 count from the end.

        Raises:
            IndexError, KeyError: there is none.
            TypeError: it is neither a number nor a name.
        """
        if isinstance(which, str):
            with self._lock:
                if self._numbers is None:
                    numbers: dict[str, int] = {}
                    for number, entry in enumerate(self.entries()):
                        numbers.setdefault(entry.name, number)
                    self._numbers = numbers  # whole, also in a fork
                if which not in self._numbers:
                    raise KeyError(f"no image {which!r} in the archive of {len(self)}")
                return self._numbers[which]
        found = integer("which", which)
        if not -len(self) <= found < len(self):
            raise IndexError(f"no image {_short(found)} in the archive of {len(self)}")
        return found % len(self)

    def entry(self, which: int | str) -> Entry:
        """Name, label, mode and size of an image, without decoding it."""
        number = self.number(which)
        return _entry(number, self._stored(number))

    def entries(self) -> Iterator[Entry]:
        """The entries of all images, in their order."""
        for page in range(len(self._root.pages)):
            for k, stored in enumerate(self._page(page)):
                yield _entry(page * PAGE_IMAGES + k, stored)

    def label(self, which: int | str) -> Any:
        """What an image is labelled with, or None."""
        return copy.deepcopy(self._stored(self.number(which)).label)

    def __contains__(self, which: object) -> bool:
        """Whether there is an image of a name; of another kind, whether it equals one."""
        if not isinstance(which, str):
            return any(which == image for image in self)
        try:
            self.number(which)
        except KeyError:
            return False
        return True

    def close(self) -> None:
        """Let go of what is held."""
        self._forget()

    def __enter__(self) -> "ArchiveReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stored(self, number: int) -> Stored:
        return self._page(number // PAGE_IMAGES)[number % PAGE_IMAGES]

    def _page(self, number: int) -> list[Stored]:
        with self._lock:
            if number not in self._pages:
                what = f"page {number} of the index"
                content = read_record(self._source, PAGE, self._root.pages[number], what)
                count = min(PAGE_IMAGES, self._root.images - number * PAGE_IMAGES)
                self._pages[number] = unpack_page(content, count)
            self._pages.move_to_end(number)
            while len(self._pages) > HELD_PAGES:
                self._pages.popitem(last=False)
            return self._pages[number]

    def _decoded(self, group: GroupEntry) -> "list[Image]":
        from diffcodec.archive.coding import decode_images

        with self._lock:
            if group in self._groups:
                self._groups.move_to_end(group)
                return self._groups[group]
        content = read_record(self._source, GROUP, group.place, f"the group at {group.offset}")
        images = decode_images(content, self._find_model, self._limits)
        what = (group.mode, (group.width, group.height))
        if any((image.mode, image.size) != what for image in images):
            raise CorruptError(
                f"the group at {group.offset} holds other images than the index says"
            )
        with self._lock:
            if group in self._groups:  # by another thread meanwhile
                return self._groups[group]
            self._groups[group] = images
            self._held += _pixels(images)
            while len(self._groups) > 1 and self._held > HELD_PIXELS:
                self._held -= _pixels(self._groups.popitem(last=False)[1])
        return images

    def _find_model(self, model_id: bytes, float_arithmetic: bool) -> "Model":
        """The model given, if it is the one; else one that the archive holds, or a shipped one."""
        from diffcodec.codec.opening import named_model

        try:
            return named_model(model_id, float_arithmetic, self._model, self._device)
        except ModelMismatchError:
            if model_id not in self._root.models:
                if self._model is None or not self._is_appended:
                    raise
                return named_model(model_id, float_arithmetic, None, self._device)
        key = model_id, float_arithmetic
        with self._lock:
            if key not in self._embedded:
                place = self._root.models[model_id]
                data = read_record(self._source, MODEL, place, "the archive's model")
                with tempfile.TemporaryDirectory(prefix="diffcodec-") as folder:
                    path = Path(folder, "embedded.safetensors")
                    path.write_bytes(data)
                    self._embedded[key] = named_model(*key, path, self._device)
            return self._embedded[key]


def _short(number: int) -> str:
    """A number for a message; Python writes none of thousands of digits."""
    return str(number) if abs(number) < 1 << 64 else f"{number:#x}"[:20] + "..."


def _entry(number: int, stored: Stored) -> Entry:
    name = str(number) if stored.name is None else stored.name
    return Entry(name, copy.deepcopy(stored.label), stored.group, stored.place)


def _pixels(images: "list[Image]") -> int:
    return sum(image.width * image.height for image in images)
