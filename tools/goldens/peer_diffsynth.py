"""What the DiffSynth goldens share: the peer's tokenizers, its key tables, and a recorder of every stage of its pipeline.

Uses DiffSynth 1.1.9 as installed (requirements-diffsynth.txt); nothing of it is copied.
"""
import ast
import inspect
import json
import shutil
import tempfile
import textwrap
import time
from pathlib import Path

import diffsynth
import numpy as np
import torch
from diffsynth.pipelines.sdxl_image import SDXLImagePipeline
from diffsynth.prompters import SDXLPrompter
from PIL import Image


def prompter() -> SDXLPrompter:
    """The peer's prompter with the full CLIP vocabulary for both encoders.

    The 1.1.9 wheel's merges.txt for bigG is cut short, so that rare words split differently there. Its settings (padding
    with "!", id 0) are kept, its vocabulary is replaced by CLIP-L's, which is the same 49,408 entries.
    """
    configs = Path(diffsynth.__file__).parent / "tokenizer_configs"
    first, second = configs / "stable_diffusion/tokenizer", configs / "stable_diffusion_xl/tokenizer_2"
    assert json.loads((first / "vocab.json").read_text()) == json.loads((second / "vocab.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        for source, names in ((first, ("vocab.json", "merges.txt")),
                              (second, ("tokenizer_config.json", "special_tokens_map.json"))):
            for name in names:
                shutil.copyfile(source / name, Path(folder) / name)
        out = SDXLPrompter(tokenizer_2_path=folder)
    assert len(out.tokenizer_2.bpe_ranks) == len(out.tokenizer.bpe_ranks) == 48894
    assert out.tokenizer_2.pad_token_id == 0 and out.tokenizer.pad_token_id == 49407
    return out


def key_table(converter) -> dict:
    """`rename_dict` of a converter's `from_civitai`: original key -> the peer's name(s)."""
    for owner in type(converter).__mro__[:-1]:
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(owner.from_civitai)))):
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "rename_dict":
                return ast.literal_eval(node.value)
    raise AssertionError(f"no rename_dict in {converter}")


class Recorder:
    """Runs the peer's own `SDXLImagePipeline.__call__` and notes what passes between its stages."""

    def __init__(self, pipe: SDXLImagePipeline):
        self.pipe = pipe
        self.clear()
        make_noise, encode, decode = pipe.generate_noise, pipe.encode_prompt, pipe.decode_image

        def generate_noise(*args, **kwargs):
            self.stages["noise"] = make_noise(*args, **kwargs)
            return self.stages["noise"].clone()

        def encode_prompt(*args, positive=True, **kwargs):
            out = encode(*args, positive=positive, **kwargs)
            prefix = "" if positive else "negative_"
            self.stages[prefix + "text_embeds"] = out["encoder_hidden_states"]
            self.stages[prefix + "pooled"] = out["add_text_embeds"]
            return out

        def decode_image(latents, **kwargs):
            self.stages["latents"] = latents
            return decode(latents, **kwargs)

        pipe.generate_noise, pipe.encode_prompt, pipe.decode_image = generate_noise, encode_prompt, decode_image

    def clear(self):
        self.stages, self.outputs, self.seconds = {}, [], []

    def watch(self, name: str, model) -> None:
        """Attaches to a model when it is there; the models may come and go one at a time."""
        def first(key, change=lambda x: x):
            def hook(_module, _input, output):
                self.stages.setdefault(key, change(output).clone())
            return hook

        def two(_module, _input, output):
            if len(self.outputs) < 2:
                self.outputs.append(output.clone())

        if name == "ipadapter_image_encoder":
            model.register_forward_hook(first("image_embeds"))
        elif name == "ipadapter":  # called for the positive branch first
            model.image_proj.register_forward_hook(first("image_tokens", lambda x: x.reshape(1, -1, x.shape[-1])))
        elif name == "unet":
            model.conv_out.register_forward_hook(two)
        elif name == "vae_decoder":
            model.register_forward_hook(first("image", lambda x: (x.permute(0, 2, 3, 1) / 2 + 0.5).clip(0, 1)))

    def timed(self, timesteps):
        for t in timesteps:
            start = time.perf_counter()
            yield t
            self.seconds.append(time.perf_counter() - start)

    def run(self, request: dict, images: list | None) -> dict:
        """The stages of one request (the `request` of case.json), all f32."""
        self.clear()
        guided = request["cfg_scale"] != 1.0
        adapters = request["ip_adapters"]
        picture = self.pipe(
            request["prompt"], negative_prompt=request["negative_prompt"], cfg_scale=request["cfg_scale"],
            num_inference_steps=request["steps"], width=request["width"], height=request["height"], seed=request["seed"],
            ipadapter_images=images, ipadapter_scale=adapters[0]["strength"] if adapters else 1.0,
            ipadapter_use_instant_style=request["instant_style"], progress_bar_cmd=self.timed)
        stages = self.stages
        if not guided:
            stages = {k: v for k, v in stages.items() if not k.startswith("negative_")}
        stages["model_output_0"] = torch.cat(self.outputs[:2 if guided else 1])
        # The peer's own picture is the truncated float.
        truncated = (stages["image"][0].numpy() * 255).astype("uint8")
        assert (truncated == np.array(picture)).all()
        return {k: v.detach().float().contiguous() for k, v in stages.items()}


def open_images(folder: Path, request: dict) -> list | None:
    """The reference pictures as the peer's sample prepares them: RGB, then PIL's default resize."""
    if not request["ip_adapters"]:
        return None
    images = [Image.open(folder / name).convert("RGB") for name in request["ip_adapters"][0]["images"]]
    size = request["image_resize"]
    return [image.resize(tuple(size)) if size else image for image in images]
