"""What ``diffcodec info`` tells of a file. Pure Python."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from diffcodec.container.parts import MAGIC, MODES, PLAN_NAMES, Container, Layers
from diffcodec.errors import ModelMismatchError
from diffcodec.models.file import ModelInfo


def dimensions(container: Container) -> int:
    """Samples of the image: width times height times channels."""
    return container.width * container.height * MODES[container.mode].channels


def tiles_by_coder(container: Container) -> dict[str, int]:
    """How many tiles each coder has."""
    return dict(Counter(tile.coder for tile in container.tiles))


def describe(data: bytes, container: Container, model: ModelInfo | None) -> dict[str, Any]:
    """What ``info`` shows of a file, by the names of its JSON.

    Args:
        data: the file's bytes.
        container: its parts.
        model: its model, if that is at hand.

    Raises:
        ModelMismatchError: the file was made with another model.
    """
    uses_model = container.uses_model
    if uses_model and model is not None and model.id != container.model:
        raise ModelMismatchError(
            f"made with model {container.model.hex()}, the one given is {model.name} "
            f"{model.id.hex()}; give the model that it was encoded with"
        )
    arithmetic = "float" if container.float_arithmetic else "integer"
    return {
        "version": data[len(MAGIC)],
        "mode": container.mode,
        "width": container.width,
        "height": container.height,
        "bytes": len(data),
        "bits_per_pixel": 8 * len(data) / (container.width * container.height),
        "bits_per_dimension": 8 * len(data) / dimensions(container),
        "model_id": container.model.hex() if uses_model else None,
        "model": model.name if uses_model and model else None,
        "arithmetic": arithmetic if uses_model else None,
        "tiles": tiles_by_coder(container),
        "layers": len(container.layers.payloads) if container.layers else 0,
        "metadata_bytes": {name: len(value) for name, value in container.metadata.items()},
        "timesteps": list(_timesteps(container, model)),
    }


def _timesteps(container: Container, model: ModelInfo | None) -> Iterator[dict[str, Any]]:
    """For each timestep its noise level and the bits of all payloads that it takes.

    Tiles that are no chains have no timesteps; their bits count in full.
    """
    if container.layers:
        yield from _layer_timesteps(container, container.layers, model)
        return
    fixed = sum(8 * len(t.payload) for t in container.tiles if not t.plan)
    for plan in PLAN_NAMES:
        tiles = [tile for tile in container.tiles if tile.plan == plan]
        levels = model.plans[plan].levels if model and plan in model.plans else ()
        last = max((len(tile.marks) for tile in tiles), default=0) or len(levels)
        for t in range(last, -1, -1) if tiles else ():
            bits: int | None = fixed
            for tile in tiles:
                words = len(tile.payload) // 4 if t == 0 else _words_to(tile.marks, t)
                bits = None if bits is None or words is None else bits + 32 * words
            noise = 0.0 if t == 0 else levels[t - 1] if t <= len(levels) else None
            yield {"effort": plan, "timestep": t, "noise_grey_levels": noise, "bits": bits}


def _layer_timesteps(
    container: Container, layers: Layers, model: ModelInfo | None
) -> Iterator[dict[str, Any]]:
    """Where a file with previews may be cut."""
    plan = layers.plan
    levels = model.plans[plan].levels if model and plan in model.plans else ()
    bits = 0
    for t, payload in zip(layers.timesteps, layers.payloads, strict=True):
        bits += 8 * sum(map(len, payload))
        noise = levels[t - 1] if t <= len(levels) else None
        yield {"effort": plan, "timestep": t, "noise_grey_levels": noise, "bits": bits}
    if layers.is_exact:
        bits += sum(8 * len(tile.payload) for tile in container.tiles)
        yield {"effort": plan, "timestep": 0, "noise_grey_levels": 0.0, "bits": bits}


def _words_to(marks: tuple[int, ...], timestep: int) -> int | None:
    return marks[-timestep] if timestep <= len(marks) else None


def format_description(described: dict[str, Any]) -> str:
    """The same as lines of text."""
    model = "none needed"
    if described["model_id"]:
        name = described["model"] or "not a shipped one"
        model = f"{name} ({described['model_id']}), {described['arithmetic']} arithmetic"
    tiles = ", ".join(f"{count} {coder}" for coder, count in described["tiles"].items())
    metadata = ", ".join(f"{k} ({n} bytes)" for k, n in described["metadata_bytes"].items())
    lines = [
        "  image     {width} x {height} {mode}",
        "  file      {bytes} bytes, {bits_per_pixel:.3f} bits per pixel, "
        "{bits_per_dimension:.3f} per dimension",
        "  format    version {version}",
    ]
    lines = [line.format(**described) for line in lines]
    lines += [f"  model     {model}", f"  tiles     {tiles or 'none'}"]
    if described["layers"]:
        lines += [f"  layers    {described['layers']}"]
    lines += [f"  metadata  {metadata or 'none'}"]
    if described["timesteps"]:
        lines.append("  effort   timestep  noise (grey levels)        bits  bits per dimension")
    samples = described["width"] * described["height"] * MODES[described["mode"]].channels
    for row in described["timesteps"]:
        noise = "-" if row["noise_grey_levels"] is None else f"{row['noise_grey_levels']:.2f}"
        bits, rate = "-", "-"
        if row["bits"] is not None:
            bits, rate = str(row["bits"]), f"{row['bits'] / samples:.4f}"
        lines.append(
            f"  {row['effort']:8} {row['timestep']:8}  {noise:>19}  {bits:>10}  {rate:>18}"
        )
    return "\n".join(lines)
