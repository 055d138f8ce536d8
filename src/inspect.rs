//! Descriptions of weight files: their kind, their models, and the files that they fit.

use crate::config_json::strict;
use crate::error::{Result, escape, one_line};
use crate::models::clip::{Activation, ClipTextConfig, ClipVisionConfig};
use crate::models::compatibility;
use crate::models::ip_adapter::{AdapterConfig, ResamplerConfig};
use crate::models::published;
use crate::models::taesd::{TaesdConfig, TaesdSide};
use crate::models::unet::{PrunedBlocks, UnetConfig};
use crate::models::vae::VaeConfig;
use crate::names::counted;
use crate::weights::adapter;
use crate::weights::detect::{AdapterKind, ModelFamily, detect};
use crate::weights::lora::{ExaminedLora, Lora, LoraComponent, LoraModule, LoraTargets};
use crate::weights::taesd_file::taesd;
use crate::weights::textual_inversion::TextualInversion;
use crate::weights::{Weights, single_file};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// A description of a file; [`fmt::Display`] gives it as text, [`serde`] as JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileReport {
    /// The file or folder. In JSON, which is Unicode, what is none in a name is U+FFFD.
    #[serde(serialize_with = "as_text")]
    pub path: PathBuf,
    /// The kind of file, in words.
    pub family: String,
    /// Whether this engine can use it.
    pub supported: bool,
    /// The models in it. Its JSON key stays as it was.
    #[serde(rename = "parts")]
    pub components: Vec<Component>,
    /// Facts about its structure.
    pub notes: Vec<String>,
    /// The files that it fits, judged by sizes.
    pub fits: Vec<String>,
}

fn as_text<S: serde::Serializer>(path: &Path, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}

/// One model within a file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Component {
    /// The name, e.g. `unet`.
    pub name: String,
    /// The number of tensors.
    pub tensors: usize,
    /// The number of elements of all tensors.
    pub parameters: u64,
    /// The bytes of all tensors.
    pub bytes: u64,
    /// The number of tensors of each element type.
    pub dtypes: BTreeMap<String, usize>,
}

impl Component {
    fn new(name: &str, weights: &Weights) -> Self {
        let mut component =
            Self { name: name.into(), tensors: weights.len(), parameters: 0, bytes: 0, dtypes: BTreeMap::new() };
        for (_, weight) in weights.iter() {
            let len = weight.len() as u64;
            component.parameters += len;
            component.bytes += len * weight.dtype().size() as u64;
            *component.dtypes.entry(weight.dtype().to_string()).or_default() += 1;
        }
        component
    }
}

/// Describes the tensors of the file `path`. Reads every byte, to find weights that are NaN or infinite.
///
/// # Errors
/// Those of [`single_file::split`] and [`adapter::published`] for files of a supported family that are damaged.
pub fn inspect(path: &Path, weights: &Weights) -> Result<FileReport> {
    let found = detect(weights);
    let mut report = FileReport {
        path: path.to_owned(),
        family: found.to_string(),
        supported: false,
        components: Vec::new(),
        notes: Vec::new(),
        fits: Vec::new(),
    };
    match found {
        ModelFamily::Sdxl | ModelFamily::SdxlInpaint => report.checkpoint(weights)?,
        ModelFamily::Adapter(AdapterKind::Base | AdapterKind::Plus) => report.adapter(weights)?,
        ModelFamily::VisionEncoder => report.vision(weights)?,
        ModelFamily::DiffusersSdxlUnet => {
            report.add_component("unet", weights);
            report.with_config(UnetConfig::from_tensors(weights, None), |r, c| {
                r.unet(&c);
                r.supported = true;
                r.fits.push("a diffusers folder of SDXL, as its unet/".into());
            });
        }
        ModelFamily::Vae => {
            let vae = single_file::vae(weights)?;
            report.add_component("vae", &vae);
            report.with_config(VaeConfig::from_tensors(&vae), |r, c| {
                let (latents, factor) = (c.latent_channels, c.scale_factor());
                r.supported = latents == 4;
                r.notes.push(format!("latents of {latents} channels, {factor} pixels to a latent"));
                let word = if latents == 4 {
                    "Stable Diffusion 1, 2 and XL (which of them, no size tells)"
                } else {
                    "another family"
                };
                r.fits.push(format!("UNets of {word}"));
                if latents == 4 {
                    r.fits.push("an SDXL model, in the place of its own VAE".into());
                }
            });
        }
        ModelFamily::Taesd => report.taesd(weights)?,
        ModelFamily::TextEncoder => {
            let text = single_file::text_encoder(weights)?;
            let second = text.get("text_projection.weight").is_some();
            report.add_component(if second { "text_encoder_2" } else { "text_encoder" }, &text);
            report.with_config(ClipTextConfig::from_tensors(&text, Activation::QuickGelu), |r, c| {
                r.notes.push(format!(
                    "{} layers, {} wide, {} positions",
                    c.num_hidden_layers, c.hidden_size, c.max_position_embeddings
                ));
                let place = match (c.hidden_size, c.projection_dim) {
                    (768, _) => "SDXL, as its text_encoder/ (CLIP-L)",
                    (1280, Some(_)) => "SDXL, as its text_encoder_2/ (bigG)",
                    _ => "no published SDXL",
                };
                r.supported = matches!(c.hidden_size, 768 | 1280);
                r.fits.push(place.into());
            });
        }
        ModelFamily::Lora => report.lora(weights),
        ModelFamily::TextualInversion => report.textual_inversion(weights),
        ModelFamily::ImagePrompt => {
            report.add_component("images", weights);
            report.supported = true;
            report.fits.push("the IP-Adapter and the image encoder that it was made with".into());
        }
        _ => report.add_component("tensors", weights),
    }
    report.skipped(weights);
    report.metadata(weights);
    Ok(report)
}

impl FileReport {
    /// Describes a diffusers folder by the tensors of its models, e.g. `[("unet", ..), ("vae", ..)]`.
    pub fn folder(path: &Path, models: &[(&str, &Weights)]) -> Self {
        let mut report = Self {
            path: path.to_owned(),
            family: "a diffusers folder".into(),
            supported: false,
            components: Vec::new(),
            notes: Vec::new(),
            fits: Vec::new(),
        };
        for (name, weights) in models {
            report.add_component(name, weights);
            report.skipped(weights);
            if *name == "unet" {
                report.with_config(UnetConfig::from_tensors(weights, None), |r, c| {
                    r.family = "a diffusers folder of SDXL".into();
                    r.supported = true;
                    r.unet(&c);
                });
            }
        }
        report.notes.extend(scheduler(path));
        report
    }

    fn add_component(&mut self, name: &str, weights: &Weights) {
        self.components.push(Component::new(name, weights));
        let bad = weights.not_finite();
        if let Some(first) = bad.first() {
            let count = counted(bad.len(), "tensor");
            self.notes.push(format!("NaN or infinity in {count} of {name}, the first is {first}"));
        }
    }

    /// Notes the tensors of types that no model reads.
    fn skipped(&mut self, weights: &Weights) {
        if let Some((name, dtype)) = weights.skipped().next() {
            let (count, name) = (counted(weights.skipped().count(), "tensor"), escape(name));
            self.notes.push(format!("not read for its type: {count}, the first is {name} ({dtype})"));
        }
    }

    /// Notes what a safetensors file says of itself; long values are cut.
    fn metadata(&mut self, weights: &Weights) {
        const SHOWN: usize = 12;
        const LENGTH: usize = 80;
        let said = weights.metadata().iter().filter(|(key, _)| *key != "format");
        let count = said.clone().count();
        for (key, value) in said.take(SHOWN) {
            let short: String = value.chars().take(LENGTH).collect();
            let more = if short.len() < value.len() { " .." } else { "" };
            self.notes.push(format!("metadata {}: {}{more}", escape(key), escape(&short)));
        }
        if count > SHOWN {
            self.notes.push(format!("metadata: {} more", counted(count - SHOWN, "key")));
        }
    }

    /// Goes on with a configuration, or notes why there is none.
    fn with_config<T>(&mut self, config: Result<T>, next: impl FnOnce(&mut Self, T)) {
        match config {
            Ok(config) => next(self, config),
            Err(error) => {
                self.supported = false;
                self.notes.push(error.to_string());
            }
        }
    }

    fn checkpoint(&mut self, weights: &Weights) -> Result<()> {
        let models = single_file::split(weights)?;
        let named = [
            ("unet", &models.unet),
            ("text_encoder", &models.text_encoder),
            ("text_encoder_2", &models.text_encoder_2),
            ("vae", &models.vae),
        ];
        for (name, weights) in named {
            self.add_component(name, weights);
            if weights.is_empty() {
                self.notes.push(format!("{name} is missing"));
            }
        }
        self.supported = named.iter().all(|(_, weights)| !weights.is_empty());
        self.notes.push(match (models.v_prediction, models.zero_snr) {
            (false, _) => "predicts the noise (no marker v_pred)".into(),
            (true, false) => "predicts v".into(),
            (true, true) => "predicts v, trained with a terminal signal-to-noise ratio of zero".into(),
        });
        let pooled =
            ClipTextConfig::from_tensors(&models.text_encoder_2, Activation::Gelu).ok().and_then(|c| c.projection_dim);
        self.with_config(UnetConfig::from_tensors(&models.unet, pooled), |r, c| r.unet(&c));
        Ok(())
    }

    fn unet(&mut self, config: &UnetConfig) {
        self.notes.push(format!(
            "UNet of {:?} channels, {:?} transformer layers a block, text {} wide",
            config.block_out_channels, config.transformer_layers_per_block, config.cross_attention_dim
        ));
        if let Some(PrunedBlocks { down, up, mid_layers, mid_resnets }) = &config.pruned {
            self.notes.push(format!(
                "layers removed, as in SSD-1B and Segmind Vega: transformer layers {down:?} down, {mid_layers} in the middle with \
                 {mid_resnets} resnets, {up:?} up"
            ));
        }
        if config.is_inpainting() {
            self.notes.push("for inpainting: takes a mask and a masked image beside the latents".into());
        }
        let widths = config.cross_attention_widths();
        let published = widths == published::adapter().widths && config.cross_attention_dim == 2048;
        let names = if published { " (ip-adapter_sdxl, ip-adapter_sdxl_vit-h, the Plus ones)" } else { "" };
        self.fits.push(format!(
            "IP-Adapters with {} pairs of matrices for tokens {} wide{names}",
            widths.len(),
            config.cross_attention_dim
        ));
    }

    fn adapter(&mut self, weights: &Weights) -> Result<()> {
        let found = adapter::published(weights)?;
        self.add_component("image_proj", &found.under("image_proj."));
        self.add_component("ip_adapter", &found.under("ip_adapter."));
        self.with_config(AdapterConfig::from_tensors(&found), |r, c| {
            r.supported = true;
            r.notes.push(format!(
                "{} image tokens, {} wide, {} cross-attentions",
                c.num_tokens,
                c.cross_attention_dim,
                c.widths.len()
            ));
            if let Some(resampler) = &c.resampler {
                let ResamplerConfig { hidden_dim, heads, intermediate } = resampler;
                let layers = intermediate.len();
                r.notes.push(format!("a resampler of {layers} layers, latents {hidden_dim} wide, {heads} heads"));
            }
            let what = if c.takes_hidden_states() { "hidden states" } else { "image embeddings" };
            let encoder = compatibility::encoder_of(&c);
            r.fits.push(format!("an image encoder that gives {what} {} wide: {encoder}", c.embedding_dim));
            let sdxl = c.cross_attention_dim == 2048 && c.widths == published::adapter().widths;
            r.fits.push(if sdxl { "SDXL base and models made from it".into() } else { "no published SDXL".into() });
        });
        Ok(())
    }

    fn taesd(&mut self, weights: &Weights) -> Result<()> {
        let found = taesd(weights)?;
        for side in [TaesdSide::Encoder, TaesdSide::Decoder] {
            let own = found.under(side.prefix());
            if own.is_empty() {
                continue;
            }
            self.add_component(&format!("taesd_{}", side.prefix().split('.').next().unwrap_or_default()), &own);
            self.with_config(TaesdConfig::from_tensors(&found, side), |r, c| {
                let Some(c) = c else { return };
                let (latents, factor) = (c.latent_channels, c.scale_factor());
                r.supported = latents == 4;
                r.notes.push(format!("{}: latents of {latents} channels, {factor} pixels to a latent", side.name()));
            });
        }
        if self.supported {
            self.fits.push("SDXL or Stable Diffusion 1 and 2 (which of them, no size tells)".into());
        }
        Ok(())
    }

    /// Describes a LoRA by the modules of the published SDXL that it changes. Where their shapes are others, it may be for a model
    /// of other sizes, which only that model can tell.
    fn lora(&mut self, weights: &Weights) {
        self.add_component("lora", weights);
        let text = [published::text().tensors(), published::text_2().tensors()];
        let targets = LoraTargets::new(&published::unet().tensors(), [&text[0], &text[1]]);
        self.with_config(Lora::examine(weights, &targets), |r, ExaminedLora { lora, misfits }| {
            if misfits.is_empty()
                && let Err(error) = lora.demand_modules(weights.path())
            {
                r.notes.push(error.to_string());
                return;
            }
            r.supported = true;
            for component in LoraComponent::ALL {
                let modules = || lora.modules.iter().filter(|module| module.component == component);
                let others = misfits.iter().filter(|misfit| misfit.component == component).count();
                let (name, count) = (component.folder(), modules().count() + others);
                if count > 0 {
                    let kernels = modules().filter(|module| module.down.shape().len() == 4).count()
                        + misfits.iter().filter(|misfit| misfit.component == component && misfit.convolution).count();
                    r.notes.push(format!("{name}: {}, {kernels} of them convolutions", counted(count, "module")));
                }
            }
            let range = |values: Vec<f32>| {
                let least = values.iter().copied().fold(f32::INFINITY, f32::min);
                let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                if least < most { format!("{least} to {most}") } else { least.to_string() }
            };
            let ranks = lora.modules.iter().map(LoraModule::rank).chain(misfits.iter().map(|misfit| misfit.rank));
            let ranks = range(ranks.map(|rank| rank as f32).collect());
            if misfits.is_empty() {
                let scales = range(lora.modules.iter().map(|module| module.scale).collect());
                r.notes.push(format!("rank {ranks}, alpha divided by rank {scales}"));
                r.fits.push("SDXL base and models made from it".into());
            } else {
                let count = counted(misfits.len(), "module");
                r.notes.push(format!("rank {ranks}; {count} of other shapes than SDXL base has"));
                r.fits.push(
                    "a model with SDXL's names and other sizes: name it beside this file to see whether it fits".into(),
                );
            }
            if let Some(first) = lora.unused.first() {
                r.notes
                    .push(format!("no module of SDXL: {}, the first is {first}", counted(lora.unused.len(), "name")));
            }
        });
    }

    /// Describes a textual inversion by the widths of the published text encoders.
    fn textual_inversion(&mut self, weights: &Weights) {
        self.add_component("vectors", weights);
        let widths = [published::text(), published::text_2()].map(|config| config.hidden_size);
        self.with_config(TextualInversion::read(weights, widths), |r, inversion| {
            for (encoder, vectors) in ["text_encoder", "text_encoder_2"].iter().zip(&inversion.vectors) {
                r.notes.extend(
                    vectors
                        .iter()
                        .map(|v| format!("{encoder}: {}, {} wide", counted(v.shape()[0], "vector"), v.shape()[1])),
                );
            }
            r.notes.extend(inversion.word.iter().map(|word| format!("its own word: {}", escape(word))));
            r.supported = inversion.keyed || inversion.vectors[1].is_some();
            r.fits.push(match inversion.vectors {
                [Some(_), Some(_)] => "SDXL base and models made from it".into(),
                [Some(_), None] if !inversion.keyed => "Stable Diffusion 1.x".into(),
                _ => "SDXL base and models made from it: one of their text encoders".into(),
            });
        });
    }

    fn vision(&mut self, weights: &Weights) -> Result<()> {
        let weights = single_file::image_encoder(weights)?;
        self.add_component("image_encoder", &weights);
        self.with_config(ClipVisionConfig::from_tensors(&weights), |r, c| {
            r.supported = true;
            let name = match (c.hidden_size, c.num_hidden_layers) {
                (1664, 48) => "ViT-bigG/14",
                (1280, 32) => "ViT-H/14",
                (1024, 24) => "ViT-L/14",
                _ => "another one",
            };
            r.family = format!("{}, {name}", r.family);
            r.notes.push(format!(
                "{} layers, {} wide, images of {} pixels, patches of {}",
                c.num_hidden_layers, c.hidden_size, c.image_size, c.patch_size
            ));
            let base = match c.projection_dim {
                1280 => "ip-adapter_sdxl",
                1024 => "ip-adapter_sdxl_vit-h",
                _ => "none of the published ones",
            };
            r.fits.push(format!("IP-Adapters for image embeddings {} wide: {base}", c.projection_dim));
            let plus = match c.hidden_size {
                1280 => "ip-adapter-plus_sdxl_vit-h, ip-adapter-plus-face_sdxl_vit-h",
                _ => "none of the published ones",
            };
            r.fits.push(format!("IP-Adapters Plus for hidden states {} wide: {plus}", c.hidden_size));
        });
        Ok(())
    }
}

/// The scheduler of a diffusers folder, where it states one.
fn scheduler(folder: &Path) -> Option<String> {
    let json = |name: &str| -> Option<Value> {
        let text = std::fs::read_to_string(folder.join(name)).ok()?;
        serde_json::from_str(&strict(&text)).ok()
    };
    let (index, own) = (json("model_index.json")?, json("scheduler/scheduler_config.json")?);
    let class = index["scheduler"][1].as_str().or(own["_class_name"].as_str())?;
    let stated = ["prediction_type", "timestep_spacing", "beta_schedule"];
    let stated = stated.iter().filter_map(|key| Some(format!(", {key} {}", own[*key].as_str()?)));
    Some(escape(&format!("scheduler {class}{}", stated.collect::<String>())))
}

impl fmt::Display for FileReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = escape(&self.path.to_string_lossy());
        let word = if self.supported { "" } else { " (not supported)" };
        writeln!(f, "{path}: {}{word}", self.family)?;
        for component in &self.components {
            let dtypes: Vec<_> = component.dtypes.iter().map(|(d, n)| format!("{d} x {n}")).collect();
            let (millions, gigabytes) = (component.parameters as f64 / 1e6, component.bytes as f64 / 1e9);
            let Component { name, tensors, .. } = component;
            writeln!(
                f,
                "  {name:<15} {tensors:>5} tensors {millions:>9.1} M parameters {gigabytes:>7.3} GB  {}",
                dtypes.join(", ")
            )?;
        }
        // Names of the file's tensors and texts of its metadata are in some of them.
        self.notes.iter().try_for_each(|note| writeln!(f, "  {}", one_line(note)))?;
        self.fits.iter().try_for_each(|fit| writeln!(f, "  goes with {}", one_line(fit)))
    }
}
