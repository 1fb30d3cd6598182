"""A model's answers to what chains ask."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from diffcodec.coding.chain import Answer, Asked, PhaseRequest, Posterior, Request
from diffcodec.diffusion.plan import Plan
from diffcodec.models.model import Model, is_posterior


def answer(model: Model, plan: Plan, requests: Sequence[Asked]) -> list[Answer]:
    """The answers of a model to requests of one kind, by chains of one plan."""
    method, arguments, answers = _question(model, plan, requests)
    return answers(getattr(model, method)(*arguments))


def ask(model: Model, plan: Plan, requests: Sequence[Asked]) -> Callable[[], list[Answer]]:
    """The same, begun: a device goes on with it until what is returned is called."""
    if model.device.type == "cpu":
        found = answer(model, plan, requests)
        return lambda: found
    method, arguments, answers = _question(model, plan, requests)
    answered = getattr(model, f"ask_{method}")(*arguments)
    return lambda: answers(answered())


def _question(
    model: Model, plan: Plan, requests: Sequence[Asked]
) -> tuple[str, tuple[Any, ...], Callable[[Any], list[Answer]]]:
    """A method of the model, its arguments, and how the answers come out of what it returns."""
    phase = [request for request in requests if isinstance(request, PhaseRequest)]
    if phase:
        rows = [request.shared[None] for request in phase]
        shared = torch.cat(rows) if len(rows) > 1 else rows[0]
        told = np.stack([request.told for request in phase])
        timestep, number = phase[0].timestep, phase[0].number
        which, sigma = model.told_in_phases(plan, timestep), plan.levels[timestep]
        assert which is not None
        return "phase_parameters", (which, sigma, number, shared, told), list
    whole = [request for request in requests if isinstance(request, Request)]
    z, timestep = np.stack([request.z for request in whole]), whole[0].timestep
    sigma = plan.levels[timestep - 1]
    which = model.told_in_phases(plan, timestep - 1)
    if which is None:
        labels = None
        if any(request.label is not None for request in whole):
            labels = [-1 if request.label is None else request.label for request in whole]
        return "posterior_x", (z, sigma, labels), lambda found: list(map(Posterior, *found[:2]))

    def posteriors(found: Any) -> list[Answer]:
        mean, variance, made = found
        rows = [[each[k] for each in made] for k in range(len(z))]
        return list(map(Posterior, mean, variance, rows))

    return "begin_phases", (which, z, sigma), posteriors


def is_usable(answer: Answer) -> bool:
    """Whether an answer's numbers are in range: not so if a network's numbers overflow."""
    if isinstance(answer, Posterior):
        return is_posterior(answer.mean, answer.variance)
    return bool(np.isfinite(answer).all())
