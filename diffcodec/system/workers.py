"""Work on many files by several processes, of which any may die."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from diffcodec.errors import WorkerDiedError
from diffcodec.system.files import leave_on_signals
from diffcodec.system.memory import keep_freed_memory

Job = tuple[str, ...]
Work = Callable[..., Any]


def run_in_workers(
    work: Work, jobs: Sequence[Job], processes: int
) -> Iterator[tuple[Job, Any | Exception]]:
    """Each job with what work makes of it, or the exception that it raises, in order of arrival.

    A process that dies costs the job it has, which gets a :class:`WorkerDiedError`; another takes
    its place. When the iterator is closed the processes are ended as by SIGTERM.

    Args:
        work: called with the parts of a job; must be picklable, as its results.
        jobs: in the order in which they are begun.
        processes: how many to run side by side; they share the processors' threads, unless
            OMP_NUM_THREADS says otherwise.
    """
    left = iter(jobs)
    threads = max(1, (os.cpu_count() or 1) // processes)
    workers: list[_Worker] = []
    try:
        workers += [
            _Worker(work, job, threads) for _, job in zip(range(processes), left, strict=False)
        ]
        busy = list(workers)
        while busy:
            ready = wait([worker.connection for worker in busy])
            for worker in [worker for worker in busy if worker.connection in ready]:
                job, outcome = worker.job, worker.outcome()
                busy.remove(worker)
                if (following := next(left, None)) is not None:
                    if isinstance(outcome, WorkerDiedError):
                        workers.append(worker := _Worker(work, following, threads))
                    else:
                        worker.begin(following)
                    busy.append(worker)
                yield job, outcome
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


class _Worker:
    """A process and the job it has."""

    def __init__(self, work: Work, job: Job, threads: int):
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, theirs, threads), daemon=True)
        self.process.start()
        theirs.close()
        self.begin(job)

    def begin(self, job: Job) -> None:
        self.job = job
        with suppress(BrokenPipeError):  # it has died: the outcome will say so
            self.connection.send(job)

    def outcome(self) -> Any | Exception:
        """Of its job, as it is done."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            return WorkerDiedError(
                f"its worker process was ended by {how}; run it again with --skip-existing, and "
                "with fewer --jobs if memory ran out",
                self.process.pid or 0,
            )


def _serve(work: Work, connection: "Connection[Any, Any]", threads: int) -> None:
    """Work on the jobs that come, until none will come any more."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # torch is loaded later, by the work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process decides
    leave_on_signals()
    keep_freed_memory()
    with suppress(EOFError, BrokenPipeError):
        while True:
            job = connection.recv()
            try:
                outcome = work(*job)
            except Exception as e:
                outcome = e
            connection.send(outcome)
