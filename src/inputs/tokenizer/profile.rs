//! The libraries that the tokenizer follows.

/// The library whose text cleaning is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TokenizerProfile {
    /// diffusers 0.42 with transformers 5.
    #[default]
    Diffusers,
    /// DiffSynth 1.1.9 with transformers 4.51 and ftfy, both of which it requires.
    DiffSynth,
}
