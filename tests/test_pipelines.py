"""Pipelines of diffusers in and out, saved and loaded by the real library; networks are random."""

import json
import logging
import warnings

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
