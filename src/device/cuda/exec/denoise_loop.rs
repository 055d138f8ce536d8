//! The steps of an image on the device: one upload, then one graph launch for each step; the latents stay for the decoder.

use super::executable::CudaExecutable;
use crate::device::cuda::driver::interface::EVENTS;
use crate::device::cuda::driver::stream_lock::lock_stream;
use crate::device::denoise_loop::level_after;
use crate::device::executable::compiled_by;
use crate::device::{DenoiseInputs, DenoiseLoop, DenoiseOutput, ImageInFlight, KeptLatents, LoopSpec, TensorRef};
use crate::error::{Error, Result};
use crate::schedulers::{NoiseLevel, PackedStepCoefficients};
use bytemuck::{cast_slice, cast_slice_mut};
use std::sync::{Arc, Weak};

fn bad(what: &str) -> Error {
    Error::Graph(format!("denoise loop: {what}"))
}

/// A denoiser with the loop over its steps: each is one launch of one captured graph. One image at a time: a new one takes its place.
pub struct CudaDenoiseLoop {
    executable: CudaExecutable,
    spec: LoopSpec,
    /// The image that is here.
    owner: Option<Owner>,
    /// Its inputs, and its guidance's scale and rescale. Weak, so that nothing is kept for images that are gone.
    uploaded: (Vec<Weak<TensorRef<'static>>>, [f32; 2]),
}

/// The sign of an image that its state lies in a loop's executable.
#[derive(Clone)]
struct Owner(Arc<()>);

compiled_by!(CudaDenoiseLoop, executable);

impl CudaDenoiseLoop {
    /// Wraps an executable that was lowered as a denoise loop of that kind.
    pub(crate) fn new(executable: CudaExecutable, spec: LoopSpec) -> Self {
        Self { executable, spec, owner: None, uploaded: Default::default() }
    }

    /// Refuses inputs of other lengths than declared, and noise for which no memory is reserved.
    fn check(&self, inputs: &DenoiseInputs) -> Result<()> {
        let (count, most) = (inputs.table.len(), self.spec.max_steps);
        inputs.check(&self.executable.graph, &self.spec)?;
        if count > most {
            return Err(bad(&format!("{count} steps; 1 to {most} are possible")));
        }
        for (k, (name, id)) in self.executable.graph.inputs.iter().enumerate().skip(1) {
            let (given, want) = (inputs.inputs[k].len(), self.executable.graph.node(*id).len());
            if given != want && !self.spec.varying.contains(&k) {
                return Err(bad(&format!("input `{name}` is bound to {given} values, {want} are needed")));
            }
        }
        if !self.spec.noise && inputs.table.iter().any(|row| row.adds_noise()) {
            let n = self.executable.regions().state.len;
            return Err(bad(&format!("noise of {n} values is added, and the loop was compiled without memory for it")));
        }
        Ok(())
    }

    /// Uploads guidance and the inputs of the graph, as far as they are not here, and converts them.
    fn upload_inputs(&mut self, inputs: &DenoiseInputs) -> Result<()> {
        let executable = &mut self.executable;
        let (regions, driver) = (*executable.regions(), executable.driver.clone());
        let (here, guidance) = (&self.uploaded.0, [inputs.guidance_scale, inputs.guidance_rescale]);
        let is_new =
            |k: usize| here.get(k).is_none_or(|old| !std::ptr::eq(old.as_ptr(), Arc::as_ptr(&inputs.inputs[k])));
        let new: Vec<usize> = (0..inputs.inputs.len()).filter(|k| is_new(*k)).collect();
        if new.is_empty() && self.uploaded.1 == guidance {
            return Ok(());
        }
        // Inputs that vary by step are uploaded separately, the others together.
        let varies = |k: &usize| self.spec.varying.contains(k);
        if !new.iter().all(varies) {
            let rest = inputs.inputs.iter().enumerate().map(|(k, values)| {
                let len = if varies(&k) { 0 } else { values.len() };
                values.slice(0..len)
            });
            executable.bind_inputs(&rest.collect::<Result<Vec<_>>>()?)?;
        }
        for k in new.into_iter().filter(varies) {
            let at = executable.lowered.bindings.inputs[k].varying.unwrap_or(0);
            let values = self.spec.values(&executable.graph, k, inputs.rows) * inputs.table.len();
            executable.copy_in(&inputs.inputs[k].slice(0..values)?, executable.at(regions.varying[0] + at * 4))?;
        }
        executable.begin()?;
        driver.upload(executable.at(regions.state.guidance), cast_slice(&guidance))?;
        self.uploaded = (inputs.inputs.iter().map(Arc::downgrade).collect(), guidance);
        Ok(())
    }

    /// Uploads everything that the steps read.
    fn upload(&mut self, inputs: &mut DenoiseInputs) -> Result<()> {
        self.uploaded.0.clear();
        self.upload_inputs(inputs)?;
        let executable = &self.executable;
        let (state, driver) = (executable.regions().state, executable.driver.clone());
        driver.upload(executable.at(state.counter), cast_slice(&[0, i32::MAX]))?;
        let table: Vec<PackedStepCoefficients> = inputs.table.iter().map(PackedStepCoefficients::from).collect();
        driver.upload(executable.at(state.table), cast_slice(&table))?;
        driver.upload(executable.kept(state.latents), cast_slice(&inputs.latents))?;
        let mut levels = vec![[0.0f32; 2]; inputs.table.len()];
        if inputs.kept.is_some() {
            let next = (0..inputs.table.len()).map(|i| level_after(&inputs.table, i));
            levels.iter_mut().zip(next).for_each(|(to, NoiseLevel { alpha, sigma })| *to = [alpha, sigma]);
        }
        driver.upload(executable.at(state.kept_levels), cast_slice(&levels))?;
        if let Some(KeptLatents { mask, image, noise }) = &inputs.kept {
            for (part, values) in [mask, image, noise].into_iter().enumerate() {
                driver.upload(executable.at(state.kept + part * state.len * 4), cast_slice(values))?;
            }
        }
        if !inputs.extra.is_empty() {
            driver.upload(executable.at(state.extra), cast_slice(&inputs.extra))?;
        }
        for (i, row) in inputs.table.iter().enumerate().filter(|(_, row)| row.noise.is_some()) {
            // Where a step only draws, to follow its peer's generator, what it draws is not needed.
            let noise = (inputs.noise)(i);
            if row.adds_noise() {
                if noise.len() != state.len {
                    return Err(bad(&format!("noise of {} values is needed, got {}", state.len, noise.len())));
                }
                driver.upload(executable.at(state.noise + i * state.len * 4), cast_slice(&noise))?;
            }
        }
        Ok(())
    }

    /// Takes an image in before its first step.
    fn admit(&mut self, images: &mut [&mut ImageInFlight]) -> Result<()> {
        let [image] = images else { return Err(bad("one image at a time")) };
        let rows = self.executable.regions().state.rows;
        if image.inputs.rows != rows {
            return Err(bad(&format!("an image of {} rows, {rows} are needed", image.inputs.rows)));
        }
        if image.is_finished() {
            return Err(bad("an image has no more steps"));
        }
        match &image.state {
            None => {
                self.check(&image.inputs)?;
                let owner = Owner(Arc::new(()));
                self.owner = Some(owner.clone());
                self.upload(&mut image.inputs)?;
                image.state = Some(Box::new(owner));
                Ok(())
            }
            // On the one stream, steps that are enqueued already read what was there before.
            Some(_) => {
                self.require(image)?;
                self.check(&image.inputs)?;
                self.upload_inputs(&image.inputs)
            }
        }
    }

    /// Refuses an image whose place another one has taken.
    fn require(&self, image: &ImageInFlight) -> Result<()> {
        let state = image.state.as_ref().and_then(|state| state.downcast_ref::<Owner>());
        match (state, &self.owner) {
            (Some(Owner(its)), Some(Owner(mine))) if Arc::ptr_eq(its, mine) => Ok(()),
            _ => Err(bad("the image is not the last one that was begun here")),
        }
    }

    /// Enqueues a step; allocates and downloads nothing, but for what a preview shows.
    fn enqueue(&mut self, image: &mut ImageInFlight) -> Result<()> {
        let executable = &mut self.executable;
        let (regions, driver) = (*executable.regions(), executable.driver.clone());
        let state = regions.state;
        let output_at = regions.outputs + executable.lowered.bindings.outputs[0] * 4;
        let i = image.done;
        if i >= EVENTS {
            driver.synchronize_event(i % EVENTS)?;
        }
        let due = image.inputs.previews(i + 1);
        let mut before = vec![0.0f32; if due { state.len } else { 0 }];
        if due {
            driver.download(executable.kept(state.latents), cast_slice_mut(&mut before))?;
        }
        executable.execute()?;
        if i == 0 && image.inputs.capture_first {
            driver.copy(executable.kept(output_at), executable.at(state.first), state.rows * state.len * 4)?;
        }
        driver.record_event(i % EVENTS)?;
        if due {
            let (mut output, mut guided) = (vec![0.0f32; state.rows * state.len], vec![0.0; state.len]);
            driver.download(executable.kept(output_at), cast_slice_mut(&mut output))?;
            let guided = image.inputs.guide(&output, &mut guided)?;
            image.keep_preview(&before, guided);
        }
        image.done += 1;
        Ok(())
    }
}

impl DenoiseLoop for CudaDenoiseLoop {
    fn accepts(&self, spec: &LoopSpec) -> bool {
        self.spec == *spec
    }

    fn evaluate(&mut self, images: &mut [&mut ImageInFlight]) -> Result<usize> {
        let lock = self.executable.stream_lock.clone();
        let _locked = lock_stream(&lock);
        self.admit(images)?;
        images.iter_mut().try_for_each(|image| self.enqueue(image))?;
        Ok(images.iter().map(|image| image.done.min(EVENTS)).max().unwrap_or(0))
    }

    fn finish(&mut self, image: ImageInFlight) -> Result<DenoiseOutput> {
        self.require(&image)?;
        let lock = self.executable.stream_lock.clone();
        let _locked = lock_stream(&lock);
        let executable = &self.executable;
        let (state, driver) = (executable.regions().state, executable.driver.clone());
        for i in image.done.saturating_sub(EVENTS)..image.done {
            driver.synchronize_event(i % EVENTS)?;
        }
        let mut first_output = vec![0.0f32; if image.inputs.capture_first { state.rows * state.len } else { 0 }];
        let mut counters = [0i32; 2];
        driver.download(executable.at(state.counter), cast_slice_mut(&mut counters))?;
        if image.inputs.capture_first {
            driver.download(executable.at(state.first), cast_slice_mut(&mut first_output))?;
        }
        let not_finite = usize::try_from(counters[1]).ok().filter(|step| *step < image.inputs.table.len());
        let latents = TensorRef::from(executable.resident(state.latents, state.len));
        Ok(DenoiseOutput { latents, first_output, not_finite, means: Vec::new() })
    }
}
