//! The denoise loop on the host: the model's executable is called once for each step, guidance and step are the schedulers' own.

use crate::device::denoise_loop::{DenoiseInputs, DenoiseLoop, DenoiseOutput, LatentSize, LoopSpec, level_after};
use crate::device::executable::{Executable, compiled_by};
use crate::device::tensors::{TensorData, TensorRef};
use crate::error::{Error, Result};
use crate::schedulers::{HISTORY, StepCoefficients, step};
use std::ops::Range;

/// A denoiser whose steps the host makes, one by one.
pub struct HostDenoiseLoop {
    executable: Box<dyn Executable>,
    varying: Range<usize>,
}

impl HostDenoiseLoop {
    /// Wraps a denoiser's executable.
    ///
    /// # Errors
    /// [`Error::Graph`] where its graph is no denoiser.
    pub fn new(executable: Box<dyn Executable>, spec: &LoopSpec) -> Result<Self> {
        spec.check(executable.graph())?;
        Ok(Self { executable, varying: spec.varying.clone() })
    }
}

compiled_by!(HostDenoiseLoop, executable);

impl DenoiseLoop for HostDenoiseLoop {
    /// Nothing is reserved for the steps: any number of them, with fresh noise or without.
    fn accepts(&self, spec: &LoopSpec) -> bool {
        self.varying == spec.varying
    }

    fn denoise(
        &mut self,
        mut inputs: DenoiseInputs<'_>,
        reached: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<DenoiseOutput> {
        inputs.check(self.executable.graph(), &self.varying)?;
        let count = inputs.table.len();
        if count == 0 {
            return Err(Error::Graph("denoise loop: 0 steps; at least 1 is needed".into()));
        }
        let LatentSize { rows, n, sample: len, channels: [channels, wide] } = LatentSize::of(self.executable.graph());
        let mut x = inputs.latents.to_vec();
        let (mut sample, mut output, mut guided) = (vec![0.0; rows * len], vec![0.0; rows * n], vec![0.0; n]);
        // What the sample has beyond the latents stays as it is.
        for row in sample.chunks_exact_mut(len) {
            let extra = inputs.extra.chunks_exact((wide - channels).max(1));
            row.chunks_exact_mut(wide).zip(extra).for_each(|(to, extra)| to[channels..].copy_from_slice(extra));
        }
        let uses_history = inputs.table.iter().any(StepCoefficients::uses_history);
        let mut history = vec![0.0; if uses_history { HISTORY * n } else { 0 }];
        let mut first_output = Vec::new();
        let values = inputs.inputs.iter().map(TensorRef::to_host).collect::<Result<Vec<_>>>()?;
        for (i, row) in inputs.table.iter().enumerate() {
            reached(i)?;
            for sample in sample.chunks_exact_mut(len) {
                let latents = sample.chunks_exact_mut(wide).flat_map(|pixel| &mut pixel[..channels]);
                latents.zip(&x).for_each(|(s, x)| *s = x * row.input_scale);
            }
            let bound = values.iter().enumerate().map(|(k, values)| match k {
                0 => TensorData::from(&sample),
                _ if self.varying.contains(&k) => {
                    let len = values.len() / count;
                    values.slice(i * len..(i + 1) * len)
                }
                _ => values.view(),
            });
            self.executable.run(&bound.collect::<Vec<_>>(), &mut [&mut output])?;
            if i == 0 && inputs.capture_first {
                first_output.clone_from(&output);
            }
            let model_output = inputs.guide(&output, &mut guided)?;
            if let Some(preview) = inputs.preview.as_mut().filter(|preview| preview.is_due(i + 1)) {
                preview.show(i + 1, row, &x, model_output)?;
            }
            let fresh = row.noise.map(|_| (inputs.noise)(i));
            step(row, &mut x, model_output, &mut history, fresh.as_deref())?;
            if let Some(kept) = inputs.kept {
                kept.put(&mut x, level_after(inputs.table, i));
            }
            if !x.iter().all(|x| x.is_finite()) {
                return Ok(DenoiseOutput { latents: x.into(), first_output, not_finite: Some(i) });
            }
        }
        reached(count)?;
        Ok(DenoiseOutput { latents: x.into(), first_output, not_finite: None })
    }
}
