//! Settings that the makers of few-step models and LoRAs recommend.

use crate::Request;
use crate::schedulers::{SchedulerKind, TimestepSpacing};

/// Whether settings that have a value in any case were given as flags.
#[derive(Debug, Clone, Copy, Default)]
pub struct Given {
    /// `--steps`.
    pub steps: bool,
    /// `--cfg-scale`.
    pub guidance_scale: bool,
    /// An image to begin with, whose size counts.
    pub init_image: bool,
}

/// The settings of a preset; those that a flag gives win.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    steps: usize,
    scheduler: SchedulerKind,
    /// The scheduler's own where absent.
    spacing: Option<TimestepSpacing>,
    /// Width and height; the model's own where absent.
    side: Option<usize>,
}

/// All of them. Sources: the model cards of latent-consistency/lcm-lora-sdxl, ByteDance/SDXL-Lightning and stabilityai/sdxl-turbo.
pub const PRESETS: [Preset; 3] = [
    Preset { name: "lcm", steps: 4, scheduler: SchedulerKind::Lcm, spacing: None, side: None },
    Preset {
        name: "lightning-4",
        steps: 4,
        scheduler: SchedulerKind::Euler,
        spacing: Some(TimestepSpacing::Trailing),
        side: None,
    },
    Preset {
        name: "turbo",
        steps: 1,
        scheduler: SchedulerKind::EulerAncestral,
        spacing: Some(TimestepSpacing::Trailing),
        side: Some(512),
    },
];

/// The guidance scale of all of them, which is none.
const GUIDANCE_SCALE: f32 = 1.0;

impl Preset {
    /// Sets what no flag has set.
    pub fn apply(&self, request: &mut Request, given: Given) {
        if !given.steps {
            request.steps = self.steps;
        }
        if !given.guidance_scale {
            request.guidance_scale = GUIDANCE_SCALE;
        }
        // Another scheduler's spacing is its own affair.
        if request.scheduler.is_none() {
            request.timestep_spacing = request.timestep_spacing.or(self.spacing);
        }
        request.scheduler = request.scheduler.or(Some(self.scheduler));
        if (request.width, request.height) == (None, None) && !given.init_image {
            (request.width, request.height) = (self.side, self.side);
        }
    }
}
