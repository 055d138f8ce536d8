"""Scores a model on the fixed requests (tests/data/demo/scored.json), and the classifier on pictures that it never saw.

    python score.py WORK [--sheet OUT.png] [--words] [--scale S]

WORK holds the stages' checkpoints (train.py) or what `restore.py` made of the exported files. With --words no reference is given:
the text names its texture, which tells what the base alone can draw.
"""
import argparse
import json
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

import classifier
import model
import pictures
import train

DATA = train.ROOT / "tests/data/demo"
ROW = 16


def unseen():
    """The sheet's pictures u8 [96, SIDE, SIDE, 3], and their labels."""
    sheet = np.asarray(Image.open(DATA / "unseen.png").convert("RGB"))
    side = pictures.SIDE
    tiles = sheet.reshape(-1, side, ROW, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    return tiles, json.loads((DATA / "unseen.json").read_text())["pictures"]


def the_classifier():
    judge = classifier.Classifier()
    judge.load_state_dict(safetensors.torch.load_file(DATA / "classifier.safetensors"))
    return judge.eval()


def guess(judge, images) -> np.ndarray:
    """Shape, texture and count less one, as indices."""
    return torch.stack([o.argmax(1) for o in judge(train.as_tensor(images))], 1).numpy()


def pixels(images):
    """u8 pictures as the image encoder takes them."""
    return ((train.as_tensor(images) + 1) / 2 - train.MEAN) / train.DEVIATION


class Model:
    """The trained parts, and how they draw."""

    def __init__(self, work: Path):
        self.base = train.load_averaged(model.Base(), work, "base")
        self.vision = train.trained_vision(work)
        self.adapter = train.load_averaged(model.Adapter(self.base), work, "adapter")
        self.vae = train.calibrated_vae(work)
        self.captions = train.Captions()

    def tokens(self, n: int, references, scale: float):
        """The image tokens without and with the references, [2 n, TOKENS, CONTEXT]; sets the scale."""
        embeds = torch.zeros(n, model.EMBEDDING) if references is None else self.vision(pixels(references)).image_embeds
        for processor in self.base.unet.attn_processors.values():
            processor.scale = 0.0 if references is None else scale
        return self.adapter.image_proj(torch.cat([torch.zeros_like(embeds), embeds]))

    def draw(self, prompts, seeds, references, scale=1.0, steps=16, guidance=3.0) -> np.ndarray:
        """u8 pictures; `references` are u8 pictures, or None for text alone."""
        n, side = len(prompts), model.UNET["sample_size"]
        noise = [torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(s)) for s in seeds]
        scheduler = EulerDiscreteScheduler.from_config(json.loads(
            (train.ROOT / "assets/demo/config/scheduler/scheduler_config.json").read_text()))
        scheduler.set_timesteps(steps)
        x = torch.cat(noise) * scheduler.init_noise_sigma
        ids, ids_2 = (torch.cat([self.captions([""] * n, pad), self.captions(prompts, pad)]) for pad in (49407, 0))
        keep = torch.cat([torch.zeros(n), torch.ones(n)])
        tokens = self.tokens(n, references, scale)
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(torch.cat([x, x]), t)
            out = self.base(scaled, t, ids, ids_2, keep, {"tokens": tokens})
            without, with_all = out.chunk(2)
            x = scheduler.step(without + guidance * (with_all - without), t, x).prev_sample
        images = torch.cat([self.vae.decode(part / model.SCALING).sample for part in x.split(20)])
        return ((images / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--sheet", type=Path, help="the references and what was drawn, to look at")
    parser.add_argument("--words", action="store_true", help="the text names the texture; no reference")
    parser.add_argument("--scale", type=float, default=1.0)
    args = parser.parse_args()
    judge, (tiles, labels), scored = the_classifier(), unseen(), json.loads((DATA / "scored.json").read_text())
    truth = np.array([[pictures.SHAPES.index(p["shape"]), pictures.TEXTURES.index(p["texture"]), p["count"] - 1] for p in labels])
    print("classifier on unseen pictures: shape, texture, count", (guess(judge, tiles) == truth).mean(0).round(3).tolist())

    requests = scored["requests"]
    at = np.array([r["reference"] for r in requests])
    prompts = [r["prompt"] for r in requests]
    if args.words:
        prompts = [f"{p} on a blue {pictures.ADJECTIVES[labels[i]['texture']]} background" for p, i in zip(prompts, at)]
    drawn = Model(args.work).draw(prompts, [r["seed"] for r in requests], None if args.words else tiles[at], args.scale,
                                  scored["steps"], scored["guidance"])
    wanted = np.array([[pictures.SHAPES.index(r["shape"]), truth[r["reference"], 1], r["count"] - 1] for r in requests])
    seen = guess(judge, drawn)
    print(len(requests), "requests: shape, texture, count", (seen == wanted).mean(0).round(3).tolist())
    for i, texture in enumerate(pictures.TEXTURES):
        rows = wanted[:, 1] == i
        found = {pictures.TEXTURES[j]: int(c) for j, c in enumerate(np.bincount(seen[rows, 1], minlength=6)) if c}
        print(f"  {texture}: {(seen[rows, 1] == i).sum()} of {rows.sum()}, drawn as {found}")
    if args.sheet:
        both = np.concatenate([tiles[at], drawn], 1)
        Image.fromarray(np.concatenate([np.concatenate(both[i:i + 16], 1) for i in range(0, len(both), 16)])).save(args.sheet)


if __name__ == "__main__":
    main()
