//! Prompts that take the place of a request's own while its images are drawn.

use super::captures::Captures;
use super::compile::Executables;
use super::content_cache::Held;
use super::image_branches::ImageBranches;
use super::live_prompts::{LivePrompts, PreparedPrompts, PromptChange, Prompts};
use super::plan::{RequestPlan, Room};
use super::request::Request;
use super::stages::condition::{self, Conditioning};
use super::stages::{image, text};
use crate::error::{Error, Field, Result};
use std::sync::Arc;

/// Prompts as the images of a request take them up.
pub(super) struct ChangedPrompts {
    pub(super) prompts: Arc<Prompts>,
    pub(super) branches: ImageBranches,
    pub(super) conditioning: Conditioning,
}

impl ChangedPrompts {
    /// Encodes prompts for a request with that plan, which finds what was prepared; also gives what the stages found or made, unless that
    /// is noted already. Where the request is under way, nothing is compiled but encoders that were freed.
    ///
    /// # Errors
    /// [`Error::Parameter`] for prompts that cannot be, or for which the plan has no room; those of the stages.
    pub(super) fn new(
        executables: &mut Executables<'_>,
        (request, running): (&Request, &RequestPlan),
        prompts: &Arc<Prompts>,
    ) -> Result<(Self, Held)> {
        let request = request.with_prompts(prompts)?;
        request.check()?;
        let plan = RequestPlan::new(executables, Room::Of(&running.denoise), &request)?;
        if plan.branches.masks != running.branches.masks {
            let what =
                "other masks than the request began with; images that share an evaluation share them, so they stay";
            return Err(Error::parameter(Field::ReferenceMask, what));
        }
        // On a GPU, what is noted outlasts the next run of its executable.
        let (conditioning, held) = note(executables, |executables| run_stages(executables, (&request, &plan)))?;
        Ok((Self { prompts: prompts.clone(), branches: plan.branches, conditioning }, held))
    }
}

/// Does work whose results are found for as long as anyone has what is given beside its own: nothing where they are noted already.
pub(super) fn note<T, E>(
    executables: &mut Executables<'_>,
    work: impl FnOnce(&mut Executables<'_>) -> Result<T, E>,
) -> Result<(T, Held), E> {
    if executables.cache.contents.records() {
        return Ok((work(executables)?, Held::new()));
    }
    executables.cache.contents.record();
    let result = work(executables);
    let held = executables.cache.contents.recorded();
    Ok((result?, held))
}

/// Runs the stages from prompts to the conditioning.
fn run_stages(executables: &mut Executables<'_>, (request, plan): (&Request, &RequestPlan)) -> Result<Conditioning> {
    let captures = &mut Captures::new(false);
    let mut _held = text::ahead(executables, plan, std::iter::empty())?;
    let texts = text::run(executables, plan, captures)?;
    let concepts = text::concepts(executables, request, plan)?;
    executables.cache.release_encoders();
    _held.append(&mut image::ahead(executables, (request, plan), std::iter::empty())?);
    let images = image::run(executables, (request, plan), &concepts, captures)?;
    executables.cache.release_encoders();
    condition::run(executables, plan, &texts, &images, captures)
}

/// Encodes prompts for a request that need not be under way.
///
/// # Errors
/// As [`ChangedPrompts::new`].
pub(super) fn prepare(
    executables: &mut Executables<'_>,
    request: &Request,
    prompts: Arc<Prompts>,
) -> Result<PreparedPrompts> {
    request.check()?;
    let plan = RequestPlan::new(executables, Room::Unchecked, request)?;
    let (_, held) = ChangedPrompts::new(executables, (request, &plan), &prompts)?;
    Ok(PreparedPrompts::new(prompts, held))
}

/// The prompts of an image under way.
#[derive(Default)]
pub(super) struct ImagePrompts {
    /// Those that took the place of the request's own.
    pub(super) current: Option<Arc<ChangedPrompts>>,
    /// The number of live ones that it has seen.
    seen: u64,
    changes: Vec<PromptChange>,
}

impl ImagePrompts {
    /// Takes up what is due before a step, the request's changes, then a live one; gives the last of them.
    pub(super) fn advance(
        &mut self,
        request: &Request,
        live: Option<&LivePrompts>,
        step: usize,
    ) -> Option<PreparedPrompts> {
        let planned = request.prompt_changes.iter().filter(|change| change.step == step);
        let mut due: Vec<_> = planned.map(|change| PreparedPrompts::new(change.prompts.clone(), Held::new())).collect();
        if let Some(live) = live {
            let (new, seen) = live.after(self.seen);
            self.seen = seen;
            due.extend(new);
        }
        self.changes.extend(due.iter().map(|due| PromptChange { step, prompts: due.prompts.clone() }));
        due.pop()
    }

    /// The changes that were taken up, in their order.
    pub(super) fn into_changes(self) -> Vec<PromptChange> {
        self.changes
    }
}
