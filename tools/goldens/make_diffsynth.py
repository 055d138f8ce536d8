"""Golden cases of the DiffSynth profile: small models through DiffSynth 1.1.9's own pipeline, f32 on the CPU.

    python -m venv v && v/bin/pip install -r requirements-diffsynth.txt && v/bin/python make_diffsynth.py ../goldens/diffsynth

Writes OUT/pictures/*.png and for each case OUT/CASE/{recipe.json,case.json,stages.safetensors}. The models
(small_diffsynth.py) are loaded from the published formats by the peer's converters; a case names its reference pictures
relative to its own folder. Both tokenizers have the full CLIP vocabulary, as peer_diffsynth.py explains. Running it again
gives the same bytes on the same machine.
"""
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from diffsynth.models.utils import load_state_dict
from diffsynth.pipelines.sdxl_image import SDXLImagePipeline
from PIL import Image
from transformers import CLIPVisionModelWithProjection

from peer_diffsynth import Recorder, open_images, prompter
from recipe import Recipe
from small_diffsynth import VISION, Models

torch.set_num_threads(1)
torch.set_grad_enabled(False)

PROMPT = "A super man"
NEGATIVE = "text, watermark, lowres, low quality, worst quality, deformed, glitch, low contrast, noisy, saturation, blurry"
LONG = ("a wide painting of a harbour at dawn, fishing boats with red and blue hulls, gulls over the pier, an old man mending "
        "nets, a girl with a yellow scarf and a small dog, wet cobblestones, warm light from the windows of a bakery, mist "
        "on the hills, a church tower, laundry between the houses, loose brush strokes, thick oil paint, rich colours, "
        "soft shadows, calm sea")

SMALL, FULL = (1, 2), (2, 10)


def case(depth=SMALL, prompt=PROMPT, negative=NEGATIVE, steps=4, cfg=5.0, size=(64, 64), seed=1, images=("shell.png",),
         strength=1.0, instant=False, resize=None, notes=""):
    adapters = [{"path": "ip-adapter_sdxl.bin", "images": [f"../pictures/{i}" for i in images], "strength": strength}]
    return depth, notes, {
        "prompt": prompt, "negative_prompt": negative, "steps": steps, "cfg_scale": cfg, "width": size[0],
        "height": size[1], "seed": seed, "sampling_method": "ddim", "ip_adapters": adapters if images else [],
        "instant_style": instant, "image_resize": resize}


CASES = {
    "one_image": case(strength=0.6, notes="the scale reaches the positive branch only; the negative one keeps 1"),
    "two_images": case(images=("shell.png", "tower.png"), strength=0.8, seed=7, steps=3, resize=[96, 96],
                       notes="eight tokens in one softmax; both pictures stretched by PIL's bicubic first"),
    "long_prompt": case(prompt=LONG, negative="blurry", seed=3, steps=3, images=("tower.png",),
                        notes="two rows of 77 tokens against one; pooled comes from the first row, which has no EOS"),
    "instant_style": case(depth=FULL, instant=True, seed=5, steps=2,
                          notes="all 70 cross attentions; the adapter works in 34..43, up_blocks.0.attentions.1, only"),
    "seven_steps": case(steps=7, cfg=7.5, size=(100, 60), seed=42, negative="", strength=1.3, images=("tower.png",),
                        notes="832 among the timesteps (833 rounds otherwise); the size becomes 128x64"),
    "unguided": case(cfg=1.0, size=(64, 128), seed=11, steps=2, strength=0.5, prompt="A café by the sea!",
                     notes="one pass a step; a '!' is the special token 0 to the second tokenizer"),
}


def pictures(folder: Path) -> None:
    """Two reference pictures, neither square."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (w, h), k in (("shell.png", (72, 48), 1.0), ("tower.png", (40, 60), 2.3)):
        y, x = np.mgrid[0:h, 0:w].astype(np.float64)
        r = np.hypot(x - 0.4 * w, y - 0.6 * h)
        channels = [127 + 120 * np.sin(r * k / 7 + 2 * c + np.arctan2(y - 0.6 * h, x - 0.4 * w) * (1 + c)) for c in range(3)]
        Image.fromarray((np.stack(channels, -1) // 8 * 8).clip(0, 255).astype(np.uint8)).save(folder / name, optimize=True)


def lines(recipe: Recipe, shapes: dict, salt: str) -> list:
    """Recipe lines; the single file's norms do not say so in their names, but only norms have a vector as `weight`."""
    norm = lambda name, shape: len(shape) == 1 and name.endswith(".weight")
    return [recipe.line(k, s, salt=salt, **(dict(scale=0.2, offset=1.0) if norm(k, s) else {})) for k, s in shapes.items()]


def build(depth: tuple, recipe: Recipe, folder: Path) -> Models:
    """Writes the published files of a model into `folder` and loads them."""
    models = Models(depth)
    salt = f"diffsynth{depth}"
    files = [("sdxl.safetensors", models.checkpoint_shapes(), "safetensors"),
             ("image_encoder/model.safetensors", models.vision_shapes(), "safetensors"),
             ("ip-adapter_sdxl.bin", models.adapter_shapes(), "torch")]
    for path, shapes, form in files:
        tensors = lines(recipe, shapes, salt)
        recipe.add(path, tensors, form)
        values = {line["name"]: Recipe.value(line) for line in tensors}
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if form == "safetensors":
            safetensors.torch.save_file(values, folder / path)
        else:
            nested = {}
            for name, value in values.items():
                part, rest = name.split(".", 1)
                nested.setdefault(part, {})[rest] = value
            torch.save(nested, folder / path)
    config = {"architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model", **VISION}
    recipe.json("image_encoder/config.json", config)
    (folder / "image_encoder/config.json").write_text(json.dumps(config))
    models.load(*(load_state_dict(str(folder / path)) for path, _, _ in files))
    return models


def compact(recipe: Recipe, folder: Path) -> None:
    """Writes recipe.json with the shortest decimals that give the same f32."""
    short = lambda v: v if v != v or float(np.float32(v)) != v else float(str(np.float32(v)))
    for file in recipe.files:
        for line in file.get("tensors", []):
            for key in ("scale", "offset"):
                value = short(line[key])
                assert np.float32(value) == np.float32(line[key])
                line[key] = value
    recipe.write(folder)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / a.norm())


def check(recorder: Recorder, request: dict, images: list, stages: dict) -> None:
    """The case is worth something: the picture has contrast, and prompt and reference both matter."""
    assert all(torch.isfinite(v).all() for v in stages.values())
    std, clipped = float(stages["image"].std()), float(((stages["image"] == 0) | (stages["image"] == 1)).float().mean())
    assert std > 0.05 and clipped < 0.2, (std, clipped)
    other = recorder.run(request | {"prompt": "a bowl of fruit"}, images)
    turned = recorder.run(request, [i.rotate(90, expand=True).point(lambda v: 255 - v) for i in images])
    changes = [difference(stages[k], o[k]) for o in (other, turned) for k in ("model_output_0", "image")]
    assert min(changes) > 1e-2, changes
    print(f"    image std {std:.3f}, clipped {clipped:.3f}; change by prompt {changes[0]:.3f} {changes[1]:.3f}, by reference "
          f"{changes[2]:.3f} {changes[3]:.3f}")


def main(out: Path, only: list) -> None:
    pictures(out / "pictures")
    for name, (depth, notes, request) in CASES.items():
        if only and name not in only:
            continue
        print(name, flush=True)
        recipe, folder = Recipe(), out / name
        with tempfile.TemporaryDirectory() as files:
            models = build(depth, recipe, Path(files))
            reference = CLIPVisionModelWithProjection.from_pretrained(Path(files) / "image_encoder").eval()
        compact(recipe, folder)
        pipe = SDXLImagePipeline(device="cpu", torch_dtype=torch.float32)
        pipe.prompter = prompter()
        for part in pipe.model_names:
            setattr(pipe, part, getattr(models, part, None))
        pipe.prompter.fetch_models(pipe.text_encoder, pipe.text_encoder_2)
        recorder = Recorder(pipe)
        for part in pipe.model_names:
            if getattr(pipe, part) is not None:
                recorder.watch(part, getattr(pipe, part))
        images = open_images(folder, request)
        stages = recorder.run(request, images)
        pixels = pipe.ipadapter_image_encoder.image_processor(images=images, return_tensors="pt").pixel_values
        assert difference(reference(pixels).image_embeds, stages["image_embeds"]) < 1e-5
        safetensors.torch.save_file(stages, folder / "stages.safetensors")
        value = {"profile": "diffsynth", "request": request,
                 "files": {"model": "sdxl.safetensors", "clip_vision": "image_encoder"}, "notes": notes}
        (folder / "case.json").write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        print("   ", {k: tuple(v.shape) for k, v in stages.items()})
        check(recorder, request, images, stages)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
