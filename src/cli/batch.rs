//! `--batch`: requests from the lines of a file, each with the command's flags and its own.

use super::adapters::{Adapters, ReferenceFlags};
use super::failure::Failure;
use super::flag::Flag;
use super::flags;
use super::options::Options;
use super::system;
use super::value::Value;
use crate::error::Error;
use crate::names::counted;
use crate::pipeline::{Pipeline, Request};
use lexopt::Parser;
use serde_json::{Map, Value as Json};
use std::ffi::OsString;
use std::path::Path;

/// The flags that are the whole command's, and no line's.
const WHOLE: &[&str] = &[
    "--model",
    "--config",
    "--vae",
    "--taesd",
    "--vae-tiling",
    "--clip-vision",
    "--no-mmap",
    "--ip-adapter",
    "--save-reference",
    "--lora",
    "--embedding",
    "--max-batch",
    "--compat",
    "--dtype",
    "--vae-dtype",
    "--quantize",
    "--device",
    "--encoders",
    "--threads",
    "--output",
    "--latents-in",
    "--dump",
    "--preview",
    "--preview-every",
    "--attribution",
    "--metadata",
    "--record-hashes",
    "--json",
    "--batch",
];

/// Reads the requests of a file: the command's options with those of each line.
pub fn read(options: &Options, path: &Path) -> Result<Vec<Options>, Failure> {
    demand_no_files(options, "beside --batch")?;
    let text = system::reading(|| std::fs::read_to_string(path)).map_err(Error::io("read", path))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let requests = lines.map(|(i, line)| request(options, line).map_err(|error| at_line(path, i + 1, error)));
    let requests = requests.collect::<Result<Vec<_>, _>>()?;
    if requests.is_empty() {
        return Err(Failure::usage(format!(
            "--batch: {} has no request; one JSON object a line is needed",
            path.display()
        )));
    }
    Ok(requests)
}

/// Refuses flags about the one request of a command.
pub fn demand_no_files(options: &Options, place: &str) -> Result<(), Failure> {
    let lonely = [
        (options.latents.is_some(), "--latents-in"),
        (options.dump.is_some(), "--dump"),
        (options.preview.is_some(), "--preview"),
        (options.attribution.is_some(), "--attribution"),
        (options.save_reference.is_some(), "--save-reference"),
    ];
    match lonely.iter().find(|(given, _)| *given) {
        Some((_, flag)) => Err(Failure::usage(format!("{flag}: has no place {place}; run that request alone"))),
        None => Ok(()),
    }
}

/// The failure with the line where it was found.
pub fn at_line(path: &Path, line: usize, failure: Failure) -> Failure {
    match failure.text(&flags::FlagNames) {
        Some(text) => Failure::usage(format!("--batch: {} line {line}: {text}", path.display())),
        None => failure,
    }
}

/// Reads one line.
fn request(options: &Options, line: &str) -> Result<Options, Failure> {
    let object: Map<String, Json> =
        serde_json::from_str(line).map_err(|error| Failure::usage(format!("no JSON object: {error}")))?;
    let mut options = apply(options, &object)?;
    options.invocation.line = Some(object);
    Ok(options)
}

/// The command's options with these settings, by the names of their flags.
pub fn apply(options: &Options, object: &Map<String, Json>) -> Result<Options, Failure> {
    let mut options = options.clone();
    for (key, value) in object {
        let name = format!("--{}", key.replace('_', "-"));
        let known = flags::GENERATE.iter().flat_map(|group| group.flags).find(|flag| flag.long == name);
        let Some(flag) = known else {
            return Err(Failure::usage(format!("`{key}` is not known; names are those of the flags, with _ for -")));
        };
        if WHOLE.contains(&flag.long) {
            return Err(Failure::usage(format!("`{key}` is the whole command's: give {name} there")));
        }
        // What follows an image is set with it.
        if !name.starts_with("--ip-adapter-") || name == "--ip-adapter-fit" || name == "--ip-adapter-image-resize" {
            set(&mut options, flag, key, value)?;
        }
    }
    set_adapters(&mut options, object)?;
    options.check()?;
    Ok(options)
}

/// The request of a line or a cell, with the images that its options name.
pub fn request_of(options: &Options, seed: u64, pipeline: &Pipeline) -> Result<Request, Failure> {
    let image_prompts = system::reading(|| options.image_prompts())?;
    let [init_image, mask] = system::reading(|| options.init_image_and_mask())?;
    Ok(Request { image_prompts, init_image, mask, seed, noise_dtype: pipeline.dtype(), ..options.request.clone() })
}

/// Sets a flag to a value of a line.
fn set(options: &mut Options, flag: &Flag<Options>, key: &str, value: &Json) -> Result<(), Failure> {
    let text = match (value, flag.value) {
        (Json::Bool(true), None) => None,
        (Json::Bool(false), None) => return Ok(()),
        (Json::String(text), Some(_)) => Some(OsString::from(text)),
        (Json::Number(number), Some(_)) => Some(number.to_string().into()),
        // JSON within JSON, as diffusers' scales of blocks.
        (Json::Object(_), Some(_)) => Some(value.to_string().into()),
        _ => {
            let kind = if flag.value.is_some() { "a text or a number" } else { "true or false" };
            return Err(Failure::usage(format!("`{key}`: {kind} is needed, got {value}")));
        }
    };
    let mut parser = Parser::from_args(text);
    (flag.set)(options, &mut Value::new(&mut parser, flag.long))
}

/// The items of a list; anything else is its own only item.
fn items(value: &Json) -> &[Json] {
    match value {
        Json::Array(items) => items,
        value => std::slice::from_ref(value),
    }
}

/// Sets what belongs to adapters: with several of them, each value is a list of one for each.
fn set_adapters(options: &mut Options, object: &Map<String, Json>) -> Result<(), Failure> {
    let count = options.adapters.all.len();
    let flags = flags::image_prompts::GROUP.flags.iter();
    let mut given = Vec::new();
    for flag in flags.filter(|flag| !matches!(flag.long, "--ip-adapter-fit" | "--ip-adapter-image-resize")) {
        let key = flag.long.trim_start_matches('-').replace('-', "_");
        if let Some(value) = object.get(&key) {
            given.push((flag, key, value));
        }
    }
    if let (0, Some((flag, ..))) = (count, given.first()) {
        return Err(Failure::usage(format!("{}: the command has no --ip-adapter", flag.long)));
    }
    for i in 0..count {
        let adapters = Adapters::one(options.adapters.all[i].clone());
        let mut one = Options { adapters, ..Options::default() };
        for (flag, key, value) in &given {
            let value = match value {
                Json::Array(each) if count > 1 && each.len() == count => &each[i],
                _ if count > 1 => {
                    let what = format!("`{key}`: a list of {count} values is needed, one for each --ip-adapter");
                    return Err(Failure::usage(what));
                }
                value => value,
            };
            set_adapter(&mut one, flag, key, value)?;
        }
        options.adapters.all[i] = one.adapters.all.remove(0);
    }
    Ok(())
}

/// Sets a value of the only adapter in the place of the command's.
fn set_adapter(one: &mut Options, flag: &Flag<Options>, key: &str, value: &Json) -> Result<(), Failure> {
    let adapter = &mut one.adapters.all[0];
    match flag.long {
        "--ip-adapter-image" => {
            adapter.images.clear();
            adapter.defaults = ReferenceFlags::default();
            return items(value).iter().try_for_each(|image| set(one, flag, key, image));
        }
        "--ip-adapter-weight" | "--ip-adapter-text" | "--ip-adapter-mask" => {
            return set_each(one, flag, key, items(value));
        }
        "--ip-adapter-strength" => adapter.strength = None,
        "--ip-adapter-blocks" => adapter.blocks = None,
        "--ip-adapter-combine" => adapter.combine = None,
        "--ip-adapter-start" => adapter.start = None,
        "--ip-adapter-end" => adapter.end = None,
        _ => adapter.negative_image = None,
    }
    set(one, flag, key, value)
}

/// Sets weights, texts or masks of the images that are there: one for each, or one for all.
fn set_each(one: &mut Options, flag: &Flag<Options>, key: &str, values: &[Json]) -> Result<(), Failure> {
    let mut images = std::mem::take(&mut one.adapters.all[0].images);
    if values.len() != images.len() && values.len() != 1 {
        let (values, images) = (counted(values.len(), "value"), counted(images.len(), "image"));
        return Err(Failure::usage(format!("`{key}`: {values} for {images}")));
    }
    for (image, value) in images.iter_mut().zip(values.iter().cycle()) {
        match flag.long {
            "--ip-adapter-weight" => image.own.weight = None,
            "--ip-adapter-text" => image.own.texts.clear(),
            _ => image.own.mask = None,
        }
        let mut single = one.clone();
        single.adapters.all[0].images = vec![std::mem::take(image)];
        set(&mut single, flag, key, value)?;
        *image = single.adapters.all[0].images.remove(0);
    }
    one.adapters.all[0].images = images;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(args: &str) -> Options {
        let args = ["--model", "m"].into_iter().chain(args.split_whitespace());
        let mut options = Options::default();
        let mut parser = Parser::from_args(args);
        super::super::flag::parse(&mut parser, flags::GENERATE, "generate", &mut options, |_, value| Err(value))
            .unwrap();
        options
    }

    fn refused(options: &Options, line: &str) -> String {
        request(options, line).unwrap_err().text(&flags::FlagNames).unwrap()
    }

    #[test]
    fn whole_flags_exist() {
        let all: Vec<_> = flags::GENERATE.iter().flat_map(|group| group.flags).map(|flag| flag.long).collect();
        assert!(WHOLE.iter().all(|name| all.contains(name)));
    }

    #[test]
    fn values_of_lines() {
        let options = command("-p fox --steps 7 -s 3 --cfg-scale 2");
        let line = r#"{"prompt": "a --heap", "seed": 18446744073709551615, "cfg_scale": 1.5, "negative_prompt": "", "batch_count": 2}"#;
        let read = request(&options, line).unwrap();
        assert_eq!((read.request.prompt.as_str(), read.seed, read.request.steps), ("a --heap", Some(u64::MAX), 7));
        assert_eq!((read.request.guidance_scale, read.request.num_images), (1.5, 2));
        assert_eq!(read.request.negative_prompt.as_deref(), Some(""));
        let read = request(&options, "{}").unwrap();
        assert_eq!((read.request.prompt.as_str(), read.seed), ("fox", Some(3)));
    }

    #[test]
    fn images_of_lines() {
        let options =
            command("-p x --ip-adapter a --ip-adapter-image i --ip-adapter-weight 3 --ip-adapter-strength 0.5");
        let line = r#"{"ip_adapter_weight": [2, 0.5], "ip_adapter_image": ["j", "k"], "ip_adapter_strength": -0.25, "ip_adapter_mask": "m"}"#;
        let read = request(&options, line).unwrap();
        let adapter = &read.adapters.all[0];
        let paths: Vec<_> = adapter.images.iter().map(|image| image.path.to_str().unwrap()).collect();
        assert_eq!((paths, adapter.weights(), adapter.strength), (vec!["j", "k"], vec![2.0, 0.5], Some(-0.25)));
        assert_eq!(adapter.masks().len(), 2);
        let kept = request(&options, r#"{"ip_adapter_blocks": {"up": 1}}"#).unwrap();
        let adapter = &kept.adapters.all[0];
        assert_eq!((adapter.weights(), adapter.blocks.as_deref()), (vec![3.0], Some(r#"{"up":1}"#)));
        let two = command("-p x --ip-adapter a --ip-adapter-image i --ip-adapter b --ip-adapter-image j");
        let read = request(&two, r#"{"ip_adapter_image": ["k", ["l", "m"]], "ip_adapter_end": [0.5, 1]}"#).unwrap();
        let [a, b] = read.adapters.all.as_slice() else { panic!() };
        assert_eq!((a.images.len(), b.images.len(), a.end, b.end), (1, 2, Some(0.5), Some(1.0)));
        assert!(refused(&two, r#"{"ip_adapter_end": 0.5}"#).contains("a list of 2 values is needed"));
    }

    /// Texts of references: those of all images, those of each, and a line's in their place.
    #[test]
    fn texts_of_lines() {
        let texts = |options: &Options| -> Vec<Vec<(String, f32)>> {
            let given = options.adapters.all[0].given_texts().unwrap();
            given.into_iter().map(<[_]>::to_vec).collect()
        };
        let text = |text: &str, factor| vec![(text.to_owned(), factor)];
        let all = command("-p x --ip-adapter a --ip-adapter-text stone:-0.5 --ip-adapter-image i --ip-adapter-image j");
        assert_eq!(texts(&all), [text("stone", -0.5), text("stone", -0.5)]);
        let read = request(&all, r#"{"ip_adapter_text": ["wood", "a: b:2"]}"#).unwrap();
        assert_eq!(texts(&read), [text("wood", 1.0), text("a: b", 2.0)]);
        let own = command("-p x --ip-adapter a --ip-adapter-image i --ip-adapter-text stone");
        assert_eq!(texts(&request(&own, r#"{"ip_adapter_text": "wood"}"#).unwrap()), [text("wood", 1.0)]);
        assert!(refused(&own, r#"{"ip_adapter_text": "wood:inf"}"#).contains("the factor must be a finite number"));
        assert!(refused(&own, r#"{"ip_adapter_text": ["wood", "stone"]}"#).contains("2 values for 1 image"));
    }

    #[test]
    fn wrong_lines() {
        let options = command("-p x");
        for (line, part) in [
            ("[1]", "no JSON object"),
            ("{", "no JSON object"),
            (r#"{"cfg-scale": 1, "cfgscale": 2}"#, "`cfgscale` is not known"),
            (r#"{"model": "m"}"#, "`model` is the whole command's: give --model there"),
            (r#"{"steps": 0}"#, "--steps: must be a whole number of 1 to"),
            (r#"{"steps": [1]}"#, "`steps`: a text or a number is needed, got [1]"),
            (r#"{"prompt": null}"#, "`prompt`: a text or a number is needed, got null"),
            (r#"{"strength": 0.5}"#, "--strength: there is no --init-img"),
            (r#"{"ip_adapter_image": "i"}"#, "--ip-adapter-image: the command has no --ip-adapter"),
        ] {
            let text = refused(&options, line);
            assert!(text.contains(part), "{line}: {text}");
        }
        assert!(refused(&command(""), "{}").contains("--prompt: missing"));
    }
}
