"""Where networks compute, and the way there and back.

A GPU works while its program goes on, unless that waits: for a number, or for a copy between
memories. So copies go by memory that is pinned, which take no waiting.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    """The device's name, for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that is to be had."""
    free: int = torch.cuda.mem_get_info(device)[0]
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + held


def to_device(array: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """Numbers of the CPU's memory on a device, which is not waited for."""
    tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def elsewhere(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """A function whose tensors, in tuples and lists too, go to a device and come back."""

    def computed(*given: Any, **named: Any) -> Any:
        there = [_moved(x, device) for x in given]
        return _moved(function(*there, **{k: _moved(x, device) for k, x in named.items()}), CPU)

    return computed


def _moved(x: Any, device: torch.device) -> Any:
    if isinstance(x, Tensor):
        return x.to(device)
    if isinstance(x, list | tuple):
        parts = [_moved(part, device) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return x


class Arriving:
    """Tensors on their way from a device to the CPU's memory, behind the work that makes them."""

    def __init__(self, tensors: Sequence[Tensor]):
        self._event: torch.cuda.Event | None = None
        self._tensors = list(tensors)
        if tensors[0].device.type == "cpu":
            return
        self._tensors = [
            torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)
            for t in tensors
        ]
        self._event = torch.cuda.Event()
        self._event.record()

    def arrays(self) -> list[NDArray[Any]]:
        """The tensors as arrays, waited for."""
        if self._event is not None:
            self._event.synchronize()
        return [tensor.numpy() for tensor in self._tensors]
