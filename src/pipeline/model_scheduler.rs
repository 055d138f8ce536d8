//! The scheduler that a diffusers folder states, in its index and in its scheduler's own file.

use super::config_file::{missing_part, text};
use crate::config_json::strict;
use crate::error::{Error, Message, Result, escape};
use crate::presence::is_there;
use crate::schedulers::{SchedulerConfig, SchedulerKind};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A model's own scheduler.
pub(super) struct ModelScheduler {
    /// The configuration's file, or that of the checkpoint whose markers it is made of.
    pub(super) path: PathBuf,
    pub(super) text: String,
    /// The index and the class that it names, which counts before the configuration's own.
    pub(super) class: Option<(PathBuf, String)>,
}

impl ModelScheduler {
    /// Reads the scheduler of the folder whose `model_index.json` says `index`; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Config`] where the index names a scheduler whose file is missing, as in diffusers.
    pub(super) fn of_folder(folder: &Path, index_path: &Path, index: &Value) -> Result<Option<Self>> {
        let class = index["scheduler"][1].as_str();
        let path = folder.join("scheduler").join("scheduler_config.json");
        if !is_there(&path)? {
            return match class {
                None => Ok(None),
                Some(class) => Err(missing_part(index_path, "scheduler", class, "scheduler_config.json")),
            };
        }
        let text = text(&path)?;
        if let Some(class) = class {
            let file: Option<Value> = serde_json::from_str(&text).ok();
            let own = file.as_ref().and_then(|file| file["_class_name"].as_str()).unwrap_or(class);
            if own != class {
                let (path, class, own) = (path.display(), escape(class), escape(own));
                tracing::warn!(
                    "{path}: `_class_name` is {own}, model_index.json says {class}, which counts as in diffusers"
                );
            }
        }
        Ok(Some(Self { text, path, class: class.map(|class| (index_path.to_owned(), class.to_owned())) }))
    }

    /// Says where this scheduler, which counts, contradicts the marker `v_pred` of a single file.
    pub(super) fn warn_of_marker(&self, checkpoint: &Path) {
        let value: Option<Value> = serde_json::from_str(&strict(&self.text)).ok();
        let said = value.as_ref().and_then(|value| value["prediction_type"].as_str()).unwrap_or("epsilon");
        if said != "v_prediction" {
            let (checkpoint, path, said) = (checkpoint.display(), self.path.display(), escape(said));
            tracing::warn!(
                "{checkpoint} has the marker `v_pred`, {path} says {said}, which counts, unless the request's prediction type says \
                 otherwise"
            );
        }
    }

    /// Reads the configuration for `kind`; where absent, for the class of the index, else for the configuration's own.
    pub(super) fn config(&self, kind: Option<SchedulerKind>) -> Result<SchedulerConfig> {
        let Some((index, class)) = &self.class else {
            return match kind {
                Some(kind) => SchedulerConfig::parse_as(&self.path, &self.text, kind),
                None => SchedulerConfig::parse(&self.path, &self.text),
            };
        };
        let refuse = |expected: Message| Error::Config {
            path: index.clone(),
            field: "scheduler".into(),
            value: escape(class),
            expected,
        };
        if let Some(why) = SchedulerKind::foreign(class) {
            return Err(refuse(why.into()));
        }
        if let Some(kind) = kind {
            return SchedulerConfig::parse_as(&self.path, &self.text, kind);
        }
        let config = SchedulerConfig::parse_of(&self.path, &self.text, class);
        config.unwrap_or_else(|| Err(refuse(SchedulerKind::supported_classes())))
    }
}
