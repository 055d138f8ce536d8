"""SDXL's structure in small: the configurations, and the adapter's attention for training."""
import math

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

CONTEXT, POOLED, EMBEDDING, TOKENS = 128, 64, 128, 4
SCALING = 0.13025

UNET = dict(sample_size=16, in_channels=4, out_channels=4, block_out_channels=[64, 128, 128], layers_per_block=2, norm_num_groups=8,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], transformer_layers_per_block=[1, 1, 1],
            attention_head_dim=[1, 2, 2], cross_attention_dim=CONTEXT, use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=32,
            projection_class_embeddings_input_dim=6 * 32 + POOLED)
# Four groups, because a group norm of one or two channels a group would wipe out a picture's mean colour.
VAE = dict(block_out_channels=[32, 32, 64, 64], layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=128,
           scaling_factor=SCALING, down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
TEXT = dict(vocab_size=49408, hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=1,
            hidden_act="quick_gelu", projection_dim=64, max_position_embeddings=77, bos_token_id=0, eos_token_id=2,
            pad_token_id=1)
# Ten layers, because diffusers knows an SDXL checkpoint by the tenth layer of its second text encoder.
TEXT_2 = dict(TEXT, num_hidden_layers=10, hidden_act="gelu", projection_dim=POOLED)
VISION = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=2, image_size=128,
              patch_size=16, projection_dim=EMBEDDING, hidden_act="gelu")


def vae():
    return AutoencoderKL(**VAE)


def vision():
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION))


class Base(torch.nn.Module):
    """The two text encoders and the UNet, from token ids to the prediction."""

    def __init__(self):
        super().__init__()
        self.text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT))
        self.text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_2))
        self.unet = UNet2DConditionModel(**UNET)

    def encode(self, ids, ids_2):
        """`[B, 77, CONTEXT]` and `[B, POOLED]`, as SDXL's pipeline has them."""
        one = self.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
        two = self.text_encoder_2(ids_2, output_hidden_states=True)
        return torch.cat([one, two.hidden_states[-2]], -1), two.text_embeds

    def forward(self, x, t, ids, ids_2, keep, image=None):
        """`keep` [B] is 0 where the text's embeddings are zeroed, as for an absent negative prompt.

        `image` goes to the adapter's attention processors: `tokens` [B, TOKENS, CONTEXT].
        """
        return self.predict(x, t, *self.encode(ids, ids_2), keep, image)

    def predict(self, x, t, context, pooled, keep, image=None):
        side = x.shape[-1] * 8
        sizes = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32).expand(len(x), 6)
        added = {"text_embeds": pooled * keep[:, None], "time_ids": sizes}
        return self.unet(x, t, context * keep[:, None, None], added_cond_kwargs=added, cross_attention_kwargs=image,
                         return_dict=False)[0]


class ImageProjection(torch.nn.Module):
    """Linear and layer norm: `[B, EMBEDDING]` -> `[B, TOKENS, CONTEXT]`."""

    def __init__(self):
        super().__init__()
        self.proj = torch.nn.Linear(EMBEDDING, TOKENS * CONTEXT)
        self.norm = torch.nn.LayerNorm(CONTEXT)

    def forward(self, embeds):
        return self.norm(self.proj(embeds).reshape(-1, TOKENS, CONTEXT))


class Branch(torch.nn.Module):
    """The image strand's keys and values of one cross-attention; starts as a copy of the text's."""

    def __init__(self, attention):
        super().__init__()
        self.to_k_ip = torch.nn.Linear(CONTEXT, attention.inner_dim, bias=False)
        self.to_v_ip = torch.nn.Linear(CONTEXT, attention.inner_dim, bias=False)
        self.to_k_ip.load_state_dict(attention.to_k.state_dict())
        self.to_v_ip.load_state_dict(attention.to_v.state_dict())


class Decoupled:
    """Attention processor: the text's softmax plus, where there is a strand, the image's."""

    def __init__(self, strand):
        self.strand, self.scale = strand, 1.0

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, tokens=None):
        def split(v):
            return v.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        q = split(attn.to_q(hidden_states))
        other = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        out = F.scaled_dot_product_attention(q, split(attn.to_k(other)), split(attn.to_v(other)))
        if self.strand is not None:
            k, v = split(self.strand.to_k_ip(tokens)), split(self.strand.to_v_ip(tokens))
            out = out + self.scale * F.scaled_dot_product_attention(q, k, v)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


class Adapter(torch.nn.Module):
    """The IP-Adapter over a frozen base. `names` are the cross-attentions in the order of the file's keys 1, 3, 5, ..."""

    def __init__(self, base):
        super().__init__()
        unet = base.unet
        self.names = [n.removesuffix(".processor") for n in unet.attn_processors if ".attn2." in n]
        self.image_proj = ImageProjection()
        self.strands = torch.nn.ModuleList(Branch(unet.get_submodule(n)) for n in self.names)
        processors = {}
        for name in unet.attn_processors:
            index = self.names.index(name.removesuffix(".processor")) if ".attn2." in name else None
            processors[name] = Decoupled(None if index is None else self.strands[index])
        unet.set_attn_processor(processors)

    def state(self):
        """As the published files name it."""
        out = {"image_proj." + k: v for k, v in self.image_proj.state_dict().items()}
        for i, strand in enumerate(self.strands):
            out |= {f"ip_adapter.{2 * i + 1}.{k}": v for k, v in strand.state_dict().items()}
        return out


def alpha_bars():
    betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()
