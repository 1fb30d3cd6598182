"""Scalars for TensorBoard."""

from pathlib import Path
from typing import Any

from diffcodec.errors import DiffcodecError


def open_board(folder: Path, step: int) -> Any:
    """TensorBoard's writer; what a run that was stopped wrote after its checkpoint is dropped.

    Raises:
        DiffcodecError: if it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        raise DiffcodecError(
            "TensorBoard is not installed; run pip install 'diffcodec[tensorboard]', or leave out "
            "--tensorboard"
        ) from e
    return SummaryWriter(str(folder), purge_step=step + 1)


def write_scalars(board: Any, record: dict[str, Any]) -> None:
    """A line of the log for TensorBoard; the steps of the bound by their timestep."""
    steps = {f"step_bpd/{t}": bpd for t, bpd in enumerate(record.get("step_bpd", ()), start=3)}
    for name, value in (record | steps).items():
        if name not in {"step", "step_bpd"}:
            board.add_scalar(name, value, record["step"])
    board.flush()
