//! The definition of a scheduler by its own file.

use super::settings::{ClassDefaults, SchedulerSettings};
use super::step_table::StepTable;
use crate::config_json::Fields;
use crate::error::{Error, Field, Result};

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
    /// Whether it takes noise levels other than those of its timesteps.
    pub sigma_schedules: bool,
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

    /// Model evaluations of a step, diffusers' `order`; the last step may take one alone.
    fn order(&self) -> usize {
        1
    }

    /// Computes the rows of the steps from `first` on, of `steps`. A scheduler whose first row differs from the others
    /// overrides it: the first of these has no history.
    ///
    /// # Errors
    /// As [`Self::table`].
    fn table_from(&self, steps: usize, first: usize) -> Result<StepTable> {
        Ok(self.table(steps)?.tail(first * self.order()))
    }

    /// Computes the table for an image that noise of a `strength` of 0 to 1 is put on: diffusers' `get_timesteps`, the last
    /// steps of the table.
    ///
    /// # Errors
    /// As [`Self::table`], and for a strength at which no step is left.
    fn image_to_image_table(&self, steps: usize, strength: f64) -> Result<StepTable> {
        let kept = ((steps as f64 * strength) as usize).min(steps);
        if kept == 0 {
            let what = format!("{strength} of {steps} steps is less than one; give at least {:.3}", 1.0 / steps as f64);
            return Err(Error::parameter(Field::Strength, what));
        }
        self.table_from(steps, steps - kept)
    }
}
