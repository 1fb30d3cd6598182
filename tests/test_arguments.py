"""Whatever callers of the library give: a result, or an error that names what was given."""

import copy
import io
import itertools
import math
import mmap
import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from samples import make_image, saved
from tiny import tiny_model

import diffcodec
from diffcodec import errors
from diffcodec.errors import DiffcodecError, ModelMismatchError, UnsupportedError
from diffcodec.limits import Limits
from diffcodec.models.model import Model

IMAGE = make_image("RGB", (9, 7))
ALLOWED = (DiffcodecError, TypeError, ValueError)


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return diffcodec.load_model(tiny)


@pytest.fixture(scope="module")
def files(model: Model) -> list[bytes]:
    """One without previews, and one with."""
    return [diffcodec.encode(IMAGE, model), diffcodec.encode(IMAGE, model, progressive=True)]


def same(image: Image.Image, other: Image.Image = IMAGE) -> bool:
    return (image.mode, image.size, image.tobytes()) == (other.mode, other.size, other.tobytes())


# --- what is taken


def test_decode_takes_paths_bytes_and_streams(files, model, tmp_path):
    path = tmp_path / "a.dfc"
    for data in files:
        path.write_bytes(data)
        strided = memoryview(bytes(itertools.chain(*zip(data, data, strict=True))))[::2]
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=1) as mapped:
            sources = [path, str(path), data, bytearray(data), memoryview(data), strided, mapped]
            for source in (*sources, io.BytesIO(data), stream):
                assert same(diffcodec.decode(source, model=model))
            for source in sources:
                assert same(diffcodec.recover(source, model=model).image)
                assert same(list(diffcodec.iter_decode(source, model=model))[-1][1])
            assert same(diffcodec.recover(io.BytesIO(data), model=model).image)
            assert same(list(diffcodec.iter_decode(io.BytesIO(data), model=model))[-1][1])


def test_encode_takes_paths_images_arrays_and_tensors(files, model, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(saved(IMAGE).getvalue())
    array = np.asarray(IMAGE)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for source in (path, str(path), IMAGE, Image.open(saved(IMAGE)), array, tensor):
        assert diffcodec.encode(source, model) == files[0]
        assert list(diffcodec.encode_many([source], model)) == [files[0]]
    assert list(diffcodec.encode_many(iter([array]), model)) == [files[0]]
    assert list(diffcodec.encode_many([], model)) == []


def test_integers_of_numpy_are_integers(files, model):
    coded = diffcodec.encode(IMAGE, model, timestep=np.int64(2), previews=np.array([3, 2]))
    assert coded == diffcodec.encode(IMAGE, model, timestep=2, previews=[3, 2])
    assert diffcodec.encode(IMAGE, model, psnr=np.float32(20)) == diffcodec.encode(
        IMAGE, model, psnr=20
    )
    image = diffcodec.decode(files[1], np.uint8(3), model)
    assert same(image, diffcodec.decode(files[1], 3, model))


# --- what is refused, by name


@pytest.mark.parametrize("data", [None, 5, 1.5, [1, 2], IMAGE, np.zeros(9, np.uint8), object()])
def test_what_is_no_file_is_named(data, model):
    def images(data, model):
        return list(diffcodec.iter_decode(data, model))

    for function in (diffcodec.decode, diffcodec.recover, images):
        with pytest.raises(TypeError, match=f"data: found {type(data).__name__}, expected a path"):
            function(data, model=model)


def test_streams_that_give_no_bytes(model, tmp_path):
    with pytest.raises(TypeError, match="the stream gives str, expected bytes: open it in mode"):
        diffcodec.decode(io.StringIO("text"), model=model)
    with (tmp_path / "a").open("wb") as stream, pytest.raises(DiffcodecError, match="cannot read"):
        diffcodec.decode(stream, model=model)
    with pytest.raises(DiffcodecError, match=r"none: No such file.*check the path"):
        diffcodec.decode(tmp_path / "none")
    with pytest.raises(DiffcodecError, match="cannot read"):
        diffcodec.decode("a\0b")


@pytest.mark.parametrize("images", [IMAGE, np.asarray(IMAGE), "a.png", Path("a.png"), 5, None])
def test_one_image_is_no_list_of_images(images, model):
    found = f"images: found {type(images).__name__}, expected a list of images"
    with pytest.raises(TypeError, match=found):
        diffcodec.encode_many(images, model)


@pytest.mark.parametrize("files", [b"", "a.dfc", Path("a.dfc"), io.BytesIO(), 5, None])
def test_one_file_is_no_list_of_files(files, model):
    found = f"files: found {type(files).__name__}, expected a list of files"
    with pytest.raises(TypeError, match=found):
        diffcodec.decode_many(files, model)


@pytest.mark.parametrize("seed", [-1, 1 << 24, 1 << 70])
def test_seeds_out_of_range(seed, files, model):
    with pytest.raises(UnsupportedError, match=f"seed {seed}: expected 0 to 16777215"):
        diffcodec.decode(files[1], 3, model, reconstruct="sample", seed=seed)
    with pytest.raises(UnsupportedError, match=f"seed {seed}"):
        list(diffcodec.iter_decode(files[1], model, seed=seed))


@pytest.mark.parametrize("value", [0.0, 2.0, "2", b"2", [2]])
def test_timesteps_and_seeds_that_are_no_integers(value, files, model):
    found = f": found {type(value).__name__}, expected an integer"
    for name, call in {
        "timestep": lambda: diffcodec.decode(files[1], value, model),
        "seed": lambda: diffcodec.decode(files[1], 3, model, seed=value),
        "previews": lambda: diffcodec.encode(IMAGE, model, progressive=True, previews=[value]),
        "draws": lambda: diffcodec.encode(IMAGE, model, draws=value),
    }.items():
        with pytest.raises(TypeError, match=name + found):
            call()
    with pytest.raises(TypeError, match="timestep" + found):
        diffcodec.encode(IMAGE, model, timestep=value)


@pytest.mark.parametrize("value", ["1", [1], None, 1 << 2000])
def test_rates_that_are_no_numbers(value, model):
    if value is not None:
        with pytest.raises((TypeError, ValueError), match="bpp: found"):
            diffcodec.encode(IMAGE, model, bpp=value)


@pytest.mark.parametrize("goal", ["bpp", "psnr", "timestep"])
def test_goals_of_nothing_are_named(goal, model):
    for value in (0, -3):
        with pytest.raises(DiffcodecError, match=f"{goal} {value}.*: expected a positive number"):
            diffcodec.encode(IMAGE, model, **{goal: value})


def test_one_number_is_no_list_of_numbers(model):
    with pytest.raises(TypeError, match="previews: found 3, expected a list of timesteps"):
        diffcodec.encode(IMAGE, model, progressive=True, previews=3)
    with pytest.raises(TypeError, match="size: found 8, expected width and height"):
        diffcodec.sample(model, 1, 8)
    with pytest.raises(DiffcodecError, match="expected width and height"):
        diffcodec.sample(model, 1, (8, 8, 3))


@pytest.mark.parametrize("name", ["data", "out"])
def test_what_is_no_path_is_named(name, model):
    paths = {"data": "nowhere", "out": "nowhere"} | {name: 3}
    with pytest.raises(TypeError, match=f"{name}: found int, expected a path"):
        diffcodec.train(**paths)
    with pytest.raises(TypeError, match="data: found int, expected a path"):
        diffcodec.evaluate(3, model)


def test_a_model_of_a_file_can_be_pickled(tiny, tmp_path):
    """As processes that share the work hand it to each other; it is the same, or an error."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(tiny.read_bytes())
    model = diffcodec.load_model(path)
    data = pickle.dumps(model)
    assert len(data) < 1000
    assert pickle.loads(data).info.id == model.info.id
    assert copy.deepcopy(model).plans == model.plans
    assert b"zoo" not in pickle.dumps(diffcodec.load_model("cifar10"))  # which lies there elsewhere
    path.write_bytes(tiny_model(tmp_path, 1, "other").read_bytes())
    with pytest.raises(ModelMismatchError, match="when it was pickled"):
        pickle.loads(data)


@pytest.mark.parametrize("junk", [5, None, [], b"photo", IMAGE])
def test_what_is_no_model_is_named(junk, files):
    found = f"model: found {type(junk).__name__}, expected a name, a path or a loaded model"
    with pytest.raises(TypeError, match=found):
        diffcodec.encode(IMAGE, junk)
    with pytest.raises(TypeError, match=found):
        diffcodec.load_model(junk)
    if junk is not None:
        with pytest.raises(TypeError, match=found):
            diffcodec.decode(files[1], model=junk)


def test_limits_are_limits(files, model):
    with pytest.raises(TypeError, match="pixels: found str, expected a number"):
        diffcodec.Limits(pixels="3")
    for value in (-1, math.nan):
        with pytest.raises(ValueError, match=r"memory_bytes: found .*, expected a number"):
            diffcodec.Limits(memory_bytes=value)
    assert diffcodec.Limits(pixels=1e6).pixels == 10**6
    for call in (
        lambda: diffcodec.encode(IMAGE, model, limits=100),
        lambda: diffcodec.decode(files[0], model=model, limits={"pixels": 3}),
        lambda: diffcodec.recover(files[0], model, limits=100),
    ):
        with pytest.raises(
            TypeError, match=r"limits: found (int|dict), expected diffcodec\.Limits"
        ):
            call()


# --- errors


def all_errors(base: type[Exception] = DiffcodecError) -> list[type[Exception]]:
    return [base, *(each for kind in base.__subclasses__() for each in all_errors(kind))]


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_can_be_pickled(kind):
    error = pickle.loads(pickle.dumps(kind("found this, expected that")))
    assert (type(error), str(error)) == (kind, "found this, expected that")
    assert getattr(errors, kind.__name__) is kind


# --- anything


NUMBERS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.integers(),
    st.floats(),
    st.just(np.float32(3)),
    st.just(np.int64(2)),
)
ANYTHING = st.one_of(
    NUMBERS,
    st.text(max_size=9),
    st.just("x" * 300),
    st.binary(max_size=9),
    st.lists(st.integers(0, 9), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from([object(), object, len, Ellipsis, 3j, Path("none"), io.StringIO("a")]),
    st.sampled_from([np.zeros(3), np.zeros((2, 2), np.uint8), np.array("x"), torch.zeros(2)]),
    st.sampled_from([IMAGE, Image.new("F", (2, 2)), Limits(), Limits(pixels=1)]),
)
SMALL_IMAGES = st.sampled_from([IMAGE, np.asarray(IMAGE), make_image("L", (5, 3))])
OPTIONS = {
    "plan": st.sampled_from(["fast", "default", "best"]) | ANYTHING,
    "progress": ANYTHING,
    "draws": st.sampled_from([1, 2]) | ANYTHING.filter(lambda n: n is True or not _is_large(n)),
    "tile_side": st.sampled_from([96, 512]) | ANYTHING,
    "strip": ANYTHING,
    "limits": st.just(Limits()) | ANYTHING,
}
GOALS = dict.fromkeys(("timestep", "bpp", "psnr"), NUMBERS | ANYTHING)
GOALS |= {"progressive": ANYTHING, "previews": st.lists(st.integers(-1, 9), max_size=3) | ANYTHING}
VIEWS = {
    "progress": ANYTHING,
    "allow_partial": ANYTHING,
    "reconstruct": st.sampled_from(["mean", "flow", "sample"]) | ANYTHING,
    "seed": NUMBERS | ANYTHING,
    "limits": st.just(Limits()) | ANYTHING,
    "region": st.tuples(NUMBERS, st.just(2), NUMBERS, st.just(3)) | ANYTHING,
    "scale": NUMBERS | ANYTHING,
    "device": ANYTHING,
    "fill": ANYTHING,
}


def _is_large(value: object) -> bool:
    return isinstance(value, int) and value > 3


def some(options: dict[str, st.SearchStrategy[object]]) -> st.SearchStrategy[dict[str, object]]:
    """At most two of the options: of more the first that is wrong would hide the others."""
    names = st.lists(st.sampled_from(sorted(options)), max_size=2, unique=True)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({n: options[n] for n in chosen}))


@given(SMALL_IMAGES | ANYTHING, some(OPTIONS | GOALS), st.data())
def test_encode_of_anything(model, image, options, data):
    used = data.draw(st.just(model) | ANYTHING, "model") if not options else model
    with suppress(*ALLOWED):
        assert isinstance(diffcodec.encode(image, used, **options), bytes)


@given(st.lists(SMALL_IMAGES | ANYTHING, max_size=3) | ANYTHING, some(OPTIONS))
def test_encode_many_of_anything(model, images, options):
    with suppress(*ALLOWED):
        assert isinstance(list(diffcodec.encode_many(images, model, **options)), list)


@given(st.lists(st.integers(0, 1) | ANYTHING, max_size=3) | ANYTHING, ANYTHING)
def test_decode_many_of_anything(model, files, several, junk):
    if isinstance(several, list):
        several = [
            files[each] if type(each) is int and each in (0, 1) else each for each in several
        ]
    with suppress(*ALLOWED):
        assert all(map(same, diffcodec.decode_many(several, model)))
    with suppress(*ALLOWED):
        list(diffcodec.decode_many([files[0]], junk))


@given(st.integers(0, 1), NUMBERS | ANYTHING, some(VIEWS), ANYTHING, st.booleans())
def test_decoding_of_anything(model, files, which, timestep, options, junk, is_file):
    source = files[which] if is_file else junk
    own = {n: v for n, v in options.items() if n != "fill"}
    with suppress(*ALLOWED):
        assert isinstance(diffcodec.decode(source, timestep, model, **own), Image.Image)
    with suppress(*ALLOWED):
        assert isinstance(diffcodec.decode(files[which], model=junk), Image.Image)
    own = {n: v for n, v in options.items() if n in ("reconstruct", "seed", "limits", "device")}
    with suppress(*ALLOWED):
        assert list(diffcodec.iter_decode(source, model, **own))
    own = {n: v for n, v in options.items() if n in ("progress", "limits", "fill", "device")}
    with suppress(*ALLOWED):
        assert diffcodec.recover(source, model, **own).image


@given(ANYTHING, st.sampled_from(["integer", "float"]) | ANYTHING)
def test_load_model_of_anything(tiny, name, arithmetic):
    with suppress(*ALLOWED):
        diffcodec.load_model(name, "integer")
    with suppress(*ALLOWED):
        diffcodec.load_model(tiny, arithmetic)
