"""Locks that a forked child finds free.

It has its parent's locks as they were, and of the parent's threads only the one that forked: what
another held is never released there.
"""

import os
import threading


def held_in_forks() -> threading.RLock:
    """A new lock that the thread which forks holds meanwhile: it waits for others that hold it.

    So what the lock guards is whole in the child. It is for what takes moments, and is not taken
    within another of its kind.
    """
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )
    return lock
