"""Files of the command line: read whole, written whole or not at all; "-" is a standard stream."""

import errno
import os
import secrets
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from diffcodec.errors import DiffcodecError

EXISTS = (errno.EEXIST, "it exists already")
STANDARD = "-"  # input or output
_ENDING = (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))  # the latter not everywhere


def read_file(path: str, limit: int = -1) -> bytes:
    """All bytes of a file, or of standard input; with a limit no more than so many.

    Raises:
        OSError: with the path in ``filename``.
    """
    if path == STANDARD:
        return sys.stdin.buffer.read(limit)
    with Path(path).open("rb") as file:
        return file.read(limit)


def check_output(path: str, source: str, force: bool) -> None:
    """Refuse an output while nothing has been spent on it yet.

    Args:
        path: the output.
        source: the input that it is made from, which is never overwritten.
        force: whether another file that exists may be.

    Raises:
        DiffcodecError: it is the input itself, or a terminal.
        OSError: it exists, is a folder, or would lie in no folder.
    """
    if path == STANDARD:
        if sys.stdout.buffer.isatty():
            raise DiffcodecError("standard output is a terminal; give an output file or a pipe")
        return
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder", path)
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {target.parent}", path)
    if source != STANDARD and target.exists() and target.samefile(source):
        raise DiffcodecError("the output is the input itself; give another output")
    if target.is_file() and not force:
        raise FileExistsError(*EXISTS, path)


def write_file(path: str | Path, data: bytes, force: bool) -> None:
    """Write a file whole or not at all: a temporary file in its folder takes its name at the end.

    A symbolic link is followed. A device or named pipe is written to as it is.

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
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)
        else:
            _write_beside(target, data, force)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from e


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
        # What is left in the buffer would fail once more, and noisily, when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(e.errno, e.strerror, "standard output") from e


def leave_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this process by an exception, so that no temporary file stays."""
    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    for other in (signal.SIGINT, *_ENDING):  # another would break into what clears away
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def _temporary_name(process: int, token: str) -> str:
    return f".diffcodec-{process}-{token}.tmp"


def _write_beside(target: Path, data: bytes, force: bool) -> None:
    temporary = target.with_name(_temporary_name(os.getpid(), secrets.token_hex(8)))
    try:
        with temporary.open("xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        if not force:
            _take_name(temporary, target)
            return
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
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
