//! Schedulers, each reduced to a table of coefficients; host arithmetic only.
//!
//! A [`SchedulerConfig`] (from a model folder's `scheduler_config.json`, or a built-in one) and a number of steps give
//! a [`StepTable`] with one [`StepCoefficients`] for each model evaluation. All schedulers share one form, so that one
//! kernel serves all:
//!
//! ```text
//! model input = input_scale * x
//! x0          = x0_from_x * x + x0_from_output * output                        then clamped to [-clip, clip]
//! x'          = x_from_x * x + x_from_output * output + x_from_x0 * x0 + x_from_previous * previous x0 + noise * randn
//! ```
//!
//! where `output` is the model's guided output ([`classifier_free_guidance`]) and `x` the latents, which begin as
//! `init_noise_sigma * randn`, or as an image's latents with noise of the first row's [`NoiseLevel`].
//! [`step`] is the reference implementation.
//!
//! To add a scheduler: a file here, named as in diffusers, with its `DEFINITION`; its `mod` line below; and its line in
//! `registry.rs`.

mod betas;
mod config;
mod ddim;
mod definition;
mod dpmsolver_multistep;
mod euler_ancestral_discrete;
mod euler_discrete;
mod guidance;
mod lcm;
mod linspace;
mod prediction_type;
mod registry;
mod settings;
mod sigmas;
mod step_table;
mod timestep_spacing;

pub use config::SchedulerConfig;
pub use guidance::classifier_free_guidance;
pub use prediction_type::PredictionType;
pub use registry::SchedulerKind;
pub use sigmas::SigmaSchedule;
pub use step_table::{NoiseLevel, PackedStepCoefficients, StepCoefficients, StepTable, step};
pub use timestep_spacing::TimestepSpacing;
