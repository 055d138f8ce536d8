//! The shape of a denoiser and its conditioner.

use crate::device::{LoopSpec, RowAxis};
use crate::error::{Error, Field, Result};
use crate::models::unet::{BranchShape, ConditioningPart, DenoiserInterface, InputRole, UnetConfig, UnetShape};

/// The side that makes the steps of a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Placement {
    /// By the device's own denoise loop.
    Device,
    /// By the host's, over the device's executables: where the device has no memory for the fresh noise of all steps.
    Host,
}

/// The plan by which conditioner and denoise loop are compiled.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct DenoisePlan {
    pub(super) shape: UnetShape,
    /// The most steps.
    pub(super) max_steps: usize,
    /// The adapters in use.
    pub(super) adapters: Vec<usize>,
    /// Hidden states of an image, where an adapter in use takes them; else 0.
    pub(super) positions: usize,
}

impl DenoisePlan {
    /// Whether executables compiled for this plan can run another one.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let (a, b) = (&self.shape, &other.shape);
        let branches = |(a, b): (&BranchShape, &BranchShape)| {
            (a.adapter, a.masked) == (b.adapter, b.masked) && a.tokens >= b.tokens
        };
        let same = (a.batch, a.height, a.width, &a.attribution, &self.adapters, self.positions)
            == (b.batch, b.height, b.width, &b.attribution, &other.adapters, other.positions);
        same && a.tokens >= b.tokens
            && a.branches.len() == b.branches.len()
            && a.branches.iter().zip(&b.branches).all(branches)
            && self.max_steps >= other.max_steps
    }

    /// This plan for prompts whose own would be another one: they run on the same executables.
    ///
    /// # Errors
    /// [`Error::Parameter`] that names what these have no room for.
    pub(super) fn room_for(&self, own: &Self) -> Result<Self> {
        if self.covers(own) {
            return Ok(self.clone());
        }
        let (room, given) = (&self.shape, &own.shape);
        let masked = |shape: &UnetShape| shape.branches.iter().map(|branch| branch.masked).collect::<Vec<_>>();
        let tokens = |shape: &UnetShape| shape.branches.iter().map(|branch| branch.tokens).sum::<usize>();
        let more =
            "while images are drawn there is no more room; give less, or prepare a workload shape of more beforehand";
        let (field, what) = if given.tokens > room.tokens {
            (Field::Prompt, format!("{} tokens of text in place of {} at most: {more}", given.tokens, room.tokens))
        } else if own.adapters != self.adapters {
            let what = format!("references for the adapters {:?} in place of {:?}", own.adapters, self.adapters);
            (Field::ImagePrompts, format!("{what}: while images are drawn no adapter joins or leaves"))
        } else if given.branches.len() != room.branches.len() || given.attribution != room.attribution {
            let what = "references with a softmax or a map each stay as many while images are drawn; there were";
            (Field::ImagePrompts, format!("{what} {}, now {}", room.branches.len(), given.branches.len()))
        } else if masked(given) != masked(room) {
            let what =
                "references with masks take no place of some without, nor the other way round, while images are drawn";
            (Field::ReferenceMask, what.to_owned())
        } else if own.positions != self.positions {
            let what = format!("{} hidden states of an image in place of {}", own.positions, self.positions);
            (Field::ImagePrompts, what)
        } else {
            let what = format!("{} tokens of references in place of {} at most: {more}", tokens(given), tokens(room));
            (Field::ImagePrompts, what)
        };
        Err(Error::parameter(field, what))
    }

    /// The parts of its conditioning.
    pub(super) fn conditioning_parts(&self) -> &'static [ConditioningPart] {
        let all = ConditioningPart::ALL;
        if self.shape.branches.is_empty() { all.split_last().map_or(all, |(_, rest)| rest) } else { all }
    }

    /// The same with nothing, or 0, for all that makes no difference to a part of its conditioning.
    pub(super) fn conditioning(&self, part: ConditioningPart) -> Self {
        let mut plan = self.clone();
        (plan.shape.height, plan.shape.width, plan.shape.attribution) = (0, 0, Vec::new());
        plan.shape.branches.iter_mut().for_each(|branch| branch.masked = false);
        if part != ConditioningPart::Image {
            (plan.shape.branches, plan.adapters, plan.positions) = (Vec::new(), Vec::new(), 0);
        }
        if part != ConditioningPart::Text {
            plan.shape.tokens = 0;
        }
        if part != ConditioningPart::Time {
            plan.max_steps = 0;
        }
        plan
    }

    /// The denoise loop; fresh noise of all steps may take `max_noise_bytes`.
    pub(super) fn loop_spec(&self, config: &UnetConfig, max_noise_bytes: u64) -> LoopSpec {
        let bytes = self.max_steps * self.shape.height * self.shape.width * config.out_channels * 4;
        let interface = DenoiserInterface::new(config, &self.shape);
        let row_axis = |role: InputRole| match role {
            InputRole::Scales => RowAxis::Last,
            role if role.is_shared() => RowAxis::Shared,
            _ => RowAxis::First,
        };
        // The last is that of the LoRAs' scales, which the denoiser has beside its own where there are some.
        let row_axes = interface.inputs.iter().map(|input| row_axis(input.role)).chain([RowAxis::Shared]).collect();
        let (max_steps, varying, noise) = (self.max_steps, interface.varying(), bytes as u64 <= max_noise_bytes);
        LoopSpec { max_steps, varying, noise, row_axes, image_rows: 1 }
    }

    /// The same for an evaluation that so many images share.
    pub(super) fn of_images(&self, images: usize) -> Self {
        self.with_rows(self.shape.batch * images)
    }

    /// The same for so many rows.
    pub(super) fn with_rows(&self, rows: usize) -> Self {
        let shape = UnetShape { batch: rows, ..self.shape.clone() };
        Self { shape, ..self.clone() }
    }

    /// The same for an evaluation that images of these plans share: as many rows as all of them, with room for the longest of each.
    pub(super) fn shared<'a>(&self, others: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut shared = self.clone();
        for DenoisePlan { shape, max_steps, .. } in others {
            shared.shape.batch += shape.batch;
            shared.shape.tokens = shared.shape.tokens.max(shape.tokens);
            shared.max_steps = shared.max_steps.max(*max_steps);
            for (branch, other) in shared.shape.branches.iter_mut().zip(&shape.branches) {
                branch.tokens = branch.tokens.max(other.tokens);
            }
        }
        shared
    }

    /// Whether images of both plans can share an evaluation: one latent size, the same branches of the same adapters, and the same outputs.
    pub(super) fn joins(&self, other: &Self) -> bool {
        let (a, b) = (&self.shape, &other.shape);
        let branches = |(a, b): (&BranchShape, &BranchShape)| (a.adapter, a.masked) == (b.adapter, b.masked);
        (a.height, a.width, &a.attribution, &self.adapters, a.branches.len())
            == (b.height, b.width, &b.attribution, &other.adapters, b.branches.len())
            && a.branches.iter().zip(&b.branches).all(branches)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::models::published;

    type Change = fn(&mut DenoisePlan);

    fn branch(adapter: usize, tokens: usize) -> BranchShape {
        BranchShape { adapter, tokens, masked: false }
    }

    pub(in crate::pipeline) fn plan() -> DenoisePlan {
        let shape = UnetShape {
            batch: 2,
            height: 8,
            width: 16,
            tokens: 77,
            branches: vec![branch(0, 8), branch(1, 4)],
            attribution: Vec::new(),
        };
        DenoisePlan { shape, max_steps: 4, adapters: vec![0, 2], positions: 5 }
    }

    /// One difference at a time, of a plan that is covered by the first one or not.
    #[test]
    fn covered_plans() {
        let changes: [(&str, bool, Change); 18] = [
            ("the same", true, |_| {}),
            ("fewer steps", true, |p| p.max_steps = 3),
            ("more steps", false, |p| p.max_steps = 5),
            ("fewer tokens", true, |p| p.shape.tokens = 76),
            ("more tokens", false, |p| p.shape.tokens = 154),
            ("fewer image tokens", true, |p| p.shape.branches[0].tokens = 4),
            ("more image tokens", false, |p| p.shape.branches[1].tokens = 8),
            ("a mask", false, |p| p.shape.branches[1].masked = true),
            ("branches of one adapter", false, |p| p.shape.branches[1].adapter = 0),
            ("a branch less", false, |p| p.shape.branches.truncate(1)),
            ("a branch more", false, |p| p.shape.branches.push(branch(1, 4))),
            ("another adapter", false, |p| p.adapters[1] = 1),
            ("no guidance", false, |p| p.shape.batch = 1),
            ("parts of references", false, |p| p.shape.attribution = vec![2, 1]),
            ("lower", false, |p| p.shape.height = 4),
            ("wider", false, |p| p.shape.width = 32),
            ("other hidden states", false, |p| p.positions = 257),
            ("none", false, |p| p.positions = 0),
        ];
        for (what, covered, change) in changes {
            let mut other = plan();
            change(&mut other);
            assert_eq!(plan().covers(&other), covered, "{what}");
        }
    }

    /// One difference at a time, and the parts of the conditioning that it makes another one of: time, text, image.
    #[test]
    fn plans_of_conditionings() {
        let changes: [(&str, [bool; 3], Change); 11] = [
            ("the same", [false; 3], |_| {}),
            ("steps", [true, false, false], |p| p.max_steps = 5),
            ("tokens", [false, true, false], |p| p.shape.tokens = 154),
            ("image tokens", [false, false, true], |p| p.shape.branches[0].tokens = 4),
            ("branches of one adapter", [false, false, true], |p| p.shape.branches[1].adapter = 0),
            ("another adapter", [false, false, true], |p| p.adapters[1] = 1),
            ("other hidden states", [false, false, true], |p| p.positions = 257),
            ("a mask", [false; 3], |p| p.shape.branches[1].masked = true),
            ("no guidance", [true; 3], |p| p.shape.batch = 1),
            ("parts of references", [false; 3], |p| p.shape.attribution = vec![2, 1]),
            ("another size", [false; 3], |p| (p.shape.height, p.shape.width) = (4, 32)),
        ];
        for (what, wanted, change) in changes {
            let mut other = plan();
            change(&mut other);
            let differs = |part: &ConditioningPart| plan().conditioning(*part) != other.conditioning(*part);
            assert!(plan().conditioning_parts().iter().map(differs).eq(wanted), "{what}");
        }
        let mut without = plan();
        without.shape.branches.clear();
        assert_eq!(without.conditioning_parts(), [ConditioningPart::Time, ConditioningPart::Text]);
    }

    #[test]
    fn memory_of_noise() {
        let config = published::unet();
        // Four steps of [4, 8, 16] in f32.
        let bytes = 4 * 4 * 8 * 16 * 4;
        assert!(plan().loop_spec(&config, bytes).noise);
        assert!(!plan().loop_spec(&config, bytes - 1).noise);
    }
}
