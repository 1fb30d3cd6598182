"""Model files: safetensors whose metadata holds the network's shape and the plans.

No torch here.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

from diffcodec.container.parts import LOSSY_PLAN
from diffcodec.diffusion.plan import Plan
from diffcodec.errors import ModelMismatchError, UnsupportedError
from diffcodec.models.layout import FORMATS, is_plain, read_network, write_network
from diffcodec.networks.config import NetworkConfig

DEFAULT_MODEL = "photo"
MODEL_FOLDER = Path(__file__).parent / "zoo"
ARITHMETICS = ("integer", "float")
ID_BYTES = 4
CALIBRATED = "diffcodec-calibrated-0"  # JSON: which network, and a table of its variances
INDEX = "index.json"  # names of the shipped models by identity: one is found without reading all
MAX_HEADER_BYTES = 1 << 20
HINTS = {  # to those who give a folder that has such a file
    "model.safetensors": "; there is a model.safetensors in it",
    "model_index.json": "; diffcodec calibrate makes one of a pipeline of diffusers",
}
MALFORMED = (  # what descriptions of another shape raise where they are read
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says of itself.

    Attributes:
        name: the file's stem.
        id: first bytes of the SHA-256 of the file; every encoded file carries it.
        network: shape of its network; None of one that is not a shape of ours.
        plans: by name: "fast", "default", "best", and "lossy" of some.
        about: hours of training, data, held-out bpd.
        arithmetic: that of its weights, one of ``ARITHMETICS``.
        answers: digests of what an integer model computes (:mod:`diffcodec.models.known_answers`).
        calibrated: of the file of a calibrated network, all that it says.
    """

    name: str
    id: bytes
    network: NetworkConfig | None
    plans: dict[str, Plan]
    about: dict[str, Any]
    arithmetic: str
    answers: dict[str, str]
    calibrated: dict[str, Any] | None = None

    def multiplications(self) -> dict[str, float]:
        """The network's multiplications for each pixel of a colour image, by the plans' names."""
        if self.network is None:
            return {}
        return {name: self.network.multiplications(plan) for name, plan in self.plans.items()}

    def lossy_plan(self, plan: str) -> str:
        """The name of the plan for lossy files: the model's own for these, or else the given one.

        Raises:
            UnsupportedError: if it has to have one, and has none.
        """
        if LOSSY_PLAN in self.plans:
            return LOSSY_PLAN
        if self.network and self.network.phases:
            raise UnsupportedError(
                f"model {self.name} codes in phases and has no plan {LOSSY_PLAN!r}: it codes no "
                "lossy files; give another model"
            )
        return plan

    @property
    def levels(self) -> list[float]:
        """Every noise level of the plans, increasing."""
        return sorted({sigma for plan in self.plans.values() for sigma in plan.levels})

    def check_made(self, model_id: bytes) -> None:
        """Refuse a file that carries the identity of another model.

        Raises:
            ModelMismatchError: it does.
        """
        if self.id != model_id:
            raise ModelMismatchError(
                f"the file was made with model {model_id.hex()}, the one given is {self.name} "
                f"{self.id.hex()}; give the model that it was encoded with"
            )


def read_model_info(path: Path) -> tuple[ModelInfo, bytes]:
    """The description in a model file, and the file's bytes.

    Raises:
        ModelMismatchError: if it is not a diffcodec model.
    """
    data = path.read_bytes()
    if path.suffix == ".json":
        return _calibrated_info(path, data), data
    try:
        size = int.from_bytes(data[:8], "little")
        if not 0 < size <= min(MAX_HEADER_BYTES, len(data) - 8):
            raise ValueError("no safetensors header")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        if metadata["format"] not in FORMATS:
            raise ValueError(f"its format is {metadata['format']!r}, expected one of {FORMATS}")
        plans = plans_from_dict(json.loads(metadata["plans"]))
        network = read_network(json.loads(metadata["network"]))
        about = json.loads(metadata["about"])
        if not isinstance(about, dict):
            raise ValueError("its description is no object")
        arithmetic = metadata.get("arithmetic", "integer")  # not named in the first models
        if arithmetic not in ARITHMETICS:
            raise ValueError(f"its arithmetic is {arithmetic!r}, expected one of {ARITHMETICS}")
        answers = dict(json.loads(metadata.get("answers", "{}")))
        info = ModelInfo(path.stem, file_id(data), network, plans, about, arithmetic, answers)
    except MALFORMED as e:
        raise ModelMismatchError(f"{path}: not a diffcodec model file ({e})") from e
    return info, data


def _calibrated_info(path: Path, data: bytes) -> ModelInfo:
    """The description in the file of a calibrated network.

    Raises:
        ModelMismatchError: if it is none.
    """
    try:
        described = json.loads(data)
        if described["format"] != CALIBRATED:
            raise ValueError(f"its format is {described['format']!r}, expected {CALIBRATED!r}")
        plans, about = plans_from_dict(described["plans"]), dict(described["about"])
    except MALFORMED as e:
        raise ModelMismatchError(f"{path}: not the file of a calibrated model ({e})") from e
    return ModelInfo(path.stem, file_id(data), None, plans, about, "float", {}, described)


def model_info(path: Path) -> ModelInfo:
    """The description in a model file, which is read once, and again when it has changed.

    Raises:
        ModelMismatchError: if it is not a diffcodec model.
    """
    return _model_info(path, file_stamp(path))


@lru_cache(maxsize=16)
def _model_info(path: Path, stamp: tuple[int, int]) -> ModelInfo:
    return read_model_info(path)[0]


def file_stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is replaced: when it was written, and its size."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def count_parameters(data: bytes) -> int:
    """Numbers in the tensors of a model file that :func:`read_model_info` has accepted."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    return sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__")


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """A plan as model files hold it."""
    return {"levels": plan.levels, "lattices": plan.lattice_ratios}


def plans_to_dict(plans: Mapping[str, Plan]) -> dict[str, dict[str, Any]]:
    """Plans by effort as model files hold them."""
    return {name: plan_to_dict(plan) for name, plan in plans.items()}


def plans_from_dict(described: Mapping[str, Any]) -> dict[str, Plan]:
    """Inverse of :func:`plans_to_dict`, after a way through JSON.

    Raises:
        ValueError, TypeError, KeyError: if there are no such plans.
    """
    return {
        name: Plan(tuple(plan["levels"]), tuple(plan["lattices"]))
        for name, plan in described.items()
    }


def make_metadata(
    network: NetworkConfig,
    plans: Mapping[str, Plan],
    about: Mapping[str, Any],
    arithmetic: str,
    answers: Mapping[str, str],
) -> dict[str, str]:
    """The metadata that :func:`read_model_info` reads."""
    return {
        "format": FORMATS[not is_plain(network)],
        "network": json.dumps(write_network(network)),
        "plans": json.dumps(plans_to_dict(plans)),
        "about": json.dumps(about),
        "arithmetic": arithmetic,
        "answers": json.dumps(answers),
    }


def file_id(data: bytes) -> bytes:
    """Identity of a model file."""
    return hashlib.sha256(data).digest()[:ID_BYTES]


def shipped_models() -> list[Path]:
    """Files of the models that come with the package, by name."""
    return sorted(MODEL_FOLDER.glob("*.safetensors"))


def model_path(name_or_path: str | PathLike[str]) -> Path:
    """The file of a shipped model by name, or of any model by path.

    Raises:
        ModelMismatchError: if there is none.
        TypeError: if it is neither.
    """
    if not isinstance(name_or_path, (str, PathLike)):
        raise TypeError(
            f"model: found {type(name_or_path).__name__}, expected a name, a path or a loaded model"
        )
    shipped = {p.stem: p for p in shipped_models()}
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    path, is_file, hint = Path(name_or_path), False, ""
    with suppress(OSError):  # a name that is too long, a folder that is closed to us
        is_file = path.is_file()
        hint = "".join(text for name, text in HINTS.items() if (path / name).is_file())
    if not is_file:
        raise ModelMismatchError(
            f"no model {str(name_or_path)!r}: expected one of "
            f"{', '.join([*shipped, 'the path of a model file'])}{hint}"
        )
    return path.resolve()


def network_path(source: str | PathLike[str]) -> Path:
    """The folder of a pipeline of diffusers, or the file of a model as :func:`model_path` has it.

    Raises:
        ModelMismatchError: if there is neither.
    """
    path = Path(source)
    with suppress(OSError):  # as of model_path
        if path.is_dir():
            return path.resolve()
    try:
        return model_path(source)
    except ModelMismatchError as e:
        raise ModelMismatchError(f"{e}, or the folder of a pipeline of diffusers") from e


def model_files(path: Path) -> list[Path]:
    """The files of a model: its own, and those of the network that a calibrated one names.

    Args:
        path: see :func:`network_path`.

    Raises:
        ModelMismatchError: if it is no model.
    """
    found: list[Path] = []
    left = [path]
    while left:
        path = left.pop()
        if path.is_dir():  # a pipeline, whose parts are folders
            found += [path / "model_index.json", *path.glob("*/**/*")]
            continue
        found.append(path)
        source = (model_info(path).calibrated or {}).get("source")
        network = path.parent / source if isinstance(source, str) else path
        if network.exists() and network.resolve() not in found:
            left.append(network.resolve())
    return found


def find_model_path(model_id: bytes) -> Path:
    """The shipped model file with this identity.

    Raises:
        ModelMismatchError: if none has it.
    """
    index = MODEL_FOLDER / INDEX
    names = json.loads(index.read_text()) if index.is_file() else {}
    indexed = MODEL_FOLDER / f"{names.get(model_id.hex())}.safetensors"
    if indexed.is_file() and model_info(indexed).id == model_id:
        return indexed
    known = {file_id(p.read_bytes()): p for p in shipped_models()}
    if model_id in known:
        return known[model_id]
    shipped = ", ".join(f"{p.stem} ({i.hex()})" for i, p in known.items())
    raise ModelMismatchError(
        f"made with model {model_id.hex()}, which is none of the shipped ones ({shipped}); "
        "give the model file that it was encoded with by --model"
    )
