import os
import subprocess
from pathlib import Path

import PIL.Image
import pytest

import braid

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "assets/demo"
REFERENCES = sorted((ASSETS / "references").glob("*.png"))


@pytest.fixture(scope="session")
def pipe():
    """The bundled model with its adapter."""
    return load()


def load(**options):
    return braid.Pipeline.from_files(
        ASSETS / "sdxl.safetensors", config=ASSETS / "config", ip_adapter=ASSETS / "ip-adapter.safetensors",
        clip_vision=ASSETS / "image_encoder", device="cpu", threads=2, **options)


@pytest.fixture
def command(tmp_path):
    """Runs `braid generate` on the bundled model and reads its image as RGB bytes."""
    binary = os.environ.get("BRAID", ROOT / "target/release/braid")

    def run(*arguments):
        out = tmp_path / "command.png"
        model = ["--model", ASSETS / "sdxl.safetensors", "--config", ASSETS / "config", "--device", "cpu", "-t", "2"]
        if "--ip-adapter-image" in arguments:
            model += ["--ip-adapter", ASSETS / "ip-adapter.safetensors", "--clip-vision", ASSETS / "image_encoder"]
        subprocess.run([binary, "generate", *model, *arguments, "-o", out], check=True, capture_output=True)
        return PIL.Image.open(out).convert("RGB").tobytes()

    return run
