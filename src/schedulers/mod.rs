//! Schedulers, each reduced to a table of coefficients; host arithmetic only.
//!
//! A [`SchedulerConfig`] (from a model folder's `scheduler_config.json`, or a built-in one) and a number of steps give
//! a [`StepTable`] with one [`StepCoefficients`] for each model evaluation. All schedulers share one form, so that one
//! kernel serves all:
//!
//! ```text
//! model input = input_scale * x
//! x0          = x0_from_x * x + x0_from_output * output                        then clamped to [-clip, clip]
//! x'          = x_from_x * x + x_from_output * output + x_from_x0 * x0 + sum of x_from_history * h + noise * randn
//! h'          = from_x * x + from_output * output + from_x0 * x0 + sum of from_history * h + noise * randn    for each h
//! ```
//!
//! where the three h are what earlier steps left (an x0, an x to come back to, a sum that is added to later), `output` is
//! the model's guided output ([`classifier_free_guidance`]) and `x` the latents, which begin as `init_noise_sigma * randn`,
//! or as an image's latents with noise of the first row's [`NoiseLevel`]. [`step`] is the reference implementation.
//!
//! To add a scheduler: a file here, named as in diffusers, with its `DEFINITION`; its `mod` line below; and its line in
//! `registry.rs`.

mod betas;
mod config;
mod ddim;
mod definition;
mod dpmsolver_multistep;
mod dpmsolver_multistep_sde;
mod dpmsolver_sde;
mod euler_ancestral_discrete;
mod euler_discrete;
mod guidance;
mod heun_discrete;
mod k_dpm_2_ancestral_discrete;
mod k_dpm_2_discrete;
mod lcm;
mod levels;
mod linspace;
mod lms_discrete;
mod multistep_levels;
mod prediction_type;
mod registry;
mod settings;
mod sigmas;
mod step_table;
mod tcd;
mod timestep_spacing;
mod unipc_multistep;

pub use config::SchedulerConfig;
pub use guidance::classifier_free_guidance;
pub use prediction_type::PredictionType;
pub use registry::SchedulerKind;
pub use sigmas::SigmaSchedule;
pub use step_table::{
    HISTORY, HistoryCoefficients, NoiseLevel, PackedStepCoefficients, StepCoefficients, StepTable, step,
};
pub use timestep_spacing::TimestepSpacing;
