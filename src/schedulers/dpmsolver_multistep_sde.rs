//! DPM-Solver++ of order 1 and 2 for the stochastic differential equation, as diffusers' `DPMSolverMultistepScheduler` with
//! `algorithm_type` "sde-dpmsolver++": fresh noise in each step, drawn in the last one too, with weight 0.

use super::definition::SchedulerDefinition;
use super::dpmsolver_multistep::{self, DpmSolverMultistep};

pub(super) const DEFINITION: SchedulerDefinition = SchedulerDefinition {
    name: "dpmpp-2m-sde",
    label: "DPM++ 2M SDE",
    // The class is the deterministic solver's; `algorithm_type` decides.
    class_names: &[],
    prepare: |fields, settings| Ok(Box::new(DpmSolverMultistep::read(fields, settings, true)?)),
    ..dpmsolver_multistep::DEFINITION
};
