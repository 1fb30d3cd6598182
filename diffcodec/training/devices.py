"""What a run works with: its precision, its processes."""

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist

from diffcodec.networks.devices import find_device


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
