import os
import signal
from pathlib import Path

# Tensors are small, here and in processes that tests start: threads cost more than they give, and
# on a busy machine they wait for each other at full load. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from checked import check_calls
from hypothesis import settings

check_calls()  # against the shapes in signatures, from before the package is imported

from tiny import phased_model, tiny_model  # noqa: E402

from diffcodec.codec import tiles  # noqa: E402
from diffcodec.codec.previews import Previews  # noqa: E402
from diffcodec.diffusion.plan import geometric_plan  # noqa: E402
from diffcodec.networks.gemm import products_work  # noqa: E402
from diffcodec.planning import grid  # noqa: E402
from diffcodec.training import crops, trainer, validation  # noqa: E402

# Under nohup hangups are ignored, and what a test starts would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

torch.set_num_threads(1)

# A processor without VNNI adds products of bytes in 16 bits, where they saturate: a GPU, for which
# the CPU stands in some tests, does not.
if not products_work(torch.device("cpu")):
    torch._int_mm = lambda a, b: (a.long() @ b.long()).int()
    products_work.cache_clear()

# No deadline: the first call into torch is slow. The same examples on every machine.
settings.register_profile("diffcodec", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("fuzz", deadline=None, max_examples=5000)
settings.load_profile("diffcodec")


@pytest.fixture
def small_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs whose validation and quantising take no time."""
    monkeypatch.setattr(validation, "CROPS", 8)
    monkeypatch.setattr(validation, "BATCH", 8)
    monkeypatch.setattr(crops, "CALIBRATION_CROPS", 4)
    monkeypatch.setattr(trainer, "plans_from", lambda _: {"default": geometric_plan(4)})


@pytest.fixture
def chain_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain of a random network never wins: let the other coders fail to compress."""
    monkeypatch.setattr(tiles, "encode_fallback", lambda image, *_: ("raw", bytes(1 << 22)))


@pytest.fixture
def nothing_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lossy files of one image, wherever they end, begin alike."""
    monkeypatch.setattr(Previews, "leave_out", lambda *_: None)


@pytest.fixture
def coarse_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are searched among few levels and lattices."""
    monkeypatch.setattr(grid, "GRID_RATIO", 1.5)
    monkeypatch.setattr(grid, "SPACINGS", (2.3, 0.9, 4))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of random weights: see ``tiny.py``."""
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tiny_float(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same before it was quantised."""
    return tiny_model(tmp_path_factory.mktemp("float"), name="float", arithmetic="float")


@pytest.fixture(scope="session")
def phased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file that codes the lowest two variables in phases."""
    return phased_model(tmp_path_factory.mktemp("phased"))


@pytest.fixture(scope="session")
def phased_float(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same before it was quantised."""
    return phased_model(tmp_path_factory.mktemp("phased-float"), arithmetic="float")
