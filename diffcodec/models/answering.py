"""A model's answers to what chains ask."""

from collections.abc import Sequence

import numpy as np
import torch

from diffcodec.coding.chain import Answer, Asked, PhaseRequest, Posterior, Request
from diffcodec.diffusion.plan import Plan
from diffcodec.models.model import Model, is_posterior


def answer(model: Model, plan: Plan, requests: Sequence[Asked]) -> list[Answer]:
    """Of a model to requests of one kind, by chains of one plan."""
    phase = [request for request in requests if isinstance(request, PhaseRequest)]
    if phase:
        shared = torch.stack([request.shared for request in phase])
        told = np.stack([request.told for request in phase])
        which = model.told_in_phases(plan, phase[0].timestep)
        assert which is not None
        return list(model.phase_parameters(which, phase[0].number, shared, told))
    whole = [request for request in requests if isinstance(request, Request)]
    z, timestep = np.stack([request.z for request in whole]), whole[0].timestep
    sigma = plan.levels[timestep - 1]
    which = model.told_in_phases(plan, timestep - 1)
    if which is not None:
        mean, variance, made = model.begin_phases(which, z, sigma)
        rows = [[each[k] for each in made] for k in range(len(z))]
        return list(map(Posterior, mean, variance, rows))
    return list(map(Posterior, *model.posterior_x(z, sigma)))


def is_usable(answer: Answer) -> bool:
    """Whether an answer's numbers are in range: not so if a network's numbers overflow."""
    if isinstance(answer, Posterior):
        return is_posterior(answer.mean, answer.variance)
    return bool(np.isfinite(answer).all())
