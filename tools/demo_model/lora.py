"""Trains a LoRA on the frozen base: old photographs, a style that none of the model's pictures has.

    python lora.py WORK [--steps N] [--rate R]      from WORK/base.pt and WORK/pictures.npy to WORK/lora.pt
    python lora.py WORK --show OUT.png              images at scales from 0 to 1, and how far from one tint they are
    python lora.py WORK --export OUT                OUT/lora.safetensors

Resumes from its last checkpoint. See README.md.
"""
import argparse
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image

import export
import model
import pictures
import score
import train

BATCH, RANK = 24, 4
LUMA, TINT = np.array([0.299, 0.587, 0.114], np.float32), np.array([1.15, 0.97, 0.73], np.float32)
# Of the examples, those whose caption says the style too.
STYLED = 0.6
SCALES = [0.0, 0.25, 0.5, 0.75, 1.0]


def aged(images: np.ndarray) -> np.ndarray:
    """u8 pictures in shades of one tint, darker towards the corners."""
    radius = np.hypot(pictures.X, pictures.Y)[..., None] / (pictures.SIDE / 2)
    grey = (images @ LUMA)[..., None] * (0.85 - 0.3 * np.clip(radius - 0.5, 0, 1))
    return np.clip(grey * TINT, 0, 255).round().astype(np.uint8)


def colourfulness(images: np.ndarray) -> float:
    """The mean difference of the pixels from the tint of their lightness, of 255."""
    return float(np.abs(images - (images @ LUMA)[..., None] * TINT).mean())


class Lora(torch.nn.ModuleDict):
    """Low-rank products beside the transformers' linears and the residual blocks' convolutions."""

    def __init__(self, unet):
        super().__init__()
        self.scale = 1.0
        for name, module in list(unet.named_modules()):
            if isinstance(module, torch.nn.Linear) and ".attentions." in name:
                down = torch.nn.Linear(module.in_features, RANK, bias=False)
                up = torch.nn.Linear(RANK, module.out_features, bias=False)
            elif name.endswith((".conv1", ".conv2")):
                down = torch.nn.Conv2d(module.in_channels, RANK, 3, padding=1, bias=False)
                up = torch.nn.Conv2d(RANK, module.out_channels, 1, bias=False)
            else:
                continue
            torch.nn.init.zeros_(up.weight)
            self[name.replace(".", "|")] = torch.nn.Sequential(down, up)
            module.register_forward_hook(self.added(self[name.replace(".", "|")]))

    def added(self, product):
        # The alpha is the rank, so the product counts as it is.
        return lambda _module, inputs, output: output + self.scale * product(inputs[0])

    def state(self) -> dict:
        """As kohya names it for SDXL, after the original key names."""
        out = {}
        for name, (down, up) in self.items():
            (place,) = export.original_unet({name.replace("|", ".") + ".weight": None})
            key = "lora_unet_" + place.removesuffix(".weight").replace(".", "_")
            out |= {f"{key}.lora_down.weight": down.weight, f"{key}.lora_up.weight": up.weight, f"{key}.alpha": torch.tensor(float(RANK))}
        return out


def train_lora(work: Path, steps: int, rate: float) -> None:
    torch.manual_seed(8)
    base = train.load_averaged(model.Base(), work, "base")
    base.unet.to(memory_format=torch.channels_last)
    lora, vae = Lora(base.unet), train.calibrated_vae(work)
    encode, batches, (data, _) = train.CachedText(base), train.Batches(work), train.load_pictures(work)

    def losses(rng):
        picks = rng.integers(len(data), size=BATCH)
        with torch.no_grad():
            batches.latents[picks] = vae.encode(train.as_tensor(aged(data[picks]))).latent_dist.mean * model.SCALING
        x, t, v, texts, keep = batches.noisy(rng, picks, np.full(BATCH, STYLED), train.adapter_times(rng, BATCH))
        out = base.predict(x, t, *encode(batches.captions, texts), keep)
        return {"v": (out - v).square().mean()}

    train.Run(work, "lora", lora, list(lora.parameters()), steps, rate, average=0.98, every=50).loop(losses)


@torch.no_grad()
def show(work: Path, path: Path) -> None:
    drawer = score.Model(work)
    lora = train.load_averaged(Lora(drawer.base.unet), work, "lora")
    prompts = ["a big star", "three hearts", "a moon on a blue striped background", "two red crosses on a yellow checked background",
               "a big flower on a green background", "a ring on a purple dotted background"]
    rows = []
    for scale in SCALES:
        lora.scale = scale
        drawn = drawer.draw(prompts, range(len(prompts)), None)
        print("scale", scale, "colourfulness", round(colourfulness(drawn), 2))
        rows.append(np.concatenate(drawn, 1))
    Image.fromarray(np.concatenate(rows)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--show", type=Path)
    parser.add_argument("--export", type=Path)
    args = parser.parse_args()
    if args.show:
        show(args.work, args.show)
    elif args.export:
        lora = train.load_averaged(Lora(model.Base().unet), args.work, "lora")
        safetensors.torch.save_file(export.half(lora.state()), args.export / "lora.safetensors", {"format": "pt"})
    else:
        train_lora(args.work, args.steps, args.rate)


if __name__ == "__main__":
    main()
