from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch

from diffcodec import planning
from diffcodec.chain import TileChain, coding_steps, encode_tile, most_seed_words
from diffcodec.container import Box
from diffcodec.errors import DiffcodecError
from diffcodec.models import load_model, load_weights, serialise_model
from diffcodec.network import NetworkConfig, UNet
from diffcodec.plan import Plan
from diffcodec.planning import (
    Costs,
    StackSearch,
    draw_lattice,
    find_plans,
    grid_levels,
    grid_spacings,
    measure_costs,
    payload_bits,
    plan_of_path,
    pop_bits,
    simulate_heights,
    tabulate_pops,
)
from diffcodec.tiles import Part, progress_bar, run


def some_costs(seed: int = 0, crops: int = 3, remainder: float = 1.2) -> Costs:
    """Made-up pushes on a grid of 6 levels and 2 lattices."""
    rng = np.random.default_rng(seed)
    levels = np.geomspace(1.2, 60, 6)
    spacings = np.outer(levels, [2.0, 1.2])
    n, k = spacings.shape
    steps = rng.uniform(0.4, 2.5, (n, n, k, 1)) + rng.uniform(-0.1, 0.1, (n, n, k, crops))
    steps[~np.tri(n, k=-1, dtype=bool)] = np.inf
    jumps = rng.uniform(0.4, 1.5, (n, 1)) + rng.uniform(-0.1, 0.1, (n, crops))
    jumps[2:] = np.inf
    return Costs(
        levels,
        spacings,
        tabulate_pops(list(levels), spacings),
        remainder + rng.uniform(-0.1, 0.1, crops),
        jumps,
        steps,
        rng.uniform(1, 4, (n, k, crops)),
    )


def all_paths(costs: Costs, timesteps: int) -> list[list[tuple[int, int]]]:
    nodes = list(np.ndindex(*costs.spacings.shape))
    paths = product(nodes, repeat=timesteps - 1)
    return [list(p) for p in paths if all(a[0] < b[0] for a, b in pairwise(p))]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("reserve", [-np.inf, -0.5, 0.0])
def test_the_search_finds_what_trying_all_chains_finds(
    seed: int, reserve: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "BUCKET_BPD", 1e-3)  # so that no two heights share a bucket
    monkeypatch.setattr(planning, "BUCKETS", 8000)
    costs = some_costs(seed)
    mean, held = costs.average(), costs.average([1])
    search = StackSearch(mean, held, 5, reserve)
    for timesteps in (3, 4, 5):
        with np.errstate(invalid="ignore"):
            possible = [
                (float(mean.heights(path)[-1, 0]), path)
                for path in all_paths(costs, timesteps)
                if np.nanmin(held.heights(path)) >= reserve
                and np.isfinite(mean.heights(path)).all()
            ]
        path = search.path(timesteps)
        if not possible:
            assert path is None
            continue
        assert path is not None
        assert mean.heights(path)[-1, 0] == pytest.approx(min(possible)[0])
        assert held.heights(path).min() >= reserve - 1e-9


def test_a_pop_takes_the_entropy_of_the_draw() -> None:
    for fine in (0.5, 1.0):  # of a density as wide as the draw and the rounding together
        variance = 1 / fine**2 + 1 / 12
        assert pop_bits(fine) == pytest.approx(0.5 * np.log2(2 * np.pi * np.e * variance), abs=1e-3)
    assert pop_bits(3.5) == pytest.approx(0.74, abs=0.005)  # measured in the real coder


def test_a_lattice_is_part_of_the_noise() -> None:
    lattice = draw_lattice(3.0, 5.0, 2.0)
    draw = 2.0 / lattice
    assert draw**2 + 2.0**2 / 12 == pytest.approx(5.0**2 - 3.0**2)
    assert draw_lattice(3.0, 3.1, 4.0) == np.inf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as it is before training: no step is free, none impossible."""
    torch.manual_seed(0)
    network = UNet(NetworkConfig(channels=(8, 8), blocks=(1, 1), embedding=16))
    path = tmp_path_factory.mktemp("planning") / "tiny.safetensors"
    plans = {"default": Plan((0.5, 1.3, 2.4, 4, 7, 40), (2.5, 2.3, 2, 1.8, 1.5))}
    path.write_bytes(serialise_model(network, crops(2, 16), plans, {}))
    return path


def float_network(path: Path) -> UNet:
    config, weights = load_weights(path)
    network = UNet(config).eval()
    network.load_state_dict(weights)
    return network


def crops(count: int, side: int) -> torch.Tensor:
    """Smooth ramps with noise, in YCoCg."""
    rng = np.random.default_rng(5)
    ramp = np.add.outer(np.arange(side), np.arange(side)) + 40.0
    x = np.stack([ramp, ramp / 4 - 10, 5 - ramp / 5])[None] + rng.normal(
        0, 6, (count, 3, side, side)
    )
    return torch.from_numpy(np.rint(x)).float()


@torch.inference_mode()
def test_predicted_heights_are_the_encoders(tiny: Path) -> None:
    model, network, x = load_model(tiny), float_network(tiny), crops(6, 48)
    plan = model.plans["default"]
    predicted = simulate_heights(
        network.posterior_x, x, model.color, plan, torch.Generator().manual_seed(0)
    )
    chains = [TileChain(plan, model.domain, i, 3, (48, 48)) for i in range(6)]
    jobs = [encode_tile(c, x[i].double().numpy()) for i, c in enumerate(chains)]
    parts = [Part("default", i, Box(0, 0, 48, 48)) for i in range(6)]
    tiles = list(run(jobs, parts, model, progress_bar(0, progress=False)))
    words = np.array([tile.heights for tile in tiles]).T - most_seed_words(chains[0])
    real = 32 * words / x[0].numel()  # [steps, crops]
    assert len(predicted) == len(real) == len(coding_steps(len(plan.levels)))
    changes = np.diff(predicted - real, axis=0, prepend=0).mean(1)
    assert np.abs(changes).max() < 0.04, changes
    files = [32 * len(tile.words) / x[0].numel() for tile in tiles]
    assert payload_bits(predicted)[0].mean() == pytest.approx(np.mean(files), rel=0.01)


@torch.inference_mode()
def test_tabulated_heights_are_those_of_the_chain(tiny: Path) -> None:
    network, x = float_network(tiny), crops(4, 48)
    levels = grid_levels()[::4]
    generator = torch.Generator().manual_seed(0)
    spacings = grid_spacings(levels)[:, ::3]
    costs = measure_costs(network.posterior_x, x, "ycocg", levels, spacings, generator)
    average = costs.average()
    path = StackSearch(average, average, 6, 0.3).path(6)
    assert path is not None
    plan = plan_of_path(costs, path)
    simulated = simulate_heights(network.posterior_x, x, "ycocg", plan, generator)
    changes = np.diff(costs.heights(path) - simulated, axis=0, prepend=0).mean(1)
    assert np.abs(changes).max() < 0.05, changes
    assert costs.heights(path)[-1] == pytest.approx(simulated[-1], rel=0.01)


def test_the_budget_of_seed_bits_is_kept() -> None:
    costs = some_costs(2, crops=8, remainder=1.3)
    free = find_plans(costs, [4], seed_bpd=9, margin=0, reserves=(-2.0, -1.0, 0.0))[4]
    held = find_plans(costs, [4], seed_bpd=0.0, margin=0, reserves=(-2.0, 0.0, 0.1, 0.2))[4]
    assert held.seed_bpd == 0
    assert free.bpd <= held.bpd
    flat = replace(costs, remainder=np.zeros(8))
    with pytest.raises(DiffcodecError, match="allow more seed bits"):
        find_plans(flat, [4], seed_bpd=0.0)


def test_crops_that_another_coder_takes_do_not_count() -> None:
    costs = some_costs(1, crops=4)
    alone = find_plans(replace_crops(costs, [0, 1]), [4], seed_bpd=9)[4]
    others = np.array([99.0, 99.0, -9.0, -9.0])  # two are never worth the chain
    assert find_plans(costs, [4], 9, others)[4] == alone


def replace_crops(costs: Costs, kept: list[int]) -> Costs:
    names = ("remainder", "jumps", "steps", "priors")
    return replace(costs, **{n: getattr(costs, n)[..., kept] for n in names})


@pytest.mark.parametrize("timesteps", [[], [2], [8]])
def test_impossible_numbers_of_timesteps(timesteps: list[int]) -> None:
    with pytest.raises(DiffcodecError, match="timesteps"):
        find_plans(some_costs(), timesteps)


@pytest.mark.parametrize(
    ("levels", "count", "message"),
    [([], 1, "0 noise levels"), ([2.0, 4.0], 0, "0 crops"), ([4.0, 2.0], 1, "increase")],
)
def test_grids_that_cannot_be_measured(levels: list[float], count: int, message: str) -> None:
    def model(z: torch.Tensor, _sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return z, torch.ones_like(z)

    x = torch.zeros(count, 3, 8, 8)
    with pytest.raises(DiffcodecError, match=message):
        measure_costs(model, x, "ycocg", levels, np.ones((len(levels), 1)), torch.Generator())
