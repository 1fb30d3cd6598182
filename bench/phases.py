"""The floats of a model of photographs in phases, to go on from.

    python -m bench phases restore photo-phases.safetensors
    diffcodec train --init photo-phases.safetensors --data DIR --out RUN --minutes 60
    python -m bench phases keep RUN/float.safetensors

What is kept, ``bench/weights/phases.safetensors``, is in bfloat16, and without what is the same in
the shipped ``photo``: its network for the highest noise levels is the third expert here. What the
model makes of images: docs/phases.md.
"""

from pathlib import Path

import click
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffcodec.diffusion.plan import plans_from
from diffcodec.models.export import serialise_float_model
from diffcodec.models.model import load_model, load_weights
from diffcodec.networks.config import NetworkConfig, PhasesConfig
from diffcodec.networks.experts import ExpertDenoisers

KEPT = Path(__file__).parent / "weights" / "phases.safetensors"
LIMITS = (3.0, 9.5)  # up to which noise level the first two experts answer


def photo_in_phases() -> tuple[NetworkConfig, dict[str, Tensor]]:
    """The shape of the model, and what it has from ``photo``, by the names of its tensors."""
    config, weights = load_weights("photo")
    (_, detail), (infinity, main) = config.experts
    shapes = ((LIMITS[0], detail), (LIMITS[1], main), (infinity, main))
    shared = {
        name.replace("experts.1.", "experts.2."): tensor
        for name, tensor in weights.items()
        if name.startswith("experts.1.")
    }
    return NetworkConfig(shapes, phases=PhasesConfig()), shared


@click.group()
def main() -> None:
    """The floats of a model of photographs in phases, to go on from."""


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
def restore(out: Path) -> None:
    """Write them as a float model."""
    config, shared = photo_in_phases()
    torch.manual_seed(0)  # of what older ones have not: the steps
    network = ExpertDenoisers(config)
    for part in network.phases:
        part.bfloat16().float()
    network.load_state_dict(shared | load_file(KEPT), strict=False)
    out.write_bytes(serialise_float_model(network, plans_from(config.quantiser), {"crop": 64}))


@main.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
def keep(model: Path) -> None:
    """Keep those of a float model."""
    _, shared = photo_in_phases()
    halves = {
        name: tensor.to(torch.bfloat16)
        for name, tensor in load_model(model, "float").module.state_dict().items()
        if not (name in shared and torch.equal(tensor, shared[name]))
    }
    save_file(halves, KEPT)
    click.echo(f"{KEPT}: {len(halves)} tensors, {KEPT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
