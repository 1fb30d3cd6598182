"""The chain in the latent of a small autoencoder: rate against PSNR and MS-SSIM. An experiment.

python -m bench latent --data photos --test kodak [--limit 6] [--out results/latent]

The autoencoder makes three numbers of 0 to 255 of each 8 x 8 pixels, so that its latent is a small
image, and a network is trained on such images by the code length, as any model is. Latents are
coded as files that end at some rates, and without loss, and what the decoder makes of them is held
against the middle of each test image; so are files of the image itself, by a model of pixels, that
end at the same rates. An exact latent has the autoencoder's own loss: no file of it does better.
"""

import math
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
from bench import POSITIVE
from bench.inputs import dataset
from bench.metrics import qualities
from bench.report import markdown
from diffcodec.errors import UnsupportedError
from diffcodec.models.model import Model
from diffcodec.networks.config import UNetConfig, one_network
from diffcodec.training.crops import CropSampler
from diffcodec.training.data import find_images

CROP, BATCH, RATE = 64, 16, 2e-3
CHANNELS = (32, 64, 96)  # at 1/2, 1/4 and 1/8 of the resolution
SIDE, LATENTS = 256, 600  # crops that the chain is trained on
CHAIN = UNetConfig(channels=(32, 48, 64), blocks=(1, 1, 1), color="rgb")
RATES, SEED = (0.02, 0.05, 0.1, 0.2, 0.3), 0


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


def ends_at(
    image: NDArray[np.uint8], model: Model, bits: float, exact: bytes | None = None
) -> NDArray[np.uint8] | None:
    """What a file of so many bits shows, the exact one if it is that small; None if none is."""
    if exact is not None and 8 * len(exact) <= bits:
        return np.asarray(diffcodec.decode(exact, model=model))
    try:
        data = diffcodec.encode(image, model, bpp=bits / image[..., 0].size)
    except UnsupportedError:  # too few bits
        return None
    return np.asarray(diffcodec.decode(data, model=model))


def measure(
    network: Autoencoder, model: Model, beside: Model, image: NDArray[np.uint8]
) -> list[list[float]]:
    """For each rate and for the exact latent: bits per pixel, and PSNR and MS-SSIM by latent and by
    pixels; NaN where there is no file.
    """
    latent = latents_of(network, torch.from_numpy(image.copy()).permute(2, 0, 1)[None])[0]
    exact, pixels = diffcodec.encode(latent, model), image[..., 0].size
    found = []
    for rate in (*RATES, 8 * len(exact) / pixels):
        back = ends_at(latent, model, rate * pixels, exact)
        shown = None if back is None else shown_of(network, back)
        row = [rate]
        for each in (shown, ends_at(image, beside, rate * pixels)):
            row += [math.nan] * 2 if each is None else qualities(each, image).values()
        found.append(row)
    return found


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--test", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--images", default=120, type=POSITIVE, show_default=True, help="To train on.")
@click.option(
    "--steps", default=1500, type=POSITIVE, show_default=True, help="Of the autoencoder's training."
)
@click.option(
    "--chain-steps", default=600, type=POSITIVE, show_default=True, help="Of the chain's."
)
@click.option("--model", "beside", default="photo", show_default=True, help="Of pixels.")
@click.option("--limit", default=6, type=POSITIVE, show_default=True, help="Test images.")
@click.option("--out", default=Path("results/latent"), type=click.Path(path_type=Path))
def main(
    data: Path,
    test: Path,
    images: int,
    steps: int,
    chain_steps: int,
    beside: str,
    limit: int,
    out: Path,
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
        compile=False,
        quiet=True,
        network=one_network(**vars(CHAIN)),
    )
    ended = time.process_time()
    model = diffcodec.load_model(path)
    tested = dataset(test, limit, SIDE).images()
    pixels = diffcodec.load_model(beside)
    found = [measure(network, model, pixels, np.asarray(image)) for _, image in tested]
    rows = []
    for rate, *values in np.mean(found, 0):
        texts = [f"{value:.{digits}f}" for value, digits in zip(values, (2, 3, 2, 3), strict=True)]
        rows.append((f"{rate:.3f}", *(text.replace("nan", "-") for text in texts)))
    rows[-1] = (f"{rows[-1][0]}, the exact latent", *rows[-1][1:])
    columns = ("bits per pixel", "latent: PSNR, dB", "MS-SSIM", f"{beside}: PSNR, dB", "MS-SSIM")
    click.echo(markdown(columns, rows))
    click.echo(
        f"\n{len(found)} images; {steps} steps, {between - begun:.0f} s of a processor, and "
        f"{chain_steps} steps, {ended - between:.0f} s"
    )


if __name__ == "__main__":
    main()
