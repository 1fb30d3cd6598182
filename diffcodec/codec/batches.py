"""Driving many coroutines side by side through a model."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from diffcodec.codec.jobs import Job, Part, Result
from diffcodec.coding.chain import Posterior, Request
from diffcodec.models.model import Model, is_posterior

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
    """Drive coroutines side by side: requests of one plan, timestep and shape share a batch."""
    results: dict[int, Result] = {}
    waiting: dict[int, Request] = {}

    def advance(i: int, answer: Posterior | None) -> None:
        job = jobs[i][0]
        try:
            if answer is None:
                waiting[i] = next(job)
            elif is_posterior(*answer):
                waiting[i] = job.send(answer)
            else:  # the job knows what that means for its file
                job.throw(ValueError("a mean or variance of the model is out of range"))
        except StopIteration as stop:
            results[i] = stop.value

    for i in range(len(jobs)):
        advance(i, None)
    while waiting:
        batches: dict[tuple[str, int, tuple[int, ...]], list[int]] = {}
        for i, request in waiting.items():
            batches.setdefault((jobs[i][1], request.timestep, request.z.shape), []).append(i)
        for (plan, timestep, _), members in batches.items():
            z = np.stack([waiting.pop(i).z for i in members])
            mean, variance = model.posterior_x(z, model.plans[plan].levels[timestep - 1])
            bar.update(z.shape[0] * z.shape[2] * z.shape[3])
            for k, i in enumerate(members):
                advance(i, Posterior(mean[k], variance[k]))
    return [results[i] for i in range(len(jobs))]
