"""Trains the bundled IP-Adapter Plus over the frozen base, and scores and exports it.

    python plus.py WORK [--steps N] [--rate R]      from WORK/base.pt and WORK/adapter.pt to WORK/plus.pt
    python plus.py WORK --score [--sheet OUT.png]   what it draws of references that were not trained on, without a text
    python plus.py WORK --export OUT                OUT/ip-adapter-plus.safetensors

Resumes from its last checkpoint. See README.md.
"""
import argparse
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from PIL import Image

import export
import model
import pictures
import score
import train

BATCH = 32
# Tokens of an image, and the resampler's sizes. diffusers takes a depth of 4 for granted.
QUERIES, WIDTH, DEPTH, HEADS = 16, 96, 4, 2
# Of the examples: the image alone, the image and a text without style, the text alone; the rest have neither.
IMAGE, BOTH, TEXT = 0.5, 0.34, 0.06
# Steps in which the resampler alone learns.
FIRST = 4200
# Dimensions of a token that first tell the content and the style: they hold 99.97 % and 99.9 % of the text's and the adapter's.
RANKS = (32, 88)


class Plus(model.Adapter):
    """The adapter with a resampler of the image encoder's hidden states in place of the projection."""

    def __init__(self, base):
        super().__init__(base)
        self.image_proj = IPAdapterPlusImageProjection(model.VISION["hidden_size"], model.CONTEXT, WIDTH, DEPTH, 64, HEADS, QUERIES)

    def state(self):
        """As the published files name it."""
        inner = {"ln0": "0.norm1", "ln1": "0.norm2", "attn.to_q": "0.to_q", "attn.to_out.0": "0.to_out", "ff.0": "1.0",
                 "ff.1.net.0.proj": "1.1", "ff.1.net.2": "1.3"}
        names = {f"image_proj.layers.{i}.{a}": f"image_proj.layers.{i}.{b}" for i in range(DEPTH) for a, b in inner.items()}
        state, out = super().state(), {}
        for i in range(DEPTH):
            layer = f"image_proj.layers.{i}"
            keys, values = (state.pop(f"{layer}.attn.to_{kind}.weight") for kind in "kv")
            out[f"{layer}.0.to_kv.weight"] = torch.cat([keys, values])
        for key, value in state.items():
            module, _, leaf = key.rpartition(".")
            out[f"{names[module]}.{leaf}" if module in names else key] = value
        return out


@torch.no_grad()
def hidden_states(vision, images, shown) -> torch.Tensor:
    """The hidden states before the last of u8 pictures; of zeros, as diffusers has them, where `shown` [B] is 0."""
    pixels = score.pixels(images) * torch.from_numpy(shown.astype(np.float32))[:, None, None, None]
    return vision(pixels, output_hidden_states=True).hidden_states[-2]


def parts(work: Path):
    base = train.load_averaged(model.Base(), work, "base")
    base.unet.to(memory_format=torch.channels_last)
    return base, train.load_averaged(model.Adapter(base), work, "adapter"), train.trained_vision(work)


def basis(tokens: torch.Tensor, rank: int) -> torch.Tensor:
    """The directions [rank, CONTEXT] that hold most of these tokens."""
    return torch.linalg.svd(tokens.flatten(0, -2), full_matrices=False).Vh[:rank]


def teach(work: Path, plus, base, adapter, vision) -> None:
    """Starts with what is there: half of the tokens say what the caption's first words say, the others what the base adapter's do.

    Both are given in their own few dimensions of the token, so that one matrix reads each as the text's or the adapter's does. The
    dimensions that are left carry nothing yet, and take up what the norm makes of a token's length.
    """
    (data, labels), encode = train.load_pictures(work), train.CachedText(base)
    texts = [pictures.caption(content, None, np.random.default_rng(0)) for _, content in labels]
    captions, words = train.Captions(), QUERIES // 2

    def content(texts):
        return encode(captions, texts)[0][:, :words]

    def style(images):
        return adapter.image_proj(vision(score.pixels(images)).image_embeds).repeat_interleave((QUERIES - words) // model.TOKENS, 1)

    unique = sorted(set(texts))
    with torch.no_grad():
        known = content(unique), style(data[:1000])
        bases = [basis(tokens, rank) for tokens, rank in zip(known, RANKS)]
        said, shown = (tokens @ b.T for tokens, b in zip(known, bases))
        rest = model.CONTEXT - sum(RANKS)
        sizes = [part.square().mean((0, 1)).sqrt() for part in (said, shown)]
        plus.image_proj.norm_out.weight.copy_(torch.cat([1.2 * size for size in sizes] + [torch.ones(rest)]))
        for name, strand, trained in zip(plus.names, plus.strands, adapter.strands):
            for kind in "kv":
                read = getattr(base.unet.get_submodule(name), f"to_{kind}").weight @ bases[0].T
                learnt = getattr(trained, f"to_{kind}_ip").weight @ bases[1].T
                getattr(strand, f"to_{kind}_ip").weight.copy_(torch.cat([read, learnt, torch.zeros(len(read), rest)], 1))
        hidden = [hidden_states(vision, part, np.ones(len(part))).half() for part in np.array_split(data, 200)]
        # The last is no picture, which guidance compares with: nothing is said, and the style is that of a zero embedding.
        hidden = torch.cat([*hidden, hidden_states(vision, data[:1], np.zeros(1)).half()])
        plain = adapter.image_proj(torch.zeros(1, model.EMBEDDING)).repeat_interleave((QUERIES - words) // model.TOKENS, 1)
        goals = torch.cat([said, torch.zeros_like(said[:1])])
    power = [tokens.square().mean() * model.CONTEXT for tokens in known]
    # How far a caption is from another, each value by its spread: a shape is a small part of the words' encoding.
    spread = said.std(0).clamp(min=0.05 * said.std(0).max())
    which = torch.tensor([unique.index(text) for text in texts] + [len(unique)])

    def losses(rng):
        picks = np.sort(rng.integers(len(data), size=64))
        none = rng.random(len(picks)) < 0.06
        with torch.no_grad():
            wanted = torch.where(torch.from_numpy(none)[:, None, None], plain, style(data[picks])) @ bases[1].T
        picks = np.where(none, len(data), picks)
        first, second = plus.image_proj(hidden[picks].float()).split([words, QUERIES - words], 1)
        first, second = (half.split([*RANKS, rest], 2) for half in (first, second))
        far = ((first[0] / spread).flatten(1)[:, None] - (goals / spread).flatten(1)[None]).square().sum(2)
        content = (first[0] - goals[which[picks]]).square().sum(2).mean() + first[1].square().sum(2).mean()
        style_error = (second[1] - wanted).square().sum(2).mean() + second[0].square().sum(2).mean()
        return {"content": content / power[0], "style": style_error / power[1], "caption": 0.1 * F.cross_entropy(-far / 6, which[picks])}

    train.Run(work, "plus-start", plus.image_proj, list(plus.image_proj.parameters()), FIRST, 2e-3, average=0.98).loop(losses)
    plus.image_proj.load_state_dict(torch.load(work / "plus-start.pt", weights_only=True)["shadow"])


def train_plus(work: Path, steps: int, rate: float) -> None:
    torch.manual_seed(7)
    base, adapter, vision = parts(work)
    plus = Plus(base)
    if not (work / "plus.pt").exists():
        teach(work, plus, base, adapter, vision)
    encode, batches, (data, _) = train.CachedText(base), train.Batches(work), train.load_pictures(work)
    weights = train.texture_weights(batches.labels)

    def losses(rng):
        kind = rng.random(BATCH)
        shown, said = kind < IMAGE + BOTH, (kind >= IMAGE) & (kind < IMAGE + BOTH + TEXT)
        picks = np.where(shown, rng.choice(len(weights), BATCH, p=weights), rng.integers(len(weights), size=BATCH))
        x, t, v, texts, keep = batches.noisy(rng, picks, np.where(shown, 0.1, 0.6), train.adapter_times(rng, BATCH))
        # An image alone has the empty text; where there is neither, its embeddings are zero, as guidance has them.
        texts = [text if s else "" for text, s in zip(texts, said)]
        keep = keep * torch.from_numpy((shown | said).astype(np.float32))
        context, pooled = encode(batches.captions, texts)
        with torch.no_grad():
            tokens = plus.image_proj(hidden_states(vision, data[picks], shown))
        out = base.predict(x, t, context, pooled, keep, {"tokens": tokens})
        return {"v": (out - v).square().mean()}

    # Of the keys and values alone: the resampler trained with them forgets the shapes, which are a small part of this loss.
    train.Run(work, "plus", plus, list(plus.strands.parameters()), steps, rate, average=0.99, every=50).loop(losses)


class Drawer(score.Model):
    """Draws after references alone, or with a text."""

    def __init__(self, work: Path):
        super().__init__(work)
        self.plus = train.load_averaged(Plus(self.base), work, "plus")

    def tokens(self, n, references, scale):
        for processor in self.base.unet.attn_processors.values():
            processor.scale = scale
        none, shown = np.zeros(n), np.ones(n)
        return self.plus.image_proj(torch.cat([hidden_states(self.vision, references, s) for s in (none, shown)]))


@torch.no_grad()
def show(work: Path, sheet: Path | None, count: int, scale: float) -> None:
    judge, (tiles, labels) = score.the_classifier(), score.unseen()
    at = np.arange(0, 96, 96 // count)[:count]
    truth = np.array([[pictures.SHAPES.index(p["shape"]), pictures.TEXTURES.index(p["texture"]), p["count"] - 1] for p in labels])[at]
    drawn = Drawer(work).draw([""] * len(at), range(len(at)), tiles[at], scale)
    seen = score.guess(judge, drawn)
    print(f"{len(at)} references, no text, scale {scale}: shape, texture, count", (seen == truth).mean(0).round(3).tolist())
    if sheet:
        both = np.concatenate([tiles[at], drawn], 1)
        Image.fromarray(np.concatenate([np.concatenate(both[i:i + 16], 1) for i in range(0, len(both) // 16 * 16, 16)])).save(sheet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--score", action="store_true")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--export", type=Path)
    args = parser.parse_args()
    if args.score:
        show(args.work, args.sheet, args.count, args.scale)
    elif args.export:
        plus = train.load_averaged(Plus(model.Base()), args.work, "plus")
        safetensors.torch.save_file(export.half(plus.state()), args.export / "ip-adapter-plus.safetensors", {"format": "pt"})
    else:
        train_plus(args.work, args.steps, args.rate)


if __name__ == "__main__":
    main()
