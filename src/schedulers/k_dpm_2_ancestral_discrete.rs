//! DPM-Solver-2 with ancestral sampling (k-diffusion), as diffusers' `KDPM2AncestralDiscreteScheduler`: noise is drawn in
//! the second evaluation of each step.

use super::definition::SchedulerDefinition;
use super::k_dpm_2_discrete::{self, KDpm2};

pub(super) const DEFINITION: SchedulerDefinition = SchedulerDefinition {
    name: "dpm2-a",
    label: "DPM2 a",
    class_names: &["KDPM2AncestralDiscreteScheduler"],
    prepare: |fields, settings| Ok(Box::new(KDpm2::read(fields, settings, true)?)),
    ..k_dpm_2_discrete::DEFINITION
};
