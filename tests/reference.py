"""A second decoder, written from docs/format.md, docs/colour-sets.md and docs/decoding.md alone.

Plain Python and NumPy; slow. It shares no code with the package, so that what both make of a file
is what the pages say.
"""

import bisect
import contextlib
import hashlib
import io
import json
import math
import struct
import zlib
from itertools import pairwise

import numpy as np
from PIL import Image

MODES = {1: "1", 2: "L", 3: "LA", 4: "P", 5: "RGB", 6: "RGBA", 7: "I;16"}
PLANS = {0: "fast", 1: "default", 2: "best", 3: "lossy"}
F32 = np.float32


# --- docs/format.md -------------------------------------------------------------------------------


class Bytes:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        assert self.at + count <= len(self.data)
        self.at += count
        return self.data[self.at - count : self.at]

    def u8(self):
        return self.take(1)[0]

    def u32(self):
        return int.from_bytes(self.take(4), "little")

    def varint(self):
        value = shift = 0
        while True:
            byte = self.u8()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def rest(self):
        return self.take(len(self.data) - self.at)


def edges(n, most=512):
    k = -(-n // most)
    return [0, *(8 * -(-i * n // (8 * k)) for i in range(1, k)), n]


def decode(data, model):
    """The mode, size and samples of a file, the last as bytes."""
    file = Bytes(data)
    assert file.take(4) == b"\x89DFC"
    assert file.u8() == 1
    flags = file.u8()
    mode = MODES[flags & 7]
    width, height = file.varint(), file.varint()
    identity = file.take(4)
    colors, most, adaptation = read_metadata(file, mode) if flags & 32 else (None, 512, {})
    assert not (adaptation and flags & 8)
    assert most == 512 or not flags & 16
    plan, stops, label, may_end = None, [], None, False
    if flags & 8:
        number = file.u8()
        plan, may_end = PLANS[(number & ~96) - 16], bool(number & 64)
        label = file.varint() if number & 32 else None
        stops = [file.varint() for _ in range(file.varint())]
    checksum = file.u32() if stops and stops[-1] else None
    header = data[: file.at]
    xs, ys = ([0, width], [0, height]) if flags & 16 else (edges(width, most), edges(height, most))
    boxes = [(x, y, r, b) for y, b in pairwise(ys) for x, r in pairwise(xs)]
    sections = []
    for section in range(max(1, len(stops))):
        lengths = [file.varint() for _ in boxes]
        contents = []
        for tile, length in enumerate(lengths):
            content = file.take(length)
            assert file.u32() == zlib.crc32(header + struct.pack("<2I", section, tile) + content)
            contents.append(content)
        sections.append(contents)
    assert file.at == len(data)

    out = Image.new(mode, (width, height))
    z, last = np.zeros((3, height, width)), None
    for tile, (left, top, right, bottom) in enumerate(boxes):
        size = (right - left, bottom - top)
        above = None
        if stops:
            assert identity == model.identity
            ends = [stop for stop in stops if stop]
            chain = Chain(model, plan, mode, tile, size, colors=colors, exact=not stops[-1])
            chain.label = label
            layers = [contents[tile] for contents in sections[: len(ends)]]
            assert not (stops[-1] == 0 and may_end)
            above = chain.descend(layers, ends, may_end)
            if stops[-1]:
                paste(out, mode, chain.to_samples(chain.network(above, ends[-1])[0]), left, top)
                z[:, top:bottom, left:right], last = above, chain
                continue
        content = Bytes(sections[-1][tile])
        number = content.u8()
        coder, has_outliers = number & 63, number >> 6
        assert has_outliers < 2
        if coder < 16:
            crc = content.u32()
            payload, added = last_fields(content, has_outliers)
            part = with_outliers(fallback(coder, payload, mode, size), added)
            assert zlib.crc32(part.tobytes()) == crc
            if len(boxes) == 1:
                out = part
            else:
                out.paste(part, (left, top))
            continue
        assert identity == model.identity
        number = content.u8() if coder & 4 else 0
        assert coder & 16 and coder & 3 < 3 and (number > 0) == bool(coder & 4)
        assert not (stops and coder & 44)
        own = content.varint() if coder & 32 else label
        if flags & 64:
            [content.varint() for _ in range(content.varint())]
        chain = Chain(model, PLANS[coder & 3], mode, tile, size, number, colors)
        chain.label, chain.adaptation = own, adaptation
        preview = ends[-1] if stops else 0
        if coder & 8:
            preview = content.varint()
            above = chain.descend([content.take(content.varint())], [preview])
        payload, added = last_fields(content, has_outliers)
        x, crc = chain.ascend(payload_words(payload), preview, above)
        part = Image.new(mode, size)
        paste(part, mode, chain.to_samples(x), 0, 0)
        part = with_outliers(part, added)
        out.paste(part, (left, top))
        check_top(crc, zlib.crc32(part.tobytes()))
    for window, core in seams(xs, ys) if stops and stops[-1] else ():
        (x0, x1), (y0, y1) = window
        (left, right), (top, bottom) = core
        mean = last.network(z[:, y0:y1, x0:x1], stops[-1])[0]
        inner = mean[:, top - y0 : bottom - y0, left - x0 : right - x0]
        paste(out, mode, last.to_samples(inner), left, top)
    samples = out.tobytes()
    assert checksum is None or zlib.crc32(samples) == checksum
    return mode, (width, height), samples


def last_fields(content, has_outliers):
    """The payload of a tile, and its outliers or nothing."""
    length = content.varint() if has_outliers else 0
    assert not has_outliers or length
    rest = content.rest()
    assert length <= len(rest)
    return rest[: len(rest) - length], rest[len(rest) - length :]


def with_outliers(part, added):
    if not added:
        return part
    assert part.mode in ("L", "RGB") and added[0] < 3
    differences = fallback(added[0], added[1:], part.mode, part.size)
    return Image.fromarray(np.asarray(part) + np.asarray(differences))  # modulo 256


def spans(edges):
    """Of one side: window, core, and whether it is across a border."""
    found, borders = [], edges[1:-1]
    for start, end in pairwise(edges):
        core = start + 32 * (start in borders), end - 32 * (end in borders)
        found.append(((start, end), core, False))
    for before, at, after in zip(edges, borders, edges[2:], strict=False):
        window, core = ((max(before, at - reach), min(after, at + reach)) for reach in (64, 32))
        found.append((window, core, True))
    return sorted(found)


def seams(xs, ys):
    for y_window, y_core, y_across in spans(ys):
        for x_window, x_core, x_across in spans(xs):
            if (x_across or y_across) and x_core[0] < x_core[1] and y_core[0] < y_core[1]:
                yield (x_window, y_window), (x_core, y_core)


def read_metadata(file, mode):
    """Which colours can occur, the longest side of a tile, and the adaptation."""
    colors, most, adaptation = None, 512, {}
    for _ in range(file.u8()):
        name = file.take(file.u8())
        value = file.take(file.varint())
        if name == b"Colors":
            colors = color_set(value, 3 if mode == "RGB" else 1)
        elif name == b"Tiles":
            (eighth,) = value
            assert 12 <= eighth < 64
            most = 8 * eighth
        elif name == b"Adaptation":
            adaptation = read_adaptation(Bytes(value))
        elif name in (b"chunks", b"text"):
            chunks = Bytes(zlib.decompress(value))
            while rest := chunks.rest():
                length, kind = struct.unpack(">I4s", rest[:8])
                assert kind.isalpha() and kind[:1].islower() and kind != b"tRNS"
                assert (kind in (b"tEXt", b"zTXt", b"iTXt")) == (name == b"text")
                assert len(rest) >= 8 + length
                chunks = Bytes(rest[8 + length :])
        else:
            assert chr(name[0]).islower()
    return colors, most, adaptation


def read_adaptation(value):
    """Scales and shifts of the parameters of variables, [4, 2, parameters]."""
    tables = {}
    for which in range(3):
        if count := value.u8():
            tables[which] = np.frombuffer(value.take(8 * count), np.int8).reshape(4, 2, count)
    assert tables and not value.rest()
    return tables


def color_set(value, channels):
    """Which RGB triples can occur: a function of integers [3, height, width]."""
    kept = np.ones((3, 256), bool)
    if value[1:]:
        bits = np.frombuffer(zlib.decompress(value[1:]), np.uint8).reshape(channels, 32)
        kept[:channels] = np.unpackbits(bits, axis=1, bitorder="little")
    reached = triples(*conversion(value[0])) if value[0] else np.ones((256, 256, 256), bool)

    def can_occur(rgb):
        r, g, b = np.clip(rgb, 0, 255)
        inside = (rgb == [r, g, b]).all(0)
        return inside & kept[0][r] & kept[1][g] & kept[2][b] & reached[r, g, b]

    return can_occur


def conversion(number):
    """The tables of docs/colour-sets.md: of Y, red, blue, green_u, green_v."""
    v = np.arange(256)
    c = v - 128
    shift, tables = 0, (v << 16, *[0 * v] * 4)  # grey, 11
    if number == 1:
        red, blue = 119374 * (v - 137), 145352 * (v - 156)
        tables = 89024 * v, red, blue, -12714 * (blue >> 16), -33358 * (red >> 16)
    elif number == 2:
        red, blue = 91881 * c + 32768, 116130 * c + 32768
        tables = v << 16, red, blue, 32768 - 22554 * c, -46802 * c
    elif number in (3, 4):
        factors = [(13075, 16525, -3209, -6660), (14686, 17305, -1747, -4366)][number - 3]
        shift, tables = 3, (9539 * (v - 16) + 4096, *(factor * c for factor in factors))
    elif number in (5, 6, 7):
        black, luma, *factors = [
            (16, 9539, 13075, 16525, -3209, -6660),
            (16, 9539, 14686, 17305, -1747, -4366),
            (0, 8192, 11485, 14516, -2819, -5850),
        ][number - 5]
        tables = [t >> 13 << 16 for t in (luma * (v - black), *(factor * c for factor in factors))]
    elif number == 8:
        red, blue = (26149 * v >> 8) - 14234, (33050 * v >> 8) - 17685
        green = 8708 - (6419 * v >> 8), -(13320 * v >> 8)
        shift, tables = 10, (19077 * v >> 8, red, blue, *green)
    elif number in (9, 10):
        luma, offset, *factors = [
            (16320, 32, 90, 113, -22, -46),
            (18997, -1160, 102, 128, -25, -52),
        ][number - 9]
        luma = (257 * luma * v >> 16) + offset
        shift, tables = 10, (luma, *(factor * c for factor in factors))
    return [table << shift for table in tables]


def triples(luma, red, blue, green_u, green_v):
    reached = np.zeros((256, 256, 256), bool)
    for y in luma:
        r, g, b = (
            np.clip(y + table >> 16, 0, 255)
            for table in (red[:, None], green_u + green_v[:, None], blue)
        )
        reached[r, g, b] = True
    return reached


def paste(out, mode, rgb, left, top):
    pixels = rgb.transpose(1, 2, 0).astype(np.uint8)
    out.paste(Image.fromarray(pixels if mode == "RGB" else pixels[:, :, 0]), (left, top))


def fallback(coder, payload, mode, size):
    """WebP and PNG by Pillow: what they mean is not this format's to say."""
    samples = "L" if mode == "P" else mode
    if coder in (3, 4):
        assert mode == "RGB"
        if coder == 3:
            planes, added = np.asarray(plain(payload[1:], "RGB", size)), 0
        else:
            planes, added = planes_420(Bytes(payload[1:]), size)
        u, y, v = planes.transpose(2, 0, 1)
        luma, red, blue, green_u, green_v = conversion(payload[0])
        sums = luma[y] + red[v], luma[y] + green_u[u] + green_v[v], luma[y] + blue[u]
        rgb = np.clip(np.stack(sums, -1) >> 16, 0, 255).astype(np.uint8)
        return Image.fromarray(rgb + np.asarray(added, np.uint8))  # modulo 256
    if coder == 0:
        return Image.frombytes(mode, size, payload)
    image = Image.open(io.BytesIO(payload))
    assert image.size == size
    if coder == 1:
        rgba = np.asarray(image.convert("RGBA"))
        grey = rgba[:, :, 0]
        if mode == "LA":
            image = Image.fromarray(rgba[:, :, [0, 3]])
        elif mode in ("L", "P"):
            image = Image.fromarray(grey)
        elif mode == "1":
            image = Image.fromarray(grey > 0)
        elif mode == "I;16":
            image = Image.fromarray(rgba[:, :, 0].astype(np.uint16) * 256 + rgba[:, :, 1])
        else:
            image = image.convert(mode)
    return Image.frombytes(mode, size, image.convert(samples).tobytes())


def plain(data, mode, size):
    return fallback(2 if data[:1] == b"\x89" else 1, data, mode, size)


def planes_420(content, size):
    """U, Y and V of each pixel, and what is to be added to their colours."""
    begins = content.u8()
    assert begins < 4
    left, top = begins & 1, begins >> 1
    lengths = content.varint(), content.varint()
    y = plain(content.take(lengths[0]), "L", size)
    half = (size[0] + left + 1) // 2, (size[1] + top + 1) // 2
    v, u, zero = np.asarray(plain(content.take(lengths[1]), "RGB", half)).transpose(2, 0, 1)
    assert not zero.any()
    rows, columns = ((np.arange(n) + at) // 2 for n, at in ((size[1], top), (size[0], left)))
    planes = np.stack([u[rows][:, columns], np.asarray(y), v[rows][:, columns]], -1)
    rest = content.rest()
    return planes, plain(rest, "RGB", size) if rest else 0


# --- shared randomness ----------------------------------------------------------------------------

MASK = (1 << 64) - 1


def philox(key0, key1, count):
    """32-bit words."""
    words, counter = [], 0
    while len(words) < count:
        counter += 1
        c, k0, k1 = [counter, 0, 0, 0], key0, key1
        for _ in range(10):
            a, b = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
            c = [b >> 64 ^ c[1] ^ k0, b & MASK, a >> 64 ^ c[3] ^ k1, a & MASK]
            k0, k1 = k0 + 0x9E3779B97F4A7C15 & MASK, k1 + 0xBB67AE8584CAA73B & MASK
        for word in c:
            words += [word & 0xFFFFFFFF, word >> 32]
    return np.array(words[:count], np.int64)


def stream(purpose, tile, count, level=0):
    return philox(purpose + (level << 32), tile, count)


# --- tables ---------------------------------------------------------------------------------------


def significant(value, bits):
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 2**bits), exponent - bits)


TAIL = [significant(math.erfc(k / 256 / math.sqrt(2)) / 2, 30) for k in range(2305)]


def lower_tail(u):
    position = min(u, 9 - 2.0**-20) * 256
    k = int(position)
    return TAIL[k] + (position - k) * (TAIL[k + 1] - TAIL[k])


# --- the stack ------------------------------------------------------------------------------------


class Stack:
    def __init__(self, words):
        self.words, self.state = list(words), 0
        while self.words and self.state < 1 << 32:
            self.state = self.state << 32 | self.words.pop()

    def pop(self, start):
        """The symbol of a model, start(n) its lower end and of the next its upper."""
        q = self.state & 0xFFFFFF
        n = start.find(q)
        low, high = start(n), start(n + 1)
        self.state = (self.state >> 24) * (high - low) + q - low
        if self.state < 1 << 32 and self.words:
            self.state = self.state << 32 | self.words.pop()
        return n

    def push(self, start, n):
        low, high = start(n), start(n + 1)
        if self.state >> 40 >= high - low:
            self.words.append(self.state & 0xFFFFFFFF)
            self.state >>= 32
        self.state = (self.state // (high - low) << 24) + low + self.state % (high - low)

    def all(self):
        words, state = list(self.words), self.state
        while state:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        return words


class Gaussian:
    def __init__(self, mean, std, radius):
        self.mean, self.std, self.radius = mean, std, radius

    def __call__(self, n):
        if n <= -self.radius:
            return 0
        if n > self.radius:
            return 1 << 24
        cdf = (1.0 + math.erf((n - 0.5 - self.mean) / (self.std * math.sqrt(2)))) / 2.0
        return int((2**24 - 1 - 2 * self.radius) * cdf) + n + self.radius

    def find(self, q):
        low, high = -self.radius, self.radius + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self(middle) <= q else (low, middle)
        return low


class Table:
    def __init__(self, probabilities):
        scale, total = (2**24 - len(probabilities)) / sum(probabilities, 0.0), 0.0
        self.starts = []
        for n, p in enumerate(probabilities):
            self.starts.append(int(total * scale) + n)
            total += p
        self.starts.append(1 << 24)

    def __call__(self, n):
        return self.starts[n]

    def find(self, q):
        return max(n for n, start in enumerate(self.starts[:-1]) if start <= q)


# --- the chain ------------------------------------------------------------------------------------

DOMAINS = {
    "ycocg": ((2, 4, 3), (127.5, 0.0, 0.0), (64.0, 32.0, 24.0)),
    "rgb": ((2, 2, 2), (127.5, 127.5, 127.5), (64.0, 64.0, 64.0)),
}


def payload_words(payload):
    first = len(payload) % 4 or 4
    assert payload and payload[first - 1]
    whole = payload[:first] + bytes(4 - first) + payload[first:]
    return list(struct.unpack(f"<{len(whole) // 4}I", whole))


def begin(words, tile, number=0):
    """The stack at the start."""
    return Stack([int(stream(1, tile, 2, number)[1]), *words[::-1]])


def end(stack, most, tile, number=0):
    """What the word on top of the stack is at the end beside that of the seed."""
    words = stack.all()[::-1]
    count = len(words) - 1
    assert 1 <= count <= most
    seed = [int(word) for word in stream(1, tile, max(count, 2), number)]
    assert words[1:] == [*seed[1:count], seed[1]]
    return words[0], seed[0] | 1


def check_top(found, crc):
    top, word = found
    assert top == (word ^ crc or 1)


def column(values):
    return np.array(values, np.float64)[:, None, None]


def multipliers(ratios):
    first = np.sqrt((ratios * ratios - 1) / 12)
    return first / first[0]


def inside(place, away, side):
    """The place so far away, or at the border that on the other side."""
    return place + away if place + away in range(side) else place - away


@contextlib.contextmanager
def no_turns(pushes=False):
    yield


class Chain:
    """One tile."""

    def __init__(self, model, plan, mode, tile, size, number=0, colors=None, exact=True):
        self.model, self.tile, self.number, self.colors = model, tile, number, colors
        self.label, self.adaptation = None, {}
        self.around_first = exact and bool(model.phases)
        self.shape = (3, size[1], size[0])
        self.coded = 3 if mode == "RGB" else 1
        levels, self.lattices = model.plans[plan]
        ratios, center, std = (column(values) for values in DOMAINS[model.color])
        self.center, self.std = center, std
        self.m = ratios * round(math.sqrt(12 * levels[0] * levels[0] + 1)) / 2
        first = np.sqrt((self.m * self.m - 1) / 12)
        self.sigma = [None, first, *(level * multipliers(ratios) for level in levels[1:])]
        self.top = len(levels)
        self.levels = [None, *levels]
        words = stream(2, tile, math.prod(self.shape), number).reshape(self.shape)
        self.dither = (words * self.m.astype(np.int64) >> 32).astype(np.float64)
        self.turn = no_turns  # around each part of a variable, in groups to wait for the others

    def network(self, z, t):
        if self.model.phases:
            return self.model.begin(self.variable(t - 1), z, self.levels[t])[:2]
        return self.model.posterior(z, self.levels[t], self.label)

    def variable(self, t):
        """By which networks z_t is told in phases."""
        return min(t, 2) if self.around_first else 3

    def to_samples(self, x):
        x = np.rint(x).astype(np.int64)
        if self.coded == 1:
            x[1:] = 0
        return np.clip(self.rgb(x), 0, 255)

    def rgb(self, x):
        if self.model.color == "rgb":
            return x
        y, co, cg = x
        t = y - (cg >> 1)
        g = cg + t
        b = t - (co >> 1)
        return np.stack([b + co, g, b])

    def known(self, t):
        """z_t of the chroma of a grey image."""
        c = slice(self.coded, 3)
        shape = (3 - self.coded, *self.shape[1:])
        if t == 0:
            return np.zeros(shape)
        if t == 1:
            return (self.m * np.floor(self.dither / self.m) + (self.m - 1) / 2 - self.dither)[c]
        n = math.prod(shape)
        words = stream(3, self.tile, 6 * n, t).reshape(6, n)
        total = ((words & 0xFFFF) + (words >> 16)).sum(0).reshape(shape)
        noise = (total - 6 * 65535) / 65536
        high, low = self.sigma[t][c], self.sigma[t - 1][c]
        return self.known(t - 1) + np.sqrt(high * high - low * low) * noise

    def with_known(self, coded, t):
        return np.concatenate([coded.reshape(self.coded, *self.shape[1:]), self.known(t)])

    # by relative entropy coding

    def descend(self, layers, ends, may_end=False):
        """z of the last end, in the last step to which the bits may end early."""
        c, z, t, stretch = slice(0, self.coded), np.zeros(self.shape), self.top + 1, 0
        for layer, end in zip(layers, ends, strict=True):
            bits = Bits(layer)
            while t > end:
                bits.may_end = may_end and t - 1 == ends[-1]
                self.missing = []
                if self.model.phases and t <= self.top:
                    t -= 1
                    z, stretch = self.descend_in_phases(bits, z, t, stretch)
                    continue
                s2 = self.sigma[t - 1][c] * self.sigma[t - 1][c]
                if t > self.top:
                    r, mean, v = 0 * s2, self.center[c], self.std[c] * self.std[c]
                else:
                    r = s2 / (self.sigma[t][c] * self.sigma[t][c])
                    mean, v = (field[c] for field in self.network(z, t))
                rest = 1 - r
                q = np.broadcast_to(s2 * rest, z[c].shape)
                w = np.broadcast_to(rest * rest * v, z[c].shape)
                p = r * z[c] + rest * mean
                if self.around_first:
                    s = self.away(self.sigma[t - 1])[c]
                    narrow = np.broadcast_to(s * s, z[c].shape)
                    q, w = narrow, w + (q - narrow)
                t -= 1
                place, flow = (c, slice(None), slice(None)), mean + np.sqrt(r) * (z[c] - mean)
                p, stretch = self.sampled(t, p, q, w, bits, stretch, place, flow)
                z = self.by_flow(self.with_known(p, t), t)
            assert len(bits.bits) - bits.at < 8 and not any(bits.bits[bits.at :])
        return z

    def sampled(self, key, mean, q, w, bits, stretch, place, flow):
        """A part of z; what the bits do not tell is its mean, and stands in ``missing``."""
        step = Step(self.tile, key, q.ravel(), w.ravel())
        sample, stretch = step.read(bits, stretch)
        sample = sample.reshape(mean.shape)
        lacking = np.isnan(sample)
        self.missing.append((place, lacking, flow))
        return np.where(lacking, mean, mean + sample), stretch

    def by_flow(self, z, t):
        """z with what is missing by the flow, if that is the better."""
        z = z.copy()
        for place, lacking, flow in self.missing if self.levels[t] > 5 else ():
            part = z[place].copy()
            part[lacking] = np.broadcast_to(flow, part.shape)[lacking]
            z[place] = part
        return z

    # by the stack

    def ascend(self, words, preview, above):
        """x, and the top of the stack at the end."""
        self.stack = begin(words, self.tile, self.number)
        x = self.on_stack(preview, above)
        return x, end(self.stack, self.most_seed_words, self.tile, self.number)

    @property
    def most_seed_words(self):
        return math.prod(self.shape) // 4 + 64

    def on_stack(self, preview=0, above=None):
        """x."""
        self.prepare(preview)
        z = {preview: above}
        t = preview
        if not preview:
            t = self.top
            variance = self.sigma[t] * self.sigma[t] + self.std * self.std
            z[t] = self.pop(t, np.broadcast_to(self.center, self.shape), variance)
        phased = self.model.phases
        while t > 1:
            if t == 2 and phased:
                z[1] = self.first_in_phases(z[2])
            elif phased:
                z[t - 1] = self.step_in_phases(z[t], t - 1)
            else:
                z[t - 1] = self.pop(t - 1, *self.reverse(z[t], t - 1))
            if t != preview:
                self.push(t, z[t - 1], z[t], above)
            t -= 1
        return self.remainder_in_phases(z[1]) if phased else self.remainder(z[1])

    def prepare(self, preview):
        self.spacing, self.draw, self.pull = [None, self.m], [None, None], [None, None]
        for t in range(2, self.top + 1):
            s, low = self.sigma[t], self.sigma[t - 1]
            variance, b = s * s - low * low, 0 * s
            if t < preview:
                high, at = self.sigma[preview], s
                if self.around_first:
                    low, at, high = map(self.away, (low, s, high))
                c = low * low if t > 2 else 0 * low
                b = (at * at - c) / (high * high - c)
                a = 1 - b
                variance = at * at - (a * a * (low * low) + b * b * (high * high) + 2 * a * b * c)
            lattice = self.lattices[t - 2]
            draw = np.sqrt(variance / (1 + lattice * lattice / 12))
            self.draw.append(draw)
            self.spacing.append(lattice * draw)
            self.pull.append(b)
        self.preview = preview

    def away(self, sigma):
        """The noise around z_1."""
        return np.sqrt(sigma * sigma - self.sigma[1] * self.sigma[1])

    def reverse(self, z, s):
        """Mean and variance of z_s given z_{s+1}."""
        return self.step_down(z, s, *self.network(z, s + 1))

    def step_down(self, z, s, xhat, v):
        low, high = self.sigma[s] * self.sigma[s], self.sigma[s + 1] * self.sigma[s + 1]
        if s > 1:
            r = low / high
            return r * z + (1 - r) * xhat, low * (1 - r) + (1 - r) * (1 - r) * v
        m2 = self.m * self.m
        precision = np.maximum(1 / v - 1 / high, 1e-6)
        centre = (xhat / v - z / high) / precision
        wide = 1 / (1 / precision + m2 / 12)
        noise = 1 / (high - low)
        mean = z + (centre - z) * (wide / (wide + noise))
        return mean, np.maximum(1 / (wide + noise) - m2 / 12, m2 / 64)

    def offset(self, t):
        return (self.m - 1) / 2 - self.dither if t == 1 else np.zeros(self.shape)

    def bins(self, t, mean, std):
        spacing = np.broadcast_to(self.spacing[t], self.shape)
        bin_mean = (mean - self.offset(t)) / spacing
        return bin_mean, np.broadcast_to(std, self.shape) / spacing

    def pop(self, t, mean, variance):
        if t > 1:
            spacing = self.spacing[t]
            lowest = (0.25 * spacing) * (0.25 * spacing)
            variance = np.maximum(variance - spacing * spacing / 12, lowest)
        bin_mean, bin_std = self.bins(t, mean, np.sqrt(variance))
        n = np.zeros(self.shape)
        with self.turn():
            for i in np.ndindex(self.coded, *self.shape[1:]):
                centre = np.rint(bin_mean[i])
                n[i] = centre + self.stack.pop(Gaussian(bin_mean[i] - centre, bin_std[i], 2000))
        z = self.spacing[t] * n + self.offset(t)
        return self.with_known(z[: self.coded], t)

    def push(self, t, below, z, above):
        mean = below
        if self.preview:
            mean = (1 - self.pull[t]) * below + self.pull[t] * above
        bin_mean, bin_std = self.bins(t, mean, self.draw[t])
        n = np.rint((z - self.offset(t)) / self.spacing[t])
        with self.turn(pushes=True):
            for i in reversed(list(np.ndindex(self.coded, *self.shape[1:]))):
                centre = np.rint(bin_mean[i])
                self.stack.push(Gaussian(bin_mean[i] - centre, bin_std[i], 16), int(n[i] - centre))

    def remainder(self, z):
        xhat, v = self.network(z, 1)
        lowest = z - (self.m - 1) / 2
        x, tables = np.zeros(self.shape), {}
        for i in np.ndindex(self.coded, *self.shape[1:]):
            mean, std = xhat[i] - lowest[i], math.sqrt(v[i])
            tables[i] = truncated(mean, std, int(self.m[i[0], 0, 0]))
        for c in reversed(range(self.coded)):
            weights = self.weights(tables, lowest, x.copy(), c) if self.colors else None
            with self.turn():
                for place in np.ndindex(self.shape[1:]):
                    i = (c, *place)
                    table = tables[i]
                    if weights is not None and weights[:, *place].any():
                        table = list(weights[:, *place])
                    x[i] = lowest[i] + self.stack.pop(Table(table))
        return x

    def weights(self, tables, lowest, x, c):
        """Of each candidate of channel c, [M, height, width]."""
        weights = []
        for k in range(int(self.m[c, 0, 0])):
            x[c] = lowest[c] + k
            if c == 0:
                share = self.colors(self.rgb(x.astype(np.int64)))
            else:
                share = 0
                for weight in self.weights(tables, lowest, x.copy(), c - 1):
                    share = share + weight
            p = np.array([tables[c, *place][k] for place in np.ndindex(self.shape[1:])])
            weights.append(p.reshape(self.shape[1:]) * share)
        return np.stack(weights)

    # in phases

    def parameters(self, t, number, shared, told):
        """Of the distributions of a phase of z_t, fitted to the image."""
        p = self.model.parameters(number, shared, told).astype(np.float64)
        if (table := self.adaptation.get(self.variable(t))) is None:
            return p
        scale, shift = table[number].astype(np.float64)[:, :, None, None]
        assert len(scale) == len(p)
        return p * (1 + scale / 64) + shift / 64

    def refined(self, z_s, z, t, mean, unit, xhat, v, shared, number, before):
        """The posterior of x at the places of a phase, by what is known of z_s = z_t below z."""
        planes = np.clip(np.rint((z_s - mean) / unit * 128), -768, 768) * before
        length = min(round(128 * math.log(self.levels[t + 1] / self.levels[t])), 768)
        told = np.concatenate([planes, np.full((1, *self.shape[1:]), length)])
        row, start = PHASES[number]
        xhat, v = (field[:, row::2, start::2] for field in (xhat, v))
        p = self.parameters(t, number, shared[number], told)[:, : xhat.shape[1], : xhat.shape[2]]
        scale = np.vectorize(lambda t: exponential(t, -5, 3))(p[3:])
        return xhat + np.sqrt(v) * p[:3], (np.sqrt(v) * scale) ** 2

    def above_in_phases(self, z, t, sample):
        """z_t of z = z_{t+1}, sample(number, where, refined mean and v) the places of a phase."""
        c = slice(0, self.coded)
        xhat, v, shared = self.model.begin(self.variable(t), z, self.levels[t + 1])
        low, high = (self.sigma[s] * self.sigma[s] for s in (t, t + 1))
        r = low / high
        mean, variance = r * z + (1 - r) * xhat, low * (1 - r) + (1 - r) * (1 - r) * v
        z_s = self.with_known(np.zeros((self.coded, *self.shape[1:])), t)
        before = np.zeros(self.shape[1:])
        for number, (row, start) in enumerate(PHASES):
            where = c, slice(row, None, 2), slice(start, None, 2)
            if z_s[where].size == 0:
                continue
            known = mean, np.sqrt(variance), xhat, v, shared, number, before
            z_s[where] = sample(number, where, *self.refined(z_s, z, t, *known))
            before[row::2, start::2] = 1
        return z_s

    def step_in_phases(self, z, t):
        def sample(number, where, xhat, v):
            c, *_ = where
            low, high = (self.sigma[s][c] * self.sigma[s][c] for s in (t, t + 1))
            r = low / high
            mean = r * z[where] + (1 - r) * xhat[c]
            variance = low * (1 - r) + (1 - r) * (1 - r) * v[c]
            spacing = np.broadcast_to(self.spacing[t][c], mean.shape)
            lowest = (0.25 * spacing) * (0.25 * spacing)
            std = np.sqrt(np.maximum(variance - spacing * spacing / 12, lowest)) / spacing
            out = np.zeros(mean.shape)
            with self.turn():
                for i in np.ndindex(out.shape):
                    at = mean[i] / spacing[i]
                    centre = np.rint(at)
                    out[i] = centre + self.stack.pop(Gaussian(at - centre, std[i], 2000))
            return spacing * out

        return self.above_in_phases(z, t, sample)

    def descend_in_phases(self, bits, z, t, stretch):
        """z_t of z = z_{t+1} by relative entropy coding."""

        def receive(key, where, mean, q, w, flow):
            nonlocal stretch
            c = where[0]
            if self.around_first:
                s, high = self.away(self.sigma[t])[c], self.away(self.sigma[t + 1])[c]
                narrow = s * s * (1 - s * s / (high * high))
                q, w = narrow, w + (q - narrow)
            q = np.broadcast_to(q, mean.shape)
            read, stretch = self.sampled(key * 65536 + t, mean, q, w, bits, stretch, where, flow)
            return read

        def sample(number, where, xhat, v):
            c = where[0]
            low, high = (self.sigma[s][c] * self.sigma[s][c] for s in (t, t + 1))
            r = low / high
            mean = r * z[where] + (1 - r) * xhat[c]
            flow = xhat[c] + np.sqrt(r) * (z[where] - xhat[c])
            return receive(number, where, mean, low * (1 - r), (1 - r) * (1 - r) * v[c], flow)

        z = self.above_in_phases(z, t, sample)
        return self.by_flow(z, t), stretch

    def in_phases(self, t, known, mean, unit, shared, sample):
        """A variable, sample(place, parameters, errors of the channels before) one of its own."""
        z = self.with_known(np.zeros((self.coded, *self.shape[1:])), t)
        before = np.zeros(self.shape[1:])
        for number, (row, start) in enumerate(PHASES):
            places = [
                (i, j) for i in range(row, self.shape[1], 2) for j in range(start, self.shape[2], 2)
            ]
            if not places:
                continue
            errors = np.clip(np.rint((z - mean) / unit * 128), -768, 768) * before
            if t == 0:
                errors = self.with_neighbours(errors, z, mean, unit, number)
            parameters = self.parameters(t, number, shared[number], errors)
            for c in range(self.coded):
                tables = known(c, z, places, parameters) if known else {}
                with self.turn():
                    for i, j in places:
                        p = parameters[:, i // 2, j // 2]
                        e = [(z[b, i, j] - mean[b, i, j]) / unit[b, i, j] for b in range(c)]
                        z[c, i, j] = sample((c, i, j), p, e, tables.get((i, j)))
            before[row::2, start::2] = 1
        return z

    def with_neighbours(self, errors, x, mean, unit, number):
        """What phases of x are told: also what the pixels around one are on average."""
        height, width = self.shape[1:]
        told = np.zeros((6, height + height % 2, width + width % 2))
        told[:3, :height, :width] = errors
        (row, start), before = PHASES[number], PHASES[:number]
        for i in range(row, height, 2):
            for j in range(start, width, 2):
                for kind, around in enumerate(AROUND):
                    places = [(inside(i, d, height), inside(j, r, width)) for d, r in around]
                    if not all(
                        p in range(height) and q in range(width) and (p % 2, q % 2) in before
                        for p, q in places
                    ):
                        continue
                    average = sum(x[:, p, q] for p, q in places) / len(places)
                    e = np.rint((average - mean[:, i, j]) / unit[:, i, j] * 128)
                    at = i // 2 * 2 + PHASES[kind][0], j // 2 * 2 + PHASES[kind][1]
                    told[(slice(3, 6), *at)] = np.clip(e, -768, 768)
        return told

    def first_in_phases(self, z):
        xhat, v, shared = self.model.begin(1, z, self.levels[2])
        mean, variance = self.step_down(z, 1, xhat, v)
        m2 = self.m * self.m
        unit, offset = np.sqrt(variance + m2 / 12), self.offset(1)

        def sample(place, p, errors, _):
            c = place[0]
            m, u = float(self.m[c, 0, 0]), unit[place]
            centre = mean[place] + u * (p[c] + shift(c, p[6:], errors))
            scale = u * exponential(p[3 + c], -5, 3)
            std = math.sqrt(max(scale * scale - m * m / 12, m * m / 64))
            bin_mean, bin_std = (centre - offset[place]) / m, std / m
            nearest = float(np.rint(bin_mean))
            n = nearest + self.stack.pop(Gaussian(bin_mean - nearest, bin_std, 2000))
            return m * n + offset[place]

        return self.in_phases(1, None, mean, unit, shared, sample)

    def remainder_in_phases(self, z):
        mean, v, shared = self.model.begin(0, z, self.levels[1])
        unit, lowest = np.sqrt(v) + 0.3, z - (self.m - 1) / 2

        def table(place, p, errors):
            """Of a sample, and the mean of its mixture."""
            c, k = place[0], (len(p) - 3) // 9
            weights, means, log_scales = p[3 * k * c : 3 * k * (c + 1)].reshape(3, k)
            means = means + shift(c, p[9 * k :], errors)
            low = lowest[place] - 0.5 - mean[place]
            return mixture(weights, means, log_scales, low, unit[place], int(self.m[c, 0, 0]))

        def known(c, x, places, parameters):
            """The table of every place, among the colours that can occur."""
            rows = [[] for _ in range(c, self.coded)]
            for i, j in places:
                p = parameters[:, i // 2, j // 2]
                e = [(x[b, i, j] - mean[b, i, j]) / unit[b, i, j] for b in range(c)]
                for b in range(c, self.coded):
                    probabilities, expected = table((b, i, j), p, e)
                    rows[b - c].append(probabilities)
                    e.append(expected)
            at = tuple(np.array(places).T)
            low, values = lowest[:, *at], x[:, *at].copy()

            def weights(c, after):
                out = []
                for k, p in enumerate(np.array(after[0]).T):
                    values[c] = low[c] + k
                    if len(after) == 1:
                        share = self.colors(self.rgb(values.astype(np.int64)))
                    else:
                        share = 0
                        for weight in weights(c + 1, after[1:]):
                            share = share + weight
                    out.append(p * share)
                return out

            found = np.array(weights(c, rows)).T
            pairs = zip(places, found, rows[0], strict=True)
            return {place: list(own if own.any() else plain) for place, own, plain in pairs}

        def sample(place, p, errors, among):
            probabilities = among or table(place, p, errors)[0]
            return lowest[place] + self.stack.pop(Table(probabilities))

        return self.in_phases(0, known if self.colors else None, mean, unit, shared, sample)


PHASES = ((0, 0), (1, 1), (0, 1), (1, 0))
AROUND = (((0, -1), (0, 1)), ((-1, 0), (1, 0)), ((-1, -1), (-1, 1), (1, -1), (1, 1)))


def shift(c, coupling, errors):
    return sum(coupling[c - 1 + b] * errors[b] for b in range(c))


def exponential(t, low, high):
    return significant(math.exp(int(np.rint(min(max(t, low), high) * 64)) / 64), 30)


def logistic_table():
    below = [significant(1 / (1 + math.exp(-i / 64)), 30) for i in range(-1280, 1)]
    return below + [1 - value for value in below[-2::-1]]


LOGISTIC = logistic_table()


def logistic(t):
    position = (min(max(t, -20), 20 - 2.0**-20) + 20) * 64
    k = int(position)
    return LOGISTIC[k] + (position - k) * (LOGISTIC[k + 1] - LOGISTIC[k])


def mixture(weights, means, log_scales, low, unit, m):
    shares = [exponential(w - max(weights), -16, 0) for w in weights]
    inverse = [exponential(-s, -3, 5) for s in log_scales]
    below = []
    for k in range(m + 1):
        total = 0.0
        for share, mean, factor in zip(shares, means, inverse, strict=True):
            total = total + share * logistic(((low + k) / unit - mean) * factor)
        below.append(total)
    mass = [max(high - low, 0) + 1e-12 for low, high in pairwise(below)]
    total, top, bottom = mass[0], 0.0, 0.0
    for value in mass[1:]:
        total = total + value
    for share, mean in zip(shares, means, strict=True):
        top, bottom = top + share * mean, bottom + share
    return [value / total for value in mass], top / bottom


def truncated(mean, std, m):
    edges = [(k - 0.5 - mean) / std for k in range(m + 1)]
    tails = [lower_tail(abs(edge)) for edge in edges]
    below = [tail if edge < 0 else 1 - tail for edge, tail in zip(edges, tails, strict=True)]
    above = [1 - tail if edge < 0 else tail for edge, tail in zip(edges, tails, strict=True)]
    nearest = min(max(float(np.rint(mean)), 0), m - 1)
    mass = []
    for k in range(m):
        difference = above[k] - above[k + 1] if edges[k] > 0 else below[k + 1] - below[k]
        mass.append(max(difference, 1e-12 if k == nearest else 1e-18))
    total = mass[0]
    for value in mass[1:]:
        total = total + value
    return [value / total for value in mass]


# --- relative entropy coding ----------------------------------------------------------------------


class EarlyEndError(Exception):
    """The bits end before those that are wanted."""


class Bits:
    def __init__(self, data):
        self.bits = [byte >> k & 1 for byte in data for k in range(7, -1, -1)]
        self.at, self.may_end = 0, False

    def take(self, count):
        if self.at + count > len(self.bits):
            raise EarlyEndError
        self.at += count
        return self.bits[self.at - count : self.at]


def inverse_normal(p):
    """Of the standard normal's distribution function, by bisection; p < 1/2."""
    low, high = -40.0, 0.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erfc(-middle / math.sqrt(2)) / 2 < p else (low, middle)
    return high


def noise_table():
    half = [max(-127, round(32 * inverse_normal((i + 0.5) / 65536))) for i in range(32768)]
    return np.array(half + [-n for n in reversed(half)], np.int64)


LOG2 = [round(math.log2(1 + k / 4096) * 2**30) / 2**30 for k in range(4097)]
NOISE = noise_table()


def half_log2(ratio):
    """In units of 2^-24."""
    out = np.empty(len(ratio), np.int64)
    for i, value in enumerate(ratio):
        mantissa, exponent = math.frexp(value)
        position = (2 * mantissa - 1) * 4096
        k = min(int(position), 4095)
        log = LOG2[k] + (position - k) * (LOG2[k + 1] - LOG2[k])
        out[i] = int(np.rint((exponent - 1 + log) * 2**23))
    return out


class Step:
    def __init__(self, tile, timestep, q, w):
        self.random = lambda kind, count: stream(4, tile, count, timestep << 2 | kind)
        self.total = q + w
        gain = self.total / q
        g = gain.copy()
        while (large := half_log2(g) > 3 << 24).any():
            g[large] = np.sqrt(g[large])
        bits = half_log2(g)
        self.bits = bits + bits * bits // (32 << 24)
        self.far = np.flatnonzero(g != gain)
        g, coarse = g[self.far], gain[self.far] / g[self.far]
        w = w[self.far]
        self.left = w / coarse
        self.spread = self.left * g / (g - 1)
        error = w / (coarse - 1)
        self.width, self.weight = np.sqrt(12 * error), (coarse - 1) / coarse
        self.parameter = (half_log2(np.maximum(w / (12 * error), 1)) >> 24) + 1
        self.excess = w

    def read(self, bits, stretch):
        """The sample less the mean of p, and the stretch."""
        try:
            estimate, stretch = self.before_path(bits, stretch)
        except EarlyEndError:
            assert bits.may_end
            bits.at = len(bits.bits)
            return np.full(len(self.bits), np.nan), stretch
        u = self.trellis(bits, stretch)
        sample = np.sqrt(self.total) * u
        estimate = estimate + self.left / np.sqrt(self.spread) * u[self.far]
        sample[self.far] = estimate * (self.total[self.far] / self.excess)
        return sample, stretch

    def before_path(self, bits, stretch):
        """What the quantiser tells, and the stretch."""
        far = self.far
        dither = self.random(3, len(far)) / 2.0**32
        folded = np.zeros(len(far), np.int64)
        for bit in range(max(self.parameter, default=0)):
            for i in np.flatnonzero(self.parameter > bit):
                folded[i] |= bits.take(1)[0] << bit
        left = list(range(len(far)))
        for _ in range(32):
            left = [i for i, bit in zip(left, bits.take(len(left)), strict=True) if bit]
            for i in left:
                folded[i] += 1 << self.parameter[i]
        steps = np.where(folded & 1, -(folded + 1) // 2, folded // 2)
        estimate = self.weight * (self.width * (steps + 0.5 - dither))
        if bits.take(1)[0]:
            sign, change = bits.take(1)[0], 1
            while bits.take(1)[0]:
                change += 1
            stretch += -change if sign else change
        assert abs(stretch) <= 48
        return estimate, stretch

    def trellis(self, bits, stretch):
        n, total = len(self.bits), int(self.bits.sum())
        worth = total / 2**24 * (round(2 ** (stretch / 8) * 2**30) / 2**30)
        stages = round(worth * 1.03 + min(worth, 3))
        there = len(bits.bits) - bits.at
        if bits.may_end and stages > max(there, 16 * n):
            bits.take(there)
            return np.full(n, np.nan)
        words = self.random(0, n)
        order = sorted(range(n), key=lambda i: (words[i], i))
        ends = [j * (total // stages) + j * (total % stages) // stages for j in range(1, stages)]
        signs = 1 - 2 * (self.random(1, n) & 1)
        stage, row, first, reached = [], [], {}, 0
        for place, i in enumerate(order):
            reached += int(self.bits[i])
            stage.append(bisect.bisect_right(ends, reached - 1) if stages else 0)
            first.setdefault(stage[-1], place)
            row.append(place - first[stage[-1]] + stage[-1] % 16)
        sequences = min(max(row) + 1, 64)
        halves = self.random(2, sequences * 4096)
        halves = np.stack([halves & 0xFFFF, halves >> 16], -1).ravel()
        path = bits.take(min(stages, there) if bits.may_end else stages)
        u = np.empty(n)
        for place, i in enumerate(order):
            j = stage[place]
            if stages and j >= len(path):
                u[i] = np.nan
                continue
            branch = 0
            for age in range(13):
                if stages and j % 4096 >= age:
                    branch |= path[j - age] << (12 if age == 12 else 11 - age)
            at = (branch + row[place] // 64) % 8192
            u[i] = signs[place] * NOISE[halves[row[place] % 64 * 8192 + at]] / 32
        return u


# --- the network ----------------------------------------------------------------------------------


class Model:
    """A model file of integer arithmetic."""

    def __init__(self, data):
        self.identity = hashlib.sha256(data).digest()[:4]
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        about = header.pop("__metadata__")
        types = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I16": "<i2", "I8": "i1"}
        self.all_tensors = {}
        for name, entry in header.items():
            start, stop = (8 + size + offset for offset in entry["data_offsets"])
            flat = np.frombuffer(data[start:stop], types[entry["dtype"]])
            self.all_tensors[name] = flat.reshape(entry["shape"])
        self.read_network(json.loads(about["network"]))
        plans = json.loads(about["plans"])
        self.plans = {name: (plan["levels"], plan["lattices"]) for name, plan in plans.items()}
        self.silu = [
            significant(u / (1 + math.exp(-u)), 24) for u in np.arange(-65536, 65537) / 1024
        ]
        self.variances = np.array(
            [significant(math.exp(8 * math.tanh(g / 16 / 8)), 24) for g in range(-256, 257)]
        )

    def read_network(self, network):
        """The experts, each with its limit and what its tensors' names begin with."""
        self.phases, self.label = network.get("phases"), None
        if "experts" in network:
            self.view, view_up_to = network["self_ensemble"], network["self_ensemble_up_to"]
            self.experts = [
                (limit or math.inf, shape, f"experts.{i}.")
                for i, (limit, shape) in enumerate(network["experts"])
            ]
        else:
            self.view, view_up_to = network.get("second_view"), network.get("second_view_up_to")
            detail = network | {"blocks": network.get("detail_blocks") or network["blocks"]}
            self.experts = [(network.get("detail_up_to", 0), detail, "detail.")]
            self.experts.append((math.inf, network, ""))
        self.view_up_to = view_up_to if self.view in ("mirror", "rotation") else 0
        shapes = [shape for _, shape, _ in self.experts]
        self.color = shapes[-1]["color"]
        sides = [shape["patch"] << len(shape["channels"]) - 1 for shape in shapes]
        self.multiple = math.lcm(2 if self.phases else 1, *sides)

    def named(self, prefix):
        """The tensors whose names begin so, without it."""
        names = [name for name in self.all_tensors if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.all_tensors[name] for name in names}

    def continued(self, z):
        height, width = z.shape[1:]
        sides = (0, -height % self.multiple), (0, -width % self.multiple)
        return np.pad(z, ((0, 0), *sides), "edge")

    def posterior(self, z, sigma, label):
        """Mean and variance of x given z_t and the class, [3, height, width]."""
        self.label = label
        height, width = z.shape[1:]
        z = self.continued(z)
        fields = self.posterior_of_view(z, sigma)[:2]
        if sigma <= self.view_up_to:
            turned = slice(None, None, -1 if self.view == "rotation" else 1)
            other = self.posterior_of_view(z[:, turned, ::-1], sigma)[:2]
            fields = [(a + b[:, turned, ::-1]) / 2 for a, b in zip(fields, other, strict=True)]
        return [field[:, :height, :width] for field in fields]

    def begin(self, which, z, sigma):
        """The same, and what each phase makes of z."""
        height, width = z.shape[1:]
        self.teller = min(which, 2)
        if which == 2 and len(self.experts) > 2:
            self.teller += sum(sigma > limit for limit, _, _ in self.experts[2:-1])
        expert = self.experts[min(self.teller, len(self.experts) - 1)]
        mean, v, h = self.posterior_of_view(self.continued(z), sigma, expert)
        fold = 2 // expert[1]["patch"]
        self.tensors, self.level = self.named(f"phases.{self.teller}."), 0
        x = self.activated("features", h * F32(self.steps("features")))
        shared = self.scaled("features", self.sums("features", apart(x, fold)))
        return mean[:, :height, :width], v[:, :height, :width], np.split(shared, 4)

    def parameters(self, number, shared, errors):
        """Of the distributions of a phase of what was begun last."""
        self.tensors, self.level = self.named(f"phases.{self.teller}."), 0
        name, (_, rows, columns) = f"phases.{number}", shared.shape
        sides = (0, 2 * rows - errors.shape[1]), (0, 2 * columns - errors.shape[2])
        errors = apart(np.pad(errors, ((0, 0), *sides)), 2)
        h = self.scaled(f"{name}.known", self.sums(f"{name}.known", errors)) + shared
        for k in range(self.phases["blocks"]):
            h = self.block(f"{name}.blocks.{k}", h)
        return self.output(f"{name}.out", h)

    def posterior_of_view(self, z, sigma, expert=None):
        """Of z_t as it is alone, its sides multiples of what the network halves; and the stream."""
        answers = next(expert for expert in self.experts if sigma <= expert[0])
        _, shape, prefix = expert or answers
        channels, blocks, patch = (shape[k] for k in ("channels", "blocks", "patch"))
        self.tensors = self.named(prefix)
        self.level = self.tensors["levels"].tolist().index(sigma)
        ratios, center, std = (column(values) for values in DOMAINS[self.color])
        s = sigma * multipliers(ratios)
        total = np.sqrt(s * s + std * std)
        centered = z - center

        value = np.clip(np.rint(centered / total * 4096), -65280, 65280)
        high = np.floor(value / 256)
        low = value - high * 256
        turn = np.rint(z * 32).astype(np.int64) % 512
        angle = 2 * math.pi * np.arange(512) / 512
        tables = [np.rint(127 * np.sin(angle)), np.rint(127 * np.cos(angle))]
        phases = np.concatenate([table[turn] for table in tables])
        sums = self.sums("conv_in.z", apart(high, patch)) * F32(256)
        sums = sums + self.sums("conv_in.z", apart(low, patch))
        h = sums * self.factor("conv_in.z", 1 / 4096) + self.bias("conv_in.z")
        sums = self.sums("conv_in.phase", apart(phases, patch))
        h = h + sums * self.factor("conv_in.phase", 1 / 127, True)

        skips, last = [], len(channels) - 1
        for i, count in enumerate(blocks):
            for k in range(count):
                h = self.block(f"down.{i}.{k}", h)
            if i < last:
                skips.append(h)
                h = self.plain(f"shrink.{i}", h, 2)
        for i in range(last, -1, -1):
            if i < last:
                h = together(self.plain(f"grow.{i}", h), 2) + skips[i]
            for k in range(blocks[i]):
                h = self.block(f"up.{i}.{k}", h)

        out = together(self.output("conv_out", h), patch)
        c_skip, c_out = std * std / (total * total), s * std / total
        mean = c_skip * centered + c_out * out[:3].astype(np.float64) + center
        index = np.rint(np.clip(out[3:] * F32(16), -256, 256)).astype(np.int64) + 256
        variance = c_out * c_out * self.variances[index]
        return mean, variance, h

    def output(self, name, h):
        x = self.activated(name, h * F32(self.steps(name)))
        high = np.floor(x / 128)
        return self.scaled(name, self.sums(name, high) * F32(128) + self.sums(name, x - high * 128))

    def sums(self, name, x, stride=1):
        """A convolution of integers, exact; padded by zeros so that the size stays (stride 1)."""
        weight = self.tensors[f"{name}.weight"].astype(np.int64)
        size = weight.shape[2]
        pad = (size - 1) // 2
        x = np.pad(x.astype(np.int64), ((0, 0), (pad, pad), (pad, pad)))
        rows = (x.shape[1] - size) // stride + 1
        columns = (x.shape[2] - size) // stride + 1
        out = np.zeros((len(weight), rows, columns), np.int64)
        for i in range(size):
            for j in range(size):
                part = x[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
                out += np.tensordot(weight[:, :, i, j], part, 1)
        assert np.abs(out).max() < 1 << 24
        return out.astype(F32)

    def unit(self, name):
        return float(self.tensors[f"{name}.input"][self.level, 0])

    def limit(self, name):
        return int(self.tensors[f"{name}.input"][self.level, 1])

    def scale(self, name):
        return self.tensors[f"{name}.scale"].astype(np.float64)

    def factor(self, name, unit, divides=False):
        scale = self.scale(name)
        return column(scale / round(1 / unit) if divides else scale * unit).astype(F32)

    def bias(self, name):
        return column(self.tensors[f"{name}.bias"]).astype(F32)

    def scaled(self, name, sums):
        return sums * self.factor(name, self.unit(name)) + self.bias(name)

    def steps(self, name):
        top, steps = self.unit(name) * self.limit(name), 1024
        while steps > 64 and steps * top > 4096:
            steps //= 2
        return steps

    def activated(self, name, u):
        index = np.rint(np.clip(u, -4096, 4096)).astype(np.int64)
        stride = 1024 // self.steps(name)
        silu = np.array(self.silu)[65536 + stride * index]
        return np.minimum(np.rint(silu / self.unit(name)), self.limit(name))

    def block(self, name, h):
        table = self.tensors.get(f"{name}.affine.table")
        affine = np.zeros(4 * len(h)) if table is None else table[self.level].astype(np.float64)
        if self.label is not None:
            affine = affine + self.tensors[f"{name}.affine.classes"][self.label].astype(np.float64)
        scale1, shift1, scale2, shift2 = np.split(affine, 4)
        one, two = f"{name}.conv1", f"{name}.conv2"
        steps1, steps2 = self.steps(one), self.steps(two)
        u = h * column((1 + scale1) * steps1).astype(F32) + column(shift1 * steps1).astype(F32)
        sums = self.sums(one, self.activated(one, u))
        factor = (1 + scale2) * steps2
        u = sums * column(factor * (self.scale(one) * self.unit(one))).astype(F32)
        bias = self.tensors[f"{one}.bias"].astype(np.float64)
        u = u + column(factor * bias + shift2 * steps2).astype(F32)
        return self.scaled(two, self.sums(two, self.activated(two, u))) + h

    def plain(self, name, h, stride=1):
        limit = self.limit(name)
        x = np.clip(np.rint(h * F32(1 / self.unit(name))), -limit, limit)
        return self.scaled(name, self.sums(name, x, stride))


def apart(x, p):
    """[c, h, w] -> [c p p, h / p, w / p]."""
    c, h, w = x.shape
    return x.reshape(c, h // p, p, w // p, p).transpose(0, 2, 4, 1, 3).reshape(-1, h // p, w // p)


def together(x, p):
    """Inverse of :func:`apart`."""
    c, h, w = x.shape
    x = x.reshape(c // (p * p), p, p, h, w).transpose(0, 3, 1, 4, 2)
    return x.reshape(c // (p * p), h * p, w * p)
