"""The log of a run: lines of JSON in its folder, shown as they come, and TensorBoard's file."""

import json
from pathlib import Path
from typing import Any

from diffcodec.errors import DiffcodecError

LOG, BOARD = "log.jsonl", "tensorboard"

Record = dict[str, Any]  # a line of the log


class Log:
    """The log of a run that goes on from a step.

    Raises:
        DiffcodecError: if TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, step: int = 0, tensorboard: bool = False):
        self.path = folder / LOG
        self.board = _open_board(folder / BOARD, step) if tensorboard else None

    def write(self, record: Record) -> None:
        """Append a line and show it."""
        line = json.dumps(record)
        print(line, flush=True)
        with self.path.open("a") as f:
            f.write(line + "\n")
        if self.board is not None:
            steps = enumerate(record.get("step_bpd", ()), start=3)
            for name, value in (record | {f"step_bpd/{t}": bpd for t, bpd in steps}).items():
                if name not in {"step", "step_bpd"}:
                    self.board.add_scalar(name, value, record["step"])
            self.board.flush()

    def close(self) -> None:
        """Let go of TensorBoard's file."""
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


def read_log(folder: Path) -> list[Record]:
    """The lines of a run's log by step; of those that a resumed run repeats the later ones."""
    lines = map(json.loads, (folder / LOG).read_text().splitlines())
    records = {record["step"]: record for record in lines}
    return [records[step] for step in sorted(records)]
