"""Images that show the range of activations."""

from pathlib import Path

from torch import Tensor

from diffcodec.training.data import CropSampler, domain_batch, find_images, split_held_out

CALIBRATION_CROPS = 64


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
