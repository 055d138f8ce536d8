//! Sizes of an IP-Adapter, read off its tensors: its files have no configuration.

use crate::error::Result;
use crate::models::probe::Probe;
use crate::weights::Weights;

/// A base IP-Adapter: its projection and one pair of matrices for each cross-attention.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Width of the image embedding that the projection takes (1280 for ViT-bigG, 1024 for ViT-H).
    pub embedding_dim: usize,
    /// Image tokens of an image (4).
    pub num_tokens: usize,
    /// Width of an image token, equal to the UNet's `cross_attention_dim`.
    pub cross_attention_dim: usize,
    /// Widths of the cross-attentions in the order of the file's keys.
    pub widths: Vec<usize>,
}

impl AdapterConfig {
    /// Reads the sizes of a base IP-Adapter off the tensors that [`crate::weights::adapter::base`] gives.
    ///
    /// # Errors
    /// [`crate::Error::Tensors`] where tensors are missing or have other ranks; [`crate::Error::Mismatch`] where their
    /// sizes contradict one another.
    pub fn from_tensors(weights: &Weights) -> Result<Self> {
        let p = Probe::new(weights, "IP-Adapter");
        let (rows, embedding) = (p.dim("image_proj.proj.weight", 2, 0)?, p.dim("image_proj.proj.weight", 2, 1)?);
        let cross_attention_dim = p.dim("image_proj.norm.weight", 1, 0)?;
        if rows % cross_attention_dim != 0 {
            return p.mismatch(format!(
                "image_proj.proj.weight has {rows} rows: not a multiple of the token width {cross_attention_dim}"
            ));
        }
        let mut widths = Vec::new();
        while p.has(&format!("ip_adapter.{}.to_k_ip.weight", 2 * widths.len() + 1)) {
            let name = format!("ip_adapter.{}.to_k_ip.weight", 2 * widths.len() + 1);
            let taken = p.dim(&name, 2, 1)?;
            if taken != cross_attention_dim {
                return p.mismatch(format!(
                    "{name} takes tokens {taken} wide, the image projection gives {cross_attention_dim}"
                ));
            }
            widths.push(p.dim(&name, 2, 0)?);
        }
        Ok(Self { embedding_dim: embedding, num_tokens: rows / cross_attention_dim, cross_attention_dim, widths })
    }
}
