"""VAEs of files of their own: their recipes, and how diffusers takes them."""
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
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


def tiny(v: dict) -> AutoencoderTiny:
    """An AutoencoderTiny of a case's sizes."""
    levels = len(v["encoder_blocks"])
    return AutoencoderTiny(
        encoder_block_out_channels=[v["channels"]] * levels,
        decoder_block_out_channels=[v["channels"]] * levels,
        num_encoder_blocks=v["encoder_blocks"],
        num_decoder_blocks=v["decoder_blocks"],
        scaling_factor=v.get("scaling_factor", 1.0),
    )


def tiny_lines(recipe: Recipe, vae: AutoencoderTiny, v: dict, rename) -> list:
    """Weights that ReLU's halving of the variance does not wear down, and a last convolution about the middle of 0..1."""
    lines = []
    last = max(int(name.split(".")[2]) for name in vae.state_dict() if name.startswith("decoder."))
    for name, tensor in vae.state_dict().items():
        shape, scale, offset = list(tensor.shape), None, None
        if tensor.ndim == 4:
            scale = (2 * 3 / (shape[1] * 9)) ** 0.5 * (0.5 if ".conv.4." in name else 1.0)
        if name.startswith(f"decoder.layers.{last}."):
            scale, offset = (0.05, 0.5) if name.endswith("bias") else (scale * v.get("contrast", 0.1), 0.0)
        lines.append(recipe.line(rename(name), shape, salt=v["path"] + "/", scale=scale, offset=offset))
    return lines


def tiny_original(name: str) -> str:
    """The name in a file that has both halves as they were published: the decoder's clamp is layer 0."""
    half, _, layer, rest = name.split(".", 3)
    return f"taesd_{half}.{int(layer) + (half == 'decoder')}.{rest}"


def add_tiny(recipe: Recipe, v: dict) -> None:
    """`path` is a folder of diffusers' layout, or a file of original names."""
    vae = tiny(v)
    if v["layout"] == "diffusers":
        recipe.json(f"{v['path']}/config.json", {"_class_name": "AutoencoderTiny"} | dict(vae.config))
        recipe.add(f"{v['path']}/diffusion_pytorch_model.safetensors", tiny_lines(recipe, vae, v, lambda name: name))
    else:
        recipe.add(v["path"], tiny_lines(recipe, vae, v, tiny_original), "torch")


def load_tiny(folder: Path, v: dict) -> AutoencoderTiny:
    """TAESD by diffusers' reader, or by its names."""
    path = folder / v["path"]
    if v["layout"] == "diffusers":
        return AutoencoderTiny.from_pretrained(path, torch_dtype=torch.float32)
    vae, nested = tiny(v), torch.load(path)
    given = {f"{outer}.{inner}": value for outer, inners in nested.items() for inner, value in inners.items()}
    vae.load_state_dict({name: given[tiny_original(name)] for name in vae.state_dict()})
    return vae.eval()


def starts(side: int, tile: int) -> list[int]:
    """Where tiles of one size begin: as few as overlap by a quarter at least, evenly placed. diffusers' own tiles are of several sizes,
    the last ones as small as the overlap."""
    if side <= tile:
        return [0]
    rest, step = side - tile, tile - tile // 4
    further = -(-rest // step)
    return [(k * rest + further // 2) // further for k in range(further + 1)]


def in_tiles(vae: AutoencoderKL, x: torch.Tensor, tile: int, run, scales: tuple[int, int]) -> torch.Tensor:
    """Runs tiles of `x` and joins them, rows of tiles last, with diffusers' own blending over all that two tiles share."""

    def joined(parts, at, blend, dim):
        out = parts[0]
        for start, part in zip(at[1:], parts[1:]):
            start *= scales[1]
            part = blend(out, part.clone(), out.shape[dim] - start)
            out = torch.cat([out.narrow(dim, 0, start), part], dim)
        return out

    ys, xs = (starts(side // scales[0], tile) for side in x.shape[2:])
    cut = tile * scales[0]
    rows = []
    for y in ys:
        row = x[:, :, y * scales[0] : y * scales[0] + cut]
        parts = [run(row[:, :, :, at * scales[0] : at * scales[0] + cut]) for at in xs]
        rows.append(joined(parts, xs, vae.blend_h, 3))
    return joined(rows, ys, vae.blend_v, 2)


def tile(vae: AutoencoderKL, side: int) -> None:
    """Makes a VAE decode and encode in tiles of so many pixels a side."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)

    def decode(z, return_dict=True, generator=None):
        del return_dict, generator
        return (in_tiles(vae, z, side // factor, lambda z: vae.decoder(vae.post_quant_conv(z)), (1, factor)),)

    def encode(x, return_dict=True):
        del return_dict
        moments = in_tiles(vae, x, side // factor, lambda x: vae.quant_conv(vae.encoder(x)), (factor, 1))
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))

    vae.decode, vae.encode = decode, encode
