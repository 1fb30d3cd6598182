"""What the tests let worker processes do; importable by them, and light."""

import os
import signal
import time
from collections.abc import Iterable, Iterator

from diffcodec.errors import FormatError
from diffcodec.system.files import write_file


def work(jobs: Iterable[tuple[str, ...]]) -> Iterator[str | Exception]:
    """Write files, or come to grief as their names say."""
    for name, path in jobs:
        yield FormatError("found nothing") if name == "error" else _write(name, path)


def _write(name: str, path: str) -> str:
    if name == "killed":
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    if name == "exit":
        os._exit(3)
    if name == "last":  # of all: it is killed when the other is done
        while not os.path.exists(path[: -len(name)] + "a"):  # noqa: PTH110
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "slow":
        os.fsync = lambda _: time.sleep(3600)
    write_file(path, name.encode(), force=False)
    return name.upper()
