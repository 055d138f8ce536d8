//! The modules of a model that a LoRA can change, under every name that a file may give them.
//!
//! No name is parsed: each module of the model is spelled in all ways, and a file's names are looked up.

use crate::weights::keymap;
use std::collections::HashMap;

/// A part of the model that a LoRA changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LoraComponent {
    /// The UNet.
    Unet,
    /// The text encoder of that number, 0 or 1.
    Text(usize),
}

impl LoraComponent {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Unet, Self::Text(0), Self::Text(1)];

    /// Its folder in diffusers' layout, which is also its prefix in a file.
    pub const fn folder(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::Text(0) => "text_encoder",
            Self::Text(_) => "text_encoder_2",
        }
    }

    /// The prefix of kohya's names.
    const fn kohya(self) -> &'static str {
        match self {
            Self::Unet => "lora_unet_",
            Self::Text(0) => "lora_te1_",
            Self::Text(_) => "lora_te2_",
        }
    }
}

/// A matrix or a convolution's kernel of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) component: LoraComponent,
    /// Its name in diffusers or transformers, without `.weight`.
    pub(super) module: String,
    /// `[N, K]` or `[O, I, kh, kw]`, without dimensions of 1 at the end.
    pub(super) shape: Vec<usize>,
}

/// The modules of a model, by name.
#[derive(Debug, Default)]
pub struct LoraTargets {
    /// In the order in which the model's graphs take them.
    pub(super) modules: Vec<Target>,
    /// The module of a name, and whether the name is that of an original block.
    names: HashMap<String, (usize, bool)>,
}

impl LoraTargets {
    /// The matrices and kernels in the tables of the UNet and of both text encoders.
    pub fn new(unet_table: &[(String, Vec<usize>)], text: [&[(String, Vec<usize>)]; 2]) -> Self {
        let mut targets = Self::default();
        let blocks = UnetBlocks::of(unet_table);
        let unet = LoraComponent::Unet;
        let (folder, kohya) = (unet.folder(), unet.kohya());
        for (module, shape) in matrices(unet_table) {
            let at = targets.add(unet, module, shape);
            targets.name(format!("{folder}.{module}"), (at, false));
            targets.name(module.to_owned(), (at, false));
            targets.name(format!("{kohya}{}", underscored(module)), (at, false));
            if let Some(original) = blocks.original(module) {
                let block =
                    ["input_blocks.", "middle_block.", "output_blocks."].iter().any(|b| original.starts_with(b));
                targets.name(format!("{kohya}{}", underscored(&original)), (at, block));
                targets.name(format!("diffusion_model.{original}"), (at, block));
                targets.name(format!("{folder}.{original}"), (at, block));
            }
        }
        for (i, table) in text.into_iter().enumerate() {
            let component = LoraComponent::Text(i);
            for (module, shape) in matrices(table) {
                let at = targets.add(component, module, shape);
                // transformers 5.6 and later have no `text_model.`.
                for module in [module, module.strip_prefix("text_model.").unwrap_or(module)] {
                    targets.name(format!("{}.{module}", component.folder()), (at, false));
                    targets.name(format!("{}{}", component.kohya(), underscored(module)), (at, false));
                }
            }
        }
        targets
    }

    fn add(&mut self, component: LoraComponent, module: &str, shape: &[usize]) -> usize {
        let shape = match shape {
            [rows, columns, 1, 1] => vec![*rows, *columns],
            shape => shape.to_vec(),
        };
        self.modules.push(Target { component, module: module.to_owned(), shape });
        self.modules.len() - 1
    }

    /// Notes a name; the first that has it keeps it.
    fn name(&mut self, name: String, target: (usize, bool)) {
        self.names.entry(name).or_insert(target);
    }

    /// The module of a name as a file spells it, and whether that is the name of an original block.
    pub(super) fn find(&self, name: &str) -> Option<(usize, bool)> {
        self.names.get(name).copied()
    }

    /// The width of the text that the UNet's cross-attention reads.
    pub(super) fn cross_attention_dim(&self) -> Option<usize> {
        self.modules.iter().find(|t| t.module.ends_with(".attn2.to_k")).and_then(|t| t.shape.get(1).copied())
    }
}

fn underscored(module: &str) -> String {
    module.replace('.', "_")
}

/// The modules of a table with a weight of two or four dimensions, embeddings left out.
fn matrices(table: &[(String, Vec<usize>)]) -> impl Iterator<Item = (&str, &[usize])> {
    let matrix = |(name, shape): &'_ (String, Vec<usize>)| {
        [2, 4].contains(&shape.len()) && name.ends_with(".weight") && !name.contains("embeddings.")
    };
    table.iter().filter(move |entry| matrix(entry)).map(|(name, shape)| (&name[..name.len() - 7], shape.as_slice()))
}

/// The facts about a UNet's blocks that its original names depend on.
struct UnetBlocks {
    /// The resnets of a down block.
    layers: usize,
    /// Whether each up block has cross-attention.
    attention: Vec<bool>,
}

impl UnetBlocks {
    fn of(table: &[(String, Vec<usize>)]) -> Self {
        let numbered = |prefix: &str, name: &str| keymap::index(name.strip_prefix(prefix)?).map(|(n, _)| n);
        let names = || table.iter().map(|(name, _)| name.as_str());
        let layers = names().filter_map(|n| numbered("down_blocks.0.resnets.", n)).max().map_or(0, |last| last + 1);
        let count = names().filter_map(|n| numbered("up_blocks.", n)).max().map_or(0, |last| last + 1);
        let has = |block| names().any(|n| n.starts_with(&format!("up_blocks.{block}.attentions.")));
        Self { layers, attention: (0..count).map(has).collect() }
    }

    fn original(&self, module: &str) -> Option<String> {
        let attention = |block: usize| self.attention.get(block).copied().unwrap_or(false);
        let name = keymap::original_unet(&format!("{module}.weight"), self.layers, attention)?;
        name.strip_suffix(".weight").map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::published;

    #[test]
    fn names_of_sdxl() {
        let text = [published::text().tensors(), published::text_2().tensors()];
        let targets = LoraTargets::new(&published::unet().tensors(), [&text[0], &text[1]]);
        let found = |name: &str| targets.find(name).map(|(at, _)| targets.modules[at].module.as_str());
        let attn = "attentions.0.transformer_blocks.3.attn2.to_k";
        for (name, module) in [
            ("lora_unet_input_blocks_7_1_transformer_blocks_3_attn2_to_k", format!("down_blocks.2.{attn}")),
            ("lora_unet_down_blocks_2_attentions_0_transformer_blocks_3_attn2_to_k", format!("down_blocks.2.{attn}")),
            ("lora_unet_middle_block_1_proj_in", "mid_block.attentions.0.proj_in".into()),
            ("lora_unet_output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv".into()),
            ("lora_unet_input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv".into()),
            ("lora_unet_input_blocks_4_0_in_layers_2", "down_blocks.1.resnets.0.conv1".into()),
            ("lora_unet_output_blocks_8_0_skip_connection", "up_blocks.2.resnets.2.conv_shortcut".into()),
            ("lora_unet_middle_block_2_emb_layers_1", "mid_block.resnets.1.time_emb_proj".into()),
            ("lora_unet_time_embed_2", "time_embedding.linear_2".into()),
            ("lora_unet_label_emb_0_0", "add_embedding.linear_1".into()),
            ("lora_unet_input_blocks_0_0", "conv_in".into()),
            ("lora_unet_out_2", "conv_out".into()),
            ("unet.down_blocks.1.attentions.0.proj_out", "down_blocks.1.attentions.0.proj_out".into()),
            ("diffusion_model.middle_block.1.proj_in", "mid_block.attentions.0.proj_in".into()),
            ("lora_te1_text_model_encoder_layers_11_mlp_fc1", "text_model.encoder.layers.11.mlp.fc1".into()),
            ("lora_te2_text_projection", "text_projection".into()),
            (
                "text_encoder_2.encoder.layers.31.self_attn.q_proj",
                "text_model.encoder.layers.31.self_attn.q_proj".into(),
            ),
        ] {
            assert_eq!(found(name), Some(module.as_str()), "{name}");
        }
        for name in
            ["lora_te1_text_projection", "lora_te1_text_model_encoder_layers_12_mlp_fc1", "unet.conv_norm_out", ""]
        {
            assert_eq!(found(name), None, "{name}");
        }
        assert_eq!(targets.cross_attention_dim(), Some(2048));
        // Of one module two spellings of blocks, of which one is original.
        let [a, b] = ["lora_unet_middle_block_1_proj_in", "lora_unet_mid_block_attentions_0_proj_in"]
            .map(|name| targets.find(name).unwrap());
        assert!(a.0 == b.0 && a.1 && !b.1 && !targets.find("lora_unet_out_2").unwrap().1);
    }
}
