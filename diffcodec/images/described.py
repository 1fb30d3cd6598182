"""What files say of their pixels, where Pillow's ``info`` has it wrong, elsewhere or not at all."""

from collections.abc import Mapping
from typing import Any

from PIL import Image, PngImagePlugin, TiffImagePlugin, TiffTags
from PIL.JpegImagePlugin import JpegImageFile

from diffcodec.images.png import Chunk, is_chunk

_EXIF_RESOLUTION = 0x011A
_APP_KEPT = (  # by how an APPn segment of a JPEG begins: those that are kept, or are of the code
    ("APP0", b"JFIF\0"),
    ("APP1", b"Exif\0"),
    ("APP1", b"http://ns.adobe.com/xap/1.0/\0"),
    ("APP2", b"ICC_PROFILE\0"),
    ("APP2", b"MPF\0"),
    ("APP14", b"Adobe"),
)
_TIFF_KEPT = frozenset(  # tags that say how samples are coded, and those that are kept
    [
        *(254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 280, 281, 282, 283, 284),
        *(292, 293, 296, 297, 317, 320, 322, 323, 324, 325, 338, 339, 340, 341, 347),
        *(530, 531, 532, 700, 34675),
    ]
)


def described(image: Image.Image, more: Mapping[str, Any]) -> dict[Any, Any]:
    """``info``, and more of the image, as its file has it, with ``png_chunks`` and ``not_kept``.

    Pillow has a resolution of 1 dpi for a TIFF that tells none, and of 72 for a JPEG.
    """
    info: dict[Any, Any] = {**image.info, **more}
    lost = list(info.get("not_kept", ()))
    chunks: list[Chunk] = list(info.get("png_chunks", ()))
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if not {TiffImagePlugin.X_RESOLUTION, TiffImagePlugin.Y_RESOLUTION} <= set(image.tag_v2):
            info.pop("dpi", None)
        if tags := [TiffTags.lookup(tag).name for tag in image.tag_v2 if tag not in _TIFF_KEPT]:
            lost.append(f"TIFF tags {', '.join(tags)}")
    elif isinstance(image, JpegImageFile):
        if info.get("jfif_unit") not in (1, 2) and _EXIF_RESOLUTION not in image.getexif():
            info.pop("dpi", None)
        density = info.get("jfif_density")
        if info.get("jfif_unit") == 0 and density and density[0] != density[1]:
            info["aspect"] = density
        lost += _lost_segments(image)
    elif isinstance(image, PngImagePlugin.PngImageFile) and "png_chunks" not in info:
        chunks += _chunks_of_loaded(image)
    comment = info.get("comment")
    if image.format in ("JPEG", "MPO", "GIF") and isinstance(comment, bytes) and comment:
        chunks.append((b"tEXt", b"Comment\0" + comment.rstrip(b"\0").replace(b"\0", b"\n")))
    return info | {"png_chunks": tuple(chunks), "not_kept": tuple(lost)}


def _lost_segments(image: JpegImageFile) -> list[str]:
    lost = []
    for name, content in image.applist:
        if name == "APP13" and content.startswith(b"Photoshop"):
            lost.append("Photoshop and IPTC fields (APP13)")
        elif name.startswith("APP") and not any(
            name == kept and content.startswith(start) for kept, start in _APP_KEPT
        ):
            label = content[:30].split(b"\0")[0].decode("ascii", "replace")
            lost.append(f"segment {name} {label!r}")
    return list(dict.fromkeys(lost))


def _chunks_of_loaded(image: PngImagePlugin.PngImageFile) -> list[Chunk]:
    """What Pillow still has of a PNG that it has loaded: text, and chunks of private kinds."""
    made = PngImagePlugin.PngInfo()
    for key, value in image.text.items():
        if key == "XML:com.adobe.xmp":
            continue
        if isinstance(value, PngImagePlugin.iTXt):
            made.add_itxt(key, value, value.lang or "", value.tkey or "")
        else:
            made.add_text(key, value)
    chunks = [*made.chunks, *image.private_chunks]
    return [chunk[:2] for chunk in chunks if is_chunk(chunk[:2])]
