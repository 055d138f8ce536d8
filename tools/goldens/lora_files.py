"""LoRA files of a case, as lines of its recipe: by kohya's names, by PEFT's with metadata, or by diffusers' old ones."""
import json
import math

RANK = 4


def modules(model) -> dict:
    """Shapes of the matrices and kernels that a LoRA can change, by their names."""
    found = {n: list(m.weight.shape) for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv2d")}
    return found


def original(module: str, layers: int, attention: list) -> str:
    """The original name of a module of the UNet; `attention` says which up blocks have cross-attention."""
    top = {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_out": "out.2",
    }
    resnet = {
        "conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
    }
    if module in top:
        return top[module]
    part = module.split(".")
    if part[0] == "mid_block":
        at = int(part[2])
        if part[1] == "resnets":
            return f"middle_block.{2 * at}.{resnet[part[3]]}"
        return ".".join([f"middle_block.{2 * at + 1}", *part[3:]])
    down, block, kind, at = part[0] == "down_blocks", int(part[1]), part[2], int(part[3])
    side = "input_blocks" if down else "output_blocks"
    first = block * (layers + 1) + (1 if down else 0)
    if kind == "downsamplers":
        return f"{side}.{first + layers}.0.op"
    if kind == "upsamplers":
        return f"{side}.{first + layers}.{2 if attention[block] else 1}.conv"
    if kind == "resnets":
        return f"{side}.{first + at}.0.{resnet[part[4]]}"
    return ".".join([f"{side}.{first + at}.1", *part[4:]])


def spelled(style: str, component: str, module: str, unet: dict) -> tuple[str, str]:
    """The names of a module's two factors."""
    if style == "kohya":
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[component]
        if component == "unet":
            module = original(module, unet["layers"], [k == "c" for k in reversed(unet["kinds"])])
        name = prefix + module.replace(".", "_")
        return f"{name}.lora_down.weight", f"{name}.lora_up.weight"
    if style == "peft":
        return f"{component}.{module}.lora_A.weight", f"{component}.{module}.lora_B.weight"
    if component != "unet":
        name = f"{component}.{module}.lora_linear_layer"
        return f"{name}.down.weight", f"{name}.up.weight"
    block, _, leaf = module.rpartition(".")
    if ".attn" in block and leaf in ("to_q", "to_k", "to_v"):
        return f"unet.{block}.processor.{leaf}_lora.down.weight", f"unet.{block}.processor.{leaf}_lora.up.weight"
    return f"unet.{module}.lora.down.weight", f"unet.{module}.lora.up.weight"


def add(recipe, lora: dict, models: dict, unet: dict) -> None:
    """Adds the file of a LoRA: `alpha` is one for attentions, fully connected layers and text, `conv_alpha` for kernels.

    diffusers takes the most common alpha of a component for attention and text, so one alpha holds there.
    """
    lines, rank = [], lora.get("rank", RANK)
    for component in lora["components"]:
        for module, shape in modules(models[component]).items():
            if component != "unet" and not module.startswith("text_"):
                # transformers 5 has no prefix in the first encoder; every published file has it.
                module = "text_model." + module
            kernel = len(shape) == 4
            if kernel and not lora["convolutions"] and shape[2] > 1:
                continue
            down, up = spelled(lora["style"], component, module, unet)
            salt = lora["path"] + "/"
            right = [rank, *shape[1:]]
            left = [shape[0], rank] + ([1, 1] if kernel else [])
            lines.append(recipe.line(down, right, lora["dtype"], salt, math.sqrt(3 / math.prod(shape[1:])), 0))
            lines.append(recipe.line(up, left, lora["dtype"], salt, lora["gain"] * math.sqrt(3 / rank), 0))
            if lora["style"] == "kohya":
                name = down.removesuffix(".lora_down.weight") + ".alpha"
                alpha = lora["conv_alpha"] if kernel and shape[2] > 1 else lora["alpha"]
                lines.append(recipe.line(name, [], lora["dtype"], salt, 0, alpha))
    metadata = None
    if lora["style"] == "peft":
        fields = {f"{c}.{k}": v for c in lora["components"] for k, v in (("r", rank), ("lora_alpha", lora["alpha"]))}
        metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(fields | targets(lora, models))}
    recipe.add(lora["path"], lines, metadata=metadata)


def targets(lora: dict, models: dict) -> dict:
    """What PEFT needs besides to make its layers."""
    def names(component):
        found = modules(models[component]).items()
        return sorted(n for n, s in found if lora["convolutions"] or len(s) == 2 or s[2] == 1)

    return {f"{c}.target_modules": names(c) for c in lora["components"]}


def load(pipe, folder, loras: list) -> None:
    """Loads the files of a case by diffusers."""
    for i, lora in enumerate(loras):
        pipe.load_lora_weights(str(folder), weight_name=lora["path"], adapter_name=f"lora{i}")
    scale(pipe, [lora["scale"] for lora in loras])


def scale(pipe, scales: list) -> None:
    """Sets the scales of the loaded files, for UNet and text encoders alike."""
    pipe.set_adapters([f"lora{i}" for i in range(len(scales))], scales)
