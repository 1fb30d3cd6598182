"""What a chain of T timesteps costs by a plan found for the model and by geometric levels.

python -m bench plans --calibration IMAGES --data IMAGES --model FLOAT

Plans are found on random crops of some images, and judged by whole files of the central crops of
others: every byte counted, every tile coded by the chain (or raw, if smaller). The bound is the
chain's variational bound of the same images and plan, by one sample of the chain. Predictions are
by the float network and random draws. Beside seed bits stands how many of the files have a preview
of their own, which takes their place. The two must not share images: plans would be judged
by what they were made for.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from bench import POSITIVE, chain_only
from bench.inputs import dataset
from bench.lossless import bound_bits
from bench.measuring import check_equal, dips
from bench.report import markdown
from diffcodec import decode, load_model
from diffcodec.codec.many import encode_many
from diffcodec.container.reader import parse
from diffcodec.diffusion.color import to_domain
from diffcodec.diffusion.plan import Plan, geometric_plan
from diffcodec.models.export import serialise_model
from diffcodec.models.file import model_info, model_path
from diffcodec.models.model import load_weights
from diffcodec.networks.experts import ExpertDenoisers
from diffcodec.planning.propose import fallback_bpd, search_plans
from diffcodec.planning.simulate import simulate
from diffcodec.training.crops import CropSampler, domain_batch
from diffcodec.training.data import find_images, list_images


def judge(
    network: ExpertDenoisers,
    plan: Plan,
    calibration: torch.Tensor,
    images: Sequence[Image.Image],
) -> dict[str, Any]:
    """Means over images, bits per dimension: predicted, bound, real files and their seed bits."""
    color = network.config.color
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.safetensors"
        path.write_bytes(serialise_model(network, calibration, {"default": plan}, {}))
        model = load_model(path)
    files = list(encode_many(images, model))
    samples = [image.width * image.height * 3 for image in images]
    headers, seeds, previews = [], [], []
    for image, data in zip(images, files, strict=True):
        with dips() as seed_words:
            decoded = decode(data, model=model)
        check_equal(image, decoded)
        (tile,) = parse(data).tiles
        headers.append(8 * (len(data) - len(tile.payload) - len(tile.preview_payload)))
        seeds.append(32 * sum(seed_words))
        previews.append(tile.preview > 0)
    rgb = np.stack([np.asarray(image).transpose(2, 0, 1) for image in images]).astype(np.int16)
    x = to_domain(torch.from_numpy(rgb), color).float()
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(0)
        course = simulate(network.posterior_x, x, color, plan, generator)
    bounds = [bound_bits(model, "default", image) for image in images]

    def mean(bits: Sequence[float]) -> float:
        return float(np.mean(np.array(bits) / samples))

    return {
        "levels": plan.levels,
        "lattices": plan.lattice_ratios,
        "predicted_bpd": float(course.payload.mean()) + mean(headers),
        "bound_bpd": mean(bounds),
        "files_bpd": mean([8 * len(data) for data in files]),
        "seed_bpd": mean(seeds),
        "with_previews": sum(previews),
    }


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    names = ("bound_bpd", "predicted_bpd", "files_bpd", "seed_bpd")
    columns = ["plan", "at most", "T", "bound", "predicted", "files", "seed bits"]
    columns += ["files - bound", "with previews"]
    lines = []
    for r in results:
        figures = [*(r[name] for name in names), r["files_bpd"] - r["bound_bpd"]]
        cells = [r["plan"], str(r["budget"]), str(len(r["levels"])), *(f"{v:.3f}" for v in figures)]
        lines.append([*cells, str(r["with_previews"])])
    return markdown(columns, lines)


def numbers(text: str) -> list[int]:
    """A list such as 8,10,12."""
    return [int(part) for part in text.split(",") if part]


@click.command()
@click.option("--calibration", required=True, type=click.Path(path_type=Path), help="Images.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Images to judge by.")
@click.option("--model", required=True, help="Name or path; no model in phases.")
@click.option("--timesteps", default="8,10,12,16,20,24,32", help="Of plans to find.")
@click.option("--geometric", default="12,24,48", help="Timesteps of geometric levels.")
@click.option("--own", is_flag=True, help="Judge the plans of the model's file too.")
@click.option("--crops", default=24, type=POSITIVE, help="Crops to find plans on.")
@click.option("--calibration-crop", default=64, type=POSITIVE, help="Their side.")
@click.option("--crop", default=128, type=POSITIVE, help="Side of the central crops to judge by.")
@click.option("--limit", type=POSITIVE, help="Judge by the first so many images.")
@click.option("--out", type=click.Path(path_type=Path), help="Results as JSON.")
@chain_only()
def main(
    calibration: Path,
    data: Path,
    model: str,
    timesteps: str,
    geometric: str,
    own: bool,
    crops: int,
    calibration_crop: int,
    crop: int,
    limit: int | None,
    out: Path | None,
) -> None:
    """Find plans, and print the table."""
    config, weights = load_weights(model)
    if config.phases:
        raise click.ClickException(
            f"model {model} codes in phases, and its plans begin at M = {config.quantiser}; "
            "expected one without phases, whose plans begin at M = 2: give another by --model"
        )
    network = ExpertDenoisers(config).eval()
    network.load_state_dict(weights)
    sampler = CropSampler(list_images(find_images(calibration)), calibration_crop, memory_bytes=0)
    x = domain_batch(sampler.batch(crops, 0, 0), config.color)
    plans: list[tuple[str, int, Plan]] = []
    if numbers(timesteps):
        others = fallback_bpd(x, config.color)
        found = search_plans(
            network.posterior_x, x, config.color, numbers(timesteps), others, progress=True
        )
        plans += [("found", count, f.plan) for count, f in found.items()]
    plans += [("geometric", count, geometric_plan(count)) for count in numbers(geometric)]
    if own:
        info = model_info(model_path(model))
        plans += [(name, len(plan.levels), plan) for name, plan in info.plans.items()]
    images = [image for _, image in dataset(data, limit, crop).images()]
    results: list[dict[str, Any]] = []
    for name, budget, plan in tqdm(plans, "plans", disable=None):
        row = judge(network, plan, x[:8], images)
        results.append({"plan": name, "budget": budget} | row)
        if out:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps({"images": len(images), "results": results}, indent=1))
    click.echo(f"{len(images)} crops of {crop} x {crop}, means, bits per dimension\n")
    click.echo(table(results))


if __name__ == "__main__":
    main()
