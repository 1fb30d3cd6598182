"""What coding takes without its network: the network's answers are kept, and given again.

    python -m bench replayed IMAGE [--effort fast] [--runs 3]

The coder, its tables, images and files are all that is left: what would remain if the network took
no time, as on a fast GPU. Each run is checked: the same file, the same image.
"""

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch
from torch import Tensor

from bench import POSITIVE
from bench.inputs import open_rgb
from bench.measuring import check_equal, timed
from diffcodec import decode, encode, load_model
from diffcodec.models.model import Model

Key = tuple[Any, ...]


class Replay:
    """The answers of a model in phases, by what was asked; what is shared is known by a number."""

    def __init__(self, model: Model):
        self._network = model.network
        self._begin: Any = model.network.begin_phases  # type: ignore[attr-defined]
        self._parameters: Any = model.network.phase_parameters  # type: ignore[attr-defined]
        self._shared: list[Tensor] = []
        self._answers: dict[Key, Any] = {}

    def begin_phases(self, which: int, z: Tensor, sigma: float) -> tuple[Tensor, Tensor, Any]:
        """See ``PhasedNetwork``; in the place of what is shared, numbers of it in its shape."""

        def answer() -> tuple[Tensor, Tensor, list[Tensor]]:
            mean, v, shared = self._begin(which, z, sigma)
            numbers = range(len(self._shared), len(self._shared) + len(shared))
            self._shared += shared
            shapes = ((len(each), 1, *each.shape[2:]) for each in shared)
            return mean, v, [torch.full(*each) for each in zip(shapes, numbers, strict=True)]

        mean, v, shared = self._once((which, sigma, z.shape, z.sum().item()), answer)
        return mean.clone(), v.clone(), shared

    def phase_parameters(
        self, which: int, sigma: float, number: int, shared: Tensor, told: Tensor
    ) -> Tensor:
        """See ``PhasedNetwork``."""
        of = [int(each[0, 0, 0]) for each in shared]

        def answer() -> Tensor:
            whole = torch.cat([self._shared[each] for each in of])
            made: Tensor = self._parameters(which, sigma, number, whole, told)
            return made

        parameters: Tensor = self._once((which, sigma, number, *of), answer)
        return parameters

    def _once(self, key: Key, answer: Callable[[], Any]) -> Any:
        if key not in self._answers:
            self._answers[key] = answer()
        return self._answers[key]

    def in_place(self) -> AbstractContextManager[Any]:
        """A context in which the network is this."""
        own = {name: getattr(self, name) for name in ("begin_phases", "phase_parameters")}
        context: AbstractContextManager[Any] = mock.patch.multiple(self._network, **own)
        return context


@click.command()
@click.argument("path", metavar="IMAGE", type=click.Path(exists=True, path_type=Path))
@click.option("--model", default="photo", show_default=True)
@click.option("--effort", default="fast", show_default=True)
@click.option("--runs", type=POSITIVE, default=3, show_default=True)
def main(path: Path, model: str, effort: str, runs: int) -> None:
    """Print the medians of several runs."""
    image, used = open_rgb(path), load_model(model)
    with Replay(used).in_place():
        expected = encode(image, used, effort)
        decode(expected, model=used)
        measured = []
        for _ in range(runs):
            data, *encoding = timed(lambda: encode(image, used, effort))
            shown, *decoding = timed(lambda: decode(expected, model=used))
            if data != expected:
                raise click.ClickException("a run gave another file than the first")
            check_equal(image, shown)
            measured.append([*encoding, *decoding])
    click.echo(f"{path.name}, {effort}, {torch.get_num_threads()} threads, medians of {runs} runs")
    medians = map(statistics.median, zip(*measured, strict=True))
    for way, (wall, processor) in zip(
        ("encoding", "decoding"), zip(*[iter(medians)] * 2, strict=True), strict=True
    ):
        click.echo(f"{way}: {wall:.2f} s, {processor:.2f} s of the processor")


if __name__ == "__main__":
    main()
