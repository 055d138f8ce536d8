//! Sizes of an IP-Adapter, read off its tensors: its files have no configuration.

use crate::error::Result;
use crate::models::probe::Probe;
use crate::weights::Weights;

/// Width of an attention head of a resampler. No tensor tells it; the peers have no other.
const HEAD_DIM: usize = 64;

/// An IP-Adapter: its projection and one pair of matrices for each cross-attention.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Width of what the projection takes: of the image embedding (base; 1280 for ViT-bigG, 1024 for ViT-H), or of the
    /// encoder's hidden states (Plus; 1280 for ViT-H).
    pub embedding_dim: usize,
    /// Image tokens of an image (base 4, Plus 16).
    pub num_tokens: usize,
    /// Width of an image token, equal to the UNet's `cross_attention_dim`.
    pub cross_attention_dim: usize,
    /// Widths of the cross-attentions in the order of the file's keys.
    pub widths: Vec<usize>,
    /// The resampler of an IP-Adapter Plus; a base adapter has none.
    pub resampler: Option<ResamplerConfig>,
}

/// The resampler of an IP-Adapter Plus.
#[derive(Debug, Clone, PartialEq)]
pub struct ResamplerConfig {
    /// Width of a latent.
    pub hidden_dim: usize,
    /// Attention heads, of 64 channels each.
    pub heads: usize,
    /// Width between the two matrices of a feed-forward, for each layer.
    pub intermediate: Vec<usize>,
}

impl ResamplerConfig {
    /// Channels of all heads.
    pub fn inner_dim(&self) -> usize {
        self.heads * HEAD_DIM
    }
}

impl AdapterConfig {
    /// Reads the sizes of an IP-Adapter off the tensors that [`crate::weights::adapter::published`] gives.
    ///
    /// # Errors
    /// [`crate::Error::Tensors`] where tensors are missing or have other ranks; [`crate::Error::Mismatch`] where their
    /// sizes contradict one another.
    pub fn from_tensors(weights: &Weights) -> Result<Self> {
        let p = Probe::new(weights, "IP-Adapter");
        let mut config = if p.has("image_proj.latents") { Self::plus(&p)? } else { Self::base(&p)? };
        let cross_attention_dim = config.cross_attention_dim;
        while p.has(&format!("ip_adapter.{}.to_k_ip.weight", 2 * config.widths.len() + 1)) {
            let name = format!("ip_adapter.{}.to_k_ip.weight", 2 * config.widths.len() + 1);
            let taken = p.dim(&name, 2, 1)?;
            if taken != cross_attention_dim {
                return p.mismatch(format!(
                    "{name} takes tokens {taken} wide, the image projection gives {cross_attention_dim}"
                ));
            }
            config.widths.push(p.dim(&name, 2, 0)?);
        }
        Ok(config)
    }

    fn base(p: &Probe<'_>) -> Result<Self> {
        let (rows, embedding) = (p.dim("image_proj.proj.weight", 2, 0)?, p.dim("image_proj.proj.weight", 2, 1)?);
        let cross_attention_dim = p.dim("image_proj.norm.weight", 1, 0)?;
        if rows % cross_attention_dim != 0 {
            return p.mismatch(format!(
                "image_proj.proj.weight has {rows} rows: not a multiple of the token width {cross_attention_dim}"
            ));
        }
        let num_tokens = rows / cross_attention_dim;
        Ok(Self { embedding_dim: embedding, num_tokens, cross_attention_dim, widths: Vec::new(), resampler: None })
    }

    fn plus(p: &Probe<'_>) -> Result<Self> {
        let inner = p.dim("image_proj.layers.0.0.to_q.weight", 2, 0)?;
        if inner % HEAD_DIM != 0 {
            return p.mismatch(format!(
                "image_proj.layers.0.0.to_q.weight has {inner} rows: not a multiple of a head's {HEAD_DIM}"
            ));
        }
        let layers = 0..p.count("image_proj.layers.");
        let intermediate = layers.map(|i| p.dim(&format!("image_proj.layers.{i}.1.1.weight"), 2, 0));
        let resampler = ResamplerConfig {
            hidden_dim: p.dim("image_proj.latents", 2, 1)?,
            heads: inner / HEAD_DIM,
            intermediate: intermediate.collect::<Result<_>>()?,
        };
        Ok(Self {
            embedding_dim: p.dim("image_proj.proj_in.weight", 2, 1)?,
            num_tokens: p.dim("image_proj.latents", 2, 0)?,
            cross_attention_dim: p.dim("image_proj.proj_out.weight", 2, 0)?,
            widths: Vec::new(),
            resampler: Some(resampler),
        })
    }

    /// Whether the projection takes the encoder's hidden states, and not its image embedding.
    pub fn takes_hidden_states(&self) -> bool {
        self.resampler.is_some()
    }

    /// Values of one image for the projection: of its embedding, or of `positions` hidden states.
    pub fn embedding_len(&self, positions: usize) -> usize {
        self.embedding_dim * if self.takes_hidden_states() { positions } else { 1 }
    }
}
