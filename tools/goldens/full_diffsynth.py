"""DiffSynth's published SDXL + IP-Adapter sample at full size, f32 on the CPU, every stage written.

    python full_diffsynth.py MODEL_DIR REFERENCE_IMAGE OUT.safetensors [--steps 4 --width 256 --height 256 ...]

MODEL_DIR holds sdxl.safetensors, image_encoder/model.safetensors and ip-adapter_sdxl.bin. The pipeline is DiffSynth
1.1.9's own; its models are loaded by its own loader just before their stage and dropped after it, in place of its
moves between devices, so that about 14 GB suffice (f32: image encoder 7.4, text 3.3, UNet 10.3, adapter 1.4).
Prints one JSON line: seconds of each guided step, their median without the first, and the peak of resident memory.
"""
import gc
import json
from pathlib import Path

import safetensors.torch
import torch
from diffsynth.models import (IpAdapterXLCLIPImageEmbedder, SDXLIpAdapter, SDXLTextEncoder, SDXLTextEncoder2, SDXLUNet,
                              SDXLVAEDecoder)
from diffsynth.models.model_manager import load_model_from_single_file
from diffsynth.models.utils import load_state_dict
from diffsynth.pipelines.sdxl_image import SDXLImagePipeline

from full_request import options, tell
from peer_diffsynth import Recorder, open_images, prompter

# Model of the pipeline -> class, file, prefix of its tensors in that file, the peer's name for the layout.
MODELS = {
    "text_encoder": (SDXLTextEncoder, "sdxl.safetensors", "conditioner.embedders.0.", "civitai"),
    "text_encoder_2": (SDXLTextEncoder2, "sdxl.safetensors", "conditioner.embedders.1.", "civitai"),
    "unet": (SDXLUNet, "sdxl.safetensors", "model.diffusion_model.", "civitai"),
    "vae_decoder": (SDXLVAEDecoder, "sdxl.safetensors", "first_stage_model.", "civitai"),
    "ipadapter_image_encoder": (IpAdapterXLCLIPImageEmbedder, "image_encoder/model.safetensors", "", "diffusers"),
    "ipadapter": (SDXLIpAdapter, "ip-adapter_sdxl.bin", None, "civitai"),
}


def tensors(path: Path, prefix: str | None, dtype: torch.dtype) -> dict:
    """The tensors of one part of a file in that type; a `.bin` (no prefix) as the peer reads it, nested."""
    if prefix is None:
        return load_state_dict(str(path), torch_dtype=None)
    with safetensors.torch.safe_open(path, framework="pt") as file:
        return {k: file.get_tensor(k).to(dtype) for k in file.keys() if k.startswith(prefix)}


class Staged(SDXLImagePipeline):
    """The peer's pipeline, whose models exist only where it asks for them on the device."""

    def __init__(self, folder: Path, models: dict, device: str = "cpu", dtype: torch.dtype = torch.float32):
        super().__init__(device=device, torch_dtype=dtype)
        self.folder, self.models, self.recorder = folder, models, None
        self.prompter = prompter()

    def load_models_to_device(self, loadmodel_names=()):
        for name in self.models:
            # The adapter is small, and the peer sets its mode before it asks for it.
            if name not in loadmodel_names and name != "ipadapter":
                self.put(name, None)
        gc.collect()
        for name in loadmodel_names:
            if name in self.models and getattr(self, name) is None:
                self.load(name)

    def load(self, name: str):
        kind, file, prefix, layout = self.models[name]
        state = tensors(self.folder / file, prefix, self.torch_dtype)
        _, (model,) = load_model_from_single_file(state, [name], [kind], layout, self.torch_dtype, self.device)
        model.requires_grad_(False)
        self.put(name, model)
        if self.recorder is not None:
            self.recorder.watch(name, model)

    def put(self, name: str, model):
        setattr(self, name, model)
        if name.startswith("text_encoder"):
            self.prompter.fetch_models(self.text_encoder, self.text_encoder_2)


def arguments():
    parser = options(__doc__)
    parser.add_argument("--instant-style", action="store_true")
    return parser.parse_args()


def main(args, models=MODELS) -> None:
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    request = {
        "prompt": args.prompt, "negative_prompt": args.negative_prompt, "steps": args.steps, "cfg_scale": args.cfg_scale,
        "width": args.width, "height": args.height, "seed": args.seed, "instant_style": args.instant_style,
        "ip_adapters": [{"path": "ip-adapter_sdxl.bin", "images": [args.reference.name], "strength": args.strength}],
        "image_resize": args.image_resize}
    pipe = Staged(args.model_dir, models)
    pipe.recorder = recorder = Recorder(pipe)
    pipe.load("ipadapter")
    stages = recorder.run(request, open_images(args.reference.parent, request))
    assert all(torch.isfinite(v).all() for v in stages.values())
    safetensors.torch.save_file(stages, args.out, metadata={"request": json.dumps(request)})
    tell("diffsynth 1.1.9", args, recorder.seconds)


if __name__ == "__main__":
    main(arguments())
