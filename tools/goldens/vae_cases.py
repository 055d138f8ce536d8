"""The cases of the diffusers profile whose images are coded by another model than the folder's VAE, or in tiles.

Kept apart from diffusers_cases.py; make_vaes.py runs them.
"""
from diffusers_cases import adapter, request, text, unet, vae, vision
from diffusers_folder import PUBLISHED_SCHEDULER
from init_image_cases import begun

CASES = {
    "vae-file": {
        "notes": "the VAE of a single file with original names and no configuration: the scaling factor is that of the folder's own, "
        "stored as bf16; widths that CUDA takes",
        "matters": [{"seed": 1}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(32, 2, 4, "gelu", 999), text(32, 2, 2, "quick_gelu", 2)],
        "unet": unet("dc", [64, 128], [1, 2], [1, 1], groups=32),
        "vae": vae([8, 16, 16, 16], groups=8, scaling_factor=0.2),
        "vae_file": vae([16, 16, 24, 32], groups=8, scaling_factor=0.2)
        | {"layout": "original", "path": "other/other_vae.safetensors", "prefix": "first_stage_model.", "dtype": "BF16"},
        "request": request("a red fox", steps=2, width=48, height=32, negative_prompt="fog", seed=21),
    },
    "vae-folder-img2img": {
        "notes": "the VAE of another folder, with other sizes and a scaling factor of its own, encodes the image to begin with, too; an "
        "IP-Adapter; two images",
        "matters": [{"strength": 0.9}, {"init_image": "portrait.png"}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(24, 2, 3, "quick_gelu", 2), text(24, 2, 2, "gelu", 2)],
        "unet": unet("dcc", [16, 24, 32], [2, 3, 2], [1, 2, 1]),
        "vae": vae([8, 8, 16], layers=2),
        "vae_file": vae([12, 16, 24], groups=4, scaling_factor=0.3) | {"layout": "diffusers", "path": "other/vae"},
        "vision": vision(48, 2, 2, "gelu", 28, 7, 24),
        "adapters": [adapter("ip-adapter.safetensors", ["portrait.png"], 0.8)],
        "request": begun(
            "an old oak", "landscape.png", steps=4, strength=0.5, negative_prompt="", seed=5, batch=2, width=56, height=40,
            sampling_method="dpmpp-2m",
        ),
    },
    "taesd": {
        "notes": "TAESD as a folder of diffusers' layout, with the published numbers of blocks and a scaling factor of its own; widths that "
        "CUDA takes",
        "matters": [{"seed": 1}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(32, 2, 4, "gelu", 999), text(32, 2, 2, "quick_gelu", 2)],
        "unet": unet("dc", [64, 128], [1, 2], [1, 1], groups=32),
        "vae": vae([8, 16, 16, 16], groups=8),
        "taesd_file": {
            "layout": "diffusers", "path": "taesd", "channels": 16, "encoder_blocks": [1, 3, 3, 3], "decoder_blocks": [3, 3, 3, 1],
            "scaling_factor": 1.25,
        },
        "request": request("a red fox", steps=2, width=48, height=32, negative_prompt="fog", seed=21, batch=2),
    },
    "taesd-img2img": {
        "notes": "both halves in one file with original names; the image to begin with is encoded without a draw, so that the noise is the "
        "first; DDIM with noise of its own",
        "matters": [{"strength": 0.9}, {"init_image": "portrait.png"}, {"eta": 0.0}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(24, 2, 3, "quick_gelu", 2), text(24, 2, 2, "gelu", 2)],
        "unet": unet("dc", [16, 32], [2, 2], [1, 1]),
        "vae": vae([8, 8, 16]),
        "taesd_file": {
            "layout": "original", "path": "taesd.bin", "channels": 24, "encoder_blocks": [1, 2, 1], "decoder_blocks": [2, 1, 1],
        },
        "request": begun(
            "an old oak", "landscape.png", steps=4, strength=0.5, negative_prompt="", seed=5, width=56, height=40,
            sampling_method="ddim", eta=0.5,
        ),
    },
    "tiles": {
        "notes": "3 by 4 tiles of 32 pixels, unevenly overlapping; a side that is no multiple of the tiles' steps",
        "matters": [{"seed": 1}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(24, 2, 3, "quick_gelu", 2), text(24, 2, 2, "gelu", 2)],
        "unet": unet("dc", [16, 32], [2, 2], [1, 1]),
        "vae": vae([8, 8, 16]),
        "request": request("a red fox", steps=2, width=104, height=64, negative_prompt="fog", seed=4) | {"vae_tiling": 32},
    },
    "tiles-img2img": {
        "notes": "encoding and decoding in tiles, one tile high; two images",
        "matters": [{"strength": 1.0}, {"init_image": "portrait.png"}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(24, 2, 3, "quick_gelu", 2), text(24, 2, 2, "gelu", 2)],
        "unet": unet("dc", [16, 32], [2, 2], [1, 1]),
        "vae": vae([8, 16], groups=8),
        "request": begun(
            "an old oak", "landscape.png", steps=4, strength=0.5, negative_prompt="", seed=5, width=40, height=16, batch=2,
        ) | {"vae_tiling": 16},
    },
}
