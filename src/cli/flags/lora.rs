//! LoRAs.

use crate::cli::failure::Failure;
use crate::cli::flag::{Flag, Generated};
use crate::cli::labels::{number, path, stem};
use crate::cli::options::Options;
use crate::cli::value::Value;
use crate::error::Field;
use serde_json::{Value as Json, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A LoRA with its scale.
pub const LORA: Flag<Options> = Flag {
    long: "--lora",
    value: Some("FILE[:SCALE]"),
    help: "a LoRA for UNet or text encoders, by kohya's, PEFT's or diffusers' names, and its scale, of either sign [default: \
           1]; may be repeated, their updates add up",
    fields: &[Field::Loras, Field::LoraScales],
    set: |o, v| {
        let lora = split(v, Path::exists)?;
        o.loras.push(lora);
        Ok(())
    },
    json: Some(("loras", json_of)),
    parameters: Some((8, text_of)),
    ..Flag::NEW
};

/// Splits the scale off. A file whose whole name is there has none, whatever is in the name; and what follows a colon is part of
/// the path where it is no number, as in `C:\lora.safetensors`.
fn split(value: &mut Value<'_>, exists: impl Fn(&Path) -> bool) -> Result<(PathBuf, f32), Failure> {
    let raw = value.raw()?;
    if raw.is_empty() {
        return Err(value.wrong("a file is needed"));
    }
    let whole = |raw: &OsString| (PathBuf::from(raw), 1.0);
    let Some((file, scale)) = raw.to_str().and_then(|text| text.rsplit_once(':')) else { return Ok(whole(&raw)) };
    if file.is_empty() || exists(Path::new(&raw)) {
        return Ok(whole(&raw));
    }
    match scale.trim().parse::<f32>() {
        Ok(scale) if scale.is_finite() => Ok((file.into(), scale)),
        Ok(_) => Err(value.wrong(&format!("the scale must be a finite number, got `{scale}`"))),
        Err(_) if exists(Path::new(file)) => Err(value.wrong(&format!("the scale `{scale}` is not a number"))),
        Err(_) => Ok(whole(&raw)),
    }
}

fn json_of(o: &Options, g: &Generated) -> Json {
    o.loras.iter().map(|(file, scale)| json!({ "lora": path(file, g), "scale": scale })).collect()
}

fn text_of(o: &Options, _: &Generated) -> Vec<String> {
    let entry = |(i, (file, scale)): (usize, &(PathBuf, f32))| {
        let number = number(i);
        [format!("LoRA{number}: {}", stem(file)), format!("LoRA{number} scale: {scale}")]
    };
    o.loras.iter().enumerate().flat_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lexopt::Parser;

    fn read(text: &str, there: &[&str]) -> Result<(String, f32), String> {
        let mut parser = Parser::from_args([text]);
        let exists = |path: &Path| there.iter().any(|there| path == Path::new(there));
        let split = split(&mut Value::new(&mut parser, "--lora"), exists);
        split.map(|(path, scale)| (path.to_str().unwrap().to_owned(), scale)).map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn files_and_scales() {
        for (text, there, file, scale) in [
            ("a.safetensors", &[][..], "a.safetensors", 1.0),
            ("a.safetensors:0.7", &["a.safetensors"], "a.safetensors", 0.7),
            ("a.safetensors:-.3", &[], "a.safetensors", -0.3),
            ("a.safetensors:0", &[], "a.safetensors", 0.0),
            (r"C:\a.safetensors", &[], r"C:\a.safetensors", 1.0),
            (r"C:\a.safetensors:0.5", &[], r"C:\a.safetensors", 0.5),
            ("a:1", &["a:1"], "a:1", 1.0),
            ("a:1:0.5", &["a:1"], "a:1", 0.5),
            ("a:1", &[], "a", 1.0),
            ("v1:final.safetensors", &[], "v1:final.safetensors", 1.0),
            (":2", &[], ":2", 1.0),
        ] {
            assert_eq!(read(text, there), Ok((file.to_owned(), scale)), "{text}");
        }
    }

    #[test]
    fn wrong_scales() {
        for (text, part) in [("a:nan", "finite"), ("a:inf", "finite"), ("a:x", "`x` is not a number"), ("", "a file")] {
            let error = read(text, &["a"]).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
