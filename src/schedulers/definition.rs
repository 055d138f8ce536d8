//! The definition of a scheduler by its own file.

use super::settings::{ClassDefaults, SchedulerSettings};
use super::step_table::StepTable;
use crate::config_json::Fields;
use crate::error::Result;

/// A scheduler as its file defines it: its names, the fields that it reads, and the way to its table.
pub(super) struct SchedulerDefinition {
    /// The name on the command line, such as `euler-a`.
    pub name: &'static str,
    /// The name in AUTOMATIC1111's interface, such as `Euler a`.
    pub label: &'static str,
    /// The values of `_class_name` in scheduler_config.json.
    pub class_names: &'static [&'static str],
    /// The fields of scheduler_config.json that it reads beyond those of every scheduler.
    pub config_keys: &'static [&'static str],
    /// The defaults of its diffusers class.
    pub defaults: ClassDefaults,
    /// The field that its timesteps come from where they do not follow `timestep_spacing`.
    pub timesteps_from: Option<&'static str>,
    /// Whether it takes [`super::SigmaSchedule::Karras`].
    pub karras_sigmas: bool,
    /// Reads the fields of `config_keys`; the first whose value is not supported is an [`crate::error::Error::Config`].
    pub prepare: fn(&Fields<'_>, SchedulerSettings) -> Result<Box<dyn Scheduler>>,
}

/// A scheduler with its settings.
pub(super) trait Scheduler {
    /// Computes the table for `steps` steps, at least 1.
    ///
    /// # Errors
    /// [`crate::error::Error::Parameter`] for a number of steps that the settings do not allow.
    fn table(&self, steps: usize) -> Result<StepTable>;
}
