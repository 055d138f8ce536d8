"""Makes checkpoints of the exported files, so that a stage can go on from the committed model.

    python restore.py ASSETS WORK

WORK gets base.pt, vae.pt, vision.pt and adapter.pt with averaged weights alone (f16's precision): a stage that is to go on
from them takes them as `--start`.
"""
import sys
import tempfile
from pathlib import Path

import safetensors.torch
import torch
from diffusers import StableDiffusionXLPipeline

import model
import train
from make_demo import second_encoder, with_tokenizers


def adapter_state(assets: Path, base) -> dict:
    adapter = model.Adapter(base)
    state = {}
    for key, value in safetensors.torch.load_file(assets / "ip-adapter.safetensors").items():
        part, rest = key.split(".", 1)
        if part == "ip_adapter":
            index, rest = rest.split(".", 1)
            part = f"strands.{(int(index) - 1) // 2}"
        state[f"{part}.{rest}"] = value.float()
    adapter.load_state_dict(state)
    return adapter.state_dict()


def main(assets: Path, work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        pipe = StableDiffusionXLPipeline.from_single_file(
            str(assets / "sdxl.safetensors"), config=str(with_tokenizers(Path(folder))), local_files_only=True,
            torch_dtype=torch.float32, text_encoder_2=second_encoder())
    base = model.Base()
    for name in ("unet", "text_encoder", "text_encoder_2"):
        getattr(base, name).load_state_dict(getattr(pipe, name).state_dict())
    vision = train.vision_with_heads()
    state = {k: v.float() for k, v in safetensors.torch.load_file(assets / "image_encoder/model.safetensors").items()}
    result = vision["vision"].load_state_dict(state, strict=False)
    assert all(k.endswith("position_ids") for k in result.missing_keys) and not result.unexpected_keys, result
    # The latents' statistics are in the exported weights already.
    parts = {"base": base.state_dict(), "vae": pipe.vae.state_dict(), "vision": vision.state_dict(),
             "adapter": adapter_state(assets, base)}
    for name, state in parts.items():
        checkpoint = {"shadow": {k: v.clone() for k, v in state.items()}}
        torch.save(checkpoint | ({"calibrated": True} if name == "vae" else {}), work / f"{name}.pt")


if __name__ == "__main__":
    torch.manual_seed(0)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
