//! The flags of `braid generate`.

use crate::args::{Failure, count, named, number, seed, signed, size, text, unexpected, usage, value};
use crate::{files, help};
use braid::Compat;
use braid::inputs::noise::{PhiloxGrid, RngKind};
use braid::pipeline::{DeviceChoice, EncoderResidency, MAX_NUM_IMAGES, MAX_SIDE, MAX_THREADS, Scales};
use braid::schedulers::{PredictionType, SchedulerKind, SigmaSchedule, TimestepSpacing};
use braid::tensor::DType;
use lexopt::{Arg, Parser};
use std::path::{Path, PathBuf};

/// One IP-Adapter with what belongs to it.
#[derive(Debug, Clone, Default)]
pub struct Adapter {
    /// Its file; absent only while parsing.
    pub path: PathBuf,
    /// The pictures.
    pub images: Vec<PathBuf>,
    /// `--ip-adapter-strength`.
    pub strength: Option<f32>,
    /// `--ip-adapter-blocks` as it was given.
    pub blocks: Option<String>,
}

impl Adapter {
    /// The scales that strength and blocks make.
    pub fn scales(&self) -> Result<Scales, Failure> {
        Ok(Scales::parse(self.blocks.as_deref().unwrap_or("full"), self.strength.unwrap_or(1.0))?)
    }
}

/// All flags.
#[derive(Debug, Clone)]
pub struct Options {
    pub model: PathBuf,
    pub config: Option<PathBuf>,
    pub clip_vision: Option<PathBuf>,
    pub adapters: Vec<Adapter>,
    pub resize: Option<(usize, usize)>,
    pub prompt: String,
    pub negative: Option<String>,
    pub steps: usize,
    pub guidance: f32,
    pub guidance_rescale: f32,
    pub width: Option<usize>,
    pub height: Option<usize>,
    /// `None`: a random one.
    pub seed: Option<u64>,
    pub count: usize,
    pub method: Option<SchedulerKind>,
    pub schedule: Option<SigmaSchedule>,
    pub prediction: Option<PredictionType>,
    pub spacing: Option<TimestepSpacing>,
    pub eta: Option<f32>,
    pub clip_skip: usize,
    pub compat: Compat,
    pub rng: RngKind,
    /// `None`: as the device has it.
    pub dtype: Option<DType>,
    pub vae_dtype: Option<DType>,
    pub device: DeviceChoice,
    pub encoders: EncoderResidency,
    pub threads: Option<usize>,
    pub mmap: bool,
    pub output: PathBuf,
    pub latents: Option<PathBuf>,
    pub dump: Option<PathBuf>,
    pub json: bool,
}

impl Options {
    fn new() -> Self {
        Self {
            model: PathBuf::new(),
            config: None,
            clip_vision: None,
            adapters: Vec::new(),
            resize: None,
            prompt: String::new(),
            negative: None,
            steps: 50,
            guidance: 5.0,
            guidance_rescale: 0.0,
            width: None,
            height: None,
            seed: Some(0),
            count: 1,
            method: None,
            schedule: None,
            prediction: None,
            spacing: None,
            eta: None,
            clip_skip: 0,
            compat: Compat::diffusers(),
            rng: RngKind::Cpu,
            dtype: None,
            vae_dtype: None,
            device: DeviceChoice::Auto,
            encoders: EncoderResidency::Auto,
            threads: None,
            mmap: true,
            output: "braid.png".into(),
            latents: None,
            dump: None,
            json: false,
        }
    }

    /// Reads all arguments; `None` where only help was asked for.
    pub fn parse(mut parser: Parser) -> Result<Option<Self>, Failure> {
        let p = &mut parser;
        let mut o = Self::new();
        let (mut model, mut prompt) = (None, None);
        let mut adapters = Adapters::default();
        while let Some(arg) = p.next().map_err(usage)? {
            match arg {
                Arg::Short('h') | Arg::Long("help") => {
                    help::print(help::GENERATE)?;
                    return Ok(None);
                }
                Arg::Short('m') | Arg::Long("model") => model = Some(value(p, "--model")?.into()),
                Arg::Long("config") => o.config = Some(value(p, "--config")?.into()),
                Arg::Long("clip-vision") => o.clip_vision = Some(value(p, "--clip-vision")?.into()),
                Arg::Long("ip-adapter") => adapters.open(value(p, "--ip-adapter")?.into()),
                Arg::Long("ip-adapter-image") => {
                    let path = value(p, "--ip-adapter-image")?.into();
                    adapters.last().images.push(path);
                }
                Arg::Long("ip-adapter-strength") => {
                    const FLAG: &str = "--ip-adapter-strength";
                    let strength = signed(p, FLAG)?;
                    once(adapters.last().strength.replace(strength).is_some(), FLAG)?;
                }
                Arg::Long("ip-adapter-blocks") => {
                    const FLAG: &str = "--ip-adapter-blocks";
                    let blocks = text(p, FLAG)?;
                    once(adapters.last().blocks.replace(blocks).is_some(), FLAG)?;
                }
                Arg::Long("ip-adapter-image-resize") => {
                    o.resize = Some(size(p, "--ip-adapter-image-resize", MAX_SIDE)?);
                }
                Arg::Short('p') | Arg::Long("prompt") => prompt = Some(text(p, "--prompt")?),
                Arg::Short('n') | Arg::Long("negative-prompt") => o.negative = Some(text(p, "--negative-prompt")?),
                Arg::Long("steps") => o.steps = count(p, "--steps", 1, 1000)?,
                Arg::Long("cfg-scale") => o.guidance = number(p, "--cfg-scale")?,
                Arg::Long("guidance-rescale") => o.guidance_rescale = number(p, "--guidance-rescale")?,
                Arg::Short('W') | Arg::Long("width") => o.width = Some(count(p, "--width", 1, MAX_SIDE)?),
                // -H, because -h is help.
                Arg::Short('H') | Arg::Long("height") => o.height = Some(count(p, "--height", 1, MAX_SIDE)?),
                Arg::Short('s') | Arg::Long("seed") => o.seed = seed(p, "--seed")?,
                Arg::Short('b') | Arg::Long("batch-count") => o.count = count(p, "--batch-count", 1, MAX_NUM_IMAGES)?,
                Arg::Long("sampling-method") => o.method = Some(named(p, "--sampling-method")?),
                Arg::Long("schedule") => o.schedule = Some(named(p, "--schedule")?),
                Arg::Long("prediction") => o.prediction = Some(named(p, "--prediction")?),
                Arg::Long("timestep-spacing") => o.spacing = Some(named(p, "--timestep-spacing")?),
                Arg::Long("eta") => o.eta = Some(number(p, "--eta")?),
                Arg::Long("clip-skip") => o.clip_skip = count(p, "--clip-skip", 0, 1000)?,
                Arg::Long("compat") => o.compat = named(p, "--compat")?,
                Arg::Long("rng") => {
                    o.rng =
                        choice(p, "--rng", &[("cpu", RngKind::Cpu), ("cuda", RngKind::Cuda(PhiloxGrid::default()))])?;
                }
                Arg::Long("dtype") => o.dtype = choice(p, "--dtype", DTYPES)?,
                Arg::Long("vae-dtype") => o.vae_dtype = choice(p, "--vae-dtype", DTYPES)?,
                Arg::Long("device") => o.device = named(p, "--device")?,
                Arg::Long("encoders") => o.encoders = named(p, "--encoders")?,
                Arg::Short('t') | Arg::Long("threads") => o.threads = Some(count(p, "--threads", 1, MAX_THREADS)?),
                Arg::Long("no-mmap") => o.mmap = false,
                Arg::Short('o') | Arg::Long("output") => o.output = value(p, "--output")?.into(),
                Arg::Long("latents-in") => o.latents = Some(value(p, "--latents-in")?.into()),
                Arg::Long("dump") => o.dump = Some(value(p, "--dump")?.into()),
                Arg::Long("json") => o.json = true,
                other => return Err(unexpected(other, "generate")),
            }
        }
        o.adapters = adapters.finish()?;
        o.model = model.ok_or_else(|| {
            Failure::usage("--model: missing; give an SDXL checkpoint (.safetensors) or a diffusers folder")
        })?;
        o.prompt = prompt.ok_or_else(|| Failure::usage("--prompt: missing; an empty one is written --prompt ''"))?;
        if let Some(dump) = &o.dump {
            let place = |p: &Path| std::path::absolute(p).unwrap_or_else(|_| p.to_owned());
            if files::numbered(&o.output, o.count).iter().any(|name| place(name) == place(dump)) {
                return Err(Failure::usage("--dump: names the same file as --output"));
            }
        }
        if o.resize.is_some() && o.adapters.is_empty() {
            return Err(Failure::usage("--ip-adapter-image-resize: there is no --ip-adapter"));
        }
        Ok(Some(o))
    }
}

/// Collects adapters: what follows one belongs to it, what stands before the first belongs to the first.
#[derive(Default)]
struct Adapters {
    all: Vec<Adapter>,
    /// Flags came before the first `--ip-adapter`.
    early: bool,
}

impl Adapters {
    fn open(&mut self, path: PathBuf) {
        if std::mem::take(&mut self.early) {
            self.last().path = path;
        } else {
            self.all.push(Adapter { path, ..Adapter::default() });
        }
    }

    fn last(&mut self) -> &mut Adapter {
        if self.all.is_empty() {
            self.early = true;
            self.all.push(Adapter::default());
        }
        let at = self.all.len() - 1;
        &mut self.all[at]
    }

    fn finish(self) -> Result<Vec<Adapter>, Failure> {
        for adapter in &self.all {
            if self.early {
                let flag = match adapter {
                    Adapter { images, .. } if !images.is_empty() => "--ip-adapter-image",
                    Adapter { strength: Some(_), .. } => "--ip-adapter-strength",
                    _ => "--ip-adapter-blocks",
                };
                return Err(Failure::usage(format!("{flag}: there is no --ip-adapter that it could belong to")));
            }
            if adapter.images.is_empty() {
                let path = adapter.path.display();
                return Err(Failure::usage(format!("--ip-adapter: {path} has no picture; give --ip-adapter-image")));
            }
            adapter.scales()?;
        }
        Ok(self.all)
    }
}

fn once(twice: bool, flag: &str) -> Result<(), Failure> {
    let what = "given twice for one --ip-adapter; it follows the adapter it belongs to";
    if twice { Err(Failure::usage(format!("{flag}: {what}"))) } else { Ok(()) }
}

const DTYPES: &[(&str, Option<DType>)] =
    &[("f32", Some(DType::F32)), ("f16", Some(DType::F16)), ("bf16", Some(DType::BF16)), ("auto", None)];

fn choice<T: Copy>(parser: &mut Parser, flag: &str, choices: &[(&str, T)]) -> Result<T, Failure> {
    let name = text(parser, flag)?;
    choices.iter().find(|c| c.0 == name).map(|c| c.1).ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|c| c.0).collect();
        Failure::usage(format!("{flag}: `{name}` is not known; one of {} is", names.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Parts = (String, Vec<String>, Option<f32>, Option<String>);

    fn adapters(args: &[&str]) -> Vec<Parts> {
        let all = ["--model", "m", "-p", "x"].iter().chain(args);
        let options = Options::parse(Parser::from_args(all)).unwrap().unwrap();
        let text = |p: &PathBuf| p.to_str().unwrap().to_owned();
        let each = options.adapters.iter();
        each.map(|a| (text(&a.path), a.images.iter().map(text).collect(), a.strength, a.blocks.clone())).collect()
    }

    #[test]
    fn what_follows_an_adapter_is_its_own() {
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

    #[test]
    fn a_value_may_look_like_an_option() {
        let options = Options::parse(Parser::from_args(["--model", "m", "-p", "--x", "-s", "-1"])).unwrap().unwrap();
        assert_eq!((options.prompt.as_str(), options.seed), ("--x", None));
    }
}
