"""The cases of the diffusers profile: what each model looks like and what is asked of it.

`matters` lists changes of the request, each of which must change the latents (make_diffusers.py checks it).
"""
from diffusers_folder import PUBLISHED_SCHEDULER


def text(hidden, layers, heads, act, eos, vocab=1000, projection=None):
    config = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "hidden_act": act}
    bos = {999: 998, 998: 999, 2: 0, 49407: 49406}[eos]
    config |= {"intermediate_size": 2 * hidden, "vocab_size": vocab, "bos_token_id": bos, "eos_token_id": eos}
    return config | {"projection_dim": projection or hidden}


def vision(hidden, layers, heads, act, image, patch, projection):
    config = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "hidden_act": act}
    config |= {"intermediate_size": 2 * hidden, "image_size": image, "patch_size": patch}
    return config | {"projection_dim": projection}


def unet(kinds, channels, heads, transformers, layers=1, groups=8, time=8, **more):
    shape = {"kinds": kinds, "channels": channels, "heads": heads, "transformers": transformers}
    return shape | {"layers": layers, "groups": groups, "time": time} | more


def vae(channels, layers=1, groups=4, **more):
    return {"channels": channels, "layers": layers, "groups": groups} | more


def request(prompt, **more):
    """Every key of a request; null means that the flag is not given."""
    keys = {"negative_prompt": None, "steps": 4, "cfg_scale": 5.0, "width": 48, "height": 48, "seed": 0, "batch": 1}
    keys |= {"sampling_method": None, "schedule": None, "prediction": None, "timestep_spacing": None}
    keys |= {"guidance_rescale": 0.0, "clip_skip": None, "eta": 0.0, "ip_adapters": []}
    assert set(more) <= set(keys), more
    return {"prompt": prompt} | keys | more


def adapter(path, images, strength, dtype="F32"):
    return {"path": path, "images": images, "strength": strength, "dtype": dtype}


STYLE_AND_LAYOUT = {"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}}

LONG = (
    "a very long description of a garden with many paths, red roses, white lilies, a stone fountain, an old oak, "
    "a wooden bench, two cats asleep in the sun, a blue door, climbing ivy, a greenhouse full of lemon trees, "
    "warm evening light, distant hills, painted in oil on a rough canvas by somebody who loved all of it, and more, "
    "much more than seventy-seven tokens can hold, so that this end is cut away"
)

CASES = {
    "euler": {
        "notes": "SDXL's shape in small: plain block first, two resnets a block, the published scheduler, one picture at "
        "0.6, negative prompt absent and therefore zeros; legacy pooling (eos_token_id 2)",
        "matters": [{"negative_prompt": ""}, {"sampling_method": "euler-a"}, {"seed": 1}, {"timestep_spacing": "trailing"}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(32, 3, 2, "quick_gelu", 2), text(32, 3, 4, "gelu", 2)],
        "unet": unet("dcc", [32, 32, 64], [2, 2, 4], [1, 1, 2], layers=2, groups=32),
        "vae": vae([8, 16, 16, 16]),
        "vision": vision(48, 3, 3, "gelu", 28, 7, 24),
        "adapters": [adapter("ip-adapter.safetensors", ["landscape.png"], 0.6)],
        "request": request("a red fox in the snow", width=64, height=48),
    },
    "ddim-style": {
        "notes": "four levels with latents of 10x14, DDIM made from the published Euler configuration, F16 weights, a "
        "torch adapter, image branch in one block only; the empty negative prompt is encoded; '!' is a special "
        "token of the second tokenizer",
        "matters": [{"negative_prompt": None}, {"sampling_method": None}, {"prompt": "paint it blue a cat's hat, 3 birds"}],
        "tokenizer": "small",
        "dtype": "F16",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(32, 2, 2, "quick_gelu", 999), text(24, 3, 3, "gelu", 999, projection=40)],
        "unet": unet("dccc", [16, 16, 32, 48], [2, 2, 2, 3], [1, 1, 1, 2]),
        "vae": vae([8, 8, 16], groups=8),
        "vision": vision(80, 2, 1, "quick_gelu", 32, 8, 32),
        "adapters": [adapter("ip-adapter.bin", ["portrait.png"], {"up": {"block_0": [0.0, 1.0]}}, "F16")],
        "request": request(
            "Paint it blue! A cat's hat, 3 birds!!", negative_prompt="", steps=3, width=56, height=40, seed=7,
            sampling_method="ddim",
        ),
    },
    "dpmpp-karras-two-images": {
        "notes": "two levels, both with cross-attention, head size 20, latents of 9x7, BF16 weights; the folder itself "
        "asks for DPM++ 2M with Karras sigmas; two pictures share one softmax",
        "matters": [{"schedule": "default"}, {"sampling_method": "euler"}],
        "tokenizer": "small",
        "dtype": "BF16",
        "scheduler": {
            "_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.42.1", "algorithm_type": "dpmsolver++",
            "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "final_sigmas_type": "zero",
            "num_train_timesteps": 1000, "prediction_type": "epsilon", "solver_order": 2, "solver_type": "midpoint",
            "lower_order_final": True, "euler_at_final": False, "thresholding": False, "steps_offset": 1,
            "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": True,
        },
        "text": [text(24, 2, 3, "quick_gelu", 2), text(40, 2, 2, "gelu", 2)],
        "unet": unet("cc", [40, 80], [2, 4], [1, 2], groups=4),
        "vae": vae([8, 8, 8, 16]),
        "vision": vision(104, 2, 1, "gelu", 28, 7, 32),
        "adapters": [adapter("ip-adapter.safetensors", ["landscape.png", "portrait.png"], 1.0, "BF16")],
        "request": request(
            "castle on a hill, oil painting", negative_prompt="blurry", steps=6, cfg_scale=7.5, width=56, height=72, seed=3
        ),
    },
    "euler-a-two-adapters": {
        "notes": "two adapters summed, the second with two pictures (one has an alpha channel, which is laid on white); batch of "
        "two from seeds 11 and 12, each with its own generator for the noise between steps; UNet in two shards",
        "matters": [{"sampling_method": "euler"}, {"seed": 12}],
        "tokenizer": "small",
        "shards": 2,
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(16, 2, 2, "quick_gelu", 2), text(32, 2, 2, "gelu", 999)],
        "unet": unet("dcc", [16, 32, 48], [1, 4, 3], [0, 1, 1], groups=4),
        "vae": vae([8, 16], layers=2),
        "vision": vision(54, 2, 3, "gelu", 28, 7, 16),
        "adapters": [
            adapter("first.safetensors", ["portrait.png"], 0.5, "F16"),
            adapter("second.bin", ["alpha.png", "landscape.png"], 0.8, "F16"),
        ],
        "request": request(
            "two boats", negative_prompt="people", steps=4, width=32, height=24, seed=11, batch=2, sampling_method="euler-a"
        ),
    },
    "lcm-unguided": {
        "notes": "no guidance (cfg 1), LCM made from the published configuration, heads of 64, a VAE with two layers",
        "matters": [{"sampling_method": "euler"}, {"cfg_scale": 1.5}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(32, 2, 4, "gelu", 999), text(32, 3, 2, "quick_gelu", 2)],
        "unet": unet("dc", [64, 128], [1, 2], [1, 2], groups=32),
        "vae": vae([8, 16, 16], layers=2, groups=8),
        "vision": vision(64, 2, 1, "gelu", 28, 14, 24),
        "adapters": [adapter("ip-adapter.safetensors", ["landscape.png"], 1.0)],
        "request": request("a lighthouse at night", cfg_scale=1.0, width=56, height=40, seed=21, sampling_method="lcm"),
    },
    "wide": {
        "notes": "128 and 256 channels with heads of 64 over 128 and 32 places, the text and one picture: wide enough for the "
        "kernels of sm_90a",
        "matters": [{"seed": 1}, {"sampling_method": "euler-a"}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(64, 2, 1, "quick_gelu", 2), text(64, 2, 1, "gelu", 2)],
        "unet": unet("cc", [128, 256], [2, 4], [1, 1], groups=32),
        "vae": vae([8, 16, 16]),
        "vision": vision(64, 2, 1, "gelu", 28, 7, 24),
        "adapters": [adapter("ip-adapter.safetensors", ["landscape.png"], 0.8)],
        "request": request("two boats on a river", negative_prompt="fog", steps=2, width=64, height=32, seed=5),
    },
    "v-trailing-rescale": {
        "notes": "the folder's scheduler predicts v with trailing spacing; guidance rescaled by 0.7, each image of the "
        "batch by its own deviation; clip_skip 1 moves the prompt's layer but not the negative prompt's; no adapter",
        "matters": [
            {"prediction": "epsilon"}, {"timestep_spacing": "leading"}, {"guidance_rescale": 0.0}, {"clip_skip": None},
        ],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER | {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        "text": [text(32, 4, 2, "quick_gelu", 2), text(32, 4, 2, "gelu", 2)],
        "unet": unet("dcc", [16, 24, 32], [2, 3, 2], [1, 2, 1]),
        "vae": vae([8, 16, 16, 16]),
        "request": request(
            "a bowl of apples", negative_prompt="text, watermark", steps=4, cfg_scale=5.0, width=56, height=40, seed=5,
            batch=2, guidance_rescale=0.7, clip_skip=1,
        ),
    },
    "full-vocabulary-long": {
        "notes": "no tokenizer folders, so CLIP's own 49,408 entries; a prompt cut at 77 tokens; projections as 1x1 "
        "convolutions (use_linear_projection false); DDIM with eta 0.4",
        "matters": [{"eta": 0.0}, {"sampling_method": None}],
        "tokenizer": "full",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(32, 2, 2, "quick_gelu", 49407, 49408), text(24, 2, 2, "gelu", 2, 49408)],
        "unet": unet("dcc", [16, 32, 32], [2, 4, 2], [1, 1, 1], linear=False),
        "vae": vae([8, 16, 16]),
        "request": request(
            LONG, negative_prompt="lowres, low quality!", steps=4, width=40, height=48, seed=1234567890123,
            sampling_method="ddim", eta=0.4,
        ),
    },
    "full-vocabulary-unicode": {
        "notes": "CLIP's own vocabulary with letters of many scripts, a decomposed accent, white space and emoji; "
        "force_zeros_for_empty_prompt false, so the absent negative prompt is encoded as an empty one",
        "matters": [{"negative_prompt": "!"}, {"timestep_spacing": "leading"}],
        "tokenizer": "full",
        "force_zeros": False,
        "scheduler": PUBLISHED_SCHEDULER | {"timestep_spacing": "linspace"},
        "text": [text(32, 2, 4, "quick_gelu", 2, 49408), text(32, 2, 2, "gelu", 49407, 49408)],
        "unet": unet("dc", [16, 32], [2, 2], [1, 1]),
        "vae": vae([8, 16], groups=8, scaling_factor=0.2),
        "vision": vision(48, 2, 2, "quick_gelu", 28, 7, 24),
        "adapters": [adapter("ip-adapter.bin", ["alpha.png"], 0.9)],
        "request": request(
            "Ein ÖLGEMÄLDE \t von\u00a0Cafe\u0301 №5 – 猫と犬, Привет МИР 🦊👩‍🎨 “don't” it's 1234 <|endoftext|> ΑΒΓς",
            steps=4, cfg_scale=3.0, width=32, height=40, seed=2,
        ),
    },
    "style-layout-and-zero": {
        "notes": "the published style and layout blocks of SDXL on one adapter, scale 0 on the other, which must change "
        "nothing; two resnets a block; trailing spacing as a flag",
        "matters": [{"timestep_spacing": None}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(24, 2, 3, "quick_gelu", 2), text(24, 2, 2, "gelu", 2)],
        "unet": unet("dcc", [16, 16, 32], [2, 2, 4], [1, 1, 1], layers=2),
        "vae": vae([8, 16], layers=1),
        "vision": vision(48, 2, 2, "gelu", 28, 7, 24),
        "adapters": [
            adapter("ip-adapter.safetensors", ["landscape.png"], STYLE_AND_LAYOUT),
            adapter("unused.safetensors", ["portrait.png"], 0.0),
        ],
        "request": request(
            "an owl", negative_prompt="day", steps=3, width=32, height=32, seed=9, timestep_spacing="trailing"
        ),
    },
    "flags-over-folder": {
        "notes": "every flag against a DDIM folder: DPM++ 2M, Karras (with which the spacing happens to change nothing), v, "
        "trailing; a vocabulary whose largest id is not EOS, so that pooling must look for the first EOS",
        "matters": [{"sampling_method": None}, {"schedule": None}, {"prediction": None}],
        "tokenizer": "swapped",
        "scheduler": PUBLISHED_SCHEDULER | {"_class_name": "DDIMScheduler"},
        "text": [text(24, 2, 3, "quick_gelu", 998), text(32, 2, 2, "gelu", 998)],
        "unet": unet("ddc", [16, 16, 32], [1, 2, 2], [0, 0, 2], groups=4),
        "vae": vae([8, 8, 8, 8]),
        "vision": vision(36, 2, 2, "gelu", 20, 5, 24),
        "adapters": [
            adapter("ip-adapter.safetensors", ["landscape.png"], {"down": 0.3, "mid": 1.0, "up": {"block_0": 0.7}})
        ],
        "request": request(
            "a green train", negative_prompt="red", steps=5, cfg_scale=4.0, width=40, height=56, seed=4,
            sampling_method="dpmpp-2m", schedule="karras", prediction="v", timestep_spacing="trailing",
        ),
    },
    "heun-beta": {
        "notes": "Heun, two evaluations a step, on the quantiles of a beta distribution; guidance, an image, two images of own "
        "generators",
        "matters": [{"sampling_method": "euler"}, {"schedule": None}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(16, 2, 2, "quick_gelu", 2), text(24, 2, 2, "gelu", 2)],
        "unet": unet("dc", [16, 32], [1, 1], [1, 1]),
        "vae": vae([8, 16]),
        "vision": vision(32, 2, 2, "gelu", 28, 7, 24),
        "adapters": [adapter("ip-adapter.safetensors", ["portrait.png"], 0.8)],
        "request": request(
            "a kite", negative_prompt="rain", steps=4, width=32, height=24, seed=31, batch=2, sampling_method="heun",
            schedule="beta",
        ),
    },
    "dpmpp-2m-sde-exponential": {
        "notes": "the folder's DPM++ 2M as the SDE, which draws in every step, the last too; exponential noise levels, v; two "
        "images of own generators",
        "matters": [{"sampling_method": "dpmpp-2m"}, {"schedule": None}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER
        | {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "v_prediction"},
        "text": [text(16, 2, 2, "quick_gelu", 2), text(24, 2, 2, "gelu", 2)],
        "unet": unet("dc", [16, 32], [1, 1], [1, 1]),
        "vae": vae([8, 16]),
        "request": request(
            "a kite", negative_prompt="rain", steps=5, cfg_scale=3.0, width=24, height=32, seed=32, batch=2,
            sampling_method="dpmpp-2m-sde", schedule="exponential",
        ),
    },
    "saved-by-transformers-5": {
        "notes": "the folder as transformers 5 writes it: one tokenizer.json, no text_model. prefix in the first text "
        "encoder's names; Euler from a DPM++ folder with Karras sigmas turned off",
        "matters": [{"schedule": None}, {"sampling_method": None}],
        "tokenizer": "single",
        "transformers_5": True,
        "scheduler": PUBLISHED_SCHEDULER | {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
        "text": [text(16, 2, 2, "quick_gelu", 2), text(24, 2, 2, "gelu", 2)],
        "unet": unet("dc", [16, 32], [1, 1], [1, 1]),
        "vae": vae([8, 16]),
        "vision": vision(32, 2, 2, "gelu", 28, 7, 24),
        "adapters": [adapter("ip-adapter.safetensors", ["alpha.png"], 0.5)],
        "request": request(
            "a paper crane!", negative_prompt="", steps=4, width=24, height=32, seed=6, sampling_method="euler",
            schedule="default",
        ),
    },
}
