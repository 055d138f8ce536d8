"""Makes tests/data/pictures/jpeg/: JPEG files of every kind, and hashes of the RGB bytes that PIL makes of them.

Pillow 13.0 (libjpeg-turbo 3.2) on x86-64. `make_jpegs.py DIR COUNT SEED [damaged]` writes COUNT files of random kinds and
PIL's raw RGB to a folder of that name instead, for a larger comparison: NAME.jpg, and NAME.rgb (width and height as u32, then
the bytes) unless PIL refuses the file. With `damaged`, bytes are changed at random after the first scan's header.
"""
import io
import json
import random
import struct
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

import jpeg_encoder as je

OUT = Path(__file__).resolve().parents[2] / "tests/data/pictures/jpeg"
JFIF = je.segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
ADOBE = [je.segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([t])) for t in range(3)]
# A quantization table as of quality 75 or so.
STEPS = [3 + k // 2 for k in range(64)]


def picture(w: int, h: int, kind: int, draw: np.random.Generator) -> np.ndarray:
    """0: waves, 1: noise, 2: squares of full colours, 3: waves with noise."""
    y, x = np.mgrid[0:h, 0:w].astype(float)
    if kind == 1:
        return draw.integers(0, 256, (h, w, 3)).astype(np.uint8)
    if kind == 2:
        return np.kron(draw.integers(0, 2, (h // 5 + 1, w // 5 + 1, 3)) * 255, np.ones((5, 5, 1)))[:h, :w].astype(np.uint8)
    a, b, c = draw.uniform(3, 30), draw.uniform(3, 30), draw.uniform(0, 6)
    waves = np.stack([np.sin(x / a + y / b + c), np.cos(x / b - y / a), np.sin((x + y) / a + 1)], -1)
    values = 127.5 + draw.uniform(60, 140) * waves
    return (values + (draw.integers(-40, 41, (h, w, 3)) if kind == 3 else 0)).clip(0, 255).astype(np.uint8)


def saved(image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def cmyk(image: Image.Image, kind: int, **options) -> bytes:
    """Inks; 0: as Adobe writes them, 1: declared as YCCK, 2: without Adobe's segment."""
    data = saved(Image.merge("CMYK", [*image.split(), image.convert("L").point(lambda v: v // 3)]), **options)
    start = data.index(b"\xff\xee")
    if kind == 2:
        return data[:start] + data[start + 16 :]
    return data[: start + 15] + bytes([2 * kind]) + data[start + 16 :]


def without_tables(data: bytes) -> bytes:
    """Drops the Huffman tables, as frames of Motion JPEG have none."""
    out, at = data[:2], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
        out += b"" if data[at + 1] == 0xC4 else data[at:end]
        at = end
    return out + data[at:]


def cases():
    """The kept corpus: (name, bytes)."""
    draw = np.random.default_rng(13)
    image = lambda w, h, kind=3: Image.fromarray(picture(w, h, kind, draw))
    for quality in (1, 10, 30, 50, 75, 90, 100):
        for sampling, name in enumerate(("444", "422", "420")):
            yield f"q{quality}_{name}", saved(image(33, 17), quality=quality, subsampling=sampling, optimize=True)
    for sampling, name in enumerate(("444", "422", "420")):
        yield f"progressive_{name}", saved(image(41, 23), quality=70, subsampling=sampling, progressive=True)
        yield f"squares_{name}", saved(image(26, 31, 2), quality=20, subsampling=sampling, optimize=True)
    for w, h in ((1, 1), (1, 40), (40, 1), (2, 2), (3, 5), (4, 17), (5, 3), (8, 8), (16, 16), (17, 33)):
        for sampling in (1, 2):
            yield f"size{w}x{h}_{sampling}", saved(image(w, h), quality=60, subsampling=sampling, optimize=True)
    yield "gray", saved(image(19, 30).convert("L"), quality=80)
    yield "gray_progressive", saved(image(19, 30).convert("L"), quality=40, progressive=True)
    for kind, name in enumerate(("cmyk", "ycck", "cmyk_plain")):
        yield name, cmyk(image(21, 18), kind, quality=80, subsampling=0)
        yield name + "_sub", cmyk(image(21, 18), kind, quality=80, subsampling=kind % 2 + 1, progressive=True)
    yield "rgb", saved(image(20, 20), quality=80, keep_rgb=True)
    yield "restart", saved(image(50, 40), quality=50, subsampling=2, restart_marker_blocks=2)
    yield "restart_progressive", saved(image(50, 40), quality=50, progressive=True, restart_marker_rows=1)
    yield "no_tables", without_tables(saved(image(30, 20), quality=75))
    for value in range(1, 9):
        yield f"orientation{value}", saved(image(5, 3), quality=75, exif=oriented(value), optimize=True)
    yield from own_cases(draw)


def own_cases(draw: np.random.Generator):
    """Files that PIL cannot write."""

    def own(factors, scans=None, size=(37, 29), ids=(1, 2, 3, 4), kind=3, steps=STEPS, segments=JFIF, **options) -> bytes:
        n = len(factors)
        planes = lambda i, w, h: picture(w, h, kind, draw)[..., i % 3]
        scans = [je.Scan(list(range(n)))] if scans is None else scans
        return je.encode(je.build(*size, factors, ids[:n], planes, steps, scans=scans, segments=segments, **options))

    one, two = [(1, 1)] * 3, [(2, 2), (1, 1), (1, 1)]
    for y in ((1, 2), (4, 1), (1, 4), (4, 2), (2, 4), (3, 1), (1, 3), (3, 2)):
        yield f"luma{y[0]}x{y[1]}", own([y, (1, 1), (1, 1)])
    for name, factors in {
        "chroma_finer": [(1, 1), (2, 2), (2, 2)],
        "chroma_unlike": [(2, 2), (2, 1), (1, 2)],
        "chroma_4x": [(4, 1), (2, 1), (1, 1)],
        "narrow": [(2, 2), (1, 1), (1, 1)],
    }.items():
        yield name, own(factors, size=(4, 40) if name == "narrow" else (37, 29))
    yield "gray_2x2", own([(2, 2)])
    yield "apart", own(two, [je.Scan([i]) for i in (2, 0, 1)])
    yield "apart_pairs", own([(1, 2), (1, 1), (1, 1)], [je.Scan([0]), je.Scan([1, 2])], restart=3)
    yield "luma_only", own(two, [je.Scan([0])])
    yield "ids_rgb", own(one, ids=(82, 71, 66), segments=b"")
    yield "ids_other", own(one, ids=(5, 7, 9), segments=b"")
    for t in range(3):
        yield f"adobe{t}", own(one, segments=ADOBE[t])
    yield "adobe0_jfif", own(one, segments=JFIF + ADOBE[0])
    yield "extended", own(two, frame=0xC1)
    yield "restart_lost", own(one, size=(60, 40), restart=2, broken_restart=True)
    yield "coarse", own(two, steps=[255] * 64, kind=1)
    yield "fine", own(one, steps=[1] * 64, kind=1, size=(24, 16))
    dc = [je.Scan([0, 1, 2], 0, 0, 0, 1)]
    refine = [je.Scan([0, 1, 2], 0, 0, 1, 0)]
    ac = [je.Scan([c], a, b, 0, 2) for c in range(3) for a, b in ((1, 5), (6, 63))]
    finer = [je.Scan([c], a, b, low + 1, low) for low in (1, 0) for c in range(3) for a, b in ((1, 5), (6, 63))]
    options = {"progressive": True, "size": (70, 50), "kind": 0}
    yield "approximation", own(two, dc + refine + ac + finer, **options)
    yield "approximation_restart", own(two, dc + ac + refine + finer, restart=4, **options)
    # Scans are missing: libjpeg smooths.
    yield "only_dc", own(two, [je.Scan([0, 1, 2], 0, 0)], **options)
    yield "only_dc_coarse", own(one, dc, **options)
    yield "only_dc_apart", own([(2, 1), (1, 1), (1, 1)], [je.Scan([i], 0, 0) for i in range(3)], **options)
    yield "missing_bits", own(two, dc + refine + ac + finer[:5], **options)
    yield "missing_luma", own(two, dc + refine + ac[2:], **options)
    yield "missing_band", own([(1, 2), (1, 1), (1, 1)], dc + refine + ac[::2], **options)


def random_file(draw: np.random.Generator, choose: random.Random) -> bytes:
    """A file of a random kind."""
    size = lambda: choose.choice([choose.randint(1, 4), choose.randint(1, 40), choose.randint(1, 200), 8 * choose.randint(1, 5)])
    w, h, kind = size(), size(), choose.randrange(4)
    if choose.random() < 0.45:
        image = Image.fromarray(picture(w, h, kind, draw))
        options = {"quality": choose.randint(1, 100), "subsampling": choose.randrange(3)}
        options |= {"progressive": choose.random() < 0.4, "optimize": choose.random() < 0.5}
        if choose.random() < 0.3:
            options[choose.choice(["restart_marker_blocks", "restart_marker_rows"])] = choose.randint(1, 5)
        if choose.random() < 0.3:
            options["exif"] = oriented(choose.randint(1, 8))
        mode = choose.choice(["RGB"] * 4 + ["L", "CMYK"])
        return cmyk(image, choose.randrange(3), **options) if mode == "CMYK" else saved(image.convert(mode), **options)
    n = choose.choice([1, 3, 3, 3, 3, 4])
    while True:
        factors = [(choose.randint(1, 4), choose.randint(1, 4))] + [(1, 1)] * (n - 1)
        if choose.random() < 0.3:
            factors = [(choose.randint(1, 4), choose.randint(1, 4)) for _ in range(n)]
        across, down = max(f[0] for f in factors), max(f[1] for f in factors)
        whole = all(across % f[0] == 0 and down % f[1] == 0 for f in factors)
        if sum(f[0] * f[1] for f in factors) <= 10 and (whole or choose.random() < 0.1):
            break
    groups = lambda: choose.choice([[list(range(n))], [[i] for i in choose.sample(range(n), n)]])
    progressive, scans = choose.random() < 0.6, []
    if not progressive:
        scans = [je.Scan(c) for c in groups()]
    else:
        low = choose.choice([0, 0, 1, 2])
        scans = [je.Scan(c, 0, 0, 0, low) for c in groups()]
        scans += [je.Scan(c, 0, 0, bit, bit - 1) for bit in range(low, 0, -1) for c in groups()]
        bands = []
        for c in range(n):
            cuts, low = choose.choice([[1, 64], [1, 6, 64], [1, 2, 9, 33, 64]]), choose.randrange(4)
            for a, b in zip(cuts, cuts[1:]):
                finer = [je.Scan([c], a, b - 1, bit, bit - 1) for bit in range(low, 0, -1)]
                bands.append([je.Scan([c], a, b - 1, 0, low)] + finer)
        order = [i for i, band in enumerate(bands) for _ in band]
        choose.shuffle(order)
        scans += [bands[i].pop(0) for i in order][: len(order) if choose.random() < 0.7 else choose.randrange(len(order))]
    ids = choose.choice([[1, 2, 3, 4]] * 4 + [[82, 71, 66, 4], [0, 1, 2, 3]])[:n]
    segments = choose.choice([b"", JFIF, *ADOBE, JFIF + ADOBE[0], JFIF + ADOBE[1]])
    steps = [max(1, min(255, int((1 + 0.4 * k) * choose.choice([0.5, 1, 3, 9])))) for k in range(64)]
    planes = lambda i, pw, ph: picture(pw, ph, kind, draw)[..., i % 3]
    options = {"scans": scans, "progressive": progressive, "segments": segments, "restart": choose.choice([0, 0, 0, 1, 2, 7])}
    return je.encode(je.build(w, h, factors, ids, planes, steps, **options))


def decoded(data: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def fnv(data: bytes) -> str:
    """FNV-1a, 64 bits."""
    h = 0xCBF29CE484222325
    for b in data:
        h = ((h ^ b) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def keep() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    lines, total = [], 0
    for name, data in cases():
        (OUT / f"{name}.jpg").write_bytes(data)
        total += len(data)
        image = decoded(data)
        lines.append({"name": name, "size": image.size, "head": list(image.tobytes()[:12]), "fnv": fnv(image.tobytes())})
    (OUT / "cases.json").write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in lines) + "\n]\n")
    print(len(lines), "files", total, "bytes")


def compare(folder: Path, count: int, seed: int, damaged: bool) -> None:
    draw, choose = np.random.default_rng(seed), random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        data = bytearray(random_file(draw, choose))
        if damaged:
            start = data.index(b"\xff\xda")
            for _ in range(choose.randint(1, 3)):
                data[choose.randrange(start, len(data))] = choose.randrange(256)
        path = folder / f"{seed}_{i:05}.jpg"
        path.write_bytes(data)
        try:
            image = decoded(bytes(data))
        except (OSError, SyntaxError):
            continue
        path.with_suffix(".rgb").write_bytes(struct.pack("<II", *image.size) + image.tobytes())


if __name__ == "__main__":
    if sys.argv[1:]:
        compare(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), "damaged" in sys.argv)
    else:
        keep()
