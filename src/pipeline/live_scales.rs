//! Scales of image prompts that other threads change while requests run.

use crate::error::Result;
use crate::models::ip_adapter::Scales;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The scales that an adapter has from a step of an image on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ScaleChange {
    /// The first model evaluation of the image, from 0, for which they count.
    pub step: usize,
    /// The adapter, by its number.
    pub adapter: usize,
    /// Its scales. [`crate::ImagePrompt::start`], [`crate::ImagePrompt::end`] and weights act on them as on the first ones.
    pub scales: Scales,
}

/// A handle by which another thread sets scales of image prompts while they are drawn; cheap to clone.
///
/// New scales count from the next model evaluation of each image on, and for images that begin later from their first one. They are one
/// more value among the denoiser's inputs: nothing is compiled or encoded. [`crate::Output::scale_changes`] says what has been changed
/// when; a request with these [`crate::Request::scale_changes`] gives the same bytes.
#[derive(Debug, Clone, Default)]
pub struct LiveScales(Arc<Mutex<Latest>>);

/// The latest scales of each adapter, each with its place among all that were set, from 1.
#[derive(Debug, Default)]
struct Latest {
    set: u64,
    scales: BTreeMap<usize, (u64, Scales)>,
}

impl LiveScales {
    /// A handle by which nothing is set yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets an adapter's scales: one number for every block, or [`Scales`]. A request that has no image prompt for the adapter, or a UNet
    /// without one of the blocks, fails with [`crate::Error::Parameter`] at its next step; so does a change from or to `precise-style`, which
    /// takes other keys and values.
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] for a number that is not finite.
    pub fn set(&self, adapter: usize, scales: impl Into<Scales>) -> Result<()> {
        let scales = scales.into();
        scales.check()?;
        let mut latest = self.lock();
        latest.set += 1;
        let set = latest.set;
        latest.scales.insert(adapter, (set, scales));
        Ok(())
    }

    /// The scales that were set after the first `seen` ones, by adapter, and how many were set in all.
    pub(super) fn after(&self, seen: u64) -> (Vec<(usize, Scales)>, u64) {
        let latest = self.lock();
        let new = latest.scales.iter().filter(|(_, (set, _))| *set > seen);
        (new.map(|(adapter, (_, scales))| (*adapter, scales.clone())).collect(), latest.set)
    }

    fn lock(&self) -> MutexGuard<'_, Latest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
