"""Runs of training in a folder."""

import contextlib
import copy
import io
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from diffcodec.diffusion.plan import plans_from
from diffcodec.errors import DiffcodecError
from diffcodec.models.export import serialise_float_model, serialise_model
from diffcodec.system.files import write_file
from diffcodec.training.budget import MARGIN, MARGIN_SECONDS, Budget, expected_seconds
from diffcodec.training.config import TrainConfig
from diffcodec.training.crops import calibration_crops
from diffcodec.training.folder import CHECKPOINT, CONFIG, CURVE, FLOAT_MODEL, MODEL, SPLIT
from diffcodec.training.log import Log, Record, read_log
from diffcodec.training.pictures import draw_curve, draw_split
from diffcodec.training.steps import TrainingSteps, is_of_network
from diffcodec.training.validation import validate

UNITS = {"vlb": "bpd", "simple": "mse", "hybrid": "loss", "v": "mse", "flow": "mse"}  # in the log
UNTIMED_STEPS, TIMED_STEPS = 5, (3, 20)  # the first ones compile; how many for a time budget
FIRST_VALIDATION_SECONDS = 300
LOG_EVERY = 50  # steps
REHEARSED_SHARE = 0.25  # of a validation


class Trainer(TrainingSteps):
    """A run in a folder: checkpoint, log, curve, and a usable model of the averaged weights.

    See :class:`.TrainingSteps`. Of several processes the first alone writes.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        init: dict[str, Tensor] | None = None,
        quiet: bool = False,
    ):
        self.begun = time.monotonic()
        super().__init__(config, init, quiet)
        self.out, self.plans = out, plans_from(config.network.quantiser)
        self.budget: Budget | None = None
        self.is_timed = False  # and the user told how long it will take

    def resume(self) -> None:
        """Continue from the folder's checkpoint, of whatever device.

        Raises:
            DiffcodecError: if it is damaged, or of another network.
        """
        try:
            path = self.out / CHECKPOINT
            state = torch.load(path, weights_only=True, map_location="cpu")
            is_same = is_of_network(state, self.config.network)
            if is_same:
                self.check_state(state)
                self.load_state(state)
        except (OSError, MemoryError):
            raise
        except Exception as e:  # torch raises almost anything on damaged files
            raise DiffcodecError(f"its {CHECKPOINT} is damaged; start a new run") from e
        if not is_same:
            raise DiffcodecError(
                f"its {CHECKPOINT} is of another network than the one to train; give the options "
                "that the run was started with, or none"
            )

    def save(self) -> None:
        """Write the checkpoint and the model so far, each atomically.

        Raises:
            DiffcodecError: if an average of the weights is not finite; the last checkpoint stays.
        """
        if not torch.stack(torch._foreach_norm(list(self.ema.values()))).isfinite().all():
            raise self.not_finite(self.step)
        self.write_config()
        buffer = io.BytesIO()
        torch.save(self.state(), buffer)
        write_file(self.out / CHECKPOINT, buffer.getvalue(), force=True)
        self.write_model({}, final=False)

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
        if c.network.has_integers:
            data = serialise_model(network.to(self.device), calibration, self.plans, about)
        write_file(self.out / MODEL, data, force=True)

    def write_config(self) -> None:
        """Write what the run was told."""
        c = self.config
        text = json.dumps(asdict(c) | {"network": c.network.to_dict()}, indent=2) + "\n"
        write_file(self.out / CONFIG, text.encode(), force=True)

    def draw_pictures(self, validation: Record) -> None:
        """Draw the log, and the bound by noise level, if matplotlib is there."""
        levels, v = self.plans["default"].levels, validation
        parts = [v["remainder_bpd"], v["first_jump_bpd"], *v["step_bpd"], v["prior_bpd"]]
        with contextlib.suppress(ImportError):
            draw_curve(read_log(self.out), len(levels), self.out / CURVE)
            draw_split(parts, levels, self.out / SPLIT)

    def validate(self) -> Record:
        """The averaged weights' bound on held-out crops; see :func:`.validation.validate`."""
        network = self.averaged_network().to(self.device)
        return validate(network, self.held_out, self.plans["default"], self.config)

    def say_length(self, seconds: float) -> None:
        """Tell how long the rest takes if a step takes so long."""
        left = self.config.steps - self.step
        self.say(f"{left:,} steps, about {_duration(left * seconds)}")
        self.is_timed = True

    def plan_steps(self, minutes: float) -> None:
        """Set the number of steps to what so many minutes of training hold, on this machine now.

        Neither compiling nor validation count.
        """
        seconds = self.time_steps(minutes)
        self.config = replace(self.config, steps=max(1, round(60 * minutes / seconds)))
        self.say_length(seconds)

    def finish_within(self, minutes: float) -> None:
        """Have the whole run, from when this object was made, take so many minutes.

        Compiling, validations and the quantised model count; what follows the last step is
        rehearsed. How many steps there is time for is told again and again.
        """
        seconds = self.time_steps(minutes)
        self.say("rehearsing what follows the last step")
        begin = time.monotonic()
        network = self.averaged_network().to(self.device)
        validate(network, self.held_out, self.plans["default"], self.config, REHEARSED_SHARE)
        validation = (time.monotonic() - begin) / REHEARSED_SHARE
        calibration = calibration_crops(self.train_data, self.config.network.color)

        def quantise(crops: int) -> None:
            if not self.config.network.has_integers:
                return
            serialise_model(network, calibration[:crops], self.plans, {})

        after = validation + expected_seconds(quantise, len(calibration))
        end = self.begun + 60 * minutes - (1 + MARGIN) * after - MARGIN_SECONDS
        budget = Budget(end, seconds, validation)
        steps = torch.tensor(max(1, budget.steps_left()), device=self.device)
        if self.processes > 1:  # which must agree
            dist.broadcast(steps, 0)
        else:
            self.budget = budget
        self.config = replace(self.config, steps=self.step + int(steps.item()))
        self.say_length(seconds)

    def time_steps(self, minutes: float) -> float:
        """Seconds of a step, on this machine now.

        A few are timed after some that compile, in a tenth of these minutes if three can be, and
        undone.
        """
        before = copy.deepcopy(self.state())
        for _ in range(UNTIMED_STEPS):
            self.train_step()
        self.say("timing a few steps")
        least, most = TIMED_STEPS
        count = round(60 * minutes / 10 / self.step_seconds(1))
        seconds = self.step_seconds(min(max(count, least), most))
        self.load_state(before)
        return seconds

    def step_seconds(self, count: int) -> float:
        """The median time of so many steps, the same in all processes."""
        times = []
        for _ in range(count):
            begin = time.monotonic()
            loss = self.train_step()
            if isinstance(loss, Tensor):
                loss.item()  # waits for the device
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
        if self.step:  # else it comes with the first checkpoint
            self.write_config()
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
        losses: list[float] = []  # since the last line
        waiting: list[float | Tensor] = []  # for a device, after those
        first, timed, waited = self.step, self.seconds, self.seconds
        saved, is_validated = time.monotonic(), False
        record: Record = {"step": self.step, "seconds": round(self.seconds, 1)}
        while self.step < self.config.steps:
            begin = time.monotonic()
            waiting.append(self.train_step())
            if waits := self.waits_at(self.step - first, validate_every):
                losses += self.numbers(waiting)
            now = time.monotonic()
            self.seconds += now - begin
            log.advance(sum(losses) / len(losses) if waits else None)
            if not waits:
                continue
            if not self.is_timed and self.step == first + UNTIMED_STEPS + 1:
                self.say_length(now - begin)
            self.keep_to_budget(len(waiting), self.seconds - waited, log)
            waiting, waited = [], self.seconds
            last = self.step >= self.config.steps
            if last or now - saved > save_every_seconds:
                self.save()
                saved = now
            is_due = not is_validated and self.seconds > FIRST_VALIDATION_SECONDS
            validates = not last and (self.step % validate_every == 0 or is_due)
            if validates and self.budget is not None:
                validates = self.budget.has_time_to_validate()
            if self.step % LOG_EVERY and not (last or validates):
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

    def waits_at(self, steps: int, validate_every: int) -> bool:
        """Whether the losses are looked at after so many steps of this process."""
        is_marked = any(self.step % every == 0 for every in (LOG_EVERY, validate_every))
        is_timed = 0 <= steps - UNTIMED_STEPS <= 1
        return self.is_waited_for or is_marked or is_timed or self.step >= self.config.steps

    def keep_to_budget(self, steps: int, seconds: float, log: Log) -> None:
        """Set the number of steps anew by what the latest took, if all is to end in time."""
        if self.budget is not None:
            self.budget.note(steps, seconds)
            self.config = replace(self.config, steps=self.step + self.budget.steps_left())
            log.set_steps(self.config.steps)

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
    """The duration in words, for the eye."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.0f} seconds"
