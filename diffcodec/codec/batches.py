"""Driving many coroutines side by side through a model."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from diffcodec.codec.jobs import Job, Part, Result
from diffcodec.coding.chain import Answer, Asked, Request
from diffcodec.models.answering import answer, is_usable
from diffcodec.models.model import Model

BATCH_PIXELS = 1 << 18  # of the tiles that go through the network together


def count_evaluations(parts: Sequence[Part], model: Model) -> int:
    """Pixels through the network."""
    return sum(len(model.plans[part.plan].levels) * part.pixels for part in parts)


def progress_bar(evaluations: int, progress: bool) -> "tqdm[Any]":
    """Of so many pixels through the network; seen on a terminal, if it takes over two seconds."""
    return tqdm(
        total=evaluations, unit="px", unit_scale=True, delay=2, disable=None if progress else True
    )


def run(
    jobs: Iterable[Job[Result]], parts: Sequence[Part], model: Model, bar: "tqdm[Any]"
) -> Iterator[Result]:
    """Drive the coroutines of many tiles, in groups of bounded size, results in order."""
    group: list[tuple[Job[Result], str]] = []
    held = 0
    for job, part in zip(jobs, parts, strict=True):
        if group and held + part.pixels > BATCH_PIXELS:
            yield from _run_group(group, model, bar)
            group, held = [], 0
        group.append((job, part.plan))
        held += part.pixels
    yield from _run_group(group, model, bar)


def _run_group(
    jobs: Sequence[tuple[Job[Result], str]],
    model: Model,
    bar: "tqdm[Any]",
) -> list[Result]:
    """Drive coroutines side by side: requests of one plan and kind share a batch."""
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

    for i in range(len(jobs)):
        advance(i, None)
    while waiting:
        batches: dict[tuple[Any, ...], list[int]] = {}
        for i, request in waiting.items():
            batches.setdefault((jobs[i][1], *request.kind), []).append(i)
        for (plan, *_), members in batches.items():
            requests = [waiting.pop(i) for i in members]
            if isinstance(requests[0], Request):
                bar.update(len(requests) * requests[0].z[0].size)
            found = answer(model, model.plans[plan], requests)
            for i, each in zip(members, found, strict=True):
                advance(i, each)
    return [results[i] for i in range(len(jobs))]
