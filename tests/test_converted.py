"""Diffusion models of others as codecs: conversions, calibration, files."""

import json
import sys
from contextlib import suppress
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import done, run
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny_model

from diffcodec import decode, encode, load_model
from diffcodec.codec.decoding import iter_decode
from diffcodec.container.reader import parse
from diffcodec.diffusion.bound import chain_bound_bits
from diffcodec.diffusion.parametrisation import (
    SCHEDULES,
    NoisePath,
    learned_range_variance,
    x_from_epsilon,
    x_from_v,
    x_from_velocity,
)
from diffcodec.diffusion.plan import Plan, geometric_plan
from diffcodec.errors import DiffcodecError, ModelMismatchError
from diffcodec.evaluation.measure import evaluate, torch_posterior
from diffcodec.models import converted, from_epsilon
from diffcodec.models.calibration import calibrate
from diffcodec.models.file import model_info
from diffcodec.models.model import Model
from diffcodec.networks.calibrated import CalibratedNetwork, VarianceTable
from diffcodec.planning.propose import propose_plans, replace_plans

STD = 20.0  # grey levels of the images, whose pixels are independent Gaussians
U = STD / 127.5


class Gaussian(torch.nn.Module):
    """The best network for such images, in any writing of it."""

    def __init__(self, schedule, prediction, as_object=False):
        super().__init__()
        self.schedule, self.prediction, self.as_object = schedule, prediction, as_object
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
        self.told = []

    def noise(self, told):
        path = SCHEDULES[self.schedule](1000)
        if path.noise:
            return float(np.exp(np.interp(told, np.arange(1000), np.log(path.noise))))
        return told / (1 - told) if path.kind == "straight" else told

    def forward(self, x_t, told):
        self.told.append(told.item())
        u = self.noise(told.item())
        alpha, s = SCHEDULES[self.schedule](1000).factors(u)
        x_0 = U * U / (U * U + u * u) * (x_t / alpha) * self.weight
        eps = (x_t - alpha * x_0) / s
        answer = {"epsilon": eps, "x0": x_0, "v": alpha * eps - s * x_0, "velocity": eps - x_0}
        field = answer[self.prediction]
        return type("Output", (), {"sample": field})() if self.as_object else field


def gaussian_images(count=2, side=24, seed=0):
    drawn = np.random.default_rng(seed).normal(127.5, STD, (count, side, side, 3))
    return np.clip(np.rint(drawn), 0, 255).astype(np.uint8)


def as_crops(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))


@given(
    st.sampled_from(list(SCHEDULES)),
    st.sampled_from(["epsilon", "v", "x0", "velocity"]),
    st.floats(1.0, 600.0),
)
def test_every_writing_of_a_network_is_the_same_posterior(schedule, prediction, sigma):
    """What the process of their papers has is what the chain of grey levels has."""
    model = from_epsilon(
        Gaussian(schedule, prediction, as_object=sigma > 100), schedule, prediction
    )
    x = as_crops(gaussian_images(1, 8)).double()
    z = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    inside = SCHEDULES[schedule](1000).noise
    if inside and not 127.5 * inside[0] < sigma:
        return  # below the first timestep the network is told more noise than there is
    xhat, v = model.posterior_x(z.numpy(), sigma)
    expected = (127.5 + STD**2 / (STD**2 + sigma**2) * (z - 127.5)).clamp(0, 255)
    assert xhat == pytest.approx(expected.numpy(), abs=0.02 + 1e-5 * sigma)
    u = sigma / 127.5
    assert v == pytest.approx(127.5**2 * u * u / (1 + u * u))  # DDPM's beta


@given(st.floats(0.01, 100), st.sampled_from(["variance-preserving", "straight"]))
def test_each_prediction_has_its_inverse(u, kind):
    alpha, s = NoisePath(kind).factors(u)
    x_0, eps = torch.randn((2, 50), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x_t = alpha * x_0 + s * eps
    for found in (
        x_from_epsilon(x_t, alpha, s, eps),
        x_from_v(x_t, alpha, s, alpha * eps - s * x_0),
        x_from_velocity(x_t, alpha, s, eps - x_0),
    ):
        assert torch.allclose(found, x_0, atol=1e-9)


def test_plans_keep_to_the_timesteps_of_a_schedule():
    network = Gaussian("linear", "epsilon")
    model = from_epsilon(network, whole_timesteps=True)
    assert [len(p.levels) for p in model.plans.values()] == [10, 20, 39]  # two at one timestep
    linear = 127.5 * np.array(SCHEDULES["linear"](1000).noise)
    for sigma in model.plans["default"].levels[1:]:
        model.posterior_x(np.full((1, 3, 4, 4), 127.5), sigma)
        assert sigma < linear[0] or np.isclose(sigma, linear[round(network.told[-1])])
    assert all(told == round(told) for told in network.told)


@given(st.floats(0.01, 3.0), st.floats(0.05, 0.95))
def test_improved_ddpms_range_ends_in_ddpms_two_variances(u_t, share):
    u_s = u_t * share
    small, large = (
        learned_range_variance(torch.tensor([v], dtype=torch.float64), u_s, u_t).item()
        for v in (0.0, 1.0)
    )
    most = u_t**2 / (1 + u_t**2)
    assert large == pytest.approx(most) and small == pytest.approx(1e-6 * most)


class Ranged(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x_t, told):
        return torch.cat([x_t, torch.full_like(x_t, 0.5)], 1) + self.weight


def test_a_learned_variance_lies_between_them():
    model = from_epsilon(Ranged(), variance="learned-range")
    _, v = model.posterior_x(np.full((1, 3, 4, 4), 127.5), 50.0)
    u = 50 / 127.5
    assert 0.3 < v.max() / (127.5**2 * u * u / (1 + u * u)) < 0.9


def test_networks_of_one_size_are_given_squares_of_it():
    shapes = []

    def network(x_t, told, labels):
        shapes.append((tuple(x_t.shape), labels.item()))
        return x_t - x_t.mean((2, 3), keepdim=True)

    model = from_epsilon(network, "edm", "x0", size=8, more={"labels": 3}, identity=b"squares")
    z = np.random.default_rng(0).normal(127, 20, (2, 3, 13, 21))
    xhat, _ = model.posterior_x(z, 10.0)
    assert xhat.shape == z.shape and set(shapes) == {((1, 3, 8, 8), 3)} and len(shapes) == 12
    alone, _ = model.posterior_x(z[1:, :, :8, 8:16], 10.0)
    assert np.array_equal(alone, xhat[1:, :, :8, 8:16])


@pytest.mark.usefixtures("chain_only", "coarse_grid")
def test_they_encode_decode_and_are_evaluated_and_planned_for():
    network = Gaussian("linear", "epsilon")
    images = gaussian_images()
    model = from_epsilon(network, variance=calibrate(from_epsilon(network), as_crops(images)))
    data = encode(images[0], model)
    assert parse(data).float_arithmetic and parse(data).model == model.info.id
    assert np.array_equal(np.asarray(decode(data, model=model)), images[0])
    layered = encode(images[1], model, "fast", progressive=True)
    *previews, last = list(iter_decode(layered, model))
    assert previews and np.array_equal(np.asarray(last[1]), images[1])
    rgb = list(images.transpose(0, 3, 1, 2))
    results = list(evaluate(model, rgb, model.plans["default"], files_plan="default"))
    entropy = np.log2(STD * np.sqrt(2 * np.pi * np.e))  # of the images
    for result in results:
        assert entropy - 0.1 < result.parts_bpd.sum() < entropy + 0.25
        assert result.file_bpd is not None and result.file_bpd < entropy + 1.5
    proposals = propose_plans(model, as_crops(images), as_crops(images), (4, 5, 6))
    assert all(len(p.plan.levels) <= 6 and p.plan.quantiser == 2 for p in proposals.values())


def test_a_table_is_the_variance_that_there_is():
    """Of Gaussian pixels it is known: ``S^2 sigma^2 / (S^2 + sigma^2)``, in every class."""
    table = calibrate(
        from_epsilon(Gaussian("edm", "x0"), "edm", "x0"), as_crops(gaussian_images(4))
    )
    sigma = table.levels[1:, None, None]
    expected = np.broadcast_to(STD**2 * sigma**2 / (STD**2 + sigma**2), table.variances[1:].shape)
    assert np.median(table.variances[1:] / expected) == pytest.approx(1, abs=0.03)
    edges, variances = table.at(float(table.levels[5]))
    assert np.allclose(edges, table.edges[5]) and np.allclose(variances, table.variances[5])
    low, between, high = (table.at(float(s))[1] for s in table.levels[[5, 5, 6]] * [1, 1.05, 1])
    assert np.all((between - low) * (high - between) >= 0)
    again = VarianceTable.from_dict(json.loads(json.dumps(table.to_dict())))
    assert np.array_equal(again.variances, table.variances)


def test_where_a_network_knows_less_than_z_1_its_table_says_so():
    """A variance below the error would cost the square of their ratio."""

    class GreyAtFirst(Gaussian):
        def forward(self, x, sigma):
            return super().forward(x, sigma) if sigma > 0.6 / 127.5 else torch.zeros_like(x)

    x = as_crops(gaussian_images(4))
    model = from_epsilon(GreyAtFirst("edm", "x0"), "edm", "x0")
    network = CalibratedNetwork(model.network, calibrate(model, x))
    plan, posterior = geometric_plan(8), torch_posterior(Model(network, model.plans))
    bits = chain_bound_bits(posterior, x.double(), "rgb", plan, torch.Generator().manual_seed(0))
    assert bits[:, 0].mean() == pytest.approx(1, abs=0.01)  # one of two integers


def test_what_cannot_be_is_refused(tiny):
    network = Gaussian("linear", "epsilon")
    for wrong, said in (
        ({"schedule": "quadratic"}, "schedule 'quadratic': expected one of linear"),
        ({"prediction": "noise"}, "prediction 'noise': expected one of epsilon"),
        ({"variance": "none"}, "variance 'none': expected one of fixed-small"),
        ({"schedule": "edm", "variance": "learned-range"}, "discrete timesteps"),
    ):
        with pytest.raises(ValueError, match=said):
            from_epsilon(network, **wrong)
    with pytest.raises(TypeError, match="give its identity"):
        from_epsilon(lambda x, t: x)
    with pytest.raises(ModelMismatchError, match="calibrate a float model"):
        calibrate(load_model(tiny), torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("answer", [{}, [], None, (None,), 3.0])
def test_answers_that_are_no_tensors_are_named(answer):
    model = from_epsilon(lambda x, told: answer, identity=b"wrong")
    with pytest.raises(TypeError, match=r"network: it gave .*, expected a tensor"):
        model.posterior_x(np.zeros((1, 3, 4, 4)), 10.0)


@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (1, 4, 4, 4), (1, 3, 4, 2), (3, 4, 4), ()])
def test_answers_of_another_shape_are_named(shape):
    model = from_epsilon(lambda x, told: torch.zeros(shape), identity=b"wrong")
    with pytest.raises(ValueError, match=r"network: it gave a tensor .*, expected 3 or 6 channels"):
        model.posterior_x(np.zeros((1, 3, 4, 4)), 10.0)


def test_identities_are_of_weights_conversion_and_table():
    network = Gaussian("linear", "epsilon")
    models = [from_epsilon(network), from_epsilon(network, "cosine")]
    models.append(from_epsilon(network, prediction="v"))
    table = VarianceTable(np.ones(1), np.ones((1, 3, 0)), np.ones((1, 3, 1)))
    models.append(from_epsilon(network, variance=table))
    with torch.no_grad():
        other = Gaussian("linear", "epsilon")
        other.weight += 1
    models.append(from_epsilon(other))
    assert len({model.network.identity for model in models}) == len(models)
    assert from_epsilon(Gaussian("linear", "epsilon")).info.id == models[0].info.id
    assert asdict(models[0].network.conversion)["prediction"] == "epsilon"


# --- calibrated files -----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for i, image in enumerate(gaussian_images(3, 32)):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    return tmp_path


def test_a_calibrated_file_leaves_its_network_to_others_where_it_was(folder, monkeypatch):
    monkeypatch.chdir(folder)
    tiny_model(folder, name="plain", arithmetic="float")
    done("calibrate --model plain.safetensors --data images --crop 16 --crops 2 --out m.json")
    plain, asked = load_model("plain.safetensors", "float"), []

    def load(path, arithmetic, device="cpu"):
        asked.append(device)
        return plain

    monkeypatch.setattr(converted, "load_model", load)
    path = folder / "m.json"
    converted.build_calibrated(model_info(path), path, torch.device("meta"))
    assert next(plain.module.parameters()).device.type == "cpu" and asked == ["meta"]


@pytest.mark.usefixtures("chain_only")
def test_the_command_makes_a_model_file_of_a_network_and_a_table(folder, monkeypatch):
    monkeypatch.chdir(folder)
    tiny_model(folder, name="plain", arithmetic="float")
    line = "calibrate --model plain.safetensors --data images --crop 16 --crops 4 --out m.json"
    said = done(line).stderr
    assert "bits per dimension" in said
    calibrated = load_model("m.json", "float")
    assert isinstance(calibrated.network, CalibratedNetwork)
    assert calibrated.info.id == model_info(Path("m.json")).id
    done("encode images/0.png a.dfc --model m.json --arithmetic float")
    done("decode a.dfc a.png --model m.json")
    assert np.array_equal(np.asarray(Image.open("a.png")), gaussian_images(3, 32)[0])
    Path("n.json").write_bytes(replace_plans(calibrated, {"default": geometric_plan(4)}, None))
    assert len(load_model("n.json", "float").plans["default"].levels) == 4
    done("evaluate --data images --model n.json --limit 1")
    refused = run("quantize n.json --data images --crop 16")
    assert refused.exit_code == 4 and "has no form in integers" in refused.stderr
    refused = run("plan --model n.json --data images --crop 16 --out n.safetensors")
    assert refused.exit_code == 2 and "expected a name with .json" in refused.stderr
    again = run("calibrate --model plain.safetensors --data images --crop 16 --out m.json")
    assert again.exit_code == 1 and "--force" in again.stderr


def test_the_command_takes_models_by_name_and_says_which_it_can_calibrate(folder, monkeypatch):
    monkeypatch.chdir(folder)
    line = "--data images --crop 16 --crops 2 --out m.json"
    refused = run(f"calibrate --model photo {line}")
    assert refused.exit_code == 4 and "photo codes in phases" in refused.stderr
    assert "calibrate a float model that is not in phases" in refused.stderr
    refused = run(f"calibrate --model nowhere {line}")
    assert refused.exit_code == 4 and "no model 'nowhere'" in refused.stderr
    assert "or the folder of a pipeline of diffusers" in refused.stderr
    (folder / "zoo").mkdir()
    plain = tiny_model(folder / "zoo", name="plain", arithmetic="float")
    monkeypatch.setattr("diffcodec.models.file.MODEL_FOLDER", folder / "zoo")
    done(f"calibrate --model plain {line}")
    described = json.loads(Path("m.json").read_text())
    assert folder / described["source"] == plain
    assert isinstance(load_model("m.json", "float").network, CalibratedNetwork)


def test_a_calibrated_file_names_its_network(folder, monkeypatch):
    monkeypatch.chdir(folder)
    path = tiny_model(folder, name="plain", arithmetic="float")
    done("calibrate --model plain.safetensors --data images --crop 16 --crops 2 --out m.json")
    described = json.loads(Path("m.json").read_text())
    nested = described["variances"] | {"levels": [[s] for s in described["variances"]["levels"]]}
    negative = {"edges": (-np.array(described["variances"]["edges"])[..., ::-1]).tolist()}
    negative |= {key: described["variances"][key] for key in ("levels", "variances")}
    for changed, said in (
        ({"format": "other"}, "its format is 'other'"),
        ({"variances": {}}, "not the file of a calibrated model"),
        ({"source": "gone"}, "its network .*gone is not there"),
        ({"source": "x" * 5000}, "its network x{100} cannot be found"),
        ({"variances": nested}, "expected positive numbers"),
        ({"variances": negative}, "an edge between classes of contrast is no number from 0 on"),
        ({"plans": {"fast": {"levels": [], "lattices": []}}}, "a plan of 0 levels, expected 2"),
        ({"source": "w.json"}, "not the file of a calibrated model"),
    ):
        Path("w.json").write_text(json.dumps(described | changed))
        with pytest.raises(ModelMismatchError, match=said):
            load_model("w.json", "float")
    path.write_bytes(tiny_model(folder, 1, "another", arithmetic="float").read_bytes())
    with pytest.raises(ModelMismatchError, match="has changed since it was calibrated"):
        load_model("m.json", "float")
    with pytest.raises(DiffcodecError, match="not the file of a calibrated model"):
        Path("x.json").write_text("[]")
        load_model("x.json")


ODD = [None, True, -1, 0.5, 10**400, 1e308, np.nan, "x", "\0", [], [None], [-1, 10**9], {"a": 1}]


def test_odd_values_in_a_calibrated_file_are_refused_or_make_no_difference(folder, monkeypatch):
    monkeypatch.chdir(folder)
    tiny_model(folder, name="plain", arithmetic="float")
    line = "calibrate --model plain.safetensors --data images --crop 16 --crops 2 --out m.json"
    done(f"{line} --classes 2")
    described = json.loads(Path("m.json").read_text())
    for place, value in product(places(described), ODD):
        Path("w.json").write_text(json.dumps(put(described, place, value)))
        with suppress(DiffcodecError):
            model = load_model("w.json", "float")
            for sigma in model.info.levels[:2]:
                model.posterior_x(np.zeros((1, 3, 4, 4)), sigma)


def places(value, place=()):
    """Where values lie in JSON, of a list the first and the last."""
    yield place
    keys = list(value) if isinstance(value, dict) else []
    keys = [0, len(value) - 1] if isinstance(value, list) and value else keys
    for key in keys:
        yield from places(value[key], (*place, key))


def put(value, place, new):
    """The value with another at a place."""
    if not place:
        return new
    copied = value.copy()
    copied[place[0]] = put(value[place[0]], place[1:], new)
    return copied


def test_a_calibrated_file_finds_its_network_from_where_it_is_written(folder, monkeypatch):
    monkeypatch.chdir(folder)
    tiny_model(folder, name="plain", arithmetic="float")
    (folder / "sub").mkdir()
    done("calibrate --model plain.safetensors --data images --crop 16 --crops 2 --out m.json")
    model, plans = load_model("m.json", "float"), {"default": geometric_plan(4)}
    for new, name in ((folder / "sub", "n.json"), (None, "o.json")):
        written = replace_plans(model, plans, None, (folder, new))
        (folder / "sub" / name).write_bytes(written)
        assert load_model(f"sub/{name}", "float").plans == plans
    propose = "diffcodec.planning.propose.propose_plans"
    monkeypatch.setattr(propose, lambda *_: {})
    done("plan --model m.json --data images --crop 16 --out sub/better.json")
    assert load_model("sub/better.json", "float").plans == model.plans


def test_no_output_takes_the_place_of_a_calibrated_network(folder, monkeypatch):
    """Whatever its name: any file may be a model, or the network of one."""
    monkeypatch.chdir(folder)
    tiny_model(folder, name="plain", arithmetic="float")
    done("calibrate --model plain.safetensors --data images --crop 16 --crops 2 --out m.json")
    done("calibrate --model m.json --data images --crop 16 --crops 2 --out n.json")
    done("encode images/0.png a.dfc --model m.json --arithmetic float --effort fast")
    tiny_model(folder, name="exact")
    done("pack images/0.png a.dfca --model exact.safetensors --effort fast")
    described = json.loads(Path("m.json").read_text())
    for suffix in ("png", "html", "dfca", "npy"):
        Path(f"net.{suffix}").write_bytes(Path("plain.safetensors").read_bytes())
        Path(f"{suffix}.json").write_text(json.dumps(described | {"source": f"net.{suffix}"}))
    before = {path: path.read_bytes() for path in Path().glob("*.*")}
    for line in (
        "encode images/1.png -o plain.safetensors --model n.json --arithmetic float",
        "encode images/1.png -o n.json --model n.json --arithmetic float",
        "decode a.dfc net.png --model png.json",
        "show a.dfc net.html --model html.json",
        "sample -n 1 --size 8 --steps 2 --out net.png --model png.json",
        "denoise images/0.png --sigma 9 --out net.png --model png.json",
        "pack images net.dfca --model dfca.json",
        "unpack a.dfca net.npy --model npy.json",
        "calibrate --model n.json --data images --crop 16 --out m.json",
        "plan --model n.json --data images --crop 16 --out m.json",
        "evaluate --data images --model n.json --picture m.json",
        "evaluate --data images --model n.json --picture plain.safetensors",
    ):
        refused = run(f"{line} --force")
        assert refused.exit_code == 1 and "give another output" in refused.stderr, line
        assert {path: path.read_bytes() for path in Path().glob("*.*")} == before, line


def test_no_output_takes_the_place_of_a_part_of_a_pipeline(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name in ("model_index.json", "unet/config.json"):
        (folder / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "p" / name).write_text("{}")
        refused = run(f"calibrate --model p --data images --out p/{name} --force")
        assert refused.exit_code == 1 and "the output is a file of the model" in refused.stderr
    (folder / "p" / "m.json").write_text("{}")  # an older table, which lies beside
    monkeypatch.setitem(sys.modules, "diffusers", None)
    refused = run("calibrate --model p --data images --out p/m.json --force")
    assert "the output is a file of the model" not in refused.stderr


def test_more_classes_than_memory_are_refused(folder, monkeypatch):
    monkeypatch.chdir(folder)
    tiny_model(folder, name="plain", arithmetic="float")
    line = "calibrate --model plain.safetensors --data images --crop 16 --crops 64 --out m.json"
    refused = run(f"{line} --classes 5000000")
    assert refused.exit_code == 2 and "--classes 5000000: expected 100000" in refused.stderr
    refused = run(f"{line} --classes 100000 --crop 32")
    assert refused.exit_code == 1 and "give fewer classes or crops" in refused.stderr


def test_a_table_for_a_model_in_phases_is_refused(phased_float):
    table = VarianceTable(np.ones(1), np.ones((1, 3, 0)), np.ones((1, 3, 1)))
    model = load_model(phased_float, "float")
    with pytest.raises(TypeError, match="in phases"):
        CalibratedNetwork(model.network, table)
    assert isinstance(Model(model.network, model.plans).plans["fast"], Plan)
