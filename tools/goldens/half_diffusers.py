"""How far diffusers itself is from its own f32 in halves, for a golden case: what the CUDA backend's figures stand beside.

    python half_diffusers.py euler        # the dtype's row; the VAE in bf16 and in f32

Weights and activations in the dtype, on the CPU, from the case's noise; of no use for samplers that draw more of it, which
diffusers does in the dtype. tests/cuda/cases.rs prints Braid's own figures.
"""
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

import diffusers_folder
import make_diffusers
from make_diffusers import CASES


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.float() - want).norm() / want.norm())


def run(folder: Path, name: str, dtype: torch.dtype, decoder: torch.dtype) -> str:
    case, want = CASES[name], load_file(make_diffusers.GOLDENS / name / "stages.safetensors")
    peer, request = make_diffusers.Peer(folder, case), case["request"]
    pipe, found = peer.pipe.to(dtype), {}
    pipe.vae.to(decoder)
    decode = pipe.vae.decode
    pipe.vae.decode = lambda z, **more: decode(z.to(decoder), **more)

    def last(_pipe, _step, _t, values):
        found["latents"] = values["latents"].clone()
        return {}

    picture = pipe(
        prompt=request["prompt"], negative_prompt=request["negative_prompt"], height=request["height"],
        width=request["width"], num_inference_steps=request["steps"], guidance_scale=request["cfg_scale"],
        latents=want["noise"].to(dtype), callback_on_step_end=last, output_type="pt", ip_adapter_image=peer.images() or None,
        num_images_per_prompt=request["batch"], guidance_rescale=request["guidance_rescale"],
        clip_skip=request["clip_skip"], eta=request["eta"],
    ).images.float().permute(0, 2, 3, 1)
    error = ((255 * picture).round() - (255 * want["image"]).round()).square().mean()
    psnr = 10 * torch.log10(255**2 / error)
    return f"{name} {dtype}, VAE {decoder}: latents {relative(found['latents'], want['latents']):.1e}, {psnr:.1f} dB"


def main() -> None:
    torch.set_num_threads(1)
    make_diffusers.diffusers.logging.set_verbosity_error()
    make_diffusers.transformers.logging.disable_progress_bar()
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            recipe = diffusers_folder.build(CASES[name], make_diffusers.GOLDENS / "shared")
            recipe.materialise(Path(folder), make_diffusers.GOLDENS / name)
            for dtype in (torch.float16, torch.bfloat16):
                for decoder in (torch.bfloat16, torch.float32):
                    print(run(Path(folder), name, dtype, decoder), flush=True)


if __name__ == "__main__":
    main()
