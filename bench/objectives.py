"""Objectives in bits: one network, trained by each for as many steps, codes the same images.

python -m bench objectives --data cifar10/train.npy [--steps 300] [--only NAME ...]

The bound is that of the default plan on held-out crops, by the variance that goes with the
objective, and by a table that is calibrated on training crops, as is done with networks of others.

Reflow goes on from flow matching: the flow (Heun's method) leads from noises to images, and the
same network trains for as many steps again on these pairs. What reflow is for, paths so straight
that few steps suffice, stands in the second table: how far from where the flow of many steps leads
from a noise, in grey levels, few of Euler's steps lead from it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from bench import POSITIVE, SEVERAL
from bench.report import markdown
from bench.store import Store, source_digest
from diffcodec.diffusion.bound import chain_bound_bits
from diffcodec.diffusion.losses import flow_matching_loss
from diffcodec.diffusion.plan import plans_from
from diffcodec.diffusion.schedule import GREY_LEVELS_PER_UNIT
from diffcodec.evaluation.measure import torch_posterior
from diffcodec.intervals import mean_interval
from diffcodec.models.calibration import calibrate
from diffcodec.models.model import Model
from diffcodec.networks.calibrated import CalibratedNetwork
from diffcodec.networks.config import PRESETS, UNetConfig, one_network
from diffcodec.networks.experts import float_network
from diffcodec.sampling.denoiser import TOP_SIGMA, Denoiser, Noise
from diffcodec.sampling.samplers import draw_prior, go_down
from diffcodec.training.config import TrainConfig
from diffcodec.training.crops import domain_batch
from diffcodec.training.steps import TrainingSteps, hash_seed

SHAPE = UNetConfig(channels=(32, 48, 64), blocks=(1, 1, 1))
CROP, BATCH = 32, 16
SEED, FLOW_STEPS, FEW = 12345, 16, (1, 2, 4, 8)


@dataclass(frozen=True)
class Objective:
    """A loss, and the variance of the chain that is measured beside it."""

    loss: str
    variance: str = "fixed-large"
    network: UNetConfig = SHAPE
    reflow: bool = False


OBJECTIVES = {
    "code length": Objective("vlb", "learned"),
    "code length, fixed variance": Objective("vlb"),
    "L_hybrid": Objective("hybrid", "learned"),
    "L_simple": Objective("simple"),
    "v": Objective("v"),
    "flow matching": Objective("flow"),
    "flow matching, then reflow": Objective("flow", reflow=True),
    "code length, a transformer": Objective(
        "vlb", "learned", replace(PRESETS["dit"], channels=(96,), blocks=(3,))
    ),
}


class Reflow(TrainingSteps):
    """Flow matching of pairs: images, and the noises that a flow leads from to them."""

    def __init__(self, config: TrainConfig, init: dict[str, Tensor], x: Tensor, noise: Tensor):
        super().__init__(config, init, quiet=True)
        self.pairs = x, noise

    def loss(self, share: Any) -> Tensor:
        """See :class:`TrainingSteps`."""
        c = self.config
        generator = torch.Generator().manual_seed(hash_seed(c.seed, self.step))
        which = torch.randint(len(self.pairs[0]), (c.batch,), generator=generator)
        x, noise = (field[which].float() for field in self.pairs)
        given = self.forward, x, c.network.color, generator, share, c.variance
        return flow_matching_loss(*given, quantiser=c.network.quantiser, noise=noise)


def recipe(data: Path, steps: int, objective: Objective, labels: str | None = None) -> TrainConfig:
    """How a network is trained by an objective."""
    return TrainConfig(
        str(data),
        labels,
        steps=steps,
        batch=BATCH,
        crop=CROP,
        augment="mirror",
        loss=objective.loss,
        variance=objective.variance,
        precision="float32",
        compile=False,
        device="cpu",
        network=one_network(**vars(objective.network)),
    )


def trained(steps: TrainingSteps) -> Model:
    """The model of the averaged weights after all of a run's steps."""
    while steps.step < steps.config.steps:
        steps.train_step()
    config = steps.config.network
    return Model(float_network(config, steps.ema), plans_from(config.quantiser))


def straight_levels(steps: int) -> list[float]:
    """Noise levels at which the time of the straight path from noise to image goes evenly."""
    u = TOP_SIGMA / GREY_LEVELS_PER_UNIT
    times = [u / (1 + u) * (1 - i / steps) for i in range(steps)]
    return [GREY_LEVELS_PER_UNIT * t / (1 - t) for t in times]


def follow(model: Model, noise: Tensor, levels: Sequence[float], sampler: str = "ddim") -> Tensor:
    """Where the flow of a model leads from noises; DDIM's steps are Euler's on a straight path."""
    denoiser = Denoiser(model)
    z = draw_prior(denoiser, levels[0], noise)
    return go_down(denoiser, z, levels, Noise(0, len(noise)), sampler=sampler)


def follow_closely(model: Model, noise: Tensor) -> Tensor:
    """The same in many of Heun's steps."""
    return follow(model, noise, Denoiser(model).levels(FLOW_STEPS), "heun")


def bound(model: Model, x: Tensor, variance: str = "learned") -> dict[str, Any]:
    """The default plan's, in bits per dimension."""
    generator = torch.Generator().manual_seed(0)
    posterior, plan = torch_posterior(model), model.plans["default"]
    bits = chain_bound_bits(posterior, x.double(), model.color, plan, generator, variance)
    return mean_interval(bits.sum(1).tolist())


def measure(data: Path, steps: int, objective: Objective, crops: int, pairs: int) -> dict[str, Any]:
    """Train a network by an objective, and measure it on crops, and as many of the table."""
    config = recipe(data, steps, objective)
    begun, run = time.process_time(), TrainingSteps(config, quiet=True)
    model = trained(run)
    if objective.reflow:
        noise = Noise(SEED, pairs)(CROP, CROP)
        x = follow_closely(model, noise)
        model = trained(Reflow(config, run.ema, x, noise))
    seconds, color = time.process_time() - begun, config.network.color
    held_out = domain_batch(run.held_out.batch(crops, SEED, 0), color)
    table = calibrate(model, domain_batch(run.train_data.batch(crops, SEED, 0), color))
    found = {
        "seconds": seconds,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "own": bound(model, held_out, objective.variance),
        "calibrated": bound(Model(CalibratedNetwork(model.network, table), model.plans), held_out),
    }
    if objective.loss == "flow":
        noise = Noise(SEED + pairs, crops // 2)(CROP, CROP)
        end = follow_closely(model, noise)
        few = {count: follow(model, noise, straight_levels(count)) - end for count in FEW}
        found["few"] = {str(n): float(away.square().mean().sqrt()) for n, away in few.items()}
    return found


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--steps", default=300, type=POSITIVE, show_default=True, help="Of training, by each objective."
)
@click.option("--only", multiple=True, type=click.Choice(list(OBJECTIVES)), help="Which of them.")
@click.option("--crops", default=48, type=SEVERAL, show_default=True, help="That are measured.")
@click.option(
    "--pairs", default=256, type=POSITIVE, show_default=True, help="Of noise and image, for reflow."
)
@click.option("--out", default=Path("results/objectives"), type=click.Path(path_type=Path))
def main(data: Path, steps: int, only: tuple[str, ...], crops: int, pairs: int, out: Path) -> None:
    """Train by each objective, and print the tables; what is there already is not repeated."""
    store, rows, few = Store(out / "rows.jsonl"), [], []
    for name in only or OBJECTIVES:
        objective = OBJECTIVES[name]
        key = {"objective": name, "steps": steps, "data": str(data), "crops": crops, "pairs": pairs}
        key["source"] = source_digest()
        compute = partial(measure, data, steps, objective, crops, pairs)
        found = store.get(key, compute)
        bounds = (found[kind] for kind in ("own", "calibrated"))
        figures = [f"{each['mean']:.3f} ± {each['half_width']:.3f}" for each in bounds]
        rows.append((name, f"{found['seconds']:.0f} s", *figures))
        if "few" in found:
            few.append((name, *(f"{found['few'][str(count)]:.1f}" for count in FEW)))
        click.echo(f"{rows[-1]}", err=True)
    click.echo(markdown(("objective", "processor time", "own variance", "calibrated"), rows))
    if few:
        columns = ("objective", *(f"{count} step{'s'[: count > 1]}" for count in FEW))
        click.echo(f"\n{markdown(columns, few)}")


if __name__ == "__main__":
    main()
