"""Models elsewhere than on the CPU: a GPU's algorithm on the CPU; refused where it fails."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from golden import CHAIN, FOLDER, MODEL, describe, model_of
from test_golden import NAMES, read

from diffcodec import (
    DiffcodecError,
    decode,
    encode,
    encode_many,
    evaluate,
    iter_decode,
    load_model,
    recover,
)
from diffcodec.cli.program import cli
from diffcodec.diffusion.phases import PLANES
from diffcodec.errors import UnsupportedError
from diffcodec.models import agreement
from diffcodec.models import model as models
from diffcodec.models.agreement import check_agreement, check_products
from diffcodec.models.known_answers import model_answers
from diffcodec.models.model import Model, is_posterior, loaded
from diffcodec.networks import integer_layers
from diffcodec.networks.devices import CPU, find_device
from diffcodec.networks.gemm import GemmConv
from diffcodec.viewing.show import previews

FILE = (FOLDER / "lossy.dfc").read_bytes()


@pytest.fixture
def like_a_gpu(monkeypatch):
    """Models that are loaded within a test compute as they would on a GPU."""
    monkeypatch.setattr(integer_layers, "by_products", lambda device: True)
    models._load.cache_clear()
    yield
    models._load.cache_clear()


def layers(model):
    return [*model.network.experts, *model.network.phases]


@pytest.mark.parametrize("name", CHAIN)
def test_golden_files_decode_by_a_gpus_algorithm(like_a_gpu, name):
    model = load_model(model_of(name))
    assert all(conv.products for part in layers(model) for conv in part._convs.values())
    assert describe(decode(read(name), model=model, reconstruct="mean")) == NAMES[name]


@pytest.mark.parametrize("which", ["tiny", "phased"])
def test_answers_are_the_same(request, monkeypatch, which):
    path = request.getfixturevalue(which)
    model = load_model(path)
    assert not any(conv.products for part in layers(model) for conv in part._convs.values())
    monkeypatch.setattr(integer_layers, "by_products", lambda device: True)
    other = models._load.__wrapped__(path, (0, 0), "integer")
    assert all(conv.products for part in layers(other) for conv in part._convs.values())
    check_agreement(other, model)
    assert model_answers(other) == model_answers(model) == model.info.answers


def test_a_shipped_model_gives_the_same_answers_with_its_largest_layers(like_a_gpu):
    model = load_model("photo")
    assert model_answers(model)["network"] == model.info.answers["network"]


@pytest.mark.parametrize("name", ["tpu", "", "cuda:9", 0, None])
def test_no_such_device(name):
    with pytest.raises(UnsupportedError, match="expected one of auto, cpu, cuda"):
        load_model(device=name)


without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")


@without_gpu
def test_no_gpu():
    with pytest.raises(DiffcodecError, match=r"no GPU .* give the device cpu"):
        load_model(device="cuda")
    assert find_device("auto") == find_device("cpu") == CPU
    assert load_model(device="auto") is load_model(device="cpu") is load_model()


def test_a_device_that_rounds_is_refused(monkeypatch):
    monkeypatch.setattr(agreement, "products_work", lambda device: False)
    with pytest.raises(UnsupportedError, match=r"^cpu: it gives no exact products .* device cpu$"):
        check_products(CPU)


@pytest.mark.parametrize(
    ("which", "method", "what"),
    [
        ("tiny", "posterior_x", "mean at the noise level"),
        ("phased", "phase_parameters", "phase 0 at the noise level"),
    ],
)
def test_a_model_that_answers_otherwise_is_refused(request, monkeypatch, which, method, what):
    reference = load_model(request.getfixturevalue(which))
    model = Model(reference.network, reference.plans, file=reference.info)
    plain = getattr(model, method)

    def rounded(*args):
        found = plain(*args)
        first = found[0] if isinstance(found, tuple) else found
        first.flat[-1] = np.nextafter(first.flat[-1], np.inf)
        return found

    check_agreement(model, reference)
    monkeypatch.setattr(model, method, rounded)
    with pytest.raises(UnsupportedError, match=f"^cpu: model {which} gives another {what}"):
        check_agreement(model, reference)


@pytest.fixture
def meta(monkeypatch):
    """A device that computes nothing stands for a GPU."""
    device = torch.device("meta")
    monkeypatch.setattr(models, "find_device", lambda name: device)
    models._load.cache_clear()
    yield device
    models._load.cache_clear()


def test_a_model_that_fails_on_a_device_is_told_as_such(meta, monkeypatch, tiny):
    monkeypatch.setattr(models, "check_products", lambda device: None)
    with pytest.raises(
        DiffcodecError, match=r"^meta: the model fails there .* give the device cpu$"
    ):
        load_model(tiny, device="cuda")


def test_a_device_without_products_is_not_used(meta, tiny):
    with pytest.raises(UnsupportedError, match=r"^meta: it gives no exact products"):
        load_model(tiny, device="cuda")


def test_a_broken_model_file_is_not_the_devices_fault(meta, tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(MODEL.read_bytes()[:-1])
    with pytest.raises(DiffcodecError, match="not a diffcodec model"):
        load_model(path, device="cuda")


def test_shapes_on_another_device():
    conv = GemmConv(torch.ones(6, 3, 3, 3, dtype=torch.int8), 4095, torch.device("meta"))
    assert conv._matrix.device.type == "meta"


@pytest.mark.parametrize("which", ["tiny", "phased"])
def test_what_is_no_number_is_told_late_but_told(like_a_gpu, request, which):
    """An index out of range would end all work on a GPU."""
    model = load_model(request.getfixturevalue(which))
    sigma = model.info.levels[0]
    z = np.zeros((1, 3, 8, 8))
    for part in layers(model):
        name, conv = next((n, c) for n, c in part._convs.items() if n.endswith(("conv1", "out")))
        part._convs[name] = conv._replace(scale=np.full_like(conv.scale, np.nan))
    assert not is_posterior(*model.posterior_x(z, sigma))
    if model.phased:
        shared, told = torch.zeros(1, 8, 4, 4), np.zeros((1, PLANES[0], 8, 8))
        assert not np.isfinite(model.phase_parameters(0, sigma, 0, shared, told)).any()


def test_a_file_is_the_same(like_a_gpu, chain_only, tiny):
    image = decode((FOLDER / "rgb-fast.dfc").read_bytes(), model=MODEL)
    by_products = encode(image, load_model(tiny))
    integer_layers.by_products = lambda device: False  # put back by the fixture
    models._load.cache_clear()
    assert encode(image, load_model(tiny)) == by_products


IMAGE = np.zeros((4, 4, 3), np.uint8)


@without_gpu
@pytest.mark.parametrize(
    "call",
    [
        lambda device: encode(IMAGE, device=device),
        lambda device: encode(IMAGE, psnr=30, device=device),
        lambda device: list(encode_many([IMAGE], device=device)),
        lambda device: decode(FILE, model=MODEL, device=device),
        lambda device: list(iter_decode(FILE, MODEL, device=device)),
        lambda device: recover(FILE, MODEL, device=device),
        lambda device: previews(FILE, MODEL, device=device),
    ],
)
def test_every_call_takes_a_device(call):
    assert call("auto")
    with pytest.raises(DiffcodecError, match="no GPU that this"):
        call("cuda")


@without_gpu
def test_evaluation_takes_a_device(tmp_path):
    np.save(tmp_path / "images.npy", IMAGE[None])
    assert evaluate(tmp_path / "images.npy", MODEL, device="auto")["file_bytes"]
    with pytest.raises(DiffcodecError, match="no GPU that this"):
        evaluate(tmp_path / "images.npy", MODEL, device="cuda")


def test_a_loaded_model_stays_where_it_is(monkeypatch, tiny):
    model = load_model(tiny)
    assert loaded(model, device="cpu") is loaded(model, device="auto") is loaded(model) is model
    monkeypatch.setattr(Model, "device", torch.device("meta"))
    with pytest.raises(
        UnsupportedError, match=r"^device 'cpu': model tiny is loaded on meta; leave"
    ):
        loaded(model, device="cpu")
    with pytest.raises(UnsupportedError, match="expected one of auto, cpu, cuda"):
        loaded(model, device="gpu")


@without_gpu
@pytest.mark.parametrize(
    "command",
    [
        *("encode in.png", "decode in.dfc", "show in.dfc", "evaluate --data .", "doctor"),
        *("plan --data .", "quantize in.safetensors --data ."),
    ],
)
def test_commands_take_a_device(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *rest = command.split()
    result = CliRunner().invoke(cli, [name, "--device", "cuda", *rest])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1 and "no GPU that this" in result.stderr
    assert "--device" in result.stderr or name == "evaluate"
    assert "--device" in CliRunner().invoke(cli, [name, "--help"]).stdout


def test_a_file_coded_and_decoded_with_the_option(tmp_path):
    golden = FOLDER / "rgb-fast.dfc"
    image, again = (str(tmp_path / name) for name in ("image.png", "again.dfc"))
    for arguments in (
        ["decode", "--device", "auto", "--model", str(MODEL), str(golden), image],
        ["encode", "--device", "auto", "--model", str(MODEL), "--effort", "fast", image, again],
        ["decode", "--device", "auto", "--recover", "-f", "--model", str(MODEL), again, image],
    ):
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.stderr
