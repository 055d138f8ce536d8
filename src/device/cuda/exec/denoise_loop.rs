//! All steps of a scheduler on the device: one upload, then one graph launch for each step; the latents stay for the decoder.

use super::executable::CudaExecutable;
use crate::device::cuda::driver::interface::EVENTS;
use crate::device::cuda::driver::stream_lock::{StreamLock, lock_stream};
use crate::device::denoise_loop::level_after;
use crate::device::executable::compiled_by;
use crate::device::{DenoiseInputs, DenoiseLoop, DenoiseOutput, KeptLatents, LoopSpec, TensorRef};
use crate::error::{Error, Result};
use crate::schedulers::{NoiseLevel, PackedStepCoefficients};
use bytemuck::{cast_slice, cast_slice_mut};
use std::sync::MutexGuard;

fn bad(what: String) -> Error {
    Error::Graph(format!("denoise loop: {what}"))
}

/// A denoiser with the loop over its steps: each is one launch of one captured graph.
pub struct CudaDenoiseLoop {
    executable: CudaExecutable,
    spec: LoopSpec,
}

compiled_by!(CudaDenoiseLoop, executable);

impl CudaDenoiseLoop {
    /// Wraps an executable that was lowered as a denoise loop of that kind.
    pub(crate) fn new(executable: CudaExecutable, spec: LoopSpec) -> Self {
        Self { executable, spec }
    }

    /// Refuses inputs of other lengths than declared, and noise for which no memory is reserved.
    fn check(&self, inputs: &DenoiseInputs<'_>) -> Result<()> {
        let (count, most) = (inputs.table.len(), self.spec.max_steps);
        if count == 0 || count > most {
            return Err(bad(format!("{count} steps; 1 to {most} are possible")));
        }
        inputs.check(&self.executable.graph, &self.spec.varying)?;
        if !self.spec.noise && inputs.table.iter().any(|row| row.adds_noise()) {
            let n = self.executable.regions().state.len;
            return Err(bad(format!("noise of {n} values is added, and the loop was compiled without memory for it")));
        }
        Ok(())
    }

    /// Uploads everything that the steps read.
    fn upload(&mut self, inputs: &mut DenoiseInputs<'_>) -> Result<()> {
        let executable = &mut self.executable;
        let (regions, driver) = (*executable.regions(), executable.driver.clone());
        let state = regions.state;
        // Inputs that vary by step are uploaded separately.
        let rest = inputs.inputs.iter().enumerate().map(|(k, values)| {
            let len = if self.spec.varying.contains(&k) { 0 } else { values.len() };
            values.slice(0..len)
        });
        executable.bind_inputs(&rest.collect::<Result<Vec<_>>>()?)?;
        for k in self.spec.varying.clone() {
            let at = executable.lowered.bindings.inputs[k].varying.unwrap_or(0);
            executable.copy_in(&inputs.inputs[k], executable.at(regions.varying[0] + at * 4))?;
        }
        executable.begin()?;
        driver.upload(executable.at(state.counter), cast_slice(&[0, i32::MAX]))?;
        let guidance = [inputs.guidance_scale, inputs.guidance_rescale];
        driver.upload(executable.at(state.guidance), cast_slice(&guidance))?;
        let table: Vec<PackedStepCoefficients> = inputs.table.iter().map(PackedStepCoefficients::from).collect();
        driver.upload(executable.at(state.table), cast_slice(&table))?;
        driver.upload(executable.kept(state.latents), cast_slice(inputs.latents))?;
        let mut levels = vec![[0.0f32; 2]; inputs.table.len()];
        if inputs.kept.is_some() {
            let next = (0..inputs.table.len()).map(|i| level_after(inputs.table, i));
            levels.iter_mut().zip(next).for_each(|(to, NoiseLevel { alpha, sigma })| *to = [alpha, sigma]);
        }
        driver.upload(executable.at(state.kept_levels), cast_slice(&levels))?;
        if let Some(KeptLatents { mask, image, noise }) = inputs.kept {
            for (part, values) in [mask, image, noise].into_iter().enumerate() {
                driver.upload(executable.at(state.kept + part * state.len * 4), cast_slice(values))?;
            }
        }
        if !inputs.extra.is_empty() {
            driver.upload(executable.at(state.extra), cast_slice(inputs.extra))?;
        }
        for (i, row) in inputs.table.iter().enumerate().filter(|(_, row)| row.noise.is_some()) {
            // Where a step only draws, to follow its peer's generator, what it draws is not needed.
            let noise = (inputs.noise)(i);
            if row.adds_noise() {
                if noise.len() != state.len {
                    return Err(bad(format!("noise of {} values is needed, got {}", state.len, noise.len())));
                }
                driver.upload(executable.at(state.noise + i * state.len * 4), cast_slice(&noise))?;
            }
        }
        Ok(())
    }

    /// Runs the steps; allocates and downloads nothing, but for what a preview shows.
    fn steps<'l>(
        &mut self,
        inputs: &mut DenoiseInputs<'_>,
        reached: &mut dyn FnMut(usize) -> Result<()>,
        (lock, mut locked): (&'l StreamLock, MutexGuard<'l, ()>),
    ) -> Result<MutexGuard<'l, ()>> {
        let executable = &mut self.executable;
        let (regions, driver) = (*executable.regions(), executable.driver.clone());
        let state = regions.state;
        let output_at = regions.outputs + executable.lowered.bindings.outputs[0] * 4;
        let count = inputs.table.len();
        for i in 0..count {
            if i >= EVENTS {
                driver.synchronize_event(i % EVENTS)?;
            }
            reached((i + 1).saturating_sub(EVENTS))?;
            let due = inputs.preview.as_ref().is_some_and(|preview| preview.is_due(i + 1));
            let mut before = vec![0.0f32; if due { state.len } else { 0 }];
            if due {
                driver.download(executable.kept(state.latents), cast_slice_mut(&mut before))?;
            }
            executable.execute()?;
            if i == 0 && inputs.capture_first {
                driver.copy(executable.kept(output_at), executable.at(state.first), state.rows * state.len * 4)?;
            }
            driver.record_event(i % EVENTS)?;
            if due {
                let mut output = vec![0.0f32; state.rows * state.len];
                driver.download(executable.kept(output_at), cast_slice_mut(&mut output))?;
                // What shows it may run executables of this device.
                drop(locked);
                let mut guided = vec![0.0; state.len];
                let guided = inputs.guide(&output, &mut guided)?;
                if let Some(preview) = &mut inputs.preview {
                    preview.show(i + 1, &inputs.table[i], &before, guided)?;
                }
                locked = lock_stream(lock);
            }
        }
        for i in count.saturating_sub(EVENTS)..count {
            driver.synchronize_event(i % EVENTS)?;
            reached(i + 1)?;
        }
        Ok(locked)
    }
}

impl DenoiseLoop for CudaDenoiseLoop {
    fn accepts(&self, spec: &LoopSpec) -> bool {
        self.spec == *spec
    }

    fn denoise(
        &mut self,
        mut inputs: DenoiseInputs<'_>,
        reached: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<DenoiseOutput> {
        self.check(&inputs)?;
        let lock = self.executable.stream_lock.clone();
        let locked = lock_stream(&lock);
        self.upload(&mut inputs)?;
        let _locked = self.steps(&mut inputs, reached, (&lock, locked))?;
        let executable = &self.executable;
        let (state, driver) = (executable.regions().state, executable.driver.clone());
        let mut first_output = vec![0.0f32; if inputs.capture_first { state.rows * state.len } else { 0 }];
        let mut counters = [0i32; 2];
        driver.download(executable.at(state.counter), cast_slice_mut(&mut counters))?;
        if inputs.capture_first {
            driver.download(executable.at(state.first), cast_slice_mut(&mut first_output))?;
        }
        let not_finite = usize::try_from(counters[1]).ok().filter(|step| *step < inputs.table.len());
        let latents = TensorRef::from(executable.resident(state.latents, state.len));
        Ok(DenoiseOutput { latents, first_output, not_finite })
    }
}
