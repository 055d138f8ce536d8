"""Writes tests/goldens/diffusers: small SDXL models with IP-Adapters, run by diffusers' own pipeline. See README.md."""
import argparse
import json
import shutil
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLPipeline,
)
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

import diffusers_folder
import lora_files
from diffusers_cases import CASES as BASE_CASES
from lora_cases import LORA_CASES
from plus_cases import CASES as PLUS_CASES
from pruned_cases import CASES as PRUNED_CASES

GOLDENS = Path(__file__).resolve().parents[2] / "tests/goldens/diffusers"
CASES = BASE_CASES | PLUS_CASES | LORA_CASES | PRUNED_CASES
SAMPLERS = {
    "euler": EulerDiscreteScheduler,
    "euler-a": EulerAncestralDiscreteScheduler,
    "ddim": DDIMScheduler,
    "dpmpp-2m": DPMSolverMultistepScheduler,
    "lcm": LCMScheduler,
    "heun": HeunDiscreteScheduler,
    "dpmpp-2m-sde": DPMSolverMultistepScheduler,
}


def pictures(folder: Path) -> None:
    """Reference pictures: wider, taller, and one with an alpha channel."""

    def gradient(width, height, rows):
        x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
        planes = [255 * np.clip(a * x + b * y + c, 0, 1) for a, b, c in rows]
        return np.stack(planes, -1).round().astype(np.uint8)

    folder.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(gradient(96, 64, [(1, 0, 0), (0, 1, 0), (-1, 0, 1)]))
    draw = ImageDraw.Draw(image)
    draw.ellipse((12, 10, 50, 48), fill=(250, 220, 40))
    draw.rectangle((58, 30, 88, 58), fill=(20, 40, 160))
    image.save(folder / "landscape.png", optimize=True)
    image = Image.fromarray(gradient(45, 80, [(0, 1, 0), (0.5, -0.5, 0.5), (0, -1, 1)]))
    ImageDraw.Draw(image).polygon([(22, 6), (40, 70), (4, 60)], fill=(240, 240, 240))
    image.save(folder / "portrait.png", optimize=True)
    planes = gradient(50, 50, [(0, -1, 1), (1, 0, 0), (0, 1, 0), (1, 1, -0.3)])
    Image.fromarray(planes, "RGBA").save(folder / "alpha.png", optimize=True)


class Peer:
    """A loaded pipeline with the request's settings, which notes what passes through it."""

    pipeline = StableDiffusionXLPipeline

    def __init__(self, folder: Path, case: dict):
        self.case, self.folder = case, folder
        self.pipe = self.pipeline.from_pretrained(folder, dtype=torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        self.own_vae = self.pipe.vae
        self.adapters = case.get("adapters", [])
        if self.adapters:
            names = [a["path"] for a in self.adapters]
            self.pipe.load_ip_adapter(str(folder), subfolder="", weight_name=names, image_encoder_folder="image_encoder")
            assert type(self.pipe.feature_extractor).__name__ == "CLIPImageProcessorPil", "torchvision must be absent"
        if case.get("loras"):
            lora_files.load(self.pipe, folder, case["loras"])
        self.folder_scheduler = self.pipe.scheduler
        self.apply()

    def apply(self, twist: dict | None = None) -> None:
        """Takes over the request, with some of its keys replaced; `strengths` stands for those of all adapters."""
        twist = twist or {}
        self.request = self.case["request"] | {k: v for k, v in twist.items() if k not in ("strengths", "lora_scales")}
        if self.adapters:
            self.pipe.set_ip_adapter_scale(twist.get("strengths", [a["strength"] for a in self.adapters]))
        if self.case.get("loras"):
            scales = twist.get("lora_scales", [lora["scale"] for lora in self.case["loras"]])
            lora_files.scale(self.pipe, scales)
        self.pipe.scheduler = self.scheduler()

    def scheduler(self):
        """What `from_config` of the folder's configuration gives, with the flags that the request has."""
        request, flags = self.request, {}
        if request["schedule"]:
            flags |= {f"use_{name}_sigmas": name == request["schedule"] for name in ("karras", "exponential", "beta")}
        if request["prediction"]:
            flags["prediction_type"] = {"v": "v_prediction", "epsilon": "epsilon"}[request["prediction"]]
        if request["timestep_spacing"]:
            flags["timestep_spacing"] = request["timestep_spacing"]
        if request["sampling_method"] == "dpmpp-2m-sde":
            flags["algorithm_type"] = "sde-dpmsolver++"
        kind = SAMPLERS[request["sampling_method"]] if request["sampling_method"] else type(self.folder_scheduler)
        return kind.from_config(self.folder_scheduler.config, **flags)

    def run(self, images: list | None = None, **replace) -> dict[str, torch.Tensor]:
        """Every stage, in the order of the names in the dump."""
        pipe, request, stages = self.pipe, self.request, {}
        batch = request["batch"]
        seeds = [request["seed"] + i for i in range(batch)]
        generators = [torch.Generator("cpu").manual_seed(s) for s in seeds]
        guided = request["cfg_scale"] > 1

        def texts(inner):
            def call(*args, **kwargs):
                out = inner(*args, **kwargs)
                for name, value in zip(("text_embeds", "negative_text_embeds", "pooled", "negative_pooled"), out):
                    if value is not None:
                        stages[name] = value[:1]
                return out

            return call

        def encoded(inner):
            def call(*args, **kwargs):
                out = inner(*args, **kwargs)
                # Hidden states, for an IP-Adapter Plus, are [I, T, E].
                name = "image_embeds" if out[0].ndim == 2 else "image_hidden"
                stages[name] = torch.cat([stages[name], out[0]]) if name in stages else out[0]
                return out

            return call

        def tokens(_module, _inputs, out):
            # [2N or N, images, tokens, D] of each adapter; the positive rows follow the negative ones.
            rows = [o[batch if guided else 0].flatten(0, 1) for o in out]
            stages.setdefault("image_tokens", torch.cat(rows)[None])

        def first(_module, _inputs, out):
            rows = [batch, 0] if guided else [0]
            stages.setdefault("model_output_0", out[0][rows].clone())

        def last(_pipe, step, _t, values):
            self.step_done(step)
            stages["latents"] = values["latents"].clone()
            return {}

        hooks = [pipe.unet.register_forward_hook(first)]
        if self.adapters:
            hooks.append(pipe.unet.encoder_hid_proj.register_forward_hook(tokens))
        methods = {"encode_prompt": texts, "encode_image": encoded} | self.latent_hooks(stages, seeds)
        for name, wrap in methods.items():
            setattr(pipe, name, wrap(getattr(pipe, name)))
        try:
            arguments = {"prompt": request["prompt"], "negative_prompt": request["negative_prompt"]} | replace
            image = pipe(
                **arguments,
                **self.own_arguments(),
                num_inference_steps=request["steps"], guidance_scale=request["cfg_scale"],
                guidance_rescale=request["guidance_rescale"], clip_skip=request["clip_skip"], eta=request["eta"],
                num_images_per_prompt=batch, generator=generators, output_type="np", callback_on_step_end=last,
                **(self.prompt_arguments(images or self.images(), stages) if self.adapters else {}),
            ).images
        finally:
            for hook in hooks:
                hook.remove()
            for name in methods:
                delattr(pipe, name)
        stages["image"] = torch.from_numpy(image)
        assert all(s.dtype == torch.float32 and s.isfinite().all() for s in stages.values())
        return {k: v.contiguous() for k, v in stages.items()}

    def own_arguments(self) -> dict:
        """The arguments that only this pipeline takes."""
        return {"height": self.request["height"], "width": self.request["width"]}

    def latent_hooks(self, stages: dict, seeds: list[int]) -> dict:
        """Wrappers of methods by their names, which note the noise."""

        def latents(inner):
            def call(*args, **kwargs):
                again = [torch.Generator("cpu").manual_seed(s) for s in seeds]
                out = inner(*args, **kwargs)
                stages["noise"] = randn_tensor(out.shape, generator=again, dtype=torch.float32)
                assert torch.equal(out, stages["noise"] * self.pipe.scheduler.init_noise_sigma)
                return out

            return call

        return {"prepare_latents": latents}

    def prompt_arguments(self, images: list, _stages: dict) -> dict:
        """The arguments that make the image prompts."""
        return {"ip_adapter_image": images}

    def step_done(self, step: int) -> None:
        """Called after each step."""

    def images(self) -> list:
        return [[Image.open(GOLDENS / "pictures" / p) for p in a["images"]] for a in self.adapters]


def change(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / a.norm())


def check(peer: Peer, stages: dict, name: str) -> str:
    """That the case can fail: the picture varies, and prompt and reference matter, each alone."""
    assert stages["image"].std() > 0.05, (name, "flat picture", stages["image"].std())
    clamped = float(((stages["image"] == 0) | (stages["image"] == 1)).float().mean())
    assert clamped < 0.2, (name, "clamped", clamped)
    found = {"prompt": change(stages["latents"], peer.run(prompt="quiet grey stones")["latents"])}
    swapped = {"prompt": None, "negative_prompt": None}
    swapped |= {"prompt_embeds": stages["text_embeds"].flip(-1), "pooled_prompt_embeds": stages["pooled"]}
    if "negative_pooled" in stages:
        swapped["negative_prompt_embeds"] = stages["negative_text_embeds"]
        swapped["negative_pooled_prompt_embeds"] = stages["negative_pooled"]
    found["tokens"] = change(stages["latents"], peer.run(**swapped)["latents"])
    swapped |= {"prompt_embeds": stages["text_embeds"], "pooled_prompt_embeds": stages["pooled"].flip(-1)}
    found["pooled"] = change(stages["latents"], peer.run(**swapped)["latents"])
    if peer.adapters:
        others = [[i.convert("RGB").rotate(90, expand=True).point(lambda v: 255 - v) for i in a] for a in peer.images()]
        found["reference"] = change(stages["latents"], peer.run(images=others)["latents"])
    assert min(found.values()) > 1e-2, (name, found)
    for twist in case_twists(peer.case):
        peer.apply(twist)
        effect = change(stages["latents"], peer.run()["latents"])
        assert effect > 1e-3, (name, twist, effect)
        found[json.dumps(twist)] = effect
    peer.apply()
    again = peer.run()
    assert all(torch.equal(v, again[k]) for k, v in stages.items()), (name, "not deterministic")
    found |= {"image std": float(stages["image"].std()), "latents std": float(stages["latents"].std()), "clamped": clamped}
    return "\n    ".join(f"{k} {v:.3g}" for k, v in found.items())


def case_twists(case: dict) -> list[dict]:
    """Changes of the request that an engine ignoring a setting would amount to; each must show in the latents."""
    twists = list(case.get("matters", []))
    if len(case.get("adapters", [])) > 1:
        twists.append({"strengths": [a["strength"] for a in reversed(case["adapters"])]})
    if any(a["strength"] != 1.0 for a in case.get("adapters", [])):
        twists.append({"strengths": [1.0] * len(case["adapters"])})
    return twists


def described(case: dict) -> dict:
    """case.json: paths of the model's files are relative to the folder made from the recipe, pictures to the case."""
    adapters = [
        {"path": a["path"], "images": [f"../pictures/{p}" for p in a["images"]], "strength": a["strength"]}
        for a in case.get("adapters", [])
    ]
    files = {"model": ".", "clip_vision": "image_encoder" if adapters else None}
    files |= {flag: case[key]["path"] for flag, key in (("vae", "vae_file"), ("taesd", "taesd_file")) if key in case}
    files_of = {k: case["request"].get(k) and f"../pictures/{case['request'][k]}" for k in ("init_image", "mask")}
    own = {k: v for k, v in files_of.items() if k in case["request"]}
    request = case["request"] | {"ip_adapters": adapters} | own
    if "loras" in case:
        request["loras"] = [{"path": lora["path"], "scale": lora["scale"]} for lora in case["loras"]]
    if "embeddings" in case:
        request["embeddings"] = [embedding["path"] for embedding in case["embeddings"]]
    return {"profile": "diffusers", "request": request, "files": files, "notes": case["notes"]}


def make(name: str, case: dict, merges: list[str], kind: type[Peer] = Peer) -> None:
    """One case from its recipe to its stages."""
    target = GOLDENS / name
    shutil.rmtree(target, ignore_errors=True)
    recipe = diffusers_folder.build(case, GOLDENS / "shared")
    recipe.write(target)
    with tempfile.TemporaryDirectory() as folder:
        recipe.materialise(Path(folder), target)
        if case["tokenizer"] == "full":
            vocab, text = diffusers_folder.vocabulary(merges, 49408)
            for sub, second in (("tokenizer", False), ("tokenizer_2", True)):
                diffusers_folder.write_tokenizer(Path(folder) / sub, vocab, text, second)
        peer = kind(Path(folder), case)
        loaded(peer, Path(folder))
        stages = peer.run()
        report = check(peer, stages, name)
    write(target, described(case), stages, report)


def write(target: Path, case: dict, stages: dict, report: str) -> None:
    """The files of a case beside its recipe."""
    (target / "case.json").write_text(json.dumps(case, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    save_file(stages, target / "stages.safetensors")
    size = sum(f.stat().st_size for f in target.iterdir())
    print(f"{target.name}: {size / 1000:.0f} kB\n    {report}", flush=True)


def loaded(peer: Peer, folder: Path) -> None:
    """That every tensor of the files reached the models, whatever names the files use."""
    parts = {"unet": peer.pipe.unet, "vae": peer.own_vae, "text_encoder": peer.pipe.text_encoder}
    parts |= {"text_encoder_2": peer.pipe.text_encoder_2}
    if peer.adapters:
        parts["image_encoder"] = peer.pipe.image_encoder
    for part, module in parts.items():
        # A LoRA's layers hold the model's own.
        state = {k.replace(".base_layer.", "."): v for k, v in module.state_dict().items()}
        files = {k: v for f in (folder / part).glob("*.safetensors") for k, v in load_file(f).items()}
        for key, value in files.items():
            if not key.endswith("position_ids"):
                mine = state.get(key, state.get(key.removeprefix("text_model.")))
                assert mine is not None and torch.equal(mine, value.float()), (part, key)


def quiet() -> None:
    """One thread, as sums depend on their number, and no words of the libraries."""
    torch.set_num_threads(1)
    for library in (transformers, diffusers):
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("cases", nargs="*", help="names of cases; all where none is given")
    arguments.add_argument("--wheel", type=Path, help="a downloaded open_clip_torch wheel, for CLIP's merges")
    given = arguments.parse_args()
    quiet()
    merges = diffusers_folder.clip_merges(given.wheel)
    assert len(merges) == 49408 - 514
    GOLDENS.mkdir(parents=True, exist_ok=True)
    pictures(GOLDENS / "pictures")
    diffusers_folder.write_shared(GOLDENS / "shared", merges)
    for name in given.cases or CASES:
        make(name, CASES[name], merges)


if __name__ == "__main__":
    main()
