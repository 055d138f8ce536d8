//! The scales of image prompts of an image under way.

use super::live_scales::{LiveScales, ScaleChange};
use super::request::Request;
use crate::error::{Error, Field, Result};
use crate::models::ip_adapter::Scales;
use crate::models::unet::UnetConfig;

/// The scales of an image under way.
pub(super) struct ImageScales {
    /// By adapter.
    current: Vec<Scales>,
    /// The number of live ones that it has seen.
    seen: u64,
    changes: Vec<ScaleChange>,
}

impl ImageScales {
    /// Those that a request begins with.
    pub(super) fn new(request: &Request) -> Self {
        let current = request.image_prompts.iter().map(|prompt| prompt.scales.clone()).collect();
        Self { current, seen: 0, changes: Vec::new() }
    }

    /// Takes up what is due before a step: the request's changes, then live ones. Says whether there were any.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a change that cannot be.
    pub(super) fn advance(&mut self, request: &Request, live: Option<&LiveScales>, step: usize) -> Result<bool> {
        let planned = request.scale_changes.iter().filter(|change| change.step == step).cloned();
        let mut due: Vec<ScaleChange> = planned.collect();
        if let Some(live) = live {
            let (new, seen) = live.after(self.seen);
            self.seen = seen;
            due.extend(new.into_iter().map(|(adapter, scales)| ScaleChange { step, adapter, scales }));
        }
        let any = !due.is_empty();
        for change in due {
            check(request, &change)?;
            self.current[change.adapter] = change.scales.clone();
            self.changes.push(change);
        }
        Ok(any)
    }

    /// The scales of all adapters.
    pub(super) fn current(&self) -> &[Scales] {
        &self.current
    }

    /// The changes that were taken up, in their order.
    pub(super) fn into_changes(self) -> Vec<ScaleChange> {
        self.changes
    }
}

/// Refuses a change for which a request has no image prompt, or other keys and values.
fn check(request: &Request, change: &ScaleChange) -> Result<()> {
    let adapter = change.adapter;
    let Some(prompt) = request.image_prompts.get(adapter).filter(|prompt| !prompt.references.is_empty()) else {
        let what = format!("the request has no image prompt for adapter {adapter}, whose scales were to change");
        return Err(Error::parameter(Field::ScaleChanges, what));
    };
    if prompt.scales.is_precise() != change.scales.is_precise() {
        let what =
            "precise-style takes other keys and values, so scales cannot change from it or to it between two steps";
        return Err(Error::parameter(Field::ScaleChanges, what));
    }
    Ok(())
}

/// Checks a request's changes of scales for images of so many model evaluations.
///
/// # Errors
/// [`Error::Parameter`].
pub(super) fn check_changes(request: &Request, config: &UnetConfig, evaluations: usize) -> Result<()> {
    for change in &request.scale_changes {
        change.scales.check()?;
        change.scales.resolve(config)?;
        check(request, change)?;
        if change.step >= evaluations {
            let what = format!("a change at step {}, from 0, of an image of {evaluations}", change.step);
            return Err(Error::parameter(Field::ScaleChanges, what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::published;
    use crate::pipeline::image_prompt::{ImagePrompt, ReferenceImage};

    fn request(prompts: usize) -> Request {
        let prompt = || ImagePrompt::default().with_reference(ReferenceImage::Embedding(vec![0.0]));
        (0..prompts).fold(Request::new(""), |request, _| request.with_image_prompt(prompt()))
    }

    /// The last value set for each adapter is taken once by each image, after what the request says of the step.
    #[test]
    fn due_changes() {
        let live = LiveScales::new();
        let request = request(2).with_scale_change(1, 0, 0.25).with_scale_change(1, 0, 0.5);
        let mut image = ImageScales::new(&request);
        let mut advance = |step| {
            let any = image.advance(&request, Some(&live), step).unwrap();
            any.then(|| image.current().iter().map(Scales::strength).collect::<Vec<_>>())
        };
        assert_eq!(advance(0), None);
        live.set(1, 0.7).unwrap();
        live.set(1, 0.8).unwrap();
        assert_eq!(advance(1), Some(vec![0.5, 0.8]));
        assert_eq!(advance(2), None);
        live.set(0, 0.1).unwrap();
        assert_eq!(advance(3), Some(vec![0.1, 0.8]));
        let changes = image.into_changes();
        let told = |c: &ScaleChange| (c.step, c.adapter, c.scales.strength());
        let wanted = [(1, 0, 0.25), (1, 0, 0.5), (1, 1, 0.8), (3, 0, 0.1)];
        assert_eq!(changes.iter().map(told).collect::<Vec<_>>(), wanted);
        // An image that begins later begins with the latest.
        let mut later = ImageScales::new(&request);
        assert!(later.advance(&request, Some(&live), 0).unwrap());
        assert_eq!(later.current().iter().map(Scales::strength).collect::<Vec<_>>(), [0.1, 0.8]);
    }

    #[test]
    fn impossible_changes() {
        let check = |request: &Request| check_changes(request, &published::unet(), 4);
        let text = |request: &Request| check(request).unwrap_err().to_string();
        assert!(check(&request(1).with_scale_change(3, 0, 2.0)).is_ok());
        let late = "scale_changes: a change at step 4, from 0, of an image of 4";
        assert_eq!(text(&request(1).with_scale_change(4, 0, 2.0)), late);
        assert!(text(&request(1).with_scale_change(0, 1, 2.0)).contains("no image prompt for adapter 1"));
        assert!(text(&request(1).with_scale_change(0, 0, f32::NAN)).starts_with("scales.strength: "));
        let precise = Scales::parse("precise-style", 1.0).unwrap();
        assert!(text(&request(1).with_scale_change(0, 0, precise)).contains("precise-style"));
        let elsewhere = Scales::parse(r#"{"down": {"block_9": 1}}"#, 1.0).unwrap();
        assert!(text(&request(1).with_scale_change(0, 0, elsewhere)).contains("block_9"));
        let live = LiveScales::new();
        assert!(live.set(0, f32::INFINITY).is_err());
        live.set(5, 1.0).unwrap();
        let request = request(1);
        let error = ImageScales::new(&request).advance(&request, Some(&live), 0).unwrap_err().to_string();
        assert!(error.contains("no image prompt for adapter 5"), "{error}");
    }
}
