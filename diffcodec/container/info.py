"""What ``diffcodec info`` tells of a file. Pure Python."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from diffcodec.container.parts import MAGIC, MODES, PLAN_NAMES, Container, Tile
from diffcodec.container.primitives import word_count


def dimensions(container: Container) -> int:
    """Samples of the image: width times height times channels."""
    return container.width * container.height * MODES[container.mode].channels


def tiles_by_coder(container: Container) -> dict[str, int]:
    """How many tiles each coder has."""
    return dict(Counter(tile.coder for tile in container.tiles))


def describe(
    data: bytes,
    container: Container,
    model_name: str | None = None,
    levels: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> dict[str, Any]:
    """What ``info`` shows of a file, by the names of its JSON.

    Args:
        data: the file's bytes.
        container: its parts.
        model_name: of its model, if that is at hand.
        levels: the noise levels of its model's plans, by the plan's name.
    """
    uses_model = container.uses_model
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
        "model": model_name if uses_model else None,
        "arithmetic": arithmetic if uses_model else None,
        "tiles": tiles_by_coder(container),
        "classes": sorted(container.labels),
        "layers": len(container.layers.payloads) if container.layers else 0,
        "metadata_bytes": {name: len(value) for name, value in container.metadata.items()},
        "timesteps": list(_timesteps(container, levels)),
    }


def _timesteps(
    container: Container, levels: Mapping[str, Sequence[float]]
) -> Iterator[dict[str, Any]]:
    """The noise level of each timestep, and the bits of all payloads that it takes.

    Tiles that are no chains have no timesteps; their bits count in full.
    """
    rows = _layer_bits(container) if container.layers else _chain_bits(container, levels)
    for plan, t, bits in rows:
        noise = (0.0, *levels.get(plan, ()))
        known = noise[t] if t < len(noise) else None
        yield {"effort": plan, "timestep": t, "noise_grey_levels": known, "bits": bits}


def _chain_bits(
    container: Container, levels: Mapping[str, Sequence[float]]
) -> Iterator[tuple[str, int, int | None]]:
    """Plan, timestep and bits, those only where the tiles have marks."""
    fixed = sum(8 * tile.size for tile in container.tiles if not tile.plan)
    for plan in PLAN_NAMES:
        tiles = [tile for tile in container.tiles if tile.plan == plan]
        last = max((len(tile.marks) for tile in tiles), default=0) or len(levels.get(plan, ()))
        for t in range(last, -1, -1) if tiles else ():
            each = [_bits_to(tile, t) for tile in tiles]
            known = [bits for bits in each if bits is not None]
            added = 0 if t else sum(8 * len(tile.outliers) for tile in tiles)
            yield plan, t, fixed + added + sum(known) if len(known) == len(each) else None


def _bits_to(tile: Tile, timestep: int) -> int | None:
    if timestep == 0:
        return 8 * len(tile.payload)
    left_out = 32 * word_count(tile.payload) - 8 * len(tile.payload)  # zeros of the first word
    return 32 * tile.marks[-timestep] - left_out if timestep <= len(tile.marks) else None


def _layer_bits(container: Container) -> Iterator[tuple[str, int, int]]:
    """Where a file with previews may be cut."""
    layers = container.layers
    assert layers is not None
    bits = 0
    for t, payload in zip(layers.timesteps, layers.payloads, strict=True):
        bits += 8 * sum(map(len, payload))
        yield layers.plan, t, bits
    if layers.is_exact:
        yield layers.plan, 0, bits + sum(8 * tile.size for tile in container.tiles)


def format_description(described: dict[str, Any]) -> str:
    """The same as lines of text."""
    model = "none needed"
    if described["model_id"]:
        name = described["model"] or "not a shipped one"
        model = f"{name} ({described['model_id']}), {described['arithmetic']} arithmetic"
    tiles = ", ".join(f"{count} {coder}" for coder, count in described["tiles"].items())
    metadata = ", ".join(f"{k} ({n} bytes)" for k, n in described["metadata_bytes"].items())
    text = (
        "  image     {width} x {height} {mode}\n"
        "  file      {bytes} bytes, {bits_per_pixel:.3f} bits per pixel, "
        "{bits_per_dimension:.3f} per dimension\n"
        "  format    version {version}"
    )
    lines = [text.format(**described), f"  model     {model}", f"  tiles     {tiles or 'none'}"]
    if described["layers"]:
        lines += [f"  layers    {described['layers']}"]
    if described["classes"]:
        lines += [f"  classes   {', '.join(map(str, described['classes']))}"]
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
