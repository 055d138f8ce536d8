"""Writes the trained model in the published formats.

    python export.py WORK OUT

OUT gets sdxl.safetensors (the single file's original key names, f16), image_encoder/{config.json,model.safetensors},
ip-adapter.safetensors, config/, the small files with which diffusers' `from_single_file(config=...)` loads them, and
references/, pictures in styles that the model never saw.
"""
import json
import sys
from pathlib import Path

import safetensors.torch
import torch
from PIL import Image

import model
import pictures
import train
from full_diffusers import CONFIGS

# Pairs of pictures beyond those that were trained on; the first of each is one of the demo's references.
REFERENCES = [50_024, 50_065, 50_022]

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
          "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}


def renamed(state: dict, places: dict, inner=None) -> dict:
    """Each key with its module's prefix (the longest in `places`) replaced, and then the names of `inner`."""
    out = {}
    for key, value in state.items():
        prefix = max((p for p in places if key.startswith(p + ".")), key=len)
        rest = key.removeprefix(prefix + ".")
        first, _, last = rest.rpartition(".")
        out[places[prefix] + "." + ((inner or {}).get(first, first) + "." if first else "") + last] = value
    return out


def original_unet(state: dict) -> dict:
    levels = len(model.UNET["block_out_channels"])
    per = model.UNET["layers_per_block"] + 1
    places = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
              "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0",
              "conv_out": "out.2", "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
              "mid_block.resnets.1": "middle_block.2"}
    for i in range(levels):
        for j in range(per):
            places |= {f"down_blocks.{i}.resnets.{j}": f"input_blocks.{per * i + j + 1}.0",
                       f"down_blocks.{i}.attentions.{j}": f"input_blocks.{per * i + j + 1}.1",
                       f"up_blocks.{i}.resnets.{j}": f"output_blocks.{per * i + j}.0",
                       f"up_blocks.{i}.attentions.{j}": f"output_blocks.{per * i + j}.1"}
        attends = model.UNET["up_block_types"][i].startswith("CrossAttn")
        places |= {f"down_blocks.{i}.downsamplers.0.conv": f"input_blocks.{per * (i + 1)}.0.op",
                   f"up_blocks.{i}.upsamplers.0.conv": f"output_blocks.{per * i + per - 1}.{2 if attends else 1}.conv"}
    return renamed(state, places, RESNET)


def original_vae(state: dict) -> dict:
    levels = len(model.VAE["block_out_channels"])
    places = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        places |= {f"{half}.conv_in": f"{half}.conv_in", f"{half}.conv_norm_out": f"{half}.norm_out", f"{half}.conv_out": f"{half}.conv_out",
                   f"{half}.mid_block.attentions.0": f"{half}.mid.attn_1", f"{half}.mid_block.resnets.0": f"{half}.mid.block_1",
                   f"{half}.mid_block.resnets.1": f"{half}.mid.block_2"}
    for i in range(levels):
        up = f"decoder.up.{levels - 1 - i}"
        places |= {f"encoder.down_blocks.{i}.downsamplers.0.conv": f"encoder.down.{i}.downsample.conv",
                   f"decoder.up_blocks.{i}.upsamplers.0.conv": f"{up}.upsample.conv"}
        for j in range(model.VAE["layers_per_block"] + 1):
            places |= {f"encoder.down_blocks.{i}.resnets.{j}": f"encoder.down.{i}.block.{j}",
                       f"decoder.up_blocks.{i}.resnets.{j}": f"{up}.block.{j}"}
    inner = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "conv_shortcut": "nin_shortcut"}
    out = renamed(state, places, inner)
    # The attention's projections are 1x1 convolutions there.
    return {k: v[..., None, None] if ".attn_1." in k and v.ndim == 2 else v for k, v in out.items()}


def original_open_clip(state: dict) -> dict:
    """OpenCLIP's names: the three projections of an attention in one tensor, the text's projection transposed."""
    state = {k.removeprefix("text_model."): v for k, v in state.items() if not k.endswith("position_ids")}
    out = {"token_embedding.weight": state["embeddings.token_embedding.weight"],
           "positional_embedding": state["embeddings.position_embedding.weight"],
           "text_projection": state["text_projection.weight"].T,
           "logit_scale": torch.zeros(())}
    for kind in ("weight", "bias"):
        out[f"ln_final.{kind}"] = state[f"final_layer_norm.{kind}"]
        for i in range(model.TEXT_2["num_hidden_layers"]):
            old, new = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
            out[f"{new}.attn.in_proj_{kind}"] = torch.cat([state[f"{old}.self_attn.{p}_proj.{kind}"] for p in "qkv"])
            for a, b in (("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                         ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):
                out[f"{new}.{b}.{kind}"] = state[f"{old}.{a}.{kind}"]
    return out


def single_file(base, vae) -> dict:
    text = {"text_model." + k.removeprefix("text_model."): v for k, v in base.text_encoder.state_dict().items()}
    parts = {"model.diffusion_model.": original_unet(base.unet.state_dict()),
             "first_stage_model.": original_vae(vae.state_dict()),
             "conditioner.embedders.0.transformer.": {k: v for k, v in text.items() if not k.endswith("position_ids")},
             "conditioner.embedders.1.model.": original_open_clip(base.text_encoder_2.state_dict())}
    out = {prefix + k: v for prefix, part in parts.items() for k, v in part.items()}
    return out | {"v_pred": torch.zeros(0)}


def half(state: dict) -> dict:
    return {k: v.detach().half().contiguous() for k, v in state.items()}


def configs() -> dict:
    text = {"model_type": "clip_text_model", "layer_norm_eps": 1e-5}
    return {
        "model_index.json": CONFIGS["model_index.json"],
        "scheduler/scheduler_config.json": CONFIGS["scheduler/scheduler_config.json"]
        | {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        "text_encoder/config.json": {"architectures": ["CLIPTextModel"], **text, **model.TEXT},
        "text_encoder_2/config.json": {"architectures": ["CLIPTextModelWithProjection"], **text, **model.TEXT_2},
        "unet/config.json": {"_class_name": "UNet2DConditionModel", **model.UNET},
        "vae/config.json": {"_class_name": "AutoencoderKL", **model.VAE},
    }


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def main(work: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    base = train.load_averaged(model.Base(), work, "base")
    save = safetensors.torch.save_file
    # Names are taken before the adapter's processors are put in.
    save(half(single_file(base, train.calibrated_vae(work))), out / "sdxl.safetensors", {"format": "pt"})
    for name, value in configs().items():
        write_json(out / "config" / name, value)
    if (work / "vision.pt").exists():
        state = {k: v for k, v in train.trained_vision(work).state_dict().items() if not k.endswith("position_ids")}
        (out / "image_encoder").mkdir(exist_ok=True)
        save(half(state), out / "image_encoder/model.safetensors", {"format": "pt"})
        write_json(out / "image_encoder/config.json", {"architectures": ["CLIPVisionModelWithProjection"],
                                                       "model_type": "clip_vision_model", "layer_norm_eps": 1e-5, **model.VISION})
    if (work / "adapter.pt").exists():
        adapter = train.load_averaged(model.Adapter(base), work, "adapter")
        save(half(adapter.state()), out / "ip-adapter.safetensors", {"format": "pt"})
    (out / "references").mkdir(exist_ok=True)
    for i, pair in enumerate(REFERENCES):
        Image.fromarray(pictures.pair(pair)[0][0]).save(out / "references" / f"{i + 1}.png", optimize=True)
    for path in sorted(out.rglob("*.safetensors")):
        print(path.relative_to(out), path.stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
