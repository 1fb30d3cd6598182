"""A forked child codes as its parent does, which has used threads that the child lacks."""

import os
import subprocess
import sys

import pytest
from PIL import Image

from diffcodec import open_archive

CODE = """
import os, signal, sys
import numpy as np
import torch
from PIL import Image
from diffcodec import decode, encode, load_model

torch.set_num_threads(2)
model = load_model(sys.argv[1])
pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)

def coded():
    torch.zeros(1 << 20).exp()  # work for two threads, whatever the network's size
    data = encode(Image.fromarray(pixels), model, timestep=2)
    return data, decode(data, model=model).tobytes()

expected = coded()
if (child := os.fork()) == 0:
    signal.alarm(240)
    os._exit(0 if coded() == expected else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert coded() == expected and torch.get_num_threads() == 2
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_codes_the_same_bytes(tiny):
    # Threads that spin where they wait would take minutes on a busy machine.
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-c", CODE, str(tiny)]
    done = subprocess.run(command, env=environment, check=False)
    assert done.returncode == 0


HELD = """
import os, signal, sys, threading, time
from types import SimpleNamespace
from numba.core.compiler_lock import global_compiler_lock
from PIL import Image
from diffcodec import compiled, open_archive
from diffcodec.images import color_sets, opening, source_planes

archive, parent, inside = open_archive(sys.argv[2]), os.getpid(), threading.Event()
limit, grey = Image.MAX_IMAGE_PIXELS, Image.new("RGB", (2, 2), "grey")

def slow(function):
    def called(*given):
        if os.getpid() == parent:
            inside.set()
            time.sleep(1)
        return function(*given)
    return called

def archive_by_name():
    assert archive.number("b") == 1

def beyond_pillows_limit():
    assert Image.MAX_IMAGE_PIXELS == limit
    with opening.beyond_pillows_limit(1 << 40):
        slow(int)()

def compiling():
    @slow
    def is_exact():
        return True

    def by_the_compiler():
        with global_compiler_lock:
            return is_exact()

    assert compiled.works(by_the_compiler)

archive._source = SimpleNamespace(read=slow(archive._source.read))
color_sets._triples = slow(color_sets._triples)
source_planes._sources = slow(source_planes._sources)
use = {
    "archive": archive_by_name,
    "Pillow's limit": beyond_pillows_limit,
    "compiler": compiling,
    "colour set": lambda: color_sets.triples("grey"),
    "planes": lambda: source_planes.to_planes(grey, "jfif"),
}[sys.argv[1]]
thread = threading.Thread(target=use)
thread.start()
inside.wait()
if (child := os.fork()) == 0:
    signal.alarm(60)
    try:
        use()
    except BaseException:
        os._exit(1)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
thread.join()
"""


@pytest.fixture(scope="module")
def archive(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "x.dfca"
    with open_archive(path, "x", model=tiny) as written:
        for name in "ab":
            written.append(Image.new("RGB", (4, 4)), name)
    return path


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("what", ["archive", "Pillow's limit", "compiler", "colour set", "planes"])
def test_a_forked_child_finds_locks_free_that_threads_held(archive, what):
    command = [sys.executable, "-W", "ignore", "-c", HELD, what, str(archive)]
    assert subprocess.run(command, check=False).returncode == 0
