"""Small models whose weights are a pure function of their names, so that no weights need to be committed.

A golden case keeps, instead of weights, a *recipe*: for each file a list of tensors with name, shape, dtype, scale,
offset and seed. The Rust tests build the same tensors from it (src/synth). The value of element i (row-major) is

    x = (i * 0x9E3779B9 + seed) mod 2^32
    x ^= x >> 16;  x *= 0x7feb352d;  x ^= x >> 15;  x *= 0x846ca68b;  x ^= x >> 16          (mod 2^32)
    u = (x >> 8) * 2^-23 - 1                     exactly representable, in [-1, 1)
    value = f32(offset + f32(scale * u))         then rounded to the tensor's dtype, half to even
"""
import json
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def seed_of(name: str) -> int:
    """FNV-1a, 32 bits, of the UTF-8 name."""
    h = 0x811C9DC5
    for b in name.encode():
        h = ((h ^ b) * 0x01000193) & 0xFFFFFFFF
    return h


def fill(shape, scale: float, offset: float, seed: int) -> torch.Tensor:
    """The f32 tensor of one recipe line, before rounding to its dtype."""
    n = int(np.prod(shape, dtype=np.int64))
    x = np.arange(n, dtype=np.uint32) * np.uint32(0x9E3779B9) + np.uint32(seed)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    u = (x >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    return torch.from_numpy((np.float32(offset) + np.float32(scale) * u).reshape(shape))


def rule(name: str, shape) -> tuple[float, float]:
    """(scale, offset) that keep activations near unit size: for uniform u, scale = gain * sqrt(3 / fan_in).

    Queries and keys get a gain of 1.5, so that softmaxes choose and do not merely average; the VAE's last
    convolution gets 0.4, so that few pixels reach the clamp, which would hide errors.
    """
    leaf = name.rsplit(".", 1)[-1]
    if leaf.endswith("bias"):
        return 0.1, 0.0
    if len(shape) < 2:
        return (0.5, 0.0) if leaf == "class_embedding" else (0.2, 1.0)
    if "token_embedding" in name or leaf == "latents":
        return 1.0, 0.0
    if "position_embedding" in name or "positional_embedding" in name:
        return 0.5, 0.0
    # OpenCLIP's bare matrices are applied from the right, [inputs, outputs]; all others are [outputs, inputs...].
    fan_in = shape[0] if leaf == "text_projection" else int(np.prod(shape[1:]))
    gain = 1.0
    if any(part in ("to_q", "to_k", "q_proj", "k_proj", "to_k_ip") for part in name.split(".")):
        gain = 1.5
    elif name.endswith("decoder.conv_out.weight"):
        gain = 0.4
    return gain * float(np.sqrt(3.0 / fan_in)), 0.0


def short(x: float) -> float:
    """The f32 nearest to x, as the shortest decimal number that still reads back as that f32."""
    return float(str(np.float32(x)))


class Recipe:
    """Collects the files of one case; `write` stores recipe.json."""

    def __init__(self):
        self.files = []

    def module(self, module: torch.nn.Module, path: str, dtype: str = "F32", salt: str = "") -> None:
        """Overwrites every parameter of `module` (buffers such as position_ids stay) and records the file."""
        tensors = []
        with torch.no_grad():
            for name, p in module.named_parameters():
                line = self.line(name, list(p.shape), dtype, salt)
                p.copy_(self.value(line).to(p.dtype))
                tensors.append(line)
        self.add(path, tensors)

    def line(self, name: str, shape, dtype: str = "F32", salt: str = "", scale=None, offset=None) -> dict:
        s, o = rule(name, shape)
        s, o = short(s if scale is None else scale), short(o if offset is None else offset)
        return {"name": name, "shape": list(shape), "dtype": dtype, "scale": s, "offset": o, "seed": seed_of(salt + name)}

    @staticmethod
    def value(line: dict) -> torch.Tensor:
        """The tensor of a line, rounded to its dtype, as that dtype; an I64 one counts 0, 1, 2, ... (position_ids)."""
        if line["dtype"] == "I64":
            return torch.arange(int(np.prod(line["shape"]))).reshape(line["shape"])
        return fill(line["shape"], line["scale"], line["offset"], line["seed"]).to(DTYPES[line["dtype"]])

    def add(self, path: str, tensors: list, format: str = "safetensors", metadata: dict | None = None) -> None:
        """format: `safetensors`, or `torch` for a pickle with the dotted names nested at their first dot."""
        more = {"metadata": metadata} if metadata else {}
        self.files.append({"path": path, "format": format, "tensors": tensors} | more)

    def json(self, path: str, value: dict) -> None:
        """A configuration file, stored whole."""
        self.files.append({"path": path, "format": "json", "json": value})

    def text(self, path: str, value: str) -> None:
        """Any other text file (merges.txt), stored whole."""
        self.files.append({"path": path, "format": "text", "text": value})

    def copy(self, path: str, source: str) -> None:
        """A file kept once for several cases: `source` is relative to the case's folder."""
        self.files.append({"path": path, "format": "copy", "from": source})

    def materialise(self, folder: Path, case: Path) -> None:
        """Writes the files themselves below `folder`; `case` is where recipe.json lies, for `copy`."""
        for file in self.files:
            path = folder / file["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = file["format"]
            if kind == "json":
                path.write_text(json.dumps(file["json"], indent=2), encoding="utf-8")
            elif kind == "text":
                path.write_text(file["text"], encoding="utf-8")
            elif kind == "copy":
                path.write_bytes((case / file["from"]).read_bytes())
            elif kind == "safetensors":
                tensors = {line["name"]: self.value(line) for line in file["tensors"]}
                safetensors.torch.save_file(tensors, path, metadata=file.get("metadata", {"format": "pt"}))
            elif kind == "torch":
                nested: dict = {}
                for line in file["tensors"]:
                    outer, inner = line["name"].split(".", 1)
                    nested.setdefault(outer, {})[inner] = self.value(line)
                torch.save(nested, path)
            else:
                raise ValueError(f"{path}: unknown format {kind}")

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.json").write_text(json.dumps({"files": self.files}, separators=(",", ":")))
