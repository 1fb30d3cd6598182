"""What each choice in the network and the recipe is worth at equal time on this machine.

python -m bench ablation --data DIR --minutes 10 [--only NAME] [--crop 64] [--batch 16]

Every variant trains for the same time (compiling not counted), its learning rate decaying to the
end; what counts is the bound on held-out crops, of the default plan. The bound of a chain of many
steps stands beside it: with a fixed variance it takes them. Runs that are there already are not
repeated. Two variants at once, each kept to its own core, do not disturb each other:

taskset -c 0 python -m bench ablation --data DIR --only baseline --only "patch 4" & ...
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import POSITIVE, POSITIVE_NUMBER
from bench.report import markdown
from diffcodec.diffusion import bound, losses
from diffcodec.diffusion.plan import geometric_plan
from diffcodec.networks import dit
from diffcodec.networks import unet as network
from diffcodec.networks.config import PRESETS, one_network
from diffcodec.networks.scaling import Scaling
from diffcodec.networks.unet import Conv, ResidualBlock, UNet
from diffcodec.training.config import TrainConfig
from diffcodec.training.crops import domain_batch
from diffcodec.training.log import read_log
from diffcodec.training.trainer import Trainer

RESULT = "result.json"
MANY_STEPS, MANY_STEPS_CROPS = 250, 16


def folder_name(variant: str) -> str:
    """The name of the folder of a variant's results."""
    return variant.replace(" ", "-").replace(",", "")


class DepthwiseBlock(ResidualBlock):
    """A 7x7 filter for each channel, then two 1x1 convolutions through four times the channels."""

    def __init__(self, channels: int, embedding: int):
        super().__init__(channels, embedding)
        self.spatial = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.conv1 = Conv(channels, 4 * channels, 1, gain=2**0.5)
        self.conv2 = Conv(4 * channels, channels, 1, gain=0.0)
        self.affine = nn.Linear(embedding, 10 * channels)
        nn.init.normal_(self.affine.weight, std=0.1 / embedding**0.5)
        nn.init.zeros_(self.affine.bias)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """See :class:`ResidualBlock`."""
        c = x.shape[1]
        affine = self.affine(emb)[:, :, None, None]
        scale1, shift1, scale2, shift2 = affine.split([c, c, 4 * c, 4 * c], 1)
        h = self.conv1(self.spatial(x) * (1 + scale1) + shift1)
        residual: Tensor = self.conv2(F.silu(h * (1 + scale2) + shift2))
        return x + residual


class NormalisedBlock(ResidualBlock):
    """A residual block with group normalisation before each activation, as in DDPM."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """See :class:`ResidualBlock`."""
        scale1, shift1, scale2, shift2 = self.affine(emb)[:, :, None, None].chunk(4, 1)
        h = self.conv1(F.silu(F.group_norm(x, 8) * (1 + scale1) + shift1))
        residual: Tensor = self.conv2(F.silu(F.group_norm(h, 8) * (1 + scale2) + shift2))
        return x + residual


class EpsilonUNet(UNet):
    """The output field is epsilon itself, without EDM's skip."""

    def mean_of_x(self, field: Tensor, z: Tensor, s: Tensor, scales: Scaling[Tensor]) -> Tensor:
        """See :meth:`UNet.mean_of_x`."""
        return z - s * field


class ImageUNet(UNet):
    """The output field is x itself, in units of the data's standard deviation."""

    def mean_of_x(self, field: Tensor, z: Tensor, s: Tensor, scales: Scaling[Tensor]) -> Tensor:
        """See :meth:`UNet.mean_of_x`."""
        return self.center + self.data_std * field


@dataclass(frozen=True)
class Variant:
    """A network and its training, by what differs from the defaults."""

    network: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    unet: type[UNet] = UNet
    block: type[ResidualBlock] = ResidualBlock
    sampling_power: float = losses.SAMPLING_POWER


def shape(channels: tuple[int, ...], blocks: tuple[int, ...], patch: int = 1) -> Variant:
    """Another network."""
    return Variant({"channels": channels, "blocks": blocks, "patch": patch})


VARIANTS = {
    "baseline": Variant(),
    # the network's shape: channels and blocks from the finest resolution down
    "wider at full resolution": shape((64, 64, 96, 128), (1, 1, 1, 2)),
    "narrower at full resolution": shape((32, 64, 96, 128), (1, 2, 2, 2)),
    "one block at full resolution": shape((48, 64, 96, 128), (1, 2, 2, 2)),
    "three blocks at full resolution": shape((48, 64, 96, 128), (3, 1, 1, 1)),
    "half the width": shape((24, 32, 48, 64), (2, 1, 1, 1)),
    "twice the width": shape((96, 128, 192, 256), (2, 1, 1, 1)),
    "three resolutions": shape((48, 64, 96), (2, 1, 1)),
    "two resolutions": shape((48, 64), (2, 2)),
    "patch 2": shape((64, 96, 128), (2, 2, 3), patch=2),
    "patch 2, wider": shape((96, 128, 160), (1, 2, 2), patch=2),
    "patch 4": shape((128, 192), (3, 3), patch=4),
    "depthwise 7x7": Variant(block=DepthwiseBlock),
    "embedding 64": Variant({"embedding": 64}),
    "group normalisation": Variant(block=NormalisedBlock),
    "rgb": Variant({"color": "rgb"}),
    "DiT": Variant(asdict(PRESETS["dit"])),
    # what it predicts
    "epsilon": Variant(unet=EpsilonUNet),
    "x": Variant(unet=ImageUNet),
    # the recipe
    "AdamW": Variant(recipe={"optimizer": "adamw"}),
    "learning rate 1e-3": Variant(recipe={"learning_rate": 1e-3}),
    "learning rate 4e-3": Variant(recipe={"learning_rate": 4e-3}),
    "batch 8": Variant(recipe={"batch": 8}),
    "batch 32": Variant(recipe={"batch": 32}),
    "crop 32, batch 64": Variant(recipe={"crop": 32, "batch": 64}),
    "average of 0.99": Variant(recipe={"ema": 0.99}),
    "average of 0.9995": Variant(recipe={"ema": 0.9995}),
    "no weight decay": Variant(recipe={"weight_decay": 0.0}),
    "uniform over log sigma": Variant(sampling_power=1.0),
    "denser at low noise": Variant(sampling_power=2.0),
    # DDPM's and Improved DDPM's losses and variances; L_simple leaves the variance untrained
    "L_hybrid": Variant(recipe={"loss": "hybrid"}),
    "L_simple, fixed large": Variant(recipe={"loss": "simple", "variance": "fixed-large"}),
    "L_simple, fixed small": Variant(recipe={"loss": "simple", "variance": "fixed-small"}),
    "v": Variant(recipe={"loss": "v"}),
    "flow matching": Variant(recipe={"loss": "flow"}),
    "fixed large": Variant(recipe={"variance": "fixed-large"}),
    "fixed small": Variant(recipe={"variance": "fixed-small"}),
}


class MeasuredTrainer(Trainer):
    """Writes no model, so that any network will do."""

    def write_model(self, validation: dict[str, Any], final: bool = True) -> None:
        """Write nothing."""

    @torch.inference_mode()
    def bound_of_many_steps(self) -> float:
        """The bound of levels at constant ratio on some held-out crops, in bits per dimension."""
        c = self.config
        x = domain_batch(self.held_out.batch(MANY_STEPS_CROPS, 12345, 0), c.network.color)
        model = self.averaged_network().posterior_x
        plan, generator = geometric_plan(MANY_STEPS), torch.Generator().manual_seed(0)
        parts = bound.chain_bound_bits(model, x, c.network.color, plan, generator, c.variance)
        return parts.sum(1).mean().item()


def run_variant(
    variant: Variant, data: Path, out: Path, minutes: float, recipe: dict[str, Any]
) -> dict[str, Any]:
    """Train one variant for so many minutes and measure it."""
    recipe = recipe | {"network": one_network(**variant.network)} | variant.recipe
    with (
        mock.patch.object(dit, "UNet", variant.unet),
        mock.patch.object(network, "ResidualBlock", variant.block),
        mock.patch.object(losses, "SAMPLING_POWER", variant.sampling_power),
    ):
        torch.compiler.reset()
        measured = MeasuredTrainer(TrainConfig(str(data), **recipe), out)
        measured.plan_steps(minutes)
        out.mkdir(parents=True, exist_ok=True)
        measured.run(validate_every=measured.config.steps)
        many = measured.bound_of_many_steps()
    return read_log(out)[-1] | {
        "many_steps_bpd": many,
        "crops": measured.config.steps * measured.config.batch,
        "parameters": sum(p.numel() for p in measured.model.parameters()),
        "minutes": minutes,
        "config": asdict(measured.config),
    }


@click.command()
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Training images.")
@click.option(
    "--minutes",
    default=10.0,
    type=POSITIVE_NUMBER,
    show_default=True,
    help="Of training, for each variant.",
)
@click.option(
    "--crop", default=64, type=POSITIVE, show_default=True, help="Sides of the crops, in pixels."
)
@click.option("--batch", default=16, type=POSITIVE, show_default=True, help="Crops of a step.")
@click.option("--only", multiple=True, type=click.Choice(list(VARIANTS)), help="Variants to run.")
@click.option("--out", default=Path("results/ablation"), type=click.Path(path_type=Path))
def main(
    data: Path, minutes: float, crop: int, batch: int, only: tuple[str, ...], out: Path
) -> None:
    """Train what is missing, and print the table of what is there."""
    done = {}
    for name in only or VARIANTS:
        folder = out / folder_name(name)
        result = folder / RESULT
        if not result.exists():
            outcome = run_variant(
                VARIANTS[name], data, folder, minutes, {"crop": crop, "batch": batch}
            )
            result.write_text(json.dumps({"variant": name} | outcome, indent=2))
        done[name] = json.loads(result.read_text())
    columns = ("variant", "parameters", "crops seen", "held-out bound, bpd", f"{MANY_STEPS} steps")
    lines = []
    for name, r in sorted(done.items(), key=lambda item: item[1]["held_out_bpd"]):
        many = f"{r['many_steps_bpd']:.3f}" if "many_steps_bpd" in r else "-"
        figures = (str(r["crops"]), f"{r['held_out_bpd']:.3f}", many)
        lines.append((name, f"{r['parameters'] / 1e6:.1f} M", *figures))
    click.echo(markdown(columns, lines))


if __name__ == "__main__":
    main()
