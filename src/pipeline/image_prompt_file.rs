//! Image-prompt files: encoded images in a safetensors file, see docs/formats.md.

use super::encoded_image::{EncodedImage, EncodingOrigin, SourceImage};
use super::image_prompt::ReferenceImage;
use crate::atomic_file::write_atomic;
use crate::error::{Error, Field, Result};
use crate::inputs::image::{AlphaMode, Image, read_image_file};
use crate::tensor::DType;
use crate::weights::detect::{IMAGE_PROMPT_FORMAT, detect};
use crate::weights::{FileFormat, MappedBytes, Weight, Weights, safetensors, sniff};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// The version that is written, and the only one that is read.
const VERSION: &str = "1";
/// The metadata's checksum of all else.
const CHECKSUM: &str = "checksum";
const EMBEDS: &str = "image_embeds";
const HIDDEN: &str = "image_hidden";
const TOKENS: &str = "image_tokens";
const ZERO: &str = "zero_hidden";

impl ReferenceImage {
    /// Reads an image file or an image-prompt file, told apart by their content: one image, or all encoded images of the file.
    ///
    /// # Errors
    /// As [`Image::open`] and [`EncodedImage::load`].
    pub fn open(path: impl AsRef<Path>, alpha: AlphaMode) -> Result<Vec<Self>> {
        let path = path.as_ref();
        let bytes = MappedBytes::owned(read_image_file(path)?);
        if sniff(&bytes) == FileFormat::Safetensors {
            return Ok(decode(bytes, path)?.into_iter().map(Self::Encoded).collect());
        }
        Ok(vec![Image::decode(bytes.bytes(), path, alpha)?.into()])
    }
}

impl EncodedImage {
    /// Writes images that were encoded together as an image-prompt file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Parameter`] where there is none, or they were not encoded together; [`Error::Io`].
    pub fn save(images: &[Self], path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let Some(origin) = images.first().map(|image| &image.origin).filter(|o| images.iter().all(|i| i.origin == **o))
        else {
            let what = "images of one call, for one adapter, are needed; at least one";
            return Err(Error::parameter(Field::ImagePrompts, what));
        };
        let sources: Vec<_> = images.iter().map(|image| &image.source).collect();
        let mut metadata = BTreeMap::from(
            [
                ("format", IMAGE_PROMPT_FORMAT.to_owned()),
                ("version", VERSION.to_owned()),
                ("adapter", format!("{:032x}", origin.adapter)),
                ("image_encoder", format!("{:032x}", origin.encoder)),
                ("fit", origin.fit.to_string()),
                ("dtype", origin.dtype.to_string()),
                ("device", origin.device.clone()),
                ("images", json!(sources).to_string()),
            ]
            .map(|(key, value)| (key.to_owned(), value)),
        );
        if let Some((width, height)) = origin.resize {
            metadata.insert("resize".into(), format!("{width}x{height}"));
        }
        let mut tensors = Weights::new(path);
        let mut add = |name: &str, shape: &[usize], values: &[f32]| {
            let misshapen = || Error::Graph(format!("`{name}` of an image-prompt file does not have its shape"));
            tensors.insert(name, Weight::from_f32(values, shape, name).ok_or_else(misshapen)?)
        };
        let all = |values: fn(&Self) -> &[f32]| images.iter().flat_map(values).copied().collect::<Vec<_>>();
        let shape = |of_one: &[usize]| [&[images.len()][..], of_one].concat();
        let name = if origin.shape.len() == 2 { HIDDEN } else { EMBEDS };
        add(name, &shape(&origin.shape), &all(|image| &image.embedding))?;
        add(TOKENS, &shape(&origin.tokens), &all(|image| &image.tokens))?;
        if let Some(zero) = &origin.zero {
            add(ZERO, &origin.shape, zero)?;
        }
        let bytes = contents(metadata, &tensors);
        write_atomic(path, |file| file.write_all(&bytes))
    }

    /// Reads the images of an image-prompt file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] where the file is damaged; [`Error::Mismatch`] where it is another kind of file, or of
    /// another version.
    pub fn load(path: impl AsRef<Path>) -> Result<Vec<Self>> {
        let path = path.as_ref();
        decode(MappedBytes::owned(read_image_file(path)?), path)
    }
}

/// A safetensors file of these tensors of f32, in their order, and the metadata with their checksum.
fn contents(mut metadata: BTreeMap<String, String>, tensors: &Weights) -> Vec<u8> {
    metadata.insert(CHECKSUM.into(), checksum(&metadata, tensors));
    let mut map = Map::from_iter([("__metadata__".to_owned(), json!(metadata))]);
    let mut begin = 0;
    for (name, tensor) in tensors.iter() {
        let end = begin + tensor.bytes().len();
        map.insert(name.into(), json!({"dtype": "F32", "shape": tensor.shape(), "data_offsets": [begin, end]}));
        begin = end;
    }
    let mut header = Value::Object(map).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(&header);
    tensors.iter().for_each(|(_, tensor)| bytes.extend_from_slice(tensor.bytes()));
    bytes
}

/// XXH3's 128 bits of the metadata but the checksum, each text after its length, and of [`Weights::hash`].
fn checksum(metadata: &BTreeMap<String, String>, tensors: &Weights) -> String {
    let mut hasher = Xxh3::new();
    for text in metadata.iter().filter(|(key, _)| *key != CHECKSUM).flat_map(|(key, value)| [key, value]) {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.update(&tensors.hash().to_le_bytes());
    format!("{:032x}", hasher.digest128())
}

fn decode(bytes: MappedBytes, path: &Path) -> Result<Vec<EncodedImage>> {
    let tensors = safetensors::read(Arc::new(bytes), path)?;
    let said = |key: &str| tensors.metadata().get(key).map(String::as_str);
    if said("format") != Some(IMAGE_PROMPT_FORMAT) {
        let what = format!("this is {}; an image or an image-prompt file is needed", detect(&tensors));
        return Err(Error::mismatch(path, what));
    }
    match said("version") {
        Some(VERSION) => {}
        other => {
            let other = other.unwrap_or("none");
            let what =
                format!("an image-prompt file of version {other}; {VERSION} is read here: encode the image anew");
            return Err(Error::mismatch(path, what));
        }
    }
    if said(CHECKSUM) != Some(checksum(tensors.metadata(), &tensors).as_str()) {
        let what = "the image-prompt file is damaged: its content is not that of its checksum; encode the image anew";
        return Err(Error::malformed(path, what));
    }
    let reader = Reader { path, tensors: &tensors };
    let sources: Vec<SourceImage> = reader.read("images", |text| serde_json::from_str(text).ok())?;
    let hidden = tensors.contains(HIDDEN);
    let (name, rank) = if hidden { (HIDDEN, 2) } else { (EMBEDS, 1) };
    let (embeddings, shape) = reader.images(name, sources.len(), rank)?;
    let (tokens, token_shape) = reader.images(TOKENS, sources.len(), 2)?;
    let zero = hidden.then(|| reader.tensor(ZERO, &shape)).transpose()?;
    let origin = Arc::new(EncodingOrigin {
        path: path.to_owned(),
        adapter: reader.read("adapter", |text| u128::from_str_radix(text, 16).ok())?,
        encoder: reader.read("image_encoder", |text| u128::from_str_radix(text, 16).ok())?,
        tokens: [token_shape[0], token_shape[1]],
        zero: zero.map(Into::into),
        fit: reader.read("fit", |text| text.parse().ok())?,
        resize: said("resize").map(|_| reader.read("resize", size)).transpose()?,
        dtype: reader.read("dtype", DType::from_name)?,
        device: reader.read("device", |text| Some(text.to_owned()))?,
        shape,
    });
    let images = sources.into_iter().zip(embeddings).zip(tokens);
    Ok(images
        .map(|((source, embedding), tokens)| EncodedImage { origin: origin.clone(), embedding, tokens, source })
        .collect())
}

fn size(text: &str) -> Option<(usize, usize)> {
    let (width, height) = text.split_once('x')?;
    Some((usize::from_str(width).ok()?, usize::from_str(height).ok()?))
}

/// Reads the parts of a file that is sound as far as its checksum tells.
struct Reader<'a> {
    path: &'a Path,
    tensors: &'a Weights,
}

impl Reader<'_> {
    fn malformed(&self, name: &str, what: &str) -> Error {
        Error::malformed(self.path, format!("`{name}` of the image-prompt file {what}; encode the image anew"))
    }

    /// A value of the metadata.
    fn read<T>(&self, key: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T> {
        let text = self.tensors.metadata().get(key);
        text.and_then(|text| parse(text)).ok_or_else(|| self.malformed(key, "is missing or cannot be read"))
    }

    /// The finite values of a tensor of f32 whose shape ends so.
    fn values(&self, name: &str, fits: impl Fn(&[usize]) -> bool) -> Result<(Vec<f32>, &[usize])> {
        let tensor = self.tensors.get(name).ok_or_else(|| self.malformed(name, "is missing"))?;
        if tensor.dtype() != DType::F32 || tensor.is_empty() || !fits(tensor.shape()) {
            let what = format!("is {} {:?}, which does not go with the rest", tensor.dtype(), tensor.shape());
            return Err(self.malformed(name, &what));
        }
        if !tensor.is_finite() {
            return Err(self.malformed(name, "holds NaN or infinity"));
        }
        Ok((tensor.to_f32(), tensor.shape()))
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        Ok(self.values(name, |found| found == shape)?.0)
    }

    /// The values of each of `count` images, and the shape of those of one, which has `rank` dimensions.
    fn images(&self, name: &str, count: usize, rank: usize) -> Result<(Vec<Vec<f32>>, Vec<usize>)> {
        let (values, shape) = self.values(name, |shape| shape.len() == rank + 1 && shape[0] == count)?;
        Ok((values.chunks(values.len() / count).map(<[f32]>::to_vec).collect(), shape[1..].to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change<'a> = &'a dyn Fn(&mut BTreeMap<String, String>, &mut BTreeMap<&'static str, (Vec<usize>, f32)>);

    /// A file of two images for an adapter Plus after a change, whose checksum is right.
    fn read(change: Change<'_>) -> Result<Vec<EncodedImage>> {
        let source = SourceImage::of(&Image::new(1, 2, vec![7; 6]).unwrap());
        let said = [
            ("format", IMAGE_PROMPT_FORMAT.to_owned()),
            ("version", VERSION.to_owned()),
            ("adapter", "a".repeat(32)),
            ("image_encoder", "b".repeat(32)),
            ("fit", "pad".to_owned()),
            ("resize", "30x20".to_owned()),
            ("dtype", "f16".to_owned()),
            ("device", "cpu".to_owned()),
            ("images", json!([source, source]).to_string()),
        ];
        let mut metadata = said.map(|(key, value)| (key.to_owned(), value)).into();
        let mut tensors =
            BTreeMap::from([(HIDDEN, (vec![2, 5, 3], 1.0)), (TOKENS, (vec![2, 4, 6], 2.0)), (ZERO, (vec![5, 3], 3.0))]);
        change(&mut metadata, &mut tensors);
        let mut weights = Weights::new("w");
        for (name, (shape, value)) in tensors {
            let mut values = vec![1.0; shape.iter().product()];
            values.last_mut().into_iter().for_each(|last| *last = value);
            weights.insert(name, Weight::from_f32(&values, &shape, name).unwrap()).unwrap();
        }
        decode(MappedBytes::owned(contents(metadata, &weights)), Path::new("w"))
    }

    #[test]
    fn sound_file() {
        let images = read(&|_, _| ()).unwrap();
        assert_eq!((images.len(), images[1].embedding().len(), images[1].tokens().len()), (2, 15, 24));
        assert_eq!((images[0].embedding()[14], images[1].embedding()[14], images[1].tokens()[23]), (1.0, 1.0, 2.0));
        let origin = &images[0].origin;
        assert_eq!((origin.resize, origin.fit.to_string(), origin.dtype), (Some((30, 20)), "pad".into(), DType::F16));
        assert_eq!(origin.zero.as_ref().map(|zero| zero[14]), Some(3.0));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        EncodedImage::save(&images, &path).unwrap();
        let again = EncodedImage::load(&path).unwrap();
        assert_eq!(*again[0].origin, EncodingOrigin { path: path.clone(), ..(**origin).clone() });
        assert_eq!((&again[1].embedding, &again[1].tokens), (&images[1].embedding, &images[1].tokens));
        assert!(matches!(EncodedImage::save(&[], &path), Err(Error::Parameter { .. })));
        assert!(matches!(
            EncodedImage::save(&[images[0].clone(), again[0].clone()], &path),
            Err(Error::Parameter { .. })
        ));
    }

    /// Files whose checksum is right and whose content cannot be.
    #[test]
    fn senseless_files() {
        let said = |key: &'static str, value: &'static str| {
            move |m: &mut BTreeMap<String, String>, _: &mut BTreeMap<_, _>| drop(m.insert(key.into(), value.into()))
        };
        let shaped = |name: &'static str, shape: &'static [usize], value: f32| {
            move |_: &mut BTreeMap<_, _>, t: &mut BTreeMap<&'static str, (Vec<usize>, f32)>| {
                t.insert(name, (shape.to_vec(), value));
            }
        };
        let cases: [(&str, Change<'_>); 17] = [
            ("another kind", &said("format", "pt")),
            ("version 2", &said("version", "2")),
            ("no number", &said("adapter", "x")),
            ("no encoder", &|m, _| drop(m.remove("image_encoder"))),
            ("no fit", &said("fit", "zoom")),
            ("no size", &said("resize", "30")),
            ("no type", &said("dtype", "f64")),
            ("no images", &said("images", "[]")),
            ("no list", &said("images", "{}")),
            ("three images", &shaped(HIDDEN, &[3, 5, 3], 1.0)),
            ("embeddings of rank 2", &shaped(HIDDEN, &[2, 15], 1.0)),
            ("tokens of one", &shaped(TOKENS, &[1, 4, 6], 1.0)),
            ("other zeros", &shaped(ZERO, &[3, 5], 1.0)),
            ("NaN", &shaped(HIDDEN, &[2, 5, 3], f32::NAN)),
            ("infinity", &shaped(ZERO, &[5, 3], f32::INFINITY)),
            ("no tokens", &|_, t| drop(t.remove(TOKENS))),
            ("no zeros", &|_, t| drop(t.remove(ZERO))),
        ];
        for (what, change) in cases {
            let error = read(change).map(drop).unwrap_err();
            assert!(matches!(error, Error::Malformed { .. } | Error::Mismatch { .. }), "{what}: {error}");
        }
        let text = |change: Change<'_>| read(change).map(drop).unwrap_err().to_string();
        assert!(text(&said("version", "2")).contains("version 2; 1 is read"));
        assert!(text(&said("format", "pt")).contains("an image-prompt file is needed"));
        assert!(
            text(&shaped(TOKENS, &[2, 4, 6], f32::NAN)).contains("`image_tokens` of the image-prompt file holds NaN")
        );
    }
}
