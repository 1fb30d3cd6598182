"""The bound of a run's averaged weights on held-out crops."""

from functools import partial
from typing import Any

import torch

from diffcodec.diffusion.bound import chain_bound_bits
from diffcodec.diffusion.plan import Plan
from diffcodec.intervals import mean_interval
from diffcodec.networks.experts import ExpertDenoisers
from diffcodec.training.config import TrainConfig
from diffcodec.training.crops import CropSampler, domain_batch
from diffcodec.training.devices import autocast

CROPS, BATCH = 128, 32
SEED = 12345  # of the crops


@torch.inference_mode()
def validate(
    network: ExpertDenoisers,
    held_out: CropSampler,
    plan: Plan,
    config: TrainConfig,
    share: float = 1.0,
) -> dict[str, Any]:
    """The bound of a plan on crops that are the same each time, and its parts, for the log.

    Args:
        network: on the device to use.
        held_out: images to take crops of.
        plan: of the chain.
        config: its variance and precision count.
        share: of the crops, for a rehearsal.

    Returns:
        ``held_out_bpd`` with the half-width of its 95 % interval, and of the bound's parts
        ``remainder_bpd``, ``first_jump_bpd``, ``step_bpd`` (a list) and ``prior_bpd``.
    """
    device, color = next(network.parameters()).device, config.network.color
    values = []
    for i in range(0, max(1, int(share * CROPS)), BATCH):
        x = domain_batch(held_out.batch(BATCH, SEED, i).to(device), color)
        posterior = network.posterior_x
        if config.network.classes:
            posterior = partial(posterior, labels=held_out.labels(BATCH, SEED, i).to(device))
        generator = torch.Generator(device).manual_seed(i)
        with autocast(device, config.precision):
            bits = chain_bound_bits(
                posterior, x, color, plan, generator, config.variance, phased=network.phased
            )
            values.append(bits)
    parts = torch.cat(values).cpu()
    bound = mean_interval(parts.sum(1).tolist())
    remainder, first_jump, *steps, prior = parts.mean(0).tolist()
    return {
        "held_out_bpd": bound["mean"],
        "held_out_bpd_half_width": bound["half_width"],
        "remainder_bpd": remainder,
        "first_jump_bpd": first_jump,
        "step_bpd": steps,
        "prior_bpd": prior,
    }
