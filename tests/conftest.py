import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tiny import tiny_model

from diffcodec import codec, layered

# Under nohup hangups are ignored, and what a test starts would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The tensors are small: threads cost more than they give, above all on a busy machine.
torch.set_num_threads(1)

# No deadline: the first call into torch is slow. The same examples on every machine.
settings.register_profile("diffcodec", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("fuzz", deadline=None, max_examples=5000)
settings.load_profile("diffcodec")


@pytest.fixture
def chain_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain of a random network never wins: let the other coders fail to compress."""
    for module in (codec, layered):
        monkeypatch.setattr(module, "encode_fallback", lambda image: ("raw", bytes(1 << 22)))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of random weights: see ``tiny.py``."""
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tiny_float(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same before it was quantised."""
    return tiny_model(tmp_path_factory.mktemp("float"), name="float", arithmetic="float")
