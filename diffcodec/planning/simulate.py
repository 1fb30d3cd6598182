"""A plan tried on crops, step by step as the encoder takes it, to predict the size of files."""

import numpy as np
import torch
from torch import Tensor

from diffcodec.arrays import Array
from diffcodec.coding.levels import make_levels
from diffcodec.diffusion.bound import (
    PhasedModel,
    PosteriorModel,
    above,
    draw_dither,
)
from diffcodec.diffusion.color import DOMAINS
from diffcodec.diffusion.plan import Plan
from diffcodec.diffusion.process import (
    Gaussian,
    dithered_quantise,
    gaussian_kl_bits,
    on_lattice,
    p_first,
    p_prior,
    p_reverse,
    q_posterior,
    to_bits_per_dimension,
)
from diffcodec.planning.costs import Course
from diffcodec.planning.measure import (
    batched,
    channels_coded,
    coder_bits,
    first_bits,
    lowest_bits,
    refined,
)
from diffcodec.planning.search import bytes_around, with_fallback


def simulate(
    model: PosteriorModel,
    x: Tensor,
    color: str,
    plan: Plan,
    generator: torch.Generator,
    phased: PhasedModel | None = None,
) -> Course:
    """Coding crops by any plan.

    Like the encoder, but with random draws for pops, code lengths for pushes and a float network:
    for a model that has no tables for the plan's levels yet. Unlike a table of costs it sees where
    the points of each lattice lie in the next, which makes its pops a little cheaper or dearer.
    """
    domain = DOMAINS[color]
    constants = make_levels(plan, domain)
    sigma, delta, draw_std = (
        [torch.tensor(getattr(level, name), dtype=x.dtype) for level in constants]
        for name in ("sigma", "spacing", "draw_std")
    )
    z, _ = dithered_quantise(x, draw_dither(x.shape, delta[0], generator), delta[0])
    z_1 = z
    changes, sent = [lowest_bits(model, phased, x, z, plan.levels[0], delta[0])], []
    for t in range(1, len(plan.levels)):
        drawn = z + draw_std[t] * torch.randn(x.shape, generator=generator)
        z_t = delta[t] * torch.round(drawn / delta[t])
        q = Gaussian(z, (draw_std[t] ** 2).expand_as(z))
        changes.append(-coder_bits(z_t, q, delta[t]))
        if t == 1 and phased is not None:
            pushed = first_bits(phased, z, z_t, plan.levels[t])
        elif t == 1:
            p = p_first(*batched(model, z_t, plan.levels[t]), z_t, sigma[0], sigma[1], delta[0])
            pushed = coder_bits(z, p, delta[0])
        else:
            if phased is not None:
                posterior = refined(phased, z, z_t, plan.levels[t - 1], plan.levels[t])
            else:
                posterior = batched(model, z_t, plan.levels[t])
            step = p_reverse(*posterior, z_t, sigma[t - 1], sigma[t])
            noise = above(sigma[t - 1], sigma[0]), above(sigma[t], sigma[0])
            sent.append(gaussian_kl_bits(q_posterior(z_1, z_t, *noise), step))
            pushed = coder_bits(z, on_lattice(step, delta[t - 1]), delta[t - 1])
        changes.append(pushed)
        z = z_t
    prior = p_prior(domain, sigma[-1])
    changes.append(coder_bits(z, on_lattice(prior, delta[-1]), delta[-1]))
    around = Gaussian(z_1, (above(sigma[-1], sigma[0]) ** 2).expand_as(x))
    sent.append(gaussian_kl_bits(around, prior))
    coded = channels_coded(x, color)
    heights, each = (
        np.array([to_bits_per_dimension(bits[:, :coded]).double().numpy() for bits in parts])
        for parts in (changes, sent)
    )
    return Course(np.cumsum(heights, 0), each)


def predict_files(
    model: PosteriorModel,
    x: Tensor,
    color: str,
    plan: Plan,
    others_bpd: Array,
    seed: int = 0,
    phased: PhasedModel | None = None,
) -> Array:
    """What whole files of crops should take by any plan, in bits per dimension, [crops].

    Integer arithmetic is not known here; its files are a little larger (docs/plans.md).

    Args:
        model: gives xhat and v.
        x: integers of the colour domain as floats, [crops, 3, height, width], no larger than a
            tile.
        color: of x.
        plan: of the files.
        others_bpd: of each crop by a fallback coder (:func:`fallback_bpd`), which counts where it
            is smaller, as in the files.
        seed: of the noise.
        phased: codes in phases; by default the posterior does, all at once.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        payload = simulate(model, x, color, plan, generator, phased).payload
    height, width = x.shape[2:]
    bits = with_fallback(payload, others_bpd)
    return bits + 8 * bytes_around(width, height) / (width * height * channels_coded(x, color))
