"""Trains the small classifier with which the tests judge drawn pictures: shape, texture and count from pixels.

    python classifier.py WORK OUT

OUT gets classifier.safetensors. It sees the training pictures alone (blurred, noisy, with their colours moved), and nothing of
the model that it judges.
"""
import sys
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F

import pictures
import train

CHANNELS = [3, 16, 32, 48, 64]
HEADS = [len(pictures.SHAPES), len(pictures.TEXTURES), 3]


class Classifier(torch.nn.Module):
    """Four 3x3 convolutions of stride 2 with ReLU, then the mean and the maximum over the picture, then linear heads."""

    def __init__(self):
        super().__init__()
        self.convs = torch.nn.ModuleList(torch.nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(CHANNELS, CHANNELS[1:]))
        self.heads = torch.nn.Linear(2 * CHANNELS[-1], sum(HEADS))

    def forward(self, x):
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.heads(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)).split(HEADS, 1)


def labels_of(labels):
    return torch.tensor([[pictures.SHAPES.index(c.shape), pictures.TEXTURES.index(s.texture), c.count - 1] for s, c in labels])


def main(work: Path, out: Path, steps=4000) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(5)
    data, labels = train.load_pictures(work)
    wanted = labels_of(labels)
    classifier = Classifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for step in range(steps):
        rng = np.random.default_rng([pictures.SEED, 5, step])
        # The last thousand are for validation.
        picks = np.sort(rng.integers(len(data) - 1000, size=64))
        x = train.as_tensor(data[picks])
        if rng.random() < 0.5:
            x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), "replicate"), 3, 1)
        x = x * (1 + 0.15 * torch.randn(64, 3, 1, 1)) + 0.1 * torch.randn(64, 3, 1, 1) + 0.04 * torch.randn_like(x) * torch.rand(64, 1, 1, 1)
        loss = sum(F.cross_entropy(o, w) for o, w in zip(classifier(x), wanted[picks].T))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 500 == 0:
            with torch.no_grad():
                guess = torch.stack([o.argmax(1) for o in classifier(train.as_tensor(data[-1000:]))], 1)
            print(step + 1, float(loss), (guess == wanted[-1000:]).float().mean(0).tolist(), flush=True)
    state = {k: v.detach().contiguous() for k, v in classifier.state_dict().items()}
    out.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(state, out / "classifier.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
