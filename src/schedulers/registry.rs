//! The registry of schedulers.

use std::fmt;
use std::str::FromStr;

use super::definition::SchedulerDefinition;
use crate::error::{Error, Field, Message, Result};
use crate::names::{any_of_bytes, any_of_len, value_of};

/// Registers schedulers: each line is a variant of [`SchedulerKind`], the file with its `DEFINITION`, and a
/// description.
macro_rules! schedulers {
    ($($variant:ident, $file:ident, $description:literal;)*) => {
        /// A scheduler.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum SchedulerKind {
            $(#[doc = $description] $variant,)*
        }

        impl SchedulerKind {
            /// Every scheduler, in the order in which help texts list them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            const EACH_NAME: &'static [&'static str] = &[$(super::$file::DEFINITION.name),*];

            pub(super) fn definition(self) -> &'static SchedulerDefinition {
                match self {
                    $(Self::$variant => &super::$file::DEFINITION,)*
                }
            }
        }
    };
}

schedulers! {
    Euler, euler_discrete, "diffusers' `EulerDiscreteScheduler` without churn.";
    EulerAncestral, euler_ancestral_discrete, "diffusers' `EulerAncestralDiscreteScheduler`: adds noise in every step.";
    Ddim, ddim, "diffusers' `DDIMScheduler`.";
    Dpmpp2M, dpmsolver_multistep, "diffusers' `DPMSolverMultistepScheduler` with `dpmsolver++` of order 1 or 2.";
    Lcm, lcm, "diffusers' `LCMScheduler`: adds noise in every step but the last.";
    Heun, heun_discrete, "diffusers' `HeunDiscreteScheduler`: two evaluations a step.";
    Dpmpp2MSde, dpmsolver_multistep_sde, "diffusers' `DPMSolverMultistepScheduler` with `sde-dpmsolver++`: adds noise in every step.";
    DpmppSde, dpmsolver_sde, "diffusers' `DPMSolverSDEScheduler`: two evaluations a step, each adds noise.";
    UniPc, unipc_multistep, "diffusers' `UniPCMultistepScheduler` of order 1 or 2.";
    Lms, lms_discrete, "diffusers' `LMSDiscreteScheduler` of order 4.";
    Dpm2, k_dpm_2_discrete, "diffusers' `KDPM2DiscreteScheduler`: two evaluations a step.";
    Dpm2Ancestral, k_dpm_2_ancestral_discrete, "diffusers' `KDPM2AncestralDiscreteScheduler`: two evaluations a step, the second adds noise.";
    Tcd, tcd, "diffusers' `TCDScheduler`: adds noise where eta is above 0.";
}

const NAMES: [u8; any_of_len(SchedulerKind::EACH_NAME)] = any_of_bytes(SchedulerKind::EACH_NAME);

/// The reason against every configuration of a model trained by flow matching.
pub(super) const FLOW_MATCHING: &str = "a model trained by flow matching is not supported, with whatever scheduler";

impl SchedulerKind {
    /// The names of all schedulers, as help texts list them: `euler, euler-a, ... or lcm`.
    pub const NAMES: &'static str = match std::str::from_utf8(&NAMES) {
        Ok(names) => names,
        Err(_) => panic!("names are text"),
    };

    /// The name on the command line, such as `euler-a`.
    pub fn name(self) -> &'static str {
        self.definition().name
    }

    /// The name in AUTOMATIC1111's interface, such as `Euler a`.
    pub fn label(self) -> &'static str {
        self.definition().label
    }

    /// Finds the scheduler of a `_class_name` of diffusers and, where it matters, `algorithm_type`.
    pub(crate) fn of_class(class: &str, algorithm_type: Option<&str>) -> Option<Self> {
        let kind = Self::ALL.iter().copied().find(|kind| kind.definition().class_names.contains(&class))?;
        let sde = kind == Self::Dpmpp2M && algorithm_type == Some("sde-dpmsolver++");
        Some(if sde { Self::Dpmpp2MSde } else { kind })
    }

    /// Tells why no scheduler here can stand in for a `_class_name` of diffusers, where that is so: a model of another
    /// noise process gives garbage with any of them.
    pub(crate) fn foreign(class: &str) -> Option<&'static str> {
        if class.starts_with("FlowMatch") {
            return Some(FLOW_MATCHING);
        }
        class
            .starts_with("EDM")
            .then_some("a model trained for EDM's noise levels is not supported, with whatever scheduler")
    }

    /// Lists the classes of diffusers that are supported, for an error about another one.
    pub(crate) fn supported_classes() -> Message {
        let classes = |kind: &Self| kind.definition().class_names;
        let names: Vec<&str> = Self::ALL.iter().flat_map(classes).copied().collect();
        Message::from(format!("supported: {}; or choose another with ", names.join(", "))).field(Field::Scheduler)
    }
}

impl FromStr for SchedulerKind {
    type Err = Error;

    /// Finds the scheduler of a name on the command line; [`Error::Parameter`] lists the names.
    fn from_str(name: &str) -> Result<Self> {
        let table: Vec<(&str, Self)> = Self::ALL.iter().map(|kind| (kind.name(), *kind)).collect();
        value_of(&table, Field::Scheduler, name)
    }
}

impl fmt::Display for SchedulerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_command_line() {
        for kind in SchedulerKind::ALL {
            assert_eq!(kind.name().parse::<SchedulerKind>().unwrap(), *kind);
            assert_eq!(kind.to_string(), kind.name());
            assert!(
                kind.definition().class_names.iter().all(|class| SchedulerKind::of_class(class, None) == Some(*kind))
            );
        }
        let names =
            "euler, euler-a, ddim, dpmpp-2m, lcm, heun, dpmpp-2m-sde, dpmpp-sde, unipc, lms, dpm2, dpm2-a or tcd";
        assert_eq!(SchedulerKind::NAMES, names);
        let error = "pndm".parse::<SchedulerKind>().unwrap_err().to_string();
        assert_eq!(error, format!("scheduler: unknown value `pndm` (expected {names})"));
    }
}
