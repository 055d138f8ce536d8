"""The pictures of the bundled model: shapes on textured grounds, with captions.

A texture is always the same pattern (stripes have four directions), because a small model learns no patterns at random
places within hours; colours are at random.

A picture is a content (which shape, how many, where, how large) in a style (three colours and a texture). The text is to
say the content and the image prompt the style, so every style is drawn with two contents.

    python pictures.py OUT.npz [COUNT]      # to look at a few: python pictures.py sheet.png
"""
import colorsys
import json
import math
import sys
from dataclasses import asdict, dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np

SIDE = 128
SHAPES = ["circle", "square", "triangle", "star", "ring", "cross", "heart", "diamond", "moon", "flower"]
TEXTURES = ["plain", "stripes", "dots", "checks", "gradient", "clouds"]
POSITIONS = ["middle", "left", "right", "top", "bottom"]
SIZES = ["small", "medium", "big"]
SEED = 20_261_124


@dataclass
class Style:
    """`ground` and `second` colour the ground in turns, `figure` the shapes; RGB in 0..1."""

    ground: tuple
    second: tuple
    figure: tuple
    texture: str
    # Of stripes, in eighths of a turn.
    turn: int


@dataclass
class Content:
    shape: str
    count: int
    position: str
    size: str


def hsv(h, s, v):
    return np.array(colorsys.hsv_to_rgb(h % 1.0, float(np.clip(s, 0, 1)), float(np.clip(v, 0, 1))))


def draw_style(rng) -> Style:
    while True:
        hue, mood = rng.random(), rng.integers(3)
        if mood == 0:  # pale ground, deep figure
            s, v = rng.uniform(0.15, 0.5), rng.uniform(0.86, 0.98)
            figure = hsv(hue + rng.uniform(0.25, 0.75), rng.uniform(0.65, 0.95), rng.uniform(0.35, 0.8))
            step = -rng.uniform(0.08, 0.25)
        elif mood == 1:  # dark ground, light figure
            s, v = rng.uniform(0.5, 0.85), rng.uniform(0.18, 0.4)
            figure = hsv(hue + rng.uniform(0.25, 0.75), rng.uniform(0.25, 0.8), rng.uniform(0.85, 1.0))
            step = rng.uniform(0.14, 0.28)
        else:  # vivid ground, white, black or vivid figure
            s, v = rng.uniform(0.55, 0.9), rng.uniform(0.6, 0.95)
            kind = rng.integers(3)
            figure = [hsv(hue, 0.06, 0.98), hsv(hue + 0.5, 0.5, 0.15), hsv(hue + rng.uniform(0.3, 0.7), 0.85, 0.95)][kind]
            step = -rng.uniform(0.12, 0.25)
        ground = hsv(hue, s, v)
        second = hsv(hue + rng.uniform(-0.09, 0.09), s + rng.uniform(-0.15, 0.15), v + step)
        texture = TEXTURES[rng.integers(len(TEXTURES))]
        apart = np.linalg.norm(ground - second)
        if min(np.linalg.norm(figure - ground), np.linalg.norm(figure - second)) < 0.5 or not 0.15 <= apart <= 0.5:
            continue
        turn = int(rng.integers(4)) if texture == "stripes" else 0
        return Style(tuple(ground), tuple(ground if texture == "plain" else second), tuple(figure), texture, turn)


def draw_content(rng) -> Content:
    count = int(rng.choice([1, 1, 1, 2, 3]))
    position = POSITIONS[rng.integers(5)] if count == 1 and rng.random() < 0.6 else "middle"
    size = SIZES[rng.choice([0, 1, 1, 2])] if count == 1 else "medium"
    return Content(SHAPES[rng.integers(len(SHAPES))], count, position, size)


AXIS = np.arange(SIDE) + 0.5 - SIDE / 2
X, Y = np.meshgrid(AXIS, AXIS)


def polygon(x, y, points):
    """Distance to a polygon, negative inside."""
    inside, nearest = np.zeros(x.shape, bool), np.full(x.shape, np.inf)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0)):
        dx, dy = x1 - x0, y1 - y0
        t = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        nearest = np.minimum(nearest, (x - x0 - t * dx) ** 2 + (y - y0 - t * dy) ** 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * dx / dy)
    return np.where(inside, -1, 1) * np.sqrt(nearest)


def around(angles, radii):
    return np.stack([np.sin(angles) * radii, -np.cos(angles) * radii], 1)


def outline(shape, r):
    if shape == "square":
        return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.84 * r
    if shape == "triangle":
        return around(np.arange(3) * 2 * np.pi / 3, np.full(3, 1.15 * r)) + [0, 0.18 * r]
    if shape == "star":
        return around(np.arange(10) * np.pi / 5, np.where(np.arange(10) % 2, 0.47, 1.15) * r)
    if shape == "diamond":
        return np.array([[0, -1.15], [0.72, 0], [0, 1.15], [-0.72, 0]]) * r
    if shape == "cross":
        a, b = 1.0, 0.33
        return np.array([[-b, -a], [b, -a], [b, -b], [a, -b], [a, b], [b, b], [b, a], [-b, a], [-b, b], [-a, b], [-a, -b],
                         [-b, -b]]) * r
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)  # heart
    return np.stack([16 * np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) - 2], 1) * r / 15.5


def distance(shape, x, y, r):
    radius = np.hypot(x, y)
    if shape == "circle":
        return radius - 0.95 * r
    if shape == "ring":
        return np.abs(radius - 0.78 * r) - 0.22 * r
    if shape == "moon":
        return np.maximum(np.hypot(x + 0.12 * r, y) - r, 0.82 * r - np.hypot(x - 0.36 * r, y))
    if shape == "flower":
        return (radius - r * (0.8 + 0.25 * np.cos(5 * np.arctan2(x, -y)))) * 0.75
    return polygon(x, y, outline(shape, r))


def cover(d):
    return np.clip(0.5 - d, 0, 1)


def ground(style: Style):
    """How much of the second colour each pixel has."""
    if style.texture == "plain":
        return np.zeros_like(X)
    if style.texture == "stripes":
        # 32 pixels along the sides from one to the next, whatever the direction.
        p = 32 if style.turn % 2 == 0 else 32 / math.sqrt(2)
        along = X * math.cos(style.turn * math.pi / 4) + Y * math.sin(style.turn * math.pi / 4)
        return cover(np.abs(along % p - p / 2) - p / 4)
    if style.texture == "dots":
        return cover(np.hypot(X % 24 - 12, Y % 24 - 12) - 7.5)
    if style.texture == "checks":
        a, b = cover(np.abs(X % 32 - 16) - 8), cover(np.abs(Y % 32 - 16) - 8)
        return a * (1 - b) + b * (1 - a)
    if style.texture == "gradient":
        return np.clip(0.5 + (X + Y) / 192, 0, 1)
    waves = sum(np.sin((X * math.cos(a) + Y * math.sin(a)) * 2 * math.pi / p + a)  # clouds
                for a, p in ((0.3, 47), (1.5, 38), (2.6, 43), (3.2, 30)))
    return np.clip(0.5 + waves * 0.28, 0, 1)


RADII = {"small": (17, 21), "medium": (29, 35), "big": (42, 48)}
SHIFT = {"middle": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}


def draw(style: Style, content: Content, rng) -> np.ndarray:
    """u8 [SIDE, SIDE, 3]."""
    share = ground(style)[..., None]
    picture = np.array(style.ground) * (1 - share) + np.array(style.second) * share
    if content.count == 1:
        r = rng.uniform(*RADII[content.size])
        reach = SIDE / 2 - 1.15 * r - 4
        centres = [np.array(SHIFT[content.position]) * reach]
    else:
        r = rng.uniform(22, 25) if content.count == 2 else rng.uniform(20, 23)
        centres = [(-29, 0), (29, 0)] if content.count == 2 else [(0, -29), (-29, 25), (29, 25)]
    for centre in centres:
        cx, cy = np.array(centre) + rng.uniform(-3, 3, 2)
        turn = rng.uniform(-0.12, 0.12)
        c, s = np.cos(turn), np.sin(turn)
        x, y = X - cx, Y - cy
        alpha = cover(distance(content.shape, c * x + s * y, c * y - s * x, r))[..., None]
        picture = picture * (1 - alpha) + np.array(style.figure) * alpha
    return np.round(picture * 255).astype(np.uint8)


NAMED = {
    "red": (0.85, 0.12, 0.14), "orange": (0.95, 0.55, 0.15), "yellow": (0.95, 0.87, 0.3), "green": (0.2, 0.6, 0.25),
    "lime": (0.6, 0.9, 0.35), "teal": (0.15, 0.55, 0.55), "cyan": (0.45, 0.88, 0.92), "blue": (0.2, 0.35, 0.85),
    "navy": (0.1, 0.12, 0.35), "purple": (0.5, 0.2, 0.65), "lilac": (0.78, 0.68, 0.95), "pink": (0.97, 0.6, 0.75),
    "magenta": (0.85, 0.2, 0.65), "brown": (0.42, 0.25, 0.14), "cream": (0.97, 0.9, 0.75), "white": (0.98, 0.98, 0.98),
    "black": (0.1, 0.09, 0.1), "mint": (0.7, 0.95, 0.8), "maroon": (0.38, 0.08, 0.14),
}
NAMES, COLORS = list(NAMED), np.array(list(NAMED.values()))
ADJECTIVES = {"plain": "plain", "stripes": "striped", "dots": "dotted", "checks": "checked", "gradient": "shaded",
              "clouds": "cloudy"}
NUMBERS = {2: "two", 3: "three"}


def name_of(color) -> str:
    return NAMES[int(np.argmin(np.linalg.norm(COLORS - np.array(color), axis=1)))]


def plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def caption(content: Content, style: Style | None, rng) -> str:
    """What the picture shows; with `style`, its colours and texture (or some of them), too."""
    words = [NUMBERS.get(content.count, "a")]
    if content.size != "medium":
        words.append(content.size if rng.random() < 0.8 else {"small": "little", "big": "large"}[content.size])
    if style and rng.random() < 0.8:
        words.append(name_of(style.figure))
    words.append(content.shape if content.count == 1 else plural(content.shape))
    if content.position in ("left", "right"):
        words += ["on", "the", content.position]
    elif content.position != "middle":
        words += ["at", "the", content.position]
    elif content.count == 1 and rng.random() < 0.2:
        words += ["in", "the", "middle"]
    if style and rng.random() < 0.9:
        words += ["on", "a", name_of(style.ground)]
        if rng.random() < 0.8:
            words.append(ADJECTIVES[style.texture])
        words.append("background")
    return " ".join(words).replace("a orange", "an orange")


def pair(index: int):
    """Two pictures in one style."""
    rng = np.random.default_rng([SEED, index])
    style = draw_style(rng)
    contents = [draw_content(rng), draw_content(rng)]
    return [(draw(style, c, rng), style, c) for c in contents]


def chunk(indices):
    return [pair(i) for i in indices]


def make(count: int, first: int = 0):
    """`count` pictures u8 [n, SIDE, SIDE, 3] and their labels; pictures 2i and 2i+1 share a style."""
    with Pool() as pool:
        parts = pool.map(chunk, np.array_split(np.arange(first, first + count // 2), max(1, count // 400)))
    items = [item for part in parts for both in part for item in both]
    return np.stack([i[0] for i in items]), [(i[1], i[2]) for i in items]


def labels_json(labels) -> list:
    return [{**asdict(s), **asdict(c)} for s, c in labels]


def from_json(entry: dict):
    style = {k: entry[k] for k in Style.__dataclass_fields__}
    return Style(**style), Content(**{k: entry[k] for k in Content.__dataclass_fields__})


def main(out: Path, count: int) -> None:
    if out.suffix == ".png":
        from PIL import Image

        pictures, labels = make(60)
        rows = [np.concatenate(pictures[i:i + 10], 1) for i in range(0, 60, 10)]
        Image.fromarray(np.concatenate(rows)).save(out)
        rng = np.random.default_rng(0)
        for style, content in labels[:20]:
            print(caption(content, style, rng))
        return
    pictures, labels = make(count)
    np.save(out.with_suffix(".npy"), pictures)
    out.with_suffix(".json").write_text(json.dumps(labels_json(labels)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 30_000)
