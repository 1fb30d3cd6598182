"""The log of a run: lines of JSON in its folder, TensorBoard's file, and what is seen meanwhile."""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from diffcodec.errors import DiffcodecError
from diffcodec.training.folder import LOG

BOARD = "tensorboard"

Record = dict[str, Any]  # a line of the log


def say(text: str) -> None:
    """Write to standard error, above a progress bar. Where that cannot be, it is no failure."""
    with suppress(OSError):
        tqdm.write(text, sys.stderr)
        sys.stderr.flush()


class Log:
    """The log of a run that goes on from a step to the last of ``steps``.

    Where standard error is a terminal there is a progress bar; lines are shown where there is none,
    or where standard output is none.

    Raises:
        DiffcodecError: if TensorBoard is asked for and not installed.
    """

    def __init__(
        self,
        folder: Path,
        step: int = 0,
        steps: int | None = None,
        *,
        tensorboard: bool = False,
        quiet: bool = False,
    ):
        self.path = folder / LOG
        self.board = _open_board(folder / BOARD, step) if tensorboard else None
        self.shows, self.held_out = not quiet and sys.stdout is not None, ""
        self.bar = tqdm(
            total=steps,
            initial=step,
            unit="step",
            smoothing=0.05,  # the first ones compile
            disable=True if quiet else None,
            dynamic_ncols=True,
        )

    def advance(self, loss: float | None) -> None:
        """Let the bar go on by a step, whose loss may not be known yet."""
        if loss is not None:
            self.bar.set_postfix_str(f"loss {loss:.3f}{self.held_out}", refresh=False)
        self.bar.update()

    def set_steps(self, steps: int) -> None:
        """Tell the bar how many steps it will be."""
        self.bar.total = steps

    def write(self, record: Record) -> None:
        """Append a line and show it."""
        line = json.dumps(record)
        if "held_out_bpd" in record:
            self.held_out = f", held out {record['held_out_bpd']:.3f} bpd"
        with self.path.open("a+b") as f:
            f.write(b"\n" * _is_torn(f) + line.encode() + b"\n")
        if self.shows:
            self.show(line)
        if self.board is not None:
            steps = enumerate(record.get("step_bpd", ()), start=3)
            for name, value in (record | {f"step_bpd/{t}": bpd for t, bpd in steps}).items():
                if name not in {"step", "step_bpd"}:
                    self.board.add_scalar(name, value, record["step"])
            self.board.flush()

    def show(self, line: str) -> None:
        """Write a line where it is to be seen; where that fails, the run goes on without."""
        try:
            if self.bar.disable or not sys.stdout.isatty():
                print(line, flush=True)
        except (OSError, ValueError) as e:  # full, or closed
            self.shows = False
            reason = getattr(e, "strerror", None) or e
            say(f"standard output: {reason}; the lines of the log are in {self.path}")

    def close(self) -> None:
        """Let go of the bar and of TensorBoard's file."""
        with suppress(OSError):
            self.bar.close()
        if self.board is not None:
            self.board.close()


def _open_board(folder: Path, step: int) -> Any:
    """TensorBoard's writer; what a run that was stopped wrote after its checkpoint is dropped."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        raise DiffcodecError(
            "TensorBoard is not installed; run pip install 'diffcodec[tensorboard]', or leave out "
            "--tensorboard"
        ) from e
    return SummaryWriter(str(folder), purge_step=step + 1)


def _is_torn(file: BinaryIO) -> bool:
    """Whether a file ends amid a line."""
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def read_log(folder: Path) -> list[Record]:
    """The lines of a run's log by step; of what a resumed run repeats the later figures.

    What is no line of it, as one that a loss of power has torn, is passed over.
    """
    records: dict[int, Record] = {}
    for line in (folder / LOG).read_bytes().splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records[record["step"]] = records.get(record["step"], {}) | record
    return [records[step] for step in sorted(records)]
