"""Driving many coroutines side by side through a model.

On a CPU groups of them go through it each by threads of their own: while one codes others compute.
On a GPU two groups take turns: it computes what one asked for while the CPU codes the other.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from threading import Event
from typing import Any, Generic

import torch
from tqdm import tqdm

from diffcodec.codec.jobs import Job, Part, Result
from diffcodec.coding.chain import Answer, Asked, Request
from diffcodec.models.answering import ask, is_usable
from diffcodec.models.model import Model
from diffcodec.networks.devices import free_bytes
from diffcodec.values import flag

BATCH_PIXELS = 1 << 18  # of the tiles that go through the network together
LEAST_BATCH_PIXELS = 1 << 16  # of those that have threads of their own
PIXELS_IN_FLIGHT = 1 << 19  # of all of these, on a CPU
MOST_BATCH_PIXELS, DEVICE_PIXEL_BYTES = 1 << 20, 1 << 14  # of those on a GPU, and what each takes
GROUPS_IN_FLIGHT = 2  # on a GPU

Group = Sequence[tuple[Job[Result], str]]  # coroutines, each with its plan


def count_evaluations(parts: Sequence[Part], model: Model) -> int:
    """The pixels that go through the network, over all timesteps."""
    return sum(len(model.plans[part.plan].levels) * part.pixels for part in parts)


def progress_bar(evaluations: int, progress: bool) -> "tqdm[Any]":
    """A bar of so many pixels through the network; seen on a terminal after two seconds."""
    return tqdm(
        total=evaluations,
        unit="px",
        unit_scale=True,
        delay=2,
        disable=None if flag("progress", progress) else True,
    )


def batch_pixels(model: Model) -> int:
    """Pixels that go through the network together on a GPU: what two groups have memory for."""
    room = free_bytes(model.device) // (GROUPS_IN_FLIGHT * DEVICE_PIXEL_BYTES)
    return max(1, min(MOST_BATCH_PIXELS, room))


def run(
    jobs: Iterable[Job[Result]], parts: Sequence[Part], model: Model, bar: "tqdm[Any]"
) -> Iterator[Result]:
    """Drive the coroutines of many tiles, in groups of bounded size, results in order."""
    if model.device.type != "cpu":
        groups = _groups(jobs, parts, batch_pixels(model))
        yield from _in_turn((_Flight(group, model, bar) for group in groups), GROUPS_IN_FLIGHT)
        return
    threads = torch.get_num_threads()
    share = -(-sum(part.pixels for part in parts) // threads)
    pixels = min(BATCH_PIXELS, max(LEAST_BATCH_PIXELS, share))
    largest = max([pixels, *(part.pixels for part in parts)])
    groups = _groups(jobs, parts, pixels)
    first = list(islice(groups, max(1, min(threads, PIXELS_IN_FLIGHT // largest))))
    flights = (_Flight(group, model, bar) for group in chain(first, groups))
    if len(first) == 1:
        yield from _in_turn(flights, 1)
    else:
        yield from _side_by_side(flights, len(first), threads)


def _groups(
    jobs: Iterable[Job[Result]], parts: Sequence[Part], pixels: int
) -> Iterator[list[tuple[Job[Result], str]]]:
    """Coroutines with their plans, of so many pixels at most, or one."""
    group: list[tuple[Job[Result], str]] = []
    held = 0
    for job, part in zip(jobs, parts, strict=True):
        if group and held + part.pixels > pixels:
            yield group
            group, held = [], 0
        group.append((job, part.plan))
        held += part.pixels
    yield group


class _Flight(Generic[Result]):
    """A group on its way: what it has asked for, and what has come out."""

    def __init__(self, group: Group[Result], model: Model, bar: "tqdm[Any]"):
        self.results: list[Result] | None = None
        self._turns = _run_group(group, model, bar)

    def go_on(self) -> None:
        """Take what was asked for, work on it, and ask for more; nothing if it has landed."""
        try:
            if self.results is None:
                next(self._turns)
        except StopIteration as stop:
            self.results = stop.value


def _side_by_side(flights: Iterator[_Flight[Result]], most: int, threads: int) -> Iterator[Result]:
    """The results of groups in order, so many of which share the threads at a time."""
    ended = Event()

    def land(flight: _Flight[Result]) -> list[Result]:
        torch.set_num_threads(threads // most)  # of this one
        while flight.results is None and not ended.is_set():
            flight.go_on()
        return flight.results or []

    held: deque[Future[list[Result]]] = deque()
    pool = ThreadPoolExecutor(most, "diffcodec-group")
    try:
        for flight in flights:
            held.append(pool.submit(land, flight))
            if len(held) == most:
                yield from held.popleft().result()
        while held:
            yield from held.popleft().result()
    finally:
        ended.set()
        pool.shutdown()
        torch.set_num_threads(threads)  # of those to come


def _in_turn(flights: Iterator[_Flight[Result]], most: int) -> Iterator[Result]:
    """The results of groups in order, so many of which are on their way at a time."""
    held: deque[_Flight[Result]] = deque()

    def on_their_way() -> list[_Flight[Result]]:
        return [flight for flight in held if flight.results is None]

    def start_others() -> None:
        while len(on_their_way()) < most and (flight := next(flights, None)):
            held.append(flight)
            flight.go_on()

    start_others()
    while held:
        for flight in on_their_way():
            flight.go_on()
            start_others()
        while held and (results := held[0].results) is not None:
            held.popleft()
            yield from results
        start_others()


def _run_group(
    jobs: Group[Result],
    model: Model,
    bar: "tqdm[Any]",
) -> Generator[None, None, list[Result]]:
    """Drive coroutines side by side: requests of one plan and kind share a batch.

    It pauses while a device computes one.
    """
    results: dict[int, Result] = {}
    waiting: dict[int, Asked] = {}

    def advance(i: int, answer: Answer | None) -> None:
        job = jobs[i][0]
        try:
            if answer is None:
                waiting[i] = next(job)
            elif is_usable(answer):
                waiting[i] = job.send(answer)
            else:  # the job knows what that means for its file
                job.throw(ValueError("a number of the model is out of range"))
        except StopIteration as stop:
            results[i] = stop.value

    def serve(plan: str, members: Sequence[int]) -> Generator[None, None, None]:
        requests = [waiting.pop(i) for i in members]
        if isinstance(requests[0], Request):
            bar.update(len(requests) * requests[0].z[0].size)
        answers = ask(model, model.plans[plan], requests)
        yield
        for i, each in zip(members, answers(), strict=True):
            advance(i, each)

    for i in range(len(jobs)):
        advance(i, None)
    while waiting:
        batches: dict[tuple[Any, ...], list[int]] = {}
        for i, kind in [(i, asked.kind) for i, asked in waiting.items()]:
            batches.setdefault((jobs[i][1], *kind), []).append(i)
        for (plan, *_), members in batches.items():
            yield from serve(plan, members)  # what it holds is large, and let go of with it
    return [results[i] for i in range(len(jobs))]
