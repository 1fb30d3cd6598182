"""The index of an archive whose last root or tail is damaged, from the records before it."""

from diffcodec.archive.index import PAGE_IMAGES, Root, page_images
from diffcodec.archive.records import (
    HEADER,
    MODEL,
    PAGE,
    ROOT,
    TAIL,
    Place,
    Source,
    find_root,
    next_record,
    read_record,
    tail,
)
from diffcodec.errors import CorruptError, FormatError
from diffcodec.models.file import file_id


def last_root(source: Source) -> Root:
    """What an archive holds: by its last root, or by what is behind the last that is whole.

    Behind it records follow each other without a gap where an index was written to its end, and
    leftovers where it was not. So only what a root ends counts, if it or its tail is whole: a tail
    is written last of all, and a root is held against every byte before it.

    Raises:
        CorruptError: there is nothing whole.
    """
    try:
        place, content = find_root(source)
        root, end = Root.unpack(content), place.offset + place.size + TAIL.size
    except CorruptError:
        if (found := _next_root(source, Root(), len(HEADER))) is None:
            raise
        root, end = found
    while found := _next_root(source, root, end):
        root, end = found
    return root


def _next_root(source: Source, before: Root, start: int) -> tuple[Root, int] | None:
    """The root behind a place, and where its tail ends; None where no index was finished."""
    images, pages, models = before.images, list(before.pages), dict(before.models)
    is_whole, in_index = True, False
    while (head := next_record(source, start)) is not None:
        kind, place = head
        end = place.offset + place.size
        try:
            content = read_record(source, kind, place, "a record")
            count = page_images(content) if kind == PAGE else 0
        except FormatError:
            content, count = None, 0
            is_whole = False
        if kind == ROOT:
            has_tail = source.read(end, TAIL.size) == tail(place.offset)
            if content is not None and (has_tail or is_whole):
                return Root.unpack(content), end + TAIL.size
            return (Root(images, tuple(pages), models), end + TAIL.size) if has_tail else None
        if in_index and kind != PAGE:  # an index that was cut short, and another append
            images, pages = before.images, list(before.pages)
        in_index = kind == PAGE
        if kind == PAGE:
            if content is None:
                return None
            if images % PAGE_IMAGES:  # a page that was not full is written anew
                images -= images % PAGE_IMAGES
                del pages[-1]
            images += count
            pages.append(Place(*place))
        elif kind == MODEL and content is not None:
            models[file_id(content)] = place
        start = end
    return None
