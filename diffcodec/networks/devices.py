"""Where networks compute."""

import os

import torch

from diffcodec.errors import DiffcodecError, UnsupportedError
from diffcodec.networks.config import DEVICES

CPU = torch.device("cpu")


def find_device(name: str) -> torch.device:
    """The device of this process: with torchrun the GPU of its number on its machine.

    Args:
        name: one of ``DEVICES``; "auto" is a GPU if there is one.

    Raises:
        UnsupportedError: if it is none of them.
        DiffcodecError: if it is not there.
    """
    if not isinstance(name, str) or name not in DEVICES:
        raise UnsupportedError(f"device {name!r}: expected one of {', '.join(DEVICES)}")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return CPU
    if not torch.cuda.is_available():
        raise DiffcodecError("no GPU that this installation of torch can use; give the device cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def describe_device(device: torch.device) -> str:
    """Its name, for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
