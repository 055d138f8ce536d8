//! The parameter structs of the kernels, byte for byte as `kernels/` declares them; there each file's head says what the
//! fields mean. A kernel takes exactly one of them, by value.
//!
//! No struct has padding (its `Pod` proves it), every offset is asserted at compile time against the number written here,
//! and a test reads the declarations in `kernels/` and compares names, order, types and offsets.

use bytemuck::{Pod, Zeroable};

/// The most strands of decoupled attention: the text and eight image branches.
pub const MAX_STRANDS: usize = 9;

/// An address on the device; 0 is null.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
#[repr(transparent)]
pub struct Pointer(pub u64);

/// An activation after a product, as the kernels number them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum ActivationCode {
    /// None.
    None = 0,
    /// x * sigmoid(x).
    Silu = 1,
    /// The exact GELU.
    Gelu = 2,
    /// x * sigmoid(1.702 x).
    QuickGelu = 3,
}

macro_rules! mirrors {
    ($($(#[doc = $doc:literal])* $name:ident: $size:literal { $($field:ident: $type:ty = $offset:literal,)* })*) => {
        $(
            $(#[doc = $doc])*
            #[derive(Debug, Clone, Copy, Pod, Zeroable)]
            #[repr(C)]
            #[allow(missing_docs)] // The kernel's file explains them, once.
            pub struct $name {
                $(pub $field: $type,)*
            }

            const _: () = {
                assert!(size_of::<$name>() == $size);
                $(assert!(std::mem::offset_of!($name, $field) == $offset);)*
            };

            impl Default for $name {
                /// All zero: null pointers, nothing to do.
                fn default() -> Self {
                    Self::zeroed()
                }
            }
        )*

        /// Name and size of each struct, and name, type and offset of its fields.
        #[cfg(test)]
        #[allow(clippy::type_complexity)]
        const MIRRORS: &[(&str, usize, &[(&str, &str, usize)])] = &[
            $((stringify!($name), $size, &[$((stringify!($field), stringify!($type), $offset),)*]),)*
        ];
    };
}

mirrors! {
    /// Where an operand of attention lies: element (image, token, head, i) is `data[image * batch + token * row + head * head_stride + i]`.
    StridedTensor: 32 {
        data: Pointer = 0,
        batch: i64 = 8,
        row: i64 = 16,
        head_stride: i64 = 24,
    }

    /// Parameters of `attention`'s kernels.
    AttentionParams: 160 {
        q: StridedTensor = 0,
        k: StridedTensor = 32,
        v: StridedTensor = 64,
        out: StridedTensor = 96,
        counts: Pointer = 128,
        queries: i32 = 136,
        keys: i32 = 140,
        dim: i32 = 144,
        causal: i32 = 148,
        scale: f32 = 152,
        reserved: i32 = 156,
    }

    /// Keys and values of one strand of decoupled attention.
    Strand: 88 {
        k: StridedTensor = 0,
        v: StridedTensor = 32,
        mask: Pointer = 64,
        mask_batch: i64 = 72,
        capacity: i32 = 80,
        reserved: i32 = 84,
    }

    /// Parameters of `decoupled`'s kernels.
    DecoupledParams: 896 {
        q: StridedTensor = 0,
        out: StridedTensor = 32,
        counts: Pointer = 64,
        scales: Pointer = 72,
        queries: i32 = 80,
        dim: i32 = 84,
        strands: i32 = 88,
        batch: i32 = 92,
        scale: f32 = 96,
        reserved: i32 = 100,
        strand: [Strand; MAX_STRANDS] = 104,
    }

    /// What follows a product: `activation(x W^T + bias + rows) + residual`.
    EpilogueParams: 80 {
        bias: Pointer = 0,
        rows: Pointer = 8,
        residual: Pointer = 16,
        step: Pointer = 24,
        out: Pointer = 32,
        rows_step: i64 = 40,
        residual_stride: i64 = 48,
        out_stride: i64 = 56,
        rows_of_image: i32 = 64,
        activation: i32 = 68,
        out_f32: i32 = 72,
        reserved: i32 = 76,
    }

    /// Parameters of `gemm`'s kernels.
    GemmParams: 144 {
        x0: Pointer = 0,
        x1: Pointer = 8,
        w: Pointer = 16,
        x0_stride: i64 = 24,
        x1_stride: i64 = 32,
        w_stride: i64 = 40,
        finish: EpilogueParams = 48,
        m: i32 = 128,
        n: i32 = 132,
        k: i32 = 136,
        k0: i32 = 140,
    }

    /// Parameters of `convolution`'s kernels.
    ConvolutionParams: 160 {
        x0: Pointer = 0,
        x1: Pointer = 8,
        w: Pointer = 16,
        finish: EpilogueParams = 24,
        pixels: i32 = 104,
        n: i32 = 108,
        channels0: i32 = 112,
        channels: i32 = 116,
        height: i32 = 120,
        width: i32 = 124,
        result_height: i32 = 128,
        result_width: i32 = 132,
        kernel_y: i32 = 136,
        kernel_x: i32 = 140,
        stride: i32 = 144,
        padding_y: i32 = 148,
        padding_x: i32 = 152,
        phases: i32 = 156,
    }

    /// Parameters of `convolution_narrow`'s kernels.
    NarrowParams: 88 {
        x: Pointer = 0,
        w: Pointer = 8,
        bias: Pointer = 16,
        out: Pointer = 24,
        pixels: i32 = 32,
        n: i32 = 36,
        channels: i32 = 40,
        height: i32 = 44,
        width: i32 = 48,
        result_height: i32 = 52,
        result_width: i32 = 56,
        kernel_y: i32 = 60,
        kernel_x: i32 = 64,
        stride: i32 = 68,
        padding_y: i32 = 72,
        padding_x: i32 = 76,
        out_f32: i32 = 80,
        reserved: i32 = 84,
    }

    /// Parameters of `group_norm`'s kernels.
    GroupNormParams: 88 {
        x0: Pointer = 0,
        x1: Pointer = 8,
        weight: Pointer = 16,
        bias: Pointer = 24,
        moments: Pointer = 32,
        lines: Pointer = 40,
        out: Pointer = 48,
        pixels: i32 = 56,
        channels0: i32 = 60,
        channels: i32 = 64,
        groups: i32 = 68,
        slab: i32 = 72,
        slabs: i32 = 76,
        silu: i32 = 80,
        eps: f32 = 84,
    }

    /// Parameters of `layer_norm`'s kernels.
    LayerNormParams: 48 {
        x: Pointer = 0,
        weight: Pointer = 8,
        bias: Pointer = 16,
        out: Pointer = 24,
        rows: i32 = 32,
        channels: i32 = 36,
        eps: f32 = 40,
        reserved: i32 = 44,
    }

    /// Parameters of `softmax_rows`'s kernels.
    SoftmaxParams: 40 {
        scores: Pointer = 0,
        out: Pointer = 8,
        scores_stride: i64 = 16,
        out_stride: i64 = 24,
        columns: i32 = 32,
        scale: f32 = 36,
    }

    /// Parameters of `silu`, `gelu`, `quick_gelu`, `scale_shift`, `from_f32` and `to_f32`.
    UnaryParams: 32 {
        x: Pointer = 0,
        out: Pointer = 8,
        count: i64 = 16,
        scale: f32 = 24,
        shift: f32 = 28,
    }

    /// Parameters of `geglu`.
    GegluParams: 32 {
        x: Pointer = 0,
        out: Pointer = 8,
        rows: i64 = 16,
        channels: i32 = 24,
        reserved: i32 = 28,
    }

    /// Parameters of `add`.
    AddParams: 56 {
        a: Pointer = 0,
        b: Pointer = 8,
        out: Pointer = 16,
        rows: i64 = 24,
        each: i64 = 32,
        rows_b: i64 = 40,
        channels: i32 = 48,
        reserved: i32 = 52,
    }

    /// Parameters of `concat`.
    ConcatParams: 40 {
        a: Pointer = 0,
        b: Pointer = 8,
        out: Pointer = 16,
        rows: i64 = 24,
        channels0: i32 = 32,
        channels: i32 = 36,
    }

    /// Parameters of `upsample`.
    UpsampleParams: 40 {
        x: Pointer = 0,
        out: Pointer = 8,
        images: i32 = 16,
        height: i32 = 20,
        width: i32 = 24,
        result_height: i32 = 28,
        result_width: i32 = 32,
        channels: i32 = 36,
    }

    /// Parameters of `sinusoid`.
    SinusoidParams: 32 {
        x: Pointer = 0,
        out: Pointer = 8,
        rows: i32 = 16,
        channels: i32 = 20,
        flip: i32 = 24,
        shift: f32 = 28,
    }

    /// Parameters of `embed`.
    EmbedParams: 56 {
        ids: Pointer = 0,
        table: Pointer = 8,
        positions: Pointer = 16,
        out: Pointer = 24,
        rows: i64 = 32,
        tokens: i32 = 40,
        channels: i32 = 44,
        vocabulary: i32 = 48,
        reserved: i32 = 52,
    }

    /// Parameters of `class_token`.
    ClassTokenParams: 48 {
        x: Pointer = 0,
        token: Pointer = 8,
        positions: Pointer = 16,
        out: Pointer = 24,
        rows: i64 = 32,
        tokens: i32 = 40,
        channels: i32 = 44,
    }

    /// Parameters of `take_row`.
    TakeRowParams: 40 {
        x: Pointer = 0,
        index: Pointer = 8,
        out: Pointer = 16,
        rows: i32 = 24,
        tokens: i32 = 28,
        channels: i32 = 32,
        reserved: i32 = 36,
    }

    /// Parameters of `weights` and `phases`.
    WeightsParams: 40 {
        x: Pointer = 0,
        out: Pointer = 8,
        pitch: i64 = 16,
        n: i32 = 24,
        inputs: i32 = 28,
        taps: i32 = 32,
        reserved: i32 = 36,
    }

    /// Parameters of `patches`.
    PatchesParams: 48 {
        x: Pointer = 0,
        out: Pointer = 8,
        pitch: i64 = 16,
        images: i32 = 24,
        height: i32 = 28,
        width: i32 = 32,
        channels: i32 = 36,
        side: i32 = 40,
        reserved: i32 = 44,
    }

    /// Parameters of `transpose`.
    TransposeParams: 56 {
        x: Pointer = 0,
        out: Pointer = 8,
        x_stride: i64 = 16,
        x_image: i64 = 24,
        pitch: i64 = 32,
        out_image: i64 = 40,
        rows: i32 = 48,
        columns: i32 = 52,
    }

    /// Parameters of `model_input`.
    ModelInputParams: 56 {
        x: Pointer = 0,
        out: Pointer = 8,
        table: Pointer = 16,
        step: Pointer = 24,
        image_stride: i64 = 32,
        negative: i64 = 40,
        n: i32 = 48,
        steps: i32 = 52,
    }

    /// Parameters of `guidance_moments` and `step`.
    StepParams: 104 {
        x: Pointer = 0,
        output: Pointer = 8,
        history: Pointer = 16,
        noise: Pointer = 24,
        table: Pointer = 32,
        guidance: Pointer = 40,
        moments: Pointer = 48,
        step: Pointer = 56,
        not_finite: Pointer = 64,
        image_stride: i64 = 72,
        negative: i64 = 80,
        n: i32 = 88,
        images: i32 = 92,
        steps: i32 = 96,
        noise_slots: i32 = 100,
    }

    /// Parameters of `step_advance`.
    AdvanceParams: 16 {
        step: Pointer = 0,
        progress: Pointer = 8,
    }

    /// Parameters of `rgb8`.
    Rgb8Params: 32 {
        x: Pointer = 0,
        out: Pointer = 8,
        count: i64 = 16,
        truncate: i32 = 24,
        reserved: i32 = 28,
    }

    /// Parameters of `finite`.
    FiniteParams: 32 {
        x: Pointer = 0,
        flag: Pointer = 8,
        count: i64 = 16,
        value: i32 = 24,
        reserved: i32 = 28,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// The declarations `struct NAME { TYPE FIELD; .. };` of a file, comments dropped.
    fn declarations(text: &str) -> Vec<(String, Vec<(String, String)>)> {
        let text: String = text.lines().map(|line| line.split("//").next().unwrap_or("").to_owned() + "\n").collect();
        text.split("\nstruct ")
            .skip(1)
            .filter_map(|rest| rest.split_once(" {\n"))
            .map(|(name, rest)| {
                let body = rest.split("\n};").next().unwrap_or("");
                let fields = body.split(';').filter_map(|field| field.trim().rsplit_once(' '));
                (name.to_owned(), fields.map(|(t, f)| (t.trim().to_owned(), f.to_owned())).collect())
            })
            .collect()
    }

    #[test]
    fn the_structs_are_those_of_the_kernels() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let mut declared = HashMap::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            declared.extend(declarations(&std::fs::read_to_string(entry.unwrap().path()).unwrap()));
        }
        let sizes: HashMap<&str, usize> = MIRRORS.iter().map(|(name, size, _)| (*name, *size)).collect();
        for (name, size, fields) in MIRRORS {
            let theirs = &declared[*name];
            assert_eq!(theirs.len(), fields.len(), "{name}: {theirs:?}");
            let mut at = 0;
            for ((kind, declared), (field, ours, offset)) in theirs.iter().zip(*fields) {
                let (declared, count) =
                    declared.split_once('[').map_or((declared.as_str(), 1), |(f, _)| (f, MAX_STRANDS));
                let (rust, bytes) = match kind.as_str() {
                    pointer if pointer.ends_with('*') => ("Pointer", 8),
                    "i64" => ("i64", 8),
                    "int" => ("i32", 4),
                    "float" => ("f32", 4),
                    other => (other, sizes[other]),
                };
                let rust = if count > 1 { format!("[{rust}; MAX_STRANDS]") } else { rust.to_owned() };
                assert_eq!((declared, rust.as_str()), (*field, *ours), "{name}");
                assert_eq!(at % bytes.min(8), 0, "{name}.{field} is not aligned");
                assert_eq!(at, *offset, "{name}.{field}");
                at += bytes * count;
            }
            assert_eq!(at, *size, "{name}");
        }
        // Every parameter struct of a kernel has its mirror.
        let missing: Vec<&String> =
            declared.keys().filter(|name| name.ends_with("Params") && !sizes.contains_key(name.as_str())).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
