"""What relative entropy coding costs beyond the KL, and how far its samples are from q.

python -m bench overhead          the first two of these:
python -m bench overhead toy      Gaussians of known KL: the trellis beside chosen candidates (PFR)
python -m bench overhead photo    the reverse chain of a model on crops of the example photographs
python -m bench overhead speed    a 768 x 512 image down to 0.5 bits per pixel, without a network

What files without loss cost beyond their bound is in the tables of ``lossless`` and ``anatomy``.
``delivered`` is the regression of the sample on q's mean (1 for an exact sample, less for one that
leans to p), ``noise`` the variance of what the sample adds to q's mean by that of q.
"""

import time
from itertools import starmap
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bench import POSITIVE, check_side
from bench.inputs import EXAMPLES
from bench.report import OUT, Section, Table
from bench.store import write_json
from diffcodec.arrays import Array
from diffcodec.coding.relative_entropy.step import Decoder, Encoder
from diffcodec.coding.relative_entropy.trellis import TRELLIS, Trellis
from diffcodec.diffusion.color import DOMAINS, channels, from_domain, to_domain
from diffcodec.diffusion.process import LOG2_E, p_excess, q_posterior
from diffcodec.models.file import DEFAULT_MODEL
from diffcodec.models.model import load_weights
from diffcodec.networks.experts import ExpertDenoisers

LEVELS = tuple(float(s) for s in np.geomspace(600, 2.2, 12))
CHUNK_DIMENSIONS = 60
RUN_COLUMNS = ["bpp", "psnr", "noise of step", "noise of z"]  # coded, then by exact samples


class Quality(NamedTuple):
    """How good samples are, and at what cost; see the module's text."""

    kl: float  # bits
    noise: float
    delivered: float


def measure(q_mean: Array, p_mean: Array, variance: Array, excess: Array, z: Array) -> Quality:
    """The :class:`Quality` of samples. All [n]."""
    e, d, total = z - q_mean, q_mean - p_mean, variance + excess
    kl = 0.5 * np.log2(total / variance) + 0.5 * LOG2_E * ((variance + d * d) / total - 1)
    delivered = 1 + np.sum(e * d / variance) / max(np.sum(d * d / variance), 1e-300)
    return Quality(float(kl.sum()), float(np.mean(e * e / variance)), float(delivered))


def toy_problem(n: int, bits: float, seed: int) -> tuple[Array, Array, Array, Array]:
    """q_mean, p_mean, Q and W of n dimensions of so many expected bits, m drawn as p expects."""
    rng = np.random.default_rng(seed)
    excess = np.full(n, 4.0**bits - 1)
    p_mean = rng.normal(size=n)
    return p_mean + np.sqrt(excess) * rng.normal(size=n), p_mean, np.ones(n), excess


def chosen_candidates(
    bits: int, log_candidates: int, chunks: int, seed: int
) -> tuple[float, Quality]:
    """Poisson functional representation of chunks (Li and El Gamal 2018): bits of index, quality.

    The index is charged its octave, by the octaves' own frequencies, and its place within it.
    """
    rng = np.random.default_rng(seed)
    excess = 4.0 ** (bits / CHUNK_DIMENSIONS) - 1
    rho, d = 1 / (1 + excess), CHUNK_DIMENSIONS
    means = np.sqrt(1 - rho) * rng.normal(size=(chunks, d))
    samples, octaves = np.empty((chunks, d)), np.empty(chunks)
    for i, m in enumerate(means.astype(np.float32)):
        u = rng.standard_normal((1 << log_candidates, d), dtype=np.float32)
        score = u @ m / rho - (u * u).sum(1) * (1 / rho - 1) / 2
        arrivals = np.log(np.cumsum(rng.exponential(size=len(u))))
        best = int(np.argmin(arrivals - score))
        samples[i], octaves[i] = u[best], np.floor(np.log2(best + 1))
    frequencies = np.bincount(octaves.astype(int)) / chunks
    index = octaves.mean() - sum(f * np.log2(f) for f in frequencies if f)
    flat = means.ravel()
    found = measure(
        flat,
        np.zeros(flat.size),
        np.full(flat.size, rho),
        np.full(flat.size, 1 - rho),
        samples.ravel(),
    )
    return index * chunks, found


@click.group(invoke_without_command=True)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Choose one; without a choice toy and photo."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(toy)
        ctx.invoke(photo)


def toy_table(quick: bool) -> Table:
    """Known Gaussians: cost over the KL, quality of the samples, time."""
    lines = []
    candidates = ((6, 10), (8, 12)) if quick else ((6, 10), (8, 12), (10, 14), (12, 16))
    for bits, log_candidates in candidates:
        for more in (0, 3):
            start = time.perf_counter()
            index, found = chosen_candidates(
                bits, log_candidates + more, 300 >> max(0, bits - 9), 0
            )
            each = (time.perf_counter() - start) * 1e6 / found.kl
            label = f"{bits} bits per chunk, 2^{log_candidates + more} candidates"
            lines.append(toy_line(label, index / found.kl, found.noise, found.delivered, each))
    rate = TRELLIS.rate
    for trellis in starmap(
        Trellis, ((8, 1.1), (10, rate), (12, 1.0), (12, rate), (12, 1.07), (14, rate))
    ):
        rows = []
        for trial, worth in enumerate((0.01, 0.1, 0.4, 0.9, 2.5)):
            problem = toy_problem(int(4000 / worth), worth, trial)
            encoder = Encoder(trial, trellis)
            start = time.perf_counter()
            found = measure(*problem, encoder.encode_step(1, *problem))
            each = (time.perf_counter() - start) * 1e6 / found.kl
            rows.append((encoder.writer.count / found.kl, found.noise, found.delivered, each))
        label = f"trellis of 2^{trellis.state_bits} states, rate {trellis.rate}"
        lines.append(toy_line(label, *(float(value) for value in np.mean(rows, 0))))
    columns = ["method", "bits by KL", "noise", "delivered", "us per bit"]
    return Table("toy", "Relative entropy coding of known Gaussians", columns, lines)


def toy_line(label: str, cost: float, noise: float, delivered: float, each: float) -> list[str]:
    """A row of it."""
    return [label, f"{cost:.2f}", f"{noise:.3f}", f"{delivered:.2f}", f"{each:.0f}"]


@main.command()
@click.option("--quick", is_flag=True, help="Fewer candidates.")
@click.option("--out", default=OUT, type=click.Path(path_type=Path), help="Folder of results.")
def toy(quick: bool, out: Path) -> None:
    """Known Gaussians."""
    run_toy(quick, out)


def run_toy(quick: bool, out: Path) -> None:
    """Measure, and write the results."""
    text = (
        "Bits over the KL of the two Gaussians (1 is ideal); noise is the variance of what the "
        "sample adds to q's mean over q's; delivered is the regression on q's mean (1 is exact)."
    )
    command = "python -m bench overhead toy" + (" --quick" if quick else "")
    section = Section("Overhead: known Gaussians", command, [text], [toy_table(quick)])
    section.publish(out / "overhead" / "toy")


class Chain:
    """A float network's reverse chain over LEVELS; the prior is the colour domain's Gaussian."""

    def __init__(self, model: str):
        config, weights = load_weights(model)
        self.network = ExpertDenoisers(config).eval()
        self.network.load_state_dict(weights)
        self.color, self.domain = config.color, DOMAINS[config.color]
        self.multipliers = channels(self.domain.noise_multipliers, np.zeros(1))

    def posterior(self, z: Array, sigma: float) -> tuple[Array, Array]:
        """Mean and variance of x given z_t, [3, height, width]."""
        with torch.inference_mode():
            mean, v = self.network.posterior_x(
                torch.from_numpy(z[None]).float(), torch.tensor([sigma])
            )
        return mean[0].double().numpy(), v[0].double().numpy()

    def run(self, rgb: NDArray[np.int32], tile: int, encoder: Encoder | None) -> Array:
        """Per level: bits per pixel so far, PSNR, noise of the step, noise of z_t. [levels, 4]"""
        x = to_domain(rgb, self.color).astype(np.float64)
        rng, bits = np.random.default_rng(tile), 0.0
        rows, above = [], np.inf * self.multipliers
        z = np.zeros(x.shape)
        mean, v = channels(self.domain.center, z), channels(self.domain.data_std, z) ** 2
        for i, sigma in enumerate(LEVELS):
            s = sigma * self.multipliers
            (q, variance), (p, _) = (q_posterior(a, z, s, above) for a in (x, mean))
            q, p, variance, excess = (
                np.broadcast_to(a, x.shape).ravel() for a in (q, p, variance, p_excess(v, s, above))
            )
            if encoder:
                sample = encoder.encode_step(len(LEVELS) - i, q, p, variance, excess)
            else:
                sample = q + np.sqrt(variance) * rng.normal(size=x.size)
            found = measure(q, p, variance, excess, sample)
            bits = encoder.writer.count if encoder else bits + found.kl
            z, above = sample.reshape(x.shape), s
            mean, v = self.posterior(z, sigma)
            shown = np.clip(from_domain(np.rint(mean).astype(np.int32), self.color), 0, 255)
            psnr = 10 * np.log10(255**2 / np.mean((shown - rgb) ** 2))
            rows.append((bits / x[0].size, psnr, found.noise, np.mean(((z - x) / s) ** 2)))
        return np.array(rows)


@main.command()
@click.option("--model", default=DEFAULT_MODEL, help="Name or path.")
@click.option("--size", default=64, type=POSITIVE, help="Of the crops.")
@click.option("--crops", default=4, type=POSITIVE, help="Of each photograph.")
@click.option("--out", default=OUT, type=click.Path(path_type=Path), help="Folder of results.")
def photo(model: str, size: int, crops: int, out: Path) -> None:
    """A real chain: bits at the PSNR that exact sampling reaches, by the KL it sums up."""
    run_photo(model, size, crops, out)


def run_photo(model: str, size: int, crops: int, out: Path) -> None:
    """Measure, and write the results."""
    chain, seconds = Chain(model), 0.0
    runs: list[Array] = []
    for path in sorted(EXAMPLES.glob("*.png")):
        image = Image.open(path).convert("RGB")
        check_side(image, size, path.name)
        rgb = np.asarray(image).transpose(2, 0, 1).astype(np.int32)
        rng = np.random.default_rng(1)
        for _ in range(crops):
            y, x = (int(rng.integers(0, side - size + 1)) for side in rgb.shape[1:])
            crop, tile = rgb[:, y : y + size, x : x + size], len(runs)
            exact = np.mean([chain.run(crop, 100 * tile + k, None) for k in range(2)], 0)
            start = time.perf_counter()
            coded = chain.run(crop, tile, Encoder(tile))
            seconds += time.perf_counter() - start
            runs.append(np.concatenate([coded, exact], 1))
    lines = []
    rows = np.mean(runs, 0)
    for sigma, row in zip(LEVELS, rows, strict=True):
        ratio = row[0] / np.exp(np.interp(row[1], rows[:, 5], np.log(rows[:, 4])))
        figures = (f"{row[0]:.3f}", f"{row[1]:.2f}", f"{ratio:.2f}", f"{row[2]:.3f}")
        lines.append([f"{sigma:.1f}", *figures, f"{row[3]:.3f}"])
    columns = ["sigma", "bpp", "PSNR, dB", "over exact sampling", "noise of step", "noise of z"]
    caption = "Real bits of a chain's steps over those of exact samples at the same PSNR"
    table = Table("photo", caption, columns, lines)
    text = (
        f"{len(runs)} crops of {size} x {size} of the example photographs, model {model}; "
        f"{seconds / len(runs):.2f} s each with the network."
    )
    folder = out / "overhead" / "photo"
    write_json(folder / "photo.json", {"columns": 2 * RUN_COLUMNS, "sigma": LEVELS, "rows": rows})
    picture = draw(rows, folder)
    command = f"python -m bench overhead photo --size {size} --crops {crops}"
    section = Section("Overhead: a chain on photographs", command, [text], [table], [picture])
    section.publish(folder)


def draw(rows: Array, folder: Path) -> str:
    """PSNR against bits, coded and by exact samples."""
    from bench import pictures

    drawn, axes = pictures.figure(6.5, 4.6)
    curves = (
        ("relative entropy coding, real bits", rows[:, 0], rows[:, 1], pictures.OURS, "o-"),
        ("exact samples, by their KL", rows[:, 4], rows[:, 5], "#333333", "s--"),
    )
    for label, bpp, psnr, shade, line in curves:
        axes.plot(bpp, psnr, line, ms=3.5, color=shade, label=label)
    axes.set(xscale="log", xlabel="bits per pixel of the steps", ylabel="PSNR, dB")
    axes.legend(frameon=False)
    return pictures.save(drawn, folder, "overhead")


@main.command()
@click.option("--side", default=0, help="Of a square image instead.")
def speed(side: int) -> None:
    """Time of both sides, with bits that spread over dimensions like a photograph's."""
    pixels = side * side or 768 * 512
    rng = np.random.default_rng(0)
    encoder, problems, samples = Encoder(0), [], []
    spread = np.exp(1.5 * rng.normal(size=3 * pixels) - 1.125)
    for i, bpp in enumerate(0.25 * 0.5**k for k in range(9, -1, -1)):
        excess = (4.0 ** (bpp / 3) - 1) * spread
        problems.append((np.zeros(3 * pixels), np.ones(3 * pixels), excess))
        q_mean = np.sqrt(excess) * rng.normal(size=3 * pixels)
        start = time.perf_counter()
        samples.append(encoder.encode_step(10 - i, q_mean, *problems[-1]))
        seconds = time.perf_counter() - start
        click.echo(
            f"step of {bpp:.4f} bpp: {seconds:.2f} s, "
            f"{encoder.writer.count / pixels:.4f} bpp so far"
        )
    decoder = Decoder(encoder.writer.to_bytes(), 0)
    start = time.perf_counter()
    for i, (problem, sample) in enumerate(zip(problems, samples, strict=True)):
        assert np.array_equal(decoder.decode_step(10 - i, *problem), sample)
    click.echo(f"decoded in {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
