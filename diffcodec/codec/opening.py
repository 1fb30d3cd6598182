"""A file opened for decoding: what is read of it held against the limits, and its model found."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import BinaryIO

from diffcodec.codec.estimates import check_memory
from diffcodec.codec.seams import MARGIN
from diffcodec.codec.windows import Window, find_window
from diffcodec.container.parts import LOSSY_PLAN, Container
from diffcodec.container.reader import FileReader
from diffcodec.errors import CorruptError, ModelMismatchError
from diffcodec.limits import Limits
from diffcodec.models.file import find_model_path, model_info, model_path
from diffcodec.models.model import Model, loaded
from diffcodec.values import check_limits


@dataclass(frozen=True)
class OpenFile:
    """A file that has been read whole or, if it has layers, as far as the first.

    Attributes:
        reader: of the file.
        model: None if the file needs none.
        window: what of the image is to be shown.
        progress: whether to show a bar.
    """

    reader: FileReader
    model: Model | None
    window: Window
    progress: bool = False

    @property
    def container(self) -> Container:
        """What has been read of the file's container."""
        return self.reader.container


def open_file(
    source: bytes | BinaryIO,
    model: str | PathLike[str] | Model | None,
    progress: bool,
    limits: Limits,
    device: str | None = None,
    region: Sequence[int] | None = None,
    shows_preview: bool = False,
    may_be_cut: bool = False,
) -> OpenFile:
    """Read a file as far as its first layer, or whole if it has none; of a region only its tiles.

    Of a preview these are also those beside it, which are seen along their borders. Until then no
    claim of the header is to be trusted.

    Raises:
        DiffcodecError: see :func:`diffcodec.decode`.
    """
    check_limits(limits)
    reader = FileReader(source, limits)
    seams = shows_preview or not reader.container.has_tiles
    window = find_window(reader.container, region, MARGIN if seams else 0)
    if not window.is_whole:
        reader.wanted = window.boxes
    if reader.container.layers is None:
        reader.read_tiles()
    else:
        reader.read_layer(may_be_cut)
    container = reader.container
    check_memory(container, limits, size=window.size)
    used = find_model(container, model, device) if container.uses_model else None
    return OpenFile(reader, used, window, progress)


def named_model(
    model_id: bytes,
    float_arithmetic: bool,
    given: str | PathLike[str] | Model | None,
    device: str | None = None,
) -> Model:
    """The model of an identity: the one that is given, or a shipped one.

    Raises:
        ModelMismatchError: if it is not at hand.
    """
    arithmetic = "float" if float_arithmetic else "integer"
    if isinstance(given, Model):
        given.info.check_made(model_id)
        model = loaded(given, device=device)
    else:
        path = find_model_path(model_id) if given is None else model_path(given)
        model_info(path).check_made(model_id)
        model = loaded(path, arithmetic, device)
    if model.arithmetic != arithmetic:
        raise ModelMismatchError(
            f"the file was made with {arithmetic} arithmetic, the model given is loaded as "
            f"{model.arithmetic!r}; load it as {arithmetic!r}"
        )
    return model


def find_model(
    container: Container, given: str | PathLike[str] | Model | None, device: str | None = None
) -> Model:
    """The model that the file needs.

    Raises:
        ModelMismatchError: if it is not at hand.
        CorruptError: if it lacks a plan of the file, or timesteps.
    """
    model = named_model(container.model, container.float_arithmetic, given, device)
    plans = {tile.plan for tile in container.tiles}
    for plan in plans | ({container.layers.plan} if container.layers else set()):
        if plan is not None and plan not in model.plans:
            raise CorruptError(f"a tile is coded by {plan!r}, which its model does not have")
    for label in container.labels:
        if label >= model.classes:
            raise CorruptError(f"a tile of class {label}, but its model knows {model.classes}")
    for tile in container.tiles:
        levels = len(model.plans[tile.plan].levels) if tile.plan else 0
        if tile.preview > levels:
            raise CorruptError(f"a preview at timestep {tile.preview}, of {levels}")
    if container.layers:
        plan = container.layers.plan
        if model.phased and not container.has_tiles and plan != LOSSY_PLAN:
            raise CorruptError(
                f"a lossy file by the plan {plan!r}; of a model that codes in phases, such as "
                f"{model.info.name}, it would be by {LOSSY_PLAN!r}"
            )
        stops, levels = container.layers.stops, len(model.plans[plan].levels)
        if max(stops) > levels:
            raise CorruptError(f"layers that reach {stops}, of {levels} timesteps")
    return model
