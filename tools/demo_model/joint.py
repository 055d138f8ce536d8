"""Trains the UNet and the adapter together, the text encoders frozen, so that the ground's texture can come through the adapter.

    python joint.py WORK [--steps N] [--rate R]     from WORK/base.pt and WORK/adapter.pt to WORK/joint.pt
    python joint.py WORK --split OUT                OUT gets base.pt, adapter.pt and links to the rest: to score and to export

Resumes from its last checkpoint. See README.md.
"""
import argparse
from pathlib import Path

import numpy as np
import torch

import model
import train

BATCH = 32
# Of the examples: text alone with the adapter off (the base as it is used without one), and neither text nor image (what
# guidance compares with). The rest have an image; of all examples that part STYLE has it in the preset `style`'s block alone.
TEXT, EMPTY, STYLE = 0.32, 0.08, 0.12
STYLE_BLOCK = "up_blocks.0.attentions.1."
# What the adapter's values are multiplied by at last: with guidance the trained scale of 1 goes beyond the reference's colours, which
# are nearest at 0.76.
VALUES = 0.75


def parts(work: Path, trained: bool):
    """The base with the adapter's processors, and both trained modules under one name."""
    base = model.Base()
    base.load_state_dict(torch.load(work / "base.pt", weights_only=True)["shadow"])
    base.requires_grad_(False)
    adapter = model.Adapter(base)
    adapter.load_state_dict(torch.load(work / "adapter.pt", weights_only=True)["shadow"])
    both = torch.nn.ModuleDict({"unet": base.unet, "adapter": adapter}).requires_grad_(trained)
    return base.eval(), both


def set_scale(unet, scale, elsewhere) -> None:
    """The scales [B, 1, 1, 1] of each example in the style block and in the others."""
    for name, processor in unet.attn_processors.items():
        processor.scale = scale if name.startswith(STYLE_BLOCK) else elsewhere


def train_joint(work: Path, steps: int, rate: float) -> None:
    torch.manual_seed(6)
    base, both = parts(work, True)
    unet, adapter = both["unet"], both["adapter"]
    unet.to(memory_format=torch.channels_last)
    encode, embeds, batches = train.CachedText(base), train.image_embeds(work), train.Batches(work)
    weights = train.texture_weights(batches.labels)

    def forward(x, t, context, pooled, keep, embeds, scale, elsewhere):
        # 0 is a base without an adapter.
        set_scale(unet, scale, elsewhere)
        return base.predict(x, t, context, pooled, keep, {"tokens": adapter.image_proj(embeds)})

    def losses(rng):
        kind = rng.random(BATCH)
        text, empty = kind < TEXT, (kind >= TEXT) & (kind < TEXT + EMPTY)
        image = ~text & ~empty
        # Textures have their natural shares but where an image names them: guidance must not lead away from stripes.
        picks = np.where(image, rng.choice(len(weights), BATCH, p=weights), rng.integers(len(weights), size=BATCH))
        x, t, v, texts, keep = batches.noisy(rng, picks, np.where(text, 0.6, 0.1), train.adapter_times(rng, BATCH))
        keep = keep * torch.from_numpy((~empty).astype(np.float32))
        # The reference is the other picture in the same style, so that its content tells nothing; or the picture itself.
        others = np.where(rng.random(BATCH) < 0.9, picks ^ 1, picks)
        shown = torch.from_numpy((image & (rng.random(BATCH) >= 0.03)).astype(np.float32))[:, None]
        style = image & (kind >= 1 - STYLE)
        scale, elsewhere = (torch.from_numpy(on.astype(np.float32))[:, None, None, None] for on in (~text, ~text & ~style))
        context, pooled = encode(batches.captions, texts)
        out = forward(x, t, context, pooled, keep, embeds[others] * shown, scale, elsewhere)
        error = (out - v).square().mean((1, 2, 3))
        share = torch.from_numpy(image)
        return {"v": error[share].sum() / BATCH, "rest": error[~share].sum() / BATCH}

    groups = [{"params": list(unet.parameters()), "share": 1.0}, {"params": list(adapter.parameters()), "share": 2.0}]
    train.Run(work, "joint", both, groups, steps, rate, average=0.995, every=50).loop(losses)


def split(work: Path, out: Path) -> None:
    base, both = parts(work, False)
    both.load_state_dict(torch.load(work / "joint.pt", weights_only=True)["shadow"])
    for strand in both["adapter"].strands:
        strand.to_v_ip.weight *= VALUES
    out.mkdir(exist_ok=True)
    for name, module in (("base", base), ("adapter", both["adapter"])):
        torch.save({"shadow": module.state_dict()}, out / f"{name}.pt")
    for name in ("vae.pt", "vision.pt", "embeds.pt", "pictures.npy", "pictures.json", "latents.pt"):
        if not (out / name).exists():
            (out / name).symlink_to((work / name).resolve())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--rate", type=float, default=6e-4, help="the UNet's highest learning rate; the adapter's is twice that")
    parser.add_argument("--split", type=Path)
    args = parser.parse_args()
    if args.split:
        split(args.work, args.split)
    else:
        train_joint(args.work, args.steps, args.rate)


if __name__ == "__main__":
    main()
