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
from collections.abc import Callable
from pathlib import Path

import pytest

from diffcodec.errors import DiffcodecError
from diffcodec.files import check_output, read_file, write_file

ROOT = Path(__file__).parents[1]
OLD, NEW = b"the old file", b"the new file, longer"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_write_and_read(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    write_file(path, NEW, force=False)
    assert read_file(path) == NEW
    assert contents(tmp_path) == {"file": NEW}


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
        assert mode == "xb"
        file = Failing(io.FileIO(self, "x"))
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
from diffcodec import cli, files

def slow(descriptor):
    print("writing", flush=True)
    time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts without
os.fsync = slow
path = sys.argv.pop()
cli.cli = click.command()(lambda: files.write_file(path, b"new", force=True))
cli.main()
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 1)]
)
def test_killed_while_writing(tmp_path: Path, number: int, code: int) -> None:
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
    assert process.returncode == code
    assert contents(tmp_path) == {"file": OLD}


def test_outputs_that_are_refused(tmp_path: Path) -> None:
    source, other, link = tmp_path / "source", tmp_path / "other", tmp_path / "link"
    source.write_bytes(OLD)
    other.write_bytes(OLD)
    link.symlink_to(source)
    check_output(str(tmp_path / "new"), str(source), force=False)
    check_output(str(other), str(source), force=True)
    check_output("/dev/null", str(source), force=False)
    for force in (False, True):
        for path in (source, link):
            with pytest.raises(DiffcodecError, match="input itself"):
                check_output(str(path), str(source), force)
        with pytest.raises(IsADirectoryError):
            check_output(str(tmp_path), str(source), force)
        with pytest.raises(FileNotFoundError, match="no folder"):
            check_output(str(tmp_path / "nowhere" / "new"), str(source), force)
    with pytest.raises(FileExistsError):
        check_output(str(other), str(source), force=False)
