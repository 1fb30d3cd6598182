"""Networks that tell the posterior of x given z_t, in floats and in exact integers."""

import os

import torch

if hasattr(os, "register_at_fork"):
    # OpenMP's threads do not survive a fork, and a child that gives them work waits for ever. A
    # single thread asks nothing of them, and codes the same bytes.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
