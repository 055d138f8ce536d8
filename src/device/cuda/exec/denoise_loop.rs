//! All steps of a sampler: everything up, a replay for each step; the latents stay for the decoder.

use super::executable::CudaExecutable;
use crate::device::cuda::driver::interface::EVENTS;
use crate::device::cuda::driver::stream_lock::lock_stream;
use crate::device::{DenoiseInputs, DenoiseLoop, DenoiseOutput, Executable, LoopSteps, Role};
use crate::error::{Error, Result};
use bytemuck::cast_slice;

fn bad(what: String) -> Error {
    Error::Graph(format!("sampler: {what}"))
}

impl CudaExecutable {
    /// Refuses what has other lengths than was declared.
    fn check_sampling(&self, job: &DenoiseInputs<'_>) -> Result<LoopSteps> {
        let Role::Denoise(steps) = self.role.clone() else {
            return Err(bad("the program was not loaded as one".into()));
        };
        let (n, count) = (self.regions().state.len, job.table.len());
        if count == 0 || count > steps.max_steps {
            return Err(bad(format!("{count} steps; 1 to {} are possible", steps.max_steps)));
        }
        let graph = self.graph();
        if job.inputs.len() != graph.inputs.len() {
            return Err(bad(format!("{} inputs declared, {} bound", graph.inputs.len(), job.inputs.len())));
        }
        for (k, ((name, id), values)) in graph.inputs.iter().zip(job.inputs).enumerate() {
            let len = graph.node(*id).len();
            let want = if k == 0 { 0 } else { len * if steps.varying.contains(&k) { count } else { 1 } };
            if values.len() != want {
                return Err(bad(format!("input `{name}` is bound to {} values, {want} are needed", values.len())));
            }
        }
        // Column 9 weighs the noise.
        let needed = |row: usize| if job.table[row][9] != 0.0 { n } else { 0 };
        let given = |row: usize| job.noise.get(row).map_or(0, Vec::len);
        if (0..count).any(|row| given(row) != needed(row) || given(row) > 0 && !steps.noise) {
            return Err(bad(format!("noise of {n} values is needed for the steps that add some, and room for it")));
        }
        if job.latents.len() != n {
            return Err(bad(format!("{} latents, {n} are needed", job.latents.len())));
        }
        Ok(steps)
    }

    /// Takes everything that the steps read to the device.
    fn fill(&mut self, job: &DenoiseInputs<'_>, steps: &LoopSteps) -> Result<()> {
        let (regions, driver) = (*self.regions(), self.driver.clone());
        let state = regions.state;
        // What varies goes up by itself.
        let rest = job.inputs.iter().enumerate().map(|(k, values)| {
            let len = if steps.varying.contains(&k) { 0 } else { values.len() };
            values.slice(0..len)
        });
        self.bind_inputs(&rest.collect::<Result<Vec<_>>>()?)?;
        for k in steps.varying.clone() {
            let at = self.lowered.bindings.inputs[k].varying.unwrap_or(0);
            self.copy_in(&job.inputs[k], self.at(regions.varying[0] + at * 4))?;
        }
        self.begin()?;
        driver.upload(self.at(state.counter), cast_slice(&[0, i32::MAX]))?;
        driver.upload(self.at(state.guidance), cast_slice(&job.guidance))?;
        driver.upload(self.at(state.table), cast_slice(job.table))?;
        driver.upload(self.kept(state.latents), cast_slice(job.latents))?;
        for (i, noise) in job.noise.iter().enumerate().filter(|(_, noise)| !noise.is_empty()) {
            driver.upload(self.at(state.noise + i * state.len * 4), cast_slice(noise))?;
        }
        Ok(())
    }

    /// The steps: nothing here is allocated, and nothing comes back.
    fn steps(&mut self, job: &DenoiseInputs<'_>, reached: &mut dyn FnMut(usize) -> Result<()>) -> Result<()> {
        let (regions, driver) = (*self.regions(), self.driver.clone());
        let state = regions.state;
        let count = job.table.len();
        for i in 0..count {
            if i >= EVENTS {
                driver.synchronize_event(i % EVENTS)?;
            }
            reached((i + 1).saturating_sub(EVENTS))?;
            self.execute()?;
            if i == 0 && job.capture_first {
                let from = regions.outputs + self.lowered.bindings.outputs[0] * 4;
                driver.copy(self.kept(from), self.at(state.first), state.rows * state.len * 4)?;
            }
            driver.record_event(i % EVENTS)?;
        }
        for i in count.saturating_sub(EVENTS)..count {
            driver.synchronize_event(i % EVENTS)?;
            reached(i + 1)?;
        }
        Ok(())
    }
}

impl DenoiseLoop for CudaExecutable {
    fn denoise(
        &mut self,
        job: &DenoiseInputs<'_>,
        reached: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<DenoiseOutput> {
        let steps = self.check_sampling(job)?;
        let turn = self.turn.clone();
        let _turn = lock_stream(&turn);
        self.fill(job, &steps)?;
        self.steps(job, reached)?;
        let state = self.regions().state;
        let mut first_output = vec![0.0f32; if job.capture_first { state.rows * state.len } else { 0 }];
        let mut counters = [0i32; 2];
        let driver = self.driver.clone();
        driver.download(self.at(state.counter), bytemuck::cast_slice_mut(&mut counters))?;
        if job.capture_first {
            driver.download(self.at(state.first), bytemuck::cast_slice_mut(&mut first_output))?;
        }
        let not_finite = usize::try_from(counters[1]).ok().filter(|step| *step < job.table.len());
        let latents = self.resident(state.latents, state.len);
        Ok(DenoiseOutput { latents, first_output, not_finite })
    }
}
