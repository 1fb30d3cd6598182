"""An archive opened: read from, and appended to."""

import errno
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffcodec.archive.index import PAGE_IMAGES, Entry, Root, Stored
from diffcodec.archive.parts import MOST_IMAGES
from diffcodec.archive.reading import ArchiveReader
from diffcodec.archive.records import HEADER, ROOT, record, tail
from diffcodec.archive.repair import last_root
from diffcodec.archive.sources import LocalSource, open_source
from diffcodec.archive.writing import GROUP_IMAGES, ArchiveWriter
from diffcodec.errors import DiffcodecError, UnsupportedError
from diffcodec.limits import DEFAULT_LIMITS, Limits
from diffcodec.models.file import DEFAULT_MODEL, file_id, model_path
from diffcodec.system.files import write_file
from diffcodec.values import check_limits, flag, integer

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffcodec.codec.encoding import ImageLike
    from diffcodec.models.model import Model

MODES, CLOSED = ("r", "a", "x"), "closed"


def _create(path: Path, is_new: bool) -> None:
    """Make an archive without images, if there is none."""
    empty = HEADER + record(ROOT, len(HEADER), Root().pack()) + tail(len(HEADER))
    with suppress(*(() if is_new else (FileExistsError,))):
        try:
            write_file(path, empty, force=False)
        except ValueError as e:  # a NUL in the path, or what no name can hold
            raise DiffcodecError(f"{str(path)!r}: {e}; check the path") from e


@contextmanager
def _open_to_append(source: LocalSource) -> Iterator[FileIO]:
    """A file of which no other process appends anything meanwhile, where the system can tell."""
    try:
        opened = source.file.open("r+b", buffering=0)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(source.path)) from e
    with opened as file:
        with suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as e:
                raise OSError(
                    e.errno, "another process appends to it; wait for it", str(source.path)
                ) from e
        yield file


@dataclass(frozen=True)
class _Encoder:
    """Codes groups in this process or another."""

    model: "str | PathLike[str] | Model"
    plan: str
    device: str | None
    adapt: bool

    def __call__(self, images: "list[Image]", told: list[int | None]) -> bytes:
        from diffcodec.archive.coding import encode_images

        return encode_images(images, self.load(), self.plan, told, self.adapt)

    def load(self) -> "Model":
        """The model, which stays loaded."""
        from diffcodec.codec.encoding import load_planned

        return load_planned(self.model, self.plan, self.device)


class Archive(ArchiveReader):
    """An archive of images: a sequence to read, and to append to if it is opened so.

    What is appended is part of the file from :meth:`flush` or :meth:`close` on. Whatever ends the
    process, the archive opens with all that was complete before.
    """

    def __init__(self, path: str | PathLike[str], mode: str = "r", **options: Any):
        """See :func:`open_archive`."""
        self._options = options
        self._writer: ArchiveWriter | None = None
        self._mode, self._open = mode, ExitStack()
        source = open_source(path)
        if mode != "r":
            if not isinstance(source, LocalSource):
                raise UnsupportedError(f"{path}: only files are appended to, expected a path")
            _create(source.file, is_new=mode == "x")
        made = (options["model"], options["limits"], options["device"])
        super().__init__(source, *made, is_appended=mode != "r")

    def __getstate__(self) -> dict[str, Any]:
        if self._writer is not None:
            raise TypeError("an archive that is appended to goes to no other process: close it")
        kept = {"_mode": "r", "_options": self._options | {"executor": None}}
        return super().__getstate__() | kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._writer, self._open = None, ExitStack()

    def __len__(self) -> int:
        return self._writer.count if self._writer else super().__len__()

    def append(self, image: "ImageLike", name: str | None = None, label: Any = None) -> None:
        """Take one more image, to be coded without loss when its group is full.

        Args:
            image: what :func:`diffcodec.encode` takes.
            name: to find it by; without one it goes by its number.
            label: whatever JSON can hold; of an archive by classes the image's, or None.

        Raises:
            DiffcodecError: it cannot be coded, or the archive is open for reading alone.
            OSError: it cannot be written.
            TypeError, ValueError: it is no image, the name no text, or the label not JSON's.
        """
        from diffcodec.codec.arguments import held_source
        from diffcodec.images.color_sets import find_color_set

        if name is not None and not isinstance(name, str):
            raise TypeError(f"name: found {type(name).__name__}, expected a text")
        source = held_source(image, self._limits, self._options["strip"])
        colors = find_color_set(source)
        kind = colors.conversion if colors else None
        writer, told = self._writing(), None
        if self._options["classes"] and label is not None:
            told = integer("label", label)
            self._encoder.load().check_label(told)
        writer.append(source, name, label if told is None else told, kind, told)

    def extend(self, images: "Iterable[ImageLike]") -> None:
        """Append several, without names."""
        for image in images:
            self.append(image)

    def embed_model(self) -> int:
        """Put the model that it is written with into the archive, so that it needs no other.

        Returns:
            The bytes that it takes now: none if it was there.

        Raises:
            UnsupportedError: the archive is open for reading alone.
            ModelMismatchError: there is no such model, or it comes from no file.
        """
        writer = self._writing()
        data = model_path(self._options["model"]).read_bytes()
        return writer.add_model(file_id(data), data)

    def flush(self) -> None:
        """Write what was appended, and an index of it.

        Raises:
            DiffcodecError, OSError: a group of images has failed, now or before: those behind its
                first one are not written.
        """
        if self._writer is not None and not self._writer.is_flushed:
            self._writer.flush()
            self._take_over(self._writer.root)

    def close(self) -> None:
        """Write what was appended, and let go of the file; from then on nothing is appended."""
        try:
            self.flush()
        finally:
            self._release()

    def __exit__(self, *raised: object) -> None:
        if raised[0] is None or self._writer is None:
            self.close()
            return
        try:  # something failed: what is coded is kept, what waits is not
            with suppress(OSError):
                self._writer.write_index()
        finally:
            self._release()

    def __enter__(self) -> "Archive":
        return self

    def number(self, which: int | str) -> int:
        """See :meth:`ArchiveReader.number`; what was appended is written first."""
        self.flush()
        return super().number(which)

    def entries(self) -> Iterator[Entry]:
        """See :meth:`ArchiveReader.entries`."""
        self.flush()
        return super().entries()

    def _release(self) -> None:
        self._writer, self._mode = None, CLOSED
        self._open.close()
        super().close()

    def _take_over(self, root: Root) -> None:
        """Let what was written since be read."""
        self._root = root
        self._pages.clear()
        self._numbers = None

    def _writing(self) -> ArchiveWriter:
        if self._writer is None:
            assert isinstance(self._source, LocalSource)
            if self._mode not in ("a", "x"):
                how = "closed" if self._mode == CLOSED else "open for reading"
                raise UnsupportedError(f"the archive is {how}; open it by open_archive(path, 'a')")
            file = self._open.enter_context(_open_to_append(self._source))
            self._take_over(last_root(self._source))
            last = self._root.images % PAGE_IMAGES
            page: list[Stored] = self._page(self._root.images // PAGE_IMAGES) if last else []
            made = self._options
            several = (made["group"], made["executor"], made["jobs"])
            self._writer = ArchiveWriter(file, self._root, page, self._encoder, *several)
        return self._writer

    @property
    def _encoder(self) -> _Encoder:
        return _Encoder(*(self._options[each] for each in ("model", "plan", "device", "adapt")))


def open_archive(
    path: str | PathLike[str],
    mode: str = "r",
    *,
    model: "str | PathLike[str] | Model | None" = None,
    plan: str = "default",
    group: int = GROUP_IMAGES,
    classes: bool = False,
    adapt: bool = False,
    strip: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    device: str | None = None,
    executor: Executor | None = None,
    jobs: int = 1,
) -> Archive:
    """Open an archive of images.

    Args:
        path: of a file; to read also a URL that fsspec knows, such as ``s3://bucket/x.dfca``.
        mode: "r" to read; "a" to read and append, making the file if there is none; "x" the same
            of a file that must not be there.
        model: what to code images by, a shipped one by default; to read, the model that the archive
            was made with, if it is neither a shipped one nor in the archive.
        plan: "fast", "default" or "best".
        group: how many images share a stack, and are decoded for the sake of one; of images of over
            1024 pixels as many as have so many pixels together.
        classes: tell the model, which was trained with labels, that of each image: its class.
        adapt: fit the model, one in phases, to each group, where it pays; it takes longer.
        strip: leave out all metadata; see :func:`diffcodec.encode`.
        limits: the sizes to accept.
        device: where the model computes; see :func:`diffcodec.load_model`.
        executor: of ``concurrent.futures``, to code several groups at a time.
        jobs: how many.

    Raises:
        DiffcodecError: there is no such file, it is no archive, or damaged; another mode; the file
            cannot be made, or is there already; ``group`` or ``jobs`` is out of range.
        TypeError: the limits are none, or these no integers.
    """
    if mode not in MODES:
        raise UnsupportedError(f"mode {mode!r}: expected one of {MODES}")
    check_limits(limits)
    if not 1 <= integer("group", group) <= MOST_IMAGES:
        raise UnsupportedError(f"a group of {group} images: expected 1 to {MOST_IMAGES}")
    if integer("jobs", jobs) < 1:
        raise UnsupportedError(f"{jobs} jobs: expected 1 or more")
    options: dict[str, Any] = {"plan": plan, "group": group, "strip": strip, "limits": limits}
    options |= {"classes": flag("classes", classes), "adapt": flag("adapt", adapt)}
    options |= {"device": device, "executor": executor, "jobs": jobs}
    options["model"] = DEFAULT_MODEL if model is None and mode != "r" else model
    try:
        return Archive(path, mode, **options)
    except OSError as error:
        advice = "free some space" if error.errno == errno.ENOSPC else "check the path"
        raise DiffcodecError(f"{path}: {error.strerror or error}; {advice}") from error
