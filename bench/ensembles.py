"""What self-ensemble gains, by noise level.

python -m bench ensembles --data IMAGES --model FLOAT [--crop 64] [--crops 48]

The bound of the plan "default" by the float network, on crops of every twentieth image (those that
training holds out): with the network asked once, and with each self-ensemble at all levels. The
differences add up from the lowest level on, to what it gains if it ends there.
"""

import math
from dataclasses import replace

import click
import torch
from torch import Tensor

from bench import POSITIVE
from bench.report import markdown
from diffcodec.diffusion.bound import chain_bound_bits
from diffcodec.diffusion.plan import PLANS
from diffcodec.models.model import load_weights
from diffcodec.networks.config import ENSEMBLES
from diffcodec.networks.experts import ExpertDenoisers
from diffcodec.planning.propose import search_crops

PLAN = PLANS["default"]


@torch.inference_mode()
def bound_by_level(weights: dict[str, Tensor], network: ExpertDenoisers, x: Tensor) -> Tensor:
    """Bits per dimension of each part of the bound, means over crops, [timesteps + 1]."""
    network.load_state_dict(weights)
    generator = torch.Generator().manual_seed(0)
    parts = [
        chain_bound_bits(network.posterior_x, part, network.config.color, PLAN, generator)
        for part in x.split(16)
    ]
    return torch.cat(parts).mean(0)


@click.command()
@click.option("--data", required=True, help="Images as for training.")
@click.option("--model", required=True, help="Name or path; no model in phases.")
@click.option("--crop", default=64, type=POSITIVE, show_default=True, help="Sides of the crops.")
@click.option("--crops", default=48, type=POSITIVE, show_default=True, help="How many.")
def main(data: str, model: str, crop: int, crops: int) -> None:
    """Print what each self-ensemble gains."""
    config, weights = load_weights(model)
    _, x = search_crops(data, crop, crops, config.color)
    bounds = {}
    for kind in ENSEMBLES:
        network = ExpertDenoisers(replace(config, self_ensemble=kind, self_ensemble_up_to=math.inf))
        bounds[kind] = bound_by_level(weights, network, x)
    alone = bounds.pop("none")
    gains = {kind: (bound - alone).cumsum(0) for kind, bound in bounds.items()}
    click.echo(f"{crops} crops of {crop} x {crop}, {model}: {alone.sum():.4f} bpd by one view\n")
    lines = [
        [f"{sigma:g}", *(f"{gain[i]:+.4f}" for gain in gains.values())]
        for i, sigma in enumerate(PLAN.levels)
    ]
    click.echo(markdown(["up to", *gains], lines))


if __name__ == "__main__":
    main()
