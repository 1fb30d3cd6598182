"""What becomes of the memory of a network's large tensors, which come and go at every layer.

Left alone, glibc's allocator returns each of them to the system at once, which must then clear as
many pages for the next: a third of the time of decoding. So the commands keep what is freed
(:func:`keep_freed_memory`), but for the largest blocks, of which there are few. But in aligned
blocks glibc may fail to use the same memory again: now and then a process that works on 300 MB
holds 3 GB. That is given back (:class:`Heap`).

Both change the whole process, so they are for programs: a call of the library does neither.
"""

import ctypes
import os
from contextlib import suppress
from functools import cached_property
from pathlib import Path

SLACK_BYTES = 1 << 27
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGE_BYTES = 1 << 23  # of blocks that go back to the system at once, as before: few are so large
NEVER = (1 << 31) - 1  # bytes
KEPT_KERNELS = "512"  # an image needs up to some 350: of four sizes of tiles


def keep_freed_memory() -> None:
    """Have this process use freed memory again, in huge pages, and give back what it cannot use.

    Numbers stay the same; nothing happens where glibc is not used. It is for programs, since it
    changes the whole process: call it before torch takes memory. It halves the number of kernels
    that oneDNN keeps, too, one for each layer and size of a tile, which grow to gigabytes where
    images are of very many sizes. MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ of glibc,
    THP_MEM_ALLOC_ENABLE of torch and ONEDNN_PRIMITIVE_CACHE_CAPACITY do the same from outside,
    except for giving back; the last two, where set, are left alone.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KEPT_KERNELS)
    HEAP.is_ours = True
    with suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, NEVER)


class Heap:
    """This process's heap, which may grow by so much over what it was left at the last time.

    Args:
        is_ours: whether the process is, so that its memory may be given back.
        slack_bytes: how much.
    """

    def __init__(self, is_ours: bool = False, slack_bytes: int = SLACK_BYTES):
        self.is_ours, self.slack_bytes, self.left_bytes = is_ours, slack_bytes, 0

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
        """Give unused memory of our own process back, if it has grown by the slack."""
        library = self.allocator if self.is_ours else None
        if library is not None and self.resident_bytes() > self.left_bytes + self.slack_bytes:
            library.malloc_trim(0)
            self.left_bytes = self.resident_bytes()


HEAP = Heap()
