"""The cases of the diffusers profile that begin with an image: image to image, and inpainting where there is a mask.

Kept apart from diffusers_cases.py; make_init_image.py runs them.
"""
from diffusers_cases import adapter, request, text, unet, vae, vision
from diffusers_folder import PUBLISHED_SCHEDULER


def begun(prompt, init_image, **more):
    """A request with an image to begin with. Without width and height the size is the image's."""
    own = {k: more.pop(k) for k in ("strength", "mask", "width", "height") if k in more}
    return request(prompt, **more) | {"width": None, "height": None, "mask": None, "init_image": init_image} | own


CASES = {
    "img2img-euler": {
        "notes": "image to image of the image's own size, 3 of 5 steps; the published scheduler and widths that CUDA takes",
        "matters": [{"strength": 0.8}, {"seed": 1}, {"init_image": "portrait.png", "width": 96, "height": 64}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(32, 2, 4, "gelu", 999), text(32, 2, 2, "quick_gelu", 2)],
        "unet": unet("dc", [64, 128], [1, 2], [1, 1], groups=32),
        "vae": vae([8, 16, 16, 16], groups=8),
        "request": begun("a lighthouse at night", "landscape.png", steps=5, strength=0.6, negative_prompt="fog", seed=21),
    },
    "img2img-dpmpp": {
        "notes": "DPM++ 2M with Karras sigmas begins in the middle at order 1; two images of own generators; a side of the image "
        "that the VAE does not take (45 to 44, by Lanczos); two VAE layers",
        "matters": [{"strength": 1.0}, {"sampling_method": "euler"}, {"init_image": "landscape.png", "width": 44, "height": 80}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(24, 2, 3, "quick_gelu", 2), text(24, 2, 2, "gelu", 2)],
        "unet": unet("dcc", [16, 24, 32], [2, 3, 2], [1, 2, 1]),
        "vae": vae([8, 8, 16], layers=2),
        "request": begun(
            "a red fox", "portrait.png", steps=6, strength=0.5, negative_prompt="", seed=5, batch=2, sampling_method="dpmpp-2m",
            schedule="karras",
        ),
    },
    "img2img-lcm-adapter": {
        "notes": "LCM, no guidance, with an IP-Adapter; the image is stretched to a size of its own; its alpha channel is dropped",
        "matters": [{"strength": 0.5}, {"cfg_scale": 1.5}, {"init_image": "landscape.png"}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(24, 2, 3, "quick_gelu", 2), text(32, 2, 2, "gelu", 2)],
        "unet": unet("dc", [16, 32], [1, 2], [1, 1]),
        "vae": vae([8, 16], groups=8, scaling_factor=0.2),
        "vision": vision(48, 2, 2, "gelu", 28, 7, 24),
        "adapters": [adapter("ip-adapter.safetensors", ["landscape.png"], 0.7)],
        "request": begun(
            "a bowl of apples", "alpha.png", steps=4, strength=0.8, cfg_scale=1.0, width=40, height=24, seed=8,
            sampling_method="lcm",
        ),
    },
    "img2img-ancestral": {
        "notes": "Euler ancestral at strength 1, which still mixes the image in, and draws of its own after the noise; v prediction",
        "matters": [{"strength": 0.5}, {"init_image": "landscape.png", "width": 48, "height": 48}, {"sampling_method": "euler"}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER | {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        "text": [text(24, 2, 3, "quick_gelu", 2), text(16, 2, 2, "gelu", 2)],
        "unet": unet("dc", [16, 32], [2, 2], [1, 1]),
        "vae": vae([8, 16, 16]),
        "request": begun(
            "an old oak", "alpha.png", steps=3, strength=1.0, cfg_scale=3.0, negative_prompt="people", seed=2, batch=2,
            sampling_method="euler-a", guidance_rescale=0.5,
        ),
    },
    "inpaint-blend": {
        "notes": "a UNet of 4 channels: the image's latents take the place of what the mask keeps after each of 3 steps; a grey mask of "
        "another size than the image; widths that CUDA takes",
        "matters": [{"strength": 0.8}, {"seed": 1}, {"init_image": "portrait.png"}, {"mask": "alpha.png"}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(32, 2, 4, "gelu", 999), text(32, 2, 2, "quick_gelu", 2)],
        "unet": unet("dc", [64, 128], [1, 2], [1, 1], groups=32),
        "vae": vae([8, 16, 16, 16], groups=8),
        "request": begun(
            "a lighthouse at night", "landscape.png", mask="mask.png", steps=5, strength=0.6, negative_prompt="fog", seed=21,
            width=64, height=48,
        ),
    },
    "inpaint-blend-strength-1": {
        "notes": "4 channels at strength 1, which begins with noise alone; Euler ancestral, whose draws follow that of the masked image, "
        "which nothing uses; an IP-Adapter; two images, each as if it were alone",
        "matters": [{"strength": 0.75}, {"init_image": "portrait.png"}, {"mask": "alpha.png"}, {"sampling_method": "euler"}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(24, 2, 3, "quick_gelu", 2), text(24, 2, 2, "gelu", 2)],
        "unet": unet("dcc", [16, 24, 32], [2, 3, 2], [1, 2, 1]),
        "vae": vae([8, 8, 16], layers=2),
        "vision": vision(48, 2, 2, "gelu", 28, 7, 24),
        "adapters": [adapter("ip-adapter.safetensors", ["portrait.png"], 0.8)],
        "request": begun(
            "a red fox", "landscape.png", mask="mask.png", steps=4, strength=1.0, negative_prompt="", seed=5, batch=2, width=56,
            height=40, sampling_method="euler-a",
        ),
    },
    "inpaint-channels": {
        "notes": "a UNet of 9 channels in an inpainting pipeline's folder, at .9999, which is a step less than all; DPM++ 2M begins in the "
        "middle; widths that CUDA takes",
        "matters": [{"strength": 1.0}, {"init_image": "portrait.png"}, {"mask": "alpha.png"}, {"sampling_method": "euler"}],
        "class": "StableDiffusionXLInpaintPipeline",
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(32, 2, 4, "gelu", 999), text(32, 2, 2, "quick_gelu", 2)],
        "unet": unet("dc", [64, 128], [1, 2], [1, 1], groups=32, in_channels=9),
        "vae": vae([8, 16, 16, 16], groups=8),
        "request": begun(
            "a bowl of apples", "landscape.png", mask="mask.png", steps=4, strength=0.9999, negative_prompt="text", seed=3, width=64,
            height=48, sampling_method="dpmpp-2m",
        ),
    },
    "inpaint-channels-strength-1": {
        "notes": "9 channels at strength 1: no latents of the image, so the noise is the first draw; DDIM, no guidance, an IP-Adapter, two "
        "images, fresh noise in each step",
        "matters": [{"strength": 0.75}, {"init_image": "portrait.png"}, {"mask": "alpha.png"}, {"eta": 0.0}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(24, 2, 3, "quick_gelu", 2), text(16, 2, 2, "gelu", 2)],
        "unet": unet("dc", [16, 32], [2, 2], [1, 1], in_channels=9),
        "vae": vae([8, 16, 16]),
        "vision": vision(48, 2, 2, "gelu", 28, 7, 24),
        "adapters": [adapter("ip-adapter.safetensors", ["landscape.png"], 0.6)],
        "request": begun(
            "an old oak", "alpha.png", mask="mask.png", steps=3, strength=1.0, cfg_scale=1.0, seed=2, batch=2, width=40, height=48,
            sampling_method="ddim", eta=0.6,
        ),
    },
}
