"""The cases with LoRAs, by diffusers' load_lora_weights and set_adapters."""
from diffusers_cases import adapter, request, text, unet, vae, vision
from diffusers_folder import PUBLISHED_SCHEDULER


def lora(path, scale, style, components, **more):
    keys = {"dtype": "F32", "alpha": 4.0, "conv_alpha": 4.0, "convolutions": False, "gain": 0.3}
    assert set(more) <= set(keys) | {"rank"}, more
    return {"path": path, "scale": scale, "style": style, "components": components} | keys | more


ALL = ["unet", "text_encoder", "text_encoder_2"]

LORA_CASES = {
    "lora-kohya": {
        "notes": "kohya's names of the original blocks with alphas, those of convolutions others; every matrix and kernel of "
        "UNet and text encoders, up- and downsamplers, shortcuts and time embeddings too; with an image prompt",
        "matters": [{"lora_scales": [0.0]}, {"lora_scales": [1.0]}, {"lora_scales": [-0.8]}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(32, 2, 2, "quick_gelu", 2), text(24, 2, 3, "gelu", 2)],
        "unet": unet("dcc", [16, 32, 32], [2, 2, 4], [1, 1, 2], layers=2),
        "vae": vae([8, 8, 16, 16]),
        "vision": vision(48, 2, 2, "gelu", 28, 7, 24),
        "adapters": [adapter("ip-adapter.safetensors", ["landscape.png"], 0.6)],
        "loras": [lora("kohya.safetensors", 0.8, "kohya", ALL, alpha=2.0, conv_alpha=6.0, convolutions=True, gain=0.25)],
        "request": request("a red fox in the snow", steps=3, width=48, height=40, seed=31),
    },
    "lora-peft-two": {
        "notes": "PEFT's names with alphas in the metadata, and diffusers' old ones beside it; scales 0.7 and -0.3, F16 weights, "
        "projections as 1x1 convolutions, no guidance",
        "matters": [{"lora_scales": [0.7, 0.3]}, {"lora_scales": [-0.3, 0.7]}, {"lora_scales": [0.7, 0.0]}],
        "tokenizer": "small",
        "dtype": "F16",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(24, 2, 3, "quick_gelu", 2), text(40, 2, 2, "gelu", 2)],
        "unet": unet("cc", [24, 40], [2, 4], [1, 2], groups=4, linear=False),
        "vae": vae([8, 8, 16]),
        "loras": [
            lora("peft.safetensors", 0.7, "peft", ALL, dtype="F16", alpha=3.0, convolutions=True, rank=6),
            lora("old.safetensors", -0.3, "diffusers", ALL, dtype="F32"),
        ],
        "request": request("two boats", steps=3, cfg_scale=1.0, width=40, height=48, seed=32, batch=2),
    },
    "lora-text": {
        "notes": "text encoders alone, by kohya's names, clip_skip 1, an encoded negative prompt; BF16",
        "matters": [{"lora_scales": [0.0]}, {"clip_skip": None}],
        "tokenizer": "small",
        "dtype": "BF16",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(32, 3, 2, "quick_gelu", 2), text(32, 4, 4, "gelu", 2)],
        "unet": unet("dc", [16, 32], [1, 2], [1, 1]),
        "vae": vae([8, 8, 16]),
        "loras": [lora("text.safetensors", 1.5, "kohya", ALL[1:], dtype="BF16", alpha=1.0, gain=0.6)],
        "request": request("a bowl of apples", negative_prompt="blurry", steps=3, width=32, height=40, seed=33, clip_skip=1),
    },
}
