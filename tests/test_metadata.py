"""What comes with the pixels comes back with them, or is named."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from samples import make_image, saved

import diffcodec
from diffcodec.container.reader import parse
from diffcodec.errors import CorruptError, FormatError, LimitError, UnsupportedError
from diffcodec.images import png
from diffcodec.images.metadata import apply_metadata, get_metadata
from diffcodec.images.modes import as_image
from diffcodec.images.reading import read_image
from diffcodec.images.writing import write_image
from diffcodec.limits import Limits

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r/></x:xmpmeta>'
EXIF = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
RAW_PROFILE = b"\nexif\n      34\n" + (b"Exif\0\0" + EXIF).hex().encode() + b"\n"
CHUNKS = {
    "PQ": (b"cICP", bytes([9, 16, 0, 1])),
    "mastering display": (b"mDCV", struct.pack(">8HII", *range(8), 10**7, 1)),
    "light level": (b"cLLI", struct.pack(">2I", 10**7, 10**6)),
    "gamma": (b"gAMA", struct.pack(">I", 45455)),
    "chromaticities": (b"cHRM", struct.pack(">8I", *range(31270, 31278))),
    "sRGB": (b"sRGB", b"\1"),
    "significant bits": (b"sBIT", bytes([5, 6, 5])),
    "background": (b"bKGD", struct.pack(">3H", 1, 2, 3)),
    "aspect": (b"pHYs", struct.pack(">2IB", 4, 3, 0)),
    "senseless resolution": (b"pHYs", struct.pack(">2IB", 0, 0, 1)),
    "resolution": (b"pHYs", struct.pack(">2IB", 2835, 11811, 1)),
    "time": (b"tIME", struct.pack(">H5B", 2024, 2, 29, 12, 0, 59)),
    "suggested palette": (b"sPLT", b"name\0\x08" + bytes(12)),
    "text": (b"tEXt", b"parameters\0steps: 20"),
    "compressed text": (b"zTXt", b"workflow\0\0" + zlib.compress(bytes(3 << 20))),
    "international text": (b"iTXt", b"Title\0\0\0de\0Titel\0" + "Grün".encode()),
    "EXIF as ImageMagick writes it": (
        b"zTXt",
        b"Raw profile type exif\0\0" + zlib.compress(RAW_PROFILE),
    ),
    "XMP": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    "XMP, compressed": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
    "EXIF": (b"eXIf", EXIF),
    "a private chunk that is safe to copy": (b"prVt", b"any"),
    "a profile that is damaged": (b"iCCP", b"bad\0\0" + zlib.compress(bytes(3000))[:-9]),
    "a malformed gamma": (b"gAMA", b"\0"),
}


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def png_with(
    *chunks: tuple[bytes, bytes], image: Image.Image | None = None, late: bool = False
) -> bytes:
    """A PNG with more chunks, behind the header, or behind the pixels."""
    data = saved(image or make_image("RGB", (9, 7))).getvalue()
    place = data.index(b"IEND") - 4 if late else 33
    return data[:place] + b"".join(chunk(*each) for each in chunks) + data[place:]


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    found, position = [], 8
    while position < len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        content = data[position + 8 : position + 8 + length]
        if name not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            found.append((name, content))
        position += 12 + length
    return found


def through(image: Image.Image, format: str = "PNG") -> bytes:
    """An image made anew from its samples and metadata only, as a file."""
    new = Image.frombytes(image.mode, image.size, image.tobytes())
    apply_metadata(new, get_metadata(image))
    stream = io.BytesIO()
    write_image(new, stream, format)
    return stream.getvalue()


@pytest.mark.parametrize("late", [False, True], ids=["before the pixels", "behind them"])
@pytest.mark.parametrize("name", CHUNKS)
def test_every_chunk_of_a_png_comes_back(name, late):
    data = png_with(CHUNKS[name], late=late)
    read = read_image(io.BytesIO(data))
    assert "not_kept" not in read.info
    assert chunks_of(through(read)) == [CHUNKS[name]]
    assert chunks_of(through(read_image(io.BytesIO(through(read))))) == [CHUNKS[name]]


def test_all_chunks_together_come_back_where_the_standard_wants_them():
    names = [
        name
        for name in CHUNKS
        if not name.startswith(("a ", "senseless", "aspect", "XMP,", "compressed"))
    ]
    data = through(read_image(io.BytesIO(png_with(*(CHUNKS[name] for name in names)))))
    found = chunks_of(data)
    assert sorted(found) == sorted(CHUNKS[name] for name in names)
    opened = Image.open(io.BytesIO(data))
    assert (opened.info["gamma"], opened.info["srgb"], opened.info["xmp"]) == (0.45455, 1, XMP)
    palette = make_image("P", (9, 7))
    data = through(read_image(io.BytesIO(png_with(CHUNKS["PQ"], image=palette))))
    assert data.index(b"cICP") < data.index(b"PLTE")
    image = make_image("P", (9, 7))
    image.info["png_chunks"] = ((b"bKGD", b"\7"), CHUNKS["gamma"])
    data = through(image)
    assert data.index(b"gAMA") < data.index(b"PLTE") < data.index(b"bKGD") < data.index(b"IDAT")


def test_what_pillow_has_a_name_for_has_it_in_a_decoded_image(tiny):
    data = png_with(*(CHUNKS[name] for name in ("gamma", "chromaticities", "aspect", "XMP")))
    opened = Image.open(io.BytesIO(data))
    info = diffcodec.decode(diffcodec.encode(opened, tiny), model=tiny).info
    for name in ("gamma", "chromaticity", "aspect", "xmp"):
        assert info[name] == opened.info[name]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", ["PQ", "text", "international text", "EXIF", "gamma"])
def test_an_image_that_pillow_opened_keeps_its_chunks(name, late):
    data = png_with(CHUNKS[name], late=late)
    assert chunks_of(through(as_image(Image.open(io.BytesIO(data))))) == [CHUNKS[name]]
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    expected = [] if name == "PQ" else [CHUNKS[name]]  # which Pillow has dropped
    assert chunks_of(through(as_image(loaded))) == expected


def test_what_is_removed_from_an_opened_image_stays_away():
    opened = Image.open(io.BytesIO(png_with(CHUNKS["EXIF"], CHUNKS["gamma"])))
    del opened.info["exif"]
    assert chunks_of(through(as_image(opened))) == [CHUNKS["gamma"]]


def test_much_text_behind_the_pixels_of_an_opened_image():
    opened = Image.open(io.BytesIO(png_with(CHUNKS["compressed text"], late=True)))
    assert chunks_of(through(as_image(opened))) == [CHUNKS["compressed text"]]


def test_a_large_profile_comes_back():
    profile = np.random.default_rng(0).bytes(3 << 19)
    image = make_image("RGB", (9, 7))
    read = read_image(saved(image, "JPEG", icc_profile=profile))
    assert read_image(io.BytesIO(through(read))).info["icc_profile"] == profile


# --- what can't be kept


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (chunk(b"prVT", b"x") + chunk(b"iDOT", b"x"), ("chunk 'prVT'",)),
        (chunk(b"iDOT", bytes(28)), None),  # where the file's pieces are, which says nothing
    ],
)
def test_chunks_that_are_not_safe_to_copy_are_named(extra, named):
    data = saved(make_image("RGB", (9, 7))).getvalue()
    read = read_image(io.BytesIO(data[:33] + extra + data[33:]))
    assert read.info.get("not_kept") == named
    assert chunks_of(through(read)) == []


def test_bytes_behind_a_png_are_named():
    data = saved(make_image("RGB", (9, 7))).getvalue() + b"PK\3\4"
    assert read_image(io.BytesIO(data)).info["not_kept"] == ("4 bytes behind the end of the PNG",)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">2H", marker, 2 + len(content)) + content


def test_segments_of_a_jpeg_that_are_not_kept_are_named():
    data = saved(make_image("RGB", (16, 16)), "JPEG", comment=b"a comment", xmp=XMP).getvalue()
    iptc = segment(0xFFED, b"Photoshop 3.0\x008BIM\4\4\0\0\0\0\0\0")
    read = read_image(io.BytesIO(data[:2] + iptc + segment(0xFFEB, b"HDR\0x") + data[2:]))
    assert read.info["not_kept"] == ("Photoshop and IPTC fields (APP13)", "segment APP11 'HDR'")
    assert read.info["xmp"] == XMP
    assert chunks_of(through(read)) == [
        (b"tEXt", b"Comment\0a comment"),
        CHUNKS["XMP"],
    ]
    plain = read_image(saved(make_image("RGB", (16, 16)), "JPEG", exif=b"Exif\0\0" + EXIF))
    assert "not_kept" not in plain.info


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "comment": b"\xff\xd9", "exif": b"Exif\0\0" + EXIF}),
        ("JPEG", {"restart_marker_blocks": 1, "quality": 100}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True, "exif": EXIF}),
    ],
)
def test_what_cameras_put_behind_the_end_is_named(format, options):
    """Such as the film of a moving photograph."""
    image = make_image("RGB", (33, 32))
    data = saved(image, format, **options).getvalue()
    assert "not_kept" not in read_image(io.BytesIO(data)).info
    read = read_image(io.BytesIO(data + b"\0\0\0\x18ftypmp42\xff\xd9"))
    assert read.info["not_kept"] == (f"14 bytes behind the end of the {format}",)


def test_tags_of_a_tiff_that_are_not_kept_are_named():
    image = make_image("RGB", (16, 16))
    data = saved(image, "TIFF", tiffinfo={270: "a picture", 315: "me", 700: XMP}).getvalue()
    read = read_image(io.BytesIO(data))
    assert read.info == {"xmp": XMP, "not_kept": ("TIFF tags ImageDescription, Artist",)}
    assert "not_kept" not in read_image(saved(image, "TIFF", compression="tiff_lzw")).info


def test_encode_warns_of_what_it_does_not_keep(tiny, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_with((b"prVT", b"x")))
    with Image.open(path) as opened:
        for source in (path, opened):
            with pytest.warns(UserWarning, match=r"not kept of the image's file: chunk 'prVT'"):
                diffcodec.encode(source, tiny)
    assert diffcodec.encode(path, tiny, strip=True)  # without a warning


@pytest.mark.parametrize(
    ("format", "lost"),
    [
        ("PNG", []),
        ("WEBP", ["the resolution", "gamma", "text and other chunks of PNG"]),
        ("TIFF", ["EXIF", "gamma", "text and other chunks of PNG"]),
        ("BMP", ["the ICC profile", "EXIF", "XMP", "gamma", "text and other chunks of PNG"]),
    ],
)
def test_what_a_format_does_not_keep_is_returned(format, lost):
    image = make_image("RGB", (9, 7))
    image.info |= {"icc_profile": b"profile", "exif": b"Exif\0\0" + EXIF, "xmp": XMP}
    image.info |= {"dpi": (72, 72), "gamma": 0.5, "png_chunks": (CHUNKS["text"],)}
    stream = io.BytesIO()
    assert sorted(write_image(image, stream, format)) == sorted(lost)
    stream.seek(0)
    read = Image.open(stream)
    assert (read.info.get("xmp") == XMP) == ("XMP" not in lost)


# --- what is not there is not made up


def test_no_resolution_is_made_up():
    image = make_image("RGB", (9, 7))
    assert read_image(saved(image, "TIFF")).info == {}
    assert read_image(saved(image, "JPEG", exif=b"Exif\0\0" + EXIF)).info.keys() == {"exif"}
    exif = Image.Exif()
    exif.update({0x011A: 300.0, 0x011B: 300.0, 0x0128: 2})
    assert read_image(saved(image, "JPEG", exif=exif)).info["dpi"] == (300, 300)
    assert read_image(saved(image, "TIFF", dpi=(300, 300))).info["dpi"] == (300, 300)


def test_the_aspect_of_pixels_of_a_jpeg_is_kept():
    data = bytearray(saved(make_image("RGB", (9, 7)), "JPEG").getvalue())
    place = data.index(b"JFIF\0") + 7
    data[place : place + 5] = struct.pack(">B2H", 0, 4, 3)
    read = read_image(io.BytesIO(bytes(data)))
    assert chunks_of(through(read)) == [CHUNKS["aspect"]]


# --- grey levels of few bits


@pytest.mark.parametrize(
    ("bits", "level"),
    [(bits, level) for bits in (1, 2, 4, 8, 16) for level in (0, 1, (1 << bits) - 1)],
)
def test_the_transparent_grey_level_comes_back(bits, level, tmp_path):
    row = (np.arange(16) % (1 << bits)).astype(">u2")
    if bits < 16:
        wide = (row[:, None] >> np.arange(bits - 1, -1, -1)) & 1
        packed = np.packbits(wide.astype(np.uint8)).tobytes()
    else:
        packed = row.tobytes()
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 1, bits, 0, 0, 0, 0))
    data += chunk(b"tRNS", struct.pack(">H", level)) + chunk(b"bKGD", struct.pack(">H", level))
    data += chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    loaded = Image.open(path)
    loaded.load()
    scale = {2: 85, 4: 17}.get(bits, 1)
    with Image.open(path) as opened:
        images = read_image(path), as_image(opened), as_image(loaded)
    for image in images:
        written = through(image)
        assert dict(chunks_of(written))[b"tRNS"] == struct.pack(">H", scale * level)
        if image.mode != "I;16":  # which Pillow does not convert so
            back = Image.open(io.BytesIO(written))
            opaque = np.asarray(back.convert("RGBA"))[0, :, 3] == 255
            assert np.array_equal(opaque, row != level)
    assert dict(chunks_of(through(read_image(path))))[b"bKGD"] == struct.pack(">H", scale * level)


# --- without metadata


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_strip_leaves_out_everything_but_the_picture(options, tiny):
    data = png_with(*(CHUNKS[name] for name in ("PQ", "gamma", "text", "XMP", "EXIF")))
    image = Image.open(io.BytesIO(data))
    image.info["transparency"] = (1, 2, 3)
    kept = parse(diffcodec.encode(image, tiny, **options)).metadata
    assert {"chunks", "text", "xmp", "exif", "transparency"} <= set(kept)
    image = Image.open(io.BytesIO(data))
    image.info["transparency"] = (1, 2, 3)
    coded = diffcodec.encode(image, tiny, strip=True, **options)
    assert set(parse(coded).metadata) - {"Colors"} == {"transparency"}
    palette = make_image("P", (9, 7))
    palette.info["dpi"] = (72, 72)
    assert set(parse(diffcodec.encode(palette, tiny, strip=True)).metadata) == {"palette"}
    assert palette.info["dpi"] == (72, 72)


# --- in the file, and hostile


def test_chunks_are_packed_as_documented():
    image = make_image("RGB", (9, 7))
    image.info |= {"gamma": 0.45455, "xmp": XMP}
    image.info["png_chunks"] = (CHUNKS["text"], CHUNKS["PQ"])
    metadata = get_metadata(image)
    assert zlib.decompress(metadata["xmp"]) == XMP
    gamma = b"\0\0\0\4gAMA\0\0\xb1\x8f"
    assert zlib.decompress(metadata["chunks"]) == gamma + b"\0\0\0\4cICP\x09\x10\0\1"
    assert (
        zlib.decompress(metadata["text"])
        == b"\0\0\0\x14tEXtparameters\0steps: 20"[:8] + (CHUNKS["text"][1])
    )


@pytest.mark.parametrize(
    "content",
    [
        b"\0\0\0\5cICP\0\0\0\0",
        b"\0\0\0\0cIC",
        b"\0\0\0\0CICP",
        b"\0\0\0\0tRNS",
        b"\0\0\0\0c\0CP",
        b"\0\0\0\0tEXt",
        b"\0\0\0\0prVt" * ((1 << 16) + 1),
    ],
)
def test_malformed_chunks_are_refused(content):
    with pytest.raises(CorruptError, match="metadata chunks is damaged"):
        apply_metadata(Image.new("L", (2, 2)), {"chunks": zlib.compress(content)})
    with pytest.raises(CorruptError, match="metadata text is damaged"):
        text = zlib.compress(b"\0\0\0\0cICP")
        apply_metadata(Image.new("L", (2, 2)), {"text": text})


def test_chunks_are_bounded():
    image = Image.new("L", (2, 2))
    image.info["png_chunks"] = ((b"prVt", b""),) * ((1 << 16) + 1)
    with pytest.raises(LimitError, match="65537 chunks"):
        get_metadata(image)
    bomb = {"text": zlib.compress(bytes(10**6))}
    with pytest.raises(LimitError, match="101 bytes"):
        apply_metadata(image, bomb, Limits(metadata_bytes=100))
    profile = (b"iCCP", b"large\0\0" + zlib.compress(bytes(1000)))
    read = read_image(io.BytesIO(png_with(profile)), Limits(metadata_bytes=999))
    assert read.info == {"png_chunks": (profile,)}  # never inflated


@pytest.mark.parametrize(
    "junk",
    [
        {"gamma": "72", "srgb": 256, "aspect": (1, 2, 3), "chromaticity": 5, "xmp": "text"},
        {"gamma": float("nan"), "srgb": None, "aspect": ("a", "b"), "png_chunks": "x"},
        {"gamma": float("inf"), "srgb": -1, "png_chunks": ((b"tRNS", b""),)},
        {"gamma": 1e300, "png_chunks": ((b"tEXt",), 5)},
    ],
)
def test_senseless_fields_are_dropped(junk):
    image = make_image("L", (3, 3))
    image.info |= junk
    assert get_metadata(image) == {}


@pytest.mark.parametrize("place", ["tEXt", "IDAT", "IHDR", "IEND"])
def test_a_wrong_checksum_of_any_chunk_is_damage(place):
    data = bytearray(png_with(CHUNKS["text"]))
    data[data.index(place.encode())] ^= 0x20 if place == "tEXt" else 0
    start = data.index(place.encode() if place != "tEXt" else b"TEXt")
    length = int.from_bytes(data[start - 4 : start])
    data[start + 4 + length] ^= 1
    with pytest.raises(FormatError, match=r"damaged PNG: the checksum of its chunk"):
        read_image(io.BytesIO(bytes(data)))


def test_a_critical_chunk_that_is_not_known_is_refused():
    with pytest.raises(UnsupportedError, match="'CgBI'"):
        read_image(io.BytesIO(png_with((b"CgBI", bytes(4)))))


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted({c for c, _ in CHUNKS.values()})), st.binary(max_size=40))
    )
)
def test_any_chunks_come_back_or_are_refused(chunks):
    alone = dict(chunks)  # one of each kind
    read = read_image(io.BytesIO(png_with(*alone.items())))
    assert sorted(chunks_of(through(read))) == sorted(alone.items())


def test_text_of_a_png_that_pillow_writes():
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "a", zip=True)
    info.add_itxt("Author", "b", lang="de")
    image = make_image("L", (4, 4))
    data = through(read_image(saved(image, pnginfo=info)))
    assert Image.open(io.BytesIO(data)).text == {"Title": "a", "Author": "b"}


def test_every_type_that_is_kept_is_one_of_a_chunk():
    assert all(png.is_chunk((name, b"")) for name, _ in CHUNKS.values())
    assert not png.is_chunk((b"tRNS", b""))


def test_a_jpeg_holds_what_its_markers_do():
    exif = Image.Exif()
    exif[0x112] = 6
    image = make_image("RGB", (9, 7))
    for block in (exif.tobytes(), exif.tobytes().removeprefix(b"Exif\0\0")):  # PNG's, WebP's
        image.info = {"exif": block, "dpi": (72, 65535)}
        stream = io.BytesIO()
        assert write_image(image, stream, "JPEG", exact=False) == []
        read = Image.open(stream)
        assert (read.getexif()[0x112], read.info["dpi"]) == (6, (72, 65535))
    large = {"exif": b"Exif\0\0" + bytes(70000), "xmp": bytes(70000), "icc_profile": bytes(1 << 25)}
    image.info = large | {"dpi": (70000, 70000)}
    stream = io.BytesIO()
    lost = write_image(image, stream, "JPEG", exact=False)
    assert sorted(lost) == ["EXIF", "XMP", "the ICC profile", "the resolution"]
    assert not {*image.info} & {*Image.open(stream).info}
