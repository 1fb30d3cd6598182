"""A model at work: the posterior of x that the chain asks for."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from diffcodec.container.parts import LOSSY_PLAN
from diffcodec.diffusion.color import DOMAINS
from diffcodec.diffusion.plan import Plan, phased_variable
from diffcodec.diffusion.quantiser import first_sigma
from diffcodec.errors import DiffcodecError, ModelMismatchError, UnsupportedError
from diffcodec.models.agreement import check_agreement, check_products
from diffcodec.models.file import (
    ARITHMETICS,
    DEFAULT_MODEL,
    ID_BYTES,
    MALFORMED,
    MODEL_FOLDER,
    ModelInfo,
    file_stamp,
    model_path,
    plans_to_dict,
    read_model_info,
)
from diffcodec.models.layout import read_tensors
from diffcodec.networks.config import NetworkConfig
from diffcodec.networks.devices import CPU, Arriving, describe_device, find_device, to_device
from diffcodec.networks.experts import ExpertDenoisers, float_network
from diffcodec.networks.integer import IntegerNetwork
from diffcodec.networks.protocol import (
    ClassNetwork,
    PhasedNetwork,
    PosteriorNetwork,
    check_network,
)
from diffcodec.networks.quantize import float_weights
from diffcodec.system.memory import HEAP

LARGEST = torch.finfo(torch.float32).max  # of weights: their products fit into float64
INVALID = (SafetensorError, *MALFORMED)  # what tensors that are none of a model raise, too


Answered = tuple[NDArray[np.float64], NDArray[np.float64], list[Tensor]]


class Model:
    """A network with its plans: what encodes and decodes.

    Any :class:`~diffcodec.networks.protocol.PosteriorNetwork` makes one. Its files name it by
    ``info.id`` and decode with an equal one only; unless the network is exact, they are marked as
    float.
    """

    def __init__(
        self,
        network: PosteriorNetwork,
        plans: Mapping[str, Plan],
        name: str = "unnamed",
        *,
        file: ModelInfo | None = None,
    ):
        """Make one.

        Args:
            network: asked for the posterior of x.
            plans: by name: "fast", "default", "best", and "lossy" of some.
            name: to call it by.
            file: that both come from, if they come from one.

        Raises:
            ModelMismatchError: if the network does not answer at a noise level of the plans.
            TypeError: if the network lacks a member of one, or these are no plans.
            ValueError: if its colour domain or multiple is none.
        """
        check_network(network)
        if not isinstance(plans, Mapping) or not all(isinstance(p, Plan) for p in plans.values()):
            raise TypeError(f"plans: found {plans!r:.100}, expected a mapping of names to Plan")
        self.network, self.plans, self.name = network, dict(plans), file.name if file else name
        self.arithmetic = "integer" if network.is_exact else "float"
        self.color = network.color
        self.domain = DOMAINS[self.color]
        self._file = file
        self.loaded_from: tuple[str, str, str] | None = None  # the arguments of load_model
        known = network.levels
        asked = {sigma for plan in self.plans.values() for sigma in plan.levels}
        if known is not None and not asked <= set(known):
            raise ModelMismatchError(
                f"the plans ask for the noise levels {sorted(asked - set(known))}, for which "
                f"model {self.name} has no tables; give plans of its own levels"
            )

    @cached_property
    def info(self) -> ModelInfo:
        """What its file says, or would say of a network that comes from none."""
        if self._file:
            return self._file
        sha = hashlib.sha256(self.network.identity)
        sha.update(json.dumps([self.color, plans_to_dict(self.plans)]).encode())
        model_id = sha.digest()[:ID_BYTES]
        return ModelInfo(self.name, model_id, None, self.plans, {}, self.arithmetic, {})

    def __repr__(self) -> str:
        """Name, identity, plans, arithmetic."""
        plans = ", ".join(f"{name} {len(plan.levels)}" for name, plan in self.plans.items())
        return f"<Model {self.name} {self.info.id.hex()}: {self.arithmetic}, timesteps {plans}>"

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        """Pickle a model of a file, for another process, as where to load it from."""
        if self.loaded_from is None:
            return super().__reduce_ex__(protocol)
        return _load_again, (*self.loaded_from, self.info.id)

    @property
    def module(self) -> ExpertDenoisers:
        """The float network as a module, for training, quantisation and the search for plans.

        Raises:
            ModelMismatchError: if there is none: it is an integer model, or a network of others.
        """
        module: ExpertDenoisers | None = getattr(self.network, "module", None)
        if module is None:
            raise ModelMismatchError(
                f"model {self.name} is loaded in {self.arithmetic} arithmetic, and this takes a "
                'float network to ask at any noise level; load it by load_model(..., "float")'
            )
        return module

    @property
    def classes(self) -> int:
        """How many classes of images it knows; 0 of most models."""
        return int(getattr(self.network, "classes", 0))

    def check_label(self, label: int) -> None:
        """Refuse the label of an image whose class it does not know.

        Raises:
            UnsupportedError: so.
        """
        if not self.classes:
            raise UnsupportedError(f"a class, but model {self.name} knows no classes; leave it out")
        if not 0 <= label < self.classes:
            raise UnsupportedError(
                f"class {label} for a model of {self.classes} classes; give one from 0 to "
                f"{self.classes - 1}"
            )

    @property
    def device(self) -> torch.device:
        """Where its network computes; networks of others, that do not say so, on the CPU."""
        device: torch.device = getattr(self.network, "device", CPU)
        return device

    @property
    def reflection(self) -> tuple[int, ...]:
        """The axes whose reversal its network knows images by; none of networks of others."""
        axes: tuple[int, ...] = getattr(self.network, "reflection", ())
        return axes

    @property
    def phased(self) -> bool:
        """Whether it codes in phases."""
        return bool(getattr(self.network, "phases", ()))

    def told_in_phases(self, plan: Plan, timestep: int) -> int | None:
        """Which variable of its phases that of a timestep is; None if it is not in phases."""
        quantiser = self._phased_network.quantiser if self.phased else 0
        return phased_variable(plan, quantiser, timestep) if self.phased else None

    def asked(self) -> list[tuple[float, int | None]]:
        """The noise levels at which its plans ask it, and what it then tells in phases."""
        pairs = {
            (sigma, self.told_in_phases(plan, below))
            for plan in self.plans.values()
            for below, sigma in enumerate(plan.levels)
        }
        return sorted(pairs, key=lambda pair: (pair[0], pair[1] or 0))

    @property
    def _phased_network(self) -> PhasedNetwork:
        assert self.phased
        return cast(PhasedNetwork, self.network)

    def begin_phases(
        self, which: int, z: NDArray[np.float64], sigma: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], list[Tensor]]:
        """Mean and variance as :meth:`posterior_x`, and what each phase makes of z.

        Args:
            which: variable is to be told, 0 for x, 1 for z_1, 2 for those above, 3 for all of a
                plan for lossy files.
            z: the one above it.
            sigma: its noise level.
        """
        return self.ask_begin_phases(which, z, sigma)()

    def ask_begin_phases(
        self, which: int, z: NDArray[np.float64], sigma: float
    ) -> Callable[[], Answered]:
        """The same, begun: a device goes on with it until what is returned is called."""
        network = self._phased_network
        return self._ask(z, lambda padded: network.begin_phases(which, padded, sigma))

    def phase_parameters(
        self, which: int, sigma: float, number: int, shared: Tensor, told: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """The parameters of the distributions of a phase; see ``PhasedNetwork``.

        Args:
            which: variable, as above.
            sigma: the noise level of the variable above.
            number: of the phase.
            shared: what it made of the variable above.
            told: [batch, planes, height, width], of any height and width.

        Returns:
            [batch, parameters, rows, columns], rows and columns those of ``shared``.
        """
        return self.ask_phase_parameters(which, sigma, number, shared, told)()

    def ask_phase_parameters(
        self, which: int, sigma: float, number: int, shared: Tensor, told: NDArray[np.float64]
    ) -> Callable[[], NDArray[np.float32]]:
        """The same, begun: see :meth:`ask_begin_phases`."""
        height, width = told.shape[2:]
        rows, columns = shared.shape[2:]
        padding = (0, 2 * columns - width, 0, 2 * rows - height)
        network = self._phased_network
        try:
            with torch.inference_mode():
                padded = to_device(told, self.device)
                if any(padding):
                    padded = F.pad(padded, padding)
                parameters = network.phase_parameters(which, sigma, number, shared, padded)
        except OverflowError:  # of a broken model; is_usable tells the caller
            parameters = torch.full((len(told), 1, rows, columns), torch.nan)
        HEAP.release_unused()
        arriving = Arriving([parameters])
        return lambda: arriving.arrays()[0]

    def posterior_x(
        self, z: NDArray[np.float64], sigma: float, labels: Sequence[int] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and variance of x given z_t, both [batch, 3, height, width].

        Any height and width: borders are padded by repetition to what the network needs.

        Args:
            z: [batch, 3, height, width], grey levels of the colour domain.
            sigma: one of the plans' noise levels.
            labels: class of each image, -1 for none, of a model of classes.

        Guarantee: the same numbers for an image alone or in a batch; of an integer model also on
        every machine.
        """
        return self.ask_posterior_x(z, sigma, labels)()[:2]

    def ask_posterior_x(
        self, z: NDArray[np.float64], sigma: float, labels: Sequence[int] | None = None
    ) -> Callable[[], Answered]:
        """The same, begun, with an empty list: see :meth:`ask_begin_phases`."""
        if labels is None:
            return self._ask(z, lambda padded: (*self.network.posterior_x(padded, sigma), []))
        network, told = cast(ClassNetwork, self.network), torch.tensor(labels)
        return self._ask(z, lambda padded: (*network.posterior_x(padded, sigma, told), []))

    def _ask(
        self,
        z: NDArray[np.float64],
        network: Callable[[Tensor], tuple[Tensor, Tensor, list[Tensor]]],
    ) -> Callable[[], Answered]:
        """What a network says to z, padded; the mean and the variance are cut.

        Not numbers, with an empty list, if the network's overflow; is_posterior tells the caller.
        """
        height, width = z.shape[2:]
        m = self.network.multiple
        padded = to_device(z, self.device)
        if width % m or height % m:
            padded = F.pad(padded, (0, -width % m, 0, -height % m), mode="replicate")
        try:
            with torch.inference_mode():
                mean, v, shared = network(padded)
        except OverflowError:
            mean, v, shared = *(torch.full_like(padded, torch.nan),) * 2, []
        HEAP.release_unused()
        arriving = Arriving([field[:, :, :height, :width] for field in (mean, v)])

        def answered() -> Answered:
            mean, v = arriving.arrays()
            return mean, v, shared

        return answered


def is_posterior(mean: NDArray[np.float64], variance: NDArray[np.float64]) -> bool:
    """Whether these can be a mean and a variance: not so if a network's numbers overflow."""
    return bool(
        np.isfinite(mean).all() and np.isfinite(variance).all() and np.greater(variance, 0).all()
    )


@lru_cache(maxsize=4)
def _load(path: Path, stamp: tuple[int, int], arithmetic: str, device: torch.device = CPU) -> Model:
    info, data = read_model_info(path)
    if info.arithmetic == "float" and arithmetic == "integer":
        raise ModelMismatchError(
            f"model {info.name} {info.id.hex()} is a float model, expected an integer one; give "
            "--arithmetic float"
            + (
                ", or make an integer model of it by diffcodec quantize"
                if info.network and info.network.has_integers
                else ""
            )
        )
    if info.calibrated is not None:
        from diffcodec.models.converted import build_calibrated

        try:
            return build_calibrated(info, path, device)
        except INVALID as e:
            raise ModelMismatchError(f"{path}: not the file of a calibrated model ({e})") from e
    try:
        tensors = load(data)
        model = build_model(info, tensors, arithmetic)
    except (*INVALID, ModelMismatchError) as e:
        raise ModelMismatchError(f"{path}: not a diffcodec model file ({e})") from e
    if device.type == "cpu":
        return model
    return _elsewhere(model, tensors, device)


def _elsewhere(model: Model, tensors: Mapping[str, Tensor], device: torch.device) -> Model:
    """The same on a device that has proven to give the same answers, if they are to be exact.

    Raises:
        UnsupportedError: if it does not.
        DiffcodecError: if it fails.
    """
    try:
        if model.network.is_exact:
            check_products(device)
        found = build_model(model.info, tensors, model.arithmetic, device)
        if model.network.is_exact:
            check_agreement(found, model)
    except (RuntimeError, ValueError) as e:  # the file is none of its causes: it works on the CPU
        name = describe_device(device)
        raise DiffcodecError(f"{name}: the model fails there ({e}); give the device cpu") from e
    return found


def build_model(
    info: ModelInfo, tensors: Mapping[str, Tensor], arithmetic: str, device: torch.device = CPU
) -> Model:
    """The model of a file's tensors, on a device; what they lack raises one of ``INVALID``."""
    config, levels = info.network, info.levels
    if config is None:
        raise ValueError("no shape of a network")
    if config.phases:
        _check_plans(config, info.plans)
    if not all(map(_is_number, tensors.values())):
        raise ValueError("a weight is not finite, or none of float32")
    tensors = read_tensors(tensors, config)
    network: PosteriorNetwork
    if arithmetic == "integer":
        with np.errstate(all="raise"):
            network = IntegerNetwork(config, tensors, device)
    else:
        is_float = info.arithmetic == "float"
        network = float_network(config, tensors if is_float else float_weights(tensors, config))
        network.module.to(device)
    model = Model(network, info.plans, file=info)
    check_answers(model, (levels[0], levels[-1]))
    return model


def _is_number(tensor: Tensor) -> bool:
    """Whether all of a tensor are integers or in float32's range."""
    if tensor.is_floating_point():
        return bool((tensor.double().abs() <= LARGEST).all())
    return not tensor.is_complex()


def check_answers(model: Model, levels: Iterable[float]) -> None:
    """Ask a model at noise levels: shapes that do not fit show in use, and better now than later.

    Raises:
        ValueError: if it gives no mean and variance; what its network lacks, one of ``INVALID``.
    """
    for sigma in levels:
        if not is_posterior(*model.posterior_x(np.zeros((1, 3, 1, 1)), sigma)):
            raise ValueError(f"a mean or variance is out of range at the noise level {sigma}")


def _check_plans(config: NetworkConfig, plans: Mapping[str, Plan]) -> None:
    """Refuse plans that do not begin at the first level of the networks of phases.

    The one for lossy files must not.

    Raises:
        ValueError: so.
    """
    for name, plan in plans.items():
        if (plan.quantiser == config.quantiser) == (name == LOSSY_PLAN):
            other = "another" if name == LOSSY_PLAN else "the"
            raise ValueError(
                f"the plan {name!r} begins at the noise level {plan.levels[0]:g}; with phases from "
                f"M = {config.quantiser} it must at {other} one of that, "
                f"{first_sigma(config.quantiser):g}"
            )


def load_model(
    name_or_path: str | PathLike[str] = DEFAULT_MODEL,
    arithmetic: str = "integer",
    device: str = "cpu",
) -> Model:
    """A shipped model by name, or any model file by path.

    Args:
        name_or_path: of the model.
        arithmetic: "integer", or "float" for research: files may not decode on another machine.
        device: "cpu", "cuda", or "auto" for a GPU if there is one. An integer model is proven to
            give the same answers there.

    Raises:
        ModelMismatchError: if there is no such model, the file is not a diffcodec model, or a float
            model is to be an integer one.
        UnsupportedError: for another arithmetic or device, or if the device's answers are others.
        DiffcodecError: if there is no such device, or the model fails there.
    """
    if not isinstance(arithmetic, str) or arithmetic not in ARITHMETICS:
        raise UnsupportedError(f"arithmetic {arithmetic!r}: expected one of {ARITHMETICS}")
    path = model_path(name_or_path)
    model = _load(path, file_stamp(path), arithmetic, find_device(device))
    is_shipped = path.parent == MODEL_FOLDER  # which elsewhere may lie in another place
    model.loaded_from = (path.stem if is_shipped else str(path), arithmetic, device)
    return model


def _load_again(name_or_path: str, arithmetic: str, device: str, model_id: bytes) -> Model:
    """A model that was pickled.

    Raises:
        ModelMismatchError: its file is another by now, or gone.
    """
    model = load_model(name_or_path, arithmetic, device)
    if model.info.id != model_id:
        raise ModelMismatchError(
            f"{name_or_path}: it was model {model_id.hex()} when it was pickled, and is "
            f"{model.info.id.hex()} now; load it again"
        )
    return model


def loaded(
    model: str | PathLike[str] | Model, arithmetic: str = "integer", device: str | None = None
) -> Model:
    """A model by name or path, or itself.

    Raises:
        UnsupportedError: if it is loaded on another device than is asked for.
        DiffcodecError: see :func:`load_model`.
    """
    if not isinstance(model, Model):
        return load_model(model, arithmetic, "cpu" if device is None else device)
    if device not in (None, "auto") and find_device(device).type != model.device.type:
        raise UnsupportedError(
            f"device {device!r}: model {model.name} is loaded on {model.device.type}; leave the "
            f"device out, or load it by load_model(..., device={device!r})"
        )
    return model


def load_weights(name_or_path: str | Path) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """The shape and the weights of a model as a float network's state, to train on from.

    Raises:
        ModelMismatchError: as :func:`load_model`.
    """
    module = load_model(name_or_path, "float").module
    return module.config, {name: t.clone() for name, t in module.state_dict().items()}
