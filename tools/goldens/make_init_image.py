"""Writes the cases of init_image_cases.py to tests/goldens/diffusers: diffusers' image to image and inpainting. See README.md."""
import sys

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline
from PIL import Image, ImageDraw, ImageFilter

import make_diffusers
from init_image_cases import CASES
from make_diffusers import GOLDENS, Peer, make


def picture(name: str) -> Image.Image:
    """As diffusers' `load_image` gives it: a transparent image's colours as they are stored."""
    return Image.open(GOLDENS / "pictures" / name).convert("RGB")


class ImageToImage(Peer):
    """StableDiffusionXLImg2ImgPipeline."""

    pipeline = StableDiffusionXLImg2ImgPipeline
    noise_draw = 1  # that of the VAE's distribution comes before

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
                assert torch.equal(stages["noise"], torch.cat([draws[self.noise_draw] for draws in drawn]))
                return out

            return call

        return {"prepare_latents": latents}


class Inpaint(Peer):
    """StableDiffusionXLInpaintPipeline.

    Given a list of generators it encodes the image once, with the first of them, for all images of a batch. Here each image is made
    alone, so that it is that of its own seed.
    """

    pipeline = StableDiffusionXLInpaintPipeline
    EACH = ("noise", "init_latents", "masked_image_latents", "latents", "image")

    def run(self, images: list | None = None, **replace) -> dict[str, torch.Tensor]:
        request = self.request
        try:
            alone = []
            for i in range(request["batch"]):
                self.request = request | {"batch": 1, "seed": request["seed"] + i}
                alone.append(super().run(images, **replace))
        finally:
            self.request = request
        return {k: torch.cat([one[k] for one in alone]) if k in self.EACH else v for k, v in alone[0].items()}

    def own_arguments(self) -> dict:
        keys = {k: self.request[k] for k in ("width", "height", "strength")}
        return keys | {"image": picture(self.request["init_image"]), "mask_image": picture(self.request["mask"])}

    def latent_hooks(self, stages: dict, seeds: list[int]) -> dict:
        channels = self.pipe.unet.config.in_channels

        def latents(inner):
            def call(*args, **kwargs):
                mixed, originals = self.pipe.scheduler.add_noise, []
                self.pipe.scheduler.add_noise = lambda original, *rest: originals.append(original) or mixed(original, *rest)
                out = inner(*args, **kwargs)
                self.pipe.scheduler.add_noise = mixed
                stages["noise"] = out[1].clone()
                originals += out[2:]
                if originals:
                    stages["init_latents"] = originals[0].clone()
                # The noise is the first draw where the image's latents have no use, else the second.
                generator = torch.Generator("cpu").manual_seed(seeds[0])
                drawn = [torch.randn(out[1].shape, generator=generator) for _ in range(2)]
                assert torch.equal(out[1], drawn[1 if originals else 0])
                assert bool(originals) == (channels == 4 or self.request["strength"] < 1)
                return out

            return call

        def masks(inner):
            def call(*args, **kwargs):
                out = inner(*args, **kwargs)
                assert 0.05 < out[0].mean() < 0.95 and set(out[0].unique().tolist()) == {0.0, 1.0}
                if channels == 9:
                    stages["masked_image_latents"] = out[1][:1].clone()
                return out

            return call

        return {"prepare_latents": latents, "prepare_mask_latents": masks}


def mask(path) -> None:
    """A white ellipse with soft edges, grey."""
    image = Image.new("L", (60, 44))
    ImageDraw.Draw(image).ellipse((6, 8, 34, 36), fill=255)
    image.filter(ImageFilter.GaussianBlur(3)).save(path, optimize=True)


def main() -> None:
    make_diffusers.quiet()
    make_diffusers.pictures(GOLDENS / "pictures")
    mask(GOLDENS / "pictures/mask.png")
    for name in sys.argv[1:] or CASES:
        make(name, CASES[name], [], Inpaint if CASES[name]["request"]["mask"] else ImageToImage)


if __name__ == "__main__":
    main()
