"""Hostile bytes: nothing but a ``DiffcodecError`` comes of them. ``make fuzz`` is the long run."""

import io
import pickle
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import LIMITS, MODEL, edited, flipped, mutated, repaired, traced
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from PIL import Image
from targets import TARGETS, decode, load, model_seeds, mutated_model, parse

from diffcodec.codec import decoding, encoding, many
from diffcodec.codec.jobs import Choices
from diffcodec.container.parts import MAGIC, VERSION
from diffcodec.container.reader import FileReader
from diffcodec.container.reader import parse as parse_file
from diffcodec.container.writer import pack
from diffcodec.errors import DiffcodecError, ModelMismatchError, TruncatedError
from diffcodec.models.model import load_model

FINDINGS = Path(__file__).parent / "findings"
BEGINNINGS = (b"", MAGIC, MAGIC + bytes([VERSION]), MAGIC + bytes([VERSION, 5, 3, 3]))
SEEDS = st.integers(0, 2**32 - 1)


def picture(mode: str = "RGB") -> Image.Image:
    ramp = np.add.outer(20 * np.arange(4), 30 * np.arange(6)).astype(np.uint8)
    return Image.fromarray(np.stack([ramp, 255 - ramp, ramp // 2], -1)).convert(mode)


def by_chain(patch: pytest.MonkeyPatch) -> None:
    """The chain of a random network never wins: let the other coders fail to compress."""
    patch.setattr(
        "diffcodec.codec.tiles.encode_fallback", lambda image, *_: ("raw", bytes(1 << 16))
    )


def make_files() -> dict[str, bytes]:
    """Small files of every kind."""
    model, dot = load_model(MODEL), picture().crop((0, 0, 2, 1))
    with pytest.MonkeyPatch.context() as patch:
        by_chain(patch)
        files = {
            "chain": encoding.encode(picture(), model, "fast"),
            "grey": encoding.encode(picture("L"), model, "fast"),
            "lossy": encoding.encode(picture(), model, "fast", timestep=2, previews=(4, 3)),
            "progressive": encoding.encode(
                dot, model, "fast", progressive=True, previews=(4, 3, 2)
            ),
        }
        large, marks = picture("L").resize((513, 2)), Choices(marks_from_pixels=1)
        [files["marked"]] = many.encode_many([large], model, "fast", choices=marks)
    for mode in ("P", "RGBA"):
        image = picture(mode)
        image.info["icc_profile"] = b"colours"
        files[mode] = encoding.encode(image, model)
    return files


FILES = make_files()


# --- bytes ----------------------------------------------------------------------------------------


@given(st.sampled_from(BEGINNINGS), st.binary(max_size=200))
def test_arbitrary_bytes(beginning: bytes, data: bytes) -> None:
    parse(beginning + data)
    decode(beginning + data)
    load(beginning + data)


@given(st.sampled_from(sorted(FILES)), st.integers(1, 3), SEEDS)
def test_mutated_files(name: str, times: int, seed: int) -> None:
    data, rng = FILES[name], random.Random(seed)
    for _ in range(times):
        data = mutated(data, rng)
    parse(data)
    decode(data)


@given(st.integers(1, 3), SEEDS)
def test_mutated_models(times: int, seed: int) -> None:
    rng = random.Random(seed)
    data = rng.choice(model_seeds())
    for _ in range(times):
        data = mutated_model(data, rng)
    load(data)


@pytest.mark.parametrize("path", sorted(FINDINGS.glob("*.bin")), ids=lambda path: path.stem)
def test_findings(path: Path) -> None:
    """What the fuzzers have found, by the target that found it."""
    TARGETS[path.stem.split("-")[0]][0](path.read_bytes())


@pytest.mark.parametrize("name", FILES)
def test_mutations_reach_what_lies_behind_the_checksums(name: str) -> None:
    """The fields are those of the whole file, and a changed payload has a right checksum again."""
    data = FILES[name]
    fields = traced(data)
    assert [field.stop for field in fields[:-1]] == [field.start for field in fields[1:]]
    assert (fields[0].start, fields[-1].stop) == (0, len(data))
    payload = max(fields, key=lambda field: field.stop - field.start)
    damaged = flipped(data, 8 * (payload.start + 8))
    with pytest.raises(DiffcodecError):
        parse_file(damaged)
    again = repaired(damaged)
    assert pack(parse_file(again)) == again != data
    assert repaired(data) == data


# --- weights --------------------------------------------------------------------------------------


class Hostile:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("arithmetic", ["integer", "float"])
@pytest.mark.parametrize("kind", ["pickle", "torch", "torch-legacy", "within safetensors"])
def test_nothing_in_a_model_file_is_run(tmp_path: Path, kind: str, arithmetic: str) -> None:
    trace, path = tmp_path / "trace", tmp_path / "model.safetensors"
    hostile = Hostile(trace)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(hostile))
    elif kind == "within safetensors":
        data = pickle.dumps(hostile)
        path.write_bytes(len(data).to_bytes(8, "little") + data)
    else:
        torch.save(hostile, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(ModelMismatchError, match="not a diffcodec model file"):
        load_model(path, arithmetic)
    assert not trace.exists()
    if kind == "pickle":
        pickle.loads(path.read_bytes())
        assert trace.exists()


# --- streams --------------------------------------------------------------------------------------


def layer_ends(data: bytes) -> list[int]:
    """Where the layers of a file end."""
    reader, ends = FileReader(data), []
    while reader.more_layers:
        reader.read_layer()
        ends.append(reader.cursor.position)
    return ends


class Feed:
    """A stream that is filled while another thread reads it."""

    def __init__(self) -> None:
        self.data, self.closed, self.waiting = b"", False, False
        self.changed = threading.Condition()

    def read(self, size: int) -> bytes:
        with self.changed:
            while not self.data and not self.closed:
                self.waiting = True
                self.changed.notify_all()
                self.changed.wait()
            taken, self.data = self.data[:size], self.data[size:]
            return taken

    def write(self, data: bytes) -> None:
        """Returns when it is read."""
        with self.changed:
            self.data, self.waiting = self.data + data, False
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.waiting or self.closed, timeout=60)

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()


class Streaming(RuleBasedStateMachine):
    """A file that comes in random pieces shows what it shows in one go, and each as soon as it can.

    It may be cut, or damaged from a piece on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.feed, self.sent, self.damaged_at = Feed(), 0, 1 << 30
        self.shown: list[tuple[int, bytes]] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self.decode, daemon=True)
        self.data: bytes | None = None

    def decode(self) -> None:
        try:
            for timestep, image in decoding.iter_decode(
                self.feed, load_model(MODEL), limits=LIMITS
            ):
                self.shown.append((timestep, image.tobytes()))
        except BaseException as e:
            self.error = e
        finally:
            self.feed.close()

    @precondition(lambda self: self.data is None)
    @rule(name=st.sampled_from(["chain", "lossy", "progressive", "P"]))
    def begin(self, name: str) -> None:
        self.data = FILES[name]
        images = decoding.iter_decode(io.BytesIO(self.data), load_model(MODEL))
        self.images = [(timestep, image.tobytes()) for timestep, image in images]
        self.ends = layer_ends(self.data)
        self.thread.start()

    @precondition(lambda self: self.data is not None)
    @rule(size=st.integers(1, 40) | st.integers(1, 600))
    def send(self, size: int) -> None:
        self.feed.write(self.data[self.sent : self.sent + size])
        self.sent = min(self.sent + size, len(self.data))

    @precondition(lambda self: self.data is not None and self.sent < len(self.data))
    @rule(size=st.integers(1, 40), rng=st.randoms(use_true_random=False))
    def send_damaged(self, size: int, rng: random.Random) -> None:
        piece = self.data[self.sent : self.sent + size]
        other = edited(piece, rng)
        if other[: len(piece)] != piece[: len(other)]:
            self.damaged_at = min(self.damaged_at, self.sent)
        elif other != piece:  # more or less of the same: from its end on
            self.damaged_at = min(self.damaged_at, self.sent + min(len(piece), len(other)))
        self.feed.write(other)
        self.sent = min(self.sent + size, len(self.data))

    @invariant()
    def shows_what_has_come(self) -> None:
        if self.data is None:
            return
        whole = min(self.sent, self.damaged_at)
        expected = self.images[: sum(end <= whole for end in self.ends)]
        assert self.shown[: len(expected)] == expected
        if self.damaged_at > len(self.data):
            assert len(self.shown) == len(expected)
            assert self.error is None

    def teardown(self) -> None:
        if self.data is None:
            return
        self.feed.close()
        self.thread.join(60)
        assert not self.thread.is_alive()
        assert isinstance(self.error, DiffcodecError | None)
        if self.damaged_at <= len(self.data):
            return
        if self.sent < len(self.data):
            assert isinstance(self.error, TruncatedError) or not self.sent
        else:
            assert self.error is None
            assert self.shown == self.images


TestStreaming = Streaming.TestCase
TestStreaming.settings = settings(max_examples=settings().max_examples // 2, stateful_step_count=12)
