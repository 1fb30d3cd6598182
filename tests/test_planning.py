import json
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load
from tiny import TIMESTEPS

from diffcodec import decode, encode, encode_many
from diffcodec.cli.program import cli
from diffcodec.codec import tiles
from diffcodec.codec.batches import progress_bar, run
from diffcodec.codec.jobs import Job, Part, encode_job
from diffcodec.coding.bits_back import encode_tile, most_seed_words
from diffcodec.coding.chain import TileChain
from diffcodec.coding.steps import coding_steps
from diffcodec.coding.top_down import Descent
from diffcodec.container.parts import PLAN_NAMES, Box
from diffcodec.container.reader import parse
from diffcodec.diffusion.color import from_domain
from diffcodec.diffusion.plan import Plan, geometric_plan
from diffcodec.errors import DiffcodecError
from diffcodec.models.export import quantize_model, serialise_float_model, serialise_model
from diffcodec.models.model import load_model, load_weights
from diffcodec.networks.config import one_network
from diffcodec.networks.experts import ExpertDenoisers
from diffcodec.planning import propose, search
from diffcodec.planning.costs import PREVIEW_OVERHEAD, Costs, Course
from diffcodec.planning.grid import (
    draw_lattice,
    grid_levels,
    grid_spacings,
    pop_bits,
    tabulate_pops,
)
from diffcodec.planning.measure import measure_costs
from diffcodec.planning.propose import LATTICE_ENDS, bent_lattices, fallback_bpd, propose_plans
from diffcodec.planning.search import FoundPlan, StackSearch, bytes_around, find_plans, plan_of_path
from diffcodec.planning.simulate import predict_files, simulate


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


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
        rng.uniform(0.1, 0.5, (n, n, crops)),
        rng.uniform(0.1, 0.5, (n, crops)),
    )


def all_paths(costs: Costs, timesteps: int) -> list[list[tuple[int, int]]]:
    nodes = list(np.ndindex(*costs.spacings.shape))
    paths = product(nodes, repeat=timesteps - 1)
    return [list(p) for p in paths if all(a[0] < b[0] for a, b in pairwise(p))]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("reserve", [-2.0, -0.5, 0.0])
def test_the_search_finds_what_trying_all_chains_finds(
    seed: int, reserve: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "BUCKET_BPD", 1e-3)  # so that no two heights share a bucket
    monkeypatch.setattr(search, "BUCKETS", 8000)
    mean = some_costs(seed).average()
    stack = StackSearch(mean, 5, reserve)
    for timesteps in (3, 4, 5):
        with np.errstate(invalid="ignore"):
            heights = [mean.course(path).heights for path in all_paths(mean, timesteps)]
        possible = [h[-1, 0] for h in heights if np.isfinite(h).all() and h.min() >= reserve]
        path = stack.path(timesteps)
        if not possible:
            assert path is None
            continue
        assert path is not None
        found = mean.course(path).heights
        assert found[-1, 0] == pytest.approx(min(possible))
        assert found.min() >= reserve - 1e-9


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
    """A model as it is before training: no step is free, none impossible.

    Of its plans, "best" has lattices so fine that the stack runs empty.
    """
    path = tmp_path_factory.mktemp("planning") / "tiny.safetensors"
    levels = (0.5, 1.3, 2.4, 4, 7, 40)
    plans = {"default": Plan(levels, (2.5, 2.3, 2, 1.8, 1.5)), "best": Plan(levels, (0.8,) * 5)}
    path.write_bytes(serialise_model(untrained(), crops(2, 16), plans, {}))
    return path


def untrained() -> ExpertDenoisers:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ExpertDenoisers(one_network(channels=(8, 8), blocks=(1, 1), patch=2, embedding=16))


def float_network(path: Path) -> ExpertDenoisers:
    config, weights = load_weights(path)
    network = ExpertDenoisers(config).eval()
    network.load_state_dict(weights)
    return network


def crops(count: int, side: int, coded: int = 3) -> torch.Tensor:
    """Smooth ramps with noise, in YCoCg; with one channel coded they are grey."""
    rng = np.random.default_rng(5)
    ramp = np.add.outer(np.arange(side), np.arange(side)) + 40.0
    x = np.stack([ramp, ramp / 4 - 10, 5 - ramp / 5])[None] + rng.normal(
        0, 6, (count, 3, side, side)
    )
    x[:, coded:] = 0
    return torch.from_numpy(np.rint(x)).float()


@pytest.mark.parametrize("coded", [3, 1])
@torch.inference_mode()
def test_predicted_heights_are_the_encoders(tiny: Path, coded: int) -> None:
    model, network, x = load_model(tiny), float_network(tiny), crops(6, 48, coded)
    plan = model.plans["default"]
    course = simulate(network.posterior_x, x, model.color, plan, seeded())
    predicted = course.heights
    chains = [TileChain(plan, model.domain, i, coded, (48, 48)) for i in range(6)]
    jobs = [encode_tile(c, x[i].double().numpy()) for i, c in enumerate(chains)]
    parts = [Part("default", i, Box(0, 0, 48, 48)) for i in range(6)]
    tiles = list(run(jobs, parts, model, progress_bar(0, progress=False)))
    words = np.array([tile.heights for tile in tiles]).T - most_seed_words(chains[0])
    dimensions = x[0, :coded].numel()
    real = 32 * words / dimensions  # [steps, crops]
    assert len(predicted) == len(real) == len(coding_steps(len(plan.levels)))
    changes = np.diff(predicted - real, axis=0, prepend=0).mean(1)
    assert np.abs(changes).max() < 0.04, changes
    files = [32 * len(tile.words) / dimensions for tile in tiles]
    assert course.payload.mean() == pytest.approx(np.mean(files), rel=0.01)


@torch.inference_mode()
def test_predicted_bits_of_previews_are_those_sent(tiny: Path) -> None:
    model, network, x = load_model(tiny), float_network(tiny), crops(2, 32)
    plan = model.plans["default"]
    sent = simulate(network.posterior_x, x, model.color, plan, seeded()).sent
    assert sent.shape == (len(plan.levels) - 1, len(x))

    def job(index: int) -> Job[list[int]]:
        descent = Descent(TileChain(plan, model.domain, index, 3, (32, 32)))
        bits = []
        while descent.timestep > 2:
            bits.append(len((yield from descent.encode_step(x[index].double().numpy()))))
        return bits[::-1]

    parts = [Part("default", i, Box(0, 0, 32, 32)) for i in range(len(x))]
    real = list(run(map(job, range(len(x))), parts, model, progress_bar(0, progress=False)))
    ratio = np.array(real).mean(0) / (x[0].numel() * sent.mean(1))
    assert ratio == pytest.approx(1.04, abs=0.1)


@torch.inference_mode()
def test_files_are_predicted_where_the_stack_runs_empty(tiny: Path) -> None:
    model, network, x = load_model(tiny), float_network(tiny), crops(2, 32)
    plan = model.plans["best"]
    course = simulate(network.posterior_x, x, model.color, plan, seeded())
    chains = [TileChain(plan, model.domain, i, 3, (32, 32)) for i in range(len(x))]
    jobs = [encode_job(model, c, x[i].double().numpy(), checksum=0) for i, c in enumerate(chains)]
    parts = [Part("best", i, Box(0, 0, 32, 32)) for i in range(len(x))]
    tiles = list(run(jobs, parts, model, progress_bar(0, progress=False)))
    assert all(tile is not None and tile.preview for tile in tiles)
    sizes = [8 * tile.size / x[0].numel() for tile in tiles if tile is not None]
    assert course.heights[-1].mean() < np.mean(sizes) < course.payload.mean()
    dips = -course.heights.min(0)
    assert (dips > 0.5).all() and (course.payload < course.heights[-1] + dips - 0.5).all()


def test_the_cheapest_way_out_of_an_empty_stack() -> None:
    sent = np.array([[1.0], [0.5], [0.1]])  # of z_2, z_3, z_4
    heights = np.array([0.5, 0.2, 1.0, 0.4, 1.5, 0.9, 1.6, 2.0])[:, None]
    assert Course(heights, sent).payload == pytest.approx([2.0])

    def dipping(step: int, depth: float) -> float:
        low = heights.copy()
        low[step] = -depth
        return float(Course(low, sent).payload[0] - 2.0)

    assert dipping(5, 0.001) == pytest.approx(0.001)  # seed bits
    assert dipping(5, 1) == pytest.approx(0.1 * PREVIEW_OVERHEAD)  # z_4 is sent, not popped
    assert dipping(3, 1) == pytest.approx(0.6 * PREVIEW_OVERHEAD)
    assert dipping(1, 1) == pytest.approx(1.6 * PREVIEW_OVERHEAD)


@pytest.mark.parametrize(("coded", "reserve"), [(3, 0.3), (1, -0.3)])
@torch.inference_mode()
def test_tabulated_heights_are_those_of_the_chain(tiny: Path, coded: int, reserve: float) -> None:
    network, x = float_network(tiny), crops(4, 48, coded)
    levels = grid_levels()[::4]
    generator = seeded()
    spacings = grid_spacings(levels)[:, ::3]
    costs = measure_costs(network.posterior_x, x, "ycocg", levels, spacings, generator)
    path = StackSearch(costs.average(), 6, reserve).path(6)
    assert path is not None
    plan = plan_of_path(costs, path)
    tabulated = costs.course(path)
    simulated = simulate(network.posterior_x, x, "ycocg", plan, generator)
    changes = np.diff(tabulated.heights - simulated.heights, axis=0, prepend=0).mean(1)
    assert np.abs(changes).max() < 0.05, changes
    assert tabulated.heights[-1] == pytest.approx(simulated.heights[-1], rel=0.01)
    assert np.abs((tabulated.sent - simulated.sent).mean(1)).max() < 0.03


def test_plans_are_judged_by_each_crops_file() -> None:
    costs, reserves = some_costs(2, crops=8), (-1.0, 0.0, 0.2)
    found = find_plans(costs, [3, 4], reserves=reserves)
    for most, plan in found.items():
        lengths = range(3, most + 1)
        paths = [StackSearch(costs.average(), 4, r).path(n) for r in reserves for n in lengths]
        payloads = [costs.course(path).payload.mean() for path in paths if path is not None]
        assert plan.bpd == pytest.approx(min(payloads))
        assert len(plan.plan.levels) <= most
    with pytest.raises(DiffcodecError, match="crops with more detail"):
        find_plans(replace(costs, remainder=np.zeros(8)), [4], reserves=(0.0,))


def test_a_better_judge_than_the_table() -> None:
    costs = some_costs(2, crops=8)
    judged: list[int] = []

    def files_bpd(plan: Plan) -> float:
        judged.append(len(plan.levels))
        return 9 - len(plan.levels)

    found = find_plans(costs, [4, 6], files_bpd=files_bpd)
    assert {most: len(f.plan.levels) for most, f in found.items()} == {4: 4, 6: 6}
    assert found[6].bpd == 3
    assert sorted(judged) == [3, 4, 5, 6]  # each once


def test_a_larger_budget_takes_what_a_smaller_one_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "SHORTLIST", 1)

    def files_bpd(plan: Plan) -> float:
        return abs(len(plan.levels) - 5)

    found = find_plans(some_costs(2, crops=8), [6, 5], files_bpd=files_bpd)
    assert {most: len(f.plan.levels) for most, f in found.items()} == {5: 5, 6: 5}


def test_fewer_timesteps_where_more_cost_more() -> None:
    costs = some_costs(3, crops=2)
    dear = np.where(np.isfinite(costs.steps), costs.steps + 3, np.inf)  # but for the first step
    (found,) = find_plans(replace(costs, steps=dear), [6], reserves=(-1.0,)).values()
    assert len(found.plan.levels) == 3


def test_a_crop_costs_no_more_than_by_another_coder() -> None:
    costs = some_costs(1, crops=4)
    (alone,) = find_plans(costs, [4]).values()
    (beside,) = find_plans(costs, [4], np.array([99.0, 99.0, 0.25, 0.25])).values()
    assert beside.bpd == pytest.approx(0.125 + 0.5 * alone.bpd, rel=0.1)


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


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def chains_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """WebP is better than a model without training."""
    for module in (propose, tiles):
        monkeypatch.setattr(module, "encode_fallback", lambda image, *_: ("raw", image.tobytes()))


@pytest.fixture
def folder(tmp_path: Path, coarse_grid: None, chains_only: None) -> Path:
    """Two models, and pictures."""
    network, about = untrained(), {"data": "none"}
    plans = {plan: geometric_plan(count) for plan, count in TIMESTEPS.items()}
    (tmp_path / "float.safetensors").write_bytes(serialise_float_model(network, plans, about))
    written = serialise_model(network, crops(2, 16), plans, about)
    (tmp_path / "integer.safetensors").write_bytes(written)
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        rgb = np.random.default_rng(i).normal(100 + 20 * i, 8, (40, 48, 3)).clip(0, 255)
        Image.fromarray(rgb.astype(np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path


def plan_command(folder: Path, *more: str) -> Result:
    arguments = ["plan", "--data", str(folder / "pictures"), "--crops", "6", *more]
    return CliRunner().invoke(cli, arguments)


def test_the_command_prints_plans_with_predicted_sizes(folder: Path) -> None:
    model = folder / "float.safetensors"
    result = plan_command(folder, "--model", str(model), "--crop", "32", "--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert (printed["model"], printed["crops"], printed["crop"]) == (str(model), 6, 32)
    assert list(printed["plans"]) == list(PLAN_NAMES)
    for name, described in printed["plans"].items():
        timesteps = TIMESTEPS[name]
        assert described["timesteps"] == len(described["levels"]) <= timesteps
        plan = Plan(tuple(described["levels"]), tuple(described["lattices"]))
        own = described["own"]
        assert own["levels"] == list(geometric_plan(timesteps).levels)
        assert described["predicted_bpd"]["mean"] < own["predicted_bpd"]["mean"] + 0.02
        network = float_network(model)
        _, held_out = propose.search_crops(str(folder / "pictures"), 32, 6, "ycocg")
        others = fallback_bpd(held_out, "ycocg")
        again = predict_files(network.posterior_x, held_out, "ycocg", plan, others)
        assert described["predicted_bpd"]["mean"] == pytest.approx(again.mean())


@pytest.mark.parametrize("arithmetic", ["float", "integer"])
def test_the_command_writes_the_model_with_the_plans_found(folder: Path, arithmetic: str) -> None:
    out = folder / "new.safetensors"
    options = ("--crop", "32", "--timesteps", "3,4,5", "--out", str(out))
    result = plan_command(folder, "--model", str(folder / f"{arithmetic}.safetensors"), *options)
    assert result.exit_code == 0, result.stderr
    assert "fast" in result.stdout and f"-> {out}: {out.stat().st_size} bytes" in result.stderr
    model, old = (
        load_model(out, arithmetic),
        load_model(folder / f"{arithmetic}.safetensors", arithmetic),
    )
    counts = [len(model.plans[plan].levels) for plan in PLAN_NAMES]
    assert counts[0] == 3 and counts == sorted(counts) and max(counts) <= 5
    assert model.info.arithmetic == arithmetic
    assert model.info.about == old.info.about
    image = Image.open(folder / "pictures" / "0.png")
    for plan in PLAN_NAMES:
        assert decode(encode(image, model, plan), model=model).tobytes() == image.tobytes()
    refused = plan_command(folder, "--model", str(folder / "float.safetensors"), *options)
    assert refused.exit_code == 1 and "exists" in refused.stderr


def test_quantising_an_integer_model_again_keeps_its_weights(folder: Path) -> None:
    path = folder / "integer.safetensors"
    before = load(path.read_bytes())
    model = load_model(path, "float")
    after = load(quantize_model(model, crops(2, 16)))
    for name, weight in before.items():
        if weight.dtype == torch.int8:
            assert torch.equal(weight, after[name]), name
        elif name.endswith((".scale", ".table")):
            assert torch.allclose(weight, after[name], rtol=2e-3, atol=2e-3), name


def test_other_lattices_for_the_models_own_levels(
    tiny: Path, chains_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = load_model(tiny, "float"), crops(4, 32)
    plans = {"default": geometric_plan(3), "best": geometric_plan(3)}
    found = {
        count: FoundPlan(plan, 99.0) for count, plan in zip((5, 6), plans.values(), strict=True)
    }
    monkeypatch.setattr(propose, "PLAN_NAMES", tuple(plans))
    monkeypatch.setattr(propose, "search_plans", lambda *_, **__: found)
    proposals = propose_plans(model, x, x, [5, 6])
    assert proposals["default"].plan == found[5].plan  # its own has 6 timesteps
    best = proposals["best"]
    assert best.own == model.plans["best"] and best.own_files_bpd is not None
    assert best.plan.levels == best.own.levels
    assert best.plan.lattice_ratios in [bent_lattices(6, *ends) for ends in LATTICE_ENDS]
    assert best.files_bpd.mean() < best.own_files_bpd.mean() - 0.3  # that runs empty
    first, *_, last = bent_lattices(6, 4.0, 2.7)
    assert (first, last) == (4.0, 2.7)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_predicted_files_are_those_of_the_codec(folder: Path, mode: str) -> None:
    model = load_model(folder / "integer.safetensors")
    network = float_network(folder / "integer.safetensors")
    x, _ = propose.search_crops(str(folder / "pictures"), 40, 6, "ycocg")
    if mode == "L":
        x[:, 1:] = 0
    rgb = from_domain(x.to(torch.int32), "ycocg").clamp(0, 255).to(torch.uint8)
    images = [Image.fromarray(crop.permute(1, 2, 0).contiguous().numpy()) for crop in rgb]
    images = [image.convert(mode) for image in images]
    files = list(encode_many(images, model, "default"))
    sizes = [
        8 * len(data) / np.asarray(image).size for data, image in zip(files, images, strict=True)
    ]
    plan, others = model.plans["default"], fallback_bpd(x, "ycocg")
    predicted = predict_files(network.posterior_x, x, "ycocg", plan, others)
    assert predicted == pytest.approx(sizes, rel=0.02)
    assert predicted.mean() == pytest.approx(np.mean(sizes), rel=0.01)
    flat = Image.new("RGB", (40, 30), (1, 2, 3))
    (tile,) = parse(data := next(encode_many([flat], model))).tiles
    assert bytes_around(40, 30) == pytest.approx(len(data) - len(tile.payload), abs=2)


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--timesteps", "10,12"), 2, "takes 3 numbers"),
        (("--timesteps", "2,10,12"), 2, "from 3 to"),
        (("--timesteps", "a,b,c"), 2, "--timesteps"),
        (("--crop", "33"), 2, "give --crop, a multiple of"),
        ((), 2, "give --crop"),
        (("--crop", "64"), 1, "no image is at least 64 pixels"),
        (("--crop", "32", "--data", "nowhere"), 1, "no such folder"),
        (("--crop", "32", "--model", "nothing"), 4, "no model 'nothing'"),
        (("--crop", "32", "--out", "-", "--json"), 2, "--json needs standard output"),
        (("--crop", "32", "--out", ""), 2, "an empty name"),
        (("--crop", "32", "--out", "new.json"), 2, "expected a name with .safetensors"),
    ],
)
def test_wrong_use_of_the_command(
    folder: Path, more: tuple[str, ...], code: int, message: str
) -> None:
    result = plan_command(folder, "--model", str(folder / "float.safetensors"), *more)
    assert result.exit_code == code, result.output
    assert message in result.stderr


def test_timesteps_that_no_plan_has_are_refused_before_the_search(
    folder: Path, phased_float: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(propose, "measure_costs", None)
    options = ("--model", str(phased_float), "--crop", "32", "--timesteps", "10,10,10")
    refused = plan_command(folder, *options)
    assert refused.exit_code == 2 and "from 3 to 9" in refused.stderr
    x = crops(2, 16)
    with pytest.raises(DiffcodecError, match=r"timesteps \[10\]: expected 3 to 9"):
        propose_plans(load_model(phased_float, "float"), x, x, [10])


def test_quantize_names_its_output(folder: Path) -> None:
    data = ["--data", str(folder / "pictures"), "--crop", "32"]
    source = str(folder / "float.safetensors")
    for out, said in (("", "an empty name"), ("new.json", "expected a name with .safetensors")):
        refused = CliRunner().invoke(cli, ["quantize", source, out, *data])
        assert refused.exit_code == 2 and said in refused.stderr
