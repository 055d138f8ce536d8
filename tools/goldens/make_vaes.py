"""Writes the cases of vae_cases.py to tests/goldens/diffusers. See README.md."""
import sys
from pathlib import Path

import make_diffusers
import vae_files
from make_diffusers import GOLDENS, Peer, change, make
from make_init_image import ImageToImage
from vae_cases import CASES


class Coded:
    """A pipeline whose VAE is replaced."""

    def __init__(self, folder: Path, case: dict):
        super().__init__(folder, case)
        own = self.run()["image"]
        if "vae_file" in case:
            self.pipe.vae = vae_files.load(folder, case["vae_file"])
        if "taesd_file" in case:
            self.pipe.vae, self.noise_draw = vae_files.load_tiny(folder, case["taesd_file"]), 0
        if "vae_tiling" in case["request"]:
            vae_files.tile(self.pipe.vae, case["request"]["vae_tiling"])
        effect = change(own, self.run()["image"])
        assert effect > 1e-2, ("the VAE changes nothing", effect)


class TextToImage(Coded, Peer):
    """StableDiffusionXLPipeline."""


class FromImage(Coded, ImageToImage):
    """StableDiffusionXLImg2ImgPipeline."""


def main() -> None:
    make_diffusers.quiet()
    make_diffusers.pictures(GOLDENS / "pictures")
    for name in sys.argv[1:] or CASES:
        make(name, CASES[name], [], FromImage if "init_image" in CASES[name]["request"] else TextToImage)


if __name__ == "__main__":
    main()
