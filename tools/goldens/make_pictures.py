"""Makes tests/data/pictures/: picture files of every kind with the RGB bytes that PIL gives, and goldens of PIL's bicubic
and Lanczos resampling and of transformers' CLIPImageProcessorPil (Pillow 13.0, transformers 5.23).

All files are small; their content is drawn by formulas, so that they are free of any rights.
"""
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from transformers import CLIPImageProcessorPil

OUT = Path(__file__).resolve().parents[2] / "tests/data/pictures"
OUT.mkdir(parents=True, exist_ok=True)
cases = []


def smooth(w: int, h: int) -> np.ndarray:
    """Slow waves of colour: WebP decoders agree on it but for rounding."""
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    waves = [np.sin(x / 9 + y / 23), np.cos(x / 17 - y / 11), np.sin((x + y) / 13 + 1)]
    return np.stack([127.5 + 110 * v for v in waves], -1).astype(np.uint8)


def noise(w: int, h: int) -> np.ndarray:
    """The pattern of the Rust test: byte i is (i * 2654435761 >> 13) mod 256, in 64 bits."""
    i = np.arange(w * h * 3, dtype=np.uint64)
    return ((i * np.uint64(2654435761)) >> np.uint64(13)).astype(np.uint8).reshape(h, w, 3)


def fnv(data: bytes) -> int:
    """FNV-1a, 64 bits."""
    h = 0xCBF29CE484222325
    for b in data:
        h = ((h ^ b) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def case(name: str, data: bytes, tolerance: int, rgb: np.ndarray | None = None) -> None:
    """Keeps a file and, beside it, what PIL makes of it (zlib-compressed RGB), and a hash of it over white as
    transformers 5 composites it."""
    (OUT / name).write_bytes(data)
    entry = {"name": name}
    if rgb is None:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        rgb = np.asarray(image.convert("RGB"))
        rgba = image.convert("RGBA")
        white = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255)), rgba).convert("RGB")
        entry["white"] = f"{fnv(white.tobytes()):016x}"
    (OUT / (name + ".rgb.z")).write_bytes(zlib.compress(rgb.tobytes(), 9))
    cases.append({**entry, "width": rgb.shape[1], "height": rgb.shape[0], "tolerance": tolerance})


def saved(image: Image.Image, format: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(w: int, h: int, depth: int, kind: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG by hand, for the kinds that PIL cannot write."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def png16(w: int, h: int, channels: int, kind: int) -> bytes:
    samples = (np.arange(w * h * channels, dtype=np.uint32) * 40503 >> 3).astype(">u2").reshape(h, -1)
    return png(w, h, 16, kind, b"".join(b"\0" + row.tobytes() for row in samples))


def low_depth(depth: int, kind: int, extra: bytes = b"") -> bytes:
    row = bytes((i * 73 + 29) & 255 for i in range((13 * depth + 7) // 8))
    return png(13, 5, depth, kind, b"".join(b"\0" + bytes(b ^ (17 * y) for b in row) for y in range(5)), extra)


def gif(screen, frames, palette: bytes | None, transparent: int | None = None) -> bytes:
    """A GIF by hand. Frames: (left, top, width, height, palette or None, interlaced); palettes of 16 colours. The data are
    codes of 9 bits without any compression."""
    out = b"GIF89a" + struct.pack("<HHBBB", *screen, 0xF3 if palette else 0x70, 5, 0) + (palette or b"")
    for left, top, w, h, local, interlaced in frames:
        if transparent is not None:
            out += b"\x21\xf9\x04" + bytes([0x09, 1, 0, transparent, 0])
        out += b"," + struct.pack("<HHHHB", left, top, w, h, (0x83 if local else 0) | (0x40 if interlaced else 0)) + (local or b"")
        codes = []
        for i in range(w * h):
            codes += [256] if i % 200 == 0 else []
            codes.append((i * 7 + i // w * 3) % 16)
        bits = sum(code << (9 * i) for i, code in enumerate([*codes, 257]))
        data = bits.to_bytes((9 * (len(codes) + 1) + 7) // 8, "little")
        out += b"\x08" + b"".join(bytes([len(data[i : i + 255])]) + data[i : i + 255] for i in range(0, len(data), 255)) + b"\0"
    return out + b";"


def gifs(rgb: Image.Image) -> None:
    colors, others = (bytes((i * step + 11) & 255 for i in range(48)) for step in (37, 91))
    grays = bytes(i for i in range(16) for _ in range(3))
    case("saved.gif", saved(rgb, "GIF"), 0)
    case("gray.gif", saved(rgb.convert("L"), "GIF"), 0)
    case("plain.gif", gif((13, 9), [(0, 0, 13, 9, None, False)], colors), 0)
    case("interlaced.gif", gif((13, 21), [(0, 0, 13, 21, None, True)], colors), 0)
    case("local_palette.gif", gif((13, 9), [(0, 0, 13, 9, others, False)], colors), 0)
    case("only_local_palette.gif", gif((13, 9), [(0, 0, 13, 9, others, False)], None), 0)
    case("gray_levels.gif", gif((13, 9), [(0, 0, 13, 9, None, False)], grays), 0)
    case("transparent.gif", gif((13, 9), [(0, 0, 13, 9, None, False)], colors, 3), 0)
    case("part.gif", gif((20, 16), [(4, 3, 9, 8, None, False)], colors), 0)
    case("part_transparent.gif", gif((20, 16), [(4, 3, 9, 8, others, False)], colors, 3), 0)
    case("beyond.gif", gif((8, 8), [(4, 3, 9, 8, None, False)], colors), 0)
    case("animated.gif", gif((13, 9), [(2, 1, 9, 7, None, False), (0, 0, 13, 9, others, False)], colors, 4), 0)


def pictures() -> None:
    rgb = Image.fromarray(smooth(23, 17))
    alpha = Image.fromarray((np.arange(23 * 17).reshape(17, 23) * 5 % 256).astype(np.uint8))
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    gray = rgb.convert("L")
    case("rgb8.png", saved(rgb, "PNG"), 0)
    case("rgba8.png", saved(rgba, "PNG"), 0)
    case("gray8.png", saved(gray, "PNG"), 0)
    case("gray_alpha8.png", saved(Image.merge("LA", (gray, alpha)), "PNG"), 0)
    case("palette.png", saved(rgb.quantize(20), "PNG", transparency=3), 0)
    palette = chunk(b"PLTE", bytes((i * 37 + 11) & 255 for i in range(3 * 16)))
    case("palette4.png", low_depth(4, 3, palette), 0)
    case("palette2.png", low_depth(2, 3, chunk(b"PLTE", bytes(range(0, 240, 20)))), 0)
    for depth in (1, 2, 4):
        case(f"gray{depth}.png", low_depth(depth, 0), 0)
    case("rgb16.png", png16(11, 7, 3, 2), 0)
    case("rgba16.png", png16(11, 7, 4, 6), 0)
    case("gray_alpha16.png", png16(11, 7, 2, 4), 0)
    # PIL cuts 16-bit gray at 255; the upper byte is what was meant.
    gray16 = png16(11, 7, 1, 0)
    upper = np.array(Image.open(io.BytesIO(gray16))).astype(np.uint16) >> 8
    case("gray16.png", gray16, 0, np.repeat(upper.astype(np.uint8)[..., None], 3, -1))
    case("1x1.png", saved(Image.fromarray(noise(1, 1)), "PNG"), 0)
    case("1x8192.png", saved(Image.fromarray(np.repeat(noise(1, 512), 16, 0)), "PNG"), 0)

    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        case(f"exif{orientation}.png", saved(rgb.crop((0, 0, 5, 3)), "PNG", exif=exif), 0)
    exif[0x0112] = 6
    case("exif6.jpg", saved(rgb, "JPEG", quality=95, subsampling=0, exif=exif), 0)
    case("exif6.webp", saved(rgb, "WEBP", lossless=True, exif=exif), 0)

    big = Image.fromarray(smooth(50, 37))
    case("ycc444.jpg", saved(big, "JPEG", quality=95, subsampling=0), 0)
    case("ycc420.jpg", saved(big, "JPEG", quality=95, subsampling=2), 0)
    case("progressive.jpg", saved(big, "JPEG", quality=95, subsampling=0, progressive=True), 0)
    case("gray.jpg", saved(big.convert("L"), "JPEG", quality=95), 0)
    case("keep_rgb.jpg", saved(big, "JPEG", quality=95, keep_rgb=True), 0)
    ink = Image.merge("CMYK", [*big.split(), big.convert("L").point(lambda v: v // 3)])
    cmyk = saved(ink, "JPEG", quality=95)
    case("cmyk.jpg", cmyk, 0)
    # The same data declared as YCCK: the last byte of the Adobe segment is the transform.
    at = cmyk.index(b"Adobe") + 11
    case("ycck.jpg", cmyk[:at] + b"\x02" + cmyk[at + 1 :], 0)

    # Without the Adobe segment, which makes no difference to PIL.
    start = cmyk.index(b"\xff\xee")
    case("cmyk_plain.jpg", cmyk[:start] + cmyk[start + 16 :], 0)

    case("lossless.webp", saved(rgb, "WEBP", lossless=True), 0)
    case("alpha.webp", saved(rgba, "WEBP", lossless=True, exact=True), 0)
    case("lossy.webp", saved(big, "WEBP", quality=90), 3)
    frames = [Image.fromarray(np.roll(smooth(23, 17), 4 * i, 1)) for i in range(2)]
    case("animated.webp", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True), 0)
    gifs(rgb)
    # Transparency by a colour, and in a palette by its entries.
    opaque = rgb.convert("L").point(lambda v: v & 0xF0)
    case("gray_key.png", saved(opaque, "PNG", transparency=0x80), 0)
    case("rgb_key.png", saved(Image.merge("RGB", (opaque, opaque, opaque)), "PNG", transparency=(0x80, 0x80, 0x80)), 0)
    case("palette_alpha.png", saved(rgb.quantize(20), "PNG", transparency=bytes(range(0, 200, 10))), 0)
    (OUT / "cases.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


def resampling() -> None:
    """Hashes of the bytes and the first of them, so that a failure shows by how much."""
    sizes = [(1, 1), (1, 9), (7, 1), (2, 3), (13, 9), (64, 48), (101, 67), (300, 2)]
    targets = [(1, 1), (1, 7), (5, 1), (3, 2), (13, 9), (13, 30), (64, 64), (37, 91), (224, 3)]
    lines = []
    for w, h in sizes:
        for tw, th in targets:
            out = np.asarray(Image.fromarray(noise(w, h)).resize((tw, th), Image.Resampling.BICUBIC)).tobytes()
            lines.append({"from": [w, h], "to": [tw, th], "head": list(out[:12]), "fnv": f"{fnv(out):016x}"})
    # Both orders of the two passes, and the seam between them.
    pairs = [((60, 60), (45, 28)), ((60, 60), (45, 30)), ((30, 60), (20, 35)), ((30, 60), (20, 40)), ((120, 60), (119, 57))]
    pairs += [((120, 60), (119, 58)), ((37, 71), (29, 23)), ((401, 1203), (224, 672)), ((64, 64), (128, 63))]
    for (w, h), (tw, th) in pairs:
        out = np.asarray(Image.fromarray(noise(w, h)).resize((tw, th), Image.Resampling.BICUBIC)).tobytes()
        lines.append({"from": [w, h], "to": [tw, th], "head": list(out[:12]), "fnv": f"{fnv(out):016x}"})
    (OUT / "resize.json").write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in lines) + "\n]\n")
    # `gray` is that of `convert("L")` of the result: the order in which a mask is made.
    pairs += [((w, h), to) for w, h in sizes[3:] for to in targets[3:]]
    lines = []
    for (w, h), (tw, th) in pairs:
        image = Image.fromarray(noise(w, h)).resize((tw, th), Image.Resampling.LANCZOS)
        out, gray = np.asarray(image).tobytes(), np.asarray(image.convert("L")).tobytes()
        line = {"from": [w, h], "to": [tw, th], "head": list(out[:12]), "fnv": f"{fnv(out):016x}", "gray": f"{fnv(gray):016x}"}
        lines.append(line)
    (OUT / "lanczos.json").write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in lines) + "\n]\n")


def clip() -> None:
    """Hashes of the f32 values, channels last, little-endian."""
    sizes = [(1, 1, 224), (1, 8192, 32), (8192, 1, 32), (1, 300, 224), (37, 91, 224), (640, 427, 224), (427, 640, 224)]
    sizes += [(224, 224, 224), (224, 301, 224), (225, 224, 224), (500, 333, 336), (3, 2, 5), (2, 3, 5), (333, 1000, 28), (1, 1024, 224), (1, 8192, 224), (401, 1203, 224)]
    lines = []
    for w, h, size in sizes:
        image, options = Image.fromarray(noise(w, h)), {}
        if h > 8000 and size > 32:
            # Resized and cropped here, as the processor would, for it copies the 1.6 GB several times.
            stretched = int(size * h / w)
            top = (stretched - size) // 2
            image = image.resize((size, stretched), Image.Resampling.BICUBIC).crop((0, top, size, top + size))
            options = {"do_resize": False}
        processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
        out = processor(image, return_tensors="np", **options)["pixel_values"][0]
        out = np.ascontiguousarray(out.transpose(1, 2, 0)).astype("<f4")
        assert out.shape == (size, size, 3)
        head = [float(f"{v:.9g}") for v in out.flatten()[:6]]
        lines.append({"from": [w, h], "size": size, "head": head, "fnv": f"{fnv(out.tobytes()):016x}"})
    (OUT / "clip.json").write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in lines) + "\n]\n")


pictures()
resampling()
clip()
