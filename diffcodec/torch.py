"""Archives as data sets of PyTorch: ``ArchiveDataset``, and a sampler that spares decoding."""

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from diffcodec.archive.archive import open_archive
from diffcodec.errors import UnsupportedError
from diffcodec.values import integer


def to_tensor(image: Image.Image) -> torch.Tensor:
    """The samples of an image, [channels, height, width]."""
    samples = np.array(image)
    if samples.ndim == 2:
        samples = samples[:, :, None]
    return torch.from_numpy(samples).permute(2, 0, 1).contiguous()


class ArchiveDataset(Dataset[Any]):
    """The images of an archive, map style; workers by fork or spawn.

    Args:
        path: of the archive, or a URL.
        transform: of an image; by default :func:`to_tensor`.
        labels: whether items are pairs of an image and its label.
        options: of :func:`diffcodec.open_archive`.

    A batch is decoded together, each of its groups once: see :class:`GroupSampler`.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        transform: Callable[[Image.Image], Any] = to_tensor,
        labels: bool = False,
        **options: Any,
    ):
        self.archive = open_archive(path, **options)
        self.transform, self.labels = transform, labels

    def __len__(self) -> int:
        return len(self.archive)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        items = list(map(self.transform, self.archive.images(indices)))
        if not self.labels:
            return items
        return [(item, self.archive.label(i)) for item, i in zip(items, indices, strict=True)]


class GroupSampler(Sampler[int]):
    """All images in random order, but of a few groups at a time: each is decoded once.

    Args:
        dataset: of an archive.
        groups: how many are mixed.
        generator: of the order.

    Raises:
        UnsupportedError: there are none to mix.
        TypeError: it is another data set, or the number no integer.
    """

    def __init__(
        self, dataset: ArchiveDataset, groups: int = 8, generator: torch.Generator | None = None
    ):
        if not isinstance(dataset, ArchiveDataset):
            raise TypeError(f"dataset: found {type(dataset).__name__}, expected an ArchiveDataset")
        if integer("groups", groups) < 1:
            raise UnsupportedError(f"{groups} groups: expected 1 or more")
        members: dict[Any, list[int]] = {}
        for number, entry in enumerate(dataset.archive.entries()):
            members.setdefault(entry.group, []).append(number)
        self._members, self._groups, self._generator = list(members.values()), groups, generator

    def __len__(self) -> int:
        return sum(map(len, self._members))

    def __iter__(self) -> Iterator[int]:
        order = self._shuffled(self._members)
        for start in range(0, len(order), self._groups):
            some = [number for group in order[start : start + self._groups] for number in group]
            yield from self._shuffled(some)

    def _shuffled(self, items: list[Any]) -> list[Any]:
        return [items[i] for i in torch.randperm(len(items), generator=self._generator).tolist()]
