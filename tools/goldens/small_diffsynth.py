"""DiffSynth's own SDXL modules, made narrow, and the published files that belong to them.

Each model is the peer's full-size class, built on the meta device, in which every layer is then replaced by a narrower
one of the same kind with the same epsilon, stride and padding, and lists of layers are cut. The wiring stays the peer's.
"""
import torch
from diffsynth.models.sdxl_ipadapter import IpAdapterXLCLIPImageEmbedder, SDXLIpAdapter
from diffsynth.models.sdxl_text_encoder import SDXLTextEncoder, SDXLTextEncoder2
from diffsynth.models.sdxl_unet import SDXLUNet
from diffsynth.models.sdxl_vae_decoder import SDXLVAEDecoder
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from peer_diffsynth import key_table

CONTEXT, POOLED, EMBEDDING = 128, 64, 128
VISION = dict(hidden_size=208, intermediate_size=416, num_hidden_layers=2, num_attention_heads=2, projection_dim=EMBEDDING,
              hidden_act="gelu", layer_norm_eps=1e-5, image_size=224, patch_size=14, num_channels=3)
TEXT_LAYERS = 3

# Full size -> small size, for each model.
UNET_SIZES = {320: 32, 640: 64, 960: 96, 1280: 128, 1920: 192, 2560: 256, 5120: 512, 10240: 1024, 2048: CONTEXT,
              2816: POOLED + 6 * 256, 4: 4}
TEXT_SIZES = {768: 64, 3072: 256, 49408: 49408, 77: 77}
TEXT_2_SIZES = {1280: POOLED, 5120: 256, 49408: 49408, 77: 77}
VISION_SIZES = {1664: VISION["hidden_size"], 8192: VISION["intermediate_size"], 1280: EMBEDDING, 257: 257, 3: 3}
VAE_SIZES = {512: 96, 256: 64, 128: 32, 4: 4, 3: 3}
ADAPTER_SIZES = {640: 64, 1280: 128, 2048: CONTEXT, 8192: 4 * CONTEXT}


def narrow(module: torch.nn.Module, sizes: dict) -> torch.nn.Module:
    """Replaces every layer inside `module` by one of the mapped sizes; parameters are empty."""
    nn = torch.nn
    for name, child in module.named_children():
        bias = getattr(child, "bias", None) is not None
        if isinstance(child, nn.Linear):
            small = nn.Linear(sizes[child.in_features], sizes[child.out_features], bias=bias)
        elif isinstance(child, nn.Conv2d):
            small = nn.Conv2d(sizes[child.in_channels], sizes[child.out_channels], child.kernel_size, child.stride,
                              child.padding, bias=bias)
        elif isinstance(child, nn.GroupNorm):
            small = nn.GroupNorm(child.num_groups, sizes[child.num_channels], eps=child.eps)
        elif isinstance(child, nn.LayerNorm):
            small = nn.LayerNorm(sizes[child.normalized_shape[0]], eps=child.eps)
        elif isinstance(child, nn.Embedding):
            small = nn.Embedding(child.num_embeddings, sizes[child.embedding_dim])
        else:
            small = narrow(child, sizes)
        setattr(module, name, small)
    for name, p in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(torch.empty([1 if n == 1 else sizes[n] for n in p.shape])))
    for name in ("cross_attention_dim",):
        if hasattr(module, name):
            setattr(module, name, sizes[getattr(module, name)])
    return module


def on_meta(build):
    with torch.device("meta"):
        return build()


def rebuilt_mask(encoder):
    encoder.attn_mask = encoder.attention_mask(77)
    return encoder


def unet(depth: tuple) -> SDXLUNet:
    """`depth`: transformer layers of the second and third level, 2 and 10 in the published model."""
    out = narrow(on_meta(SDXLUNet), UNET_SIZES)
    out.time_proj.num_channels = 32
    for block in out.blocks:
        layers = getattr(block, "transformer_blocks", None)
        if layers is not None:
            block.transformer_blocks = layers[:depth[0] if len(layers) == 2 else depth[1]]
            for layer in block.transformer_blocks:
                for attention in (layer.attn1, layer.attn2):
                    attention.num_heads = attention.to_q.out_features // attention.head_dim
    return out


class Adapter(SDXLIpAdapter):
    """The peer's adapter where transformers have fewer layers: its own index lists, less what a shallower UNet lacks."""

    def __init__(self, depth: tuple):
        self.depth, self.kept = depth, None
        super().__init__()
        full = dict(self.call_block_id)
        layers = {block: sum(b == block for b, _ in full) for block, _ in full}
        limit = {block: depth[0] if n == 2 else depth[1] for block, n in layers.items()}
        self.kept = [j for (block, i), j in full.items() if i < limit[block]]
        self.ipadapter_modules = torch.nn.ModuleList([self.ipadapter_modules[j] for j in self.kept])
        self.set_full_adapter()

    def cut(self):
        if self.kept is not None:
            self.call_block_id = {k: self.kept.index(j) for k, j in self.call_block_id.items() if j in self.kept}

    def set_full_adapter(self):
        super().set_full_adapter()
        self.cut()

    def set_less_adapter(self):
        super().set_less_adapter()
        # The peer's 34..43 are all the layers of its block 28, up_blocks.0.attentions.1, and nothing else.
        assert [k for k in self.call_block_id] == [(28, i) for i in range(10)]
        self.cut()


def text_encoder(build, sizes: dict, layers: int):
    out = narrow(on_meta(build), sizes)
    out.encoders = out.encoders[:layers]
    for encoder in out.encoders:
        encoder.attn.num_heads = encoder.attn.to_q.out_features // encoder.attn.head_dim
    return rebuilt_mask(out)


def vision() -> IpAdapterXLCLIPImageEmbedder:
    out = narrow(on_meta(IpAdapterXLCLIPImageEmbedder), VISION_SIZES)
    out.encoders = out.encoders[:VISION["num_hidden_layers"]]
    for encoder in out.encoders:
        encoder.attn.num_heads = VISION["num_attention_heads"]
        assert encoder.attn.head_dim == VISION["hidden_size"] // VISION["num_attention_heads"]
    return out


def vae() -> SDXLVAEDecoder:
    out = narrow(on_meta(SDXLVAEDecoder), VAE_SIZES)
    out.blocks[1].transformer_blocks[0].head_dim = VAE_SIZES[512]
    return out


class Models:
    """All models of a case; `load` fills them from files' tensors through the peer's converters."""

    def __init__(self, depth: tuple):
        self.depth = depth
        self.unet = unet(depth)
        # The peer builds 11 of CLIP-L's 12 layers, and so one less than the file has here too.
        self.text_encoder = text_encoder(SDXLTextEncoder, TEXT_SIZES, TEXT_LAYERS - 1)
        self.text_encoder_2 = text_encoder(SDXLTextEncoder2, TEXT_2_SIZES, TEXT_LAYERS)
        self.vae_decoder = vae()
        self.ipadapter_image_encoder = vision()
        self.ipadapter = narrow(on_meta(lambda: Adapter(depth)), ADAPTER_SIZES)

    def checkpoint_shapes(self) -> dict:
        """Original key -> shape of the single file."""
        out = {}
        for model in (self.unet, self.text_encoder, self.text_encoder_2, self.vae_decoder):
            shapes = {k: list(v.shape) for k, v in model.named_parameters()}
            for key, names in key_table(type(model).state_dict_converter()).items():
                fused = isinstance(names, list)
                shape = shapes.get(names[0] if fused else names)
                if shape is None:
                    continue
                if fused:
                    shape = [3 * shape[0], *shape[1:]]
                elif names == "position_embeds":
                    shape = shape[1:]
                elif ".mid.attn_1." in key and len(shape) == 2:
                    shape = [*shape, 1, 1]
                out[key] = shape
        # What every published file has and the peer leaves out: CLIP-L's last layer and its final norm.
        prefix, width = "conditioner.embedders.0.transformer.text_model.", TEXT_SIZES[768]
        last, unused = f"{prefix}encoder.layers.{TEXT_LAYERS - 2}.", f"{prefix}encoder.layers.{TEXT_LAYERS - 1}."
        out |= {key.replace(last, unused): shape for key, shape in out.items() if key.startswith(last)}
        out |= {f"{prefix}final_layer_norm.{leaf}": [width] for leaf in ("weight", "bias")}
        return dict(sorted(out.items()))

    def adapter_shapes(self) -> dict:
        out = {f"image_proj.{k}": list(p.shape) for k, p in self.ipadapter.image_proj.named_parameters()}
        for i, module in enumerate(self.ipadapter.ipadapter_modules):
            out |= {f"ip_adapter.{2 * i + 1}.{k}": list(p.shape) for k, p in module.named_parameters()}
        return out

    @staticmethod
    def vision_shapes() -> dict:
        """transformers' names."""
        model = on_meta(lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)))
        return {k: list(p.shape) for k, p in model.named_parameters()}

    def load(self, checkpoint: dict, vision_file: dict, adapter: dict) -> None:
        for model in (self.unet, self.text_encoder, self.text_encoder_2, self.vae_decoder):
            converted = type(model).state_dict_converter().from_civitai(checkpoint)
            converted = converted[0] if isinstance(converted, tuple) else converted
            unused = f"encoders.{TEXT_LAYERS - 1}."
            if model is self.text_encoder:
                converted = {k: v for k, v in converted.items() if not k.startswith(unused)}
            model.load_state_dict(converted)
        encoder, adapters = type(self.ipadapter_image_encoder), SDXLIpAdapter.state_dict_converter()
        self.ipadapter_image_encoder.load_state_dict(encoder.state_dict_converter().from_diffusers(vision_file))
        self.ipadapter.load_state_dict(adapters.from_civitai(adapter))
        for model in vars(self).values():
            if isinstance(model, torch.nn.Module):
                model.eval().requires_grad_(False)
