"""The process of a command: its standard streams, and the signals that end it."""

import atexit
import gc
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, TypeVar
from weakref import WeakSet

Result = TypeVar("Result")
_ENDING = ("SIGINT", "SIGTERM", "SIGHUP")  # the last not everywhere


@contextmanager
def loading() -> Iterator[None]:
    """What is loaded meanwhile stays: the garbage collector does not look through it, nor later.

    It takes a seventh of the time that torch and a model take to load.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def leave_on_signals() -> None:
    """Let SIGINT, SIGTERM and SIGHUP end this process by an exception, so that all is cleared away.

    At the very end it dies by the signal itself: a shell that runs it in a loop ends the loop, too,
    and shows 128 and the signal's number as its exit code.
    """
    for number in _ending():
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _leave)
    sys.unraisablehook = _leave_yet


def _ending() -> list[int]:
    return [getattr(signal, name) for name in _ENDING if hasattr(signal, name)]


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    for other in _ending():  # another would break into what clears away
        signal.signal(other, signal.SIG_IGN)
    _EXIT.signal = number
    sys.exit(128 + number)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """What must be done whole: a signal that would break in is handled behind it."""
    held: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():  # the only one that handles signals
        for number in _ending():
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, lambda found, _: held.append(found))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in held[:1]:
            signal.raise_signal(number)


def _leave_yet(ignored: "sys.UnraisableHookArgs") -> None:
    """What a signal raises within a callback, as of a weak reference, is lost: raise it later."""
    if _EXIT.signal is None or not isinstance(ignored.exc_value, SystemExit):
        sys.__unraisablehook__(ignored)
        return
    signal.signal(_EXIT.signal, _leave)
    again = threading.Timer(0.05, os.kill, (os.getpid(), _EXIT.signal))
    again.daemon = True
    again.start()


class _Exit:
    """The signal that ends this process, if one does."""

    signal: int | None = None

    def die(self) -> None:
        if self.signal is not None:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
            signal.signal(self.signal, signal.SIG_DFL)
            os.kill(os.getpid(), self.signal)


_EXIT = _Exit()
atexit.register(_EXIT.die)  # registered before what else clears away at exit, so called after it
_UNFINISHED: WeakSet[Generator[Any, None, None]] = WeakSet()


def closed_at_exit(results: Generator[Result, None, None]) -> Generator[Result, None, None]:
    """The same generator, which is closed when Python exits if it is not at its end by then.

    Otherwise it would be closed when the modules' names are gone, of which its ``except`` and
    ``finally`` ask for some: a traceback.
    """
    _UNFINISHED.add(results)
    return results


@atexit.register
def _close_unfinished() -> None:
    for results in list(_UNFINISHED):
        with suppress(ValueError):  # a thread of the application is amid it
            results.close()


def let_threads_sleep() -> None:
    """Have OpenMP's threads sleep while they wait for each other; call it before torch is loaded.

    On a busy machine those that spin instead take the time of those that they wait for.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def open_closed_streams() -> None:
    """Give a process that was started without standard streams, as daemons are, some of its own.

    Otherwise the next file that it opens would be its standard output, and messages be written into
    it. Who asks for the input or the output fails, since nothing must be lost; messages vanish.
    """
    # The wrong way round: reading from and writing to them fail, as with closed ones.
    if sys.stdin is None:
        sys.stdin = open(_null(os.O_WRONLY))  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(_null(os.O_RDONLY), "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(_null(os.O_WRONLY), "w")  # noqa: SIM115


def _null(flags: int) -> int:
    descriptor = os.open(os.devnull, flags)  # the lowest that is free: that of the stream
    os.set_inheritable(descriptor, True)  # as those of other processes are
    return descriptor
