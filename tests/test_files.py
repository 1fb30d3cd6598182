"""Files are written whole or not at all, whatever happens meanwhile."""

import errno
import io
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diffcodec.errors import DiffcodecError
from diffcodec.system.files import check_output, read_file, write_file
from diffcodec.system.process import leave_on_signals

ROOT = Path(__file__).parents[1]
OLD, NEW = b"the old file", b"the new file, longer"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_write_and_read(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    write_file(path, NEW, force=False)
    assert read_file(path) == NEW
    assert contents(tmp_path) == {"file": NEW}
    write_file(tmp_path / "gone" / "file", NEW, force=False)  # as another process may clear away
    assert contents(tmp_path / "gone") == {"file": NEW}


@pytest.mark.parametrize("name", ["file", "." * 3 + "x", "n" * 255])
def test_overwriting_needs_force(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(OLD)
    with pytest.raises(FileExistsError) as caught:
        write_file(str(path), NEW, force=False)
    assert caught.value.filename == str(path)
    assert contents(tmp_path) == {name: OLD}
    write_file(str(path), NEW, force=True)
    assert contents(tmp_path) == {name: NEW}


def without_hard_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)


@pytest.mark.parametrize("hard_links", [True, False])
def test_of_many_who_write_without_force_one_succeeds(
    tmp_path: Path, hard_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have all found that there is no such file before any takes the name."""
    if not hard_links:
        without_hard_links(monkeypatch)
    count, fsync = 8, os.fsync
    barrier = threading.Barrier(count)

    def meet(descriptor: int) -> None:
        fsync(descriptor)
        barrier.wait(60)

    def write(i: int) -> int | None:
        try:
            write_file(tmp_path / "file", 100 * bytes([i]), force=False)
        except FileExistsError as e:
            assert e.strerror == "it exists already"
            return None
        return i

    monkeypatch.setattr(os, "fsync", meet)
    with ThreadPoolExecutor(count) as pool:
        [first] = set(pool.map(write, range(count))) - {None}
    assert first is not None
    assert contents(tmp_path) == {"file": 100 * bytes([first])}


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_a_new_file_that_cannot_take_its_name_leaves_nothing(
    tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    without_hard_links(monkeypatch)
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(type(error)):
        write_file(tmp_path / "file", NEW, force=False)
    assert not contents(tmp_path)


def test_permissions(tmp_path: Path) -> None:
    """A new file has those of any new file, an overwritten one keeps its own."""
    plain, new, old = tmp_path / "plain", tmp_path / "new", tmp_path / "old"
    plain.touch()
    old.touch()
    old.chmod(0o640)
    write_file(str(new), NEW, force=False)
    write_file(str(old), NEW, force=True)
    assert new.stat().st_mode == plain.stat().st_mode
    assert stat.S_IMODE(old.stat().st_mode) == 0o640


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
@pytest.mark.parametrize("old", [False, True])
def test_what_a_file_is_made_from_passes_on_its_permissions_and_time(
    tmp_path: Path, mode: int, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(OLD)
    source.chmod(mode)
    os.utime(source, ns=(10**18, 10**18 + 7))
    if old:
        target.write_bytes(OLD)
    meanwhile: list[int] = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        meanwhile.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    write_file(str(target), NEW, force=old, source=str(source))
    assert target.read_bytes() == NEW
    assert stat.S_IMODE(target.stat().st_mode) == mode
    assert target.stat().st_mtime_ns == 10**18 + 7
    assert meanwhile == [0o600]


@pytest.mark.parametrize("source", ["-", "/dev/null", "missing"])
def test_what_is_no_file_passes_on_nothing(tmp_path: Path, source: str) -> None:
    plain, new = tmp_path / "plain", tmp_path / "new"
    plain.touch()
    write_file(str(new), NEW, force=False, source=source)
    assert new.stat().st_mode == plain.stat().st_mode


def test_a_limit_of_bytes_beyond_the_file_is_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(NEW)
    assert [read_file(str(path), limit) for limit in (0, 3, 10**12, 10**30)] == [
        b"",
        NEW[:3],
        NEW,
        NEW,
    ]


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(OLD)
    (tmp_path / "link").symlink_to("target")
    write_file(str(tmp_path / "link"), NEW, force=True)
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path) == {"target": NEW, "link": NEW}


def test_devices_are_written_in_place() -> None:
    write_file("/dev/null", NEW, force=False)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(OSError, match="No space left") as caught:
        write_file("/dev/full", NEW, force=False)
    assert caught.value.filename == "/dev/full"


class Failing(io.BufferedWriter):
    """A file that breaks in one of its calls, after some bytes."""

    call = ""
    error: BaseException

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if self.call == "write":
            super().write(data[:3])
            raise self.error
        return super().write(data)

    def flush(self) -> None:
        super().flush()
        if self.call == "flush":
            raise self.error


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), SystemExit()]
)
@pytest.mark.parametrize("call", ["open", "write", "flush", "fsync", "copymode", "replace"])
def test_whichever_call_fails_the_old_file_stays(
    tmp_path: Path, call: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)

    def fail(*_: object) -> None:
        raise error

    def failing_open(self: Path, mode: str) -> Failing:
        assert mode == "r+b"
        file = Failing(io.FileIO(self, "r+"))
        file.call, file.error = call, error
        return file

    patches: dict[str, tuple[object, str, Callable[..., object]]] = {
        "open": (Path, "open", fail),
        "write": (Path, "open", failing_open),
        "flush": (Path, "open", failing_open),
        "fsync": (os, "fsync", fail),
        "copymode": (shutil, "copymode", fail),
        "replace": (Path, "replace", fail),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*patches[call])
        with pytest.raises(type(error)):
            write_file(str(path), NEW, force=True)
    assert contents(tmp_path) == {"file": OLD}


class Full(io.FileIO):
    """A file on a disk that takes a few bytes with each write, until it is full."""

    room: int

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= 1
        return super().write(data[:4])


@pytest.mark.parametrize("old", [None, OLD])
@pytest.mark.parametrize("writes", range(-(-len(NEW) // 4) + 1))
def test_a_disk_that_is_full_at_any_write(
    tmp_path: Path, writes: int, old: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    before = contents(tmp_path)

    def full_open(self: Path, mode: str) -> io.BufferedWriter:
        file = Full(self, mode.replace("b", ""))
        file.room = writes
        return io.BufferedWriter(file)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full_open)
        if 4 * writes >= len(NEW):
            write_file(str(path), NEW, force=True)
            before = {"file": NEW}
        else:
            with pytest.raises(OSError, match="No space left") as caught:
                write_file(str(path), NEW, force=True)
            assert caught.value.filename == str(path)
    assert contents(tmp_path) == before


ON_A_SMALL_DISK = """
import sys
from pathlib import Path
from diffcodec.system.files import write_file

folder = Path(sys.argv[1])
path, old = folder / "file", bytes(20000)
write_file(path, old, force=False)
for size in range(0, 200000, 4000):
    try:
        write_file(path, bytes([1]) * size, force=True)
        old = bytes([1]) * size
    except OSError as e:
        print(e.strerror)
    assert [p.name for p in folder.iterdir()] == ["file"]
    assert path.read_bytes() == old
"""


def test_a_real_disk_that_is_full(tmp_path: Path) -> None:
    """A file system of 128 KiB of its own: old and new file do not always fit beside each other."""
    mount = 'mount -t tmpfs -o size=128k none "$0" && exec "$@"'
    inside = ["unshare", "--mount", "sh", "-c", mount, str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.call(
        [*inside, "true"], stderr=subprocess.DEVNULL
    ):
        pytest.skip("file systems cannot be mounted here")
    result = subprocess.run(
        [*inside, sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert set(lines) == {"No space left on device"}
    assert 10 < len(lines) < 50
    assert not contents(tmp_path)


@pytest.mark.parametrize("limit", range(0, len(NEW), 3))
def test_a_disk_that_fills_up(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write_file(str(path), NEW, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(path)
    assert contents(tmp_path) == {"file": OLD}


SLOW_WRITE = """
import os, signal, sys, time
import click
from diffcodec.cli import program
from diffcodec.system import files

def slow(descriptor):
    print("writing", flush=True)
    time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts without
os.fsync = slow
path = sys.argv.pop()
program.cli = click.command()(lambda: files.write_file(path, b"new", force=True))
program.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_killed_while_writing(tmp_path: Path, number: int) -> None:
    """It dies by the signal, so that a shell's loop ends too."""
    path = tmp_path / "file"
    path.write_bytes(OLD)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITE, path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        assert len(contents(tmp_path)) == 2
        process.send_signal(number)
    assert process.returncode == -number
    assert contents(tmp_path) == {"file": OLD}


def test_signals_while_it_clears_away_change_nothing(tmp_path: Path) -> None:
    """As where a terminal closes and its session is ended too."""
    code = SLOW_WRITE.replace(
        "os.fsync = slow",
        """os.fsync = slow
from pathlib import Path
unlink = Path.unlink
def interrupted(self, missing_ok):
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(os.getpid(), number)
    unlink(self, missing_ok)
Path.unlink = interrupted""",
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "file"], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGTERM)
    assert process.returncode == -signal.SIGTERM
    assert not contents(tmp_path)


def test_nohup_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        leave_on_signals()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_outputs_that_are_refused(tmp_path: Path) -> None:
    source, other = tmp_path / "source", tmp_path / "other"
    link, hard_link = tmp_path / "link", tmp_path / "hard link"
    source.write_bytes(OLD)
    other.write_bytes(OLD)
    link.symlink_to(source)
    hard_link.hardlink_to(source)
    check_output(str(tmp_path / "new"), str(source), force=False)
    check_output(str(other), str(source), force=True)
    check_output("/dev/null", str(source), force=False)
    for force in (False, True):
        for path in (source, link, hard_link, tmp_path / "." / "source"):
            with pytest.raises(DiffcodecError, match="input itself"):
                check_output(str(path), str(source), force)
        with pytest.raises(IsADirectoryError):
            check_output(str(tmp_path), str(source), force)
        with pytest.raises(FileNotFoundError, match="no folder"):
            check_output(str(tmp_path / "nowhere" / "new"), str(source), force)
    with pytest.raises(FileExistsError):
        check_output(str(other), str(source), force=False)


SWALLOWING = """
import signal, time, weakref
from diffcodec.system.process import leave_on_signals

leave_on_signals()
thing = set()
reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
del thing  # what is raised in the callback ends there
time.sleep(60)
"""


def test_a_signal_that_arrives_in_a_callback_is_not_lost() -> None:
    """In those of weak references, as compilers have them, exceptions go nowhere."""
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWING], cwd=ROOT, timeout=50, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, b"")
