"""The settings of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from diffcodec.errors import UnsupportedError
from diffcodec.networks.config import PREFIX, NetworkConfig
from diffcodec.networks.experts import join_experts, split_experts
from diffcodec.training.data import read_labels

ENSEMBLE_OF_AUGMENTATION = {"all": "rotation", "mirror": "mirror", "none": "none"}
INIT_WARMUP = 100  # default of a run from a model's weights


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a run was told; saved in its folder."""

    data: str
    labels: str | None = None  # file of the images' classes
    steps: int = 20_000
    batch: int = 32  # of all processes together
    accumulate: int = 1  # passes that a process makes of its part of the batch
    crop: int = 64
    augment: str = "all"  # of data.AUGMENTATIONS
    learning_rate: float = 2e-3
    optimizer: str = "muon"  # of the hidden convolutions: "muon" or "adamw"
    weight_decay: float = 0.01
    clip: float = 1.0
    warmup: int = 200
    ema: float = 0.999
    loss: str = "vlb"
    variance: str = "learned"  # of variances.VARIANCES
    seed: int = 0
    precision: str = "bfloat16"  # or "float32"
    compile: bool = True
    device: str = "auto"  # of DEVICES
    tensorboard: bool = False
    network: NetworkConfig = field(default_factory=NetworkConfig)


def with_classes(network: NetworkConfig, labels: Path) -> NetworkConfig:
    """The network, told one of as many classes as the labels have, if it knows none yet.

    Raises:
        DiffcodecError: if the file has no labels, or the network codes in phases.
    """
    if network.phases:
        raise UnsupportedError(
            "a network in phases knows no classes; train without phases, from no model that has "
            "them, or without labels"
        )
    if network.classes:
        return network
    classes = int(read_labels(labels).max()) + 1
    shapes = ((up_to, replace(shape, classes=classes)) for up_to, shape in network.experts)
    return replace(network, experts=tuple(shapes))


def with_ensemble(network: NetworkConfig, augment: str) -> NetworkConfig:
    """The network with the self-ensemble of what it is shown; in phases it is not coded by."""
    up_to = 0.0 if network.phases else network.self_ensemble_up_to
    kind = ENSEMBLE_OF_AUGMENTATION[augment]
    return replace(network, self_ensemble=kind, self_ensemble_up_to=up_to)


def start_of(expert: int, wanted: int, given: int) -> int:
    """Which of a model's experts one of so many wanted ones starts from.

    Counted from the last one: what there are more of, at the lowest noise levels, start alike.
    """
    return max(0, given - wanted + expert)


def with_experts(weights: Mapping[str, Tensor], wanted: int) -> dict[str, Tensor]:
    """A model's weights for a network of so many experts."""
    given = len({name.split(".")[1] for name in weights if name.startswith(PREFIX)})
    parts = split_experts(weights, given)
    phases = {name: tensor for name, tensor in weights.items() if not name.startswith(PREFIX)}
    return join_experts([parts[start_of(i, wanted, given)] for i in range(wanted)]) | phases
