"""Writes tests/data/weights: small files as torch.save and safetensors write them, for tests/weights.

Run with torch 2.11 and safetensors: python tools/goldens/make_bins.py
"""
import warnings
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parents[2] / "tests/data/weights"


def main():
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    adapter = {
        "image_proj": {
            "proj.weight": base.half(),
            "proj.bias": torch.tensor([0.5, -1.0, 3.0], dtype=torch.bfloat16),
            "norm.weight": torch.nn.Parameter(torch.tensor([1.5, 2.5])),
        },
        "ip_adapter": OrderedDict([("1.to_k_ip.weight", base), ("1.to_v_ip.weight", base.t()), ("3.to_k_ip.weight", base[1:, 1::2])]),
        "scalar": torch.tensor(2.25),
        "empty": torch.empty(0, 4),
        "position_ids": torch.arange(5),
        "mask": torch.tensor([True, False]),
        "wide": torch.tensor([1, 2], dtype=torch.uint16),
        # What a training script may add: values that are no tensors.
        "step": 7, "negative": -70000, "large": 2**40, "huge": 2**80, "lr": 0.5, "flag": True, "none": None,
        "shape": (1, 2, 3, 4, "x"), "list": [1, [2]], "nothing": {},
    }
    torch.save(adapter, OUT / "adapter.bin")
    linear = torch.nn.Linear(2, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.arange(6.0).reshape(3, 2))
        linear.bias.copy_(torch.tensor([7.0, 8.0, 9.0]))
    torch.save(linear.state_dict(), OUT / "state_dict.bin")
    many = {f"block.{i}.weight": torch.full((2,), float(i)) for i in range(60)}  # more than 256 memo entries
    torch.save(many, OUT / "many.bin")
    torch.save(many["block.7.weight"], OUT / "bare.bin")
    torch.save({"a": torch.zeros(2, dtype=torch.float8_e4m3fn)}, OUT / "float8.bin")
    torch.save({"a": torch.zeros(2, dtype=torch.float64)}, OUT / "float64.bin")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"a": base}, OUT / "legacy.bin", _use_new_zipfile_serialization=False)
    tensors = {"weight": base.half(), "bias": torch.tensor([0.5, -1.0, 3.0], dtype=torch.bfloat16),
               "scale": torch.tensor(2.25), "position_ids": torch.arange(5)}
    save_file(tensors, OUT / "small.safetensors", {"modelspec.architecture": "stable-diffusion-xl-v1-base", "format": "pt"})


if __name__ == "__main__":
    main()
