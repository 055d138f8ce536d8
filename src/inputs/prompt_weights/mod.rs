//! Weights in the text of a prompt.

mod a1111;
mod compel;
mod options;

pub use a1111::{PromptPiece, a1111};
pub use compel::{CompelPrompt, Conjunction, Fragment, compel};
