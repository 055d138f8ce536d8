//! Files of TAESD: diffusers' names and the original ones.

use super::detect::detect;
use super::taesd_names::renamed;
use super::weight::Weights;
use crate::error::{Error, Result};

/// Names TAESD's tensors as diffusers does: `decoder.layers.N`, `encoder.layers.N`. The original files number the layers of a half without
/// a name before them (`taesdxl_decoder`, `taesdxl_encoder`); the decoder's begin with its clamp, which diffusers does not count.
///
/// # Errors
/// [`Error::Mismatch`] where the file holds neither half, naming what it is; [`Error::Malformed`] where two tensors get one name.
pub fn taesd(file: &Weights) -> Result<Weights> {
    let alone = if file.contains("0.weight") { "encoder" } else { "decoder" };
    let mut out = Weights::new(file.path());
    for (name, weight) in file.iter() {
        if let Some(renamed) = renamed(name, alone) {
            out.insert(renamed, weight.clone())?;
        }
    }
    for (name, dtype) in file.skipped() {
        if let Some(renamed) = renamed(name, alone).filter(|renamed| !out.contains(renamed)) {
            out.skip(renamed, dtype)?;
        }
    }
    if out.names().next().is_some() {
        return Ok(out);
    }
    let what = format!("this is {}; TAESD for SDXL is needed, such as taesdxl", detect(file));
    Err(Error::mismatch(file.path(), what))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> std::result::Result<Vec<String>, String> {
        let tensors: Vec<(&str, &[usize])> = names.iter().map(|name| (*name, &[1][..])).collect();
        taesd(&Weights::absent("t.safetensors", &tensors))
            .map(|found| found.names().map(str::to_owned).collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn layouts() {
        let found = |of: &[&str]| names(of).unwrap();
        assert_eq!(found(&["decoder.layers.2.conv.0.weight"]), ["decoder.layers.2.conv.0.weight"]);
        assert_eq!(
            found(&["1.weight", "3.conv.0.weight"]),
            ["decoder.layers.0.weight", "decoder.layers.2.conv.0.weight"]
        );
        assert_eq!(
            found(&["0.weight", "1.conv.0.weight"]),
            ["encoder.layers.0.weight", "encoder.layers.1.conv.0.weight"]
        );
        let both = ["taesd_decoder.1.weight", "taesd_encoder.0.weight", "other"];
        assert_eq!(found(&both), ["decoder.layers.0.weight", "encoder.layers.0.weight"]);
        assert_eq!(found(&["decoder.1.bias", "encoder.0.bias"]), ["decoder.layers.0.bias", "encoder.layers.0.bias"]);
        let text = names(&["decoder.up_blocks.0.resnets.0.conv1.weight"]).unwrap_err();
        assert_eq!(text, "t.safetensors: this is a VAE; TAESD for SDXL is needed, such as taesdxl");
        assert!(names(&["decoder.layers.x.weight"]).unwrap_err().contains("unknown kind"));
    }
}
