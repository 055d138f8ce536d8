//! The steps of images on the device: what each of them reads is uploaded once, then a step of all is one graph launch; the latents stay
//! for the decoder.

use super::executable::{CudaExecutable, Shared};
use super::image_state::{CudaImage, foreign};
use super::resident::ResidentRows;
use super::results::Results;
use crate::device::cuda::driver::allocation::DeviceAllocation;
use crate::device::cuda::driver::interface::EVENTS;
use crate::device::cuda::driver::stream_lock::lock_stream;
use crate::device::cuda::ops::step::{ImageState, varying_inputs};
use crate::device::denoise_loop::LatentSize;
use crate::device::{
    Compiled, DenoiseInputs, DenoiseLoop, DenoiseOutput, DeviceTensor, ImageInFlight, LoopSpec, RowAxis, TensorData,
    TensorRef, rows,
};
use crate::error::{Error, Result};
use crate::graph::Graph;
use bytemuck::{cast_slice, cast_slice_mut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

fn bad(what: &str) -> Error {
    Error::Graph(format!("denoise loop: {what}"))
}

/// A denoiser with the loop over its steps: each is one launch of one captured graph, for any images whose rows are together as many as
/// the graph's.
///
/// An image has memory of its own for all that its steps read and write; the kernels find it by a table of addresses, so that an image goes
/// from loop to loop without a copy. Only what the UNet reads in every step lies in the executable, row beside row, and is
/// put there when other images come.
pub struct CudaDenoiseLoop {
    executable: CudaExecutable,
    spec: LoopSpec,
    /// Memory for images; what none of them has is free for the next one.
    memory: Vec<Arc<Results>>,
    /// The addresses of the images' states that were uploaded last.
    states: Vec<ImageState>,
    /// The inputs whose rows lie in the executable, image by image, with the numbers of rows.
    bound: Vec<BoundRows>,
    /// The evaluations of all loops of the device.
    evaluations: Arc<AtomicUsize>,
}

/// An image's inputs, and its rows. Weak, so that nothing is kept for images that are gone.
type BoundRows = (Vec<Weak<TensorRef<'static>>>, usize);

impl CudaDenoiseLoop {
    /// Wraps an executable that was lowered as a denoise loop of that kind.
    ///
    /// # Errors
    /// Those of the driver; [`Error::Memory`] for the images' states.
    pub(crate) fn new(executable: CudaExecutable, spec: LoopSpec, shared: &Shared) -> Result<Self> {
        let state = executable.regions().state;
        let (memory, states) = (Vec::new(), vec![ImageState::default(); state.rows]);
        let evaluations = shared.evaluations.clone();
        let mut new = Self { executable, spec, memory, states, bound: Vec::new(), evaluations };
        let lock = new.executable.stream_lock.clone();
        let _locked = lock_stream(&lock);
        new.memory = (0..state.held).map(|_| new.allocate()).collect::<Result<Vec<_>>>()?;
        let varying = varying_inputs(&new.executable.graph, &new.spec, &new.executable.lowered.bindings);
        if !varying.is_empty() {
            new.executable.driver.upload(new.executable.at(state.varying), cast_slice(&varying))?;
        }
        Ok(new)
    }

    /// Memory for an image.
    fn allocate(&self) -> Result<Arc<Results>> {
        let executable = &self.executable;
        let bytes = executable.regions().state.image.bytes;
        let allocation = DeviceAllocation::uninitialized(executable.driver.clone(), bytes)?;
        Ok(Arc::new(Results::new(allocation, executable.stream_lock.clone())))
    }

    /// Refuses more steps than there is room for, and noise for which no memory is reserved.
    fn check(&self, inputs: &DenoiseInputs) -> Result<()> {
        let (count, most) = (inputs.table.len(), self.spec.max_steps);
        if count > most {
            return Err(bad(&format!("{count} steps; 1 to {most} are possible")));
        }
        if !self.spec.noise && inputs.table.iter().any(|row| row.adds_noise()) {
            let n = self.executable.regions().state.len;
            return Err(bad(&format!("noise of {n} values is added, and the loop was compiled without memory for it")));
        }
        Ok(())
    }

    /// Gives memory to images before their first step, and uploads what each has of its own, as far as it is not there.
    fn admit(&mut self, images: &mut [&mut ImageInFlight]) -> Result<()> {
        // All of it before any image draws its noise: where memory is short, the images are as before.
        let mut memory = Vec::new();
        for _ in images.iter().filter(|image| image.state.is_none()) {
            if self.memory.iter().all(|own| Arc::strong_count(own) > 1) {
                let more = self.allocate()?;
                self.memory.push(more);
            }
            memory.extend(self.memory.iter().find(|own| Arc::strong_count(own) == 1).cloned());
        }
        let (graph, layout) = (&self.executable.graph, &self.executable.regions().state.image);
        let mut memory = memory.into_iter();
        for image in images.iter_mut() {
            if image.state.is_none() {
                let Some(memory) = memory.next() else { return Err(bad("an image without memory")) };
                let own = CudaImage::new(memory, *layout);
                own.begin(&self.executable, &mut image.inputs)?;
                image.state = Some(Box::new(own));
            }
            let mut state = image.state.take();
            let updated = match state.as_mut().and_then(|state| state.downcast_mut::<CudaImage>()) {
                Some(own) => own.update(&self.executable, graph, &self.spec, &image.inputs),
                None => Err(foreign()),
            };
            image.state = state;
            updated?;
        }
        Ok(())
    }

    /// Whether the images' rows of the inputs lie in the executable.
    fn is_bound(&self, images: &[&mut ImageInFlight]) -> bool {
        let same = |(old, rows): &BoundRows, image: &ImageInFlight| {
            let inputs = &image.inputs.inputs;
            let mut pairs = old.iter().zip(inputs).enumerate().filter(|(k, _)| !self.spec.varying.contains(k));
            *rows == image.rows()
                && old.len() == inputs.len()
                && pairs.all(|(_, (old, new))| std::ptr::eq(old.as_ptr(), Arc::as_ptr(new)))
        };
        self.bound.len() == images.len() && self.bound.iter().zip(images).all(|(old, image)| same(old, image))
    }

    /// Puts the images' rows of what all steps read side by side, those on the host and those on the device.
    fn gather<'a>(&self, images: &'a [&mut ImageInFlight]) -> Result<(Vec<TensorData<'a>>, Vec<ResidentRows>)> {
        let (graph, spec) = (&self.executable.graph, &self.spec);
        let rows = LatentSize::of(graph).rows;
        let (mut given, mut resident) = (Vec::new(), Vec::new());
        for (k, (_, id)) in graph.inputs.iter().enumerate() {
            let (len, axis) = (graph.node(*id).len(), spec.row_axis(k));
            let on_device = images.iter().all(|image| matches!(*image.inputs.inputs[k], TensorRef::Device(_)));
            given.push(if k == 0 || spec.varying.contains(&k) {
                Vec::<f32>::new().into()
            } else if on_device && axis == RowAxis::First {
                resident_rows(images, (k, len / rows), &mut resident)?;
                Vec::<f32>::new().into()
            } else if rows::is_direct(graph, spec, images, k) {
                rows::part(graph, spec, images[0], k)?.0
            } else {
                let parts = images.iter().map(|image| rows::part(graph, spec, image, k)).collect::<Result<Vec<_>>>()?;
                rows::joined(None, (len, axis, rows), &parts)?
            });
        }
        Ok((given, resident))
    }

    /// Tells the kernels where the images' states lie, and which rows are whose.
    fn point(&mut self, images: &[&mut ImageInFlight]) -> Result<()> {
        let mut states = vec![ImageState::default(); self.states.len()];
        let mut first = 0;
        for (to, image) in states.iter_mut().zip(images) {
            *to = own(image)?.state(image, first);
            first += image.rows();
        }
        if cast_slice::<ImageState, u8>(&states) != cast_slice::<ImageState, u8>(&self.states) {
            let executable = &self.executable;
            executable.driver.upload(executable.at(executable.regions().state.images), cast_slice(&states))?;
            self.states = states;
        }
        Ok(())
    }

    /// Enqueues a step of all images; allocates and downloads nothing, but for what a preview shows.
    fn enqueue(&mut self, images: &mut [&mut ImageInFlight]) -> Result<()> {
        let executable = &mut self.executable;
        let (regions, driver) = (*executable.regions(), executable.driver.clone());
        let len = regions.state.len;
        let output_at = executable.kept(regions.outputs + executable.lowered.bindings.outputs[0] * 4);
        let evaluations = self.evaluations.load(Ordering::Relaxed);
        let event = evaluations % EVENTS;
        if images.iter().any(|image| image.done >= EVENTS) {
            driver.synchronize_event(event)?;
        }
        let mut before = Vec::new();
        for image in images.iter() {
            let mut latents = vec![0.0f32; if image.inputs.previews(image.done + 1) { len } else { 0 }];
            if !latents.is_empty() {
                driver.download(own(image)?.latents(), cast_slice_mut(&mut latents))?;
            }
            before.push(latents);
        }
        executable.execute()?;
        let mut at = output_at;
        for image in images.iter_mut() {
            let bytes = image.rows() * len * 4;
            if image.done == 0 && image.inputs.capture_first {
                driver.copy(at, own(image)?.first_output(), bytes)?;
                image.first_output = vec![0.0; image.rows() * len];
            }
            at += bytes as u64;
        }
        driver.record_event(event)?;
        self.evaluations.store(evaluations + 1, Ordering::Relaxed);
        let mut at = output_at;
        for (image, before) in images.iter_mut().zip(before) {
            if !before.is_empty() {
                let (mut output, mut guided) = (vec![0.0f32; image.rows() * len], vec![0.0; len]);
                driver.download(at, cast_slice_mut(&mut output))?;
                let guided = image.inputs.guide(&output, &mut guided)?;
                image.keep_preview(&before, guided);
            }
            at += (image.rows() * len * 4) as u64;
            image.done += 1;
        }
        Ok(())
    }
}

/// The rows of an input of so many values a row that lie on the device.
fn resident_rows(
    images: &[&mut ImageInFlight],
    (input, each): (usize, usize),
    to: &mut Vec<ResidentRows>,
) -> Result<()> {
    let mut at = 0;
    for image in images {
        let values = &image.inputs.inputs[input];
        let len = values.len() / image.inputs.rows;
        // Rows as long as the graph's follow one another.
        let (parts, part) = if len == each { (1, image.rows() * len) } else { (image.rows(), len) };
        for i in 0..parts {
            if let TensorRef::Device(values) = values.slice(i * part..(i + 1) * part)? {
                to.push(ResidentRows { input, at: at + i * each, values });
            }
        }
        at += image.rows() * each;
    }
    Ok(())
}

/// The state of an image that has one.
fn own(image: &ImageInFlight) -> Result<&CudaImage> {
    image.state.as_ref().and_then(|state| state.downcast_ref()).ok_or_else(foreign)
}

impl Compiled for CudaDenoiseLoop {
    fn graph(&self) -> &Graph {
        &self.executable.graph
    }

    fn bytes(&self) -> usize {
        let state = &self.executable.regions().state;
        self.executable.bytes() + (self.memory.len() - state.held) * state.image.bytes
    }

    fn shared(&self) -> Vec<(u64, usize)> {
        self.executable.shared()
    }

    fn warmup(&mut self) -> Result<()> {
        self.executable.warmup()
    }
}

impl DenoiseLoop for CudaDenoiseLoop {
    /// Of more images than it has memory for it takes what they need when they begin.
    fn accepts(&self, spec: &LoopSpec) -> bool {
        LoopSpec { image_rows: self.spec.image_rows, ..spec.clone() } == self.spec
    }

    fn evaluate(&mut self, images: &mut [&mut ImageInFlight]) -> Result<usize> {
        rows::check(&self.executable.graph, &self.spec, images)?;
        for image in images.iter() {
            match image.state {
                None => self.check(&image.inputs)?,
                Some(_) => own(image)?.require(&self.executable)?,
            }
        }
        let inputs = if self.is_bound(images) { None } else { Some(self.gather(images)?) };
        let lock = self.executable.stream_lock.clone();
        let _locked = lock_stream(&lock);
        if let Some((given, resident)) = inputs {
            // On the one stream, steps that are enqueued already read what was there before.
            self.bound.clear();
            self.executable.bind_inputs(&given, &resident)?;
            self.executable.begin()?;
        }
        self.bound = (images.iter())
            .map(|image| (image.inputs.inputs.iter().map(Arc::downgrade).collect(), image.rows()))
            .collect();
        self.admit(images)?;
        self.point(images)?;
        self.enqueue(images)?;
        Ok(images.iter().map(|image| image.done.min(EVENTS)).max().unwrap_or(0))
    }

    fn finish(&mut self, mut image: ImageInFlight) -> Result<DenoiseOutput> {
        let mut first_output = std::mem::take(&mut image.first_output);
        let own = match &image.state {
            None => return Err(bad("an image without a step")),
            Some(_) => own(&image)?,
        };
        own.require(&self.executable)?;
        let lock = self.executable.stream_lock.clone();
        let _locked = lock_stream(&lock);
        let driver = &self.executable.driver;
        // The last evaluation, whichever loop made it.
        driver.synchronize_event((self.evaluations.load(Ordering::Relaxed) + EVENTS - 1) % EVENTS)?;
        let mut counters = [0i32; 2];
        driver.download(own.counters(), cast_slice_mut(&mut counters))?;
        if !first_output.is_empty() {
            driver.download(own.first_output(), cast_slice_mut(&mut first_output))?;
        }
        let not_finite = usize::try_from(counters[1]).ok().filter(|step| *step < image.inputs.table.len());
        let latents: DeviceTensor = own.result(self.executable.regions().state.len);
        Ok(DenoiseOutput { latents: latents.into(), first_output, not_finite, means: Vec::new() })
    }
}
