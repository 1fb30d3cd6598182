"""Writing an archive: groups as they fill, then an index behind them, never over anything."""

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from io import FileIO
from typing import TYPE_CHECKING, Any, NamedTuple

from diffcodec.archive.index import (
    MOST_NESTED,
    MOST_TOLD_BYTES,
    PAGE_IMAGES,
    GroupEntry,
    Root,
    Stored,
    is_deep,
    pack_page,
)
from diffcodec.archive.records import GROUP, MODEL, PAGE, ROOT, Place, record, tail
from diffcodec.container.parts import TILE_SIDE
from diffcodec.errors import DiffcodecError, LimitError, WorkerDiedError

if TYPE_CHECKING:
    from PIL.Image import Image

GROUP_IMAGES = 64
GROUP_PIXELS = 1 << 10  # of an image, for so many of which a group has room
WAITING_PIXELS = 1 << 24  # of images whose groups are not full: over it the largest is written
INDEX_SECONDS = 60  # between two indexes, so that little is lost
INDEX_SHARE = 100  # and of the bytes between them so small a part at most
Encode = Callable[["list[Image]", list[int | None]], bytes]
_Key = tuple[str, tuple[int, int], str | None]  # of images of a group


class _Waiting(NamedTuple):
    """An image whose group is not full."""

    number: int
    image: "Image"
    told: int | None  # its class, for the model


class ArchiveWriter:
    """Appends images to a file that is open at its end.

    Args:
        file: where to write, unbuffered.
        root: of what is there, and ``last`` the images of its last page if that is not full.
        encode: images of one size and mode, and the classes that the model is told of them, to the
            content of a group; picklable for ``executor``.
        group: most images of one.
        executor: that codes several groups at a time, ``jobs`` of them.
    """

    def __init__(
        self,
        file: FileIO,
        root: Root,
        last: list[Stored],
        encode: Encode,
        group: int = GROUP_IMAGES,
        executor: Executor | None = None,
        jobs: int = 1,
    ):
        self._file, self.root, self._encode, self._group = file, root, encode, group
        self._executor, self._jobs = executor, jobs
        self._page = list(last)  # of the images that the next index tells of, those on no full page
        self._pages = list(root.pages[:-1] if last else root.pages)
        self._models = dict(root.models)
        self._names: dict[int, tuple[str | None, Any]] = {}  # of images that are not written
        self._written: dict[int, tuple[GroupEntry, int]] = {}
        self._waiting: dict[_Key, list[_Waiting]] = {}
        self._held = 0  # pixels of these
        self._running: deque[tuple[list[_Waiting], Future[bytes]]] = deque()
        self._next, self.count = root.images, root.images
        self._indexed, self._index_bytes, self._bytes = time.monotonic(), 0, 0
        self._failed = False
        self._lost: list[int] = []  # numbers of images whose group could not be written

    def append(
        self,
        image: "Image",
        name: str | None = None,
        label: Any = None,
        kind: str | None = None,
        told: int | None = None,
    ) -> None:
        """Take an image; its group is written when it is full.

        Args:
            image: plain.
            name, label: see :meth:`diffcodec.archive.archive.Archive.append`.
            kind: what only images of its group are, too.
            told: the class that the model is told.

        Raises:
            TypeError, ValueError: JSON cannot hold the label.
            DiffcodecError, OSError: a group cannot be coded or written.
        """
        if self._failed:
            raise DiffcodecError("a group of the archive has failed: close it and open it again")
        key = (image.mode, image.size, kind)
        self._names[self.count] = _told(name, label)
        waiting = self._waiting.setdefault(key, [])
        waiting.append(_Waiting(self.count, image, told))
        self._held += image.width * image.height
        self.count += 1
        if len(waiting) >= group_room(image.size, self._group):
            self._code(key)
        elif self._held > WAITING_PIXELS:
            self._code(max(self._waiting, key=lambda each: _pixels(self._waiting[each])))

    def add_model(self, model_id: bytes, data: bytes) -> int:
        """Put a model file into the archive, if it is not there; returns the bytes it takes."""
        if model_id in self._models:
            return 0
        self._models[model_id] = self._write(MODEL, data)
        return self._models[model_id].size

    @property
    def is_flushed(self) -> bool:
        """Whether all that was taken is in the index."""
        return self.count == self.root.images and self._models == self.root.models

    def flush(self) -> None:
        """Write all images that were taken, and an index of all.

        Raises:
            DiffcodecError: a group has failed now or before; the images before its first one are
                in the index, those behind are not.
        """
        end = min(self._lost, default=self.count)
        try:
            for key, group in list(self._waiting.items()):
                if group[0].number < end:
                    self._code(key)
            self._collect(0)
        finally:
            self.write_index()
        if self._lost:
            name, _ = self._names[self._next]
            raise DiffcodecError(
                f"the last {self.count - self._next} images, from "
                f"{self._next if name is None else name} on, are not in the archive, since a group "
                "failed; append them again"
            )

    def write_index(self) -> None:
        """Make what is complete, in order, part of the archive."""
        while self._next in self._written:
            stored = Stored(*self._written.pop(self._next), *self._names.pop(self._next))
            self._page.append(stored)
            self._next += 1
        root_images = self._next
        if root_images == self.root.images and self._models == self.root.models:
            return
        start = self._file.tell()
        while len(self._page) >= PAGE_IMAGES:
            self._pages.append(self._write(PAGE, pack_page(self._page[:PAGE_IMAGES])))
            del self._page[:PAGE_IMAGES]
        last = [self._write(PAGE, pack_page(self._page))] if self._page else []
        root = Root(root_images, (*self._pages, *last), dict(self._models))
        place = self._write(ROOT, root.pack())
        self._sync()
        self._put(tail(place.offset))
        self._sync()
        self.root = root
        self._index_bytes, self._bytes = self._file.tell() - start, 0
        self._indexed = time.monotonic()

    def _code(self, key: _Key) -> None:
        """Code a group, or have it coded."""
        group = self._waiting.pop(key)
        self._held -= _pixels(group)
        images, told = [each.image for each in group], [each.told for each in group]
        if self._executor is None:
            with self._failing(group):
                self._write_group(group, self._encode(images, told))
        else:
            self._running.append((group, self._executor.submit(self._encode, images, told)))
            self._collect(2 * self._jobs)

    def _collect(self, most: int) -> None:
        """Write groups that are coded, in order, until no more than so many are under way."""
        while self._running and (len(self._running) > most or self._running[0][1].done()):
            group, future = self._running.popleft()
            with self._failing(group):
                try:
                    content = future.result()
                except BrokenExecutor as e:
                    raise WorkerDiedError(
                        "a worker process ended before its group was coded; go on by append with "
                        "--skip-existing, and with fewer --jobs if memory ran out"
                    ) from e
                self._write_group(group, content)

    @contextmanager
    def _failing(self, group: Sequence[_Waiting] = ()) -> Iterator[None]:
        """Note a failure: it costs a group's images, whose places those behind must not take."""
        try:
            yield
        except BaseException:
            self._failed = True
            waiting = self._names.keys() - self._written.keys()
            self._lost += [each.number for each in group if each.number in waiting]
            raise

    def _write_group(self, group: list[_Waiting], content: bytes) -> None:
        image = group[0].image
        place = self._write(GROUP, content)
        entry = GroupEntry(*place, image.mode, image.width, image.height)
        self._written.update((each.number, (entry, k)) for k, each in enumerate(group))
        self._bytes += place.size
        is_late = time.monotonic() - self._indexed > INDEX_SECONDS
        if is_late and self._bytes > INDEX_SHARE * self._index_bytes:
            self.write_index()

    def _write(self, kind: bytes, content: bytes) -> Place:
        with self._failing():
            offset = self._file.seek(0, os.SEEK_END)
            data = record(kind, offset, content)
            self._put(data)
        return Place(offset, len(data))

    def _put(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def _sync(self) -> None:
        os.fsync(self._file.fileno())


def group_room(size: tuple[int, int], group: int) -> int:
    """How many images of a size (width, height) a group has room for, of so many at most."""
    if max(size) > TILE_SIDE:
        return 1
    return max(1, min(group, group * GROUP_PIXELS // (size[0] * size[1])))


def _told(name: str | None, label: Any) -> tuple[str | None, Any]:
    """A name and a label as JSON gives them back; copies, since the caller may change the label."""
    try:
        text = json.dumps([name, label], allow_nan=False)
        copies: list[Any] = json.loads(text)
    except RecursionError:
        text, copies = "", []
    if len(text) > MOST_TOLD_BYTES:
        raise LimitError(
            f"a name and a label of {len(text)} bytes of JSON, the limit is {MOST_TOLD_BYTES}: "
            "keep what is longer in a file of its own"
        )
    if not copies or is_deep(copies[1]):
        raise LimitError(
            f"a label of more than {MOST_NESTED} lists within each other: make it flatter"
        )
    return copies[0], copies[1]


def _pixels(group: list[_Waiting]) -> int:
    return sum(each.image.width * each.image.height for each in group)
