"""The cases of the diffusers profile with UNets that have layers removed; see diffusers_cases.py."""
from diffusers_cases import adapter, request, text, unet, vae, vision
from diffusers_folder import PUBLISHED_SCHEDULER

CASES = {
    "pruned": {
        "notes": "SSD-1B's structure in small: transformer layers that differ within a block and between down and up, a middle of one "
        "resnet; a base adapter, whose pairs of matrices follow that structure",
        "matters": [{"negative_prompt": None}, {"seed": 1}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(32, 2, 4, "gelu", 999), text(32, 2, 2, "quick_gelu", 2)],
        "unet": unet(
            "dcc", [32, 32, 64], [1, 1, 2], [1, [1, 1], [2, 1]], layers=2, groups=32, reverse=[[1, 1, 2], [2, 1, 1], 1],
            mid="UNetMidBlock2D",
        ),
        "vae": vae([8, 16], groups=8),
        "vision": vision(32, 2, 2, "gelu", 28, 14, 24),
        "adapters": [adapter("ip-adapter.safetensors", ["landscape.png"], 0.7)],
        "request": request("a stone bridge", negative_prompt="fog", steps=3, width=24, height=32, seed=17),
    },
    "pruned-without-middle": {
        "notes": "no middle at all, one transformer layer everywhere but in one up block; without guidance",
        "matters": [{"seed": 1}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(32, 2, 4, "gelu", 999), text(32, 2, 2, "quick_gelu", 2)],
        "unet": unet("dc", [32, 64], [1, 1], [1, [1]], groups=32, reverse=[[2, 1], 1], mid=None),
        "vae": vae([8, 16], groups=8),
        "request": request("a green apple", cfg_scale=1.0, steps=3, width=24, height=32, seed=18),
    },
}
