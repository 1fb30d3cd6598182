"""Plans for a model and images, by budgets."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffcodec.arrays import Array
from diffcodec.container.parts import PLAN_NAMES
from diffcodec.diffusion.bound import PhasedModel, PosteriorModel
from diffcodec.diffusion.color import from_domain
from diffcodec.diffusion.plan import PLANS, Plan
from diffcodec.evaluation.measure import torch_posterior
from diffcodec.images.fallback import encode_fallback
from diffcodec.intervals import format_interval, mean_interval
from diffcodec.models.export import serialise_float_model, serialise_model
from diffcodec.models.file import plan_to_dict, plans_to_dict
from diffcodec.models.model import Model
from diffcodec.networks.devices import elsewhere
from diffcodec.networks.experts import PhasedBits
from diffcodec.planning.grid import grid_levels, grid_spacings
from diffcodec.planning.measure import REACH, channels_coded, measure_costs
from diffcodec.planning.search import FoundPlan, check_budgets, find_plans
from diffcodec.planning.simulate import predict_files
from diffcodec.training.crops import CropSampler, domain_batch
from diffcodec.training.data import find_images, split_held_out

LATTICE_ENDS = ((3.4, 2.1), (3.7, 2.4), (4.0, 2.7))  # at the bottom and the top, to try


def bent_lattices(timesteps: int, bottom: float, top: float) -> tuple[float, ...]:
    """Lattice ratios that fall from coarse at the bottom, where the stack is low, to finer ones."""
    heights = np.linspace(0, 1, timesteps - 1)
    return tuple(float(f) for f in top + (bottom - top) * (1 - heights) ** 2)


def fallback_bpd(x: Tensor, color: str) -> Array:
    """What the smallest other coder makes of each crop, in bits per dimension."""
    coded = channels_coded(x, color)
    rgb = from_domain(x.to(torch.int32), color).clamp(0, 255).to(torch.uint8)
    crops = [Image.fromarray(crop.permute(1, 2, 0).contiguous().numpy()) for crop in rgb]
    crops = [crop.convert("L") for crop in crops] if coded == 1 else crops
    dimensions = x[0, :coded].numel()
    return np.array([8 * len(encode_fallback(crop)[1]) / dimensions for crop in crops])


def search_plans(
    model: PosteriorModel,
    x: Tensor,
    color: str,
    timesteps: Sequence[int],
    others_bpd: Array,
    progress: bool = False,
    quantiser: int = 2,
    phased: PhasedModel | None = None,
) -> dict[int, FoundPlan]:
    """The best plans of a model on the usual grid; see :func:`find_plans`.

    Args:
        model: gives xhat and v.
        x: calibration crops, integers of the colour domain as floats, [crops, 3, height, width].
        timesteps: budgets of the chains to find.
        others_bpd: see :func:`predict_files`.
        progress: whether to show a bar.
        quantiser: M of luma at the first level.
        phased: codes in phases; by default the posterior does, all at once.
    """
    levels = grid_levels(quantiser)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        spacings, same = grid_spacings(levels), (quantiser, phased)
        costs = measure_costs(model, x, color, levels, spacings, generator, REACH, progress, *same)

    def files_bpd(plan: Plan) -> float:
        return float(predict_files(model, x, color, plan, others_bpd, phased=phased).mean())

    return find_plans(costs, timesteps, others_bpd, files_bpd=files_bpd)


@dataclass(frozen=True)
class Proposal:
    """A plan beside the one that the model has.

    Attributes:
        plan: found.
        files_bpd: whole files of held-out crops by it, predicted, [crops].
        own: the model's, if it has one.
        own_files_bpd: files by that one.
    """

    plan: Plan
    files_bpd: Array
    own: Plan | None = None
    own_files_bpd: Array | None = None

    def to_dict(self) -> dict[str, Any]:
        """The proposal in JSON's types."""
        described = _describe(self.plan, self.files_bpd)
        if self.own is None or self.own_files_bpd is None:
            return described
        return described | {"own": _describe(self.own, self.own_files_bpd)}


def _describe(plan: Plan, files_bpd: Array) -> dict[str, Any]:
    predicted = mean_interval(files_bpd.tolist())
    return {"timesteps": len(plan.levels), "predicted_bpd": predicted} | plan_to_dict(plan)


def search_crops(data: str, side: int, count: int, color: str) -> tuple[Tensor, Tensor]:
    """Crops to search on, and crops of held-out images to predict files for.

    Raises:
        DiffcodecError: if there are no images, or none that is large enough.
    """
    samplers = (
        CropSampler(images, side, augment="none", memory_bytes=0)
        for images in split_held_out(find_images(Path(data)))
    )
    searched, held_out = (domain_batch(s.batch(count, seed=0, step=0), color) for s in samplers)
    return searched, held_out


def propose_plans(
    model: Model,
    x: Tensor,
    held_out: Tensor,
    timesteps: Sequence[int] | None = None,
    progress: bool = False,
) -> dict[str, Proposal]:
    """Better plans for a model, by name.

    Args:
        model: loaded as "float".
        x: crops to search on, integers of its colour domain as floats, [crops, 3, height, width].
        held_out: crops of other images, to predict files for.
        timesteps: at most, of each plan; as many as the model has if they are not given.
        progress: whether to show a bar.

    Raises:
        ModelMismatchError: if it is loaded as "integer".
        DiffcodecError: see :func:`find_plans`; of timesteps that there are none of, at once.
    """
    network, color, phased, quantiser = _asked(model)
    if timesteps is None:
        timesteps = [len(model.plans.get(e, PLANS[e]).levels) for e in PLAN_NAMES]
    check_budgets(timesteps, most_timesteps(model))
    others, held_out_others = fallback_bpd(x, color), fallback_bpd(held_out, color)

    def mean_file(plan: Plan) -> float:
        return float(predict_files(network, x, color, plan, others, phased=phased).mean())

    def held_out_files(plan: Plan) -> Array:
        return predict_files(network, held_out, color, plan, held_out_others, phased=phased)

    found = search_plans(
        network,
        x,
        color,
        timesteps,
        others,
        progress=progress,
        quantiser=quantiser,
        phased=phased,
    )
    proposals = {}
    for name, count in zip(PLAN_NAMES, timesteps, strict=True):
        own = model.plans.get(name)
        choice = [(found[count].bpd, found[count].plan)]
        if own is not None and len(own.levels) <= count:
            plans = [
                own,
                *(Plan(own.levels, bent_lattices(len(own.levels), *ends)) for ends in LATTICE_ENDS),
            ]
            choice += [(mean_file(p), p) for p in plans]
        plan = min(choice, key=itemgetter(0))[1]
        own_files = None if own is None else held_out_files(own)
        proposals[name] = Proposal(plan, held_out_files(plan), own, own_files)
    return proposals


def most_timesteps(model: Model) -> int:
    """The timesteps of the longest plan that can be found for a model.

    Raises:
        ModelMismatchError: if it does not answer at any noise level.
    """
    return len(grid_levels(_asked(model)[3])) + 1


def _asked(model: Model) -> tuple[PosteriorModel, str, PhasedModel | None, int]:
    """What a search asks of a model: its posterior, of images in which domain, and what is lowest.

    Raises:
        ModelMismatchError: if it does not answer at any noise level.
    """
    if model.network.levels is None and not hasattr(model.network, "module"):
        quantiser = min((plan.quantiser for plan in model.plans.values()), default=2)
        return torch_posterior(model), model.color, None, quantiser
    module, device = model.module, model.device
    if device.type == "cpu":
        return module.posterior_x, model.color, module.phased, module.config.quantiser
    phased = PhasedBits(module.config, elsewhere(module, device)) if module.phased else None
    return elsewhere(module.posterior_x, device), model.color, phased, module.config.quantiser


def replace_plans(
    model: Model,
    plans: Mapping[str, Plan],
    calibration: Tensor,
    folders: tuple[Path, Path | None] | None = None,
) -> bytes:
    """The file of a model with other plans: a float one as it is, an integer one quantised anew.

    The weights of an integer model are on their grid already, so they stay as they are; the units
    of its inputs, and the tables for the plans' noise levels, are new.

    Args:
        model: loaded as "float", whatever the arithmetic of its file.
        plans: by name.
        calibration: see :func:`diffcodec.models.export.serialise_model`.
        folders: of a calibrated model, where its file lies and where the new one is to lie, from
            where its network is found too; None if that is not known. The same if not given.

    Raises:
        ModelMismatchError: if it is loaded as "integer", or its numbers leave no integer model.
    """
    if model.info.calibrated is not None:
        changed: dict[str, Any] = {"plans": plans_to_dict(plans)}
        if folders is not None:
            changed["source"] = _source_from(*folders, model.info.calibrated["source"])
        return json.dumps(model.info.calibrated | changed).encode()
    if model.info.arithmetic == "float":
        return serialise_float_model(model.module, plans, model.info.about)
    return serialise_model(model.module, calibration, plans, model.info.about)


def _source_from(old: Path, new: Path | None, source: str) -> str:
    """The path of a network, told from a folder, as told from a new one; or one from anywhere."""
    network = (old / source).resolve()
    return str(network) if new is None else os.path.relpath(network, new.resolve())


def format_proposals(proposals: dict[str, Proposal]) -> str:
    """The proposals as a table for people."""
    names = ("timesteps", "predicted bpd", "model has", "predicted")
    rows = ["effort   {:>9} {:>20} {:>9} {:>9}".format(*names)]
    for name, proposal in proposals.items():
        text = format_interval(mean_interval(proposal.files_bpd.tolist()))
        row = f"{name:8} {len(proposal.plan.levels):9} {text:>20}"
        if proposal.own is not None and proposal.own_files_bpd is not None:
            row += f" {len(proposal.own.levels):9} {proposal.own_files_bpd.mean():9.4f}"
        rows.append(row)
    return "\n".join(rows)
