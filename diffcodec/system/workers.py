"""Work on many files by several processes, of which any may die."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from diffcodec.errors import WorkerDiedError
from diffcodec.system.files import remove_temporaries
from diffcodec.system.memory import keep_freed_memory
from diffcodec.system.process import leave_on_signals, let_threads_sleep

Job = tuple[str, ...]  # of paths; the last is that of the output
Work = Callable[[Iterable[Job]], Iterator[Any]]


def run_in_workers(
    work: Work, groups: Iterable[Sequence[Job]], processes: int
) -> Iterator[tuple[Job, Any]]:
    """Each job with what work makes of it, in order of arrival.

    Of a process that dies the jobs that are left are begun again, each by itself, and what it left
    half-written is removed. A job that it dies of alone gets a :class:`WorkerDiedError`. When the
    iterator is closed the processes are ended as by SIGTERM.

    Args:
        work: an outcome, or an exception that is one, for each job of a group, in order; must be
            picklable, as outcomes.
        groups: jobs that one process works on together, in the order in which they are begun.
        processes: how many to run side by side; they share the processors' threads, unless
            OMP_NUM_THREADS says otherwise.
    """
    left = deque(list(group) for group in groups)
    workers: list[_Worker] = []
    busy: list[_Worker] = []
    idle: list[_Worker] = []
    try:
        while left or busy:
            while left and len(busy) < processes:
                if not idle:
                    idle.append(_Worker(work, processes))
                    workers.append(idle[0])
                worker = idle.pop()
                worker.begin(left.popleft())
                busy.append(worker)
            ready = wait([worker.connection for worker in busy])
            for worker in [worker for worker in busy if worker.connection in ready]:
                outcome = worker.outcome()
                died = isinstance(outcome, WorkerDiedError)
                if died and len(worker.jobs) > 1:
                    left.extendleft([job] for job in reversed(worker.jobs))
                    busy.remove(worker)
                    continue
                job = worker.jobs.pop(0)
                if died:
                    busy.remove(worker)
                elif not worker.jobs and left:
                    worker.begin(left.popleft())
                elif not worker.jobs:
                    busy.remove(worker)
                    idle.append(worker)
                yield job, outcome
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


class _Worker:
    """A process and the jobs it has left."""

    def __init__(self, work: Work, processes: int):
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, theirs, processes), daemon=True)
        self.process.start()
        theirs.close()
        self.jobs: list[Job] = []

    def begin(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        with suppress(BrokenPipeError):  # it has died: the outcome will say so
            self.connection.send(jobs)

    def outcome(self) -> Any:
        """The outcome of its first job, as it is done."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            for job in self.jobs:
                remove_temporaries(job[-1], self.process.pid or 0)
            code = self.process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            return WorkerDiedError(
                f"its worker process was ended by {how}; run it again with --skip-existing, and "
                "with fewer --jobs if memory ran out"
            )


def prepare_worker(processes: int) -> None:
    """Begin a process that works beside so many: they share the processors' threads."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # torch is loaded later, by the work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process decides
    leave_on_signals()
    keep_freed_memory()
    let_threads_sleep()


def _serve(work: Work, connection: "Connection[Any, Any]", processes: int) -> None:
    """Work on the jobs that come, until none will come any more."""
    prepare_worker(processes)
    with suppress(EOFError, BrokenPipeError):
        while True:
            for outcome in work(connection.recv()):
                connection.send(outcome)
