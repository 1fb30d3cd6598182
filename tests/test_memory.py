"""Freed memory is used again; what stays unused goes back to the system."""

import ctypes
import os
import sys
from pathlib import Path
from subprocess import run

import pytest

from diffcodec.system.memory import Heap, keep_freed_memory

PIECE, COUNT = 1 << 16, 3000  # bytes; small enough for glibc to keep


@pytest.mark.skipif(Heap().allocator is None, reason="not glibc")
def test_what_is_free_goes_back() -> None:
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    pieces = [library.malloc(PIECE) for _ in range(COUNT)]
    for piece in pieces:
        ctypes.memset(piece, 1, PIECE)
    for piece in pieces[:-1]:  # the last one keeps the heap from shrinking by itself
        library.free(piece)
    heap = Heap(is_ours=True, slack_bytes=0)
    before = heap.resident_bytes()
    heap.release_unused()
    library.free(pieces[-1])
    assert before - heap.left_bytes > 0.9 * COUNT * PIECE


def test_only_when_it_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    class Allocator:
        trims = 0

        def malloc_trim(self, _: int) -> None:
            self.trims += 1

    heap, sizes = Heap(slack_bytes=10), iter([40, 30, 35, 41, 31])
    monkeypatch.setattr(heap, "resident_bytes", lambda: next(sizes))
    heap.__dict__["allocator"] = allocator = Allocator()
    heap.release_unused()
    assert allocator.trims == 0  # a process that is not ours
    heap.is_ours, states = True, []
    for _ in range(3):
        heap.release_unused()
        states.append((allocator.trims, heap.left_bytes))
    assert states == [(1, 30), (1, 30), (2, 31)]


REUSED = """
import resource
from diffcodec.system import memory
memory.keep_freed_memory()
import torch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def is_reused(mebibytes):
    for _ in range(3):
        before = faults()
        torch.ones(mebibytes << 18)
    return faults() - before < 20

before = memory.HEAP.resident_bytes()
reused = sum(map(is_reused, [2, 3, 4, 5, 6, 7]))
kept = memory.HEAP.resident_bytes() - before
torch.ones(90 << 18)
print(reused, kept >> 20, memory.HEAP.resident_bytes() - before >> 20)
"""


@pytest.mark.skipif(Heap().allocator is None, reason="not glibc")
def test_tensors_use_the_same_memory_and_the_largest_give_it_back() -> None:
    command = [sys.executable, "-c", REUSED]
    told = run(command, check=True, capture_output=True, text=True).stdout
    reused, kept, kept_of_large = map(int, told.split())
    assert reused >= 4  # not all: glibc may fail to use an aligned block again
    assert kept_of_large < kept + 20


def test_a_setting_from_outside_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffcodec.system.memory.HEAP", Heap())
    monkeypatch.setattr("ctypes.CDLL", lambda _: None)  # a C library without mallopt
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    keep_freed_memory()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"


LIBRARY_CALLS = """
import ctypes, sys
from unittest import mock
from diffcodec import decode, encode, load_model
from diffcodec.system import memory

if sys.argv[2] == "program":
    memory.keep_freed_memory()
memory.HEAP.slack_bytes = 0
memory.HEAP.__dict__["allocator"] = allocator = mock.Mock()
from PIL import Image
model = load_model(sys.argv[1])
decode(encode(Image.effect_noise((8, 8), 9), model, "fast", timestep=1), model=model)
print(allocator.malloc_trim.call_count)
"""


@pytest.mark.parametrize("caller", ["application", "program"])
def test_library_calls_leave_the_process_alone(tiny: Path, caller: str) -> None:
    command = [sys.executable, "-c", LIBRARY_CALLS, str(tiny), caller]
    trims = int(run(command, check=True, capture_output=True, text=True).stdout)
    assert (trims > 0) == (caller == "program")


@pytest.mark.parametrize("error", [OSError, AttributeError])
def test_other_systems_are_left_alone(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> int:
        raise error

    heap = Heap(is_ours=True)
    monkeypatch.setattr(heap, "resident_bytes", missing)
    heap.release_unused()
    assert heap.allocator is None
