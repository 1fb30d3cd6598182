"""What fits a model in phases to an image: found by what parts of the image take."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffcodec.arrays import Array
from diffcodec.codec.batches import progress_bar, run
from diffcodec.codec.jobs import Job, Part, encoding, make_chain
from diffcodec.codec.planes import coded_channels, integers
from diffcodec.coding.adaptation import STEPS, VARIABLES, Adaptation, Table
from diffcodec.coding.bits_back import encode_tile
from diffcodec.coding.chain import Answer, PhaseRequest, TileChain
from diffcodec.coding.steps import OutOfRangeError
from diffcodec.container.parts import Box, tile_grid
from diffcodec.diffusion.phases import (
    PHASES,
    clipped_exp,
    first_phase_bits,
    mixture_bits,
    of_phase,
    refined,
)
from diffcodec.diffusion.process import (
    LOG2_E,
    discretized_gaussian_bits,
    on_lattice,
    p_reverse,
)
from diffcodec.errors import UnsupportedError
from diffcodec.images.outliers import Found
from diffcodec.models.model import Model

SAMPLE_PIXELS = 1 << 15  # of the image that are looked at
SAMPLE_SIDE = 96  # of the squares that these are cut as
ITERATIONS = 12  # of L-BFGS
MOST_BITS = 24.0  # that a sample takes: the coder gives each of its values more than 2^-24


class Told(NamedTuple):
    """Samples of a phase as they were coded.

    Attributes:
        parameters: by the model, float32 [parameters, samples].
        fields: what their code length hangs on besides, float32 [fields, 3, samples].
    """

    parameters: Array
    fields: Array


Notes = dict[tuple[int, int], list[Told]]  # by variable and phase


def fit(
    model: Model,
    plan: str,
    source: Image.Image,
    found: Found,
    label: int | None = None,
    boxes: Sequence[Box] = (),
) -> Adaptation | None:
    """What fits the model to an image, if it pays.

    Squares of the image are coded, a few of a large one, and the tables are those that make their
    code shortest (L-BFGS), rounded. A table is kept if it saves more than it takes, by Akaike's
    measure of what a fit promises beyond its sample.

    Args:
        model: in phases.
        plan: by which the image is to be coded.
        source, found: the image, and which colours occur; where not all do, the tables of x would
            be others, and there are none.
        label: class that the model is told.
        boxes: what the image is made of, if these are images by themselves; else squares are taken.

    Raises:
        UnsupportedError: the model has no phases.
    """
    if not model.phased:
        raise UnsupportedError(f"model {model.info.name} has no phases that could be adapted")
    coded = coded_channels(source.mode, model.color)
    if not coded:
        return None
    boxes = _sample(boxes or tile_grid(*source.size, SAMPLE_SIDE))
    parts = [Part(plan, index, box, label=label) for index, box in enumerate(boxes)]
    notes: list[Notes] = [{} for _ in parts]
    jobs = (
        _watched(model, make_chain(model, source.mode, part), _samples(model, found, part), each)
        for part, each in zip(parts, notes, strict=True)
    )
    list(run(jobs, parts, model, progress_bar(0, False)))
    share = source.width * source.height / sum(part.pixels for part in parts)
    variables = range(1 if found.colors else 0, VARIABLES)
    tables = {which: _fitted(notes, which, coded, share) for which in variables}
    kept = {which: table for which, table in tables.items() if table is not None}
    return Adaptation(kept) if kept else None


def _sample(boxes: Sequence[Box]) -> list[Box]:
    """Some of an image's parts, evenly among all."""
    most = max(1, SAMPLE_PIXELS // (boxes[0].width * boxes[0].height))
    count = min(len(boxes), most)
    return [boxes[(2 * i + 1) * len(boxes) // (2 * count)] for i in range(count)]


def _samples(model: Model, found: Found, part: Part) -> Array:
    return integers(found.image, part.box, model.color).astype(np.float64)


def _watched(model: Model, chain: TileChain, x: Array, notes: Notes) -> Job[None]:
    """Code a tile, and note what each phase of each variable was told by."""
    job = encode_tile(chain, x)
    try:
        with encoding(model):
            request = next(job)
            while True:
                answer: Answer = yield request
                if isinstance(request, PhaseRequest):
                    yield from _note(chain, request, answer, notes)
                request = job.send(answer)
    except (StopIteration, OutOfRangeError):
        return


def _note(chain: TileChain, request: PhaseRequest, parameters: Array, notes: Notes) -> Job[None]:
    t, number = request.timestep, request.number
    posterior = yield from chain.posterior(t + 1)  # which it has
    assert chain.expected
    z, z_above, mean, unit = (of_phase(f, number) for f in (chain.z[t], *chain.expected))
    if t == 0:
        half = chain.levels[0].spacing / 2
        fields = [z - mean, z_above - half - mean, z_above + half - mean, np.full_like(z, 0.5)]
        fields = [field / unit for field in fields]
    elif t == 1:
        fields = [z, mean, unit, np.broadcast_to(chain.levels[0].spacing, z.shape)]
    else:
        below, above = chain.levels[t - 1 : t + 1]
        xhat, v = (of_phase(f, number) for f in (posterior.mean, posterior.variance))
        constants = (below.sigma, above.sigma, below.spacing)
        fields = [z, z_above, xhat, v, *(np.broadcast_to(c, z.shape) for c in constants)]
    height, width = z.shape[1:]
    told = Told(
        parameters[:, :height, :width].reshape(len(parameters), -1).astype(np.float32),
        np.stack(fields).reshape(len(fields), 3, -1).astype(np.float32),
    )
    notes.setdefault((min(t, VARIABLES - 1), number), []).append(told)


def _x_bits(parameters: Tensor, fields: Tensor) -> Tensor:
    return mixture_bits(parameters, *fields)


def _above_bits(parameters: Tensor, fields: Tensor) -> Tensor:
    z, z_above, xhat, v, below, above, spacing = fields
    xhat, v = refined(xhat, v, parameters, torch.sqrt, clipped_exp)
    p = on_lattice(p_reverse(xhat, v, z_above, below, above), spacing)
    return discretized_gaussian_bits(z, *p, spacing)


def _first_bits(parameters: Tensor, fields: Tensor) -> Tensor:
    z, mean, unit, steps = fields
    return first_phase_bits(z, mean, unit, parameters, steps)


BITS: Sequence[Callable[[Tensor, Tensor], Tensor]] = (_x_bits, _first_bits, _above_bits)


def _fitted(notes: Sequence[Notes], which: int, coded: int, share: float) -> Table | None:
    """The table of a variable, or None if none pays.

    Args:
        notes: of the squares.
        which: variable.
        coded: leading channels that count.
        share: pixels of the image for each that was looked at.
    """
    rows, saved = [], 0.0
    for number in range(len(PHASES)):
        told = [one for each in notes for one in each.get((which, number), ())]
        if not told:
            return None
        row, bits = _fitted_phase(told, BITS[which], coded)
        rows.append(row)
        saved += bits
    table: Table = np.stack(rows)
    overfitted = LOG2_E * table.size * (share - 1)  # of it the sample's own share is no promise
    return table if share * saved - overfitted > 8 * table.size else None


def _fitted_phase(
    told: Sequence[Told], code_length: Callable[..., Tensor], coded: int
) -> tuple[NDArray[np.int8], float]:
    """Scales and shifts of a phase, [2, parameters], and the bits that they save of the samples."""
    parameters, fields = (
        torch.from_numpy(np.concatenate(arrays, -1))[..., None]
        for arrays in zip(*told, strict=True)
    )

    def bits(change: Tensor) -> Tensor:
        adapted = parameters * (1 + change[0, :, None, None]) + change[1, :, None, None]
        samples = code_length(adapted[None], fields[:, None])
        return samples[:, :coded].clamp(max=MOST_BITS).mean()

    change = torch.zeros(2, len(parameters), requires_grad=True)
    optimizer = torch.optim.LBFGS([change], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = bits(change)
        loss.backward()
        return loss

    optimizer.step(closure)
    most = np.iinfo(np.int8)
    rounded = (change.detach() * STEPS).round().nan_to_num().clamp(most.min, most.max)
    with torch.no_grad():
        saved = bits(torch.zeros_like(rounded)) - bits(rounded / STEPS)
    return rounded.numpy().astype(np.int8), saved.item() * coded * fields[0, 0].numel()
