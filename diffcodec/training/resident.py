"""Training images as bytes in a GPU's memory, and crops that are cut there."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from diffcodec.networks.devices import free_bytes, to_device
from diffcodec.training.crops import Crop, CropSampler

MEMORY_SHARE = 0.25  # of what is free there, that images may take


class DeviceCrops:
    """The crops of a sampler on a device: the same as on the CPU, mirrored and turned there.

    Images that are not all in memory, or are too many for the device's, stay on the CPU, where
    crops are then cut.
    """

    def __init__(self, sampler: CropSampler, device: torch.device):
        self.sampler, self.device = sampler, device
        images = [image for image in sampler.images if image is not None]
        sizes = [image.size for image in images]
        self._images: Tensor | None = None
        if len(images) < len(sampler.images) or sum(sizes) > MEMORY_SHARE * free_bytes(device):
            return
        self._images = to_device(np.concatenate([image.reshape(-1) for image in images]), device)
        self._starts = np.cumsum([0, *sizes[:-1]])
        side = torch.arange(sampler.crop, device=device)
        self._rows, self._columns = side[:, None], side
        self._planes = torch.arange(3, device=device)[:, None, None]

    @property
    def are_resident(self) -> bool:
        """Whether the images are on the device."""
        return self._images is not None

    def batch(
        self, size: int, seed: int, step: int, rows: slice = slice(None)
    ) -> UInt8[Tensor, "crops 3 side side"]:
        """See :meth:`CropSampler.batch`."""
        crops = self.sampler.choose(size, seed, step)[rows]
        if self._images is None:
            return to_device(np.stack([self.sampler.cut(crop) for crop in crops]), self.device)
        start, plane, row, column = to_device(self._places(crops), self.device)[..., None, None]
        places = start + plane * self._planes + row * self._rows + column * self._columns
        return self._images[places]

    def _places(self, crops: Sequence[Crop]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """The place of each crop's first byte, and the ways to the next plane, row and column.

        [4, crops, 1].
        """
        found = []
        for crop in crops:
            height, width = self.sampler.sizes[crop.image]
            start = self._starts[crop.image] + crop.top * width + crop.left
            row, column = width, 1
            if crop.mirror:
                start, column = start + self.sampler.crop - 1, -1
            if crop.transpose:
                row, column = column, row
            found.append((start, height * width, row, column))
        return np.array(found, np.int64).T[:, :, None]
