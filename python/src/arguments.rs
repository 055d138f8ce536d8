//! Options and requests from dictionaries whose keys are the library's field names.

use crate::errors::to_python;
use braid::{
    AlphaMode, DType, Image, ImagePrompt, PhiloxGrid, PipelineOptions, Reference, ReferenceImage, Request, RngKind,
    Scales, SizeConditioning,
};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use std::path::PathBuf;
use std::str::FromStr;

/// An image encoded for an adapter.
#[pyclass(frozen, module = "braid")]
pub struct EncodedImage {
    pub inner: braid::EncodedImage,
}

#[pymethods]
impl EncodedImage {
    /// Reads an image-prompt file.
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Vec<Self>> {
        let images = to_python(py, py.detach(|| braid::EncodedImage::load(&path)))?;
        Ok(images.into_iter().map(|inner| Self { inner }).collect())
    }

    /// Writes an image-prompt file, whole or not at all.
    #[staticmethod]
    fn save(py: Python<'_>, images: Vec<PyRef<'_, Self>>, path: PathBuf) -> PyResult<()> {
        let images: Vec<_> = images.iter().map(|image| image.inner.clone()).collect();
        to_python(py, py.detach(|| braid::EncodedImage::save(&images, &path)))
    }

    /// The embedding, row after row.
    #[getter]
    fn embedding(&self) -> Vec<f32> {
        self.inner.embedding().to_vec()
    }

    /// The number of image tokens.
    #[getter]
    fn num_tokens(&self) -> usize {
        self.inner.num_tokens()
    }

    /// Width and height of the image that was encoded.
    #[getter]
    fn source_size(&self) -> (usize, usize) {
        self.inner.source_size()
    }

    fn __repr__(&self) -> String {
        let (width, height) = self.inner.source_size();
        format!("<braid.EncodedImage of {width}x{height}, {} tokens>", self.inner.num_tokens())
    }
}

/// The value of a name, in the library's own words where there is none.
fn named<T: FromStr<Err = braid::Error>>(value: &Bound<'_, PyAny>) -> PyResult<T> {
    to_python(value.py(), T::from_str(&value.extract::<String>()?))
}

fn dtype(value: &Bound<'_, PyAny>) -> PyResult<DType> {
    let name: String = value.extract()?;
    DType::from_name(&name)
        .ok_or_else(|| PyValueError::new_err(format!("dtype {name:?}: f32, f16 or bf16 is expected")))
}

/// An image from `(width, height, RGB bytes)` or from a path.
fn image(value: &Bound<'_, PyAny>) -> PyResult<Image> {
    let py = value.py();
    if let Ok(path) = value.extract::<PathBuf>() {
        return to_python(py, py.detach(|| Image::open(&path, AlphaMode::CompositeOnWhite)));
    }
    let (width, height, bytes): (usize, usize, PyBuffer<u8>) = value.extract()?;
    to_python(py, Image::new(width, height, bytes.to_vec(py)?))
}

/// Reads an image file: width, height and RGB bytes, as those of an image that is given by its path.
#[pyfunction]
pub fn read_image<'py>(path: &Bound<'py, PyAny>) -> PyResult<(usize, usize, Bound<'py, PyBytes>)> {
    let image = image(path)?;
    Ok((image.width(), image.height(), PyBytes::new(path.py(), image.rgb())))
}

/// An image, an encoded one, or the values of an embedding.
fn reference_image(value: &Bound<'_, PyAny>) -> PyResult<ReferenceImage> {
    if let Ok(encoded) = value.cast::<EncodedImage>() {
        return Ok(encoded.get().inner.clone().into());
    }
    match value.extract::<PyBuffer<f32>>() {
        Ok(values) => Ok(ReferenceImage::Embedding(values.to_vec(value.py())?)),
        Err(_) => Ok(image(value)?.into()),
    }
}

/// Calls `set` with each key and value; those that are None stand for what is not given.
fn each(dict: &Bound<'_, PyDict>, mut set: impl FnMut(&str, &Bound<'_, PyAny>) -> PyResult<bool>) -> PyResult<()> {
    for (key, value) in dict {
        let name: String = key.extract()?;
        if value.is_none() {
            continue;
        }
        match set(&name, &value) {
            Ok(true) => {}
            Ok(false) => return Err(PyTypeError::new_err(format!("there is no argument {name:?}"))),
            Err(error) => {
                // What Python says of a value does not tell whose it is; the library's errors do.
                let (py, what) = (dict.py(), || format!("{name}: {}", error.value(dict.py())));
                return Err(match &error {
                    error if error.is_instance_of::<PyTypeError>(py) => PyTypeError::new_err(what()),
                    error if error.is_instance_of::<PyOverflowError>(py) => PyOverflowError::new_err(what()),
                    _ => error,
                });
            }
        }
    }
    Ok(())
}

fn reference(dict: &Bound<'_, PyDict>) -> PyResult<Reference> {
    let content = dict.get_item("image")?.ok_or_else(|| PyTypeError::new_err("a reference without an image"))?;
    let mut reference = Reference::new(reference_image(&content)?);
    each(dict, |name, value| {
        match name {
            "image" => {}
            "weight" => reference.weight = value.extract()?,
            "mask" => reference.mask = Some(image(value)?),
            "texts" => reference.texts = value.extract()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(reference)
}

/// The image prompt of one adapter.
pub fn image_prompt(dict: &Bound<'_, PyDict>) -> PyResult<ImagePrompt> {
    let py = dict.py();
    let mut prompt = ImagePrompt::default();
    each(dict, |name, value| {
        match name {
            "references" => {
                let references: Vec<Bound<'_, PyDict>> = value.extract()?;
                prompt.references = references.iter().map(reference).collect::<PyResult<_>>()?;
            }
            "scales" => {
                let (blocks, strength): (String, f32) = value.extract()?;
                prompt.scales = to_python(py, Scales::parse(&blocks, strength))?;
            }
            "combine" => prompt.combine = named(value)?,
            "start" => prompt.start = value.extract()?,
            "end" => prompt.end = value.extract()?,
            "negative_image" => prompt.negative_image = Some(reference_image(value)?),
            "fit" => prompt.fit = named(value)?,
            "resize" => prompt.resize = Some(value.extract()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(prompt)
}

/// The options of a pipeline.
pub fn options(model: PathBuf, dict: &Bound<'_, PyDict>) -> PyResult<PipelineOptions> {
    let mut options = PipelineOptions::new(model);
    each(dict, |name, value| {
        match name {
            "config" => options.config = Some(value.extract()?),
            "vae" => options.vae = Some(value.extract()?),
            "taesd" => options.taesd = Some(value.extract()?),
            "vae_tiling" => options.vae_tiling = Some(value.extract()?),
            "clip_vision" => options.clip_vision = Some(value.extract()?),
            "adapters" => options.adapters = value.extract()?,
            "loras" => options.loras = value.extract()?,
            "embeddings" => options.embeddings = value.extract()?,
            "compat" => options.compat = named(value)?,
            "device" => options.device = named(value)?,
            "dtype" => options.dtype = Some(dtype(value)?),
            "vae_dtype" => options.vae_dtype = Some(dtype(value)?),
            "quantize" => options.quantize = Some(named(value)?),
            "encoders" => options.encoders = named(value)?,
            "max_cache_bytes" => options.max_cache_bytes = value.extract()?,
            "max_batch" => options.max_batch = Some(value.extract()?),
            "threads" => options.threads = Some(value.extract()?),
            "mmap" => options.mmap = value.extract()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(options)
}

/// Sizes that a row is conditioned on, from `(original, crop, target)`, each a pair or None.
fn sizes(value: &Bound<'_, PyAny>) -> PyResult<SizeConditioning> {
    type Pair = Option<(usize, usize)>;
    let (original, crop, target): (Pair, Pair, Pair) = value.extract()?;
    let mut sizes = SizeConditioning::default();
    (sizes.original_size, sizes.crop, sizes.target_size) = (original, crop, target);
    Ok(sizes)
}

/// A request, whose noise is drawn in `noise_dtype` where the dictionary does not say otherwise.
pub fn request(dict: &Bound<'_, PyDict>, noise_dtype: DType) -> PyResult<Request> {
    let mut request = Request::new("");
    request.noise_dtype = noise_dtype;
    each(dict, |name, value| {
        match name {
            "prompt" => request.prompt = value.extract()?,
            "negative_prompt" => request.negative_prompt = Some(value.extract()?),
            "prompt_2" => request.prompt_2 = Some(value.extract()?),
            "negative_prompt_2" => request.negative_prompt_2 = Some(value.extract()?),
            "long_prompts" => request.long_prompts = named(value)?,
            "prompt_weights" => request.prompt_weights = named(value)?,
            "size_conditioning" => request.size_conditioning = sizes(value)?,
            "negative_size_conditioning" => request.negative_size_conditioning = sizes(value)?,
            "steps" => request.steps = value.extract()?,
            "guidance_scale" => request.guidance_scale = value.extract()?,
            "guidance_rescale" => request.guidance_rescale = value.extract()?,
            "guidance_interval" => request.guidance_interval = Some(value.extract()?),
            "width" => request.width = Some(value.extract()?),
            "height" => request.height = Some(value.extract()?),
            "seed" => request.seed = value.extract()?,
            "num_images" => request.num_images = value.extract()?,
            "image_prompts" => {
                let prompts: Vec<Bound<'_, PyDict>> = value.extract()?;
                request.image_prompts = prompts.iter().map(image_prompt).collect::<PyResult<_>>()?;
            }
            "lora_scales" => request.lora_scales = value.extract()?,
            "scheduler" => request.scheduler = Some(named(value)?),
            "sigma_schedule" => request.sigma_schedule = Some(named(value)?),
            "prediction_type" => request.prediction_type = Some(named(value)?),
            "timestep_spacing" => request.timestep_spacing = Some(named(value)?),
            "eta" => request.eta = Some(value.extract()?),
            "clip_skip" => request.clip_skip = value.extract()?,
            "rng" => request.rng = rng(value)?,
            "noise_dtype" => request.noise_dtype = dtype(value)?,
            "noise" => request.noise = Some(value.extract::<PyBuffer<f32>>()?.to_vec(value.py())?),
            "init_image" => request.init_image = Some(image(value)?),
            "strength" => request.strength = Some(value.extract()?),
            "mask" => request.mask = Some(image(value)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(request)
}

fn rng(value: &Bound<'_, PyAny>) -> PyResult<RngKind> {
    match value.extract::<String>()?.as_str() {
        "cpu" => Ok(RngKind::Cpu),
        "cuda" => Ok(RngKind::Cuda(PhiloxGrid::default())),
        other => Err(PyValueError::new_err(format!("rng {other:?}: cpu or cuda is expected"))),
    }
}
