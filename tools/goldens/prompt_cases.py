"""The cases of the diffusers profile about prompts and sizes: a second prompt, size conditioning, rows of tokens, weights.

`pieces` and `negative_pieces` are what the syntax of weights means, by hand: rows of text and weight, `None` where a row of tokens
ends.
"""
from diffusers_cases import LONG, adapter, request, text, unet, vae, vision
from diffusers_folder import PUBLISHED_SCHEDULER

OWN = (
    "prompt_2", "negative_prompt_2", "original_size", "crop", "target_size", "negative_original_size", "negative_crop",
    "negative_target_size", "long_prompts", "prompt_weights",
)


def prompted(prompt, **more):
    """A request with the settings that this file is about; null means that the flag is not given."""
    own = {key: more.pop(key, None) for key in OWN}
    return request(prompt, **more) | own


def embedding(path, names, dtype="F32"):
    """A textual inversion: its tensors by name, each with its number of vectors and the text encoder that they are for."""
    return {"path": path, "names": names, "dtype": dtype}


CASES = {
    "prompt-2-sizes": {
        "notes": "a prompt of its own for the second encoder, positive and negative; every size, other ones for the negative row",
        "matters": [
            {"prompt_2": None}, {"negative_prompt_2": None}, {"original_size": None}, {"crop": None}, {"target_size": None},
            {"negative_crop": None},
        ],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(16, 2, 2, "quick_gelu", 2), text(24, 2, 2, "gelu", 2)],
        "unet": unet("dc", [16, 32], [1, 1], [1, 1]),
        "vae": vae([8, 16]),
        "request": prompted(
            "a kite", prompt_2="over a grey sea", negative_prompt="rain", negative_prompt_2="people", steps=3, width=32, height=24,
            seed=41, original_size=[600, 500], crop=[20, 300], target_size=[900, 700], negative_original_size=[100, 90],
            negative_crop=[7, 5], negative_target_size=[120, 130],
        ),
    },
    "long-prompt-weights": {
        "notes": "AUTOMATIC1111's weights on prompts of three rows of up to 75 tokens, those of the negative one begun by BREAK; an image",
        "matters": [{"pieces": [["a garden, ", 1.0], [LONG, 1.0]]}, {"negative_pieces": [["fog", 1.0], None, ["people", 1.0], None, ["and rain", 1.0]]}],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(16, 2, 2, "quick_gelu", 2), text(24, 2, 2, "gelu", 2)],
        "unet": unet("dc", [16, 32], [1, 1], [1, 1]),
        "vae": vae([8, 16]),
        "vision": vision(32, 2, 2, "gelu", 28, 7, 24),
        "adapters": [adapter("ip-adapter.safetensors", ["portrait.png"], 0.8)],
        "pieces": [["a ", 1.0], ["garden", 1.3], [", ", 1.0], [LONG, 0.5]],
        "negative_pieces": [["fog", 1.1], None, ["people", 1 / 1.1], None, ["and rain", 1.0]],
        "request": prompted(
            f"a (garden:1.3), ({LONG}:.5)", negative_prompt="(fog) BREAK [people] BREAK and rain", steps=3, width=32, height=24, seed=42,
            long_prompts="chunks", prompt_weights="a1111",
        ),
    },
    "embeddings": {
        "notes": "textual inversions as diffusers loads them: three vectors for either encoder, one in F16 as a vector, in both rows; within "
        "a word, in upper case; legacy pooling (eos_token_id 2), so at the greatest id, which is the word's last vector",
        "matters": [
            {"prompt": "a kite in mat-style_1 mat-style_2 mat-style over <SEA>hills"}, {"prompt": "a kite in mat-style over hills"},
            {"negative_prompt": "fog and rain"},
        ],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(16, 2, 2, "quick_gelu", 2), text(24, 2, 3, "gelu", 2)],
        "unet": unet("dc", [16, 32], [1, 1], [1, 1]),
        "vae": vae([8, 16]),
        "embeddings": [
            embedding("mat-style.safetensors", {"clip_l": [3, 0], "clip_g": [3, 1]}),
            embedding("<sea>.safetensors", {"clip_l": [None, 0], "clip_g": [None, 1]}, "F16"),
        ],
        "request": prompted(
            "a kite in mat-style over <SEA>hills", negative_prompt="fog <sea> and rain", steps=3, width=32, height=24, seed=43,
        ),
    },
    "embeddings-rows": {
        "notes": "textual inversions in chunks of 75 tokens, a word of four vectors carried over the chunk's end, with AUTOMATIC1111's weights; "
        "a file for each encoder by diffusers' and AUTOMATIC1111's names; another for the second encoder alone; a text encoder with more "
        "rows than its tokenizer has tokens; pooled at the first EOS; BF16",
        "matters": [{"pieces": [["w " * 73 + "mark ", 1.0], ["oil wet", 0.5]]}, {"pieces": [["w " * 73 + "mark ", 1.0], ["wet oil", 1.0]]}],
        "tokenizer": "small",
        "dtype": "BF16",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(16, 2, 2, "quick_gelu", 999, vocab=1012), text(24, 2, 2, "gelu", 999)],
        "unet": unet("dc", [16, 32], [1, 1], [1, 1]),
        "vae": vae([8, 16]),
        "embeddings": [
            embedding("mark.safetensors", {"<mark>": [4, 0]}, "BF16"),
            embedding("2/mark.pt", {"string_to_param.*": [4, 1]}, "F16"),
            embedding("wet.safetensors", {"clip_g": [2, 1]}),
        ],
        "pieces": [["w " * 73 + "mark ", 1.0], ["wet oil", 0.5]],
        "negative_pieces": [["mark", 1.0], None, ["w", 1.0]],
        "request": prompted(
            "w " * 73 + "mark (wet oil:0.5)", negative_prompt="mark BREAK w", steps=3, width=24, height=32, seed=44, long_prompts="chunks",
            prompt_weights="a1111",
        ),
    },
    "compel": {
        "notes": "compel's weights: above and below 1, nested, a quoted text, an escaped bracket, commas; in the negative prompt too; pooled from "
        "the text as it is; an image",
        "matters": [
            {"prompt": "a kite in (red)1.4 air, grey sea"}, {"prompt": "a kite in red air, (grey)0.4 sea"}, {"negative_prompt": "fog and rain"},
        ],
        "tokenizer": "small",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(16, 3, 2, "quick_gelu", 2), text(24, 3, 3, "gelu", 2)],
        "unet": unet("dc", [16, 32], [1, 1], [1, 1]),
        "vae": vae([8, 16]),
        "vision": vision(32, 2, 2, "gelu", 28, 7, 24),
        "adapters": [adapter("ip-adapter.safetensors", ["landscape.png"], 0.7)],
        "request": prompted(
            'a kite in (red)1.4 air,\\"over\\" (a (grey)0.4 sea)1.2 "by \\(night\\)"--', negative_prompt="fog+ and rain-", steps=3, width=32,
            height=24, seed=45, prompt_weights="compel",
        ),
    },
    "compel-rows": {
        "notes": "compel's weights in rows that end with sentences, a fragment of a weight below 1 over the end of one; "
        ".and() with weights for the first encoder, .blend() in the negative prompt; BF16",
        "matters": [
            {"prompt_2": "a garden"}, {"negative_prompt": "fog"}, {"prompt": '("over a (grey)0.4 sea", "an oil painting++").and()'},
            {"prompt_2": "a stone garden. by a (path " + LONG + ")1.1 and a sea."},
        ],
        "tokenizer": "small",
        "dtype": "BF16",
        "scheduler": PUBLISHED_SCHEDULER,
        "text": [text(16, 2, 2, "quick_gelu", 2), text(24, 2, 3, "gelu", 999)],
        "unet": unet("dc", [16, 32], [1, 1], [1, 1]),
        "vae": vae([8, 16]),
        "request": prompted(
            '("over a (grey)0.4 sea", "an oil painting++").and(1, 0.8)', prompt_2="a stone garden. by a (path (" + LONG + ")0.6)1.1 and a sea.",
            negative_prompt='("fog", "rain, (people)0.5 and more").blend(0.7, 0.5)', steps=3, width=24, height=32, seed=46, prompt_weights="compel",
            long_prompts="chunks",
        ),
    },
}
