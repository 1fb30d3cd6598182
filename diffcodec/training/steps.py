"""The steps of training, with the codec's own code length as the loss."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
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
from diffcodec.errors import DiffcodecError
from diffcodec.models.layout import read_network
from diffcodec.networks.config import NetworkConfig
from diffcodec.networks.devices import find_device, to_device
from diffcodec.networks.experts import ExpertDenoisers, PhasedBits
from diffcodec.system.process import uninterrupted
from diffcodec.training.config import TrainConfig, with_experts
from diffcodec.training.crops import CropSampler, domain_batch
from diffcodec.training.data import check_labels, find_images, hold_out, read_labels, split_held_out
from diffcodec.training.devices import autocast
from diffcodec.training.log import say
from diffcodec.training.optimizers import load_optimizer, make_optimizers
from diffcodec.training.resident import DeviceCrops

LOSSES = {
    "vlb": code_length_loss,
    "simple": simple_loss,
    "hybrid": hybrid_loss,
    "v": v_loss,
    "flow": flow_matching_loss,
}
UNLABELLED = 0.1  # of the images: so that the network can do without labels


def _check_fit(config: TrainConfig, processes: int) -> None:
    """Refuse settings that do not go together.

    Raises:
        DiffcodecError: so.
    """
    shares = processes * config.accumulate
    if config.batch % shares:
        raise DiffcodecError(
            f"a batch of {config.batch} cannot be divided into {config.accumulate} passes of "
            f"{processes} processes; give --batch a multiple of {shares}"
        )
    multiple = config.network.multiple
    if config.crop % multiple:
        raise DiffcodecError(
            f"crops of {config.crop} pixels: expected a multiple of {multiple} for this "
            f"network; give --crop {max(1, config.crop // multiple) * multiple}"
        )
    if config.network.phases and processes > 1:  # which exchange one pass's gradients
        raise DiffcodecError("a network with phases in several processes: expected one")
    if config.network.phases and config.loss != "vlb":
        raise DiffcodecError(
            f"the loss {config.loss!r} of a network with phases: expected 'vlb'; leave out one"
        )


class TrainingSteps:
    """A network in training: its steps, which need no folder.

    Every random draw follows from the seed and the step, so a run that was stopped and resumed
    equals an uninterrupted one up to floating point, and so does one in several processes or with
    the batch in several passes. (The draws of a GPU are others than a CPU's.)

    In the processes of :func:`joined_processes`, each has one of these.

    Raises:
        DiffcodecError: if there are no usable images, the labels do not fit them, the batch cannot
            be divided, crops do not fit the network, or the device is not there.
    """

    def __init__(
        self,
        config: TrainConfig,
        init: dict[str, Tensor] | None = None,
        quiet: bool = False,
    ):
        self.config, self.quiet = config, quiet
        self.rank, self.processes = (
            (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        )
        _check_fit(config, self.processes)
        self.device = find_device(config.device)
        torch.manual_seed(config.seed)
        self.model = ExpertDenoisers(config.network)
        if init is not None:  # of a model that may have no classes and other experts
            begin = with_experts(init, len(config.network.experts))
            self.model.load_state_dict(self.model.state_dict() | begin)
        if config.variance != "learned":
            for expert in self.model.experts:
                expert.reset_variance()
        self.model.to(self.device)
        self.ema = {k: p.detach().clone() for k, p in self.model.named_parameters()}
        self.optimizers = make_optimizers(self.model, config, self.device.type == "cuda")
        self.step, self.seconds = 0, 0.0
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
        try:
            self.held_out = CropSampler(
                held_out, config.crop, "none", labels=labels[1], quiet=quiet
            )
        except DiffcodecError as e:
            raise DiffcodecError(
                f"no held-out image, every twentieth in the order of paths, is usable: {e}"
            ) from e
        self.crops: CropSampler | DeviceCrops = self.train_data
        if not self.is_waited_for:
            self.crops = DeviceCrops(self.train_data, self.device)

    @property
    def is_waited_for(self) -> bool:
        """Whether the loss of every step is seen at once, as on a CPU, or with the log's lines."""
        return self.device.type == "cpu"

    def compile(self, **options: str) -> None:
        """Have torch compile the network when it is first called.

        On a GPU each shape by itself, since known sizes make it faster, if there are few: not where
        experts share a batch.
        """
        network = self.config.network
        shares = len(network.experts) > 1 and network.tellers != 3
        if self.is_waited_for or shares:
            self.model.compile(**options)
        else:
            self.model.compile(dynamic=False, **options)

    @cached_property
    def forward(self) -> nn.Module:
        """The network as it is trained: compiled if so configured, its gradients exchanged."""
        if self.config.compile:
            self.say("compiling the network, which may take some minutes")
            self.compile()
        if self.processes == 1:
            return self.model
        # a process's images may all be at noise levels of one of several experts
        several = len(self.config.network.experts) > 1
        return DistributedDataParallel(self.model, find_unused_parameters=several)

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

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse what :meth:`load_state` would take and training would end at.

        Raises:
            ValueError: so.
            TypeError, KeyError, AttributeError: if it is no state.
        """
        averages, step, seconds = state["ema"], state["step"], state["seconds"]
        kinds = {name: (t.shape, t.dtype) for name, t in averages.items()}
        if kinds != {name: (t.shape, t.dtype) for name, t in self.ema.items()}:
            raise ValueError("the averages are not of these weights")
        if not isinstance(step, int) or step < 0 or not 0 <= seconds < math.inf:
            raise ValueError(f"step {step} after {seconds} seconds")

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state`."""
        self.model.load_state_dict(state["model"])
        self.ema = {name: average.to(self.device) for name, average in state["ema"].items()}
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            load_optimizer(optimizer, saved)
        self.step, self.seconds = state["step"], state["seconds"]

    def averaged_network(self) -> ExpertDenoisers:
        """The network with the exponential moving average of the weights, on the CPU."""
        network = ExpertDenoisers(self.config.network)
        network.load_state_dict(self.ema)
        return network

    def learning_rate(self) -> float:
        """Linear warm-up, then cosine decay to a hundredth of the peak."""
        c = self.config
        warm = min(1.0, (self.step + 1) / max(1, c.warmup))
        progress = min(1.0, self.step / c.steps)
        return c.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

    def train_step(self) -> float | Tensor:
        """One update; returns the loss, in bits per dimension if it is the code length.

        On a GPU that is a tensor there, which is not waited for; not a number where its gradient
        is not finite.

        Raises:
            DiffcodecError: on a CPU, if the loss or its gradient is not finite; the weights stay as
                they are.
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
        if self.is_waited_for and not (total.isfinite() and norm.isfinite()):
            raise self.not_finite(self.step + 1)
        with uninterrupted():  # so that what a signal ends can be saved
            self.update()
        if self.is_waited_for:
            return total.item()
        return total.masked_fill(~norm.isfinite(), torch.nan)

    def numbers(self, losses: Sequence[float | Tensor]) -> list[float]:
        """The losses of the latest steps, waited for.

        Raises:
            DiffcodecError: if one is not finite.
        """
        waiting = [loss for loss in losses if isinstance(loss, Tensor)]
        arrived = iter(torch.stack(waiting).cpu().tolist() if waiting else [])
        found = [next(arrived) if isinstance(loss, Tensor) else loss for loss in losses]
        for step, loss in enumerate(found, self.step + 1 - len(found)):
            if not math.isfinite(loss):
                raise self.not_finite(step)
        return found

    def not_finite(self, step: int) -> DiffcodecError:
        """What ends a run whose numbers grow beyond all bounds."""
        return DiffcodecError(
            f"the loss is not finite at step {step}; lower --learning-rate and "
            "resume from the last checkpoint"
        )

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
        rgb = self.crops.batch(c.batch, c.seed, self.step, share.rows)
        x = domain_batch(rgb, c.network.color)
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
        return to_device(labels.masked_fill(dropped, -1)[share.rows], self.device)

    def say(self, text: str) -> None:
        """Tell the user what goes on, once for all processes."""
        if self.rank == 0 and not self.quiet:
            say(text)


def is_of_network(state: Mapping[str, Any], network: NetworkConfig) -> bool:
    """Whether a state is of these experts and phases; self-ensemble is no part of the weights."""
    saved = read_network(state["network"])
    return (saved.experts, saved.phases) == (network.experts, network.phases)


def hash_seed(seed: int, step: int) -> int:
    """A 63-bit seed for one step of one run."""
    return (seed * 1_000_003 + step * 7_919 + 1) % (1 << 63)
