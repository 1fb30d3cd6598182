"""Training in double precision: what the order of sums changes is far below what is compared.

In single precision a gradient that nearly cancels is rounding error, and Adam, which divides by
its size, makes a whole step of it; which gradients these are depends on the processor.
"""

from functools import wraps

import torch

from diffcodec.training.trainer import Trainer

WRITE_MODEL = Trainer.write_model


@wraps(WRITE_MODEL)
def write_single(self, *args, **kwargs):
    """Files are of single precision."""
    torch.set_default_dtype(torch.float32)
    WRITE_MODEL(self, *args, **kwargs)
    torch.set_default_dtype(torch.float64)


def train_in_double():
    torch.set_default_dtype(torch.float64)
    Trainer.write_model = write_single


def train_in_single():
    torch.set_default_dtype(torch.float32)
    Trainer.write_model = WRITE_MODEL
