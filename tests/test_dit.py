"""A transformer in the place of the U-Net, in float arithmetic."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import done, run
from PIL import Image
from tiny import random_network, tiny_model

from diffcodec import load_model
from diffcodec.errors import ModelMismatchError
from diffcodec.networks.config import HEAD, WINDOW, NetworkConfig, PhasesConfig, UNetConfig
from diffcodec.networks.dit import turned

DIT = UNetConfig(channels=(64,), blocks=(3,), patch=2, embedding=16, backbone="dit", classes=2)
SIDE = DIT.multiple


def network(shape=DIT):
    return random_network(NetworkConfig(((math.inf, shape),))).experts[0]


def test_attention_looks_no_farther_than_its_windows():
    """Two blocks without a shift would see one window, those with one half a window more."""
    model, sigma = network(replace(DIT, blocks=(2,))), torch.tensor([5.0])
    z = 100 * torch.randn((1, 3, 4 * SIDE, 4 * SIDE), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = model.posterior_x(z, sigma)[0]
        z[..., :2, :2] += 50
        changed = (model.posterior_x(z, sigma)[0] - before).abs().amax((0, 1)) > 1e-4
    rows = changed.any(1).nonzero().flatten()
    # its own window, then those shifted: around it, and at the far borders
    near, far = SIDE + SIDE // 2, 4 * SIDE - SIDE // 2
    assert changed[: SIDE - 2, : SIDE - 2].float().mean() > 0.9
    assert set(rows.tolist()) <= {*range(near + 2), *range(far - 2, 4 * SIDE)}
    assert rows.max() > far and (rows > SIDE).any()


def test_products_of_turned_vectors_know_distances_alone():
    q, k = torch.randn((2, 1, 1, 1, HEAD), generator=torch.Generator().manual_seed(1))
    products = turned(q.expand(1, 1, WINDOW**2, HEAD)) @ turned(k.expand(1, 1, WINDOW**2, HEAD)).mT
    grid = products.view(WINDOW, WINDOW, WINDOW, WINDOW)
    assert torch.allclose(grid[3, 4, 5, 9], grid[8, 2, 10, 7], atol=1e-4)
    assert not torch.allclose(grid[3, 4, 5, 9], grid[3, 4, 9, 5], atol=1e-2)
    assert not torch.allclose(grid[3, 4, 5, 9], grid[3, 4, 1, 9], atol=1e-2)


def test_a_transformer_is_trained_and_codes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures = np.random.default_rng(0).integers(0, 60, (12, 32, 32, 3), np.uint8)
    np.save("pictures.npy", pictures)
    Path("labels.txt").write_text("0\n1\n" * 6)
    done(
        "train --data pictures.npy --labels labels.txt --out run --backbone dit --channels 32 "
        "--blocks 1 --steps 2 --batch 8 --crop 32 --no-compile --quiet"
    )
    Image.fromarray(pictures[0]).resize((41, 35)).save("photo.png")
    model = "--model run/model.safetensors"
    done(f"encode photo.png photo.dfc {model} --arithmetic float --effort fast --class 1")
    done(f"decode photo.dfc copy.png {model}")
    assert Image.open("copy.png").tobytes() == Image.open("photo.png").tobytes()
    found = load_model("run/model.safetensors", "float").info.network.main
    assert (found.backbone, found.classes, found.patch) == ("dit", 2, 2)
    done(f"sample {model} --class 0 -n 1 --size 8 --steps 2 --out samples.png")
    refused = run(f"encode photo.png other.dfc {model}")
    assert refused.exit_code == 4 and refused.stderr.endswith("give --arithmetic float\n")
    refused = run("quantize run/model.safetensors integer.safetensors --data pictures.npy")
    assert "a DiT has no form in integers" in refused.stderr


def test_shapes_that_are_none(tmp_path):
    for wrong, message in (
        ({"channels": (33,)}, "a multiple of 32"),
        ({"channels": (32, 32), "blocks": (1, 1)}, "expected one number"),
        ({"backbone": "vit"}, "expected one of unet, dit"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(DIT, **wrong)
    experts = ((3.0, DIT), (math.inf, DIT))
    with pytest.raises(ValueError, match="phases behind a DiT"):
        NetworkConfig(
            tuple((up, replace(s, classes=0)) for up, s in experts), phases=PhasesConfig()
        )
    assert "backbone" not in NetworkConfig().to_dict()["experts"][0][1]  # models made before
    with pytest.raises(ModelMismatchError, match="a DiT has no form in integers"):
        tiny_model(tmp_path, backbone="dit", channels=(32,), blocks=(1,))
