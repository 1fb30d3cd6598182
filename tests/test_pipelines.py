"""Pipelines of diffusers in and out, saved and loaded by the real library; networks are random."""

import json
import logging
import math
import warnings
from contextlib import suppress

import numpy as np
import pytest
import torch
from commands import done
from PIL import Image

from diffcodec import decode, encode, load_model
from diffcodec.errors import DiffcodecError, ModelMismatchError, UnsupportedError
from diffcodec.models import from_diffusers, to_diffusers
from diffcodec.models.pipelines import DISCRETE, diffusers_library

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own
IMAGE = np.random.default_rng(0).integers(0, 256, (20, 28, 3), dtype=np.uint8)


def unet(attends=True, **more):
    """The layout of ddpm-cifar10-32, small."""
    torch.manual_seed(0)
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    if not attends:
        down, up = ("DownBlock2D",) * 2, ("UpBlock2D",) * 2
    return diffusers.UNet2DModel(
        sample_size=16,
        in_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=down,
        up_block_types=up,
        norm_num_groups=4,
        add_attention=attends,
        **more,
    )


def dit():
    torch.manual_seed(0)
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=3,
        out_channels=6,
        num_layers=1,
        sample_size=16,
        patch_size=4,
        num_embeds_ada_norm=10,
        norm_num_groups=1,
    )


def saved(network, scheduler, folder):
    """By the library, as its pipelines are."""
    part = "transformer" if "DiT" in type(network).__name__ else "unet"
    network.save_pretrained(folder / part)
    scheduler.save_pretrained(folder / "scheduler")
    parts = {part: network, "scheduler": scheduler}
    index = {name: ["diffusers", type(each).__name__] for name, each in parts.items()}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.usefixtures("chain_only")
def test_a_saved_pipeline_codes_images_and_is_calibrated(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    pipeline = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler())
    pipeline.save_pretrained("p")
    model = from_diffusers("p")
    assert not caplog.records  # nothing that users could not act upon
    assert model.name == "p" and model.network.multiple == 16
    assert from_diffusers(pipeline).network.identity == model.network.identity
    data = encode(IMAGE, model, plan="fast")
    assert np.array_equal(np.asarray(decode(data, model=model)), IMAGE)
    Image.fromarray(IMAGE).save("a.png")
    done("calibrate --model p --data a.png --crop 16 --crops 2 --out m.json")
    done("encode a.png a.dfc --model m.json --arithmetic float --effort fast")
    done("decode a.dfc b.png --model m.json")
    assert np.array_equal(np.asarray(Image.open("b.png")), IMAGE)
    assert load_model("m.json", "float").info.about["crop"] == 16
    with pytest.raises(ModelMismatchError, match=r"no model 'p'.*; diffcodec calibrate makes one"):
        load_model("p")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model.safetensors").touch()
    with pytest.raises(ModelMismatchError, match=r"run'.*there is a model\.safetensors in it"):
        load_model("run")


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_denoised_image_is_that_of_the_library(tmp_path, name, prediction):
    """Whose schedulers say what x_0 they take a network's answer for."""
    scheduler = getattr(diffusers, name)(prediction_type=prediction, beta_schedule="scaled_linear")
    folder = saved(unet(attends=False), scheduler, tmp_path)
    model, network = from_diffusers(folder), unet(attends=False).eval()
    t = 400
    abar = scheduler.alphas_cumprod[t].item()
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn((1, 3, 16, 16), generator=generator)
    with torch.no_grad():
        answer = network(x_t, t).sample
    plain = diffusers.DDPMScheduler(
        prediction_type=prediction, beta_schedule="scaled_linear", clip_sample=True
    )
    plain.set_timesteps(1000)
    x_0 = plain.step(answer, t, x_t).pred_original_sample
    z = 127.5 + 127.5 * x_t / abar**0.5
    xhat, _ = model.posterior_x(z.double().numpy(), 127.5 * ((1 - abar) / abar) ** 0.5)
    assert xhat == pytest.approx(127.5 + 127.5 * x_0.numpy(), abs=0.02)


def test_flow_matching_and_dit_are_read(tmp_path):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    for i, network in enumerate((dit(), unet())):
        folder = tmp_path / str(i)
        folder.mkdir()
        model = from_diffusers(saved(network, scheduler, folder))
        conversion = model.network.conversion
        assert conversion.size == 16 and conversion.prediction == "velocity"
        t = float(scheduler.timesteps[500])
        u = float(scheduler.sigmas[500]) / (1 - float(scheduler.sigmas[500]))
        assert conversion.path.told(u) == pytest.approx(t, rel=1e-5)
        xhat, v = model.posterior_x(np.full((1, 3, 16, 16), 100.0), 20.0)
        assert np.isfinite(xhat).all() and (v > 0).all()


def test_an_improved_ddpm_has_a_learned_range():
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    for channels, variance in ((6, "learned-range"), (3, "fixed-large")):
        pipeline = diffusers.DDPMPipeline(unet(out_channels=channels), scheduler)
        assert from_diffusers(pipeline).network.conversion.variance == variance


def test_what_is_no_such_pipeline_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ModelMismatchError, match="not a folder of a diffusers pipeline"):
        from_diffusers(tmp_path)
    folder = saved(unet(), diffusers.DDPMScheduler(), tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    for part, name in (("unet", "UNet2DConditionModel"), ("scheduler", "UniPCMultistepScheduler")):
        wrong = index | {part: ["diffusers", name]}
        (folder / "model_index.json").write_text(json.dumps(wrong))
        with pytest.raises(UnsupportedError, match=f"{name}: expected one of"):
            from_diffusers(folder)
    latent = diffusers.DDPMPipeline(unet(out_channels=4), diffusers.DDPMScheduler())
    with pytest.raises(UnsupportedError, match="those of a latent are no images"):
        from_diffusers(latent)
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(DiffcodecError, match=r"pip install 'diffcodec\[diffusers\]'"):
        diffusers_library()


UNET, CHAIN = "unet/config.json", "scheduler/scheduler_config.json"
ODD = [None, -1, 0.5, 10**30, math.nan, "x", [None], [-1, 10**9]]


@pytest.mark.parametrize("name", [UNET, CHAIN, "model_index.json"])
def test_odd_values_are_refused_or_make_no_difference(tmp_path, name):
    path = saved(unet(), diffusers.DDPMScheduler(), tmp_path) / name
    described = json.loads(path.read_text())
    for text in ("", "[]", "3", '"x"', "{}", "[" * 10_000, *map(json.dumps, ODD)):
        path.write_text(text)
        with suppress(DiffcodecError):
            from_diffusers(tmp_path)
    for key in described:
        for value in ODD:
            path.write_text(json.dumps(described | {key: value}))
            with suppress(DiffcodecError):
                from_diffusers(tmp_path)


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        (CHAIN, {"prediction_type": "noise"}, "noise: expected one of epsilon"),
        (CHAIN, {"num_train_timesteps": 10**9}, "1000000000: expected 2 to 65536"),
        (CHAIN, {"beta_start": 3.0}, "the signal of its timesteps is not between 0 and 1"),
        (CHAIN, {"trained_betas": [math.nan] * 9}, "the signal of its timesteps"),
        (UNET, {"layers_per_block": 10**9}, "layers_per_block 1000000000, but only"),
        (UNET, {"layers_per_block": 2}, "numbers is described, expected"),
        (UNET, {"block_out_channels": [10**6] * 2}, "numbers is described, expected"),
        (UNET, {"norm_eps": -1e9}, "its network does not answer"),
        (UNET, {"num_class_embeds": 0, "class_embed_type": "identity"}, "does not answer"),
        (UNET, {"sample_size": -16}, "not a pipeline that makes a codec"),
    ],
)
def test_descriptions_that_cannot_be_are_named(tmp_path, name, changed, said):
    path = saved(unet(), diffusers.DDPMScheduler(), tmp_path) / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(DiffcodecError, match=said) as caught:
        from_diffusers(tmp_path)
    assert isinstance(caught.value, UnsupportedError) or str(tmp_path) in str(caught.value)


def test_a_network_without_safetensors_is_refused(tmp_path):
    folder = saved(unet(), diffusers.DDPMScheduler(), tmp_path)
    for path in (folder / "unet").glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(ModelMismatchError, match="no tensors in unet, expected a file of safeten"):
        from_diffusers(folder)


def test_a_transformer_is_not_built_for_larger_images_than_its_weights(tmp_path):
    folder = saved(dit(), diffusers.DDPMScheduler(variance_type="learned_range"), tmp_path)
    path = folder / "transformer/config.json"
    described = json.loads(path.read_text())
    for side, said in ((10**6, "sample_size 1000000: expected 4096"), (4096, "numbers is descr")):
        path.write_text(json.dumps(described | {"sample_size": side}))
        with pytest.raises(ModelMismatchError, match=said):
            from_diffusers(folder)


def test_a_last_timestep_of_noise_alone_is_left_out():
    scheduler = diffusers.EulerDiscreteScheduler(rescale_betas_zero_snr=True)
    path = from_diffusers(diffusers.DDPMPipeline(unet(), scheduler)).network.conversion.path
    assert 900 < len(path.noise) < 1000


def test_a_size_can_be_given_where_there_is_none(tmp_path):
    folder = saved(unet(), diffusers.DDPMScheduler(), tmp_path)
    described = json.loads((folder / UNET).read_text()) | {"sample_size": None}
    (folder / UNET).write_text(json.dumps(described))
    with pytest.raises(UnsupportedError, match="give size"):
        from_diffusers(folder)
    assert from_diffusers(folder, size=16).network.multiple == 16
    with pytest.raises(TypeError, match="size: found str"):
        from_diffusers(folder, size="16")


@pytest.mark.parametrize(
    "changed",
    [
        *({"network": value} for value in ("", "[]", "{}", '{"experts": 3}', None, 3)),
        *({"noise": value} for value in ([], [2.0, 1.0], ["x"], [math.nan], None, 3)),
    ],
)
def test_an_exported_model_with_another_description_is_refused(tiny_float, tmp_path, changed):
    from diffcodec.models.exported import ExportedPipeline

    to_diffusers(load_model(tiny_float, "float")).save_pretrained(tmp_path)
    path = tmp_path / UNET
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(ModelMismatchError, match="not a network of diffcodec's"):
        ExportedPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler"])
def test_a_model_of_ours_is_a_pipeline(tiny_float, tmp_path, scheduler):
    from diffcodec.models.exported import ExportedPipeline, whitened

    model = load_model(tiny_float, "float")
    to_diffusers(model).save_pretrained(tmp_path)
    pipeline = ExportedPipeline.from_pretrained(tmp_path)
    t, domain = 300, model.domain
    u = pipeline.unet.noise[t]
    generator = torch.Generator().manual_seed(0)
    z = 100 + 30 * torch.randn((1, 3, 16, 16), generator=generator, dtype=torch.float64)
    xhat, _ = model.posterior_x(z.numpy(), 127.5 * u)
    x_t = whitened(z, domain).float() / (1 + u * u) ** 0.5
    with torch.no_grad():
        eps = pipeline.unet(x_t, t).sample
    expected = (whitened(z, domain) - whitened(torch.from_numpy(xhat), domain)) / u
    assert eps.numpy() == pytest.approx(expected.numpy(), abs=1e-3)
    config = pipeline.scheduler.config
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(config, clip_sample=False)
    images = pipeline(2, 4, (16, 24), torch.Generator().manual_seed(1)).images
    assert [image.size for image in images] == [(24, 16)] * 2
