"""The cases of the diffusers profile with IP-Adapter Plus; see diffusers_cases.py."""
from diffusers_cases import adapter, request, text, unet, vae, vision
from diffusers_folder import PUBLISHED_SCHEDULER


def plus(path, images, strength, queries, hidden, heads, dtype="F32"):
    """A resampler of diffusers' fixed depth, 4: `hidden` is the width of a latent, a head has 64 channels."""
    resampler = {"queries": queries, "hidden": hidden, "heads": heads}
    return adapter(path, images, strength, dtype) | {"resampler": resampler}


CASES = {
    "plus": {
        "notes": "an IP-Adapter Plus as a torch file in F16 with two pictures in one softmax, latents narrower than their one head "
        "of 64; the negative row is the encoder's hidden states of zero pixels; DPM++ 2M",
        "matters": [{"negative_prompt": None}, {"seed": 1}, {"sampling_method": "euler"}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(32, 2, 4, "gelu", 999), text(32, 2, 2, "quick_gelu", 2)],
        "unet": unet("dc", [64, 128], [1, 2], [1, 1], groups=32),
        "vae": vae([8, 16, 16], groups=8),
        "vision": vision(64, 3, 2, "gelu", 28, 7, 24),
        "adapters": [plus("ip-adapter-plus.bin", ["landscape.png", "portrait.png"], 0.8, 5, 48, 1, "F16")],
        "request": request(
            "a glass of water", negative_prompt="blurry", steps=4, cfg_scale=6.0, width=40, height=32, seed=31,
            sampling_method="dpmpp-2m",
        ),
    },
    "plus-two-adapters": {
        "notes": "a base adapter and an IP-Adapter Plus of other widths on one image encoder, each with its own picture, the Plus in "
        "some blocks only; a batch of two without guidance, Euler ancestral",
        "matters": [{"sampling_method": "euler"}, {"cfg_scale": 3.0}, {"seed": 12}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(24, 2, 3, "quick_gelu", 2), text(40, 2, 5, "gelu", 2)],
        "unet": unet("cc", [64, 64], [1, 2], [1, 2], groups=32),
        "vae": vae([8, 16], groups=8),
        "vision": vision(80, 2, 2, "quick_gelu", 24, 8, 32),
        "adapters": [
            adapter("ip-adapter.safetensors", ["portrait.png"], 0.6),
            plus("plus-face.safetensors", ["alpha.png"], {"down": {"block_0": [1.0], "block_1": [0.5]}, "up": 0.7}, 3, 96, 2),
        ],
        "request": request(
            "an old clock", cfg_scale=1.0, steps=3, width=24, height=32, seed=11, batch=2, sampling_method="euler-a"
        ),
    },
}
