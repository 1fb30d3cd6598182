"""What is shown has no seams: borders of tiles are evaluated with both sides in sight."""

from pathlib import Path

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffcodec.codec.batches import progress_bar
from diffcodec.codec.descents import Descents
from diffcodec.codec.jobs import Part, View
from diffcodec.codec.seams import find_seams
from diffcodec.coding.top_down import Descent
from diffcodec.container.parts import Box, tile_grid
from diffcodec.models.model import Model, load_model

TIMESTEP = 3


@given(st.integers(1, 1700), st.integers(1, 1700))
def test_seams_are_those_of_the_format(width: int, height: int) -> None:
    """And each of their pixels is in one core, within its window, of tiles that hold it."""
    boxes = dict(enumerate(tile_grid(width, height)))
    seams = find_seams(boxes)
    found = [
        tuple((b[i], b[i] + b[i + 2]) for b in (seam.window, seam.core) for i in (0, 1))
        for seam in seams
    ]
    expected = reference.seams(reference.edges(width), reference.edges(height))
    assert sorted(found) == sorted((*window, *core) for window, core in expected)
    seen = np.zeros((height, width), int)
    for seam in seams:
        (left, top, w, h), window = seam.core, seam.window
        seen[top : top + h, left : left + w] += 1
        area = [
            max(0, min(a.left + a.width, window.left + window.width) - max(a.left, window.left))
            * max(0, min(a.top + a.height, window.top + window.height) - max(a.top, window.top))
            for a in (boxes[index] for index in seam.tiles)
        ]
        assert sum(area) == window.width * window.height and min(area) > 0
    for box in boxes.values():  # the rest is farther than a margin from all others
        inner = seen[box.top : box.top + box.height, box.left : box.left + box.width] == 0
        rows, columns = np.nonzero(inner)
        assert not box.left or columns.min() == 32
        assert not box.top or rows.min() == 32
    assert seen.max(initial=0) <= 1


def shown(model: Model, boxes: list[Box], mode: str, how: str, seams: bool = True) -> np.ndarray:
    """An image of 160 x 136, the z of which is drawn, by tiles."""
    parts = [Part("fast", index, box) for index, box in enumerate(boxes)]
    tiles = Descents(model, mode, parts, progress_bar(0, False), exact=False)
    z = np.random.default_rng(0).normal(100, 40, (3, 136, 160))
    for part in parts:
        chain, (left, top, width, height) = tiles.chain(part), part.box
        chain.z[TIMESTEP] = z[:, top : top + height, left : left + width].copy()
        tiles.put(part, Descent(chain, TIMESTEP))
    image = Image.new(mode, (160, 136))
    tiles.show(image, View(reconstruct=how), seams)
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(  # known chroma of grey images gets the noise of its tile on the way
    ("mode", "how"), [("RGB", "mean"), ("RGB", "perceptual"), ("RGB", "flow"), ("L", "mean")]
)
def test_tiles_show_what_the_whole_shows(tiny: Path, mode: str, how: str) -> None:
    model = load_model(tiny)
    four = [Box(x, y, w, h) for y, h in ((0, 72), (72, 64)) for x, w in ((0, 88), (88, 72))]
    whole = shown(model, [Box(0, 0, 160, 136)], mode, how)
    errors = [np.abs(shown(model, four, mode, how, seams) - whole) for seams in (False, True)]
    near = [error[:, 84:92].mean() + error[68:76].mean() for error in errors]
    assert near[0] > 0.05 > 20 * near[1]
    assert errors[1].max() <= 1


def test_samples_meet_at_borders(tiny: Path) -> None:
    """Their noise is of each tile; what the model expects is not."""
    model = load_model(tiny)
    two = [Box(0, 0, 80, 136), Box(80, 0, 80, 136)]
    a, b = (shown(model, two, "RGB", "sample", seams) for seams in (False, True))
    assert not np.array_equal(a, b)
    assert np.array_equal(a[:, :16], b[:, :16])
