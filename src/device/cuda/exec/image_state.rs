//! The state of one image's steps, in memory of its own.

use super::executable::CudaExecutable;
use super::results::Results;
use crate::device::cuda::ops::kernel::{Pointer, to_i32};
use crate::device::cuda::ops::memory_layout::ImageLayout;
use crate::device::cuda::ops::step::ImageState;
use crate::device::denoise_loop::{LatentSize, level_after};
use crate::device::{DenoiseInputs, DeviceTensor, ImageInFlight, KeptLatents, LoopSpec, TensorRef};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::schedulers::{NoiseLevel, PackedStepCoefficients};
use bytemuck::cast_slice;
use std::sync::{Arc, Weak};

/// An image's state on the device, and what of its inputs lies there.
pub(super) struct CudaImage {
    memory: Arc<Results>,
    layout: ImageLayout,
    /// Guidance's scale and rescale.
    guidance: Option<[f32; 2]>,
    /// The inputs that vary from step to step. Weak, so that nothing is kept of those that were exchanged.
    varying: Vec<Weak<TensorRef<'static>>>,
}

/// The error for an image whose state is not this device's.
pub(super) fn foreign() -> Error {
    Error::Graph("denoise loop: an image that another device has begun".into())
}

impl CudaImage {
    /// Nothing is in the memory yet.
    pub(super) fn new(memory: Arc<Results>, layout: ImageLayout) -> Self {
        Self { memory, layout, guidance: None, varying: Vec::new() }
    }

    fn at(&self, place: usize) -> u64 {
        self.memory.address() + place as u64
    }

    /// The address of the latents.
    pub(super) fn latents(&self) -> u64 {
        self.at(self.layout.latents)
    }

    /// The address of the step's number and, after it, of the first step that was not finite.
    pub(super) fn counters(&self) -> u64 {
        self.at(self.layout.counter)
    }

    /// The address of the model's output in the first step.
    pub(super) fn first_output(&self) -> u64 {
        self.at(self.layout.first)
    }

    /// The latents, of so many values; the memory is the image's for as long as anyone has them.
    pub(super) fn result(&self, len: usize) -> DeviceTensor {
        DeviceTensor::new(self.memory.clone(), self.layout.latents / 4, len)
    }

    /// Refuses an image of another device.
    pub(super) fn require(&self, executable: &CudaExecutable) -> Result<()> {
        match self.memory.belongs_to(&executable.driver) {
            true => Ok(()),
            false => Err(foreign()),
        }
    }

    /// Uploads what stays the same for all steps, and the fresh noise of all of them.
    pub(super) fn begin(&self, executable: &CudaExecutable, inputs: &mut DenoiseInputs) -> Result<()> {
        let (layout, driver) = (&self.layout, &executable.driver);
        driver.upload(self.counters(), cast_slice(&[0, i32::MAX]))?;
        let table: Vec<PackedStepCoefficients> = inputs.table.iter().map(PackedStepCoefficients::from).collect();
        driver.upload(self.at(layout.table), cast_slice(&table))?;
        driver.upload(self.latents(), cast_slice(&inputs.latents))?;
        let len = inputs.latents.len();
        if let Some(KeptLatents { mask, image, noise }) = &inputs.kept {
            let level = |i: usize| {
                let NoiseLevel { alpha, sigma } = level_after(&inputs.table, i);
                [alpha, sigma]
            };
            let levels: Vec<[f32; 2]> = (0..inputs.table.len()).map(level).collect();
            driver.upload(self.at(layout.kept_levels), cast_slice(&levels))?;
            for (part, values) in [mask, image, noise].into_iter().enumerate() {
                driver.upload(self.at(layout.kept + part * len * 4), cast_slice(values))?;
            }
        }
        if !inputs.extra.is_empty() {
            driver.upload(self.at(layout.extra), cast_slice(&inputs.extra))?;
        }
        for (i, row) in inputs.table.iter().enumerate().filter(|(_, row)| row.noise.is_some()) {
            // Where a step only draws, to follow its peer's generator, what it draws is not needed.
            let noise = (inputs.noise)(i);
            let Some(to) = layout.noise.filter(|_| row.adds_noise()) else { continue };
            if noise.len() != len {
                let what = format!("denoise loop: noise of {len} values is needed, got {}", noise.len());
                return Err(Error::Graph(what));
            }
            driver.upload(self.at(to + i * len * 4), cast_slice(&noise))?;
        }
        Ok(())
    }

    /// Uploads what may be exchanged between two steps, as far as it is not here: guidance, and the inputs that vary.
    pub(super) fn update(
        &mut self,
        executable: &CudaExecutable,
        graph: &Graph,
        spec: &LoopSpec,
        inputs: &DenoiseInputs,
    ) -> Result<()> {
        let guidance = [inputs.guidance_scale, inputs.guidance_rescale];
        if self.guidance != Some(guidance) {
            executable.driver.upload(self.at(self.layout.guidance), cast_slice(&guidance))?;
            self.guidance = Some(guidance);
        }
        let (rows, old) = (LatentSize::of(graph).rows, std::mem::take(&mut self.varying));
        let mut at = self.at(self.layout.varying);
        let mut varying = Vec::new();
        for (i, k) in spec.varying.clone().enumerate() {
            let (width, values) = (graph.node(graph.inputs[k].1).len() / rows, &inputs.inputs[k]);
            let count = width * inputs.rows * inputs.table.len();
            if old.get(i).is_none_or(|old| !std::ptr::eq(old.as_ptr(), Arc::as_ptr(values))) {
                executable.copy_in(&values.slice(0..count)?, at)?;
            }
            varying.push(Arc::downgrade(values));
            at += count as u64 * 4;
        }
        self.varying = varying;
        Ok(())
    }

    /// The addresses by which the kernels find the state of an image whose rows begin at that one.
    pub(super) fn state(&self, image: &ImageInFlight, first: usize) -> ImageState {
        let (layout, inputs) = (&self.layout, &image.inputs);
        let at = |place: usize| Pointer(self.at(place));
        let given = |is_given: bool, place: usize| if is_given { at(place) } else { Pointer(0) };
        ImageState {
            x: at(layout.latents),
            history: at(layout.history),
            noise: layout.noise.map_or(Pointer(0), at),
            table: at(layout.table),
            guidance: at(layout.guidance),
            kept: at(layout.kept),
            kept_levels: given(inputs.kept.is_some(), layout.kept_levels),
            extra: given(!inputs.extra.is_empty(), layout.extra),
            varying: at(layout.varying),
            step: at(layout.counter),
            first: to_i32(first),
            rows: to_i32(image.rows()),
            held: to_i32(inputs.rows),
            steps: to_i32(inputs.table.len()),
        }
    }
}
