//! Prompts and references that other threads exchange while requests run.

use super::content_cache::Held;
use super::image_prompt::Reference;
use crate::setters::setters;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The words and references of a request: what may be exchanged while its images are drawn. [`crate::Request::prompts`] has a request's
/// own; all else, such as the scales of its image prompts and the way in which references are combined, stays as the request says.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Prompts {
    /// As [`crate::Request::prompt`].
    pub prompt: String,
    /// As [`crate::Request::negative_prompt`].
    pub negative_prompt: Option<String>,
    /// As [`crate::Request::prompt_2`].
    pub prompt_2: Option<String>,
    /// As [`crate::Request::negative_prompt_2`].
    pub negative_prompt_2: Option<String>,
    /// [`crate::ImagePrompt::references`] of each image prompt of the request, in their order.
    pub references: Vec<Vec<Reference>>,
}

impl Prompts {
    setters! {
        /// Sets the prompt.
        with_prompt(prompt: impl Into<String> => prompt.into());
        /// Sets the negative prompt.
        with_negative_prompt(negative_prompt: impl Into<String> => Some(negative_prompt.into()));
        /// Sets the prompt of the second text encoder.
        with_prompt_2(prompt_2: impl Into<String> => Some(prompt_2.into()));
        /// Sets the negative prompt of the second text encoder.
        with_negative_prompt_2(negative_prompt_2: impl Into<String> => Some(negative_prompt_2.into()));
    }

    /// Sets the references of an adapter, by its number.
    #[must_use]
    pub fn with_references<R: Into<Reference>>(
        mut self,
        adapter: usize,
        references: impl IntoIterator<Item = R>,
    ) -> Self {
        if self.references.len() <= adapter {
            self.references.resize_with(adapter + 1, Vec::new);
        }
        self.references[adapter] = references.into_iter().map(Into::into).collect();
        self
    }
}

/// The prompts that an image has from a step on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PromptChange {
    /// The first model evaluation of the image, from 0, for which they count.
    pub step: usize,
    /// The words and references that take the place of those before.
    pub prompts: Arc<Prompts>,
}

/// Prompts that are encoded for a request, by [`crate::Pipeline::prepare_prompts`]; cheap to clone.
#[derive(Clone)]
pub struct PreparedPrompts {
    pub(super) prompts: Arc<Prompts>,
    /// The results of their stages, which a request finds for as long as anyone has them.
    held: Arc<Held>,
}

impl PreparedPrompts {
    pub(super) fn new(prompts: Arc<Prompts>, held: Held) -> Self {
        Self { prompts, held: Arc::new(held) }
    }

    /// The words and references that were encoded.
    pub fn prompts(&self) -> &Prompts {
        &self.prompts
    }
}

impl std::fmt::Debug for PreparedPrompts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PreparedPrompts({:?}, {} values)", self.prompts.prompt, self.held.len())
    }
}

/// A handle by which another thread exchanges prompts and references while images are drawn; cheap to clone.
///
/// The latest ones count as a whole from the next model evaluation of each image on, and for images that begin later from their first one:
/// nothing is compiled. [`crate::Output::prompt_changes`] says what has been exchanged when; a request with these
/// [`crate::Request::prompt_changes`] gives the same bytes.
#[derive(Debug, Clone, Default)]
pub struct LivePrompts(Arc<Mutex<Latest>>);

/// The latest prompts and their place among all that were set, from 1.
#[derive(Debug, Default)]
struct Latest {
    set: u64,
    prompts: Option<PreparedPrompts>,
}

impl LivePrompts {
    /// A handle by which nothing is set yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the prompts. They are meant for requests like the one that they were prepared for: any other encodes them anew at its next step,
    /// and fails there with [`crate::Error::Parameter`] where it has no room for them.
    pub fn set(&self, prompts: &PreparedPrompts) {
        let mut latest = self.lock();
        latest.set += 1;
        latest.prompts = Some(prompts.clone());
    }

    /// The latest prompts where any were set after the first `seen` ones, and how many were set in all.
    pub(super) fn after(&self, seen: u64) -> (Option<PreparedPrompts>, u64) {
        let latest = self.lock();
        (latest.prompts.clone().filter(|_| latest.set > seen), latest.set)
    }

    fn lock(&self) -> MutexGuard<'_, Latest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
