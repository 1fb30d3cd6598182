"""Sound by the same chain: a recording of 8 bits a sample as an image of height 1. An experiment.

python -m bench audio house_lo.wav [--steps 600]

Three successive samples are the channels of a pixel. A small network of one-dimensional
convolutions is trained by the code length on the first three quarters, and the last quarter is
coded as any image is, decoded, and compared. Beside it stand coders for bytes, images and, with
soundfile at hand, sound. pygame-ce has such a recording: pygame/examples/data/house_lo.wav.
"""

import io
import lzma
import time
import wave
from importlib import import_module
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from bench import POSITIVE
from bench.measuring import check_equal
from bench.report import markdown
from diffcodec import decode, encode
from diffcodec.container.info import tiles_by_coder
from diffcodec.container.reader import parse
from diffcodec.diffusion.losses import code_length_loss
from diffcodec.diffusion.plan import plans_from
from diffcodec.models.model import Model
from diffcodec.networks.protocol import digest

Samples = NDArray[np.uint8]
CHANNELS, DILATIONS, WIDTH = 48, (1, 2, 4, 8, 1, 2, 4, 8), 5
CROP, BATCH, RATE = 192, 16, 2e-3
CENTER = 128.0


class SoundNetwork(nn.Module):
    """Residual blocks of one-dimensional convolutions, told the noise level: see ``Denoiser``.

    A ``PosteriorNetwork``.
    """

    color, multiple, levels, is_exact = "rgb", 1, None, False

    def __init__(self, std: float):
        super().__init__()
        self.std = std
        self.begin = nn.Conv2d(3, CHANNELS, (1, WIDTH), padding=(0, WIDTH // 2))
        self.blocks = nn.ModuleList(
            nn.Conv2d(CHANNELS, CHANNELS, (1, WIDTH), padding=(0, WIDTH // 2 * d), dilation=(1, d))
            for d in DILATIONS
        )
        self.told = nn.Sequential(
            nn.Linear(1, CHANNELS), nn.SiLU(), nn.Linear(CHANNELS, 2 * CHANNELS * len(DILATIONS))
        )
        self.end = nn.Conv2d(CHANNELS, 6, 1)
        self.end.load_state_dict({n: torch.zeros_like(t) for n, t in self.end.state_dict().items()})

    @property
    def identity(self) -> bytes:
        """Digest of the weights."""
        return digest({"std": self.std}, self.state_dict())

    def forward(self, z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of x given z_t, scaled as EDM has it; sigma [batch]."""
        noise = sigma[:, None, None, None]
        total = (noise**2 + self.std**2).sqrt()
        told = self.told(sigma.log()[:, None] / 4).unflatten(1, (len(DILATIONS), 2, CHANNELS, 1, 1))
        h = self.begin((z - CENTER) / total)
        for conv, pair in zip(self.blocks, told.unbind(1), strict=True):
            scale, shift = pair.unbind(1)
            h = h + conv(F.silu(h) * (1 + scale) + shift)
        mean, spread = self.end(F.silu(h)).chunk(2, 1)
        skip, out = self.std**2 / total**2, noise * self.std / total
        return CENTER + skip * (z - CENTER) + out * mean, out**2 * spread.clamp(-8, 2).exp()

    @torch.inference_mode()
    def posterior_x(self, z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """See ``PosteriorNetwork``."""
        found = [self(each.float(), torch.tensor([sigma])) for each in z.split(1)]
        mean, v = (torch.cat(field).double() for field in zip(*found, strict=True))
        return mean, v


def train(network: SoundNetwork, x: Tensor, steps: int) -> None:
    """Train by the code length on crops of a recording, [3, 1, pixels]."""
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, RATE / 100)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(x.shape[2] - CROP + 1, (BATCH,), generator=generator).tolist()
        crops = torch.stack([x[:, :, start : start + CROP] for start in starts])
        loss = code_length_loss(network, crops, "rgb", generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        cosine.step()


def read(path: Path) -> Samples:
    """The samples of a recording.

    Raises:
        click.ClickException: if it is none of one channel and 8 bits.
    """
    try:
        with wave.open(str(path)) as recording:
            kind = recording.getnchannels(), recording.getsampwidth()
            data = recording.readframes(recording.getnframes())
    except (wave.Error, EOFError) as e:
        raise click.ClickException(f"{path}: not a WAV file ({e})") from e
    if kind != (1, 1):
        raise click.ClickException(
            f"{path}: {kind[0]} channels of {8 * kind[1]} bits, expected one of 8"
        )
    return np.frombuffer(data, np.uint8)


def strip(samples: Samples) -> Samples:
    """Three samples a pixel, in one row: [1, pixels, 3]."""
    return samples[: len(samples) // 3 * 3].reshape(1, -1, 3)


def others(samples: Samples) -> dict[str, int]:
    """Bytes by other coders."""

    png = io.BytesIO()
    Image.fromarray(samples[None]).save(png, "PNG", optimize=True)
    sizes = {
        "as it is": len(samples),
        "xz": len(lzma.compress(samples.tobytes(), preset=9)),
        "PNG, grey": len(png.getvalue()),
        "FLAC": _flac(samples),
    }
    return {name: size for name, size in sizes.items() if size}


def _flac(samples: Samples) -> int:
    """Bytes of FLAC, 0 without the library."""
    try:
        soundfile = import_module("soundfile")
    except ImportError:
        return 0
    stream = io.BytesIO()
    signed = (samples.astype(np.int16) - 128) << 8
    soundfile.write(stream, signed, 11025, format="FLAC", subtype="PCM_S8")
    return len(stream.getvalue())


def entropy(values: NDArray[np.generic]) -> float:
    """Bits a value, by their frequencies alone."""
    shares = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(shares * np.log2(shares)).sum())


@click.command()
@click.argument("recording", type=click.Path(exists=True, path_type=Path))
@click.option("--steps", default=600, type=POSITIVE, show_default=True, help="Of training.")
def main(recording: Path, steps: int) -> None:
    """Train on the most of a recording, code the rest, and print the table."""
    torch.manual_seed(0)
    samples = read(recording)
    cut = len(samples) * 3 // 4
    known, rest = strip(samples[:cut]), strip(samples[cut:])
    begun = time.process_time()
    network = SoundNetwork(float(known.std()))
    train(network, torch.from_numpy(known.copy()).permute(2, 0, 1).float(), steps)
    seconds = time.process_time() - begun
    model = Model(network, plans_from(2), "sound")
    data = encode(rest, model)
    check_equal(rest, decode(data, model=model), recording.name)
    sizes = others(rest.reshape(-1)) | {"the chain, whole file": len(data)}
    rows = [(name, str(size), f"{8 * size / rest.size:.3f}") for name, size in sizes.items()]
    change = np.diff(rest.reshape(-1).astype(np.int64))
    rows.append(("entropy of differences", "-", f"{entropy(change):.3f}"))
    click.echo(markdown(("coder", "bytes", "bits a sample"), rows))
    tiles = ", ".join(f"{n} {coder}" for coder, n in tiles_by_coder(parse(data)).items())
    click.echo(
        f"\n{rest.size} samples in tiles {tiles}; trained on {known.size}, {steps} steps, "
        f"{seconds:.0f} s of a processor"
    )


if __name__ == "__main__":
    main()
