"""Training of the epsilon-model with the codec's own code length as the loss."""

import contextlib
import copy
import io
import json
import math
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diffcodec.diffusion.losses import (
    Share,
    code_length_loss,
    flow_matching_loss,
    hybrid_loss,
    simple_loss,
    v_loss,
)
from diffcodec.diffusion.plan import plans_from
from diffcodec.errors import DiffcodecError
from diffcodec.models.export import serialise_float_model, serialise_model
from diffcodec.networks.devices import find_device
from diffcodec.networks.experts import ExpertDenoisers, PhasedBits
from diffcodec.system.files import write_file
from diffcodec.system.process import uninterrupted
from diffcodec.training.config import TrainConfig, with_experts
from diffcodec.training.crops import CropSampler, calibration_crops, domain_batch
from diffcodec.training.data import check_labels, find_images, hold_out, read_labels, split_held_out
from diffcodec.training.devices import autocast
from diffcodec.training.log import Log, Record, read_log, say
from diffcodec.training.optimizers import make_optimizers
from diffcodec.training.pictures import draw_curve, draw_split
from diffcodec.training.validation import validate

LOSSES = {
    "vlb": code_length_loss,
    "simple": simple_loss,
    "hybrid": hybrid_loss,
    "v": v_loss,
    "flow": flow_matching_loss,
}
UNITS = {"vlb": "bpd", "simple": "mse", "hybrid": "loss", "v": "mse", "flow": "mse"}  # in the log
CHECKPOINT, CONFIG = "checkpoint.pt", "config.json"
CURVE, SPLIT = "curve.png", "split.png"
MODEL, FLOAT_MODEL = "model.safetensors", "float.safetensors"
UNTIMED_STEPS, TIMED_STEPS = 5, (3, 20)  # the first ones compile; how many for a time budget
FIRST_VALIDATION_SECONDS = 300
UNLABELLED = 0.1  # of the images: so that the network can do without labels


class Trainer:
    """A run in a folder: checkpoint, log, curve, and a usable model of the averaged weights.

    Every random draw follows from the seed and the step, so a run that was stopped and resumed
    equals an uninterrupted one up to floating point, and so does one in several processes or with
    the batch in several passes. (The draws of a GPU are others than a CPU's.)

    In the processes of :func:`joined_processes`, each has one of these; the first alone writes.

    Raises:
        DiffcodecError: if there are no usable images, the labels do not fit them, the batch cannot
            be divided, or the device is not there.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        init: dict[str, Tensor] | None = None,
        quiet: bool = False,
    ):
        self.config, self.quiet = config, quiet
        self.plans = plans_from(config.network.quantiser)
        self.out = out
        self.rank, self.processes = (
            (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        )
        shares = self.processes * config.accumulate
        if config.batch % shares:
            raise DiffcodecError(
                f"a batch of {config.batch} cannot be divided into {config.accumulate} passes of "
                f"{self.processes} processes; give --batch a multiple of {shares}"
            )
        if config.network.phases and self.processes > 1:  # which exchange one pass's gradients
            raise DiffcodecError("a network with phases in several processes: expected one")
        self.device = find_device(config.device)
        torch.manual_seed(config.seed)
        self.model = ExpertDenoisers(config.network)
        if init is not None:  # of a model that may have no classes and other experts
            begin = with_experts(init, len(config.network.experts))
            self.model.load_state_dict(self.model.state_dict() | begin)
        if config.network.phases and config.loss != "vlb":
            raise DiffcodecError(
                f"the loss {config.loss!r} of a network with phases: expected 'vlb'; leave out one"
            )
        if config.variance != "learned":
            for expert in self.model.experts:
                expert.reset_variance()
        self.model.to(self.device)
        self.ema = {k: p.detach().clone() for k, p in self.model.named_parameters()}
        self.optimizers = make_optimizers(self.model, config)
        self.step, self.seconds = 0, 0.0
        self.is_timed = False  # and the user told how long it will take
        train, held_out = split_held_out(find_images(Path(config.data)))
        self.say(f"{config.data}: {len(train):,} images to train on, {len(held_out):,} held out")
        labels: tuple[list[int] | None, list[int] | None] = None, None
        if config.labels is not None:
            read = read_labels(Path(config.labels))
            check_labels(read, [*train, *held_out], config.network.classes)
            labels = hold_out(read.tolist())
        self.train_data = CropSampler(
            train, config.crop, config.augment, labels=labels[0], quiet=quiet
        )
        self.held_out = CropSampler(held_out, config.crop, "none", labels=labels[1], quiet=quiet)

    @cached_property
    def forward(self) -> nn.Module:
        """The network as it is trained: compiled if so configured, its gradients exchanged."""
        if self.config.compile:
            self.say("compiling the network, which may take some minutes")
            self.model.compile()
        if self.processes == 1:
            return self.model
        # a process's images may all be at noise levels of one of several experts
        several = len(self.config.network.experts) > 1
        return DistributedDataParallel(self.model, find_unused_parameters=several)

    def resume(self) -> None:
        """Continue from the folder's checkpoint."""
        self.load_state(
            torch.load(self.out / CHECKPOINT, weights_only=True, map_location=self.device)
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; the tensors are the run's own."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "network": self.config.network.to_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state`."""
        self.model.load_state_dict(state["model"])
        self.ema = state["ema"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write the checkpoint and the model so far, each atomically."""
        buffer = io.BytesIO()
        torch.save(self.state(), buffer)
        write_file(self.out / CHECKPOINT, buffer.getvalue(), force=True)
        self.write_model({}, final=False)

    def averaged_network(self) -> ExpertDenoisers:
        """The network with the exponential moving average of the weights, on the CPU."""
        network = ExpertDenoisers(self.config.network)
        network.load_state_dict(self.ema)
        return network

    def write_model(self, validation: Record, final: bool = True) -> None:
        """Write the averaged weights as model files, each atomically.

        As they are, and if they are ``final`` also quantised, which takes a minute or more. The
        ``validation``, if there was one, is noted in them.
        """
        c = self.config
        about: dict[str, float] = {
            "images": len(self.train_data.paths),
            "crops": self.step * c.batch,
            "crop": c.crop,
            "steps": self.step,
            "hours": round(self.seconds / 3600, 3),
        }
        if validation:
            about["held_out_bpd"] = round(validation["held_out_bpd"], 4)
        network = self.averaged_network()
        data = serialise_float_model(network, self.plans, about)
        write_file(self.out / FLOAT_MODEL, data, force=True)
        if not final:
            return
        calibration = calibration_crops(self.train_data, c.network.color)
        data = serialise_model(network, calibration, self.plans, about)
        write_file(self.out / MODEL, data, force=True)

    def draw_pictures(self, validation: Record) -> None:
        """Draw the log, and the bound by noise level, if matplotlib is there."""
        levels, v = self.plans["default"].levels, validation
        parts = [v["remainder_bpd"], v["first_jump_bpd"], *v["step_bpd"], v["prior_bpd"]]
        with contextlib.suppress(ImportError):
            draw_curve(read_log(self.out), len(levels), self.out / CURVE)
            draw_split(parts, levels, self.out / SPLIT)

    def learning_rate(self) -> float:
        """Linear warm-up, then cosine decay to a hundredth of the peak."""
        c = self.config
        warm = min(1.0, (self.step + 1) / c.warmup)
        progress = min(1.0, self.step / c.steps)
        return c.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

    def train_step(self) -> float:
        """One update; returns the loss, in bits per dimension if it is the code length.

        Raises:
            DiffcodecError: if the loss or its gradient is not finite; the weights stay as they are.
        """
        c = self.config
        total = torch.zeros((), device=self.device)
        for k in range(c.accumulate):
            with self.exchanging(k == c.accumulate - 1):
                loss = self.loss(Share(self.rank * c.accumulate + k, self.processes * c.accumulate))
                (self.processes * loss).backward()  # what is exchanged is the mean
            total += loss.detach()
        if self.processes > 1:
            dist.all_reduce(total)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), c.clip)
        if not (total.isfinite() and norm.isfinite()):
            raise DiffcodecError(
                f"the loss is not finite at step {self.step + 1}; lower --learning-rate and "
                "resume from the last checkpoint"
            )
        with uninterrupted():  # so that what a signal ends can be saved
            self.update()
        return total.item()

    @torch.no_grad()
    def update(self) -> None:
        """Change the weights and their averages by the gradients that are there."""
        rate = self.learning_rate()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        names, params = zip(*self.model.named_parameters(), strict=True)
        torch._foreach_lerp_([self.ema[n] for n in names], params, 1 - decay)

    def exchanging(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """A pass's context: the processes exchange gradients in the last pass of a batch only."""
        if isinstance(self.forward, DistributedDataParallel) and not last:
            return self.forward.no_sync()
        return contextlib.nullcontext()

    def loss(self, share: Share) -> Tensor:
        """The loss of a share of the step's batch."""
        c = self.config
        generator = torch.Generator(self.device).manual_seed(hash_seed(c.seed, self.step))
        rgb = self.train_data.batch(c.batch, c.seed, self.step, share.rows)
        x = domain_batch(rgb.to(self.device, non_blocking=True), c.network.color)
        with autocast(self.device, c.precision):
            labels = self.train_labels(share)
            model = self.forward if labels is None else partial(self.forward, labels=labels)
            loss: Callable[..., Tensor] = LOSSES[c.loss]
            if c.network.phases:
                loss = partial(code_length_loss, phased=PhasedBits(c.network, self.forward))
            same = (model, x, c.network.color, generator, share, c.variance)
            return loss(*same, quantiser=c.network.quantiser)

    def train_labels(self, share: Share) -> Tensor | None:
        """The labels of a share of the step's batch, some left out, if the network has classes."""
        c = self.config
        if not c.network.classes:
            return None
        labels = self.train_data.labels(c.batch, c.seed, self.step)
        generator = torch.Generator().manual_seed(hash_seed(c.seed, self.step))
        dropped = torch.rand(len(labels), generator=generator) < UNLABELLED
        return labels.masked_fill(dropped, -1)[share.rows].to(self.device)

    def validate(self) -> Record:
        """The averaged weights' bound on held-out crops; see :func:`.validation.validate`."""
        network = self.averaged_network().to(self.device)
        return validate(network, self.held_out, self.plans["default"], self.config)

    def say(self, text: str) -> None:
        """Tell the user what goes on, once for all processes."""
        if self.rank == 0 and not self.quiet:
            say(text)

    def say_length(self, seconds: float) -> None:
        """Tell how long the rest takes if a step takes so long."""
        left = self.config.steps - self.step
        self.say(f"{left:,} steps, about {_duration(left * seconds)}")
        self.is_timed = True

    def plan_steps(self, minutes: float) -> None:
        """Set the number of steps to what so many minutes of training hold, on this machine now.

        A few steps are timed after some that compile, in a tenth of these minutes if three can be,
        and undone. Validation does not count.
        """
        before = copy.deepcopy(self.state())
        for _ in range(UNTIMED_STEPS):
            self.train_step()
        self.say("timing a few steps")
        least, most = TIMED_STEPS
        count = round(60 * minutes / 10 / self.step_seconds(1))
        seconds = self.step_seconds(min(max(count, least), most))
        self.load_state(before)
        self.config = replace(self.config, steps=max(1, round(60 * minutes / seconds)))
        self.say_length(seconds)

    def step_seconds(self, count: int) -> float:
        """The median time of so many steps, the same in all processes."""
        times = []
        for _ in range(count):
            begin = time.monotonic()
            self.train_step()
            times.append(time.monotonic() - begin)
        seconds = torch.tensor(sorted(times)[count // 2], device=self.device)
        if self.processes > 1:
            dist.broadcast(seconds, 0)
        return seconds.item()

    def run(self, validate_every: int = 1000, save_every_seconds: float = 60) -> None:
        """Train to the configured number of steps.

        Every 50 steps a line of JSON goes to the log: ``step``, ``seconds`` of training so far,
        ``train_bpd`` (L_simple: ``train_mse``, L_hybrid: ``train_loss``) as the mean of these
        steps, ``crops_per_second`` and ``learning_rate``; after a validation also what
        :meth:`validate` returns. If there was none after five minutes, there is one then.

        What an interrupt or a signal that raises ends goes on from its last whole step.

        Raises:
            DiffcodecError: if the loss is not finite, or TensorBoard is asked for and not there.
        """
        c = self.config
        if self.rank != 0:
            while self.step < c.steps:
                self.train_step()
            return
        config = json.dumps(asdict(c) | {"network": c.network.to_dict()}, indent=2) + "\n"
        write_file(self.out / CONFIG, config.encode(), force=True)
        log = Log(self.out, self.step, c.steps, tensorboard=c.tensorboard, quiet=self.quiet)
        try:
            last = self.train_on(log, validate_every, save_every_seconds)
            self.finish(log, last)
        except (KeyboardInterrupt, SystemExit, OSError):
            self.stop()
            raise
        finally:
            log.close()

    def train_on(self, log: Log, validate_every: int, save_every_seconds: float) -> Record:
        """Train to the last step and save it; returns the log's line of it, not yet written."""
        losses: list[float] = []
        first, timed, saved, is_validated = self.step, self.seconds, time.monotonic(), False
        record: Record = {"step": self.step, "seconds": round(self.seconds, 1)}
        while self.step < self.config.steps:
            begin = time.monotonic()
            losses.append(self.train_step())
            now = time.monotonic()
            self.seconds += now - begin
            log.advance(sum(losses) / len(losses))
            if not self.is_timed and self.step == first + UNTIMED_STEPS + 1:
                self.say_length(now - begin)
            last = self.step == self.config.steps
            if last or now - saved > save_every_seconds:
                self.save()
                saved = now
            is_due = not is_validated and self.seconds > FIRST_VALIDATION_SECONDS
            validates = not last and (self.step % validate_every == 0 or is_due)
            if self.step % 50 and not (last or validates):
                continue
            record = self.record(losses, self.seconds - timed)
            if validates:
                record |= self.validate()
                self.write_model(record, final=False)
                is_validated = True
            if not last:
                log.write(record)
            if validates:
                self.draw_pictures(record)
            losses, timed = [], self.seconds
        return record

    def record(self, losses: Sequence[float], seconds: float) -> Record:
        """The log's line of the latest steps."""
        return {
            "step": self.step,
            "seconds": round(self.seconds, 1),
            f"train_{UNITS[self.config.loss]}": sum(losses) / len(losses),
            "crops_per_second": len(losses) * self.config.batch / seconds,
            "learning_rate": self.learning_rate(),
        }

    def finish(self, log: Log, record: Record) -> None:
        """Make the model of a run that has taken its last step."""
        self.say(f"all {self.step:,} steps done; measuring the held-out bound")
        record |= self.validate()
        log.write(record)
        self.draw_pictures(record)
        self.say("quantising the model, which may take some minutes")
        self.write_model(record)
        bound = f"{record['held_out_bpd']:.3f} bits per dimension"
        self.say(f"{self.out / MODEL}: a model with a held-out bound of {bound}")

    def stop(self) -> None:
        """Leave what a run that ends early can be continued from, and its model so far."""
        if self.step == 0:
            self.say("stopped before the first step: run the same command again")
            return
        self.save()
        paths = shlex.join(["--data", self.config.data, "--out", str(self.out)])
        self.say(
            f"stopped after {self.step:,} of {self.config.steps:,} steps; to go on: "
            f"diffcodec train {paths} --resume; the model so far: {self.out / FLOAT_MODEL}"
        )


def _duration(seconds: float) -> str:
    """For the eye."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.0f} seconds"


def hash_seed(seed: int, step: int) -> int:
    """A 63-bit seed for one step of one run."""
    return (seed * 1_000_003 + step * 7_919 + 1) % (1 << 63)
