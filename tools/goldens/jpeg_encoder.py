"""Writes JPEG files of every kind that PIL cannot write: any sampling, any order of scans, restart markers, missing scans.

The pictures need not be good; only the syntax is. Huffman tables are made by frequency, with codes of 2 to 16 bits.
"""
import struct
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

ZIGZAG = [int(i) for i in sorted(range(64), key=lambda i: (i // 8 + i % 8, i // 8 if (i // 8 + i % 8) % 2 else i % 8))]
# The longest codes last: their sum stays below 1.
LENGTHS = [2] + [3] * 2 + [4] * 3 + [5] * 4 + [6] * 4 + [7] * 4 + [11] * 40 + [12] * 160 + [16] * 38


@dataclass
class Component:
    id: int
    h: int
    v: int
    blocks: np.ndarray = None  # [rows, columns, 64], quantised, in zigzag order
    width: int = 0  # blocks of a scan of this component alone
    height: int = 0


@dataclass
class Scan:
    components: list[int]
    start: int = 0
    end: int = 63
    high: int = 0
    low: int = 0


@dataclass
class Jpeg:
    width: int
    height: int
    components: list[Component]
    scans: list[Scan]
    progressive: bool = False
    restart: int = 0
    segments: bytes = b""
    quantization: list[int] = field(default_factory=lambda: [1] * 64)
    frame: int | None = None  # another marker of the frame than 0xc0, 0xc2
    broken_restart: bool = False


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def dct(plane: np.ndarray) -> np.ndarray:
    """The coefficients of an image whose sides are multiples of 8, in zigzag order."""
    k, n = np.mgrid[0:8, 0:8]
    basis = np.cos((2 * n + 1) * k * np.pi / 16) * np.where(k == 0, np.sqrt(1 / 8), 0.5)
    h, w = plane.shape
    blocks = plane.reshape(h // 8, 8, w // 8, 8).transpose(0, 2, 1, 3).astype(np.float64) - 128
    return (basis @ blocks @ basis.T).reshape(h // 8, w // 8, 64)[..., ZIGZAG]


def build(width: int, height: int, factors: list[tuple[int, int]], ids: list[int], planes, quantization, **options) -> Jpeg:
    """A file of the given sampling factors; `planes(i, w, h)` draws component i."""
    across, down = max(h for h, _ in factors), max(v for _, v in factors)
    mcus_x, mcus_y = -(-width // (8 * across)), -(-height // (8 * down))
    components = []
    for i, ((h, v), id) in enumerate(zip(factors, ids)):
        plane = planes(i, mcus_x * h * 8, mcus_y * v * 8)
        blocks = np.clip(np.round(dct(plane) / np.array(quantization)), -1023, 1023).astype(int)
        w8, h8 = -(-(-(-width * h // across)) // 8), -(-(-(-height * v // down)) // 8)
        components.append(Component(id, h, v, blocks, w8, h8))
    return Jpeg(width, height, components, quantization=list(quantization), **options)


class Bits:
    def __init__(self):
        self.out, self.buffer, self.count = bytearray(), 0, 0

    def put(self, value: int, n: int) -> None:
        self.buffer = self.buffer << n | (value & ((1 << n) - 1))
        self.count += n
        while self.count >= 8:
            byte = self.buffer >> (self.count - 8) & 255
            self.out += bytes([byte, 0] if byte == 255 else [byte])
            self.count -= 8
        self.buffer &= (1 << self.count) - 1

    def align(self) -> None:
        if self.count:
            self.put(127, 8 - self.count)


def magnitude(v: int) -> tuple[int, int]:
    n = abs(v).bit_length()
    return n, v if v >= 0 else v + (1 << n) - 1


def shifted(v: int, low: int) -> int:
    """Division that rounds to zero, as AC coefficients are shifted."""
    return v >> low if v >= 0 else -(-v >> low)


class Coder:
    """Collects (table, symbol) and bits of one scan; the tables follow from the counts."""

    def __init__(self, scan: Scan):
        self.scan, self.items, self.eobrun, self.corrections = scan, [], 0, []

    def symbol(self, table, value: int) -> None:
        self.items.append((table, value))

    def bits(self, value: int, n: int) -> None:
        if n:
            self.items.append((None, value, n))

    def block(self, c: int, block, predictions: list[int], progressive: bool) -> None:
        s = self.scan
        if s.start == 0 and s.high == 0:
            value = int(block[0]) >> s.low
            n, extra = magnitude(value - predictions[c])
            predictions[c] = value
            self.symbol(("dc", c % 2), n)
            self.bits(extra, n)
        elif s.start == 0:
            self.bits(int(block[0]) >> s.low & 1, 1)
        if not progressive:
            self.sequential(c, block)
        elif s.start > 0:
            (self.refine if s.high else self.first)(c, block)

    def sequential(self, c: int, block) -> None:
        run, table = 0, ("ac", c % 2)
        last = max((k for k in range(1, 64) if block[k]), default=0)
        for k in range(1, last + 1):
            if block[k] == 0:
                run += 1
                continue
            while run > 15:
                self.symbol(table, 0xF0)
                run -= 16
            n, extra = magnitude(int(block[k]))
            self.symbol(table, run << 4 | n)
            self.bits(extra, n)
            run = 0
        if last < 63:
            self.symbol(table, 0)

    def flush(self, c: int) -> None:
        if self.eobrun:
            n = self.eobrun.bit_length() - 1
            self.symbol(("ac", c % 2), n << 4)
            self.bits(self.eobrun, n)
        for bit in self.corrections:
            self.bits(bit, 1)
        self.eobrun, self.corrections = 0, []

    def first(self, c: int, block) -> None:
        s, run = self.scan, 0
        for k in range(s.start, s.end + 1):
            value = shifted(int(block[k]), s.low)
            if value == 0:
                run += 1
                continue
            self.flush(c)
            while run > 15:
                self.symbol(("ac", c % 2), 0xF0)
                run -= 16
            n, extra = magnitude(value)
            self.symbol(("ac", c % 2), run << 4 | n)
            self.bits(extra, n)
            run = 0
        if run:
            self.eobrun += 1
            if self.eobrun == 0x7FFF:
                self.flush(c)

    def refine(self, c: int, block) -> None:
        s, run, pending = self.scan, 0, []
        values = [abs(shifted(int(v), s.low)) for v in block]
        last = max((k for k in range(s.start, s.end + 1) if values[k] == 1), default=0)
        for k in range(s.start, s.end + 1):
            if values[k] == 0:
                run += 1
                continue
            while run > 15 and k <= last:
                self.flush(c)
                self.symbol(("ac", c % 2), 0xF0)
                for bit in pending:
                    self.bits(bit, 1)
                run, pending = run - 16, []
            if values[k] > 1:
                pending.append(values[k] & 1)
                continue
            self.flush(c)
            self.symbol(("ac", c % 2), run << 4 | 1)
            self.bits(int(block[k] > 0), 1)
            for bit in pending:
                self.bits(bit, 1)
            run, pending = 0, []
        if run or pending:
            self.eobrun += 1
            self.corrections += pending
            if self.eobrun == 0x7FFF or len(self.corrections) > 900:
                self.flush(c)


def table_of(counts: Counter) -> dict[int, tuple[int, int]]:
    """Symbol to (code, length)."""
    code, codes, previous = 0, {}, 0
    for (symbol, _), length in zip(counts.most_common(), LENGTHS):
        code <<= length - previous
        codes[symbol] = (code, length)
        code, previous = code + 1, length
    return codes


def units(jpeg: Jpeg, scan: Scan):
    """The blocks of each MCU: (component, row, column)."""
    if len(scan.components) == 1:
        c = scan.components[0]
        for y in range(jpeg.components[c].height):
            for x in range(jpeg.components[c].width):
                yield [(c, y, x)]
        return
    first = jpeg.components[0]
    for my in range(first.blocks.shape[0] // first.v):
        for mx in range(first.blocks.shape[1] // first.h):
            parts = [(c, jpeg.components[c]) for c in scan.components]
            yield [(c, my * p.v + y, mx * p.h + x) for c, p in parts for y in range(p.v) for x in range(p.h)]


def scan_bytes(jpeg: Jpeg, scan: Scan) -> bytes:
    coder, predictions = Coder(scan), [0] * len(jpeg.components)
    for i, unit in enumerate(units(jpeg, scan)):
        if jpeg.restart and i and i % jpeg.restart == 0:
            coder.flush(scan.components[0])
            coder.items.append("restart")
            predictions = [0] * len(jpeg.components)
        for c, y, x in unit:
            coder.block(c, jpeg.components[c].blocks[y, x], predictions, jpeg.progressive)
    coder.flush(scan.components[0])
    counts = {}
    for item in coder.items:
        if item != "restart" and item[0]:
            counts.setdefault(item[0], Counter())[item[1]] += 1
    tables = {name: table_of(count) for name, count in counts.items()}
    out = b""
    for (kind, n), codes in sorted(tables.items()):
        lengths = Counter(length for _, length in codes.values())
        data = bytes([(kind == "ac") << 4 | n]) + bytes(lengths[i] for i in range(1, 17)) + bytes(codes)
        out += segment(0xC4, data)
    head = b"".join(bytes([jpeg.components[c].id, (c % 2) * 17]) for c in scan.components)
    tail = bytes([scan.start, scan.end, scan.high << 4 | scan.low])
    out += segment(0xDA, bytes([len(scan.components)]) + head + tail)
    bits, restarts = Bits(), 0
    for item in coder.items:
        if item == "restart":
            bits.align()
            bits.out += bytes([0xFF, 0xD0 + (restarts + jpeg.broken_restart) % 8])
            restarts += 1
        elif item[0]:
            bits.put(*tables[item[0]][item[1]])
        else:
            bits.put(item[1], item[2])
    bits.align()
    return out + bytes(bits.out)


def encode(jpeg: Jpeg) -> bytes:
    out = b"\xff\xd8" + jpeg.segments
    out += segment(0xDB, b"\0" + bytes(min(v, 255) for v in jpeg.quantization))
    parts = b"".join(bytes([c.id, c.h << 4 | c.v, 0]) for c in jpeg.components)
    frame = struct.pack(">BHHB", 8, jpeg.height, jpeg.width, len(jpeg.components)) + parts
    out += segment(jpeg.frame or (0xC2 if jpeg.progressive else 0xC0), frame)
    if jpeg.restart:
        out += segment(0xDD, struct.pack(">H", jpeg.restart))
    return out + b"".join(scan_bytes(jpeg, s) for s in jpeg.scans) + b"\xff\xd9"
