"""Names and shapes of the published SDXL files, as diffusers 0.42.1 and transformers 5 have them.

    python layouts.py DIFFSYNTH_MODELS_FOLDER OUT

The original keys of the single file come from DiffSynth 1.1.9's key tables (read, not run), the names they get from
diffusers' own converters, the shapes from the peers' models on the meta device. Written to OUT:

single_file.tsv  original key, part, diffusers name, diffusers shape, `0`/`1`/`2` for a third of a fused tensor or `T` for
                 a transpose
vision.tsv       encoder (bigg, h), transformers name, shape
adapter.tsv      adapter key number, the attention processor that diffusers gives it, width
"""
import ast
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as s
from transformers import (CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionConfig,
                          CLIPVisionModelWithProjection)

torch.set_num_threads(1)

UNET = dict(sample_size=128, in_channels=4, out_channels=4, block_out_channels=(320, 640, 1280), layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20), cross_attention_dim=2048,
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816)
VAE = dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, scaling_factor=0.13025,
           down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
TEXT = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768)
TEXT_2 = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280,
              hidden_act="gelu")
VISION = {
    "bigg": dict(hidden_size=1664, intermediate_size=8192, num_hidden_layers=48, num_attention_heads=16, patch_size=14,
                 projection_dim=1280, hidden_act="gelu"),
    "h": dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14,
              projection_dim=1024, hidden_act="gelu"),
}


def originals(folder: Path) -> list[str]:
    """Every original key that DiffSynth's tables know."""
    keys = set()
    for file in ("sdxl_unet", "sdxl_text_encoder", "sd_vae_decoder", "sd_vae_encoder"):
        for node in ast.walk(ast.parse((folder / f"{file}.py").read_text())):
            if isinstance(node, ast.Dict):
                for key in node.keys:
                    if isinstance(key, ast.Constant) and isinstance(key.value, str):
                        keys.add(key.value)
    prefixes = ("model.diffusion_model.", "conditioner.embedders.", "first_stage_model.")
    # Kolors' projection of another text encoder is in the same table.
    return sorted(k for k in keys if k.startswith(prefixes) and "text_intermediate_proj" not in k and "encoder_hid_proj" not in k)


def shapes(module) -> dict:
    return {k: tuple(v.shape) for k, v in module.state_dict().items()}


def main(folder: Path, out: Path) -> None:
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
        text, text_2 = CLIPTextModel(CLIPTextConfig(**TEXT)), CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_2))
        vision = {k: CLIPVisionModelWithProjection(CLIPVisionConfig(**v)) for k, v in VISION.items()}
    named = {"text_model." + k.removeprefix("text_model."): v for k, v in shapes(text).items() if not k.endswith("position_ids")}
    # DiffSynth leaves out CLIP-L's last layer, which it does not run; the file has transformers' names for all of them.
    keys = sorted({*originals(folder), *("conditioner.embedders.0.transformer." + k for k in named)})
    # A tensor says which key it is: 4 * number, plus the third of a fused one.
    state, width = {}, TEXT_2["hidden_size"]
    for n, key in enumerate(keys):
        state[key] = torch.tensor(4 * n, dtype=torch.int32).expand(3 * width if "in_proj" in key else width, width)
        if "in_proj" in key:
            state[key] = torch.arange(3, dtype=torch.int32).repeat_interleave(width)[:, None] + state[key][:, :1]
    parts = {
        "unet": (s.convert_ldm_unet_checkpoint(state, dict(unet.config)), shapes(unet)),
        "text_encoder": (s.convert_ldm_clip_checkpoint(state), named),
        "text_encoder_2": (s.convert_open_clip_checkpoint(text_2, state, prefix="conditioner.embedders.1.model."), shapes(text_2)),
        "vae": (s.convert_ldm_vae_checkpoint(state, dict(vae.config)), shapes(vae)),
    }
    lines, used = [], set()
    for part, (converted, shape) in parts.items():
        ignored = {k for k in converted if k.endswith("position_ids")}
        assert set(converted) - ignored == {k for k in shape if not k.endswith("position_ids")}, (part, set(converted) ^ set(shape))
        for name, tensor in converted.items():
            if name in ignored:
                continue
            code = int(tensor.reshape(-1)[0])
            key = keys[code // 4]
            used.add(key)
            note = "T" if key.endswith("text_projection") else str(code % 4) if "in_proj" in key else ""
            lines.append((key, part, name, "x".join(map(str, shape[name])), note))
    assert {k for k in keys if k not in used and not k.endswith("position_ids")} == set(), set(keys) - used
    lines.sort()
    out.mkdir(parents=True, exist_ok=True)
    (out / "single_file.tsv").write_text("".join("\t".join(x).rstrip() + "\n" for x in lines))
    (out / "vision.tsv").write_text("".join(
        f"{kind}\t{k}\t{'x'.join(map(str, v))}\n" for kind, m in vision.items() for k, v in shapes(m).items() if not k.endswith("position_ids")))
    numbers, rows = 1, []
    for name in unet.attn_processors:
        if not name.endswith("attn1.processor"):
            module = unet.get_submodule(name.removesuffix(".processor"))
            rows.append(f"{numbers}\t{name}\t{module.to_k.out_features}\n")
            numbers += 2
    (out / "adapter.tsv").write_text("".join(rows))
    print(len(keys), "keys,", len(lines), "tensors;", {p: sum(x[1] == p for x in lines) for p in parts})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
