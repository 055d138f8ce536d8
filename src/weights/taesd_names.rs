//! Names of TAESD's tensors.

use super::keymap::index;

/// Names of the halves before their layers, in diffusers' and in other files; the decoder's first.
const HALVES: [[&str; 2]; 2] = [["decoder.", "taesd_decoder."], ["encoder.", "taesd_encoder."]];

/// Whether a tensor's name is one that only TAESD's blocks have.
pub(super) fn is_taesd(name: &str) -> bool {
    let Some(name) = renamed(name, "decoder") else { return false };
    name.split_once("layers.").and_then(|(_, rest)| index(rest)).is_some_and(|(_, rest)| rest == "conv.0.weight")
}

/// The name in diffusers; `alone` is the half of layers without a name before them.
pub(super) fn renamed(name: &str, alone: &str) -> Option<String> {
    for (half, prefixes) in ["decoder", "encoder"].into_iter().zip(HALVES) {
        for prefix in prefixes {
            if let Some(rest) = name.strip_prefix(prefix) {
                return match rest.strip_prefix("layers.") {
                    Some(layers) => index(layers).map(|_| format!("{half}.layers.{layers}")),
                    None => original(rest, half),
                };
            }
        }
    }
    original(name, alone)
}

fn original(layer: &str, half: &str) -> Option<String> {
    let (n, rest) = index(layer)?;
    let n = if half == "decoder" { n.checked_sub(1)? } else { n };
    Some(format!("{half}.layers.{n}.{rest}"))
}
