//! From files to models.

use super::config_file::{json, missing_part};
use super::embeddings::{self, TextEncoder, Word};
use super::lora::Loras;
use super::model::Model;
use super::model_path;
use super::model_scheduler::ModelScheduler;
use super::options::PipelineOptions;
use super::taesd::Taesd;
use super::vae_file::VaeFile;
use crate::compat::Compat;
use crate::error::{Error, Field, Message, Result};
use crate::inputs::clip_image_processor::ClipImageProcessor;
use crate::inputs::tokenizer::Tokenizer;
use crate::models::clip::{Activation, ClipTextConfig, ClipVisionConfig, VisionOutputs};
use crate::models::compatibility;
use crate::models::ip_adapter::AdapterConfig;
use crate::models::unet::UnetConfig;
use crate::models::vae::{VaeConfig, encoder_weights};
use crate::presence::is_there;
use crate::schedulers::{SchedulerConfig, SchedulerKind};
use crate::weights::single_file::{self, SingleFile};
use crate::weights::{OpenOptions, Weights, adapter, open};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The most adapters of a pipeline: an attention has an operand for each.
const MAX_ADAPTERS: usize = 8;

/// The tensors of a model in memory, for [`super::Pipeline::from_tensors`]: made by [`crate::synthetic::in_memory`], or by
/// [`Weights::insert`] from anywhere.
#[derive(Debug, Clone, Default)]
pub struct ModelTensors {
    /// A single-file SDXL checkpoint, under its original names.
    pub checkpoint: Weights,
    /// A VAE in place of the checkpoint's: under original or diffusers names, or a whole checkpoint with one.
    pub vae: Option<Weights>,
    /// TAESD, with the names of any of its files.
    pub taesd: Option<Weights>,
    /// An image encoder, where reference images are to be encoded.
    pub clip_vision: Option<Weights>,
    /// IP-Adapters.
    pub adapters: Vec<Weights>,
    /// LoRAs.
    pub loras: Vec<Weights>,
    /// Textual inversions; a word is the stem of [`Weights::path`].
    pub embeddings: Vec<Weights>,
}

/// Everything that a pipeline runs.
pub(super) struct Models {
    pub(super) text: [Model<ClipTextConfig>; 2],
    pub(super) tokenizers: [Tokenizer; 2],
    pub(super) unet: Model<UnetConfig>,
    pub(super) vae: Model<VaeConfig>,
    /// The VAE's encoder, unchecked: only an image to begin with needs it.
    pub(super) vae_encoder: Arc<Weights>,
    pub(super) taesd: Taesd,
    pub(super) vision: Option<Model<ClipVisionConfig>>,
    pub(super) adapters: Vec<Model<AdapterConfig>>,
    pub(super) loras: Loras,
    /// The words of the textual inversions.
    pub(super) words: Vec<Word>,
    /// The preprocessing of reference images that the folder states; CLIP's own where absent.
    pub(super) image_processor: Option<ClipImageProcessor>,
    scheduler: Option<ModelScheduler>,
    /// `force_zeros_for_empty_prompt`.
    pub(super) zero_negative: bool,
}

impl Models {
    pub(super) fn load(options: &PipelineOptions) -> Result<Self> {
        let path = &options.model;
        model_path::check(path)?;
        let open_options = OpenOptions { mmap: options.mmap };
        let vae = options.vae.as_deref().map(|vae| VaeFile::open(vae, &open_options)).transpose()?;
        let mut models = match &options.config {
            Some(_) if path.is_dir() => {
                let what =
                    "a diffusers folder has its own configurations; leave it out, or give a single-file checkpoint";
                return Err(Error::parameter(Field::Config, what));
            }
            Some(config) => configured_parts(&single_file::split(&open(path, &open_options)?)?, config, vae)?,
            None if path.is_dir() => folder(path, vae, &open_options)?,
            None => inferred(single_file::split(&open(path, &open_options)?)?, vae)?,
        };
        if let Some(path) = &options.taesd {
            models.taesd = Taesd::open(path, &models.vae.config, &open_options)?;
        }
        few_enough(options.adapters.len())?;
        for path in &options.adapters {
            models.add_adapter(&open(path, &open_options)?)?;
        }
        let vision = match &options.clip_vision {
            Some(path) => Some(path.clone()),
            None if path.is_dir() && is_there(&path.join("image_encoder"))? => Some(path.join("image_encoder")),
            None => None,
        };
        if options.clip_vision.is_some() && options.adapters.is_empty() {
            return Err(unread_encoder());
        }
        if let Some(path) = vision.filter(|_| !options.adapters.is_empty()) {
            models.set_vision(&path, vision_encoder(&path, &open_options)?)?;
        }
        let loras = options.loras.iter().map(|path| open(path, &open_options)).collect::<Result<_>>()?;
        models.set_loras(loras)?;
        let embeddings = options.embeddings.iter().map(|path| open(path, &open_options)).collect::<Result<Vec<_>>>()?;
        models.add_embeddings(&embeddings)?;
        Ok(models)
    }

    /// The models of tensors in memory; of the options' paths only that of the configurations counts.
    pub(super) fn of(tensors: &ModelTensors, options: &PipelineOptions) -> Result<Self> {
        let parts = single_file::split(&tensors.checkpoint)?;
        let vae = tensors.vae.as_ref().map(VaeFile::of).transpose()?;
        let mut models = match &options.config {
            Some(config) => configured_parts(&parts, config, vae)?,
            None => inferred(parts, vae)?,
        };
        if let Some(weights) = &tensors.taesd {
            models.taesd = Taesd::of(weights, &models.vae.config, 1.0)?;
        }
        few_enough(tensors.adapters.len())?;
        for adapter in &tensors.adapters {
            models.add_adapter(adapter)?;
        }
        if let Some(weights) = &tensors.clip_vision {
            if tensors.adapters.is_empty() {
                return Err(unread_encoder());
            }
            let weights = &single_file::image_encoder(weights)?;
            let vision = vision_model(ClipVisionConfig::from_tensors(weights)?, weights.clone())?;
            models.set_vision(weights.path(), vision)?;
        }
        models.set_loras(tensors.loras.clone())?;
        models.add_embeddings(&tensors.embeddings)?;
        Ok(models)
    }

    fn add_adapter(&mut self, file: &Weights) -> Result<()> {
        let weights = adapter::published(file)?;
        let config = AdapterConfig::from_tensors(&weights)?;
        compatibility::adapter_with_unet((file.path(), &config), (self.unet.path(), &self.unet.config))?;
        let table = config.tensors();
        self.adapters.push(Model::new(config, weights, "IP-Adapter", table, &[])?);
        Ok(())
    }

    /// The image encoder.
    ///
    /// # Errors
    /// [`Error::Parameter`] where none was given.
    pub(super) fn image_encoder(&self) -> Result<&Model<ClipVisionConfig>> {
        let what = "an image encoder is needed for images; give its file or folder";
        self.vision.as_ref().ok_or_else(|| Error::parameter(Field::ClipVision, what))
    }

    /// The results of the image encoder that the adapters take.
    pub(super) fn vision_outputs(&self) -> VisionOutputs {
        let any = |hidden: bool| self.adapters.iter().any(|adapter| adapter.config.takes_hidden_states() == hidden);
        VisionOutputs { embeds: any(false), hidden: any(true) }
    }

    /// Refuses adapters of a kind that the profile does not have.
    pub(super) fn demand_adapters_of(&self, compat: &Compat) -> Result<()> {
        match self.adapters.iter().find(|adapter| adapter.config.takes_hidden_states()) {
            Some(adapter) if !compat.plus_adapters => {
                let (path, name) = (crate::error::escape(&adapter.path().to_string_lossy()), compat.name);
                let what =
                    format!("{path} is an IP-Adapter Plus, which the profile {name} does not have; diffusers has it");
                Err(Error::parameter(Field::Compat, what))
            }
            _ => Ok(()),
        }
    }

    fn set_loras(&mut self, files: Vec<Weights>) -> Result<()> {
        // The model's tables are made for the search of modules alone.
        if files.is_empty() {
            return Ok(());
        }
        let text = [0, 1].map(|encoder: usize| self.text[encoder].config.tensors());
        self.loras = Loras::new(files, &self.unet.config.tensors(), [&text[0], &text[1]])?;
        Ok(())
    }

    fn add_embeddings(&mut self, files: &[Weights]) -> Result<()> {
        let encoders = self.text.each_mut().into_iter().zip(&mut self.tokenizers);
        let encoders = encoders.map(|(m, tokenizer)| TextEncoder::new(&mut m.config, &mut m.weights, tokenizer));
        self.words = embeddings::add(encoders, files)?;
        Ok(())
    }

    fn set_vision(&mut self, path: &Path, vision: Model<ClipVisionConfig>) -> Result<()> {
        for adapter in &self.adapters {
            compatibility::adapter_with_image_encoder((adapter.path(), &adapter.config), (path, &vision.config))?;
        }
        if let Some(processor) = &self.image_processor {
            processor.demand_size(vision.config.image_size)?;
        }
        self.vision = Some(vision);
        Ok(())
    }

    /// The scheduler's configuration: the model's own, else the profile's, read for `kind` where one is given.
    pub(super) fn scheduler(&self, kind: Option<SchedulerKind>, compat: &Compat) -> Result<SchedulerConfig> {
        let own = match &self.scheduler {
            Some(own) => return own.config(kind),
            None if compat.diffsynth_scheduler => SchedulerConfig::diffsynth(),
            None => SchedulerConfig::sdxl_default(),
        };
        kind.map_or(Ok(own.clone()), |kind| own.with_kind(kind))
    }
}

fn few_enough(adapters: usize) -> Result<()> {
    if adapters > MAX_ADAPTERS {
        let what = format!("{adapters} adapters given; {MAX_ADAPTERS} are allowed");
        return Err(Error::parameter(Field::Adapters, what));
    }
    Ok(())
}

fn unread_encoder() -> Error {
    let what = Message::from("an image encoder is given, but no IP-Adapter that would read it; give ");
    let what = what.field(Field::Adapters).text(" or leave it out");
    Error::parameter(Field::ClipVision, what)
}

/// A single-file checkpoint; sizes are read off the tensors.
fn inferred(parts: SingleFile, vae: Option<VaeFile>) -> Result<Models> {
    let path = parts.unet.path().to_owned();
    let first = ClipTextConfig::from_tensors(&parts.text_encoder, Activation::QuickGelu)?;
    let second = ClipTextConfig::from_tensors(&parts.text_encoder_2, Activation::Gelu)?;
    let unet = UnetConfig::from_tensors(&parts.unet, second.projection_dim)?;
    let vae = match vae {
        Some(file) => file.model(None)?,
        None => (VaeConfig::from_tensors(&parts.vae)?, parts.vae),
    };
    let scheduler = (parts.v_prediction || parts.zero_snr).then(|| {
        let prediction = if parts.v_prediction { "v_prediction" } else { "epsilon" };
        let text = serde_json::json!({
            "_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012,
            "beta_schedule": "scaled_linear", "timestep_spacing": "leading", "steps_offset": 1, "clip_sample": false,
            "set_alpha_to_one": false, "prediction_type": prediction, "rescale_betas_zero_snr": parts.zero_snr,
        });
        ModelScheduler { path, text: text.to_string(), class: None }
    });
    assemble(
        (first, parts.text_encoder, Tokenizer::clip()?),
        (second, parts.text_encoder_2, Tokenizer::clip_g()?),
        (unet, parts.unet),
        vae,
        scheduler,
        true,
    )
}

/// A single-file checkpoint with the configurations of a diffusers folder, as `from_single_file(config=...)` has it.
fn configured_parts(parts: &SingleFile, config: &Path, vae: Option<VaeFile>) -> Result<Models> {
    let models = configured(config, vae, |part| {
        Ok(match part {
            Component::Unet => parts.unet.clone(),
            Component::Text => parts.text_encoder.clone(),
            Component::Text2 => parts.text_encoder_2.clone(),
            Component::Vae => parts.vae.clone(),
        })
    })?;
    if let Some(scheduler) = models.scheduler.as_ref().filter(|_| parts.v_prediction) {
        scheduler.warn_of_marker(parts.unet.path());
    }
    Ok(models)
}

/// A diffusers folder; sizes are those of each part's `config.json`.
fn folder(path: &Path, vae: Option<VaeFile>, options: &OpenOptions) -> Result<Models> {
    configured(path, vae, |part| {
        let weights = open(&path.join(part.folder()), options)?;
        match part {
            Component::Unet => Ok(weights),
            Component::Text | Component::Text2 => single_file::text_encoder(&weights),
            Component::Vae => single_file::vae(&weights),
        }
    })
}

/// The parts of a diffusers folder that have weights.
#[derive(Clone, Copy)]
enum Component {
    Unet,
    Text,
    Text2,
    Vae,
}

impl Component {
    const fn folder(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::Text => "text_encoder",
            Self::Text2 => "text_encoder_2",
            Self::Vae => "vae",
        }
    }
}

/// A model whose configurations are those of the diffusers folder `path`.
fn configured(path: &Path, vae: Option<VaeFile>, weights: impl Fn(Component) -> Result<Weights>) -> Result<Models> {
    let index_path = path.join("model_index.json");
    let index = json(&index_path)?;
    let said = index.get("_class_name").unwrap_or(&Value::Null);
    let class = said.as_str().unwrap_or_default();
    if !class.starts_with("StableDiffusionXL") {
        return Err(Error::Config {
            path: index_path,
            field: "_class_name".into(),
            value: crate::error::escape(&said.as_str().map_or_else(|| said.to_string(), str::to_owned)),
            expected: "StableDiffusionXLPipeline is needed: the folder of an SDXL base model".into(),
        });
    }
    // The refiner's folder has no first text encoder.
    let parts = ["text_encoder", "text_encoder_2", "unet", "vae"];
    for part in parts.into_iter().filter(|part| *part != "vae" || vae.is_none()) {
        let value = index.get(part).unwrap_or(&Value::Null);
        if value.as_array().map_or(value.is_null(), |v| v.iter().all(Value::is_null)) {
            return Err(Error::Config {
                path: index_path,
                field: part.into(),
                value: value.to_string(),
                expected: "two text encoders, a UNet and a VAE are needed: the folder of an SDXL base model".into(),
            });
        }
    }
    let config = |part: Component| -> Result<(PathBuf, Value)> {
        let path = path.join(part.folder()).join("config.json");
        let value = json(&path)?;
        Ok((path, value))
    };
    let encoder = |part: Component, tokenizer: &str, default: fn() -> Result<Tokenizer>| -> Result<_> {
        let (config_path, mut value) = config(part)?;
        // diffusers loads the class that the index names, whatever the configuration's own `architectures` say.
        if let (Some(class), true) = (index[part.folder()][1].as_str(), value.is_object()) {
            value["architectures"] = serde_json::json!([class]);
        }
        let folder = path.join(tokenizer);
        let tokenizer = if is_there(&folder)? { Tokenizer::from_folder(&folder)? } else { default()? };
        let config = ClipTextConfig::from_json(&config_path, &value)?;
        Ok((config, weights(part)?, tokenizer))
    };
    let (unet_path, unet) = config(Component::Unet)?;
    let own_vae = || config(Component::Vae).and_then(|(path, value)| VaeConfig::from_json(&path, &value));
    let vae = match vae {
        Some(file) if !is_there(&path.join("vae/config.json"))? => file.model(None)?,
        Some(file) => file.model(Some(&own_vae()?))?,
        None => (own_vae()?, weights(Component::Vae)?),
    };
    let scheduler = ModelScheduler::of_folder(path, &index_path, &index)?;
    let zero = index.get("force_zeros_for_empty_prompt").and_then(Value::as_bool).unwrap_or(true);
    let image_processor = image_processor(path, &index_path, &index)?;
    let models = assemble(
        encoder(Component::Text, "tokenizer", Tokenizer::clip)?,
        encoder(Component::Text2, "tokenizer_2", Tokenizer::clip_g)?,
        (UnetConfig::from_json(&unet_path, &unet)?, weights(Component::Unet)?),
        vae,
        scheduler,
        zero,
    )?;
    Ok(Models { image_processor, ..models })
}

/// The folder's preprocessing of reference images, where its index names one.
fn image_processor(folder: &Path, index_path: &Path, index: &Value) -> Result<Option<ClipImageProcessor>> {
    let Some(class) = index["feature_extractor"][1].as_str() else { return Ok(None) };
    let path = folder.join("feature_extractor").join("preprocessor_config.json");
    if !is_there(&path)? {
        return Err(missing_part(index_path, "feature_extractor", class, "preprocessor_config.json"));
    }
    ClipImageProcessor::from_json(&path, &json(&path)?).map(Some)
}

type TextParts = (ClipTextConfig, Weights, Tokenizer);

fn assemble(
    first: TextParts,
    second: TextParts,
    unet: (UnetConfig, Weights),
    vae: (VaeConfig, Weights),
    scheduler: Option<ModelScheduler>,
    zero_negative: bool,
) -> Result<Models> {
    compatibility::text_encoders_with_unet(&first.0, &second.0, (unet.1.path(), &unet.0))?;
    compatibility::vae_with_unet((vae.1.path(), &vae.0), (unet.1.path(), &unet.0))?;
    let lengths = [first.2.max_length(), second.2.max_length()];
    let encoder = |(config, weights, tokenizer): TextParts| -> Result<_> {
        if tokenizer.max_length() > config.max_position_embeddings || lengths[0] != lengths[1] {
            let what = format!(
                "the text encoder has {} positions, the tokenizers give {} and {} tokens; the model's own tokenizers are \
                 needed (model_max_length)",
                config.max_position_embeddings, lengths[0], lengths[1]
            );
            return Err(Error::mismatch(weights.path(), what));
        }
        if tokenizer.vocab_size() > config.vocab_size {
            let what = format!(
                "the text encoder knows {} tokens, its tokenizer {}; the model's own tokenizer is needed",
                config.vocab_size,
                tokenizer.vocab_size()
            );
            return Err(Error::mismatch(weights.path(), what));
        }
        let table = config.tensors();
        let ignored = ["position_ids", "text_projection", "logit_scale"];
        Ok((Model::new(config, weights, "text encoder", table, &ignored)?, tokenizer))
    };
    let (first, tokenizer) = encoder(first)?;
    let (second, tokenizer_2) = encoder(second)?;
    let (unet_table, vae_table) = (unet.0.tensors(), vae.0.decoder_tensors());
    let vae_encoder = Arc::new(encoder_weights(&vae.1)?);
    Ok(Models {
        text: [first, second],
        tokenizers: [tokenizer, tokenizer_2],
        unet: Model::new(unet.0, unet.1, "UNet", unet_table, &[])?,
        vae: Model::new(vae.0, vae.1, "VAE decoder", vae_table, &["encoder.", "quant_conv."])?,
        vae_encoder,
        taesd: Taesd::default(),
        vision: None,
        adapters: Vec::new(),
        loras: Loras::default(),
        words: Vec::new(),
        image_processor: None,
        scheduler,
        zero_negative,
    })
}

/// An image encoder, a file or its folder.
fn vision_encoder(path: &Path, options: &OpenOptions) -> Result<Model<ClipVisionConfig>> {
    let weights = single_file::image_encoder(&open(path, options)?)?;
    let beside = if path.is_dir() { path.to_owned() } else { path.parent().unwrap_or(Path::new("")).to_owned() };
    let config_path = beside.join("config.json");
    // Another model's configuration may lie beside a file: only one of an image encoder is read.
    let value = if is_there(&config_path)? { Some(json(&config_path)?) } else { None };
    let config = match value.filter(|v| v.get("patch_size").is_some() || v.get("vision_config").is_some()) {
        Some(value) => ClipVisionConfig::from_json(&config_path, &value)?,
        None => ClipVisionConfig::from_tensors(&weights)?,
    };
    vision_model(config, weights)
}

fn vision_model(config: ClipVisionConfig, weights: Weights) -> Result<Model<ClipVisionConfig>> {
    let table = config.tensors();
    Model::new(
        config,
        weights,
        "image encoder",
        table,
        &["position_ids", "text_model", "text_projection", "logit_scale"],
    )
}
