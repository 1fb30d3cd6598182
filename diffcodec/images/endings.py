"""Where the image in a file ends: cameras and others put more behind it, such as a film."""

import re

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # what ends the entropy-coded data of a scan
_END_OF_IMAGE = 0xD9


def end_of_image(data: bytes, format: str) -> int:
    """How many bytes belong to the image; all, where that can't be seen.

    Args:
        data: the file.
        format: that it is in, by Pillow's name.
    """
    if format == "JPEG":
        return _end_of_jpeg(data)
    if format == "WEBP":
        size = 8 + int.from_bytes(data[4:8], "little")
        return min(len(data), size + size % 2)
    return len(data)


def _end_of_jpeg(data: bytes) -> int:
    position = 2
    while found := _MARKER.search(data, position):
        position = found.end()
        marker = data[position - 1]
        if marker == _END_OF_IMAGE:
            return position
        if marker != 0x01:  # which stands alone
            position += int.from_bytes(data[position : position + 2])
    return len(data)
