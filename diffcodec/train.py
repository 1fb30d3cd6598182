"""Training of the epsilon-model with the codec's own code length as the loss."""

import contextlib
import io
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffcodec.bound import chain_bound_bits, code_length_loss, simple_loss
from diffcodec.data import CropSampler, domain_batch, find_images, split_held_out
from diffcodec.errors import DiffcodecError
from diffcodec.files import write_file
from diffcodec.models import serialise_float_model, serialise_model
from diffcodec.network import NetworkConfig, UNet
from diffcodec.plan import PLANS

LOSSES = {"vlb": code_length_loss, "simple": simple_loss}
UNITS = {"vlb": "bpd", "simple": "mse"}  # of the losses, for the log
CHECKPOINT, CONFIG, LOG, CURVE = "checkpoint.pt", "config.json", "log.jsonl", "curve.png"
MODEL, FLOAT_MODEL = "model.safetensors", "float.safetensors"
VALIDATION_CROPS, VALIDATION_BATCH = 128, 32
CALIBRATION_CROPS = 64


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the outcome of a run; saved in its folder."""

    data: str
    steps: int = 20_000
    batch: int = 32
    crop: int = 64
    augment: str = "all"  # of data.AUGMENTATIONS
    learning_rate: float = 2e-3
    optimizer: str = "muon"  # of the hidden convolutions: "muon" or "adamw"
    weight_decay: float = 0.01
    clip: float = 1.0
    warmup: int = 200
    ema: float = 0.999
    loss: str = "vlb"
    seed: int = 0
    precision: str = "bfloat16"  # or "float32"
    compile: bool = True
    network: NetworkConfig = field(default_factory=NetworkConfig)


class Trainer:
    """A run in a folder: checkpoint, log, curve, and a usable model of the averaged weights.

    Every random draw follows from the seed and the step, so a run that was stopped and resumed
    equals an uninterrupted one up to floating point.
    """

    def __init__(self, config: TrainConfig, out: Path, init: dict[str, Tensor] | None = None):
        self.config = config
        self.out = out
        torch.manual_seed(config.seed)
        self.model = UNet(config.network)
        if init is not None:
            self.model.load_state_dict(init)
        self.ema = {k: p.detach().clone() for k, p in self.model.named_parameters()}
        self.optimizers = make_optimizers(self.model, config)
        self.step = 0
        self.seconds = 0.0
        train, held_out = split_held_out(find_images(Path(config.data)))
        self.train_data = CropSampler(train, config.crop, config.augment)
        self.held_out = CropSampler(held_out, config.crop, "none")

    def resume(self) -> None:
        """Continue from the folder's checkpoint."""
        state = torch.load(self.out / CHECKPOINT, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema = state["ema"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write the checkpoint, atomically."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "network": self.config.network.to_dict(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_file(self.out / CHECKPOINT, buffer.getvalue(), force=True)

    def averaged_network(self) -> UNet:
        """The network with the exponential moving average of the weights."""
        network = UNet(self.config.network)
        network.load_state_dict(self.ema)
        return network

    def write_model(self, validation: dict[str, float]) -> None:
        """Write the averaged weights as model files, as they are and quantised, each atomically."""
        c = self.config
        about = {
            "images": len(self.train_data.paths),
            "crops": self.step * c.batch,
            "crop": c.crop,
            "steps": self.step,
            "hours": round(self.seconds / 3600, 3),
            "held_out_bpd": round(validation["held_out_bpd"], 4),
        }
        network = self.averaged_network()
        data = serialise_float_model(network, PLANS, about)
        write_file(self.out / FLOAT_MODEL, data, force=True)
        calibration = calibration_crops(self.train_data, c.network.color)
        data = serialise_model(network, calibration, PLANS, about)
        write_file(self.out / MODEL, data, force=True)

    def draw_curve(self) -> None:
        """Picture of the log; needs matplotlib (the extra ``train``)."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        lines = map(json.loads, (self.out / LOG).read_text().splitlines())
        records = {r["step"]: r for r in lines}  # a resumed run repeats steps
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        lowest = math.inf
        for name, label, style in (
            ("train_bpd", "training loss, means of 50 steps", "-"),
            ("held_out_bpd", f"held-out bound, {len(PLANS['default'].levels)} timesteps", "o-"),
        ):
            points = sorted((step, r[name]) for step, r in records.items() if name in r)
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label, markersize=3, linewidth=1)
                lowest = min(lowest, *(bpd for _, bpd in points))
        axes.set(xlabel="step", ylabel="bits per dimension", ylim=(lowest - 0.1, lowest + 2))
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(self.out / CURVE, dpi=120)

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to the log and show it."""
        print(json.dumps(record), flush=True)
        with (self.out / LOG).open("a") as f:
            f.write(json.dumps(record) + "\n")

    def learning_rate(self) -> float:
        """Linear warm-up, then cosine decay to a hundredth of the peak."""
        c = self.config
        warm = min(1.0, (self.step + 1) / c.warmup)
        progress = min(1.0, self.step / c.steps)
        return c.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

    def train_step(self, forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> float:
        """One update; returns the loss, in bits per dimension if it is the code length.

        Raises:
            DiffcodecError: if the loss or its gradient is not finite; the weights stay as they are.
        """
        c = self.config
        generator = torch.Generator().manual_seed(hash_seed(c.seed, self.step))
        rgb = self.train_data.batch(c.batch, c.seed, self.step)
        x = domain_batch(rgb, c.network.color)
        loss = LOSSES[c.loss](forward, x, c.network.color, generator)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), c.clip)
        if not (loss.isfinite() and norm.isfinite()):
            raise DiffcodecError(
                f"the loss is not finite at step {self.step + 1}; lower --learning-rate and "
                "resume from the last checkpoint"
            )
        rate = self.learning_rate()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(c.ema, (1 + self.step) / (10 + self.step))
        names, params = zip(*self.model.named_parameters(), strict=True)
        averages = [self.ema[n] for n in names]
        torch._foreach_lerp_(averages, [p.detach() for p in params], 1 - decay)
        return loss.item()

    def validate(self) -> dict[str, float]:
        """The averaged weights' bound on fixed held-out crops, mean and 95 % half-width."""
        c = self.config
        model = self.averaged_network()
        values = []
        with torch.inference_mode(), autocast(c.precision):
            for i in range(0, VALIDATION_CROPS, VALIDATION_BATCH):
                rgb = self.held_out.batch(VALIDATION_BATCH, 12345, i)
                x = domain_batch(rgb, c.network.color)
                generator = torch.Generator().manual_seed(i)
                parts = chain_bound_bits(
                    model.posterior_x, x, c.network.color, PLANS["default"], generator
                )
                values.append(parts)
        parts = torch.cat(values)
        total = parts.sum(1)
        half = 1.96 * total.std().item() / math.sqrt(len(total))
        return {
            "held_out_bpd": total.mean().item(),
            "held_out_bpd_half_width": half,
            "remainder_bpd": parts[:, 0].mean().item(),
            "first_jump_bpd": parts[:, 1].mean().item(),
            "prior_bpd": parts[:, -1].mean().item(),
        }

    def run(self, validate_every: int = 1000, save_every_seconds: float = 180) -> None:
        """Train to the configured number of steps.

        Every 50 steps a line of JSON goes to the log: ``step``, ``seconds`` of training so far,
        ``train_bpd`` (L_simple: ``train_mse``) as the mean of these steps, ``crops_per_second``
        and ``learning_rate``; after a validation also what :meth:`validate` returns.

        Raises:
            DiffcodecError: if the loss is not finite.
        """
        c = self.config
        config = json.dumps(asdict(c), indent=2) + "\n"
        write_file(self.out / CONFIG, config.encode(), force=True)
        forward = self.model.posterior_x
        if c.compile:
            forward = torch.compile(forward)
        losses: list[float] = []
        last_save = mark = time.monotonic()
        while self.step < c.steps:
            with autocast(c.precision):
                losses.append(self.train_step(forward))
            if self.step % 50 == 0 or self.step == c.steps:
                now = time.monotonic()
                self.seconds += now - mark
                record = {
                    "step": self.step,
                    "seconds": round(self.seconds, 1),
                    f"train_{UNITS[c.loss]}": sum(losses) / len(losses),
                    "crops_per_second": len(losses) * c.batch / (now - mark),
                    "learning_rate": self.learning_rate(),
                }
                if self.step % validate_every == 0 or self.step == c.steps:
                    validation = self.validate()
                    self.log(record | validation)
                    self.write_model(validation)
                    self.draw_curve()
                else:
                    self.log(record)
                if now - last_save > save_every_seconds or self.step == c.steps:
                    self.save()
                    last_save = now
                losses, mark = [], time.monotonic()


def calibration_crops(images: CropSampler, color: str) -> Tensor:
    """What shows :func:`serialise_model` the range of activations; the same at every call."""
    return domain_batch(images.batch(CALIBRATION_CROPS, seed=0, step=0), color)


def calibration_images(data: str, crop: int, color: str) -> Tensor:
    """The same crops that a run on these images would take, with the default augmentation.

    Raises:
        DiffcodecError: if there are no images, or none that is large enough.
    """
    images, _ = split_held_out(find_images(Path(data)))
    return calibration_crops(CropSampler(images, crop, memory_bytes=0), color)


def hash_seed(seed: int, step: int) -> int:
    """A 63-bit seed for one step of one run."""
    return (seed * 1_000_003 + step * 7_919 + 1) % (1 << 63)


@contextlib.contextmanager
def autocast(precision: str) -> Iterator[None]:
    """bf16 where asked for."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        yield


def make_optimizers(model: UNet, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the hidden convolutions (matrices), AdamW for everything else."""
    hidden, other = [], []
    for name, p in model.named_parameters():
        is_hidden = name.split(".")[0] in {"down", "up", "shrink", "grow"} and p.ndim == 2
        if config.optimizer == "muon" and is_hidden and "affine" not in name:
            hidden.append(p)
        else:
            other.append(p)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            other, config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )
    ]
    if hidden:
        optimizers.append(
            torch.optim.Muon(
                hidden,
                config.learning_rate,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers
