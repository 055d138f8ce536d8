"""Writes tests/data/fuzz: small inputs of every kind, where tests/fuzz begins. Needs nothing but Python: python tools/fuzz_seeds.py"""
import json
import struct
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "tests/data/fuzz"
SIZES = {"F16": 2, "BF16": 2, "F32": 4, "I64": 8, "F8_E4M3": 1, "U8": 1, "BOOL": 1}


def write(name, data):
    path = OUT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def lines(name, values):
    write(name, "".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values))


def safetensors(tensors, metadata=None, pad=0):
    """tensors: name -> (dtype, shape); every byte is 0x3c, which is near 1 in the halves."""
    header, at = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, shape) in tensors.items():
        size = SIZES[dtype]
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode() + b" " * pad
    return struct.pack("<Q", len(text)) + text + b"\x3c" * at


def half(*shape):
    return ("F16", list(shape))


def safetensors_files():
    checkpoint = {
        "model.diffusion_model.input_blocks.0.0.weight": half(8, 4, 3, 3),
        "model.diffusion_model.label_emb.0.0.weight": half(8, 12),
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": half(16, 8),
        "conditioner.embedders.1.model.ln_final.bias": half(8),
        "first_stage_model.decoder.conv_in.weight": half(8, 4, 3, 3),
    }
    files = {
        "checkpoint": safetensors(checkpoint, {"modelspec.architecture": "stable-diffusion-xl-v1-base"}),
        "checkpoint_v": safetensors({**checkpoint, "v_pred": half(0)}),
        "adapter": safetensors({
            "image_proj.proj.weight": half(16, 4), "image_proj.proj.bias": half(16), "image_proj.norm.weight": half(4),
            "image_proj.norm.bias": half(4), "ip_adapter.1.to_k_ip.weight": half(8, 4), "ip_adapter.1.to_v_ip.weight": half(8, 4),
        }),
        "plus": safetensors({
            "image_proj.latents": half(1, 4, 8), "image_proj.proj_in.weight": half(8, 6), "image_proj.proj_in.bias": half(8),
            "image_proj.proj_out.weight": half(4, 8), "image_proj.layers.0.0.to_q.weight": half(64, 8),
            "image_proj.layers.0.0.to_kv.weight": half(128, 8), "image_proj.layers.0.1.1.weight": half(32, 8),
            "ip_adapter.1.to_k_ip.weight": half(8, 4), "ip_adapter.1.to_v_ip.weight": half(8, 4),
        }),
        "vision": safetensors({
            "vision_model.embeddings.patch_embedding.weight": half(8, 3, 2, 2), "vision_model.embeddings.class_embedding": half(8),
            "vision_model.embeddings.position_embedding.weight": half(5, 8), "visual_projection.weight": half(4, 8),
            "vision_model.encoder.layers.0.mlp.fc1.weight": half(16, 8),
        }),
        "unet": safetensors({
            "conv_in.weight": half(8, 4, 3, 3), "add_embedding.linear_1.weight": half(8, 12),
            "down_blocks.0.resnets.0.conv1.weight": half(8, 8, 3, 3), "down_blocks.1.attentions.0.proj_in.weight": half(8, 8),
            "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": half(8, 16),
        }),
        "vae": safetensors({
            "decoder.conv_in.weight": half(8, 4, 3, 3), "decoder.up_blocks.0.resnets.0.conv1.weight": half(8, 8, 3, 3),
            "decoder.conv_out.weight": half(3, 8, 3, 3), "encoder.conv_in.weight": half(8, 3, 3, 3), "post_quant_conv.weight": half(4, 4, 1, 1),
        }),
        "taesd": safetensors({
            "decoder.layers.0.weight": half(8, 4, 3, 3), "decoder.layers.0.bias": half(8), "decoder.layers.2.conv.0.weight": half(8, 8, 3, 3),
            "decoder.layers.3.weight": half(3, 8, 3, 3), "decoder.layers.3.bias": half(3),
        }),
        "text": safetensors({
            "text_model.embeddings.token_embedding.weight": half(16, 8), "text_model.encoder.layers.0.mlp.fc1.weight": half(16, 8),
            "text_projection.weight": half(4, 8),
        }),
        "inversion": safetensors({"clip_l": half(1, 768), "clip_g": half(1, 1280)}),
        "eight_bits": safetensors({
            "m.weight": ("F8_E4M3", [2, 2]), "m.weight_scale": ("F32", [1]), "n.weight": ("F8_E4M3", [2]), "n.scale_weight": ("F32", [2]),
        }),
        "types": safetensors({"a": ("I64", [2]), "b": ("BOOL", [3]), "c": ("F32", []), "d": ("BF16", [0, 4]), "e": ("U8", [1])}),
        "empty": safetensors({}),
        "unaligned": safetensors({"a": ("F32", [2])}, pad=3),
        "overlap": safetensors({"a": half(2), "b": half(2)}).replace(b"[4,8]", b"[2,6]"),
        "twice": safetensors({"a": half(2), "b": half(2)}).replace(b'"b"', b'"a"'),
        "control": safetensors({"a\x1b[31m": half(2)}, {"note": "line\nbreak\x07"}),
        "long_length": b"\xff" * 8 + b"{}",
    }
    for name, data in files.items():
        write(f"safetensors_headers/{name}", data)


def lora_files():
    def kohya(module, inputs, outputs):
        return {
            f"{module}.lora_down.weight": half(1, *inputs), f"{module}.lora_up.weight": half(outputs, 1), f"{module}.alpha": half(),
        }

    def peft(module, inputs, outputs):
        return {f"{module}.lora_A.weight": half(1, inputs), f"{module}.lora_B.weight": half(outputs, 1)}

    q = "text_model.encoder.layers.0.self_attn.q_proj"
    files = {
        "kohya": safetensors({
            **kohya("lora_unet_down_blocks_1_attentions_0_proj_in", [640], 640),
            **kohya("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", [768], 768),
        }, {"ss_base_model_version": "sdxl_base_v1-0"}),
        "original_blocks": safetensors(kohya("lora_unet_input_blocks_4_1_proj_in", [640], 640)),
        "convolution": safetensors(kohya("lora_unet_down_blocks_0_resnets_0_conv1", [320, 3, 3], 320)),
        "peft": safetensors({
            **peft("unet.down_blocks.1.attentions.0.proj_in", 640, 640), **peft(f"text_encoder.{q}", 768, 768),
        }, {"lora_adapter_metadata": json.dumps({"unet.r": 1, "unet.lora_alpha": 2, "unet.alpha_pattern": {"proj_in": 4}})}),
        "old_diffusers": safetensors({
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_k_lora.down.weight": half(1, 640),
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_k_lora.up.weight": half(640, 1),
        }),
        "dora": safetensors({**kohya("lora_unet_down_blocks_1_attentions_0_proj_in", [640], 640),
                             "lora_unet_down_blocks_1_attentions_0_proj_in.dora_scale": half(640, 1)}),
        "loha": safetensors({"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": half(2, 1)}),
        "other_family": safetensors(kohya("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", [768], 640)),
        "misfit": safetensors(kohya("lora_unet_down_blocks_1_attentions_0_proj_in", [320], 640)),
        "half_a_module": safetensors({"lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight": half(1, 640)}),
    }
    for name, data in files.items():
        write(f"lora_files/{name}", data)


def shard_indexes():
    index = lambda **names: {"metadata": {"total_size": 8}, "weight_map": names}
    lines("shard_indexes.jsonl", [
        index(a="one.safetensors", b="two.safetensors"), index(a="one.safetensors"), index(a="../one.safetensors"),
        index(a="/etc/passwd"), index(a="absent.safetensors"), index(b="one.safetensors"), index(), {}, {"weight_map": {"a": 1}}, "[]", "<html>",
        index(a="one.safetensors", **{f"x{i}": "two.safetensors" for i in range(40)}),
    ])


def torch_files():
    text = lambda s: b"X" + struct.pack("<I", len(s)) + s.encode()
    numbers = lambda items: b"(" + b"".join(b"K" + bytes([n]) for n in items) + b"t"

    def tensor(name, key, kind, count, offset, shape, strides):
        return (text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\n" + kind.encode() + b"Storage\n"
                + text(key) + text("cpu") + b"K" + bytes([count]) + b"tQK" + bytes([offset]) + numbers(shape) + numbers(strides)
                + b"\x89ccollections\nOrderedDict\n)RtRs")

    dict_of = lambda *parts: b"\x80\x02}" + b"".join(parts) + b"."
    doubling = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(40))
    files = {
        "tensor": dict_of(tensor("w", "0", "Float", 6, 0, [2, 3], [3, 1])),
        "views": dict_of(tensor("a", "3", "Float", 12, 1, [3, 2], [4, 2]), tensor("b", "3", "Float", 12, 0, [12], [1])),
        "zero_stride": dict_of(tensor("w", "0", "Float", 6, 0, [200, 200], [0, 0])),
        "past_the_end": dict_of(tensor("w", "0", "Float", 6, 5, [6], [1])),
        "nested": b"\x80\x02}" + text("state_dict") + b"}" + tensor("w", "1", "Half", 3, 0, [3], [1]) + b"s.",
        "parameter": b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_parameter\nK\x01\x88ccollections\nOrderedDict\n)R\x87Rs.",
        "system": b"\x80\x02cos\nsystem\n" + text("true") + b"\x85R.",
        "doubling": b"\x80\x02)" + doubling + b".",
        "dict_in_itself": b"\x80\x02}q\x00K\x01h\x00s.",
        "long_string": b"\x80\x02X\xff\xff\xff\xff.",
        "tuples": b"\x80\x02)" + b"\x85" * 3000 + b".",
        "dicts": b"\x80\x02" + b"}K\x01" * 40 + b"}" + b"s" * 40 + b".",
        "collections": b"\x80\x02}" + text("c") + b"ccollections\nCounter\n}\x85Rs" + text("s") + b"c__builtin__\nset\n](K\x01K\x02e\x85Rs"
                       + text("d") + b"ctorch\nSize\nK\x01K\x02\x86\x85Rs.",
        "numbers": b"\x80\x02}" + text("n") + b"(K\x01M\x00\x01J\xff\xff\xff\xff\x8a\x02\xff\x7fG?\xf0\0\0\0\0\0\0N\x88lK\x02as.",
    }
    for name, data in files.items():
        write(f"torch_files/{name}", data)


def tokenizer_files():
    vocab = {"a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "ab</w>": 4, "<|startoftext|>": 5, "<|endoftext|>": 6}
    section = lambda name, value: f"== {name}\n" + (value if isinstance(value, str) else json.dumps(value)) + "\n"
    old = section("vocab.json", vocab) + section("merges.txt", "#version: 0.2\na b</w>")
    whole = {"model": {"type": "BPE", "vocab": vocab, "merges": ["a b</w>"]}, "added_tokens": []}
    added = [{"id": 7, "content": "<pad>", "special": True}, {"id": 5, "content": "<|startoftext|>", "normalized": True}]
    files = {
        "old": old,
        "old_configured": old + section("tokenizer_config.json", {
            "model_max_length": 16, "pad_token": "!", "unk_token": {"content": "<|endoftext|>", "lstrip": False, "normalized": True},
        }) + section("special_tokens_map.json", {"bos_token": "<|startoftext|>", "eos_token": {"content": "<|endoftext|>"}}),
        "old_added": old + section("added_tokens.json", {"<cat>": 7, "<dog>": 8}),
        "decoder": old + section("tokenizer_config.json", {"added_tokens_decoder": {
            "5": {"content": "<|startoftext|>", "special": True}, "6": {"content": "<|endoftext|>", "special": True}}}),
        "whole": section("tokenizer.json", whole),
        "whole_added": section("tokenizer.json", {**whole, "added_tokens": added}),
        "whole_pairs": section("tokenizer.json", {**whole, "model": {**whole["model"], "merges": [["a", "b</w>"]]}}),
        "harmful_sections": section("tokenizer.json", {
            **whole, "padding": {"strategy": {"Fixed": 0}, "pad_to_multiple_of": 0},
            "truncation": {"max_length": 1, "stride": 5, "strategy": "LongestFirst"},
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        }),
        "long_merge": section("tokenizer.json", {**whole, "model": {**whole["model"], "merges": ["abbbbbbbb b"]}}),
        "holes": section("vocab.json", {"a": 0, "b": 9}) + section("merges.txt", ""),
        "nothing": "",
    }
    for name, data in files.items():
        write(f"tokenizer_files/{name}", data)


def configurations():
    unet = {
        "_class_name": "UNet2DConditionModel", "act_fn": "silu", "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "flip_sin_to_cos": True, "freq_shift": 0,
        "in_channels": 4, "layers_per_block": 2, "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-5, "norm_num_groups": 32,
        "out_channels": 4, "projection_class_embeddings_input_dim": 2816, "sample_size": 128, "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "use_linear_projection": True,
    }
    pruned = {**unet, "transformer_layers_per_block": [0, 2, 4], "reverse_transformer_layers_per_block": [[4, 4, 4], [2, 1, 1], 0]}
    vae = {
        "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "force_upcast": True,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "scaling_factor": 0.13025,
        "sample_size": 1024, "latents_mean": None, "shift_factor": None,
    }
    text = {
        "architectures": ["CLIPTextModelWithProjection"], "eos_token_id": 2, "hidden_act": "gelu", "hidden_size": 1280,
        "intermediate_size": 5120, "model_type": "clip_text_model", "num_attention_heads": 20, "num_hidden_layers": 32, "projection_dim": 1280,
    }
    vision = {"model_type": "clip", "vision_config": {
        "hidden_act": "gelu", "hidden_size": 1664, "intermediate_size": 8192, "num_attention_heads": 16, "num_hidden_layers": 48,
        "patch_size": 14, "image_size": 224, "projection_dim": 1280}}
    processor = {"crop_size": {"height": 224, "width": 224}, "do_normalize": True, "do_resize": True, "resample": 3,
                 "image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.26, 0.27], "size": {"shortest_edge": 224}}
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "steps_offset": 1}
    classes = ["EulerDiscrete", "EulerAncestralDiscrete", "DDIM", "DPMSolverMultistep", "DPMSolverSDE", "LCM", "TCD", "UniPCMultistep",
               "LMSDiscrete", "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "PNDM", "FlowMatchEulerDiscrete"]
    schedulers = [{"_class_name": f"{name}Scheduler", **betas} for name in classes]
    schedulers += [
        {**schedulers[0], "use_karras_sigmas": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {**schedulers[0], "use_exponential_sigmas": True}, {**schedulers[0], "use_beta_sigmas": True}, {**schedulers[0], "sigma_min": 0.1},
        {**schedulers[0], "trained_betas": [0.1, 0.2, 0.3, 0.4], "num_train_timesteps": 4, "_use_default_values": ["steps_offset"]},
        {**schedulers[2], "rescale_betas_zero_snr": True, "clip_sample": True, "set_alpha_to_one": False},
        {**schedulers[3], "algorithm_type": "sde-dpmsolver++", "solver_order": 2, "lower_order_final": True, "euler_at_final": True},
        {**schedulers[3], "beta_schedule": "squaredcos_cap_v2", "final_sigmas_type": "zero"},
    ]
    strange = ['{"lambda_min_clipped": -Infinity, "_class_name": "DPMSolverMultistepScheduler", "beta_start": 0.1}', "[]", "null", "{}",
               '{"scaling_factor": 1.0, "_class_name": "AutoencoderTiny"}']
    demo = [json.loads(p.read_text()) for p in sorted((ROOT / "assets/demo/config").rglob("*.json"))]
    lines("configurations.jsonl", [unet, pruned, vae, text, vision, processor, *schedulers, *strange, *demo])


def image_prompt_files():
    source = {"width": 1, "height": 2, "xxh3": "0" * 32}
    said = {"format": "braid-image-prompt", "version": "1", "adapter": "a" * 32, "image_encoder": "b" * 32, "fit": "pad", "dtype": "f16",
            "device": "cpu", "checksum": "0" * 32}
    f32 = lambda *shape: ("F32", list(shape))
    images = lambda count: json.dumps([source] * count)
    files = {
        "base": safetensors({"image_embeds": f32(1, 6), "image_tokens": f32(1, 4, 6)}, {**said, "images": images(1)}),
        "base_two": safetensors({"image_embeds": f32(2, 6), "image_tokens": f32(2, 4, 6)}, {**said, "images": images(2), "resize": "30x20"}),
        "plus": safetensors({"image_hidden": f32(2, 5, 3), "image_tokens": f32(2, 4, 6), "zero_hidden": f32(5, 3)}, {**said, "images": images(2)}),
        "version": safetensors({}, {**said, "version": "2"}),
        "another_kind": safetensors({"image_proj.norm.weight": f32(2)}),
    }
    for name, data in files.items():
        write(f"image_prompt_files/{name}", data)


def png_metadata():
    record = {"version": "0.2.0", "seed": 7, "number": 0, "inputs": [], "device": "cpu", "noise_dtype": "f32",
              "weights": {"unet": "fingerprint:00"}}
    generate = ["generate", "--model", "m", "-p", "a fox", "--steps", "2"]
    with_image = [*generate, "--ip-adapter", "a", "--ip-adapter-image", "i.png", "--ip-adapter-strength", "0.5"]
    sweep = ["sweep", *generate[1:], "--over", "steps=1:4:1", "--over", "seed=3,5"]
    records = [
        {**record, "command": generate}, {**record, "command": with_image, "inputs": [{"path": "i.png", "xxh3": "0" * 32}]},
        {**record, "command": [*generate, "--batch", "b.jsonl"], "batch_line": {"prompt": "a cat", "steps": 3, "cfg_scale": 2.5}},
        {**record, "command": sweep}, {**record, "command": [*sweep, "--over", "cfg-scale=1:2:0.25"]},
        {**record, "command": [*with_image, "--lora", "l.safetensors:0.5", "--preset", "lcm", "--guidance-interval", "0.2:0.8"]},
        {**record, "command": [*generate, "-i", "i.png", "--mask", "m.png", "--strength", "0.4", "--crop", "1,2"]},
        {**record, "command": ["demo"]}, {**record, "command": None}, {**record, "command": []}, {**record, "command": ["generate", "--help"]},
        {"version": "0.1.0"}, [], "{",
    ]
    lines("png_metadata.jsonl", records)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    png = lambda *chunks: (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)) + b"".join(chunks)
                           + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b""))
    packed = zlib.compress(json.dumps(records[0]).encode())
    bomb = zlib.compress(b" " * (1 << 22), 9)
    files = {
        "packed.png": png(chunk(b"zTXt", b"braid\0\0" + packed)),
        "packed_utf8.png": png(chunk(b"iTXt", b"braid\0\x01\0\0\0" + packed)),
        "bomb.png": png(chunk(b"zTXt", b"braid\0\0" + bomb)),
        "bomb_elsewhere.png": png(chunk(b"iTXt", b"other\0\x01\0\0\0" + bomb), chunk(b"zTXt", b"braid\0\0" + packed)),
        "without.png": png(),
        "no_image": b"no image",
    }
    for name, data in files.items():
        write(f"png_metadata/{name}", data)


def batch_files():
    files = {
        "plain": [{"prompt": "a fox", "seed": 3}, {"prompt": "a cat", "steps": 4, "cfg_scale": 2.5, "width": 64, "height": 64}],
        "references": [{"ip_adapter_image": ["a.png", "b.png"], "ip_adapter_weight": [0.5, 1], "ip_adapter_text": ["a:0.5", "b"],
                        "ip_adapter_mask": "m.png"}, {"ip_adapter_image": "c.png", "ip_adapter_blocks": {"up": {"block_0": [0, 1, 0]}},
                                                      "ip_adapter_combine": "average", "ip_adapter_start": 0.1, "ip_adapter_end": 0.9}],
        "image_to_image": [{"init_img": "i.png", "strength": 0.4, "mask": "m.png"}],
        "settings": [{"negative_prompt": "blurry", "prompt_2": "x", "clip_skip": 1, "sampling_method": "dpmpp-2m", "schedule": "karras",
                      "prediction": "v", "timestep_spacing": "trailing", "guidance_rescale": 0.5, "guidance_interval": "0.2:0.8", "eta": 0.5,
                      "original_size": "64x64", "crop": "0,8", "target_size": "64x64", "prompt_weights": "compel", "preset": "lcm"}],
        "wrong": [{"model": "m"}], "unknown": [{"cfgscale": 1}], "null": [{"prompt": None}],
    }
    for name, requests in files.items():
        write(f"batch_files/{name}.jsonl", "\n\n".join(json.dumps(r) for r in requests) + "\n")
    write("batch_files/no_object.jsonl", "[1]\n")
    write("batch_files/empty.jsonl", "\n")


def texts():
    lines("scales.txt", ["full", "style", "layout", "style+layout", "composition", "strong-style", "precise-style", "0.5", "-1e30",
                         '{"down": {"block_2": [0.0, 1.0]}, "mid": 0.5, "up": {"block_0": [0.0, 1.0, 0.0]}}', '{"up": 1}', '{"mid": [0.3]}',
                         '{"down": {"block_1": 0.5, "block_2": 0.25}}', '{"up": {"block_9": 1}}', '{"left": 1}', "{}", "null", "[1]", "strong"])
    lines("prompts.txt", ["", "a red fox in the snow", "a (red:1.3) fox [in] the (snow)", "((a)) [[b]] \\(c\\) (d:0)", "(a:1.2.3)",
                          "a (red)1.3 fox++ in--- (the snow)0.5", '("a fox", "a boat").blend(1, 0.5)', '("a", "b").and(1, 2)', "a cat.swap(dog)",
                          "a BREAK b", "<|startoftext|>x<|endoftext|>", "&amp;lt; &#8364; &eacute", "\u732b \u96ea\u666f", "\u039f\u03a3 \u0130",
                          "\u202eabc \ufeff", "e\u0301 \U0001f468\u200d\U0001f469\u200d\U0001f467", "it's we'll 12,345.67 a-b_c"])


def main():
    for make in (safetensors_files, lora_files, shard_indexes, torch_files, tokenizer_files, configurations, image_prompt_files, png_metadata,
                 batch_files, texts):
        make()


if __name__ == "__main__":
    main()
