//! The settings that all schedulers share: the fields of a configuration checked, its defaults filled in.

use super::betas::{BetaRange, BetaSchedule, Betas, MAX_TRAIN_TIMESTEPS, alphas_cumprod};
use super::prediction_type::{self, PredictionType};
use super::timestep_spacing::{self, TimestepSpacing};
use crate::config_json::Fields;
use crate::error::Result;

/// The fields of scheduler_config.json that every scheduler reads.
pub(super) const CONFIG_KEYS: &[&str] = &[
    "beta_end",
    "beta_schedule",
    "beta_start",
    "num_train_timesteps",
    "prediction_type",
    "rescale_betas_zero_snr",
    "steps_offset",
    "timestep_spacing",
    "trained_betas",
];

/// The defaults and the bounds of these fields that differ between diffusers' classes.
pub(super) struct ClassDefaults {
    pub betas: BetaRange,
    pub timestep_spacing: TimestepSpacing,
    /// The values of `prediction_type` that the class takes; the default is `epsilon`.
    pub prediction_types: &'static [&'static str],
    /// Whether the class reads `rescale_betas_zero_snr`.
    pub zero_snr: bool,
}

/// The settings that all schedulers share, under diffusers' names.
pub(super) struct SchedulerSettings {
    pub num_train_timesteps: usize,
    /// The cumulative product of 1 - beta at each training timestep.
    pub alphas_cumprod: Vec<f32>,
    /// Whether the last of `alphas_cumprod` is 0.
    pub rescale_betas_zero_snr: bool,
    /// Whether the betas are `squaredcos_cap_v2`, for which DPM++ does not round its timesteps.
    pub squared_cosine: bool,
    pub prediction_type: PredictionType,
    pub timestep_spacing: TimestepSpacing,
    pub steps_offset: usize,
    /// DDIM's eta, 0 to 1; of the request, not of a configuration.
    pub eta: f64,
}

impl SchedulerSettings {
    /// Reads the fields, with a class's defaults for those that are absent.
    ///
    /// # Errors
    /// [`crate::error::Error::Config`] names the first field whose value is not supported.
    pub(super) fn read(fields: &Fields<'_>, defaults: &ClassDefaults, eta: f64) -> Result<Self> {
        let num_train_timesteps = fields.count("num_train_timesteps", 1000, 2, MAX_TRAIN_TIMESTEPS)?;
        let betas = Betas::read(fields, defaults.betas)?;
        let rescale_betas_zero_snr = defaults.zero_snr && fields.flag("rescale_betas_zero_snr", false)?;
        let Some(alphas_cumprod) = alphas_cumprod(&betas, num_train_timesteps, rescale_betas_zero_snr) else {
            let field = if matches!(betas, Betas::Trained(_)) { "trained_betas" } else { "beta_end" };
            return Err(fields.refuse(field, "the betas of a schedule are above 0 and below 1"));
        };
        let known = |entry: &&(&str, PredictionType)| defaults.prediction_types.contains(&entry.0);
        let prediction_types: Vec<_> = prediction_type::CONFIG_VALUES.iter().filter(known).copied().collect();
        Ok(Self {
            num_train_timesteps,
            alphas_cumprod,
            rescale_betas_zero_snr,
            squared_cosine: matches!(betas, Betas::Range(range) if range.schedule == BetaSchedule::SquaredCosCapV2),
            prediction_type: fields.choice("prediction_type", PredictionType::Epsilon, &prediction_types)?,
            timestep_spacing: fields.choice("timestep_spacing", defaults.timestep_spacing, timestep_spacing::NAMES)?,
            steps_offset: fields.count("steps_offset", 0, 0, num_train_timesteps)?,
            eta,
        })
    }

    /// Refuses a zero terminal SNR for a model that predicts noise, for schedulers that predict x0 at every timestep.
    pub(super) fn refuse_epsilon_without_signal(&self, fields: &Fields<'_>) -> Result<()> {
        if self.rescale_betas_zero_snr && self.prediction_type == PredictionType::Epsilon {
            let why = "a zero terminal SNR needs `prediction_type` v_prediction or sample: no noise level is left to \
                       predict x0 from at the last timestep";
            return Err(fields.refuse("rescale_betas_zero_snr", why));
        }
        Ok(())
    }
}

/// The fields of scheduler_config.json that clamp x0 and end the schedule, of the schedulers that step in alphas.
pub(super) struct ClipSettings {
    /// `clip_sample_range` where `clip_sample` is set.
    pub clip_sample_range: Option<f32>,
    pub set_alpha_to_one: bool,
}

impl ClipSettings {
    pub(super) fn read(fields: &Fields<'_>, clip_sample: bool) -> Result<Self> {
        fields.off("thresholding", "dynamic thresholding is for pixels, not latents; false is supported")?;
        let range = fields.positive("clip_sample_range")?.unwrap_or(1.0);
        Ok(Self {
            clip_sample_range: fields.flag("clip_sample", clip_sample)?.then_some(range as f32),
            set_alpha_to_one: fields.flag("set_alpha_to_one", true)?,
        })
    }
}
