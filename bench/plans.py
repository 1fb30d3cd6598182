"""What a chain of T timesteps costs, by the best noise levels and by geometric ones.

python -m bench.plans --data DIR [--model photo]

The bound of everything but the remainder (which no plan changes), on random crops.
"""

from pathlib import Path

import click
import numpy as np
import torch

from diffcodec.data import CropSampler, domain_batch, find_images
from diffcodec.models import load_weights
from diffcodec.network import UNet
from diffcodec.planning import best_levels, grid_levels, measure_costs
from diffcodec.schedule import geometric

GRID = 44
CROPS, CROP = 24, 64


@click.command()
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of images.")
@click.option("--model", default="photo", help="Name or path.")
def main(data: Path, model: str) -> None:
    """Print the table, and the levels found."""
    config, weights = load_weights(model)
    network = UNet(config).eval()
    network.load_state_dict(weights)
    x = domain_batch(CropSampler(find_images(data), CROP).batch(CROPS, 0, 0), config.color)
    grid = grid_levels(GRID)
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(0)
        costs = measure_costs(network.posterior_x, x, config.color, grid, generator)
    click.echo("| T | best levels, bpd | geometric, bpd |\n|---|---|---|")
    found = []
    for timesteps in (8, 10, 12, 16, 20, 24, 32):
        levels, best = best_levels(timesteps, grid, *costs)
        log_distance = np.abs(np.log(grid)[:, None] - np.log(geometric(timesteps - 1, 1.25, 600)))
        chosen = log_distance.argmin(0)  # the grid's levels nearest to geometric ones
        jumps, transitions, priors = costs
        plain = jumps[chosen[0]] + transitions[chosen[1:], chosen[:-1]].sum() + priors[chosen[-1]]
        click.echo(f"| {timesteps} | {best:.3f} | {plain:.3f} |")
        found.append(f"T = {timesteps}: " + ", ".join(f"{s:.3g}" for s in levels))
    click.echo("\n" + "\n".join(found))


if __name__ == "__main__":
    main()
