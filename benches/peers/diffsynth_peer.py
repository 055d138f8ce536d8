"""Times DiffSynth 1.1.9's SDXL pipeline with an IP-Adapter on the files of `bench e2e` and prints its row as JSON.

    python diffsynth_peer.py --model DIR --ip-adapter-image PNG --size 512 --steps 4 -r 3

DIR holds sdxl.safetensors, image_encoder/ and ip-adapter_sdxl.bin. The bundled model cannot be run: DiffSynth has no v
prediction and its norms have 32 groups. small.py writes a small model that it takes.
"""
import contextlib
import sys
import time
from importlib import metadata

import torch
from diffsynth.models.utils import load_state_dict
from diffsynth.pipelines.sdxl_image import SDXLImagePipeline
from PIL import Image

import peer
from full_diffsynth import MODELS, Staged
from peer_diffsynth import prompter
from small import DEPTH, is_small
from small_diffsynth import Models


class Kept(Staged):
    """The peer's pipeline, whose models stay once they are loaded."""

    def load_models_to_device(self, loadmodel_names=()):
        pass


def load_small(args) -> SDXLImagePipeline:
    models, pipe = Models(DEPTH), SDXLImagePipeline(device=args.device, torch_dtype=peer.DTYPES[args.dtype])
    models.load(*(load_state_dict(str(args.model / name)) for name in
                  ("sdxl.safetensors", "image_encoder/model.safetensors", "ip-adapter_sdxl.bin")))
    pipe.prompter = prompter()
    for name in MODELS:
        setattr(pipe, name, getattr(models, name).to(args.device, pipe.torch_dtype))
    pipe.prompter.fetch_models(pipe.text_encoder, pipe.text_encoder_2)
    pipe.load_models_to_device = lambda *_: None
    return pipe


def load(args, image):
    """The pipeline, and the image's embedding where that was made before."""
    if is_small(args.model):
        pipe = load_small(args)
    else:
        pipe = Kept(args.model, MODELS, args.device, peer.DTYPES[args.dtype])
        names = list(MODELS)
        names.remove("ipadapter_image_encoder")
        pipe.load("ipadapter_image_encoder")
        if args.image_before == "no":
            [pipe.load(name) for name in names]
    if args.image_before == "no":
        return pipe, None
    embeds = pipe.ipadapter_image_encoder([image])
    pipe.ipadapter_image_encoder = None
    if isinstance(pipe, Kept):
        [pipe.load(name) for name in names]
    return pipe, embeds


def main(args) -> dict:
    peer.settle(args)
    image = Image.open(args.ip_adapter_image).convert("RGB")
    begin = time.perf_counter()
    pipe, embeds = load(args, image)
    loaded = time.perf_counter() - begin
    clock, keep = peer.Clock(args.device), {}
    pipe.encode_prompt = clock.timed("text", pipe.encode_prompt)
    encoder = pipe.ipadapter_image_encoder
    # A plain object in the module's place; the pipeline only calls it.
    encode = clock.timed("image", encoder) if embeds is None else lambda _images: embeds
    pipe.__dict__["ipadapter_image_encoder"] = encode
    pipe._modules.pop("ipadapter_image_encoder", None)
    adapter = pipe.ipadapter
    adapter.forward = clock.timed("condition", adapter.forward)
    pipe.decode_image = clock.timed("decode", pipe.decode_image)

    def latents(_module, inputs):
        keep["latents"] = inputs[0]

    def decoded(_module, _inputs, output):
        keep["image"] = output

    pipe.vae_decoder.register_forward_pre_hook(latents)
    pipe.vae_decoder.register_forward_hook(decoded)

    def timesteps(values):
        clock.mark()
        for t in values:
            yield t
            clock.mark()

    def draw():
        picture = pipe(args.prompt, negative_prompt="", cfg_scale=args.cfg_scale, num_inference_steps=args.steps,
                       width=args.size, height=args.size, seed=args.seed, ipadapter_images=[image],
                       progress_bar_cmd=timesteps)
        return picture, keep.values()

    host = {"engine": "diffsynth eager", "version": metadata.version("diffsynth"), "build": f"torch {torch.__version__}", "commit": None}
    return peer.measure(args, clock, draw, host, loaded, [] if embeds is None else ["image"])


if __name__ == "__main__":
    arguments = peer.options(__doc__).parse_args()
    with contextlib.redirect_stdout(sys.stderr):  # the peer's loader prints what it loads
        result = main(arguments)
    print(peer.json.dumps(result))
