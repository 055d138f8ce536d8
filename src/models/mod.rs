//! The models: for each a configuration and a function that builds a graph from it and a weight scope.

pub mod config;
pub mod fit;
pub mod infer;
pub mod json;
pub mod tables;
