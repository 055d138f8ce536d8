"""The same request as full_diffsynth.py through diffusers' SDXL pipeline, f32 on the CPU, every stage written.

    python full_diffusers.py MODEL_DIR REFERENCE_IMAGE OUT.safetensors [--steps 4 --width 256 --dtype bfloat16 ...]

MODEL_DIR holds sdxl.safetensors (with the VAE's encoder, which diffusers insists on), image_encoder/model.safetensors and
ip-adapter_sdxl.bin. The reference is encoded first and its encoder dropped, then the text encoders, so that about 17 GB
suffice. The sampler is SDXL's own: Euler, leading. Prints one JSON line: seconds of each guided step, their median
without the first, and the peak of resident memory.
"""
import gc
import json
import tempfile
import time
from pathlib import Path

import diffusers
import safetensors.torch
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from diffusers_folder import write_tokenizers
from full_request import options, tell

def text_config(kind, hidden, heads, layers, intermediate, act, pad) -> dict:
    return {"architectures": [kind], "model_type": "clip_text_model", "hidden_size": hidden, "intermediate_size": intermediate,
            "num_attention_heads": heads, "num_hidden_layers": layers, "hidden_act": act, "layer_norm_eps": 1e-5,
            "projection_dim": hidden, "vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 0,
            "eos_token_id": 2, "pad_token_id": pad}


# The configuration of SDXL base 1.0.
CONFIGS = {
    "model_index.json": {
        "_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True, "add_watermarker": None,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"]},
    "unet/config.json": {
        "_class_name": "UNet2DConditionModel", "sample_size": 128, "in_channels": 4, "out_channels": 4,
        "block_out_channels": [320, 640, 1280], "layers_per_block": 2, "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20], "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816},
    "vae/config.json": {
        "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
        "latent_channels": 4, "norm_num_groups": 32, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4},
    "scheduler/scheduler_config.json": {
        "_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1,
        "interpolation_type": "linear", "use_karras_sigmas": False},
    "text_encoder/config.json": text_config("CLIPTextModel", 768, 12, 12, 3072, "quick_gelu", 1),
    "text_encoder_2/config.json": text_config("CLIPTextModelWithProjection", 1280, 20, 32, 5120, "gelu", 1),
}
VISION = dict(hidden_size=1664, intermediate_size=8192, num_hidden_layers=48, num_attention_heads=16, projection_dim=1280,
              hidden_act="gelu", layer_norm_eps=1e-5, image_size=224, patch_size=14)


def write_configs(folder: Path, configs: dict) -> Path:
    """A diffusers folder without weights: these configurations, and CLIP's tokenizers."""
    for name, value in configs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    write_tokenizers(folder)
    return folder


def encode_image(model_dir: Path, reference: Path, resize, vision: dict, dtype=torch.float32) -> torch.Tensor:
    """image_embeds [1, E], the encoder being gone afterwards."""
    image = Image.open(reference).convert("RGB")
    if resize:
        image = image.resize(tuple(resize), Image.Resampling.BICUBIC)
    with torch.device("meta"):
        encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision))
    state = {k: v.to(dtype) for k, v in safetensors.torch.load_file(model_dir / "image_encoder/model.safetensors").items()
             if not k.endswith("position_ids")}
    encoder.load_state_dict(state, assign=True)
    # The only buffer, which no file needs.
    positions = torch.arange(encoder.config.image_size**2 // encoder.config.patch_size**2 + 1)[None]
    encoder.vision_model.embeddings.position_ids = positions
    size = encoder.config.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return encoder.eval()(processor(images=[image], return_tensors="pt").pixel_values.to(dtype)).image_embeds


def main(args, configs=CONFIGS, vision=VISION) -> None:
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    guided, dtype = args.cfg_scale > 1, getattr(torch, args.dtype)
    stages = {"image_embeds": encode_image(args.model_dir, args.reference, args.image_resize, vision, dtype)}
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        write_configs(Path(folder), configs)
        pipe = StableDiffusionXLPipeline.from_single_file(str(args.model_dir / "sdxl.safetensors"), config=folder,
                                                          local_files_only=True, torch_dtype=dtype)
    text = pipe.encode_prompt(args.prompt, negative_prompt=args.negative_prompt, device="cpu",
                              do_classifier_free_guidance=guided)
    for name, value in zip(("text_embeds", "negative_text_embeds", "pooled", "negative_pooled"), text):
        if value is not None:
            stages[name] = value
    pipe.text_encoder = pipe.text_encoder_2 = None
    gc.collect()
    pipe.load_ip_adapter(str(args.model_dir), subfolder="", weight_name="ip-adapter_sdxl.bin", image_encoder_folder=None)
    pipe.set_ip_adapter_scale(args.strength)
    gc.collect()

    def tokens(_module, _input, output):
        if "image_tokens" not in stages:  # negative first where guided
            positive = output[0][-1:]
            stages["image_tokens"] = positive.reshape(1, -1, positive.shape[-1]).clone()

    def output_0(_module, _input, output):
        if "model_output_0" not in stages:
            stages["model_output_0"] = output[0].flip(0).clone()  # positive first

    marks = []

    def mark(_pipe, _step, _t, values):
        marks.append(time.perf_counter())
        stages["latents"] = values["latents"].clone()
        return {}

    pipe.unet.encoder_hid_proj.register_forward_hook(tokens)
    pipe.unet.register_forward_hook(output_0)
    first = []
    pipe.unet.register_forward_pre_hook(lambda *_: first.append(time.perf_counter()) if not first else None)
    shape = (1, pipe.unet.config.in_channels, args.height // pipe.vae_scale_factor, args.width // pipe.vae_scale_factor)
    stages["noise"] = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(args.seed))
    embeds = stages["image_embeds"][None]  # [1, pictures, E]
    image = pipe(
        prompt_embeds=stages["text_embeds"], negative_prompt_embeds=stages.get("negative_text_embeds"),
        pooled_prompt_embeds=stages["pooled"], negative_pooled_prompt_embeds=stages.get("negative_pooled"),
        ip_adapter_image_embeds=[torch.cat([torch.zeros_like(embeds), embeds]) if guided else embeds],
        latents=stages["noise"].to(dtype, copy=True), num_inference_steps=args.steps, guidance_scale=args.cfg_scale, width=args.width,
        height=args.height, callback_on_step_end=mark, output_type="pt").images
    stages["image"] = image.permute(0, 2, 3, 1)
    stages = {k: v.detach().float().contiguous() for k, v in stages.items()}
    assert all(torch.isfinite(v).all() for v in stages.values())
    safetensors.torch.save_file(stages, args.out)
    seconds = [b - a for a, b in zip(first + marks, marks)]
    tell("diffusers " + diffusers.__version__, args, seconds)


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--dtype", default="float32", help="of weights, activations and VAE; the noise is drawn in f32")
    main(parser.parse_args())
