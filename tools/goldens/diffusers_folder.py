"""A small SDXL model as a diffusers folder: configurations, tokenizers, adapters, and a recipe for the weights."""
import gzip
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from diffusers import UNet2DConditionModel
from safetensors import safe_open
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

import lora_files
import vae_files
from recipe import Recipe

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
SMALL = 1000  # entries of the small vocabulary

# The scheduler configuration that SDXL is published with. It names keys of several schedulers, which matters when
# another one is made from it.
PUBLISHED_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}


def clip_merges(wheel: Path | None) -> list[str]:
    """The 48,894 merges of CLIP, from the open_clip_torch wheel (downloaded where none is given)."""
    with tempfile.TemporaryDirectory() as folder:
        if wheel is None:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", folder, "open_clip_torch==3.3.0"]
            subprocess.run(command, check=True)
            wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            text = gzip.decompress(archive.read("open_clip/bpe_simple_vocab_16e6.txt.gz")).decode()
    return text.split("\n")[1 : 49152 - 256 - 2 + 1]


def vocabulary(merges: list[str], size: int, swapped: bool = False) -> tuple[dict, str]:
    """vocab.json and merges.txt of `size` entries: bytes, bytes ending a word, the first merges, the two specials.

    `swapped` puts EOS before BOS, so that the largest id is not EOS and the two pooling rules differ.
    """
    plain = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    others = [b for b in range(256) if b not in plain]
    letters = [chr(b) for b in plain] + [chr(256 + i) for i in range(len(others))]
    merges = merges[: size - 514]
    words = letters + [c + "</w>" for c in letters] + ["".join(m.split()) for m in merges]
    words += [EOS, BOS] if swapped else [BOS, EOS]
    assert len(set(words)) == size
    return {w: i for i, w in enumerate(words)}, "\n".join(["#version: 0.2", *merges]) + "\n"


def write_vocabulary(folder: Path) -> dict:
    """CLIP's vocab.json and merges.txt, from the file that the engine embeds; returns the vocabulary."""
    embedded = Path(__file__).resolve().parents[2] / "assets/clip/bpe_simple_vocab_16e6.txt.gz"
    vocab, merges = vocabulary(gzip.decompress(embedded.read_bytes()).decode().split("\n")[1:], 49408)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text(merges)
    return vocab


def special(content: str) -> dict:
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def tokenizer_config(vocab: dict, second: bool) -> tuple[dict, dict]:
    """tokenizer_config.json and special_tokens_map.json in the two forms that SDXL is published with."""
    pad = "!" if second else EOS
    tokens = {"bos_token": special(BOS), "eos_token": special(EOS), "pad_token": pad, "unk_token": special(EOS)}
    common = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77}
    common |= {"pad_token": pad, "tokenizer_class": "CLIPTokenizer"}
    if not second:
        named = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS}
        marked = {k: {"__type": "AddedToken"} | special(v) for k, v in named.items()}
        return common | marked, tokens
    added = {"0": special("!") | {"normalized": False, "special": True}}
    added |= {str(vocab[t]): special(t) | {"special": True} for t in sorted((BOS, EOS), key=vocab.get)}
    plain = {"added_tokens_decoder": added, "bos_token": BOS, "eos_token": EOS, "unk_token": EOS}
    return common | plain | {"clean_up_tokenization_spaces": True}, tokens


def write_tokenizers(folder: Path) -> None:
    """SDXL's two tokenizers, with CLIP's vocabulary."""
    for name, second in (("tokenizer", False), ("tokenizer_2", True)):
        vocab = write_vocabulary(folder / name)
        for file, value in zip(("tokenizer_config.json", "special_tokens_map.json"), tokenizer_config(vocab, second)):
            (folder / name / file).write_text(json.dumps(value))


def write_shared(folder: Path, merges: list[str]) -> None:
    """The vocabularies that several cases copy."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, swapped in (("", False), ("-swapped", True)):
        vocab, text = vocabulary(merges, SMALL, swapped)
        document = json.dumps(vocab, ensure_ascii=False, separators=(",", ":"))
        (folder / f"vocab{suffix}.json").write_text(document, encoding="utf-8")
        (folder / "merges.txt").write_text(text, encoding="utf-8")


def add_tokenizers(recipe: Recipe, shared: Path, kind: str) -> None:
    """kind: `small`; `swapped` (EOS before BOS); `single` (transformers 5's one tokenizer.json); `full` writes none."""
    if kind == "full":
        return
    suffix = "-swapped" if kind == "swapped" else ""
    vocab = json.loads((shared / f"vocab{suffix}.json").read_text(encoding="utf-8"))
    for folder, second in (("tokenizer", False), ("tokenizer_2", True)):
        config, tokens = tokenizer_config(vocab, second)
        if kind == "single":
            with tempfile.TemporaryDirectory() as old, tempfile.TemporaryDirectory() as new:
                write_tokenizer(Path(old), vocab, (shared / "merges.txt").read_text(encoding="utf-8"), second)
                CLIPTokenizer.from_pretrained(old).save_pretrained(new)
                (shared / f"{folder}.json").write_bytes((Path(new) / "tokenizer.json").read_bytes())
                written = json.loads((Path(new) / "tokenizer_config.json").read_text(encoding="utf-8"))
                names = sorted(p.name for p in Path(new).iterdir())
            assert names == ["tokenizer.json", "tokenizer_config.json"], names
            recipe.copy(f"{folder}/tokenizer.json", f"../shared/{folder}.json")
            recipe.json(f"{folder}/tokenizer_config.json", written)
            continue
        recipe.copy(f"{folder}/vocab.json", f"../shared/vocab{suffix}.json")
        recipe.copy(f"{folder}/merges.txt", "../shared/merges.txt")
        recipe.json(f"{folder}/tokenizer_config.json", config)
        recipe.json(f"{folder}/special_tokens_map.json", tokens)


def write_tokenizer(folder: Path, vocab: dict, merges: str, second: bool) -> None:
    """A tokenizer folder outside of the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    config, tokens = tokenizer_config(vocab, second)
    for name, value in (("vocab", vocab), ("tokenizer_config", config), ("special_tokens_map", tokens)):
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    (folder / "merges.txt").write_text(merges, encoding="utf-8")


def unet_levels(kinds: str) -> dict:
    """Block types from a word of one letter a level: `d` plain, `c` with cross-attention."""
    down = {"d": "DownBlock2D", "c": "CrossAttnDownBlock2D"}
    up = {"d": "UpBlock2D", "c": "CrossAttnUpBlock2D"}
    return {"down_block_types": [down[k] for k in kinds], "up_block_types": [up[k] for k in reversed(kinds)]}


def build_unet(case: dict, texts: tuple, sample: int) -> UNet2DConditionModel:
    u = case["unet"]
    width = sum(t["hidden_size"] for t in texts)
    return UNet2DConditionModel(
        sample_size=sample,
        in_channels=u.get("in_channels", 4),
        block_out_channels=u["channels"],
        layers_per_block=u["layers"],
        transformer_layers_per_block=u["transformers"],
        reverse_transformer_layers_per_block=u.get("reverse"),
        mid_block_type=u.get("mid", "UNetMidBlock2DCrossAttn"),
        attention_head_dim=u["heads"],  # the number of heads, as in SDXL's own configuration
        norm_num_groups=u["groups"],
        cross_attention_dim=width,
        use_linear_projection=u.get("linear", True),
        addition_embed_type="text_time",
        addition_time_embed_dim=u["time"],
        projection_class_embeddings_input_dim=texts[1]["projection_dim"] + 6 * u["time"],
        **unet_levels(u["kinds"]),
    )


def add_saved(recipe: Recipe, model, folder: str, dtype: str, shards: int = 1, extra=(), prefix: str = "") -> None:
    """Saves `model` to learn the names a folder has, and records configuration and weights below `folder`."""
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        recipe.json(f"{folder}/config.json", json.loads((Path(saved) / "config.json").read_text()))
        weights = next(Path(saved).glob("*.safetensors"))
        with safe_open(weights, "pt") as f:
            shapes = {prefix + k: list(f.get_slice(k).get_shape()) for k in f.keys()}
    lines = [recipe.line(k, s, dtype, salt=folder + "/") for k, s in shapes.items()] + list(extra)
    if shards == 1:
        recipe.add(f"{folder}/{weights.name}", lines)
        return
    size = -(-len(lines) // shards)
    names = [f"{weights.stem}-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    parts = [lines[i * size : (i + 1) * size] for i in range(shards)]
    total = sum(recipe.value(line).nbytes for line in lines)
    index = {line["name"]: name for name, part in zip(names, parts) for line in part}
    recipe.json(f"{folder}/{weights.name}.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    for name, part in zip(names, parts):
        recipe.add(f"{folder}/{name}", part)


def resampler_shapes(resampler: dict, hidden_size: int, width: int) -> dict:
    """The image projection of an IP-Adapter Plus, with the published names."""
    dim, inner = resampler["hidden"], 64 * resampler["heads"]
    shapes = {"latents": [1, resampler["queries"], dim]}
    for name, outputs, inputs in (("proj_in", dim, hidden_size), ("proj_out", width, dim)):
        shapes |= {f"{name}.weight": [outputs, inputs], f"{name}.bias": [outputs]}
    shapes |= {"norm_out.weight": [width], "norm_out.bias": [width]}
    for i in range(4):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            shapes |= {f"layers.{i}.{norm}.weight": [dim], f"layers.{i}.{norm}.bias": [dim]}
        shapes |= {f"layers.{i}.0.to_q.weight": [inner, dim], f"layers.{i}.0.to_kv.weight": [2 * inner, dim]}
        shapes |= {f"layers.{i}.0.to_out.weight": [dim, inner]}
        shapes |= {f"layers.{i}.1.1.weight": [4 * dim, dim], f"layers.{i}.1.3.weight": [dim, 4 * dim]}
    return {f"image_proj.{name}": shape for name, shape in shapes.items()}


def add_adapter(recipe: Recipe, unet: UNet2DConditionModel, adapter: dict, vision: dict) -> None:
    """An IP-Adapter, base or Plus; its odd keys count the cross-attentions in the order of the UNet's processors."""
    width = unet.config.cross_attention_dim
    if "resampler" in adapter:
        shapes = resampler_shapes(adapter["resampler"], vision["hidden_size"], width)
    else:
        shapes = {"image_proj.proj.weight": [4 * width, vision["projection_dim"]], "image_proj.proj.bias": [4 * width]}
        shapes |= {"image_proj.norm.weight": [width], "image_proj.norm.bias": [width]}
    names = [n.removesuffix(".processor") for n in unet.attn_processors if n.endswith("attn2.processor")]
    for i, name in enumerate(names):
        channels = unet.get_submodule(name).to_k.weight.shape[0]
        for part in ("to_k_ip", "to_v_ip"):
            shapes[f"ip_adapter.{2 * i + 1}.{part}.weight"] = [channels, width]
    lines = [recipe.line(k, s, adapter.get("dtype", "F32"), salt=adapter["path"] + "/") for k, s in shapes.items()]
    recipe.add(adapter["path"], lines, "torch" if adapter["path"].endswith(".bin") else "safetensors")


def build(case: dict, shared: Path) -> Recipe:
    """The recipe of a whole case."""
    recipe, dtype = Recipe(), case.get("dtype", "F32")
    published = not case.get("transformers_5", False)
    v, request = case["vae"], case["request"]
    factor = 2 ** (len(v["channels"]) - 1)
    pairs = ["CLIPTextModel", "CLIPTextModelWithProjection"]
    index = {
        "_class_name": case.get("class", "StableDiffusionXLPipeline"),
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "force_zeros_for_empty_prompt": case.get("force_zeros", True),
        "image_encoder": [None, None],
        "scheduler": ["diffusers", case["scheduler"]["_class_name"]],
        "text_encoder": ["transformers", pairs[0]],
        "text_encoder_2": ["transformers", pairs[1]],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    recipe.json("model_index.json", index)
    recipe.json("scheduler/scheduler_config.json", case["scheduler"])
    add_tokenizers(recipe, shared, case["tokenizer"])
    models = {}
    texts = [{"max_position_embeddings": 77, "pad_token_id": 1, **t} for t in case["text"]]
    for folder, kind, config in zip(("text_encoder", "text_encoder_2"), (CLIPTextModel, CLIPTextModelWithProjection), texts):
        # transformers 5 drops the prefix of the first encoder; every published folder has it.
        prefix = "text_model." if published and kind is CLIPTextModel else ""
        extra = []
        if published:
            extra = [recipe.line("text_model.embeddings.position_ids", [1, 77], "I64")]
        models[folder] = kind(CLIPTextConfig(**config))
        add_saved(recipe, models[folder], folder, dtype, extra=extra, prefix=prefix)
    side = max(request["height"] or 0, request["width"] or 0) or 64
    unet = build_unet(case, texts, side // factor)
    add_saved(recipe, unet, "unet", dtype, shards=case.get("shards", 1))
    vae = vae_files.configured(v, side)
    add_saved(recipe, vae, "vae", dtype)
    if "vision" in case:
        vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**case["vision"]))
        places = (case["vision"]["image_size"] // case["vision"]["patch_size"]) ** 2 + 1
        extra = [recipe.line("vision_model.embeddings.position_ids", [1, places], "I64")] if published else []
        add_saved(recipe, vision, "image_encoder", dtype, extra=extra)
        for adapter in case["adapters"]:
            add_adapter(recipe, unet, adapter, case["vision"])
    if "vae_file" in case:
        vae_files.add(recipe, case["vae_file"])
    if "taesd_file" in case:
        vae_files.add_tiny(recipe, case["taesd_file"])
    for lora in case.get("loras", []):
        lora_files.add(recipe, lora, models | {"unet": unet}, case["unet"])
    for embedding in case.get("embeddings", []):
        lines = []
        for name, (count, encoder) in embedding["names"].items():
            width = case["text"][encoder]["hidden_size"]
            shape = [width] if count is None else [count, width]
            lines.append(recipe.line(name, shape, embedding["dtype"], embedding["path"] + "/", 1, 0))
        recipe.add(embedding["path"], lines, "safetensors" if embedding["path"].endswith(".safetensors") else "torch")
    return recipe
