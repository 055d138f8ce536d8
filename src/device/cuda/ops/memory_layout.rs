//! The layout of an executable's two allocations, and of the memory in which a denoise loop's images have their state.

/// Bytes to which every region is aligned.
pub(crate) const REGION: usize = 256;

/// The regions of the work allocation and of that of the results, in bytes from the start of each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MemoryLayout {
    /// Inputs: f32, then integers; at 0.
    pub(crate) inputs: usize,
    /// Outputs in f32; this and the next two in the results.
    pub(crate) outputs: usize,
    /// A decoder's pixels.
    pub(crate) pixels: usize,
    /// Whether the outputs are finite, where that is checked: after the pixels.
    pub(crate) flag: usize,
    /// The end of the results.
    pub(crate) results: usize,
    /// Inputs in the storage type.
    pub(crate) converted: usize,
    /// Outputs in the storage type.
    pub(crate) returned: usize,
    /// Intermediates that live between nodes.
    pub(crate) arena: usize,
    /// Moments of results, which live between nodes, too.
    pub(crate) moments: usize,
    /// Intermediates that live within a node.
    pub(crate) scratch: usize,
    /// The part that a denoise loop needs beside its graph.
    pub(crate) state: LoopState,
    /// The end.
    pub(crate) end: usize,
}

/// A denoise loop's part of the work allocation, in bytes from its start, and its sizes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LoopState {
    /// An `ImageState` for each image that an evaluation has room for.
    pub(crate) images: usize,
    /// A `VaryingInput` for each input that varies from step to step.
    pub(crate) varying: usize,
    /// Moments of guidance's rescale.
    pub(crate) moments: usize,
    /// Elements of the latents.
    pub(crate) len: usize,
    /// Elements of a row of the model's sample, the latents among them.
    pub(crate) sample: usize,
    /// Channels of the latents and of the sample.
    pub(crate) channels: [usize; 2],
    /// The model's rows, and the most images that share an evaluation.
    pub(crate) rows: usize,
    /// The memory of an image.
    pub(crate) image: ImageLayout,
    /// The images whose memory is there from the beginning.
    pub(crate) held: usize,
}

/// The memory in which an image keeps its state from step to step, in bytes from its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ImageLayout {
    /// The step's number; after it, the first step that was not finite.
    pub(crate) counter: usize,
    /// Guidance scale and rescale.
    pub(crate) guidance: usize,
    /// Coefficients, a row for each step.
    pub(crate) table: usize,
    /// The noise level of what is kept after each step.
    pub(crate) kept_levels: usize,
    /// The channels of the model's sample beyond the latents.
    pub(crate) extra: usize,
    /// The latents in f32.
    pub(crate) latents: usize,
    /// The tensors that earlier steps left for later ones, three times as much as the latents.
    pub(crate) history: usize,
    /// Fresh noise, for each step as much as latents; nothing where no step adds any.
    pub(crate) noise: Option<usize>,
    /// An inpainting's mask, image latents and noise.
    pub(crate) kept: usize,
    /// The model's output in the first step, of two rows.
    pub(crate) first: usize,
    /// The values of all steps of the inputs that vary, of two rows.
    pub(crate) varying: usize,
    /// Its bytes.
    pub(crate) bytes: usize,
}
