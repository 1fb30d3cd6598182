"""Files of a model that codes x given z_1, and z_1 given z_2, in phases."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load, save
from tiny import PHASED_PLANS
from torch import Tensor

from diffcodec import decode, encode, encode_many, load_model
from diffcodec.codec import tiles
from diffcodec.codec.jobs import Choices
from diffcodec.codec.timesteps import decode_timesteps
from diffcodec.coding.bits_back import decode_tile, encode_tile
from diffcodec.coding.chain import Asked, TileChain, drive
from diffcodec.coding.reconstructions import RECONSTRUCTIONS
from diffcodec.container.parts import LEAST_PREVIEW
from diffcodec.container.reader import parse
from diffcodec.container.writer import pack
from diffcodec.diffusion.bound import chain_bound_bits
from diffcodec.diffusion.color import to_domain
from diffcodec.errors import CorruptError, ModelMismatchError, UnsupportedError
from diffcodec.models.answering import answer
from diffcodec.models.export import serialise_float_model
from diffcodec.models.file import make_metadata, read_model_info
from diffcodec.models.model import Model

TOP = {name: len(plan.levels) for name, plan in PHASED_PLANS.items()}


@pytest.fixture(scope="module")
def model(phased: Path) -> Model:
    return load_model(phased)


def smooth(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Waves with a little noise, every channel different."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (5 + c) + c) + np.cos(y / (7 - c)) for c in range(3)]
    rgb = 128 + 50 * np.stack(waves, -1) + rng.normal(0, 3, (height, width, 3))
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8)).convert(mode)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, np.uint8))


def same(a: Image.Image, b: Image.Image) -> bool:
    return (a.mode, a.size, a.tobytes()) == (b.mode, b.size, b.tobytes())


def by_chain(data: bytes) -> bool:
    return all(tile.plan for tile in parse(data).tiles)


def large(image: Image.Image, *_: object) -> tuple[str, bytes]:
    """What other coders make, so that the chain wins."""
    return "raw", bytes(1 << 22)


# --- exact ----------------------------------------------------------------------------------------

SIZES = st.tuples(st.integers(1, 24), st.integers(1, 24))


@settings(max_examples=20)
@given(SIZES, st.sampled_from(["RGB", "L"]), st.sampled_from(["fast", "default"]))
def test_any_size_comes_back(model: Model, size: tuple[int, int], mode: str, effort: str) -> None:
    with mock.patch.object(tiles, "encode_fallback", large):
        for image in (smooth(*size, mode), noise(*size, mode)):
            data = encode(image, model, effort)
            assert by_chain(data)
            assert same(decode(data, model=model), image)


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 2), (521, 3)])
def test_sizes_that_leave_phases_empty(model: Model, size: tuple[int, int], mode: str) -> None:
    image = smooth(*size, mode)
    data = encode(image, model)
    assert by_chain(data)
    assert same(decode(data, model=model), image)


@pytest.mark.usefixtures("chain_only")
def test_images_together_are_coded_as_alone(model: Model) -> None:
    images = [smooth(21, 13), noise(21, 13), smooth(9, 21), smooth(21, 13, "L")]
    assert list(encode_many(images, model)) == [encode(image, model) for image in images]


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_float_arithmetic(phased: Path, phased_float: Path, mode: str) -> None:
    for path in (phased, phased_float):
        model, image = load_model(path, "float"), smooth(19, 12, mode)
        assert model.phased
        data = encode(image, model)
        assert by_chain(data) and parse(data).float_arithmetic
        assert same(decode(data, model=model), image)


@pytest.mark.usefixtures("chain_only")
def test_draws_and_a_preview_of_a_tile(model: Model) -> None:
    image = smooth(24, 20)
    data = encode(image, model, "fast", draws=4)
    assert same(decode(data, model=model), image)
    [data] = encode_many([image], model, choices=Choices(seed_bits=-1, seed_words=-1))
    assert parse(data).tiles[0].preview
    assert same(decode(data, model=model), image)


@pytest.mark.usefixtures("chain_only")
def test_what_the_first_pop_spends_is_decided_there(model: Model) -> None:
    image, found = smooth(24, 20), []
    for words in (-1, 1 << 20):  # that it may spend; all steps may spend any number
        choices = Choices(seed_share=math.inf, seed_bits=1e9, seed_words=words)
        [data] = encode_many([image], model, choices=choices)
        assert same(decode(data, model=model), image)
        found.append(parse(data).tiles[0].preview)
    assert found == [LEAST_PREVIEW, 0]


# --- with previews --------------------------------------------------------------------------------


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_progressive_files_are_exact(model: Model, mode: str) -> None:
    image = smooth(23, 18, mode)
    deep = encode(image, model, progressive=True, timestep=2)
    for timestep in range(2, TOP["default"] + 1):
        data = encode(image, model, progressive=True, timestep=timestep)
        assert by_chain(data)
        assert same(decode(data, model=model), image)
        for shown in range(timestep, TOP["default"] + 1):
            assert same(decode(data, shown, model), decode(deep, shown, model))


def test_previews_of_exact_files_know_z_1(model: Model) -> None:
    """Their noise is around z_1, that of lossy files around x."""
    image = smooth(23, 18)
    exact = encode(image, model, progressive=True, timestep=2)
    assert not same(decode(exact, 2, model), decode(encode(image, model, timestep=2), model=model))


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("how", RECONSTRUCTIONS)
def test_every_reconstruction_of_every_timestep(model: Model, how: str) -> None:
    image = smooth(23, 18)
    exact = encode(image, model, progressive=True, timestep=2)
    plain, lossy = encode(image, model), encode(image, model, timestep=1)
    for data, timesteps in ((exact, range(2, 5)), (plain, range(1, 5)), (lossy, range(1, 6))):
        for timestep in timesteps:
            shown = decode(data, timestep, model, reconstruct=how)
            assert (shown.mode, shown.size) == (image.mode, image.size)
            assert same(shown, decode(data, timestep, model, reconstruct=how))


@pytest.mark.usefixtures("nothing_left_out")
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_lossy_files(model: Model, mode: str) -> None:
    """By a plan of their own, whatever plan is named, in which all variables are of one kind."""
    image, sizes = smooth(23, 18, mode), []
    deep = encode(image, model, "fast", timestep=1)
    assert parse(deep).layers.plan == "lossy"
    for timestep in range(1, len(model.plans["lossy"].levels) + 1):
        data = encode(image, model, timestep=timestep)
        assert parse(data).tiles == ()
        found = decode(data, model=model)  # which checks it against what the encoder showed
        assert found.mode == mode
        assert same(decode(deep, timestep, model), found)
        sizes.append(len(data))
    assert sizes == sorted(sizes, reverse=True)


def test_a_lossy_file_is_by_no_other_plan(model: Model) -> None:
    container = parse(encode(smooth(13, 9), model, timestep=1))
    assert container.layers is not None
    other = replace(container, layers=replace(container.layers, plan="default"))
    with pytest.raises(CorruptError, match=r"a lossy file by the plan 'default'; .* by 'lossy'"):
        decode(pack(other), model=model)


def test_models_that_cannot_code_lossy_files(phased: Path, phased_float: Path) -> None:
    loaded = load_model(phased_float, "float")
    data = serialise_float_model(loaded.module, PHASED_PLANS, {})
    path = phased.with_name("exact-only.safetensors")
    path.write_bytes(data)
    exact_only = load_model(path, "float")
    with pytest.raises(UnsupportedError, match="has no plan 'lossy': it codes no lossy files"):
        encode(smooth(8, 8), exact_only, timestep=3)
    assert encode(smooth(8, 8), exact_only, progressive=True, timestep=3)


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_timestep_of_an_exact_file(model: Model, mode: str) -> None:
    image = smooth(23, 18, mode)
    data = encode(image, model)
    found = decode_timesteps(data, model)
    assert [timestep for timestep, _ in found] == [*range(TOP["default"], -1, -1)]
    for timestep, shown in found:
        assert same(shown, decode(data, timestep, model))
    assert same(found[-1][1], image)


# --- lengths --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large_image() -> np.ndarray:
    return np.asarray(smooth(96, 80)).transpose(2, 0, 1).astype(np.int16)


@pytest.mark.parametrize("effort", PHASED_PLANS)
def test_a_file_is_as_long_as_the_bound_says(
    phased: Path, tmp_path: Path, large_image: np.ndarray, effort: str
) -> None:
    path = tmp_path / "calmer.safetensors"
    model = load_model(
        changed(phased, path, {"out.scale": lambda s: s / 4})
    )  # the coder's tails end
    plan, x = PHASED_PLANS[effort], to_domain(large_image, model.color).astype(np.float64)

    def asked(request: Asked):
        return answer(model, plan, [request])[0]

    def chain(draw: int) -> TileChain:
        shape = (x.shape[1], x.shape[2])
        return TileChain(plan, model.domain, 0, 3, shape, draw=draw, phased=True)

    found = []
    for draw in range(3):
        coded = drive(encode_tile(chain(draw), x), asked)
        again = drive(decode_tile(chain(draw), coded.words), asked)
        assert np.array_equal(again, x)
        found.append(32 * (len(coded.words) - coded.seed_words) / x.size)
    module = load_model(path, "float").module
    with torch.inference_mode():
        batch = torch.from_numpy(np.stack([x] * 3))
        parts = chain_bound_bits(
            lambda z, sigma: module.posterior_x(z.float(), sigma.float()),
            *(batch, model.color, plan, torch.Generator().manual_seed(0)),
            phased=module.phased,
        )
    expected = parts.sum(1).mean().item()
    assert 0.997 * expected < np.mean(found) < 1.01 * expected


# --- broken ---------------------------------------------------------------------------------------


HUGE = 3e38


def changed(phased: Path, path: Path, ends: Mapping[str, Callable[[Tensor], Tensor]]) -> Path:
    """A copy with the tensors changed whose names end so."""
    info, data = read_model_info(phased)
    tensors = load(data)
    for end, change in ends.items():
        names = [name for name in tensors if name.endswith(end)]
        assert names
        tensors |= {name: change(tensors[name]) for name in names}
    described = make_metadata(info.network, info.plans, info.about, info.arithmetic, info.answers)
    path.write_bytes(save(tensors, described))
    return path


def filled(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: torch.full_like(tensor, value)


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ({"known.scale": filled(HUGE), "features.scale": filled(HUGE)}, "out of range"),
        ({"2.out.scale": filled(HUGE)}, "out of range"),
        ({"0.features.scale": filled(HUGE), "0.out.bias": filled(-HUGE)}, ""),
        ({"1.features.scale": filled(HUGE)}, ""),
        ({"blocks.0.conv1.scale": filled(HUGE)}, ""),
        ({"3.out.bias": filled(1e30)}, ""),
        ({"3.out.scale": lambda scale: 1e8 * scale}, ""),
    ],
)
def test_networks_that_overflow_are_refused_or_exact(
    phased: Path,
    tmp_path: Path,
    ends: Mapping[str, Callable[[Tensor], Tensor]],
    message: str,
) -> None:
    image = smooth(16, 15)
    broken = load_model(changed(phased, tmp_path / "broken.safetensors", ends))
    try:
        data = encode(image, broken)
    except ModelMismatchError as e:
        assert re.search(f"cannot code this image .*{message}", str(e))
    else:
        assert not message
        assert not by_chain(data) or same(decode(data, model=broken), image)
