"""The model that a file needs."""

from diffcodec.container.parts import Container
from diffcodec.errors import CorruptError, ModelMismatchError
from diffcodec.models.file import find_model_path, model_path, read_model_info
from diffcodec.models.model import Model, load_model


def find_model(container: Container, given: str | Model | None) -> Model:
    """The model that the file needs.

    Raises:
        ModelMismatchError: if it is not at hand.
        CorruptError: if it lacks a plan of the file, or timesteps.
    """
    arithmetic = "float" if container.float_arithmetic else "integer"
    if isinstance(given, Model):
        given.info.check_made(container.model)
        model = given
    else:
        path = find_model_path(container.model) if given is None else model_path(given)
        read_model_info(path)[0].check_made(container.model)
        model = load_model(path, arithmetic)
    if model.arithmetic != arithmetic:
        raise ModelMismatchError(
            f"the file was made with {arithmetic} arithmetic, the model given is loaded as "
            f"{model.arithmetic!r}; load it as {arithmetic!r}"
        )
    plans = {tile.plan for tile in container.tiles}
    for plan in plans | ({container.layers.plan} if container.layers else set()):
        if plan is not None and plan not in model.plans:
            raise CorruptError(f"a tile is coded by {plan!r}, which its model does not have")
    for tile in container.tiles:
        levels = len(model.plans[tile.plan].levels) if tile.plan else 0
        if tile.preview > levels:
            raise CorruptError(f"a preview at timestep {tile.preview}, of {levels}")
    if container.layers:
        stops, levels = container.layers.stops, len(model.plans[container.layers.plan].levels)
        if max(stops) > levels:
            raise CorruptError(f"layers that reach {stops}, of {levels} timesteps")
    return model
