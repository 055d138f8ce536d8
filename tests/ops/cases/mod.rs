//! A file an operation.

mod attention;
mod concat;
mod conv2d;
mod decoupled_attention;
mod embedding;
mod fusion;
mod geglu;
mod group_norm;
mod layer_norm;
mod linear;
mod low_rank;
mod outputs;
mod pointwise;
mod timestep_embedding;
mod upsample;
mod vector_norm;
mod weights;
