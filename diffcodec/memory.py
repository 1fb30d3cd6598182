"""Memory that the allocator keeps although nothing uses it.

A network's large tensors come and go in aligned blocks, of which glibc's allocator may fail to use
the same memory again: now and then a process that works on 300 MB holds 3 GB. This gives such
memory back to the system.
"""

import ctypes
import os
from functools import cached_property
from pathlib import Path

SLACK_BYTES = 1 << 29


class Heap:
    """This process's, which may grow by so much over what it was left at the last time."""

    def __init__(self, slack_bytes: int = SLACK_BYTES):
        self.slack_bytes, self.left_bytes = slack_bytes, 0

    @cached_property
    def allocator(self) -> ctypes.CDLL | None:
        """The C library, if it can be told to give memory back, on a system that tells its size."""
        try:
            library = ctypes.CDLL(None)
            library.malloc_trim.argtypes = [ctypes.c_size_t]
            self.resident_bytes()
        except (AttributeError, OSError, TypeError):
            return None
        return library

    def resident_bytes(self) -> int:
        """Memory of this process that is in use or held.

        Raises:
            OSError: where the system does not say so.
        """
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")

    def release_unused(self) -> None:
        """Give unused memory back, if the heap has grown by the slack; nothing without glibc."""
        library = self.allocator
        if library is not None and self.resident_bytes() > self.left_bytes + self.slack_bytes:
            library.malloc_trim(0)
            self.left_bytes = self.resident_bytes()


HEAP = Heap()
