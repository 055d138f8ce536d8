"""Writes the cases of image_prompt_cases.py to tests/goldens/diffusers: what an image prompt can do. See README.md.

diffusers has masks with weights (ip_adapter_masks, a list of scales), scales that a callback changes between steps, and embeddings
(ip_adapter_image_embeds), which carry averages and images of the negative row. The rest is done by hand: `add` is masks of 1;
weights of `concat` multiply the rows of each to_v_ip's result; precise style replaces the image tokens of the layout's
attentions, as InvokeAI has it: the negative row gets those of the positive one, which gets zeros.
"""
import shutil
import sys
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers.image_processor import IPAdapterMaskProcessor
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from PIL import Image

import diffusers_folder
import make_diffusers
from image_prompt_cases import CASES, MODEL, PLUS_CASES, PLUS_MODEL
from make_diffusers import GOLDENS, Peer, check, loaded, write
from plus_cases import CASES as MODELS

RECIPE = "image-prompts"
DEFAULTS = {
    "masks": lambda a: a | {"masks": [None] * len(a["masks"])},
    "weights": lambda a: a | {"weights": [1.0] * len(a["weights"])},
    "steps": lambda a: a | {"start": 0.0, "end": 1.0},
    "combine": lambda a: a | {"combine": "concat"},
    "negative_image": lambda a: a | {"negative_image": None},
    "blocks": lambda a: a | {"blocks": None},
    "fit": lambda a: a | {"fit": "crop"},
}


def files(folder: Path) -> None:
    """A grey ramp of an odd size, a coloured disc, and a JPEG file."""
    ramp = np.linspace(0, 255, 37).round().astype(np.uint8)
    Image.fromarray(np.tile(ramp, (23, 1))).save(folder / "mask-ramp.png", optimize=True)
    y, x = np.mgrid[0:64, 0:50]
    inside = (x - 20) ** 2 + (y - 38) ** 2 < 400
    Image.fromarray(np.where(inside[..., None], [250, 240, 90], [10, 0, 60]).astype(np.uint8)).save(
        folder / "mask-disc.png", optimize=True
    )
    # A photograph's file: progressive, colours at half the resolution, an odd size.
    landscape = Image.open(folder / "landscape.png").convert("RGB").resize((91, 61), Image.Resampling.LANCZOS)
    landscape.save(folder / "landscape.jpg", quality=72, progressive=True, subsampling="4:2:0")


def places(blocks: str | None, attention: str, levels: int) -> bool:
    """Whether a preset has a part in an attention; layout and style are those of SDXL."""
    layout = attention.startswith(f"down_blocks.{levels - 1}.attentions.1.")
    return {
        None: True,
        "composition": layout,
        "strong-style": not layout and not attention.startswith("mid_block"),
        "precise-style": layout or attention.startswith("up_blocks.0.attentions.1."),
    }[blocks]


class ImagePrompts(Peer):
    """StableDiffusionXLPipeline with everything that an image prompt can be."""

    def apply(self, twist: dict | None = None) -> None:
        """`drop` names a setting that is left at its default."""
        twist = twist or {}
        self.adapters = self.case["adapters"]
        if "drop" in twist:
            self.adapters = [DEFAULTS[twist["drop"]](a) for a in self.adapters]
        if "strengths" in twist:
            self.adapters = [a | {"strength": s} for a, s in zip(self.adapters, twist["strengths"])]
        self.request = self.case["request"]
        self.pipe.scheduler = self.scheduler()

    def takes_hidden_states(self, adapter: int) -> bool:
        projection = self.pipe.unet.encoder_hid_proj.image_projection_layers[adapter]
        return isinstance(projection, IPAdapterPlusImageProjection)

    def separate(self, a: dict) -> bool:
        return any(a["masks"]) or (a["combine"] == "add" and len(a["images"]) > 1)

    def set_scales(self, step: int) -> None:
        """Sets the scales of a step, by the rule of diffusers' ControlNets."""
        levels = len(self.pipe.unet.config.block_out_channels)
        for name, processor in self.pipe.unet.attn_processors.items():
            if not hasattr(processor, "to_k_ip"):
                continue
            for i, a in enumerate(self.adapters):
                acts = step / self.count >= a["start"] and (step + 1) / self.count <= a["end"]
                scale = a["strength"] * float(acts and places(a["blocks"], name, levels))
                if a["combine"] == "average" and not any(a["weights"]):
                    scale = 0.0
                processor.scale[i] = [scale * w for w in a["weights"]] if self.separate(a) else scale

    def step_done(self, step: int) -> None:
        self.set_scales(step + 1)

    def fit(self, image: Image.Image, fit: str) -> Image.Image:
        size = self.pipe.image_encoder.config.image_size
        if fit == "crop" or image.width == image.height:
            return image
        # As the feature extractor does.
        image = on_white(image)
        if fit == "stretch":
            return image.resize((size, size), Image.Resampling.BICUBIC)
        side = max(image.size)
        square = Image.new("RGB", (side, side), (123, 117, 104))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square

    def embed(self, images: list, hidden: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """What diffusers' adapters take of images, and what the negative row has; hidden states for an IP-Adapter Plus."""
        return self.pipe.encode_image(images, "cpu", 1, hidden or None)

    def prompt_arguments(self, images: list, stages: dict) -> dict:
        fitted = [[self.fit(image, a["fit"]) for image in each] for a, each in zip(self.adapters, images)]
        arguments = {}
        by_hand = any(a["combine"] == "average" or a["negative_image"] for a in self.adapters)
        if by_hand:
            embeds, all_embeds = [], {}
            for i, (a, each) in enumerate(zip(self.adapters, fitted)):
                hidden = self.takes_hidden_states(i)
                positive, negative = self.embed(each, hidden)
                if a["combine"] == "average":
                    weights = torch.tensor(a["weights"], dtype=torch.float64)
                    mean = torch.tensordot(weights, positive.double(), 1) / weights.sum()
                    positive = mean[None].float()
                    negative = negative[:1]
                if a["negative_image"]:
                    image = self.fit(Image.open(GOLDENS / "pictures" / a["negative_image"]), a["fit"])
                    negative = self.embed([image], hidden)[0].expand_as(positive)
                all_embeds.setdefault("image_hidden" if hidden else "image_embeds", []).append(positive)
                rows = [negative, positive] if self.request["cfg_scale"] > 1 else [positive]
                embeds.append(torch.stack(rows))
            arguments["ip_adapter_image_embeds"] = embeds
            stages |= {name: torch.cat(values) for name, values in all_embeds.items()}
        else:
            arguments["ip_adapter_image"] = fitted
        if any(self.separate(a) for a in self.adapters):
            arguments["cross_attention_kwargs"] = {"ip_adapter_masks": [self.masks(a) for a in self.adapters]}
        return arguments

    def masks(self, a: dict) -> torch.Tensor | None:
        """[1, n, H, W]: grey masks as they are."""
        height, width = self.request["height"], self.request["width"]
        if not self.separate(a):
            return None
        if not any(a["masks"]):
            return torch.ones(1, len(a["images"]), height, width)
        pictures = [Image.open(GOLDENS / "pictures" / m) for m in a["masks"]]
        processor = IPAdapterMaskProcessor(do_binarize=False)
        each = [processor.preprocess(m, height=height, width=width) for m in pictures]
        return torch.cat(each).transpose(0, 1)

    def run(self, images: list | None = None, **replace) -> dict[str, torch.Tensor]:
        counted = self.scheduler()
        counted.set_timesteps(self.request["steps"])
        self.count = len(counted.timesteps)
        self.set_scales(0)
        hooks = []
        levels, rows = len(self.pipe.unet.config.block_out_channels), self.request["batch"]
        for name, processor in self.pipe.unet.attn_processors.items():
            if not hasattr(processor, "to_k_ip"):
                continue
            for i, a in enumerate(self.adapters):
                if a["combine"] == "concat" and not any(a["masks"]):
                    hooks.append(processor.to_v_ip[i].register_forward_hook(weighted(a["weights"])))
            attention = self.pipe.unet.get_submodule(name.removesuffix(".processor"))
            precise = [i for i, a in enumerate(self.adapters) if a["blocks"] == "precise-style"]
            if precise and name.startswith(f"down_blocks.{levels - 1}.attentions.1."):
                hooks.append(attention.register_forward_pre_hook(swapped(precise, rows), with_kwargs=True))
        try:
            return super().run(images, **replace)
        finally:
            for hook in hooks:
                hook.remove()


def on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def weighted(weights: list):
    def hook(_module, _inputs, out):
        # [rows, images, tokens, C]
        return out * torch.tensor(weights)[None, :, None, None]

    return hook


def swapped(adapters: list, rows: int):
    """The rows of image tokens [2 rows, images, tokens, D]: the negative ones come first."""

    def hook(_module, arguments, keywords):
        text, tokens = keywords["encoder_hidden_states"]
        tokens = list(tokens)
        for i in adapters:
            negative, positive = tokens[i][:rows], tokens[i][rows:]
            tokens[i] = torch.cat([positive, torch.zeros_like(negative)])
        return arguments, keywords | {"encoder_hidden_states": (text, tokens)}

    return hook


def described(case: dict, recipe: str) -> dict:
    """case.json; see make_diffusers.described."""
    picture = lambda p: p and f"../pictures/{p}"
    adapters = []
    for a in case["adapters"]:
        pictures = {"images": [picture(p) for p in a["images"]], "masks": [picture(p) for p in a["masks"]]}
        adapters.append({k: v for k, v in a.items() if k != "dtype"} | pictures | {"negative_image": picture(a["negative_image"])})
    files = {"model": ".", "clip_vision": "image_encoder", "recipe": f"../{recipe}/recipe.json"}
    return {"profile": "diffusers", "request": case["request"] | {"ip_adapters": adapters}, "files": files, "notes": case["notes"]}


def make(name: str, model: dict, case: dict, recipe: str, folder: Path) -> None:
    target = GOLDENS / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    peer = ImagePrompts(folder, model | case)
    loaded(peer, folder)
    stages = peer.run()
    report = check(peer, stages, name)
    write(target, described(case, recipe), stages, report)


def make_all(names: list[str], model: dict, cases: dict, recipe: str) -> None:
    """Those of the cases that are asked for; `recipe` names the folder of their model's."""
    wanted = [name for name in names or cases if name in cases]
    if not wanted:
        return
    with tempfile.TemporaryDirectory() as folder:
        diffusers_folder.build(model, GOLDENS / "shared").materialise(Path(folder), GOLDENS / recipe)
        for name in wanted:
            make(name, model, cases[name], recipe, Path(folder))


def main() -> None:
    make_diffusers.quiet()
    make_diffusers.pictures(GOLDENS / "pictures")
    files(GOLDENS / "pictures")
    shutil.rmtree(GOLDENS / RECIPE, ignore_errors=True)
    diffusers_folder.build(MODEL, GOLDENS / "shared").write(GOLDENS / RECIPE)
    make_all(sys.argv[1:], MODEL, CASES, RECIPE)
    make_all(sys.argv[1:], MODELS[PLUS_MODEL], PLUS_CASES, PLUS_MODEL)


if __name__ == "__main__":
    main()
