"""Writes tests/goldens/demo: the bundled model's files (assets/demo) as diffusers loads and draws them, f32 on the CPU: pictures,
and the latents after the last step.

    python make_demo.py
"""
import json
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from diffusers_folder import write_tokenizers

ROOT = Path(__file__).resolve().parents[2]
ASSETS, GOLDENS = ROOT / "assets/demo", ROOT / "tests/goldens/demo"
STYLE = {"up": {"block_0": [0.0, 1.0, 0.0]}}
# Prompt, negative prompt, reference, scale, seed.
CASES = [
    ("a big star", None, "1.png", 1.0, 1),
    ("three hearts", None, "2.png", 1.0, 2),
    ("a moon on the left", None, "3.png", 0.5, 3),
    ("two red crosses on a yellow checked background", "", "1.png", 0.0, 4),
    ("a small flower at the top", "a square", "2.png", STYLE, 5),
]
# Prompt, reference of the IP-Adapter Plus, scale of the LoRA, seed: one of the two each.
PLUS, LORA = "ip-adapter-plus.safetensors", "lora.safetensors"
MORE = [("", "3.png", None, 1), ("a big red star on a blue dotted background", None, 0.7, 2)]


def with_tokenizers(folder: Path) -> Path:
    """The model's configurations, and CLIP's vocabulary, which single files never carry."""
    shutil.copytree(ASSETS / "config", folder, dirs_exist_ok=True)
    write_tokenizers(folder)
    return folder


def second_encoder() -> CLIPTextModelWithProjection:
    """By diffusers' own converter. `from_single_file` tells the two encoders apart by their width, which is the same here."""
    config = CLIPTextConfig(**json.loads((ASSETS / "config/text_encoder_2/config.json").read_text()))
    encoder = CLIPTextModelWithProjection(config)
    state = {k: v.float() for k, v in load_file(ASSETS / "sdxl.safetensors").items()}
    encoder.load_state_dict(convert_open_clip_checkpoint(encoder, state, prefix="conditioner.embedders.1.model."))
    return encoder.eval()


def load_adapter(pipe, name: str) -> None:
    pipe.load_ip_adapter(str(ASSETS), subfolder="", weight_name=name, image_encoder_folder="image_encoder", local_files_only=True)


def opened(reference: str) -> Image.Image:
    return Image.open(ASSETS / "references" / reference).convert("RGB")


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pipe = StableDiffusionXLPipeline.from_single_file(
            str(ASSETS / "sdxl.safetensors"), config=str(with_tokenizers(Path(folder))), local_files_only=True,
            torch_dtype=torch.float32, text_encoder_2=second_encoder())
    pipe.set_progress_bar_config(disable=True)
    GOLDENS.mkdir(parents=True, exist_ok=True)
    load_adapter(pipe, "ip-adapter.safetensors")
    cases, latents = [], {}
    for i, (prompt, negative, reference, scale, seed) in enumerate(CASES):
        pipe.set_ip_adapter_scale(scale)
        image = opened(reference)

        def keep(_pipe, _step: int, _timestep, values: dict) -> dict:
            latents[str(i)] = values["latents"].clone()
            return values

        picture = pipe(prompt, negative_prompt=negative, ip_adapter_image=image, num_inference_steps=16, guidance_scale=3.0,
                       generator=torch.Generator("cpu").manual_seed(seed), callback_on_step_end=keep).images[0]
        picture.save(GOLDENS / f"{i}.png", optimize=True)
        cases.append({"prompt": prompt, "negative_prompt": negative, "reference": reference, "scale": scale, "seed": seed})
    (GOLDENS / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
    save_file(latents, GOLDENS / "latents.safetensors")
    more(pipe)


def more(pipe) -> None:
    """The IP-Adapter Plus without a text, and the LoRA without an adapter: plus.png and lora.png."""
    pipe.unload_ip_adapter()
    cases = []
    for prompt, reference, scale, seed in MORE:
        if reference:
            load_adapter(pipe, PLUS)
            pipe.set_ip_adapter_scale(1.0)
        else:
            pipe.load_lora_weights(str(ASSETS), weight_name=LORA, adapter_name="lora", local_files_only=True)
            pipe.set_adapters("lora", scale)
        picture = pipe(prompt, ip_adapter_image=opened(reference) if reference else None, num_inference_steps=16, guidance_scale=3.0,
                       generator=torch.Generator("cpu").manual_seed(seed)).images[0]
        if reference:
            pipe.unload_ip_adapter()
        name = "plus.png" if reference else "lora.png"
        picture.save(GOLDENS / name, optimize=True)
        cases.append({"image": name, "prompt": prompt, "reference": reference, "lora_scale": scale, "seed": seed})
    (GOLDENS / "more.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
