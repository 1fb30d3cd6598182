"""Golden files: what the encoder wrote once must be written and read the same for ever.

python tests/golden.py    writes them anew (only with a new version of the format)
"""

import hashlib
import io
import json
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image
from tiny import tiny_model

from diffcodec import decode, encode, load_model
from diffcodec.doctor import sample_image

FOLDER = Path(__file__).parent / "golden"
MODEL = FOLDER / "model.safetensors"
EXPECTED = FOLDER / "expected.json"


def photograph():
    return Image.fromarray(np.clip(sample_image(), 0, 255).astype(np.uint8).transpose(1, 2, 0))


def with_metadata():
    image = photograph()
    exif = Image.Exif()
    exif[0x010E] = "a gradient"
    buffer = io.BytesIO()
    image.save(buffer, "PNG", dpi=(300, 300), exif=exif, icc_profile=bytes(range(64)))
    return Image.open(io.BytesIO(buffer.getvalue()))


def two_tiles():
    return photograph().resize((520, 5), Image.Resampling.NEAREST)


# name: image, effort, options; coded by the chain, so that the bytes too are for ever
CHAIN = {
    "rgb-fast": (photograph, "fast", {}),
    "rgb-default": (photograph, "default", {}),
    "rgb-best": (photograph, "best", {}),
    "metadata": (with_metadata, "fast", {}),
    "grey": (lambda: photograph().convert("L"), "default", {}),
    "one-pixel": (lambda: photograph().crop((3, 3, 4, 4)), "fast", {}),
    "two-tiles": (two_tiles, "fast", {}),
    "lossy": (photograph, "default", {"timestep": 2}),
    "lossy-grey": (lambda: photograph().convert("L"), "fast", {"timestep": 1}),
    "progressive": (with_metadata, "best", {"progressive": True}),
    "progressive-tiles": (two_tiles, "fast", {"progressive": True, "previews": (4, 3)}),
}
# coded by a fallback, whose bytes may differ from one release of its library to the next
FALLBACK = {
    "flat": lambda: Image.new("RGB", (40, 30), (10, 200, 30)),
    "bilevel": lambda: photograph().convert("1"),
    "palette": lambda: photograph().quantize(7),
    "grey-alpha": lambda: photograph().convert("LA"),
    "rgba": lambda: photograph().convert("RGBA"),
    "sixteen-bit": lambda: Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 101),
}


def coded_by_chain(name):
    image, effort, options = CHAIN[name]

    def large(image):
        return "raw", image.tobytes() * 9

    with (
        mock.patch("diffcodec.codec.encode_fallback", large),
        mock.patch("diffcodec.layered.encode_fallback", large),
    ):
        return encode(image(), load_model(MODEL), effort, **options)


def describe(image):
    pixels = hashlib.sha256(image.tobytes()).hexdigest()
    info = sorted(name for name in image.info if name in ("dpi", "exif", "icc_profile"))
    return {"mode": image.mode, "size": list(image.size), "pixels": pixels, "info": info}


def main():
    tiny_model(FOLDER, name=MODEL.stem)
    expected = {}
    for name in (*CHAIN, *FALLBACK):
        data = (
            coded_by_chain(name) if name in CHAIN else encode(FALLBACK[name](), load_model(MODEL))
        )
        (FOLDER / f"{name}.dfc").write_bytes(data)
        expected[name] = describe(decode(data, model=load_model(MODEL)))
    EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
