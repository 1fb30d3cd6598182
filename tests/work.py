"""What the tests let worker processes do; importable by them, and light."""

import os
import signal
import time

from diffcodec.errors import FormatError
from diffcodec.system.files import write_file


def work(name: str, path: str) -> str:
    """Write a file, or come to grief as the name says."""
    if name == "error":
        raise FormatError("found nothing")
    if name == "killed":
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    if name == "exit":
        os._exit(3)
    if name == "slow":
        os.fsync = lambda _: time.sleep(3600)
    write_file(path, name.encode(), force=False)
    return name.upper()
