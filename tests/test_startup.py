"""What a command loads before it evaluates the network: counted, as times hang on the machine."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
ENCODE = """
import gc, sys
models = []
sys.addaudithook(
    lambda event, found: event == "open" and models.append(str(found[0]).rpartition("/")[2])
)
from diffcodec.cli.program import cli
cli(["encode", "small.png"], standalone_mode=False)
slow = {"scipy", "sympy", "networkx", "matplotlib", "torch._dynamo", "torch._inductor"}
print(sorted(slow & set(sys.modules)), [name for name in models if name.endswith(".safetensors")])
print(gc.isenabled(), gc.get_freeze_count() > 200_000)
"""


def test_encoding_a_small_image_loads_what_it_uses(tmp_path: Path) -> None:
    """No other model than the one used is read, nor that one twice.

    Nor does the garbage collector look through what has been loaded: that took as long as coding.
    """
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(smooth).resize((32, 32), Image.Resampling.BICUBIC).save(tmp_path / "small.png")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", ENCODE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout == "[] ['photo.safetensors']\nTrue True\n", found.stderr
    assert (tmp_path / "small.dfc").exists()
