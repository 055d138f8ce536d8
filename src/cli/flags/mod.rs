//! The flags of `braid generate`, a file for each group of the help, and the flags that set the library's fields.

pub mod arithmetic;
pub mod files;
pub mod image;
pub mod image_prompts;
pub mod init_image;
pub mod lora;
pub mod models;
pub mod prompts;
pub mod sampling;

use super::failure::Failure;
use super::flag::{self, Flag, Group};
use super::options::{Invocation, Options};
use crate::error::{Field, FieldNames};
use lexopt::Parser;

/// All of them, in the order of the help.
pub const GENERATE: &[Group<Options>] = &[
    models::GROUP,
    image_prompts::GROUP,
    image::GROUP,
    prompts::GROUP,
    init_image::GROUP,
    sampling::GROUP,
    arithmetic::GROUP,
    files::GROUP,
];

/// Reads the arguments of `braid generate`; `None` where only help was asked for.
pub fn parse(mut parser: Parser) -> Result<Option<Options>, Failure> {
    let invocation = Invocation::new("generate", &mut parser);
    let mut options = Options { invocation, ..Options::default() };
    if !flag::parse(&mut parser, GENERATE, "generate", &mut options, |_, value| Err(value))? {
        return Ok(None);
    }
    // With a file of requests each of them is checked.
    if options.batch.is_none() {
        options.check()?;
    }
    Ok(Some(options))
}

/// The flags as names of the library's fields.
pub struct FlagNames;

impl FlagNames {
    fn flag(field: Field) -> Option<&'static Flag<Options>> {
        GENERATE.iter().flat_map(|group| group.flags).find(|flag| flag.fields.contains(&field))
    }
}

impl FieldNames for FlagNames {
    fn field(&self, field: Field) -> String {
        Self::flag(field).map_or(field.name(), |flag| flag.long).to_owned()
    }

    fn setting(&self, field: Field, value: &str) -> String {
        match Self::flag(field) {
            // A switch has one value.
            Some(flag) if flag.value.is_none() => flag.long.to_owned(),
            _ => format!("{} {value}", self.field(field)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Request;
    use crate::error::Message;
    use crate::schedulers::{SchedulerKind, TimestepSpacing};
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    #[test]
    fn flags_of_fields() {
        let message = Message::default().field(Field::NumImages).text(" or ").setting(Field::Device, "cpu");
        assert_eq!(message.describe(&FlagNames), "--batch-count or --device cpu");
        assert_eq!(FlagNames.field(Field::Image), "image");
        assert_eq!(FlagNames.setting(Field::Mmap, "false"), "--no-mmap");
    }

    #[test]
    fn distinct_names_fields_and_metadata() {
        let flags: Vec<_> = GENERATE.iter().flat_map(|group| group.flags).collect();
        let distinct = |names: Vec<String>| assert_eq!(names.len(), BTreeSet::from_iter(&names).len(), "{names:?}");
        distinct(flags.iter().map(|flag| flag.long.to_owned()).collect());
        distinct(flags.iter().filter_map(|flag| flag.short).map(String::from).collect());
        distinct(flags.iter().flat_map(|flag| flag.fields).map(Field::to_string).collect());
        distinct(flags.iter().filter_map(|flag| flag.json).map(|json| json.0.to_owned()).collect());
        assert!(flags.iter().all(|flag| flag.long.starts_with("--") && !flag.help.is_empty()));
    }

    type Parts = (String, Vec<String>, Option<f32>, Option<String>);

    fn adapters(args: &[&str]) -> Vec<Parts> {
        let all = ["--model", "m", "-p", "x"].iter().chain(args);
        let options = parse(Parser::from_args(all)).unwrap().unwrap();
        let text = |p: &PathBuf| p.to_str().unwrap().to_owned();
        let each = options.adapters.all.iter();
        each.map(|a| {
            (text(&a.path), a.images.iter().map(|image| text(&image.path)).collect(), a.strength, a.blocks.clone())
        })
        .collect()
    }

    #[test]
    fn adapter_arguments() {
        let first = ("a".to_owned(), vec!["i".to_owned(), "j".to_owned()], Some(0.5), None);
        let second = ("b".to_owned(), vec!["k".to_owned()], None, Some("style".to_owned()));
        let tail = "--ip-adapter b --ip-adapter-blocks style --ip-adapter-image k".split(' ');
        for head in [
            "--ip-adapter a --ip-adapter-image i --ip-adapter-strength 0.5 --ip-adapter-image j",
            "--ip-adapter-strength 0.5 --ip-adapter-image i --ip-adapter a --ip-adapter-image j",
            "--ip-adapter-image i --ip-adapter-image j --ip-adapter-strength 0.5 --ip-adapter a",
        ] {
            let args: Vec<_> = head.split(' ').chain(tail.clone()).collect();
            assert_eq!(adapters(&args), [first.clone(), second.clone()], "{head}");
        }
    }

    /// Weight and mask follow their image; before the first image of an adapter they are the defaults.
    #[test]
    fn reference_arguments() {
        let args = "--model m -p x --ip-adapter-weight 0.5 --ip-adapter a --ip-adapter-image i --ip-adapter-image j \
                    --ip-adapter-weight 2 --ip-adapter-end 0.5 --ip-adapter b --ip-adapter-mask m --ip-adapter-image k \
                    --ip-adapter-image l --ip-adapter-mask n --ip-adapter-combine add";
        let options = parse(Parser::from_args(args.split_whitespace())).unwrap().unwrap();
        let [a, b] = options.adapters.all.as_slice() else { panic!("{:?}", options.adapters) };
        assert_eq!((a.weights(), a.masks().len(), a.end, a.combine), (vec![0.5, 2.0], 0, Some(0.5), None));
        let masks: Vec<_> = b.masks().iter().map(|mask| mask.to_str().unwrap()).collect();
        assert_eq!((b.weights(), masks, b.end), (vec![1.0, 1.0], vec!["m", "n"], None));
        assert_eq!(b.combine.map(|combine| combine.to_string()).as_deref(), Some("add"));
    }

    #[test]
    fn option_like_values() {
        let options = parse(Parser::from_args(["--model", "m", "-p", "--x", "-s", "-1"])).unwrap().unwrap();
        assert_eq!((options.request.prompt.as_str(), options.seed), ("--x", None));
    }

    fn request(args: &str) -> Request {
        let all = ["--model", "m", "-p", "x"].into_iter().chain(args.split_whitespace());
        parse(Parser::from_args(all)).unwrap().unwrap().request
    }

    #[test]
    fn settings_of_the_makers() {
        let facts = |args: &str| {
            let r = request(args);
            (r.steps, r.guidance_scale, r.scheduler, r.timestep_spacing, r.width, r.height)
        };
        let trailing = Some(TimestepSpacing::Trailing);
        assert_eq!(facts("--preset lcm"), (4, 1.0, Some(SchedulerKind::Lcm), None, None, None));
        assert_eq!(facts("--preset lightning-4"), (4, 1.0, Some(SchedulerKind::Euler), trailing, None, None));
        let turbo = (1, 1.0, Some(SchedulerKind::EulerAncestral), trailing, Some(512), Some(512));
        assert_eq!(facts("--preset turbo"), turbo);
        // Flags win before the preset and after it, with the values that are the defaults, too.
        let (settings, preset) = ("--steps 50 --cfg-scale 5 --timestep-spacing leading -W 640", "--preset turbo");
        let leading = Some(TimestepSpacing::Leading);
        let expected = (50, 5.0, Some(SchedulerKind::EulerAncestral), leading, Some(640), None);
        assert_eq!(facts(&format!("{settings} {preset}")), expected);
        assert_eq!(facts(&format!("{preset} {settings}")), expected);
        // The last preset counts; another scheduler keeps its own spacing.
        let ddim = (4, 1.0, Some(SchedulerKind::Ddim), None, None, None);
        assert_eq!(facts("--preset turbo --preset lightning-4 --sampling-method ddim"), ddim);
    }

    #[test]
    fn unknown_preset() {
        let error = parse(Parser::from_args(["--model", "m", "-p", "x", "--preset", "fast"])).unwrap_err();
        assert!(format!("{error:?}").contains("lcm, lightning-4 or turbo"), "{error:?}");
    }
}
