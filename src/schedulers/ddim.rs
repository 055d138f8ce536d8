//! DDIM (Song et al. 2020, equation 12), as diffusers' `DDIMScheduler`, and with DiffSynth-Studio's timesteps.
//!
//! Here x = sqrt(a) * x0 + sqrt(1 - a) * noise, where a is the cumulative product of 1 - beta.

use super::betas::DEFAULT_BETAS;
use super::definition::{Scheduler, SchedulerDefinition};
use super::settings::{ClassDefaults, ClipSettings, SchedulerSettings};
use super::step_table::{ExactCoefficients, StepCoefficients, StepTable};
use super::timestep_spacing::{self, TimestepSpacing};
use crate::config_json::Fields;
use crate::error::{Error, Field, Result};

pub(super) const DEFINITION: SchedulerDefinition = SchedulerDefinition {
    name: "ddim",
    label: "DDIM",
    class_names: &["DDIMScheduler"],
    config_keys: &["clip_sample", "clip_sample_range", "set_alpha_to_one", "thresholding"],
    defaults: ClassDefaults {
        betas: DEFAULT_BETAS,
        timestep_spacing: TimestepSpacing::Leading,
        prediction_types: &["epsilon", "v_prediction", "sample"],
        zero_snr: true,
    },
    timesteps_from: None,
    sigma_schedules: false,
    prepare: |fields, settings| Ok(Box::new(Ddim::read(fields, settings)?)),
};

/// DiffSynth's `EnhancedDDIMScheduler`, which goes by DDIM's names.
pub(super) const DIFFSYNTH: SchedulerDefinition = SchedulerDefinition {
    defaults: ClassDefaults { prediction_types: &["epsilon", "v_prediction"], ..DEFINITION.defaults },
    prepare: |fields, settings| Ok(Box::new(EnhancedDdim(Ddim::read(fields, settings)?))),
    ..DEFINITION
};

struct Ddim {
    settings: SchedulerSettings,
    clip: ClipSettings,
}

impl Ddim {
    fn read(fields: &Fields<'_>, settings: SchedulerSettings) -> Result<Self> {
        let clip = ClipSettings::read(fields, true)?;
        settings.refuse_epsilon_without_signal(fields)?;
        Ok(Self { settings, clip })
    }

    /// Computes the step from the cumulative product `now` to `next`.
    fn step(&self, timestep: f32, now: f64, next: f64, eta: f64) -> StepCoefficients {
        let (alpha, sigma) = (now.sqrt(), (1.0 - now).sqrt());
        let variance = (1.0 - next) / (1.0 - now) * (1.0 - now / next);
        let fresh = eta * variance.sqrt();
        // The noise is that of the unclamped x0, as diffusers has it without `use_clipped_model_output`.
        let epsilon = self.settings.prediction_type.epsilon_weights(alpha, sigma);
        let direction = (1.0 - next - fresh * fresh).sqrt();
        let row = ExactCoefficients {
            clip: self.clip.clip_sample_range,
            x_from_x: direction * epsilon.0,
            x_from_output: direction * epsilon.1,
            x_from_x0: next.sqrt(),
            noise: (eta > 0.0).then_some(fresh),
            ..ExactCoefficients::unscaled(timestep, self.settings.prediction_type, alpha, sigma)
        };
        row.rounded()
    }
}

impl Scheduler for Ddim {
    /// Computes the table. A step ends at the level `num_train_timesteps / steps` timesteps below its own, which is the
    /// next step's own level only where the spacing is leading.
    fn table(&self, steps: usize) -> Result<StepTable> {
        let SchedulerSettings { timestep_spacing, num_train_timesteps, steps_offset, eta, .. } = self.settings;
        let alphas = &self.settings.alphas_cumprod;
        let stride = num_train_timesteps / steps;
        let last = if self.clip.set_alpha_to_one { 1.0 } else { alphas[0] };
        let mut timesteps = timestep_spacing::timesteps(timestep_spacing, num_train_timesteps, steps_offset, steps);
        if timestep_spacing == TimestepSpacing::Linspace {
            timesteps.iter_mut().for_each(|t| *t = t.round_ties_even());
        }
        let row = |&t: &f64| {
            let now = *alphas.get(t as usize)?;
            let next = (t as usize).checked_sub(stride).map_or(Some(last), |i| alphas.get(i).copied())?;
            Some(self.step(t as f32, f64::from(now), f64::from(next), eta))
        };
        let rows: Option<Vec<StepCoefficients>> = timesteps.iter().map(row).collect();
        let Some(rows) = rows else {
            let what = format!(
                "{steps} steps with steps_offset {steps_offset} begin past the last of {} timesteps",
                alphas.len()
            );
            return Err(Error::parameter(Field::Steps, what));
        };
        Ok(StepTable { steps: rows, init_noise_sigma: 1.0 })
    }
}

struct EnhancedDdim(Ddim);

impl Scheduler for EnhancedDdim {
    /// Computes the table: timesteps from the last to 0, rounded half to even, each step ending at the next one's level
    /// and the last at no noise. More steps than there are timesteps are as many as there are.
    fn table(&self, steps: usize) -> Result<StepTable> {
        self.table_below(self.0.settings.num_train_timesteps, steps)
    }

    /// Computes the table of all `steps`, from the noise level of that strength down.
    fn image_to_image_table(&self, steps: usize, strength: f64) -> Result<StepTable> {
        let most = self.0.settings.num_train_timesteps;
        self.table_below(((most as f64 * strength).round_ties_even() as usize).clamp(1, most), steps)
    }
}

impl EnhancedDdim {
    /// Computes the table that begins at the last of the first `timesteps`.
    fn table_below(&self, timesteps: usize, steps: usize) -> Result<StepTable> {
        let settings = &self.0.settings;
        let last = timesteps - 1;
        let steps = steps.min(timesteps);
        let stride = last as f64 / (steps.max(2) - 1) as f64;
        let timestep = |i: usize| (last as f64 - i as f64 * stride).round_ties_even().max(0.0) as usize;
        let level = |i: usize| if i < steps { f64::from(settings.alphas_cumprod[timestep(i)]) } else { 1.0 };
        let row = |i: usize| self.0.step(timestep(i) as f32, level(i), level(i + 1), 0.0);
        Ok(StepTable { steps: (0..steps).map(row).collect(), init_noise_sigma: 1.0 })
    }
}
