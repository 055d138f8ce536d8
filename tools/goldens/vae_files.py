"""VAEs of files of their own: their recipes, and how diffusers takes them."""
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

import diffusers_folder
from recipe import Recipe


def configured(v: dict, sample_size: int = 32) -> AutoencoderKL:
    """An AutoencoderKL of a case's sizes."""
    levels = len(v["channels"])
    return AutoencoderKL(
        block_out_channels=v["channels"],
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        layers_per_block=v["layers"],
        norm_num_groups=v["groups"],
        latent_channels=4,
        sample_size=sample_size,
        scaling_factor=v.get("scaling_factor", 0.13025),
    )


def original(name: str, levels: int) -> str:
    """The original name of a tensor of diffusers' VAE."""
    side, rest = name.split(".", 1)
    pairs = [("mid_block.resnets.0.", "mid.block_1."), ("mid_block.resnets.1.", "mid.block_2.")]
    pairs += [("mid_block.attentions.0.group_norm.", "mid.attn_1.norm."), ("conv_norm_out.", "norm_out.")]
    pairs += [(f"mid_block.attentions.0.to_{k}.", f"mid.attn_1.{k}.") for k in "qkv"]
    pairs += [("mid_block.attentions.0.to_out.0.", "mid.attn_1.proj_out."), ("conv_shortcut.", "nin_shortcut.")]
    pairs += [(f"up_blocks.{i}.", f"up.{levels - 1 - i}.") for i in range(levels)]
    pairs += [("down_blocks.", "down."), ("resnets.", "block.")]
    pairs += [("downsamplers.0.", "downsample."), ("upsamplers.0.", "upsample.")]
    for new, old in pairs:
        rest = rest.replace(new, old)
    return name if side in ("quant_conv", "post_quant_conv") else f"{side}.{rest}"


def add(recipe: Recipe, v: dict) -> None:
    """`path` is a folder of diffusers' layout, or a file of original names below `prefix`."""
    vae = configured(v)
    if v["layout"] == "diffusers":
        diffusers_folder.add_saved(recipe, vae, v["path"], v.get("dtype", "F32"))
        return
    lines = []
    for name, tensor in vae.state_dict().items():
        renamed = original(name, len(v["channels"]))
        # The attention is of 1x1 convolutions.
        shape = list(tensor.shape) + [1, 1] * (".attn_1." in renamed and tensor.ndim == 2)
        lines.append(recipe.line(v["prefix"] + renamed, shape, v.get("dtype", "F32"), salt=v["path"] + "/"))
    recipe.add(v["path"], lines, "torch" if v["path"].endswith(".bin") else "safetensors")


def load(folder: Path, v: dict) -> AutoencoderKL:
    """The VAE by diffusers' own readers; a file without a configuration gets one of the sizes that its tensors have."""
    path = folder / v["path"]
    if v["layout"] == "diffusers":
        return AutoencoderKL.from_pretrained(path, torch_dtype=torch.float32)
    with tempfile.TemporaryDirectory() as config:
        configured(v).save_config(config)
        vae = AutoencoderKL.from_single_file(str(path), config=config, torch_dtype=torch.float32)
    given, state = load_file(path), vae.state_dict()
    for name, tensor in state.items():
        stored = given[v["prefix"] + original(name, len(v["channels"]))]
        assert torch.equal(stored.float().reshape(tensor.shape), tensor), name
    return vae
