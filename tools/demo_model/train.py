"""Trains the bundled model's parts one after the other; each stage resumes from its last checkpoint. See README.md.

    python train.py STAGE WORK [--steps N]      STAGE: pictures, vae, latents, vision, base, adapter

WORK holds pictures, checkpoints and a log of the losses (log.jsonl).
"""
import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPTokenizer

import model
import pictures

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools/goldens"))
from diffusers_folder import write_vocabulary  # noqa: E402

PICTURES = 20_000


class Run:
    """The loop that all stages share: cosine schedule, averaged weights, log, checkpoints."""

    def __init__(self, work: Path, name: str, module, parameters, steps: int, rate: float, decay=0.01, average=0.998,
                 every=250):
        self.path, self.log_path, self.name = work / f"{name}.pt", work / "log.jsonl", name
        self.module, self.steps, self.rate, self.average, self.every = module, steps, rate, average, every
        # Groups may have a share of the rate each.
        self.optimizer = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.99), weight_decay=decay, fused=True)
        self.shadow = {k: v.detach().clone() for k, v in module.state_dict().items()}
        self.step = 0
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.shadow, self.step = state["shadow"], state["step"]
            print("resumed", name, "at", self.step, flush=True)

    def loop(self, loss_of, minutes=None):
        begin, since, sums, count = time.time(), time.time(), {}, 0
        while self.step < self.steps:
            # Every step draws from a generator of its own, so that a resumed run draws what an uninterrupted one does.
            rng = np.random.default_rng([pictures.SEED, 1, self.step])
            torch.manual_seed(int(rng.integers(1 << 31)))
            warm = min(1.0, (self.step + 1) / 100)
            rate = self.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.step / self.steps)))
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group.get("share", 1.0)
            losses = loss_of(rng)
            sum(losses.values()).backward()
            torch.nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            if self.step % 4 == 0:
                keep = min(self.average**4, (1 + self.step) / (40 + self.step))
                current = self.module.state_dict()
                names = [k for k in current if current[k].is_floating_point()]
                with torch.no_grad():
                    torch._foreach_lerp_([self.shadow[k] for k in names], [current[k] for k in names], 1 - keep)
            for k, v in losses.items():
                sums[k] = sums.get(k, 0.0) + float(v)
            count += 1
            if self.step % 50 == 0 or self.step == self.steps:
                entry = {"stage": self.name, "step": self.step, "seconds_a_step": round((time.time() - since) / count, 3),
                         "rate": round(rate, 7), **{k: round(v / count, 5) for k, v in sums.items()}}
                with self.log_path.open("a") as log:
                    log.write(json.dumps(entry) + "\n")
                print(entry, flush=True)
                since, sums, count = time.time(), {}, 0
            if self.step % self.every == 0 or self.step == self.steps:
                self.save()

    def save(self):
        state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict(), "shadow": self.shadow,
                 "step": self.step}
        torch.save(state, self.path.with_suffix(".tmp"))
        os.replace(self.path.with_suffix(".tmp"), self.path)


def load_averaged(module, work: Path, name: str):
    module.load_state_dict(torch.load(work / f"{name}.pt", weights_only=True)["shadow"])
    return module.eval().requires_grad_(False)


def load_pictures(work: Path):
    return np.load(work / "pictures.npy", mmap_mode="r"), [pictures.from_json(e) for e in json.loads((work / "pictures.json").read_text())]


def as_tensor(batch) -> torch.Tensor:
    """u8 [N, H, W, 3] to [N, 3, H, W] in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def pass_colors(vae) -> None:
    """Starts a VAE as a box filter whose latents are the colours of 8x8 blocks; from a random start it learns grey for long.

    The first channels hold red, minus red, green, ...: SiLU(a) - SiLU(-a) = a. Every residual branch starts at zero.
    """
    signed = torch.tensor([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], dtype=torch.float32)

    def center(conv, matrix):
        rows, columns = matrix.shape
        conv.weight[:rows] = 0
        conv.weight[:rows, :columns, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = matrix
        conv.bias[:rows] = 0

    for half in (vae.encoder, vae.decoder):
        for module in half.modules():
            if hasattr(module, "conv2"):
                module.conv2.weight.zero_()
                module.conv2.bias.zero_()
            if getattr(module, "conv_shortcut", None) is not None:
                center(module.conv_shortcut, torch.eye(7))
            if hasattr(module, "to_out"):
                module.to_out[0].weight.zero_()
                module.to_out[0].bias.zero_()
        center(half.conv_in, signed)
        # A constant, so that the size of a flat picture's colour outlives the norm.
        half.conv_in.weight[6], half.conv_in.bias[6] = 0, 1
        center(half.conv_out, signed.T)
    for block in vae.encoder.down_blocks:
        for sampler in block.downsamplers or []:
            sampler.conv.weight[:7], sampler.conv.bias[:7] = 0, 0
            for c in range(7):
                sampler.conv.weight[c, c, :2, :2] = 0.25
    for block in vae.decoder.up_blocks:
        for sampler in block.upsamplers or []:
            center(sampler.conv, torch.eye(7))
    for conv in (vae.quant_conv, vae.post_quant_conv):
        center(conv, torch.eye(4))
    vae.quant_conv.weight[4:], vae.quant_conv.bias[4:] = 0, -3


def train_vae(work: Path, steps: int) -> None:
    data, _ = load_pictures(work)
    torch.manual_seed(1)
    vae = model.vae().to(memory_format=torch.channels_last)
    pass_colors(vae)

    def forward(x, noise):
        moments = vae.quant_conv(vae.encoder(x)).float()
        mean, logvar = moments.chunk(2, 1)
        logvar = logvar.clamp(-20, 10)
        out = vae.decoder(vae.post_quant_conv(mean + noise * torch.exp(0.5 * logvar)))
        return out, 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()

    forward = torch.compile(forward, dynamic=False)

    def losses(rng):
        # Crops first, and whole pictures at last, whose norms' statistics are those of the use.
        n, side = (16, 64) if run.step < 0.75 * steps else (4, 128)
        picks = rng.integers(len(data), size=n)
        at = rng.integers(pictures.SIDE - side + 1, size=(n, 2))
        x = as_tensor(np.stack([data[p, y:y + side, z:z + side] for p, (y, z) in zip(picks, at)]))
        x = x.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            out, kl = forward(x, torch.randn(n, 4, side // 8, side // 8))
        out = out.float()
        edges = sum((out.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
        return {"l1": (out - x).abs().mean(), "l2": (out - x).square().mean(), "edges": 0.5 * edges, "kl": 3e-4 * kl}

    run = Run(work, "vae", vae, list(vae.parameters()), steps, 1.5e-3)
    run.loop(losses)


def calibrated_vae(work: Path):
    """The VAE with latents of mean 0 and, times SCALING, deviation 1 in each channel, and the latents' statistics."""
    vae = load_averaged(model.vae(), work, "vae").to(memory_format=torch.channels_last)
    if torch.load(work / "vae.pt", weights_only=True).get("calibrated"):
        return vae
    data, _ = load_pictures(work)
    latents = torch.cat([vae.encode(as_tensor(data[i:i + 50])).latent_dist.mean for i in range(0, 1000, 50)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    factor = 1 / (deviation * model.SCALING)
    # (z - mean) * factor in the encoder, and back in the decoder.
    vae.quant_conv.weight[:4] *= factor[:, None, None, None]
    vae.quant_conv.bias[:4] = (vae.quant_conv.bias[:4] - mean) * factor
    vae.quant_conv.bias[4:] += 2 * factor.log()
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    vae.post_quant_conv.weight /= factor[None, :, None, None]
    return vae


def make_latents(work: Path) -> None:
    vae = calibrated_vae(work)
    data, _ = load_pictures(work)
    encode = torch.compile(lambda x: vae.encode(x).latent_dist.mean)
    out = torch.empty(len(data), 4, 16, 16)
    for i in range(0, len(data), 50):
        out[i:i + 50] = encode(as_tensor(data[i:i + 50]).to(memory_format=torch.channels_last)) * model.SCALING
    x = as_tensor(data[:200])
    back = vae.decode(out[:200] / model.SCALING).sample.clamp(-1, 1)
    print("mean", out.mean((0, 2, 3)), "deviation", out.std((0, 2, 3)), "PSNR", float(-10 * (back - x).div(2).square().mean().log10()))
    torch.save(out, work / "latents.pt")


MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
DEVIATION = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
# Three colours, the textures with four directions of stripes, the shapes.
TARGETS = 9 + len(pictures.TEXTURES) + 4 + len(pictures.SHAPES)


def kinds_of(style) -> int:
    """The textures, with the four directions of stripes apart."""
    if style.texture != "stripes":
        return pictures.TEXTURES.index(style.texture)
    return len(pictures.TEXTURES) + style.turn


def vision_with_heads():
    return torch.nn.ModuleDict({"vision": model.vision(), "heads": torch.nn.Linear(model.EMBEDDING, TARGETS)})


def trained_vision(work: Path):
    return load_averaged(vision_with_heads(), work, "vision")["vision"]


def train_vision(work: Path, steps: int) -> None:
    """The image encoder learns to tell colours, texture and shape from its embedding alone."""
    data, labels = load_pictures(work)
    torch.manual_seed(2)
    both = vision_with_heads()
    vision, heads = both["vision"], both["heads"]
    colors = torch.tensor([[*s.ground, *s.second, *s.figure] for s, _ in labels], dtype=torch.float32)
    textures = torch.tensor([kinds_of(s) for s, _ in labels])
    shapes = torch.tensor([pictures.SHAPES.index(c.shape) for _, c in labels])
    forward = torch.compile(lambda x: heads(vision(x).image_embeds))

    def losses(rng):
        picks = np.sort(rng.integers(len(data), size=64))
        x = ((as_tensor(data[picks]) + 1) / 2 - MEAN) / DEVIATION
        out = forward(x + 0.05 * torch.randn_like(x))
        color, texture, shape = out.split([9, len(pictures.TEXTURES) + 4, len(pictures.SHAPES)], 1)
        return {"color": 20 * (color - colors[picks]).square().mean(), "texture": F.cross_entropy(texture, textures[picks]),
                "shape": 0.3 * F.cross_entropy(shape, shapes[picks])}

    Run(work, "vision", both, list(both.parameters()), steps, 1e-3, average=0.995).loop(losses)


def image_embeds(work: Path) -> torch.Tensor:
    path = work / "embeds.pt"
    if not path.exists():
        vision = trained_vision(work)
        data, _ = load_pictures(work)
        parts = [vision(((as_tensor(data[i:i + 100]) + 1) / 2 - MEAN) / DEVIATION).image_embeds for i in range(0, len(data), 100)]
        torch.save(torch.cat(parts), path)
    return torch.load(path, weights_only=True)


class Captions:
    """Token ids, `[77]` each, of captions whose words are looked up once."""

    def __init__(self):
        self.words = {}
        with tempfile.TemporaryDirectory() as folder:
            write_vocabulary(Path(folder))
            self.tokenizer = CLIPTokenizer(folder + "/vocab.json", folder + "/merges.txt")

    def __call__(self, texts, pad: int) -> torch.Tensor:
        out = np.full((len(texts), 77), pad)
        for row, text in zip(out, texts):
            ids = [49406]
            for word in text.split():
                if word not in self.words:
                    self.words[word] = self.tokenizer(word).input_ids[1:-1]
                ids += self.words[word]
            row[:len(ids) + 1] = ids + [49407]
        return torch.from_numpy(out)

    def both(self, texts):
        """Token ids for the two encoders."""
        return self(texts, 49407), self(texts, 0)


class CachedText:
    """The frozen text encoders: each caption is encoded once."""

    def __init__(self, base):
        self.base, self.known = base, {}

    @torch.no_grad()
    def __call__(self, captions: Captions, texts):
        new = sorted(set(texts) - self.known.keys())
        if new:
            context, pooled = self.base.encode(*captions.both(new))
            self.known |= {text: both for text, *both in zip(new, context, pooled)}
        return tuple(torch.stack([self.known[text][i] for text in texts]) for i in (0, 1))


class Batches:
    """Noisy latents and what the model should say of them."""

    def __init__(self, work: Path):
        self.latents = torch.load(work / "latents.pt", weights_only=True)
        self.labels = load_pictures(work)[1]
        self.captions = Captions()
        self.bars = model.alpha_bars()

    def draw(self, rng, n: int, styled: float, weights=None, t=None):
        """Picks (by `weights`), x, t, target v, captions, and which keep their text."""
        picks = rng.integers(len(self.latents), size=n) if weights is None else rng.choice(len(self.latents), n, p=weights)
        # Stratified timesteps make the loss less noisy.
        t = torch.from_numpy(((np.arange(n) + rng.random(n)) / n * 1000).astype(np.int64)) if t is None else t
        return picks, *self.noisy(rng, picks, np.full(n, styled), t)

    def noisy(self, rng, picks, styled, t):
        """x, t, target v, captions (with the style by the chances `styled`), and which keep their text, for these pictures."""
        n, latents = len(picks), self.latents[picks]
        a = self.bars[t][:, None, None, None]
        noise = torch.randn_like(latents)
        x = a.sqrt() * latents + (1 - a).sqrt() * noise
        v = a.sqrt() * noise - (1 - a).sqrt() * latents
        texts = []
        for p, chance in zip(picks, styled):
            style, content = self.labels[p]
            texts.append(pictures.caption(content, style if rng.random() < chance else None, rng))
        drop = rng.random(n)
        texts = ["" if 0.04 <= d < 0.10 else text for text, d in zip(texts, drop)]
        keep = torch.from_numpy((drop >= 0.04).astype(np.float32))
        x = x.to(memory_format=torch.channels_last)
        return x, t, v, texts, keep


def train_base(work: Path, steps: int, start: Path | None, rate: float) -> None:
    torch.manual_seed(3)
    base = model.Base()
    if start:
        base.load_state_dict(torch.load(start, weights_only=True)["shadow"])
    base.unet.to(memory_format=torch.channels_last)
    batches = Batches(work)
    forward = torch.compile(base)

    def losses(rng):
        _, x, t, v, texts, keep = batches.draw(rng, 64, 0.6)
        ids, ids_2 = batches.captions.both(texts)
        with torch.autocast("cpu", torch.bfloat16):
            out = forward(x, t, ids, ids_2, keep)
        return {"v": (out.float() - v).square().mean()}

    Run(work, "base", base, list(base.parameters()), steps, rate).loop(losses)


# How often each texture is drawn for an image prompt: stripes, with four directions, and shades are the hardest.
SHARES = {"plain": 0.14, "stripes": 0.24, "dots": 0.08, "checks": 0.13, "gradient": 0.28, "clouds": 0.13}


def texture_weights(labels) -> np.ndarray:
    """The pictures' chances, so that each texture has its share."""
    textures = [s.texture for s, _ in labels]
    weights = np.array([SHARES[t] / textures.count(t) for t in SHARES])
    return weights[[list(SHARES).index(t) for t in textures]]


def adapter_times(rng, n: int) -> torch.Tensor:
    """Stratified timesteps; three quarters from the noisy part, in which the ground's pattern is settled."""
    at = (np.arange(n) + rng.random(n)) / n
    return torch.from_numpy((np.where(at < 0.25, at / 0.25, 0.35 + 0.65 * (at - 0.25) / 0.75) * 1000).astype(np.int64))


def train_adapter(work: Path, steps: int, start: Path | None, rate: float) -> None:
    base = load_averaged(model.Base(), work, "base")
    torch.manual_seed(4)
    adapter = model.Adapter(base)
    if start:
        adapter.load_state_dict(torch.load(start, weights_only=True)["shadow"])
    base.unet.to(memory_format=torch.channels_last)
    encode = CachedText(base)
    embeds = image_embeds(work)
    batches = Batches(work)
    weights = texture_weights(batches.labels)

    def losses(rng):
        n = 64
        picks, x, t, v, texts, keep = batches.draw(rng, n, 0.1, weights, adapter_times(rng, n))
        # The reference is the other picture in the same style, so that its content tells nothing; or the picture itself.
        others = np.where(rng.random(n) < 0.9, picks ^ 1, picks)
        # Guidance compares with neither text nor picture, so both are often dropped together.
        empty = (np.array([not text for text in texts])) | (keep == 0).numpy()
        shown = torch.from_numpy((rng.random(n) >= np.where(empty, 0.5, 0.05)).astype(np.float32))[:, None]
        context, pooled = encode(batches.captions, texts)
        out = base.predict(x, t, context, pooled, keep, {"tokens": adapter.image_proj(embeds[others] * shown)})
        return {"v": (out - v).square().mean()}

    Run(work, "adapter", adapter, list(adapter.parameters()), steps, rate, average=0.99, every=25).loop(losses)


STEPS = {"vae": 2000, "vision": 1500, "base": 4000, "adapter": 1500}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=["pictures", "vae", "latents", "vision", "base", "adapter"])
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--start", type=Path, help="base, adapter: a checkpoint whose weights it starts from")
    parser.add_argument("--rate", type=float, default=1e-3, help="base, adapter: the highest learning rate")
    args = parser.parse_args()
    steps = args.steps or STEPS.get(args.stage)
    args.work.mkdir(parents=True, exist_ok=True)
    match args.stage:
        case "pictures":
            pictures.main(args.work / "pictures.npy", PICTURES)
        case "vae":
            train_vae(args.work, steps)
        case "latents":
            make_latents(args.work)
        case "vision":
            train_vision(args.work, steps)
        case "base":
            train_base(args.work, steps, args.start, args.rate)
        case "adapter":
            train_adapter(args.work, steps, args.start, args.rate)


if __name__ == "__main__":
    main()
