"""The chain in the latent of a small autoencoder: rate against PSNR and MS-SSIM. An experiment.

python -m bench latent --data photos --test kodak [--limit 6] [--out results/latent]

The autoencoder makes three numbers of 0 to 255 of each 8 x 8 pixels, so that its latent is a small
image, and a network is trained on such images by the code length, as any model is. Latents are
coded as lossy files at some timesteps of its plan, and without loss; what the decoder makes of them
is held against the middle of each test image. The last row is the autoencoder's own loss, at no
rate: what no file of its latent can do better than.
"""

import time
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import diffcodec
from bench.inputs import dataset
from bench.metrics import qualities
from bench.report import markdown
from diffcodec.models.model import Model
from diffcodec.networks.config import UNetConfig, one_network
from diffcodec.training.crops import CropSampler
from diffcodec.training.data import find_images

CROP, BATCH, RATE = 64, 16, 2e-3
CHANNELS = (32, 64, 96)  # at 1/2, 1/4 and 1/8 of the resolution
SIDE, LATENTS = 256, 600  # crops that the chain is trained on
CHAIN = UNetConfig(channels=(48, 64), blocks=(2, 2), color="rgb")
SEED = 0


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        found: Tensor = x + self.convs(x)
        return found


class Autoencoder(nn.Module):
    """Images [batch, 3, h, w] from -1 to 1, and latents [batch, 3, h/8, w/8] from 0 to 255."""

    def __init__(self) -> None:
        super().__init__()
        sides = (3, *CHANNELS)
        down = [nn.Sequential(nn.Conv2d(a, b, 4, 2, 1), Residual(b)) for a, b in pairwise(sides)]
        up = [
            nn.Sequential(Residual(b), nn.Conv2d(b, 4 * a, 3, padding=1), nn.PixelShuffle(2))
            for a, b in pairwise(sides)
        ]
        self.down = nn.Sequential(*down, nn.SiLU(), nn.Conv2d(CHANNELS[-1], 3, 1))
        self.up = nn.Sequential(nn.Conv2d(3, CHANNELS[-1], 3, padding=1), *reversed(up))

    def encode(self, x: Tensor) -> Tensor:
        """The latent, not rounded."""
        latent: Tensor = 255 * torch.sigmoid(self.down(x))
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """The image of a latent."""
        image: Tensor = self.up(latent / 127.5 - 1)
        return image


def train(images: CropSampler, steps: int) -> Autoencoder:
    """Train by the squared error, with rounding as uniform noise."""
    torch.manual_seed(SEED)
    network = Autoencoder()
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, RATE / 100)
    for step in range(steps):
        x = images.batch(BATCH, SEED, step).float() / 127.5 - 1
        latent = network.encode(x)
        shown = network.decode(latent + torch.rand_like(latent) - 0.5)
        loss = F.mse_loss(shown, x)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        cosine.step()
    return network.eval()


@torch.inference_mode()
def latents_of(network: Autoencoder, rgb: Tensor) -> NDArray[np.uint8]:
    """Rounded, [batch, h/8, w/8, 3]."""
    found = [network.encode(each.float() / 127.5 - 1) for each in rgb.split(1)]
    return torch.cat(found).round().byte().permute(0, 2, 3, 1).numpy()


@torch.inference_mode()
def shown_of(network: Autoencoder, latent: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image that the decoder makes of one latent."""
    field = torch.from_numpy(latent.copy()).permute(2, 0, 1)[None].float()
    rgb = ((network.decode(field)[0] + 1) * 127.5).round().clamp(0, 255)
    return rgb.byte().permute(1, 2, 0).numpy()


def measure(
    network: Autoencoder, model: Model, image: NDArray[np.uint8]
) -> dict[str, tuple[float, ...]]:
    """Bits per pixel, PSNR and MS-SSIM of an image, by where its file ends."""
    latent = latents_of(network, torch.from_numpy(image.copy()).permute(2, 0, 1)[None])[0]
    last, found = len(model.plans["default"].levels), {}
    for t in range(last, -1, -1):
        data = diffcodec.encode(latent, model, timestep=t or None)
        back = np.asarray(diffcodec.decode(data, model=model))
        quality = qualities(shown_of(network, back), image).values()
        name = f"timestep {t}" if t else "without loss"
        found[name] = (8 * len(data) / image[..., 0].size, *quality)
    found["autoencoder"] = (0.0, *qualities(shown_of(network, latent), image).values())
    return found


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--test", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--images", default=120, show_default=True, help="To train on.")
@click.option("--steps", default=1500, show_default=True, help="Of the autoencoder's training.")
@click.option("--chain-steps", default=600, show_default=True, help="Of the chain's.")
@click.option("--limit", default=6, show_default=True, help="Test images.")
@click.option("--out", default=Path("results/latent"), type=click.Path(path_type=Path))
def main(
    data: Path, test: Path, images: int, steps: int, chain_steps: int, limit: int, out: Path
) -> None:
    """Train both, and print the table of means over the test images."""
    begun = time.process_time()
    sources = find_images(data)[:images]
    network = train(CropSampler(sources, CROP, "mirror"), steps)
    between = time.process_time()
    out.mkdir(parents=True, exist_ok=True)
    crops = CropSampler(sources, SIDE, "mirror").batch(LATENTS, SEED, 0)
    np.save(out / "latents.npy", latents_of(network, crops))
    path = diffcodec.train(
        out / "latents.npy",
        out / f"run-{time.time():.0f}",
        steps=chain_steps,
        batch=16,
        crop=SIDE // 8,
        augment="mirror",
        precision="float32",
        compile=False,
        quiet=True,
        network=one_network(**vars(CHAIN)),
    )
    ended = time.process_time()
    model = diffcodec.load_model(path)
    tested = dataset(test, limit, SIDE).images()
    found = [measure(network, model, np.asarray(image)) for _, image in tested]
    rows = []
    for name in found[0]:
        rate, psnr, similarity = np.mean([each[name] for each in found], 0)
        rows.append((name, f"{rate:.3f}", f"{psnr:.2f}", f"{similarity:.3f}"))
    click.echo(markdown(("file ends at", "bits per pixel", "PSNR, dB", "MS-SSIM"), rows))
    click.echo(
        f"\n{len(found)} images; {steps} steps, {between - begun:.0f} s of a processor, and "
        f"{chain_steps} steps, {ended - between:.0f} s"
    )


if __name__ == "__main__":
    main()
