"""The cases of the diffusers profile about image prompts: weights, combinations, masks, parts of the steps, blocks.

All have one model, whose recipe is stored once, but those of PLUS_CASES, which have the model of a case of plus_cases.py.
make_image_prompts.py runs them.
"""
from diffusers_cases import request, text, unet, vae, vision
from diffusers_folder import PUBLISHED_SCHEDULER


def adapter(path, *references, strength=1.0, **more):
    """References are the image, its weight and its mask; more: combine, start, end, negative_image, blocks."""
    full = [(*r, *(None, 1.0, None)[len(r) :]) if isinstance(r, tuple) else (r, 1.0, None) for r in references]
    keys = {"combine": "concat", "start": 0.0, "end": 1.0, "negative_image": None, "blocks": None, "fit": "crop"}
    assert set(more) <= set(keys), more
    lists = {"images": [r[0] for r in full], "weights": [r[1] for r in full], "masks": [r[2] for r in full]}
    return {"path": path, "strength": strength, "dtype": "F32"} | keys | lists | more


# Widths that every backend takes, a block without cross-attention, two transformers in each of the others.
MODEL = {
    "tokenizer": "small",
    "scheduler": PUBLISHED_SCHEDULER,
    "text": [text(32, 2, 2, "quick_gelu", 2), text(32, 2, 4, "gelu", 2)],
    "unet": unet("dcc", [32, 64, 64], [2, 4, 2], [1, 1, 1], layers=2, groups=32),
    "vae": vae([8, 16, 16], groups=8),
    "vision": vision(64, 2, 2, "gelu", 28, 7, 24),
    "adapters": [adapter("first.safetensors", "landscape.png"), adapter("second.safetensors", "portrait.png")],
    "request": request("two boats", width=48, height=40),
}

CASES = {
    "masks": {
        "notes": "two images with a mask each, a grey one of 37x23 and a coloured one of 50x64, weights 1 and 0.5; latents "
        "of 10x14 are halved to 5x7 and 3x4, which diffusers takes for 2x6",
        "matters": [{"drop": "masks"}, {"drop": "weights"}],
        "adapters": [
            adapter("first.safetensors", ("landscape.png", 1.0, "mask-ramp.png"), ("portrait.png", 0.5, "mask-disc.png"),
                    strength=0.8),
        ],
        "request": request("a red fox in the snow", negative_prompt="blurry", width=56, height=40, seed=3),
    },
    "masks-two-adapters": {
        "notes": "two adapters, one with masks, one without that acts in the middle steps only; two images, unguided",
        "matters": [{"drop": "masks"}, {"drop": "steps"}],
        "adapters": [
            adapter("first.safetensors", ("alpha.png", 1.0, "mask-disc.png"), ("landscape.png", 1.0, "mask-ramp.png")),
            adapter("second.safetensors", "portrait.png", strength=0.6, start=0.2, end=0.75),
        ],
        "request": request("an owl", cfg_scale=1.0, steps=5, width=40, height=64, seed=8, batch=2, sampling_method="euler-a"),
    },
    "weights-concat": {
        "notes": "two images share a softmax, their values times 1 and -0.4; images padded to squares",
        "matters": [{"drop": "weights"}, {"drop": "fit"}],
        "adapters": [
            adapter("first.safetensors", ("landscape.png",), ("portrait.png", -0.4), strength=0.9, fit="pad"),
        ],
        "request": request("a paper crane", negative_prompt="", width=48, height=40, seed=5),
    },
    "weights-two-adapters": {
        "notes": "three images with weights 0.5, 0 and 2 in one softmax; a second adapter with the mean of two embeddings; "
        "unguided; images stretched to squares",
        "matters": [{"drop": "weights"}, {"drop": "fit"}, {"drop": "combine"}],
        "adapters": [
            adapter("first.safetensors", ("landscape.png", 0.5), ("alpha.png", 0.0), ("portrait.png", 2.0), strength=0.5,
                    fit="stretch"),
            adapter("second.safetensors", ("portrait.png", 1.0), ("landscape.png", 3.0), combine="average", fit="stretch"),
        ],
        "request": request("a lighthouse at night", cfg_scale=1.0, width=40, height=40, seed=6, sampling_method="lcm"),
    },
    "average-negative": {
        "notes": "the mean of three embeddings with weights 2, -0.5 and 1; an image in the negative row",
        "matters": [{"drop": "combine"}, {"drop": "negative_image"}, {"drop": "weights"}],
        "adapters": [
            adapter("second.safetensors", ("landscape.png", 2.0), ("portrait.png", -0.5), ("alpha.png", 1.0),
                    combine="average", negative_image="portrait.png"),
        ],
        "request": request("a bowl of apples", negative_prompt="dark", width=32, height=48, seed=12),
    },
    "add-from-the-second-step": {
        "notes": "two images with a softmax each, weights 1 and 0.5, from the second step to the fourth of five; an image in "
        "the negative row",
        "matters": [{"drop": "combine"}, {"drop": "steps"}, {"drop": "negative_image"}, {"drop": "weights"}],
        "adapters": [
            adapter("first.safetensors", ("portrait.png", 1.0), ("landscape.png", 0.5), combine="add", start=0.2, end=0.8,
                    negative_image="alpha.png"),
        ],
        "request": request("castle on a hill", negative_prompt="people", steps=5, cfg_scale=4.0, width=48, height=32, seed=7,
                           sampling_method="dpmpp-2m"),
    },
    "blocks-strong-and-composition": {
        "notes": "one adapter everywhere but in layout and middle, the other in layout alone",
        "matters": [{"drop": "blocks"}],
        "adapters": [
            adapter("first.safetensors", "landscape.png", blocks="strong-style", strength=0.8),
            adapter("second.safetensors", "portrait.png", blocks="composition"),
        ],
        "request": request("a green train", negative_prompt="red", width=40, height=48, seed=9),
    },
    "blocks-composition": {
        "notes": "two images in the block of the layout, a pair that must not act elsewhere; unguided, two images",
        "matters": [{"drop": "blocks"}],
        "adapters": [adapter("second.safetensors", "alpha.png", "landscape.png", blocks="composition", strength=1.3)],
        "request": request("a blue door", cfg_scale=1.0, width=32, height=32, seed=15, batch=2),
    },
    "blocks-strong": {
        "notes": "everywhere but in layout and middle, with an image in the negative row",
        "matters": [{"drop": "blocks"}, {"drop": "negative_image"}],
        "adapters": [adapter("first.safetensors", "portrait.png", blocks="strong-style", negative_image="landscape.png")],
        "request": request("climbing ivy", negative_prompt="stone", width=48, height=40, seed=16),
    },
    "blocks-precise": {
        "notes": "style in both rows; in the block of the layout the image acts in the negative row, and in no other",
        "matters": [{"drop": "blocks"}],
        "adapters": [adapter("first.safetensors", "landscape.png", blocks="precise-style", strength=0.9)],
        "request": request("a stone fountain", negative_prompt="day", width=48, height=40, seed=10),
    },
    "jpeg": {
        "notes": "a progressive JPEG file with 4:2:0 colours as the reference",
        "matters": [{"strengths": [0.5]}],
        "adapters": [adapter("first.safetensors", "landscape.jpg", strength=0.9)],
        "request": request("a hot-air balloon", negative_prompt="rain", width=40, height=48, seed=19),
    },
    "blocks-precise-add": {
        "notes": "two images with a softmax each, precise style, an image in the negative row, two images",
        "matters": [{"drop": "blocks"}, {"drop": "negative_image"}],
        "adapters": [
            adapter("second.safetensors", ("landscape.png", 1.0), ("portrait.png", 0.6), combine="add",
                    blocks="precise-style", negative_image="alpha.png"),
        ],
        "request": request("warm evening light", negative_prompt="", width=32, height=40, seed=11, batch=2),
    },
}

# A base adapter and an IP-Adapter Plus; cases of their own, by the name of the case whose model they have.
PLUS_MODEL = "plus-two-adapters"
BASE, PLUS = "ip-adapter.safetensors", "plus-face.safetensors"

PLUS_CASES = {
    "plus-masks": {
        "notes": "an IP-Adapter Plus with a mask and a weight for each of two images, a base one that adds two, from the second "
        "step on",
        "matters": [{"drop": "masks"}, {"drop": "weights"}, {"drop": "combine"}, {"drop": "steps"}],
        "adapters": [
            adapter(BASE, ("portrait.png", 0.5), ("alpha.png", 1.0), combine="add", start=0.25),
            adapter(PLUS, ("landscape.png", 1.0, "mask-ramp.png"), ("portrait.png", 0.7, "mask-disc.png"), strength=0.9),
        ],
        "request": request("a stack of old books", negative_prompt="dust", steps=4, width=40, height=24, seed=17),
    },
    "plus-average": {
        "notes": "the mean of two images' hidden states with weights 3 and 1 in an IP-Adapter Plus, another image's in the "
        "negative row; a base one that shares a softmax with weights",
        "matters": [{"drop": "combine"}, {"drop": "weights"}, {"drop": "negative_image"}],
        "adapters": [
            adapter(BASE, ("alpha.png", 1.0), ("portrait.png", -0.5), strength=0.7),
            adapter(PLUS, ("landscape.png", 3.0), ("portrait.png", 1.0), combine="average", negative_image="alpha.png"),
        ],
        "request": request("a fishing boat", negative_prompt="", steps=3, cfg_scale=4.0, width=24, height=32, seed=18),
    },
}
