"""A second reader of archives, written from docs/format.md and docs/decoding.md alone."""

import json
import struct
import threading
import zlib
from contextlib import contextmanager

import reference
from PIL import Image

PAGE = 4096


def read(data, models):
    """Of each image its name, label, mode, size and samples; models by identity."""
    assert data[:6] == b"\x89DFCA\x01"
    root = json.loads(zlib.decompress(find_root(data)))
    images = []
    for number, place in enumerate(root["pages"]):
        page = json.loads(zlib.decompress(record(data, place, b"P")))
        groups = {}
        count = min(PAGE, root["images"] - PAGE * number)
        names, labels = (page.get(key) or [None] * count for key in ("names", "labels"))
        places = [(g, first + k) for g, first, length in page["runs"] for k in range(length)]
        assert len(places) == len(names) == len(labels) == count
        for (g, k), name, label in zip(places, names, labels, strict=True):
            offset, size, mode, width, height = page["groups"][g]
            if g not in groups:
                groups[g] = group(record(data, (offset, size), b"G"), models)
            found = groups[g][k]
            assert found[:2] == (mode, (width, height))
            images.append((str(len(images)) if name is None else name, label, *found))
    return images


def find_root(data):
    for end in range(len(data), 21, -1):
        at = end - 16
        offset, crc, mark = struct.unpack("<QI4s", data[at:end])
        if mark == b"\x89DFZ" and crc == zlib.crc32(2 * struct.pack("<Q", offset)):
            return record(data, (offset, at - offset), b"R")
    raise AssertionError("no root")


def record(data, place, kind):
    offset, size = place
    whole, at = data[offset : offset + size], struct.pack("<Q", offset)
    head, content = whole[:12], whole[16:-4]
    assert head == b"\x89DF" + kind + struct.pack("<Q", len(content))
    assert whole[12:16] == struct.pack("<I", zlib.crc32(at + head))
    assert whole[-4:] == struct.pack("<I", zlib.crc32(at + content))
    return content


def group(content, models):
    """Mode, size and samples of each image."""
    file = reference.Bytes(content)
    kind = file.u8()
    if kind == 0:
        lengths = [file.varint() for _ in range(file.varint())]
        files = [file.take(length) for length in lengths]
        return [reference.decode(each, models.get(each[8:12])) for each in files]
    assert kind == 1
    flags = file.u8()
    mode = reference.MODES[flags & 7]
    assert mode in ("L", "RGB")
    coded = "L" if flags & 16 else mode
    size = file.varint(), file.varint()
    count, crc, identity = file.varint(), file.u32(), file.take(4)
    number = file.u8()
    plan = reference.PLANS[(number & ~64) - 16]
    images, place = {}, -1
    for _ in range(file.varint()):
        place += 1 + file.varint()
        coder = file.u8()
        image = reference.fallback(coder, file.take(file.varint()), mode, size)
        images[place] = image.tobytes()
    labels = {}
    if flags & 0x40:
        width = file.u8()
        assert 1 <= width <= 24
        packed = int.from_bytes(file.take((count * width + 7) // 8), "little")
        assert packed < 1 << count * width
        numbers = [packed >> width * k & (1 << width) - 1 for k in range(count)]
        labels = {k: number - 1 for k, number in enumerate(numbers) if number}
        assert not set(labels) & set(images)
    colors = None
    if flags & 8:
        colors = reference.color_set(file.take(file.varint()), len(coded))
    adaptation = {}
    if number & 64:
        adaptation = reference.read_adaptation(reference.Bytes(file.take(file.varint())))
    if flags & 32:
        zlib.decompress(file.take(file.varint()))
    payload = file.rest()
    places = [place for place in range(count) if place not in images]
    if places:
        model = models[identity]
        chains = [reference.Chain(model, plan, coded, k, size, 0, colors) for k in places]
        for place, chain in zip(places, chains, strict=True):
            chain.label, chain.adaptation = labels.get(place), adaptation
        for place, chain, x in zip(places, chains, share(chains, payload), strict=True):
            image = Image.new(mode, size)
            reference.paste(image, mode, chain.to_samples(x), 0, 0)
            images[place] = image.tobytes()
    found = [(mode, size, images[place]) for place in range(count)]
    assert zlib.crc32(b"".join(samples for *_, samples in found)) == crc
    return found


def share(chains, payload):
    """x of each chain; each runs in a thread, and waits for its turn with the one stack."""
    stack = reference.begin(reference.payload_words(payload), tile=0)
    turns = Turns(len(chains))
    for number, chain in enumerate(chains):
        chain.stack, chain.turn = stack, turns.of(number)
    found = [None] * len(chains)

    def run(number):
        with turns.changed:  # which is let go of only to wait
            try:
                found[number] = chains[number].on_stack()
            except BaseException:
                turns.fail()
                raise

    threads = [threading.Thread(target=run, args=[k]) for k in range(len(chains))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    most = sum(chain.most_seed_words for chain in chains)
    assert all(x is not None for x in found)
    reference.check_top(reference.end(stack, most, tile=0), 0)
    return found


class Turns:
    """Part after part, of the first chain first where it is popped, and last where it is pushed."""

    def __init__(self, count):
        self.count, self.done, self.failed = count, 0, False
        self.changed = threading.Condition()

    def of(self, number):
        part = 0

        @contextmanager
        def turn(pushes=False):
            nonlocal part
            rank = self.count - 1 - number if pushes else number
            mine = part * self.count + rank
            part += 1
            self.changed.wait_for(lambda: self.failed or self.done == mine)
            assert not self.failed
            yield
            self.done += 1
            self.changed.notify_all()

        return turn

    def fail(self):
        self.failed = True
        self.changed.notify_all()
