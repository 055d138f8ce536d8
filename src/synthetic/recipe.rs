//! The files of a golden case, made from its `recipe.json` (written by `tools/goldens/recipe.py`).

use super::{Stored, TensorSpec, file, write_safetensors, write_torch};
use crate::error::{Error, Result};
use crate::tensor::DType;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Component, Path};

#[derive(Deserialize)]
struct Recipe {
    files: Vec<RecipeFile>,
}

#[derive(Deserialize)]
struct RecipeFile {
    path: String,
    #[serde(flatten)]
    content: Content,
}

#[derive(Deserialize)]
#[serde(tag = "format", rename_all = "lowercase")]
enum Content {
    Safetensors {
        tensors: Vec<RecipeTensor>,
        #[serde(default)]
        metadata: BTreeMap<String, String>,
    },
    Torch {
        tensors: Vec<RecipeTensor>,
    },
    Json {
        json: Value,
    },
    Text {
        text: String,
    },
    Copy {
        from: String,
    },
}

#[derive(Deserialize)]
struct RecipeTensor {
    name: String,
    shape: Vec<usize>,
    dtype: RecipeDType,
    #[serde(default)]
    scale: f32,
    #[serde(default)]
    offset: f32,
    #[serde(default)]
    seed: u32,
}

#[derive(Deserialize)]
enum RecipeDType {
    F32,
    F16,
    BF16,
    I64,
}

impl From<RecipeTensor> for TensorSpec {
    fn from(tensor: RecipeTensor) -> Self {
        let dtype = match tensor.dtype {
            RecipeDType::F32 => Stored::Float(DType::F32),
            RecipeDType::F16 => Stored::Float(DType::F16),
            RecipeDType::BF16 => Stored::Float(DType::BF16),
            RecipeDType::I64 => Stored::Positions,
        };
        Self {
            name: tensor.name,
            shape: tensor.shape,
            dtype,
            scale: tensor.scale,
            offset: tensor.offset,
            seed: tensor.seed,
        }
    }
}

/// Makes the files of `recipe_json` under `dir`. Formats: `safetensors`, `torch` (nested at the first dot), `json`,
/// `text`, and `copy` with `from`, a path relative to the recipe.
///
/// # Errors
/// [`Error::Io`] where a file cannot be read or written; [`Error::Malformed`] where the recipe is not one, or names a
/// path outside `dir`.
pub fn from_recipe(recipe_json: &Path, dir: &Path) -> Result<()> {
    let text = std::fs::read_to_string(recipe_json).map_err(Error::io("read", recipe_json))?;
    let recipe: Recipe =
        serde_json::from_str(&text).map_err(|e| Error::malformed(recipe_json, format!("not a recipe: {e}")))?;
    for RecipeFile { path, content } in recipe.files {
        if path.is_empty() || !Path::new(&path).components().all(|c| matches!(c, Component::Normal(_))) {
            return Err(Error::malformed(recipe_json, format!("path `{path}` does not stay within the folder")));
        }
        let path = dir.join(path);
        let specs = |tensors: Vec<RecipeTensor>| tensors.into_iter().map(TensorSpec::from).collect::<Vec<_>>();
        let whole = |bytes: &[u8]| file::write(&path, |out| out.write_all(bytes).map_err(Error::io("write", &path)));
        match content {
            Content::Safetensors { tensors, metadata } => write_safetensors(&path, &specs(tensors), &metadata)?,
            Content::Torch { tensors } => write_torch(&path, &specs(tensors))?,
            Content::Json { json } => whole(json.to_string().as_bytes())?,
            Content::Text { text } => whole(text.as_bytes())?,
            Content::Copy { from } => {
                let from = recipe_json.parent().unwrap_or(Path::new("")).join(from);
                whole(&std::fs::read(&from).map_err(Error::io("read", from))?)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format() {
        let dir = tempfile::tempdir().unwrap();
        let recipe = dir.path().join("recipe.json");
        let line = r#"{"name":"a.b","shape":[2],"dtype":"F32","scale":0.5,"offset":1.0,"seed":9}"#;
        let text = format!(
            r#"{{"files":[{{"path":"u/m.safetensors","format":"safetensors","tensors":[{line}]}},
            {{"path":"a.bin","format":"torch","tensors":[{line}]}},{{"path":"c.json","format":"json","json":{{"x":1}}}},
            {{"path":"m.txt","format":"text","text":"a b"}},{{"path":"r.json","format":"copy","from":"recipe.json"}}]}}"#
        );
        std::fs::write(&recipe, &text).unwrap();
        let out = dir.path().join("out");
        from_recipe(&recipe, &out).unwrap();
        let bytes = std::fs::read(out.join("u/m.safetensors")).unwrap();
        let spec = TensorSpec {
            name: "a.b".into(),
            shape: vec![2],
            dtype: Stored::Float(DType::F32),
            scale: 0.5,
            offset: 1.0,
            seed: 9,
        };
        assert!(bytes.ends_with(&[spec.value(0).to_le_bytes(), spec.value(1).to_le_bytes()].concat()));
        assert_eq!(std::fs::read_to_string(out.join("c.json")).unwrap(), r#"{"x":1}"#);
        assert_eq!(std::fs::read_to_string(out.join("m.txt")).unwrap(), "a b");
        assert_eq!(std::fs::read_to_string(out.join("r.json")).unwrap(), text);
        assert!(out.join("a.bin").exists());
    }

    #[test]
    fn paths_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let recipe = dir.path().join("recipe.json");
        for path in ["../x", "/x", "", "a/../../x", "."] {
            std::fs::write(&recipe, format!(r#"{{"files":[{{"path":"{path}","format":"text","text":""}}]}}"#)).unwrap();
            assert!(matches!(from_recipe(&recipe, dir.path()), Err(Error::Malformed { .. })), "{path}");
        }
        std::fs::write(&recipe, "{}").unwrap();
        assert!(from_recipe(&recipe, dir.path()).unwrap_err().to_string().contains("not a recipe"));
    }
}
