//! Pixels on the host.

use crate::device::executable::{Executable, compiled_by};
use crate::device::image_decoder::{DecodedImage, ImageDecoder, PixelRounding};
use crate::device::tensors::TensorRef;
use crate::error::Result;

/// A decoder whose output the host turns into pixels.
pub struct HostImageDecoder {
    executable: Box<dyn Executable>,
    rounding: PixelRounding,
}

impl HostImageDecoder {
    /// Wraps a decoder's executable; its first output becomes pixels.
    pub fn new(executable: Box<dyn Executable>, rounding: PixelRounding) -> Self {
        Self { executable, rounding }
    }
}

compiled_by!(HostImageDecoder, executable);

impl ImageDecoder for HostImageDecoder {
    fn decode(&mut self, latents: &TensorRef<'_>, capture: bool) -> Result<DecodedImage> {
        let graph = self.executable.graph();
        let mut image = vec![0.0; graph.outputs.first().map_or(0, |(_, id)| graph.node(*id).len())];
        self.executable.run(&[latents.to_host()?], &mut [&mut image])?;
        let finite = image.iter().all(|v| v.is_finite());
        let rgb = image.iter().map(|v| self.rounding.pixel(*v)).collect();
        Ok(DecodedImage { rgb, finite, image: if capture { image } else { Vec::new() } })
    }
}
