"""A forked child codes as its parent does, which has used threads that the child lacks."""

import os
import subprocess
import sys

import pytest

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
