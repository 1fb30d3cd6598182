"""The remainder in four phases: an experiment on the lowest level of the chain.

    python -m bench phases --data DIR --out RUN --minutes 30 [--init RUN/phases.safetensors]

Today the first level quantises by M = 2 (luma), and the bits below the third level are spread over
three levels of independent Gaussians, each an evaluation or two of the strongest network. Here the
first level quantises by M = 8, and x given z_1, most of all bits, is coded pixel group by pixel
group: in the four phases of the 2 x 2 grid, (0,0), (1,1), (0,1), (1,0), and Y, Co, Cg in each. One
evaluation of a U-Net at z_1 serves all phases; a small network at half the resolution sees its
features and the exact x of the phases before, and gives each sample a mixture of discretized
logistics (PixelCNN++, Salimans et al. 2017, section 2.1), here truncated to the M candidates.

What it prints is the remainder alone, in bits per dimension, on held-out crops, by phase and by
channel; ``--beside-chain`` adds what z_1 then costs given the default plan's next level above, and
what today's chain pays for x given that level.
"""

import copy
import math
import time
from pathlib import Path
from typing import cast

import click
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffcodec.diffusion.bound import above, chain_bound_bits
from diffcodec.diffusion.color import channels
from diffcodec.diffusion.plan import Plan
from diffcodec.diffusion.process import (
    LOG2_E,
    discretized_gaussian_bits,
    dithered_quantise,
    p_first,
    q_sample,
    to_bits_per_dimension,
)
from diffcodec.evaluation.measure import torch_posterior
from diffcodec.models.model import load_model, load_weights
from diffcodec.networks.experts import ExpertDenoisers
from diffcodec.networks.unet import UNet
from diffcodec.training.crops import CropSampler, domain_batch
from diffcodec.training.data import find_images, split_held_out

COLOR = "ycocg"
PHASES = ((0, 0), (1, 1), (0, 1), (1, 0))  # row and column within each square of 2 x 2
WIDTH, BLOCKS, COMPONENTS = 64, 2, 3  # of the small networks
CLIP = 6.0  # of what they see of known samples, in standard deviations
LEAST_STD = 0.3  # grey levels, added to the trunk's
WEIGHTS = "phases.safetensors"


def zero(layer: nn.Module) -> None:
    """Let a layer begin without an effect."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class Block(nn.Module):
    """x + conv(silu(conv(silu(x)))), 3 x 3."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        zero(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        residual: Tensor = self.conv2(F.silu(self.conv1(F.silu(x))))
        return x + residual


class Phase(nn.Module):
    """The parameters of one phase from the trunk's features and what is known of the others."""

    def __init__(self, features: int):
        super().__init__()
        self.conv_in = nn.Conv2d(4 * features + 12, WIDTH, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(WIDTH) for _ in range(BLOCKS)))
        # for each channel weights, means and log scales; then three cross-channel coefficients
        self.conv_out = nn.Conv2d(WIDTH, 9 * COMPONENTS + 3, 3, padding=1)
        zero(self.conv_out)
        with torch.no_grad():
            bias = self.conv_out.get_parameter("bias")[: 9 * COMPONENTS].view(3, 3, COMPONENTS)
            bias[:, 1] = torch.linspace(-0.3, 0.3, COMPONENTS)
            bias[:, 2] = -0.6

    def forward(self, features: Tensor, known: Tensor) -> Tensor:
        """[batch, 4 c, h/2, w/2] and [batch, 12, h/2, w/2] -> [batch, 9 k + 3, h/2, w/2]."""
        h = self.conv_in(torch.cat([features, known], 1))
        out: Tensor = self.conv_out(F.silu(self.blocks(h)))
        return out.float()


class PhaseNetwork(nn.Module):
    """A U-Net evaluated once at z_1, and a small network for each phase.

    Args:
        trunk: of ``COLOR``, without patches.
        quantiser: M of luma; chroma has 2 M and 3 M / 2, as the domain's noise asks for.
    """

    def __init__(self, trunk: UNet, quantiser: int):
        super().__init__()
        self.trunk = trunk
        self.phases = nn.ModuleList(Phase(trunk.config.channels[0]) for _ in PHASES)
        self.steps = (quantiser, 2 * quantiser, 3 * quantiser // 2)
        self.sigma = math.sqrt((quantiser**2 - 1) / 12)

    def forward(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """What the trunk tells of x given z_1, and the parameters of every phase given the true x.

        Args:
            z: z_1, [batch, 3, h, w], sides multiples of what the trunk asks for.
            x: [batch, 3, h, w].

        Returns:
            The posterior mean, the unit of the parameters (both like x), and by phase
            [batch, 9 k + 3, h/2, w/2].
        """
        sigma = torch.full((len(z),), self.sigma, device=z.device)
        features, mean, variance = trunk_outputs(self.trunk, z, sigma)
        unit = variance.sqrt() + LEAST_STD
        halved = F.pixel_unshuffle(features, 2)
        known = F.pixel_unshuffle(((x - mean) / unit).clamp(-CLIP, CLIP), 2)
        parameters = []
        for count, phase in enumerate(self.phases):
            mask = torch.zeros(3, 2, 2, device=z.device)
            for row, column in PHASES[:count]:
                mask[:, row, column] = 1
            parameters.append(phase(halved, known * mask.view(1, 12, 1, 1)))
        return mean, unit, parameters


def trunk_outputs(net: UNet, z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features before the last convolution, and the posterior mean and variance of x."""
    found: list[Tensor] = []
    hook = net.conv_out.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    eps, variance = net(z, sigma)
    hook.remove()
    s = sigma[:, None, None, None] * net.noise_multipliers
    return found[0], (z - s * eps).float(), variance.float()


def log_mass(low: Tensor, high: Tensor) -> Tensor:
    """``log(F(high) - F(low))`` of the standard logistic distribution, accurate in both tails."""
    flip = low + high > 0
    upper, lower = torch.where(flip, -low, high), torch.where(flip, -high, low)
    far = F.logsigmoid(lower) - F.logsigmoid(upper)
    return F.logsigmoid(upper) + torch.log1p(-torch.exp(far.clamp(max=-1e-6)))


def phase_bits(
    parameters: Tensor, error: Tensor, low: Tensor, high: Tensor, half: Tensor
) -> Tensor:
    """Code length of one phase under the truncated mixtures, in bits, [batch, 3, h/2, w/2].

    Args:
        parameters: see :class:`Phase`.
        error: x - mean, in units, as are the others; [batch, 3, h/2, w/2].
        low: the lower end of the M candidates.
        high: their upper end.
        half: half the width of one candidate.
    """
    k, (batch, _, *size) = COMPONENTS, parameters.shape
    weights, means, scales = parameters[:, : 9 * k].view(batch, 3, 3, k, *size).unbind(2)
    a = parameters[:, 9 * k :]
    y, co = error[:, 0], error[:, 1]
    shift = torch.stack([torch.zeros_like(y), a[:, 0] * y, a[:, 1] * y + a[:, 2] * co], 1)
    centre, inverse = means + shift[:, :, None], torch.exp(-scales.clamp(-5, 3))

    def log_probability(below: Tensor, above: Tensor) -> Tensor:
        ends = ((end[:, :, None] - centre) * inverse for end in (below, above))
        return torch.logsumexp(F.log_softmax(weights, 2) + log_mass(*ends), 2)

    chosen = log_probability(error - half, error + half)
    return LOG2_E * (log_probability(low, high) - chosen)


def remainder_bits(network: PhaseNetwork, x: Tensor, generator: torch.Generator) -> Tensor:
    """Code length of x given z_1, in bits per sample of each image, channel and phase, [n, 3, 4].

    Args:
        network: to be asked; compiled or not.
        x: integers of ``COLOR`` as floats, [n, 3, h, w].
        generator: of the dither.
    """
    steps = channels(network.steps, x)
    dither = torch.floor(torch.rand(x.shape, generator=generator) * steps)
    z, _ = dithered_quantise(x, dither, steps)
    with torch.autocast("cpu", torch.bfloat16):
        mean, unit, parameters = network(z.contiguous(memory_format=torch.channels_last), x)
    fields = [(x - mean) / unit, (z - steps / 2 - mean) / unit, (z + steps / 2 - mean) / unit]
    fields.append(0.5 / unit)
    bits = [
        phase_bits(each, *(field[:, :, row::2, column::2] for field in fields)).mean((2, 3))
        for each, (row, column) in zip(parameters, PHASES, strict=True)
    ]
    return torch.stack(bits, 2)


def make_network(model: str, quantiser: int) -> PhaseNetwork:
    """From a model whose lowest expert becomes the trunk; its phases are untrained."""
    config, weights = load_weights(model)
    whole = ExpertDenoisers(config)
    whole.load_state_dict(weights)
    return PhaseNetwork(whole.experts[0], quantiser)


def make_optimizers(network: PhaseNetwork, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the trunk's hidden convolutions, AdamW for the rest."""
    named = list(network.named_parameters())
    hidden = [p for name, p in named if p.ndim == 2 and (".conv1." in name or ".conv2." in name)]
    chosen = set(map(id, hidden))
    others = [p for _, p in named if id(p) not in chosen]
    return [
        torch.optim.AdamW(others, rate, weight_decay=0.01),
        torch.optim.Muon(hidden, rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]


@torch.no_grad()
def held_out_bits(network: PhaseNetwork, x: Tensor, batch: int = 4) -> Tensor:
    """Mean of :func:`remainder_bits` on fixed crops and dither, [3, 4]."""
    generator = torch.Generator().manual_seed(0)
    parts = [remainder_bits(network, part, generator) for part in x.split(batch)]
    return torch.cat(parts).mean(0)


def report(name: str, bits: Tensor) -> str:
    """One line: the mean, by phase, by channel."""
    phases, by_channel = (" ".join(f"{b:.3f}" for b in bits.mean(axis)) for axis in (0, 1))
    return f"{name} {bits.mean():.4f} bpd; phases {phases}; Y, Co, Cg {by_channel}"


def save(network: PhaseNetwork, path: Path) -> None:
    """The weights in bfloat16."""
    state = {name: t.bfloat16().contiguous() for name, t in network.state_dict().items()}
    save_file(state, path, {"quantiser": str(network.steps[0])})


def train(
    network: PhaseNetwork,
    data: CropSampler,
    held_out: Tensor,
    out: Path,
    settings: "dict[str, float]",
) -> PhaseNetwork:
    """Train for so many minutes of this process's time, cosine decay; the averaged weights.

    Args:
        network: where to start.
        data: random crops.
        held_out: of the colour domain, [n, 3, h, w].
        out: folder of the weights.
        settings: "minutes", "rate", "batch" and "seed".
    """
    average = copy.deepcopy(network)
    compiled = cast(PhaseNetwork, torch.compile(network))
    optimizers = make_optimizers(network, settings["rate"])
    generator = torch.Generator().manual_seed(int(settings["seed"]))
    begin, shown, step, done = time.process_time(), -math.inf, 0, 0.0
    while done < 1:
        minutes = (time.process_time() - begin) / 60 / torch.get_num_threads()
        done = minutes / settings["minutes"]
        if minutes - shown >= 5 or done >= 1:
            shown = minutes
            bits = held_out_bits(average, held_out)
            click.echo(report(f"{minutes:.1f} minutes, {step} steps: held out", bits))
            save(average, out / WEIGHTS)
        rate = min(1, (step + 1) / 100) * (0.51 + 0.49 * math.cos(math.pi * min(1, done)))
        for group in (group for o in optimizers for group in o.param_groups):
            group["lr"] = settings["rate"] * rate
        x = domain_batch(data.batch(int(settings["batch"]), int(settings["seed"]), step), COLOR)
        loss = remainder_bits(compiled, x, generator).mean()
        network.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        weight = 1 - min(0.999, (step + 1) / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), weight)
        step += 1
    return average


@torch.no_grad()
def beside_chain(name: str, model: str, quantiser: int, x: Tensor) -> str:
    """One line: z_1 given a level about twice as noisy, and x given that level by today's chain.

    Without context in either, in bits per dimension.
    """
    loaded = load_model(model, "float")
    domain, plan = loaded.domain, loaded.plans["default"]
    posterior = torch_posterior(loaded)
    steps = channels((quantiser, 2 * quantiser, 3 * quantiser // 2), x)
    first = ((steps * steps - 1) / 12).sqrt()
    t = next(t for t, s in enumerate(plan.levels) if s > 1.5 * first[0].item())
    lowest = Plan(plan.levels[: t + 1], plan.lattice_ratios[:t])
    generator = torch.Generator().manual_seed(0)
    jump, chain = [], []
    for part in x.double().split(4):
        sigma = plan.levels[t] * channels(domain.noise_multipliers, part)
        dither = torch.floor(torch.rand(part.shape, generator=generator) * steps)
        z_1, _ = dithered_quantise(part, dither, steps)
        z = q_sample(z_1, above(sigma, first), torch.randn(part.shape, generator=generator))
        mean, v = posterior(z, torch.full((len(z),), plan.levels[t]))
        p = p_first(mean, v, z, first, sigma, steps)
        jump.append(to_bits_per_dimension(discretized_gaussian_bits(z_1, *p, steps)))
        bits = chain_bound_bits(posterior, part, COLOR, lowest, generator)
        chain.append(bits[:, : t + 1].sum(1))  # all but the prior
    level, z_1_bits, chain_bits = plan.levels[t], torch.cat(jump).mean(), torch.cat(chain).mean()
    return f"{name}: z_1 given sigma {level:g} {z_1_bits:.4f}; today x given it {chain_bits:.4f}"


def fixed_crops(sampler: CropSampler, count: int) -> Tensor:
    """The same crops whenever the folder is the same, in the colour domain."""
    return domain_batch(sampler.batch(count, 12345, 0), COLOR)


@click.command()
@click.option("--data", multiple=True, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--test", "tests", multiple=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--model", default="photo", show_default=True, help="Its network is the trunk.")
@click.option("--init", type=click.Path(path_type=Path, exists=True), help="Weights to go on from.")
@click.option("--quantiser", default=8, show_default=True, help="M of luma at the first level.")
@click.option("--minutes", default=30.0, show_default=True, help="0 to measure alone.")
@click.option("--rate", default=1.5e-3, show_default=True, help="Peak of the learning rate.")
@click.option("--batch", default=16, show_default=True, help="Crops of a step.")
@click.option("--crop", default=64, show_default=True, help="Sides of a crop, in pixels.")
@click.option("--beside-chain", "beside", is_flag=True, help="What today's chain pays, too.")
@click.option("--seed", default=0, show_default=True, help="Of crops and dither.")
def main(
    data: tuple[Path, ...],
    tests: tuple[Path, ...],
    out: Path,
    model: str,
    init: Path | None,
    quantiser: int,
    minutes: float,
    rate: float,
    batch: int,
    crop: int,
    beside: bool,
    seed: int,
) -> None:
    """Train the remainder in phases on folders of images, and measure it on held-out crops."""
    torch.manual_seed(seed)
    network = make_network(model, quantiser)
    if init is not None:
        network.load_state_dict({name: t.float() for name, t in load_file(init).items()})
    kept, held = split_held_out([image for folder in data for image in find_images(folder)])
    held_out = fixed_crops(CropSampler(held, 96, "none"), 48)
    if minutes > 0:
        out.mkdir(parents=True, exist_ok=True)
        settings = {"minutes": minutes, "rate": rate, "batch": batch, "seed": seed}
        network = train(network, CropSampler(kept, crop), held_out, out, settings)
    else:
        click.echo(report("held out", held_out_bits(network, held_out)))
    crops = {"held out": held_out}
    for folder in tests:
        crops[folder.name] = fixed_crops(CropSampler(find_images(folder), 96, "none"), 24)
        click.echo(report(folder.name, held_out_bits(network, crops[folder.name])))
    for name, x in crops.items() if beside else ():
        click.echo(beside_chain(name, model, quantiser, x))


if __name__ == "__main__":
    main()
