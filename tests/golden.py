"""Golden files: what was written once must be read the same for ever.

Files of format version 1 in every mode, by every coder and of many sizes, with a small model.
Decoding is frozen. What the encoder writes may change where it becomes better; then

python tests/golden.py    writes all of them anew, or those that are named

and the pixels stay what they are.
"""

import hashlib
import io
import json
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image, ImageChops
from samples import raw_tile
from tiny import phased_model, tiny_model

from diffcodec import decode, encode, encode_many, load_model
from diffcodec.codec.jobs import Choices
from diffcodec.codec.planes import crop
from diffcodec.codec.previews import Previews
from diffcodec.codec.tiles import fallback_tile
from diffcodec.coding.adaptation import Adaptation
from diffcodec.coding.bits_back import EncodedTile
from diffcodec.container.parts import tile_grid
from diffcodec.container.reader import parse
from diffcodec.container.writer import pack
from diffcodec.images.color_sets import ColorSet, conversion
from diffcodec.images.modes import pixel_crc
from diffcodec.images.outliers import Found, nearest, pack_outliers
from diffcodec.images.source_planes import from_planes
from diffcodec.models.known_answers import sample_image

FOLDER = Path(__file__).parent / "golden"
MODEL = FOLDER / "model.safetensors"
PHASED_MODEL = FOLDER / "phased.safetensors"  # of the files whose names begin so
CLASS_MODEL = FOLDER / "class.safetensors"  # likewise
EXPECTED = FOLDER / "expected.json"


def photograph():
    return Image.fromarray(np.clip(sample_image(), 0, 255).astype(np.uint8).transpose(1, 2, 0))


def sized(width, height, mode="RGB"):
    image = photograph().resize((width, height), Image.Resampling.NEAREST)
    return lambda: image.convert(mode)


def with_metadata():
    image = photograph()
    exif = Image.Exif()
    exif[0x010E] = "a gradient"
    buffer = io.BytesIO()
    image.save(buffer, "PNG", dpi=(300, 300), exif=exif, icc_profile=bytes(range(64)))
    return Image.open(io.BytesIO(buffer.getvalue()))


def with_description():
    """What a PNG may say beside its pixels."""
    image = photograph()
    image.info["gamma"], image.info["xmp"] = 0.45455, b"<x:xmpmeta/>"
    text = (b"tEXt", b"Title\0a gradient"), (b"iTXt", b"Title\0\0\0de\0\0ein Verlauf")
    image.info["png_chunks"] = (*text, (b"cICP", bytes([1, 13, 0, 1])))
    return image


def with_transparency(value):
    def make():
        image = photograph().quantize(7) if isinstance(value, bytes) else photograph()
        image.info["transparency"] = value
        return image

    return make


def converted(width, height, name):
    """An image as a converter from YCbCr makes it."""
    y, u, v = np.asarray(sized(width, height)()).transpose(2, 0, 1) // 2 + 64
    rule = conversion(name)
    chroma = rule.red[v], rule.green_u[u] + rule.green_v[v], rule.blue[u]
    pixels = np.clip((rule.luma[y] + np.stack(chroma)) >> 16, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels.transpose(1, 2, 0))


def halved(width, height, name):
    """A part of a video frame, from a second column on, with a few pixels changed."""
    y, u, v = converted(2 * width, 2 * height, "grey"), *photograph().split()[:2]
    planes = [each.resize((width // 2 + 1, height // 2 + 1)) for each in (u, v)]
    planes = [each.resize((2 * each.width, 2 * each.height), 0) for each in planes]
    box = (1, 0, width + 1, height)
    u, v = (each.crop(box).point(lambda value: value // 2 + 64) for each in planes)
    image = from_planes(Image.merge("RGB", (u, y.crop(box).convert("L"), v)), name)
    image.paste((255, 255, 0), (7, 5, 10, 8))
    return image


def stepped(image, step):
    """Samples that are multiples of a step."""
    return image.point(lambda sample: sample // step * step)


def multiples(step, channels):
    """The set of such samples."""
    bits = np.packbits(np.arange(256) % step == 0, bitorder="little").tobytes()
    return ColorSet(None, (bits,) * channels)


def within(colors):
    """What the encoder finds of an image if it is told the set."""

    def found(image):
        if colors is None:
            return Found(image)
        pixels = np.array(image.convert("RGB"))
        rgb = pixels.transpose(2, 0, 1)
        outside = ~colors.allowed(rgb)
        if not outside.any():
            return Found(image, colors)
        pixels[outside] = nearest(rgb[:, outside].T, colors)
        near = Image.fromarray(pixels).convert(image.mode)
        return Found(near, colors, ImageChops.subtract_modulo(image, near))

    return found


def adaptation(counts):
    """Tables that fit no image, of so many parameters of each variable."""
    rng = np.random.default_rng(0)
    tables = {
        which: rng.integers(-40, 40, (4, 2, count)).astype(np.int8)
        for which, count in enumerate(counts)
        if count
    }
    return Adaptation(tables)


def with_outliers(image):
    """A few pixels that are not of the image's set."""
    samples = np.array(image)
    samples[2, 3:7] = np.random.default_rng(0).integers(0, 256, samples[2, 3:7].shape)
    return Image.fromarray(samples)


two_tiles, grey_tiles = sized(520, 5), sized(5, 520, "L")
# options of this file alone
MARKS, PREVIEW, COLORS, TABLES = "marks", "tile_preview", "colors", "tables"
LEFT_OUT = "left_out"  # of a lossy file what is not worth its bits; all is sent of others

# name: image, plan, options; coded by the chain
CHAIN = {
    "rgb-fast": (photograph, "fast", {}),
    "rgb-default": (photograph, "default", {}),
    "rgb-best": (photograph, "best", {}),
    "metadata": (with_metadata, "fast", {}),
    "description": (with_description, "fast", {}),
    "grey": (lambda: photograph().convert("L"), "default", {}),
    "one-pixel": (lambda: photograph().crop((3, 3, 4, 4)), "fast", {}),
    "two-tiles": (two_tiles, "fast", {}),
    "lossy": (photograph, "default", {"timestep": 2}),
    "lossy-grey": (lambda: photograph().convert("L"), "fast", {"timestep": 1}),
    "progressive": (with_metadata, "best", {"progressive": True}),
    "progressive-tiles": (two_tiles, "fast", {"progressive": True, "previews": (4, 3)}),
    "progressive-grey": (sized(17, 13, "L"), "default", {"progressive": True, "timestep": 5}),
    "lossy-tiles": (grey_tiles, "fast", {"timestep": 2, "previews": (4, 3)}),
    "lossy-part": (sized(17, 13), "fast", {"bpp": 16.0}),
    "lossy-seams": (two_tiles, "fast", {"timestep": 3}),
    "grey-one-pixel": (sized(1, 1, "L"), "best", {}),
    "grey-tiles": (grey_tiles, "default", {}),
    "marks": (sized(19, 11), "default", {MARKS: True}),
    "marks-tiles": (two_tiles, "fast", {MARKS: True}),
    "draws": (sized(24, 20), "default", {"draws": 6}),
    "draws-preview": (sized(24, 20), "fast", {PREVIEW: 4, "draws": 3}),
    "tile-preview": (sized(24, 20), "default", {PREVIEW: 4}),
    "tile-preview-marks": (sized(24, 20, "L"), "best", {PREVIEW: 2, MARKS: True}),
    "colors": (
        lambda: converted(24, 20, "photoycc"),
        *("default", {COLORS: ColorSet("photoycc"), MARKS: True}),
    ),
    "colors-grey": (
        lambda: stepped(sized(19, 11, "L")(), 5),
        *("fast", {COLORS: multiples(5, 1)}),
    ),
    "outliers": (
        lambda: with_outliers(converted(24, 20, "photoycc")),
        *("default", {COLORS: ColorSet("photoycc"), MARKS: True}),
    ),
    "outliers-grey": (
        lambda: with_outliers(stepped(sized(19, 11, "L")(), 5)),
        *("fast", {COLORS: multiples(5, 1), PREVIEW: 2}),
    ),
    "colors-preview": (
        lambda: stepped(sized(17, 13)(), 3),
        *("fast", {COLORS: multiples(3, 3), PREVIEW: 2}),
    ),
    **{
        f"size-{width}x{height}": (sized(width, height), "fast", {})
        for width, height in ((1, 7), (7, 1), (13, 17), (31, 33), (32, 32), (33, 31), (2, 512))
    },
}
CHAIN |= {
    "phased": (sized(23, 17), "default", {MARKS: True}),
    "phased-grey": (sized(11, 14, "L"), "default", {}),
    "phased-small-tiles": (sized(200, 9), "fast", {"tile_side": 96}),
    "phased-small-tiles-lossy": (sized(101, 97), "fast", {"timestep": 2, "tile_side": 96}),
    "phased-adapted": (sized(17, 12), "default", {TABLES: (21, 9, 6)}),
    "phased-adapted-preview": (sized(11, 10, "L"), "default", {PREVIEW: 3, TABLES: (0, 0, 6)}),
    "phased-adapted-colors": (
        lambda: converted(14, 9, "photoycc"),
        *("fast", {COLORS: ColorSet("photoycc"), TABLES: (21, 0, 0)}),
    ),
    "phased-one-pixel": (sized(1, 1), "fast", {}),
    "phased-progressive": (sized(13, 9), "default", {"progressive": True, "timestep": 2}),
    "phased-lossy": (sized(13, 9), "default", {"timestep": 1}),
    "phased-colors-progressive": (
        lambda: converted(14, 9, "photoycc"),
        *("default", {"progressive": True, "timestep": 2, COLORS: ColorSet("photoycc")}),
    ),
    "phased-outliers-progressive": (
        lambda: with_outliers(converted(14, 9, "jfif")),
        *("default", {"progressive": True, "timestep": 2, COLORS: ColorSet("jfif")}),
    ),
    "phased-lossy-part": (sized(13, 9), "default", {"bpp": 8.0}),
    "phased-lossy-left-out": (sized(21, 13), "default", {"timestep": 2, LEFT_OUT: True}),
    "phased-lossy-left-out-grey": (sized(14, 11, "L"), "default", {"timestep": 3, LEFT_OUT: True}),
    "phased-progressive-deep": (sized(13, 9), "default", {"progressive": True, "timestep": 3}),
    "phased-preview": (sized(9, 10), "default", {PREVIEW: 3, "draws": 2}),
    "phased-colors": (
        lambda: converted(14, 9, "photoycc"),
        *("fast", {COLORS: ColorSet("photoycc")}),
    ),
    "phased-colors-grey": (
        lambda: stepped(sized(9, 11, "L")(), 5),
        *("fast", {COLORS: multiples(5, 1)}),
    ),
}
CHAIN |= {
    "class": (sized(13, 9), "fast", {"label": 2, MARKS: True}),
    "class-preview": (sized(9, 10, "L"), "fast", {PREVIEW: 3, "draws": 2, "label": 0}),
    "class-lossy": (sized(13, 9), "fast", {"timestep": 2, "label": 1}),
    "class-progressive": (sized(9, 13), "fast", {"progressive": True, "label": 2}),
}
# coded by a fallback, whose bytes may differ from one release of its library to the next
FALLBACK = {
    "flat": lambda: Image.new("RGB", (40, 30), (10, 200, 30)),
    "bilevel": lambda: photograph().convert("1"),
    "palette": lambda: photograph().quantize(7),
    "grey-alpha": lambda: photograph().convert("LA"),
    "rgba": lambda: photograph().convert("RGBA"),
    "sixteen-bit": lambda: Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 101),
    "raw": lambda: Image.new("RGB", (1, 1), (1, 2, 3)),
    "raw-bilevel": lambda: Image.fromarray(np.eye(9, dtype=bool)),
    "png": lambda: Image.new("L", (1, 16400), 9),
    "planes": lambda: converted(40, 30, "jfif"),
    "planes-420": lambda: halved(41, 33, "bt601-420"),
    "transparent-palette": with_transparency(bytes([0, 128])),
    "transparent-colour": with_transparency((1, 2, 3)),
    "fallback-metadata": lambda: with_metadata().convert("RGBA"),
}


def mixed_plans():
    """Tiles by different plans."""
    fast, best = (parse(coded(two_tiles(), plan)) for plan in ("fast", "best"))
    return replace(fast, tiles=(best.tiles[0], fast.tiles[1]))


def mixed_coders():
    """One tile by the chain below a preview, the other raw."""
    return one_raw(parse(coded(two_tiles(), "fast", progressive=True, timestep=3)))


def marks_of_one():
    """Marks where one tile has none."""
    return one_raw(parse(coded(two_tiles(), "fast", **{MARKS: True})))


def one_raw(container):
    box = container.boxes()[1]
    return replace(container, tiles=(container.tiles[0], raw_tile(crop(two_tiles(), box))))


def fallback_tiles():
    """Each tile by a fallback, in a mode that the chain does not have."""
    image = sized(5, 520, "RGBA")()
    tiles = tuple(fallback_tile(crop(image, box)) for box in tile_grid(*image.size))
    return replace(parse(encode(image)), whole=False, tiles=tiles)


def planes_outliers():
    """A tile of the planes that it was converted from, but for a few pixels."""
    whole = with_outliers(converted(40, 30, "jfif"))
    found = within(ColorSet("jfif"))(whole)
    tile = replace(
        fallback_tile(found.image, ColorSet("jfif")),
        outliers=pack_outliers(found.differences),
        pixel_crc=pixel_crc(whole),
    )
    return replace(parse(encode(whole)), tiles=(tile,), whole=False)


def unknown_metadata():
    """An entry that decoding ignores."""
    container = parse(encode(FALLBACK["flat"]()))
    return replace(container, metadata={"x-note": b"kept"})


# name: a container
BUILT = {
    "mixed-plans": mixed_plans,
    "mixed-coders": mixed_coders,
    "marks-of-one": marks_of_one,
    "fallback-tiles": fallback_tiles,
    "planes-outliers": planes_outliers,
    "unknown-metadata": unknown_metadata,
}
NAMES = (*CHAIN, *FALLBACK, *BUILT)


def model_of(name):
    """The file of the model that a golden file is made with."""
    own = {"phased": PHASED_MODEL, "class": CLASS_MODEL}
    return own.get(name.split("-")[0], MODEL)


def coded(image, plan, path=MODEL, **options):
    """A file whose tiles are all chains."""

    def large(image, *_):
        return "raw", image.tobytes() * 9 + bytes(99)

    marks, preview = options.pop(MARKS, False), options.pop(PREVIEW, 0)
    colors, counts = options.pop(COLORS, None), options.pop(TABLES, ())
    left_out = options.pop(LEFT_OUT, False)
    choices = Choices(
        marks_from_pixels=1 if marks else Choices.marks_from_pixels,
        seed_share=-1 if preview else Choices.seed_share,
    )
    with ExitStack() as patches:
        for module in ("encoding", "layered_encoding"):
            found = mock.patch(f"diffcodec.codec.{module}.find_colors", within(colors))
            patches.enter_context(found)
        patches.enter_context(mock.patch("diffcodec.codec.tiles.encode_fallback", large))
        if not left_out:
            patches.enter_context(mock.patch.object(Previews, "leave_out"))
        if counts:
            fit = mock.patch("diffcodec.codec.encoding.fit", lambda *_: adaptation(counts))
            patches.enter_context(fit)
            options["adapt"] = True
        if preview:  # as if the stack ran empty down to there
            below = mock.patch(
                "diffcodec.coding.top_down._expected_below",
                lambda chain, alone, timestep: (-(1 << 25) * (timestep == preview), 1),
            )
            size = mock.patch.object(
                EncodedTile, "size", property(lambda tile: -tile.preview - tile.draw)
            )
            patches.enter_context(below)
            patches.enter_context(size)
        if choices == Choices():
            return encode(image, load_model(path), plan, **options)
        labels = [options.pop("label", None)]
        same = {"labels": labels, "choices": choices}
        return next(encode_many([image], load_model(path), plan, **same, **options))


def coded_by_chain(name):
    image, plan, options = CHAIN[name]
    return coded(image(), plan, model_of(name), **options)


def written(name):
    """The bytes of a golden file, as they come out now."""
    if name in CHAIN:
        return coded_by_chain(name)
    if name in FALLBACK:
        return encode(FALLBACK[name](), load_model(MODEL))
    return pack(BUILT[name]())


def describe(image):
    pixels = hashlib.sha256(image.tobytes()).hexdigest()
    names = ("dpi", "exif", "gamma", "icc_profile", "png_chunks", "transparency", "xmp")
    info = sorted(name for name in image.info if name in names)
    return {"mode": image.mode, "size": list(image.size), "pixels": pixels, "info": info}


def main(names):
    expected = json.loads(EXPECTED.read_text()) if names else {}
    if not names:
        tiny_model(FOLDER, name=MODEL.stem)
        phased_model(FOLDER, name=PHASED_MODEL.stem)
        tiny_model(FOLDER, name=CLASS_MODEL.stem, classes=3)
    for name in names or NAMES:
        data = written(name)
        (FOLDER / f"{name}.dfc").write_bytes(data)
        expected[name] = describe(
            decode(data, model=load_model(model_of(name)), reconstruct="mean")
        )
    EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
