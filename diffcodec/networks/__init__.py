"""Networks that tell the posterior of x given z_t, in floats and in exact integers."""

import os
import sys


def _take_one_thread() -> None:
    """Have a forked child compute by one thread, if the parent has loaded torch.

    OpenMP's threads do not survive a fork, and a child that gives them work waits for ever. A
    single thread asks nothing of them, and codes the same bytes.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_take_one_thread)
