//! Checks that a request fits the memory, before anything is compiled.

use super::compile::{Compiler, EncoderPlan, Executables};
use super::denoise_plan::{DenoisePlan, Placement};
use super::planned_loops::PlannedLoops;
use super::residency::{EncoderResidency, MemoryEstimate};
use crate::device::DeviceMemory;
use crate::error::{Error, Field, Message, Result};
use crate::memory;

/// A request's demands on the device's memory.
pub(super) struct MemoryDemand<'a> {
    pub(super) plan: &'a DenoisePlan,
    /// The same for steps without guidance, where there are such.
    pub(super) unguided: Option<&'a DenoisePlan>,
    pub(super) placement: Placement,
    pub(super) encoders: &'a EncoderPlan,
    /// The images of the request.
    pub(super) images: usize,
    /// Whether any number of images up to the most may share an evaluation.
    pub(super) every: bool,
}

impl MemoryDemand<'_> {
    /// The estimate for one image at a time.
    fn estimate(&self, compiler: &Compiler<'_>, plan: &DenoisePlan) -> Result<Option<MemoryEstimate>> {
        let plans = std::slice::from_ref(plan);
        compiler.estimate(plans, (plans, plan.shape.batch), self.placement, self.encoders)
    }

    /// The estimate where so many images share evaluations in these loops.
    fn estimate_of_images(
        &self,
        executables: &Executables<'_>,
        loops: &PlannedLoops,
        most: usize,
    ) -> Result<Option<MemoryEstimate>> {
        let compiler = &executables.compiler;
        let plans = loops.plans(most, self.images, self.every);
        let own = std::slice::from_ref(self.plan);
        let mut estimate = compiler.estimate(own, (&plans, loops.image_rows()), self.placement, self.encoders)?;
        if let Some(estimate) = &mut estimate
            && executables.joins
        {
            // Each request has a copy of its conditioning; those under way have theirs.
            let new = most.saturating_sub(executables.under_way.len());
            estimate.condition += compiler.conditioning_bytes(loops.plan())? * new as u64;
        }
        Ok(estimate)
    }
}

/// Decides whether the encoders are freed after use and how many images share evaluations, and refuses what does not fit before anything
/// is compiled.
pub(super) fn require(
    executables: &mut Executables<'_>,
    residency: EncoderResidency,
    demand: &MemoryDemand<'_>,
) -> Result<()> {
    let latent = [demand.plan.shape.height, demand.plan.shape.width];
    let wanted = executables.compiler.most_images(latent);
    let wanted = if executables.joins { wanted } else { wanted.min(demand.images) }.max(1);
    let loops = executables.planned_loops(demand.plan, demand.unguided);
    if executables.has(loops.plan(), demand.placement) && executables.cache.has_planned(&loops, wanted) {
        return Ok(());
    }
    let device = executables.compiler.device;
    let (DeviceMemory::Dedicated { free }, Some(estimate)) =
        (device.memory()?, demand.estimate(&executables.compiler, demand.plan)?)
    else {
        executables.cache.free_encoders = residency == EncoderResidency::Free;
        return Ok(());
    };
    // Executables of other shapes make room, and so do results of earlier requests.
    let have = free.saturating_add(executables.cache.bytes() as u64 + executables.cache.contents.device_bytes());
    let free_encoders = match residency {
        EncoderResidency::Keep => false,
        EncoderResidency::Free => true,
        EncoderResidency::Auto => estimate.peak_resident() > have,
    };
    executables.cache.free_encoders = free_encoders;
    let peak = |e: MemoryEstimate| if free_encoders { e.peak_offloaded() } else { e.peak_resident() };
    let need = peak(estimate);
    if need <= have {
        let mut images = wanted;
        while images > 1 && demand.estimate_of_images(executables, &loops, images)?.is_some_and(|e| peak(e) > have) {
            images -= 1;
        }
        executables.cache.plan_images(loops, wanted, images);
        return Ok(());
    }
    let hint = if estimate.peak_offloaded() <= have {
        let would = format!(" would fit, it takes {}", estimate.peak_offloaded());
        Message::default().setting(Field::Encoders, "free").text(would)
    } else {
        let hint = smaller(executables, residency, demand, have)?;
        if fits_in_tiles(&executables.compiler, residency, demand, have)? {
            hint.text(", this size with ").field(Field::VaeTiling)
        } else {
            hint
        }
    };
    Err(Error::Memory { stage: "loading", need, have, hint })
}

/// Whether the request would fit if the VAE worked in tiles.
fn fits_in_tiles(
    compiler: &Compiler<'_>,
    residency: EncoderResidency,
    demand: &MemoryDemand<'_>,
    have: u64,
) -> Result<bool> {
    let Some(tiled) = compiler.in_tiles([demand.plan.shape.height, demand.plan.shape.width]) else { return Ok(false) };
    let estimate = demand.estimate(&tiled, demand.plan)?;
    let need =
        estimate.map(|e| if residency == EncoderResidency::Keep { e.peak_resident() } else { e.peak_offloaded() });
    Ok(need.is_some_and(|need| need <= have))
}

/// Names the size that would fit.
fn smaller(
    executables: &Executables<'_>,
    residency: EncoderResidency,
    demand: &MemoryDemand<'_>,
    have: u64,
) -> Result<Message> {
    let (plan, factor) = (demand.plan, executables.compiler.models.vae.config.scale_factor());
    for quarters in [3, 2, 1] {
        // Whole multiples of 64 pixels where there are any.
        let unit = if plan.shape.height.min(plan.shape.width) * factor >= 256 { 64 / factor.clamp(1, 64) } else { 1 };
        let part = |side: usize| (side * quarters / 4 / unit * unit).max(1);
        let mut less = plan.clone();
        (less.shape.height, less.shape.width) = (part(plan.shape.height), part(plan.shape.width));
        let Some(estimate) = demand.estimate(&executables.compiler, &less)? else { break };
        if estimate.peak_offloaded() <= have {
            let (h, w) = (less.shape.height * factor, less.shape.width * factor);
            let hint = Message::from(format!("{w}x{h} (width x height) would fit"));
            return Ok(match residency {
                EncoderResidency::Keep => hint.text(" with ").setting(Field::Encoders, "free"),
                _ => hint,
            });
        }
    }
    let hint = Message::from("no smaller image would fit: free memory of the device, or use ");
    Ok(hint.setting(Field::Device, "cpu"))
}

/// Refuses a request whose images, and one in f32, do not fit the host's memory. `pixels` is the number of one image's,
/// `captured` whether each is kept in f32, too.
pub(super) fn require_images(pixels: usize, num_images: usize, captured: bool) -> Result<()> {
    let values = (pixels * 3) as u64;
    let kept = if captured { 5 } else { 1 };
    let need = values * (num_images as u64 * kept + 4);
    memory::require("decode", need, || "ask for fewer or smaller images".into())
}

/// Refuses a conditioning whose results do not fit the host's memory, where they lie there: they are kept for all steps, and
/// together they take more than the conditioner's arena.
pub(super) fn require_conditioning(
    executables: &mut Executables<'_>,
    plan: &DenoisePlan,
    placement: Placement,
) -> Result<()> {
    if placement == Placement::Device && executables.compiler.device.memory()? != DeviceMemory::Host {
        return Ok(());
    }
    let mut kept = 0;
    for part in plan.conditioning_parts() {
        let graph = executables.conditioner(*part, plan, placement)?.graph();
        kept += graph.outputs.iter().map(|(_, id)| graph.node(*id).len()).sum::<usize>();
    }
    let few = || "give fewer image prompts, a shorter prompt or fewer steps".into();
    memory::require("condition", kept as u64 * 4, few)
}
