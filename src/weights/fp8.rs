//! Floats of 8 bits, widened to F16 in memory, times the scale that a file may have beside them.

use half::f16;
use safetensors::Dtype;

/// The ends of a scale's name: ComfyUI's, and that of compressed-tensors.
const SCALES: [&str; 2] = [".scale_weight", ".weight_scale"];

/// The names that the scale of `name` may have.
pub(super) fn scale_names(name: &str) -> Option<[String; 2]> {
    let module = name.strip_suffix(".weight")?;
    Some(SCALES.map(|end| format!("{module}{end}")))
}

/// Whether a tensor holds the scale of another one's F8 values.
pub(super) fn is_scale(name: &str) -> bool {
    name == "scaled_fp8" || SCALES.iter().any(|end| name.ends_with(end))
}

/// The name of the scale of the layer's inputs, which only products of 8 bits read.
pub(super) fn input_scale_names(name: &str) -> Option<[String; 2]> {
    let module = name.strip_suffix(".weight")?;
    Some([format!("{module}.scale_input"), format!("{module}.input_scale")])
}

/// Whether a type is a float of 8 bits that is widened here.
pub(super) fn is_fp8(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2)
}

/// The bytes of F16 of values of that type, times a scale for all or one for each of the rows. F16 has every value of either type, so
/// that a scale of 1 loses nothing.
pub(super) fn widened(bytes: &[u8], dtype: Dtype, scales: &[f32]) -> Vec<u8> {
    // Once, as a file may have a scale for each of a million rows.
    let values: Vec<f32> =
        (0..=255).map(|byte| if dtype == Dtype::F8_E5M2 { e5m2(byte) } else { e4m3(byte) }).collect();
    let row = (bytes.len() / scales.len().max(1)).max(1);
    let mut out = Vec::with_capacity(2 * bytes.len());
    for (row, &scale) in bytes.chunks(row).zip(scales) {
        let table: Vec<[u8; 2]> = values.iter().map(|value| f16::from_f32(value * scale).to_le_bytes()).collect();
        out.extend(row.iter().flat_map(|&byte| table[usize::from(byte)]));
    }
    out
}

/// The finite kind, OCP E4M3FN.
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The upper half of an F16.
fn e5m2(byte: u8) -> f32 {
    f16::from_bits(u16::from(byte) << 8).to_f32()
}
