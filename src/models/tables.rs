//! Every tensor of each model, by diffusers' and transformers' names, with its shape.

use super::clip::{ClipTextConfig, ClipVisionConfig};
use super::ip_adapter::AdapterConfig;
use super::unet::UnetConfig;
use super::vae::VaeConfig;

/// Names and shapes.
pub type Table = Vec<(String, Vec<usize>)>;

/// Collects tensors under dotted names.
#[derive(Default)]
struct List(Table);

impl List {
    fn add(&mut self, name: String, shape: &[usize]) {
        self.0.push((name, shape.to_vec()));
    }

    fn linear(&mut self, name: &str, from: usize, to: usize) {
        self.add(format!("{name}.weight"), &[to, from]);
        self.add(format!("{name}.bias"), &[to]);
    }

    fn conv(&mut self, name: &str, from: usize, to: usize, kernel: usize) {
        self.add(format!("{name}.weight"), &[to, from, kernel, kernel]);
        self.add(format!("{name}.bias"), &[to]);
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.add(format!("{name}.weight"), &[width]);
        self.add(format!("{name}.bias"), &[width]);
    }

    /// A resnet; `time` is the width of the time embedding where it takes one.
    fn resnet(&mut self, name: &str, from: usize, to: usize, time: Option<usize>) {
        self.norm(&format!("{name}.norm1"), from);
        self.conv(&format!("{name}.conv1"), from, to, 3);
        if let Some(time) = time {
            self.linear(&format!("{name}.time_emb_proj"), time, to);
        }
        self.norm(&format!("{name}.norm2"), to);
        self.conv(&format!("{name}.conv2"), to, to, 3);
        if from != to {
            self.conv(&format!("{name}.conv_shortcut"), from, to, 1);
        }
    }

    /// A spatial transformer whose projections are linear layers.
    fn transformer(&mut self, name: &str, width: usize, context: usize, layers: usize) {
        self.norm(&format!("{name}.norm"), width);
        self.linear(&format!("{name}.proj_in"), width, width);
        for i in 0..layers {
            let block = format!("{name}.transformer_blocks.{i}");
            for (attention, from) in [("attn1", width), ("attn2", context)] {
                self.add(format!("{block}.{attention}.to_q.weight"), &[width, width]);
                self.add(format!("{block}.{attention}.to_k.weight"), &[width, from]);
                self.add(format!("{block}.{attention}.to_v.weight"), &[width, from]);
                self.linear(&format!("{block}.{attention}.to_out.0"), width, width);
            }
            self.linear(&format!("{block}.ff.net.0.proj"), width, 8 * width);
            self.linear(&format!("{block}.ff.net.2"), 4 * width, width);
            for norm in ["norm1", "norm2", "norm3"] {
                self.norm(&format!("{block}.{norm}"), width);
            }
        }
        self.linear(&format!("{name}.proj_out"), width, width);
    }

    /// A CLIP transformer, `encoder.layers.*` below `name`.
    fn clip(&mut self, name: &str, width: usize, intermediate: usize, layers: usize) {
        for i in 0..layers {
            let layer = format!("{name}.encoder.layers.{i}");
            self.norm(&format!("{layer}.layer_norm1"), width);
            for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                self.linear(&format!("{layer}.self_attn.{part}"), width, width);
            }
            self.norm(&format!("{layer}.layer_norm2"), width);
            self.linear(&format!("{layer}.mlp.fc1"), width, intermediate);
            self.linear(&format!("{layer}.mlp.fc2"), intermediate, width);
        }
    }

    /// The middle of either half of the VAE.
    fn vae_middle(&mut self, side: &str, width: usize, attention: bool) {
        self.resnet(&format!("{side}.mid_block.resnets.0"), width, width, None);
        if attention {
            let name = format!("{side}.mid_block.attentions.0");
            self.norm(&format!("{name}.group_norm"), width);
            for part in ["to_q", "to_k", "to_v", "to_out.0"] {
                self.linear(&format!("{name}.{part}"), width, width);
            }
        }
        self.resnet(&format!("{side}.mid_block.resnets.1"), width, width, None);
    }
}

/// Tensors of the UNet.
pub fn unet(config: &UnetConfig) -> Table {
    let mut list = List::default();
    let channels = &config.block_out_channels;
    let (Some(&first), Some(&last)) = (channels.first(), channels.last()) else {
        return list.0;
    };
    let time = 4 * first;
    list.conv("conv_in", config.in_channels, first, 3);
    list.linear("time_embedding.linear_1", first, time);
    list.linear("time_embedding.linear_2", time, time);
    list.linear("add_embedding.linear_1", config.projection_class_embeddings_input_dim, time);
    list.linear("add_embedding.linear_2", time, time);
    // The width of every skip connection, in the order the down blocks make them.
    let mut skips = vec![first];
    let mut width = first;
    for (i, (&out, &depth)) in channels.iter().zip(&config.transformer_layers_per_block).enumerate() {
        for j in 0..config.layers_per_block {
            list.resnet(&format!("down_blocks.{i}.resnets.{j}"), width, out, Some(time));
            width = out;
            if depth > 0 {
                list.transformer(&format!("down_blocks.{i}.attentions.{j}"), out, config.cross_attention_dim, depth);
            }
            skips.push(out);
        }
        if i + 1 < channels.len() {
            list.conv(&format!("down_blocks.{i}.downsamplers.0.conv"), out, out, 3);
            skips.push(out);
        }
    }
    list.resnet("mid_block.resnets.0", last, last, Some(time));
    let depth = config.transformer_layers_per_block.last().copied().unwrap_or(0);
    list.transformer("mid_block.attentions.0", last, config.cross_attention_dim, depth);
    list.resnet("mid_block.resnets.1", last, last, Some(time));
    for (i, (&out, &depth)) in channels.iter().zip(&config.transformer_layers_per_block).rev().enumerate() {
        for j in 0..=config.layers_per_block {
            let skip = skips.pop().unwrap_or(first);
            list.resnet(&format!("up_blocks.{i}.resnets.{j}"), width + skip, out, Some(time));
            width = out;
            if depth > 0 {
                list.transformer(&format!("up_blocks.{i}.attentions.{j}"), out, config.cross_attention_dim, depth);
            }
        }
        if i + 1 < channels.len() {
            list.conv(&format!("up_blocks.{i}.upsamplers.0.conv"), out, out, 3);
        }
    }
    list.norm("conv_norm_out", first);
    list.conv("conv_out", first, config.out_channels, 3);
    list.0
}

/// Tensors of a text encoder.
pub fn clip_text(config: &ClipTextConfig) -> Table {
    let mut list = List::default();
    list.add("text_model.embeddings.token_embedding.weight".into(), &[config.vocab_size, config.hidden_size]);
    list.add(
        "text_model.embeddings.position_embedding.weight".into(),
        &[config.max_position_embeddings, config.hidden_size],
    );
    list.clip("text_model", config.hidden_size, config.intermediate_size, config.num_hidden_layers);
    list.norm("text_model.final_layer_norm", config.hidden_size);
    if let Some(projection) = config.projection_dim {
        list.add("text_projection.weight".into(), &[projection, config.hidden_size]);
    }
    list.0
}

/// Tensors of an image encoder.
pub fn clip_vision(config: &ClipVisionConfig) -> Table {
    let mut list = List::default();
    let width = config.hidden_size;
    let side = config.image_size / config.patch_size.max(1);
    list.add("vision_model.embeddings.class_embedding".into(), &[width]);
    list.add(
        "vision_model.embeddings.patch_embedding.weight".into(),
        &[width, 3, config.patch_size, config.patch_size],
    );
    list.add("vision_model.embeddings.position_embedding.weight".into(), &[side * side + 1, width]);
    list.norm("vision_model.pre_layrnorm", width);
    list.clip("vision_model", width, config.intermediate_size, config.num_hidden_layers);
    list.norm("vision_model.post_layernorm", width);
    list.add("visual_projection.weight".into(), &[config.projection_dim, width]);
    list.0
}

/// Tensors of the VAE's decoder.
pub fn vae_decoder(config: &VaeConfig) -> Table {
    let mut list = List::default();
    let Some(&last) = config.block_out_channels.last() else {
        return list.0;
    };
    if config.post_quant_conv {
        list.conv("post_quant_conv", config.latent_channels, config.latent_channels, 1);
    }
    list.conv("decoder.conv_in", config.latent_channels, last, 3);
    list.vae_middle("decoder", last, config.mid_attention);
    let mut width = last;
    for (i, &out) in config.block_out_channels.iter().rev().enumerate() {
        for j in 0..=config.layers_per_block {
            list.resnet(&format!("decoder.up_blocks.{i}.resnets.{j}"), width, out, None);
            width = out;
        }
        if i + 1 < config.block_out_channels.len() {
            list.conv(&format!("decoder.up_blocks.{i}.upsamplers.0.conv"), out, out, 3);
        }
    }
    list.norm("decoder.conv_norm_out", width);
    list.conv("decoder.conv_out", width, config.out_channels, 3);
    list.0
}

/// Tensors of the VAE's encoder, which no model here reads and which every published file has.
pub fn vae_encoder(config: &VaeConfig) -> Table {
    let mut list = List::default();
    let Some(&first) = config.block_out_channels.first() else {
        return list.0;
    };
    let latents = 2 * config.latent_channels;
    list.conv("encoder.conv_in", config.out_channels, first, 3);
    let mut width = first;
    for (i, &out) in config.block_out_channels.iter().enumerate() {
        for j in 0..config.layers_per_block {
            list.resnet(&format!("encoder.down_blocks.{i}.resnets.{j}"), width, out, None);
            width = out;
        }
        if i + 1 < config.block_out_channels.len() {
            list.conv(&format!("encoder.down_blocks.{i}.downsamplers.0.conv"), out, out, 3);
        }
    }
    list.vae_middle("encoder", width, config.mid_attention);
    list.norm("encoder.conv_norm_out", width);
    list.conv("encoder.conv_out", width, latents, 3);
    list.conv("quant_conv", latents, latents, 1);
    list.0
}

/// Tensors of a base IP-Adapter.
pub fn adapter(config: &AdapterConfig) -> Table {
    let mut list = List::default();
    list.linear("image_proj.proj", config.embedding_dim, config.num_tokens * config.cross_attention_dim);
    list.norm("image_proj.norm", config.cross_attention_dim);
    for (i, &width) in config.widths.iter().enumerate() {
        for part in ["k", "v"] {
            list.add(format!("ip_adapter.{}.to_{part}_ip.weight", 2 * i + 1), &[width, config.cross_attention_dim]);
        }
    }
    list.0
}
