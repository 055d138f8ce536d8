//! A denoiser of three levels, for graphs of random weights.

use braid::models::unet::UnetConfig;

pub fn small_unet() -> UnetConfig {
    UnetConfig {
        in_channels: 4,
        out_channels: 4,
        block_out_channels: vec![32, 64, 64],
        layers_per_block: 1,
        transformer_layers_per_block: vec![0, 1, 2],
        pruned: None,
        num_attention_heads: vec![1, 1, 2],
        cross_attention_dim: 32,
        norm_num_groups: 8,
        norm_eps: 1e-5,
        addition_time_embed_dim: 8,
        projection_class_embeddings_input_dim: 64,
        flip_sin_to_cos: true,
        freq_shift: 0.0,
        sample_size: 8,
    }
}
