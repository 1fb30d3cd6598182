"""What a run works with: its device, its precision, its processes."""

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist

from diffcodec.errors import DiffcodecError


def find_device(name: str) -> torch.device:
    """The device of this process: with torchrun the GPU of its number on its machine.

    Args:
        name: one of ``DEVICES``; "auto" is a GPU if there is one.

    Raises:
        DiffcodecError: if there is none.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DiffcodecError("no GPU that this installation of torch can use; give --device cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Arithmetic of a run's precision: bfloat16 where asked for."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@contextlib.contextmanager
def joined_processes(device: str) -> Iterator[None]:
    """Join the processes that torchrun has started, if it has: by NCCL on GPUs, else by Gloo.

    Raises:
        DiffcodecError: if the device is not there.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    dist.init_process_group("nccl" if find_device(device).type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
