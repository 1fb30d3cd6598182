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

from diffcodec import encode, load_model
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


# name: image, effort; coded by the chain, so that the bytes too are for ever
CHAIN = {
    "rgb-fast": (photograph, "fast"),
    "rgb-default": (photograph, "default"),
    "rgb-best": (photograph, "best"),
    "metadata": (with_metadata, "fast"),
    "grey": (lambda: photograph().convert("L"), "default"),
    "one-pixel": (lambda: photograph().crop((3, 3, 4, 4)), "fast"),
    "two-tiles": (lambda: photograph().resize((520, 5), Image.Resampling.NEAREST), "fast"),
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
    image, effort = CHAIN[name]
    with mock.patch("diffcodec.codec.encode_fallback", lambda i: ("raw", i.tobytes() * 9)):
        return encode(image(), load_model(MODEL), effort)


def describe(image):
    pixels = hashlib.sha256(image.tobytes()).hexdigest()
    info = sorted(name for name in image.info if name in ("dpi", "exif", "icc_profile"))
    return {"mode": image.mode, "size": list(image.size), "pixels": pixels, "info": info}


def main():
    tiny_model(FOLDER, name=MODEL.stem)
    expected = {}
    for name in (*CHAIN, *FALLBACK):
        image = CHAIN[name][0]() if name in CHAIN else FALLBACK[name]()
        data = coded_by_chain(name) if name in CHAIN else encode(image, load_model(MODEL))
        (FOLDER / f"{name}.dfc").write_bytes(data)
        expected[name] = describe(image)
    EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
