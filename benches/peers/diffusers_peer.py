"""Times diffusers' SDXL pipeline with an IP-Adapter on the files of `bench e2e` and prints its row as JSON.

    python diffusers_peer.py --model DIR --ip-adapter-image PNG --size 512 --steps 4 -r 3

DIR holds sdxl.safetensors, image_encoder/ and ip-adapter_sdxl.bin; assets/demo, the bundled model, works too.
"""
import gc
import json
import os
import tempfile
import time
from pathlib import Path

import diffusers
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

import peer
from full_diffusers import CONFIGS, VISION, encode_image, write_configs
from make_demo import ASSETS, second_encoder, with_tokenizers


def configure(folder: Path, model: Path) -> Path:
    """Writes the model's configurations and CLIP's tokenizers, which no single file carries."""
    return with_tokenizers(folder) if model.resolve() == ASSETS else write_configs(folder, CONFIGS)


def load(args, config: Path):
    """The pipeline, and the image's embedding where that was made before."""
    dtype, embeds = peer.DTYPES[args.dtype], None
    demo = args.model.resolve() == ASSETS
    if args.image_before == "yes":
        vision = json.loads((ASSETS / "image_encoder/config.json").read_text()) if demo else VISION
        embeds = encode_image(args.model, args.ip_adapter_image, None, vision).to(dtype)
        gc.collect()
    # The bundled model's text encoders are equally wide, by which diffusers tells them apart.
    extra = {"text_encoder_2": second_encoder().to(dtype)} if demo else {}
    pipe = StableDiffusionXLPipeline.from_single_file(str(args.model / "sdxl.safetensors"), config=str(config),
                                                      local_files_only=True, torch_dtype=dtype, **extra)
    gc.collect()
    adapter = peer.adapter_file(args.model)
    pipe.load_ip_adapter(str(args.model), subfolder="", weight_name=adapter.name, local_files_only=True,
                         image_encoder_folder="image_encoder" if embeds is None else None)
    gc.collect()
    pipe.set_progress_bar_config(disable=True)
    pipe.to(args.device)
    pipe.vae.to(peer.DTYPES[peer.vae_dtype(args)])
    return pipe, embeds


def arrange(pipe, args) -> None:
    """The memory format, and torch.compile, which compiles at the first call."""
    if args.memory_format == "channels-last":
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if args.compile:
        pipe.unet.compile(mode=args.compile)
        pipe.vae.decoder.compile(mode=args.compile)


def main(args) -> dict:
    marks = {"imported": time.monotonic()}
    peer.settle(args)
    with tempfile.TemporaryDirectory() as folder:
        config = args.config or configure(Path(folder), args.model)
        begin = time.perf_counter()
        pipe, embeds = load(args, config)
        loaded = time.perf_counter() - begin
    marks["loaded"] = time.monotonic()
    arrange(pipe, args)
    clock, keep = peer.Clock(args.device), {}
    pipe.encode_prompt = clock.timed("text", pipe.encode_prompt)
    prepare = pipe.prepare_ip_adapter_image_embeds
    pipe.prepare_ip_adapter_image_embeds = prepare if embeds is not None else clock.timed("image", prepare)
    decode, postprocess = pipe.vae.decode, pipe.image_processor.postprocess

    def decoded(latents, **kwargs):
        keep["image"] = decode(latents.to(pipe.vae.dtype), **kwargs)[0]
        return (keep["image"],)

    pipe.vae.decode = clock.timed("decode", decoded)
    pipe.image_processor.postprocess = clock.timed("decode", postprocess)
    scale = pipe.scheduler.scale_model_input

    def begun(*inputs):  # what a step does first
        if not clock.marks:
            clock.mark()
            marks["first_step_begin"] = time.monotonic()
        return scale(*inputs)

    pipe.scheduler.scale_model_input = begun

    def step(_pipe, _index, _t, values):
        clock.mark()
        if args.start:
            print(json.dumps(marks | {"first_step_end": time.monotonic()}), flush=True)
            os._exit(0)
        keep["latents"] = values["latents"]
        return {}

    image = {"ip_adapter_image": Image.open(args.ip_adapter_image).convert("RGB")}
    if embeds is not None:
        embeds = embeds[None].to(args.device)  # [1, images, E]
        guided = args.cfg_scale > 1
        image = {"ip_adapter_image_embeds": [torch.cat([torch.zeros_like(embeds), embeds]) if guided else embeds]}

    def draw():
        generator = torch.Generator("cpu").manual_seed(args.seed)
        out = pipe(args.prompt, num_inference_steps=args.steps, guidance_scale=args.cfg_scale, width=args.size,
                   height=args.size, generator=generator, callback_on_step_end=step, **image)
        return out.images[0], keep.values()

    mode = {None: "eager", "default": "compile"}.get(args.compile, f"compile {args.compile}")
    host = {"engine": f"diffusers {mode} {args.memory_format}", "version": diffusers.__version__,
            "build": f"torch {torch.__version__}", "commit": None, "compiled": args.compile, "memory_format": args.memory_format}
    return peer.measure(args, clock, draw, host, loaded, [] if embeds is None else ["image"])


if __name__ == "__main__":
    parser = peer.options(__doc__)
    parser.add_argument("--compile", metavar="MODE", help="torch.compile UNet and VAE decoder: default, reduce-overhead, max-autotune")
    parser.add_argument("--memory-format", choices=("contiguous", "channels-last"), default="contiguous", help="of UNet and VAE")
    parser.add_argument("--config", type=Path, help="a folder that `configure` has written; default: made anew")
    parser.add_argument("--start", action="store_true", help="end after the first step and print when it was reached (start.py)")
    print(json.dumps(main(parser.parse_args())))
