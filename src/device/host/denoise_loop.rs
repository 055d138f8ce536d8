//! The denoise loop on the host: the model's executable is called once for each evaluation, guidance and step are the schedulers' own.

use crate::device::denoise_loop::{DenoiseLoop, DenoiseOutput, ImageInFlight, LatentSize, LoopSpec, level_after};
use crate::device::executable::{Compiled, Executable};
use crate::device::rows;
use crate::device::tensors::{TensorData, TensorRef};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::schedulers::{HISTORY, StepCoefficients, step};
use std::sync::{Arc, Weak};

/// A denoiser whose steps the host makes, one by one.
pub struct HostDenoiseLoop {
    executable: Box<dyn Executable>,
    spec: LoopSpec,
    /// For each input the rows of several images side by side.
    gathered: Vec<Gathered>,
    sample: Vec<f32>,
    output: Vec<f32>,
    /// The outputs beside the model's.
    further: Vec<Vec<f32>>,
    guided: Vec<f32>,
}

/// Rows of several images side by side, and where they came from.
#[derive(Default)]
struct Gathered {
    values: Option<TensorData<'static>>,
    /// With the number of rows. Weak, so that nothing is kept for images that are gone.
    from: Vec<(Weak<TensorRef<'static>>, usize)>,
}

/// The state of an image.
struct HostState {
    x: Vec<f32>,
    history: Vec<f32>,
    /// The sums over the steps of the first row of each output beside the model's.
    sums: Vec<Vec<f64>>,
}

impl HostDenoiseLoop {
    /// Wraps a denoiser's executable.
    ///
    /// # Errors
    /// [`Error::Graph`] where its graph is no denoiser.
    pub fn new(executable: Box<dyn Executable>, spec: &LoopSpec) -> Result<Self> {
        let graph = executable.graph();
        spec.check(graph)?;
        let LatentSize { rows, n, sample, .. } = LatentSize::of(graph);
        let gathered = graph.inputs.iter().map(|_| Gathered::default()).collect();
        let further = graph.outputs[1..].iter().map(|(_, id)| vec![0.0; graph.node(*id).len()]).collect();
        let (sample, output, guided) = (vec![0.0; rows * sample], vec![0.0; rows * n], vec![0.0; n]);
        Ok(Self { executable, spec: spec.clone(), gathered, sample, output, further, guided })
    }

    /// Checks images that come to their first step here, or come with other inputs, and gives them their state.
    fn admit(&self, images: &mut [&mut ImageInFlight]) -> Result<()> {
        let graph = self.executable.graph();
        rows::check(graph, &self.spec, images)?;
        let rows = LatentSize::of(graph).rows;
        for image in images.iter_mut().filter(|image| image.state.is_none()) {
            let x = std::mem::take(&mut image.inputs.latents);
            let uses_history = image.inputs.table.iter().any(StepCoefficients::uses_history);
            let history = vec![0.0; if uses_history { HISTORY * x.len() } else { 0 }];
            let sums = self.further.iter().map(|output| vec![0.0; output.len() / rows]).collect();
            image.state = Some(Box::new(HostState { x, history, sums }));
        }
        Ok(())
    }

    /// Writes the model's sample: each row has its image's latents, scaled for its step, and the channels beyond them.
    fn write_samples(&mut self, images: &[&mut ImageInFlight]) -> Result<()> {
        let LatentSize { sample, channels: [channels, wide], .. } = LatentSize::of(self.executable.graph());
        let mut rows = self.sample.chunks_exact_mut(sample);
        for image in images {
            let scale = image.inputs.table[image.done].input_scale;
            let x = &state(image)?.x;
            for row in rows.by_ref().take(image.rows()) {
                let latents = row.chunks_exact_mut(wide).flat_map(|pixel| &mut pixel[..channels]);
                latents.zip(x).for_each(|(s, x)| *s = x * scale);
                let extra = image.inputs.extra.chunks_exact((wide - channels).max(1));
                row.chunks_exact_mut(wide).zip(extra).for_each(|(to, extra)| to[channels..].copy_from_slice(extra));
            }
        }
        Ok(())
    }

    /// Gathers the rows of all images for each input: what varies by step each time, the rest where it is not what it was.
    fn gather(&mut self, images: &[&mut ImageInFlight]) -> Result<()> {
        let graph = self.executable.graph();
        for (k, gathered) in self.gathered.iter_mut().enumerate().skip(1) {
            if rows::is_direct(graph, &self.spec, images, k) {
                *gathered = Gathered::default();
                continue;
            }
            let varies = self.spec.varying.contains(&k);
            let current = || images.iter().map(|image| (&image.inputs.inputs[k], image.rows()));
            let same = gathered.from.len() == images.len()
                && gathered.from.iter().zip(current()).all(|((old, old_rows), (new, rows))| {
                    std::ptr::eq(old.as_ptr(), Arc::as_ptr(new)) && *old_rows == rows
                });
            if same && !varies {
                continue;
            }
            let parts =
                images.iter().map(|image| rows::part(graph, &self.spec, image, k)).collect::<Result<Vec<_>>>()?;
            let len = graph.node(graph.inputs[k].1).len();
            let shape = (len, self.spec.row_axis(k), LatentSize::of(graph).rows);
            gathered.values = Some(rows::joined(gathered.values.take(), shape, &parts)?);
            gathered.from = current().map(|(values, rows)| (Arc::downgrade(values), rows)).collect();
        }
        Ok(())
    }
}

/// The state of an image that has one.
fn state(image: &ImageInFlight) -> Result<&HostState> {
    let state = image.state.as_ref().and_then(|state| state.downcast_ref());
    state.ok_or_else(|| Error::Graph("denoise loop: an image that another device has begun".into()))
}

/// Makes an image's step from the model's output of its rows; `further` has the first of them in the other outputs.
fn advance<'f>(
    image: &mut ImageInFlight,
    output: &[f32],
    further: impl Iterator<Item = &'f [f32]>,
    guided: &mut [f32],
) -> Result<()> {
    let i = image.done;
    if i == 0 && image.inputs.capture_first {
        image.first_output = output.to_vec();
    }
    let Some(mut taken) = image.state.take() else { return Ok(()) };
    if let Some(HostState { x, history, sums }) = taken.downcast_mut() {
        for (sums, values) in sums.iter_mut().zip(further) {
            sums.iter_mut().zip(values).for_each(|(sum, v)| *sum += f64::from(*v));
        }
        let output = image.inputs.guide(output, guided)?;
        image.keep_preview(x, output);
        let row = image.inputs.table[i];
        let fresh = row.noise.map(|_| (image.inputs.noise)(i));
        step(&row, x, output, history, fresh.as_deref())?;
        if let Some(kept) = &image.inputs.kept {
            kept.put(x, level_after(&image.inputs.table, i));
        }
        if !x.iter().all(|x| x.is_finite()) {
            image.not_finite = Some(i);
        }
    }
    image.state = Some(taken);
    image.done += 1;
    Ok(())
}

impl Compiled for HostDenoiseLoop {
    fn graph(&self) -> &Graph {
        self.executable.graph()
    }

    fn bytes(&self) -> usize {
        let gathered = self.gathered.iter().filter_map(|gathered| gathered.values.as_ref()).map(TensorData::len);
        let further = self.further.iter().map(Vec::len).sum::<usize>();
        let buffers = self.sample.len() + self.output.len() + further + self.guided.len();
        self.executable.bytes() + 4 * (gathered.sum::<usize>() + buffers)
    }

    fn shared(&self) -> Vec<(u64, usize)> {
        self.executable.shared()
    }

    fn warmup(&mut self) -> Result<()> {
        self.executable.warmup()
    }
}

impl DenoiseLoop for HostDenoiseLoop {
    /// Nothing is reserved for the steps: any number of them, with fresh noise or without.
    fn accepts(&self, spec: &LoopSpec) -> bool {
        self.spec.varying == spec.varying && self.spec.row_axes == spec.row_axes
    }

    fn evaluate(&mut self, images: &mut [&mut ImageInFlight]) -> Result<usize> {
        self.admit(images)?;
        self.write_samples(images)?;
        self.gather(images)?;
        let graph = self.executable.graph();
        let mut bound: Vec<TensorData<'_>> = vec![(&self.sample).into()];
        for (k, gathered) in self.gathered.iter().enumerate().skip(1) {
            bound.push(match &gathered.values {
                Some(values) => values.view(),
                None => rows::part(graph, &self.spec, images[0], k)?.0,
            });
        }
        let outputs = std::iter::once(&mut self.output).chain(&mut self.further);
        self.executable.run(&bound, &mut outputs.map(Vec::as_mut_slice).collect::<Vec<_>>())?;
        let (mut first, n) = (0, self.guided.len());
        let rows = self.output.len() / n;
        for image in images {
            let output = &self.output[first * n..][..image.rows() * n];
            let further = self.further.iter().map(|values| {
                let each = values.len() / rows;
                &values[first * each..][..each]
            });
            advance(image, output, further, &mut self.guided)?;
            first += image.rows();
        }
        Ok(0)
    }

    fn finish(&mut self, mut image: ImageInFlight) -> Result<DenoiseOutput> {
        let first_output = std::mem::take(&mut image.first_output);
        let taken: Option<Box<HostState>> = image.state.take().and_then(|state| state.downcast().ok());
        let none = || Error::Graph("denoise loop: an image without a step".into());
        let HostState { x, sums, .. } = *taken.ok_or_else(none)?;
        let mean = |sums: Vec<f64>| sums.into_iter().map(|sum| (sum / image.done as f64) as f32).collect();
        let means = sums.into_iter().map(mean).collect();
        Ok(DenoiseOutput { latents: x.into(), first_output, not_finite: image.not_finite, means })
    }
}
