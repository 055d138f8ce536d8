//! Results that stay on the device for the next executable, and images of which only the bytes are downloaded.

use super::executable::CudaExecutable;
use super::results::Results;
use crate::device::cuda::driver::allocation::DeviceAllocation;
use crate::device::cuda::driver::stream_lock::lock_stream;
use crate::device::executable::compiled_by;
use crate::device::{DecodedImage, DeviceTensor, Executable, ImageDecoder, ResidentOutputs, TensorData, TensorRef};
use crate::error::{Error, Result};
use bytemuck::cast_slice_mut;
use std::sync::Arc;

/// Bytes to which bound tensors are aligned: less lies between two that follow one another.
const GAP: u64 = 64;

/// A copy within the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Copy {
    from: u64,
    to: u64,
    bytes: u64,
}

/// The same copies with those in one that follow one another on both sides.
fn joined(mut copies: Vec<Copy>) -> Vec<Copy> {
    copies.sort_by_key(|copy| copy.to);
    let mut all: Vec<Copy> = Vec::new();
    for copy in copies {
        match all.last_mut() {
            Some(last)
                if copy.from.checked_sub(last.from) == Some(copy.to - last.to)
                    && copy.to - last.to - last.bytes < GAP =>
            {
                last.bytes = copy.to - last.to + copy.bytes;
            }
            _ => all.push(copy),
        }
    }
    all
}

/// Rows of an input that lie on the device.
pub(crate) struct ResidentRows {
    /// The input.
    pub(crate) input: usize,
    /// Elements of the input before them.
    pub(crate) at: usize,
    pub(crate) values: DeviceTensor,
}

impl CudaExecutable {
    /// Values in the allocation of the results.
    pub(crate) fn resident(&self, place: usize, len: usize) -> DeviceTensor {
        DeviceTensor::new(self.results.clone(), place / 4, len)
    }

    /// Copies values to an address, from the host or from where another executable of this device left them.
    pub(crate) fn copy_in(&self, values: &TensorRef<'_>, to: u64) -> Result<()> {
        match values {
            TensorRef::Host(values) => self.driver.upload(to, values.bytes()),
            TensorRef::Device(resident) => self.driver.copy(self.address(resident)?, to, values.len() * 4),
        }
    }

    fn address(&self, values: &DeviceTensor) -> Result<u64> {
        let results = values.memory().downcast_ref::<Results>();
        match results.filter(|results| results.belongs_to(&self.driver)) {
            Some(results) => Ok(results.address() + values.start() as u64 * 4),
            None => Err(Error::Graph("values that another device left are no inputs".into())),
        }
    }

    /// As [`CudaExecutable::upload_inputs`], with what lies on the device already; where something does, the host's values are uploaded
    /// one by one.
    pub(crate) fn bind_inputs(&mut self, given: &[TensorData<'_>], resident: &[ResidentRows]) -> Result<()> {
        if resident.is_empty() {
            return self.upload_inputs(given);
        }
        let to = self.at(self.regions().inputs);
        let bindings = &self.lowered.bindings;
        let (floats, up) = (bindings.floats * 4, bindings.upload());
        let staging = self.staging.bytes();
        bindings.write(given, &mut staging[..up]);
        if floats < up {
            self.driver.upload(to + floats as u64, &staging[floats..up])?;
        }
        let place = |input: usize| bindings.inputs[input].float;
        for (k, values) in given.iter().enumerate().filter(|(_, values)| !values.is_empty()) {
            if let Some(at) = place(k) {
                self.driver.upload(to + at as u64 * 4, values.bytes())?;
            }
        }
        let mut copies = Vec::new();
        for ResidentRows { input, at, values } in resident {
            if let Some(input) = place(*input) {
                let (to, bytes) = (to + (input + at) as u64 * 4, values.len() as u64 * 4);
                copies.push(Copy { from: self.address(values)?, to, bytes });
            }
        }
        joined(copies).iter().try_for_each(|copy| self.driver.copy(copy.from, copy.to, copy.bytes as usize))
    }
}

/// An executable whose results stay on the device for the next one.
pub struct CudaConditioner(CudaExecutable);

compiled_by!(CudaConditioner, 0);

impl CudaConditioner {
    /// Wraps an executable that was lowered as a conditioner.
    pub(crate) fn new(executable: CudaExecutable) -> Self {
        Self(executable)
    }
}

impl Executable for CudaConditioner {
    fn run(&mut self, inputs: &[TensorData<'_>], outputs: &mut [&mut [f32]]) -> Result<()> {
        self.0.run(inputs, outputs)
    }

    /// Downloads only whether the results are finite.
    fn run_resident(&mut self, inputs: &[TensorData<'_>]) -> Result<ResidentOutputs> {
        let executable = &mut self.0;
        let outputs = executable.graph.outputs.iter().map(|(_, id)| executable.graph.node(*id).len());
        let values = outputs
            .zip(&executable.lowered.bindings.outputs)
            .map(|(len, at)| executable.resident(executable.regions().outputs + at * 4, len).into())
            .collect();
        executable.graph.check_inputs(inputs.iter().map(|values| (values.element_type(), values.len())))?;
        let lock = executable.stream_lock.clone();
        let _locked = lock_stream(&lock);
        executable.upload_inputs(inputs)?;
        executable.execute()?;
        let mut flag = [0i32];
        executable.driver.download(executable.kept(executable.regions().flag), cast_slice_mut(&mut flag))?;
        Ok(ResidentOutputs { values, finite: flag[0] != 0 })
    }

    /// Copies them within the device.
    fn persist(&mut self, _: Vec<TensorRef<'static>>) -> Result<Vec<TensorRef<'static>>> {
        let executable = &self.0;
        let (bindings, from) = (&executable.lowered.bindings, executable.kept(executable.regions().outputs));
        let lock = executable.stream_lock.clone();
        let _locked = lock_stream(&lock);
        let copy = DeviceAllocation::uninitialized(executable.driver.clone(), bindings.download().max(1))?;
        executable.driver.copy(from, copy.address(), bindings.download())?;
        let copy: Arc<Results> = Arc::new(Results::new(copy, executable.stream_lock.clone()));
        let outputs = executable.graph.outputs.iter().map(|(_, id)| executable.graph.node(*id).len());
        let tensor = |(len, at): (usize, &usize)| DeviceTensor::new(copy.clone(), *at, len).into();
        Ok(outputs.zip(&bindings.outputs).map(tensor).collect())
    }
}

/// A decoder whose pixels are made on the device.
pub struct CudaImageDecoder(CudaExecutable);

compiled_by!(CudaImageDecoder, 0);

impl CudaImageDecoder {
    /// Wraps an executable that was lowered as a decoder.
    pub(crate) fn new(executable: CudaExecutable) -> Self {
        Self(executable)
    }
}

impl ImageDecoder for CudaImageDecoder {
    /// Downloads the pixels and whether all values are finite in one copy.
    fn decode(&mut self, latents: &TensorRef<'_>, capture: bool) -> Result<DecodedImage> {
        let executable = &mut self.0;
        executable.graph.check_inputs([(latents.element_type(), latents.len())].into_iter())?;
        let lock = executable.stream_lock.clone();
        let _locked = lock_stream(&lock);
        match latents {
            TensorRef::Host(values) => executable.upload_inputs(&[values.view()])?,
            TensorRef::Device(values) => {
                let rows = ResidentRows { input: 0, at: 0, values: values.clone() };
                executable.bind_inputs(&[Vec::<f32>::new().into()], &[rows])?;
            }
        }
        executable.execute()?;
        let regions = *executable.regions();
        let len = executable.graph.outputs.first().map_or(0, |(_, id)| executable.graph.node(*id).len());
        let [pixels, outputs] = [regions.pixels, regions.outputs].map(|at| executable.kept(at));
        let first = executable.lowered.bindings.outputs.first().copied().unwrap_or(0);
        let flag = regions.flag - regions.pixels;
        let staging = executable.staging.bytes();
        executable.driver.download(pixels, &mut staging[..flag + 4])?;
        let (rgb, finite) = (staging[..len].to_vec(), staging[flag..flag + 4] != [0; 4]);
        let mut image = vec![0.0; if capture { len } else { 0 }];
        if capture {
            executable.driver.download(outputs + first as u64 * 4, cast_slice_mut(&mut image))?;
        }
        Ok(DecodedImage { rgb, finite, image })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_copies() {
        let copy = |from, to, bytes| Copy { from, to, bytes };
        let copies = vec![
            copy(1192, 5192, 8),
            copy(1000, 5000, 100),
            // 28 bytes of padding on both sides.
            copy(1128, 5128, 64),
            // As far here, not there.
            copy(2000, 5256, 64),
            copy(2128, 5384, 4),
        ];
        let wanted = [copy(1000, 5000, 200), copy(2000, 5256, 64), copy(2128, 5384, 4)];
        assert_eq!(joined(copies), wanted);
    }
}
