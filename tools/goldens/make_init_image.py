"""Writes the cases of init_image_cases.py to tests/goldens/diffusers: diffusers' image to image and inpainting. See README.md."""
import sys

import diffusers
import torch
import transformers
from diffusers import StableDiffusionXLImg2ImgPipeline
from PIL import Image

import diffusers_folder
import make_diffusers
from init_image_cases import CASES
from make_diffusers import GOLDENS, Peer, make


def picture(name: str) -> Image.Image:
    """As diffusers' `load_image` gives it: a transparent image's colours as they are stored."""
    return Image.open(GOLDENS / "pictures" / name).convert("RGB")


class ImageToImage(Peer):
    """StableDiffusionXLImg2ImgPipeline."""

    pipeline = StableDiffusionXLImg2ImgPipeline

    def size(self, image: Image.Image) -> Image.Image:
        """The pipeline takes no size: where the request has one, the image is stretched to it before, by the same filter."""
        width, height = self.request["width"], self.request["height"]
        return image.resize((width or image.width, height or image.height), Image.Resampling.LANCZOS)

    def own_arguments(self) -> dict:
        return {"image": self.size(picture(self.request["init_image"])), "strength": self.request["strength"]}

    def latent_hooks(self, stages: dict, seeds: list[int]) -> dict:
        """Notes the image's latents and the noise that the scheduler mixes, and that both are what each image's own generator
        draws."""
        scheduler, mix = self.pipe.scheduler, self.pipe.scheduler.add_noise

        def add_noise(original, noise, timesteps):
            stages.setdefault("init_latents", original.clone())
            stages.setdefault("noise", noise.clone())
            return mix(original, noise, timesteps)

        def latents(inner):
            def call(*args, **kwargs):
                scheduler.add_noise = add_noise
                out = inner(*args, **kwargs)
                scheduler.add_noise = mix
                again = [torch.Generator("cpu").manual_seed(s) for s in seeds]
                shape = (1, *out.shape[1:])
                drawn = [[torch.randn(shape, generator=g) for _ in range(2)] for g in again]
                assert torch.equal(stages["noise"], torch.cat([noise for _, noise in drawn]))
                return out

            return call

        return {"prepare_latents": latents}


def main() -> None:
    torch.set_num_threads(1)
    for library in (transformers, diffusers):
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()
    make_diffusers.pictures(GOLDENS / "pictures")
    for name in sys.argv[1:] or CASES:
        make(name, CASES[name], [], ImageToImage)


if __name__ == "__main__":
    main()
