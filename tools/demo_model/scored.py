"""Writes what the bundled model is scored on: references and requests that are fixed before any training.

    python scored.py OUT

OUT gets unseen.png, 96 pictures in rows of 16, in 48 styles beyond those that were trained on, eight of each texture and two of
each direction of stripes; unseen.json, their labels; and scored.json, 80 requests with their seeds. A request's reference is the
first picture of a style, by its place in the sheet. classified.webp and classified.json are 480 more pictures, as the generator
draws them, for the classifier alone: of 96 a few wrong by chance would tell nothing.
"""
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import pictures

FIRST, EACH, ROW = 60_000, 8, 16
CLASSIFIED = range(70_000, 70_240)
SCORED = 80


def unseen() -> list:
    """Pairs of pictures, the textures in turns; of stripes, the directions in turns."""
    kinds = {texture: [] for texture in pictures.TEXTURES}
    index = FIRST
    while min(len(v) for v in kinds.values()) < EACH:
        pair = pictures.pair(index)
        style, index = pair[0][1], index + 1
        found = kinds[style.texture]
        if len(found) < EACH and (style.texture != "stripes" or style.turn == len(found) % 4):
            found.append(pair)
    return [kinds[texture][i] for i in range(EACH) for texture in pictures.TEXTURES]


def requests() -> list:
    """Every shape, alone, large, small, at places, and twos and threes, each with another reference."""
    rng = np.random.default_rng([pictures.SEED, 6])
    styles = EACH * len(pictures.TEXTURES)
    order = np.concatenate([rng.permutation(styles), rng.permutation(styles)])
    forms = ["a {}", "a {}", "a big {}", "a small {}", "a {} on the left", "a {} at the bottom", "two {}", "three {}"]
    out = []
    for i in range(SCORED):
        form, shape = i // 10, pictures.SHAPES[i % 10]
        count = max(1, form - 4)
        prompt = forms[form].format(shape if count == 1 else pictures.plural(shape))
        out.append({"prompt": prompt, "shape": shape, "count": count, "reference": 2 * int(order[i]), "seed": i})
    return out


def write_list(path: Path, value: dict, key: str) -> None:
    """JSON with one line for each entry of the list."""
    lines = ",\n".join("  " + json.dumps(entry) for entry in value[key])
    rest = "".join(f' "{k}": {json.dumps(v)},\n' for k, v in value.items() if k != key)
    path.write_text(f'{{\n{rest} "{key}": [\n{lines}\n ]\n}}\n')


def write_sheet(path: Path, pairs: list, **options) -> None:
    """The pairs' pictures, and beside them their labels."""
    items = [item for pair in pairs for item in pair]
    rows = [np.concatenate([i[0] for i in items[at:at + ROW]], 1) for at in range(0, len(items), ROW)]
    Image.fromarray(np.concatenate(rows)).save(path, **options)
    labels = [{"shape": c.shape, "texture": s.texture, "turn": s.turn, "count": c.count} for _, s, c in items]
    value = {"shapes": pictures.SHAPES, "textures": pictures.TEXTURES, "pictures": labels}
    write_list(path.with_suffix(".json"), value, "pictures")


def main(out: Path) -> None:
    write_sheet(out / "unseen.png", unseen(), optimize=True)
    write_sheet(out / "classified.webp", [pictures.pair(i) for i in CLASSIFIED], lossless=True, quality=100, method=6)
    write_list(out / "scored.json", {"steps": 16, "guidance": 3.0, "requests": requests()}, "requests")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
