"""Locks that forked processes find free."""

import os
import threading
from weakref import WeakSet

_LOCKS: "WeakSet[Lock]" = WeakSet()


class Lock:
    """A reentrant lock. Threads of the first process that hold it hold none in a forked one.

    There they are not, and would never let go of it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _LOCKS.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Let go of it, whoever holds it."""
        self._lock = threading.RLock()


def _renew_all() -> None:
    for lock in list(_LOCKS):
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
