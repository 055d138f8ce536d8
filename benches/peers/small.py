"""Writes a small random SDXL with an IP-Adapter that DiffSynth takes: the files of the golden case diffsynth/one_image.

    python small.py DIR
"""
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CASE = ROOT / "tests/goldens/diffsynth/one_image"
DEPTH = (1, 2)  # transformer layers of its second and third level


def is_small(folder: Path) -> bool:
    """By its size: the published checkpoint has 6.9 GB."""
    return (folder / "sdxl.safetensors").stat().st_size < 1 << 30


def main(folder: Path) -> None:
    sys.path.append(str(ROOT / "tools/goldens"))
    from recipe import Recipe

    recipe = Recipe()
    recipe.files = json.loads((CASE / "recipe.json").read_text())["files"]
    recipe.materialise(folder, CASE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
