"""Files of the command line: read whole, written whole or not at all; "-" is a standard stream."""

import errno
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from diffcodec.errors import DiffcodecError
from diffcodec.system.addresses import is_address, opened_address

EXISTS = (errno.EEXIST, "it exists already")
STANDARD = "-"  # input or output
_PIECE_BYTES = 1 << 20


def read_file(path: str, limit: int | None = None) -> bytes:
    """All bytes of a file, at an address or of standard input; with a limit no more than so many.

    Raises:
        OSError: with the path in ``filename``.
        DiffcodecError: of an address.
    """
    if path == STANDARD:
        try:
            return _read(sys.stdin.buffer, limit)
        except OSError as e:
            raise OSError(e.errno, e.strerror, "standard input") from e
    with opened_address(path) if is_address(path) else Path(path).open("rb") as file:
        return _read(file, limit)


def _read(file: BinaryIO, limit: int | None) -> bytes:
    if limit is None:
        return file.read()
    pieces = []  # read(limit) would take memory for all that it allows
    while limit > 0 and (piece := file.read(min(limit, _PIECE_BYTES))):
        pieces.append(piece)
        limit -= len(piece)
    return b"".join(pieces)


def is_stream(path: str | Path) -> bool:
    """Whether a path is a standard stream, a device or a pipe: there is nothing to replace."""
    if path == STANDARD:
        return True
    target = Path(path)
    return target.exists() and not (target.is_file() or target.is_dir())


def check_output(path: str, source: str, force: bool) -> None:
    """Refuse an output while nothing has been spent on it yet.

    Args:
        path: the output.
        source: the input that it is made from, which is never overwritten.
        force: whether another file that exists may be.

    Raises:
        DiffcodecError: it is the input itself, or a terminal.
        OSError: it exists, is a folder, or would lie in no folder; or there is no input.
    """
    if path == STANDARD:
        if sys.stdout.buffer.isatty():
            raise DiffcodecError("standard output: it is a terminal; give an output file or a pipe")
        return
    target = Path(path)
    is_file = source != STANDARD and not is_address(source)
    if is_file:
        Path(source).stat()  # that there is no input says more than that its folder is missing
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder", path)
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {target.parent}", path)
    if is_file and target.exists() and target.samefile(source):
        raise DiffcodecError("the output is the input itself; give another output")
    if target.is_file() and not force:
        raise FileExistsError(*EXISTS, path)


def write_file(path: str | Path, data: bytes, force: bool, source: str = STANDARD) -> None:
    """Write a file whole or not at all: a temporary file in its folder takes its name at the end.

    A symbolic link is followed. A device or named pipe is written to as it is.

    Args:
        path: the output.
        data: its bytes.
        force: whether to overwrite a file that exists.
        source: what it was made from: if that is a file, it passes on its permissions and its time
            of modification. What only its owner may read is never readable by others meanwhile.

    Guarantees: on any exception, an interrupt included, an old file is left as it was and no
    temporary file stays. Of a process that is killed outright (SIGKILL) the old file is left too,
    but the temporary, a hidden file ``.diffcodec-*.tmp``, may stay. Without ``force`` no file is
    ever overwritten, not even one that appears in the last moment.

    Raises:
        OSError: with the path in ``filename``.
    """
    if path == STANDARD:
        write_standard_output(data)
        return
    try:
        if is_stream(path):
            Path(path).write_bytes(data)
        else:
            _write_beside(Path(os.path.realpath(path)), data, force, _status(source))
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from e


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file to write, beside the one whose place it takes at the end.

    Raises:
        OSError: it cannot be made, with the path in ``filename``.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(_temporary_name(os.getpid(), secrets.token_hex(8)))
    try:
        yield temporary
        temporary.replace(target)
    except BaseException as e:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(e, OSError) and str(e.filename) == str(temporary):
            raise OSError(e.errno, e.strerror, str(path)) from e
        raise


def remove_temporaries(path: str, process: int) -> None:
    """Clear away what a process that was killed in :func:`write_file` has left beside a file."""
    for temporary in Path(os.path.realpath(path)).parent.glob(_temporary_name(process, "*")):
        temporary.unlink(missing_ok=True)


def write_standard_output(data: bytes) -> None:
    """Write to standard output and flush it.

    Raises:
        OSError: standard output is a full device or a closed pipe.
    """
    stream = sys.stdout.buffer
    try:
        stream.write(data)
        stream.flush()
    except OSError as e:
        discard_standard_output()
        raise OSError(e.errno, e.strerror, "standard output") from e


def discard_standard_output() -> None:
    """Drop what could not be written: it would fail once more, and noisily, when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _temporary_name(process: int, token: str) -> str:
    return f".diffcodec-{process}-{token}.tmp"


def _status(source: str) -> os.stat_result | None:
    """The status of a file that an output is made from; a pipe has nothing to pass on."""
    try:
        status = Path(source).stat() if source != STANDARD else None
    except OSError:  # it has gone since it was read
        return None
    return status if status is not None and stat.S_ISREG(status.st_mode) else None


def _write_beside(target: Path, data: bytes, force: bool, source: os.stat_result | None) -> None:
    temporary = target.with_name(_temporary_name(os.getpid(), secrets.token_hex(8)))
    target.parent.mkdir(parents=True, exist_ok=True)  # gone since it was looked at
    try:
        temporary.touch(0o666 if source is None else 0o600, exist_ok=False)
        with temporary.open("r+b") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        if source is not None:
            with suppress(PermissionError):  # not every file system has them
                temporary.chmod(source.st_mode & 0o777)
                os.utime(temporary, ns=(source.st_atime_ns, source.st_mtime_ns))
        elif target.exists():
            shutil.copymode(target, temporary)
        if force:
            temporary.replace(target)
        else:
            _take_name(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _take_name(temporary: Path, target: Path) -> None:
    """Rename a file, never over another: a hard link, unlike a rename, fails where one is."""
    try:
        try:
            target.hardlink_to(temporary)
            temporary.unlink()
        except FileExistsError:
            raise
        except (OSError, NotImplementedError):  # no hard links here: FAT, some network drives
            target.open("xb").close()  # the name is ours from here on
            try:
                temporary.replace(target)
            except BaseException:
                target.unlink()
                raise
    except FileExistsError as e:
        raise FileExistsError(*EXISTS, str(target)) from e
