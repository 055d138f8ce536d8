//! Scheduler configurations: diffusers' scheduler_config.json, the built-in ones, and overrides.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::ddim;
use super::definition::{Scheduler, SchedulerDefinition};
use super::prediction_type::{self, PredictionType};
use super::registry::{FLOW_MATCHING, SchedulerKind};
use super::settings::{self, SchedulerSettings};
use super::sigmas::{AYS_TRAIN_TIMESTEPS, SigmaSchedule};
use super::step_table::{StepCoefficients, StepTable};
use super::timestep_spacing::TimestepSpacing;
use crate::config_json::{Fields, strict};
use crate::error::{Error, Field, Result, escape};
use crate::names::any_of;

/// A scheduler and the fields of its configuration file as they stand.
///
/// Fields are kept as the file gave them, because a file may carry fields of classes other than its own: SDXL's file
/// names Euler's class and holds `clip_sample` and `set_alpha_to_one`, which matter once the scheduler is DDIM.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    path: PathBuf,
    fields: Map<String, Value>,
    kind: SchedulerKind,
    eta: f64,
    /// The timesteps are DiffSynth's.
    diffsynth: bool,
}

impl SchedulerConfig {
    /// Reads the text of a scheduler_config.json, Python's `-Infinity` included.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is not JSON, else as [`Self::from_json`].
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        Self::from_json(path, &json_of(path, text)?)
    }

    /// Reads as [`Self::parse`] does, for another scheduler than the file's class, which need not be supported then.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_as(path: &Path, text: &str, kind: SchedulerKind) -> Result<Self> {
        Self::from_json_as(path, &json_of(path, text)?, kind)
    }

    /// Takes a scheduler_config.json to the letter: the scheduler is its `_class_name`'s, absent fields have that
    /// class's defaults. `path` is for error messages. Fields that the class ignores are ignored here.
    ///
    /// # Errors
    /// [`Error::Config`] names the first class, field or value that is not supported.
    pub fn from_json(path: &Path, value: &Value) -> Result<Self> {
        let fields = object(path, value)?;
        let checked = Fields::without_defaults(path, &fields);
        let class = checked.get("_class_name").and_then(Value::as_str).unwrap_or_default();
        if let Some(config) = Self::from_json_of(path, value, class) {
            return config;
        }
        demand_diffusion(&checked)?;
        Err(checked.refuse("_class_name", SchedulerKind::supported_classes()))
    }

    /// Reads as [`Self::parse`] does, for another class than the file's; `None` for one that is not supported.
    pub(crate) fn parse_of(path: &Path, text: &str, class: &str) -> Option<Result<Self>> {
        match json_of(path, text) {
            Ok(value) => Self::from_json_of(path, &value, class),
            Err(error) => Some(Err(error)),
        }
    }

    fn from_json_of(path: &Path, value: &Value, class: &str) -> Option<Result<Self>> {
        let kind = SchedulerKind::of_class(class, value["algorithm_type"].as_str())?;
        Some(Self::from_json_as(path, value, kind))
    }

    /// Takes a scheduler_config.json of any class as diffusers' `from_config` of `kind`'s class does: fields that both
    /// know are carried over, the rest have the defaults of `kind`'s class.
    ///
    /// # Errors
    /// [`Error::Config`] names the first field that `kind` needs and whose value is not supported.
    pub fn from_json_as(path: &Path, value: &Value, kind: SchedulerKind) -> Result<Self> {
        Self::new(path, object(path, value)?, kind)
    }

    fn new(path: &Path, fields: Map<String, Value>, kind: SchedulerKind) -> Result<Self> {
        demand_diffusion(&Fields::without_defaults(path, &fields))?;
        for name in fields.keys().filter(|name| !name.starts_with('_') && !is_known(name)) {
            let (file, field) = (escape(&path.to_string_lossy()), escape(name));
            tracing::warn!(file, field, "unknown scheduler field ignored");
        }
        Self { path: path.to_owned(), fields, kind, eta: 0.0, diffsynth: false }.checked()
    }

    fn checked(self) -> Result<Self> {
        self.scheduler()?;
        Ok(self)
    }

    fn definition(&self) -> &'static SchedulerDefinition {
        if self.diffsynth { &ddim::DIFFSYNTH } else { self.kind.definition() }
    }

    /// Reads the settings; also returns the number of training timesteps.
    fn scheduler(&self) -> Result<(Box<dyn Scheduler>, usize)> {
        let (definition, fields) = (self.definition(), Fields::without_defaults(&self.path, &self.fields));
        let settings = SchedulerSettings::read(&fields, &definition.defaults, self.eta)?;
        let num_train_timesteps = settings.num_train_timesteps;
        Ok(((definition.prepare)(&fields, settings)?, num_train_timesteps))
    }

    /// The scheduler of the published SDXL base model and of single-file checkpoints: Euler, leading spacing.
    pub fn sdxl_default() -> Self {
        let fields = json!({
            "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
            "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1,
            "interpolation_type": "linear", "use_karras_sigmas": false, "trained_betas": null,
            "clip_sample": false, "sample_max_value": 1.0, "set_alpha_to_one": false, "skip_prk_steps": true,
        });
        Self::built_in(fields, SchedulerKind::Euler, false)
    }

    /// DiffSynth-Studio 1.1.9's `EnhancedDDIMScheduler` as its SDXL pipeline makes it: DDIM whose timesteps run from
    /// 999 to exactly 0. More than 1000 steps are 1000.
    pub fn diffsynth() -> Self {
        let fields = json!({
            "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
            "prediction_type": "epsilon", "clip_sample": false, "set_alpha_to_one": true,
        });
        Self::built_in(fields, SchedulerKind::Ddim, true)
    }

    fn built_in(fields: Value, kind: SchedulerKind, diffsynth: bool) -> Self {
        let fields = if let Value::Object(map) = fields { map } else { Map::new() };
        Self { path: "built-in scheduler".into(), fields, kind, eta: 0.0, diffsynth }
    }

    /// The scheduler.
    pub fn kind(&self) -> SchedulerKind {
        self.kind
    }

    /// Changes the scheduler, as diffusers' `from_config` does with this configuration. The same one changes nothing;
    /// another one leaves DiffSynth's timesteps.
    ///
    /// # Errors
    /// [`Error::Config`] names a field that the new scheduler needs and whose value is not supported.
    pub fn with_kind(mut self, kind: SchedulerKind) -> Result<Self> {
        self.diffsynth &= kind == self.kind;
        self.kind = kind;
        self.checked()
    }

    /// Changes `prediction_type`.
    ///
    /// # Errors
    /// [`Error::Parameter`] if the scheduler does not take it.
    pub fn with_prediction_type(mut self, prediction: PredictionType) -> Result<Self> {
        let supported = self.definition().defaults.prediction_types;
        let values: Vec<_> =
            prediction_type::CONFIG_VALUES.iter().filter(|value| supported.contains(&value.0)).collect();
        let Some(value) = values.iter().find(|value| value.1 == prediction) else {
            let names: Vec<String> = values.iter().map(|value| value.1.to_string()).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let what = format!("`{prediction}` is not supported by {} (expected {})", self.kind, any_of(&names));
            return Err(Error::parameter(Field::PredictionType, what));
        };
        self.set("prediction_type", value.0.into());
        self.checked()
    }

    /// Changes `timestep_spacing`; leaves DiffSynth's timesteps.
    ///
    /// # Errors
    /// [`Error::Parameter`] for [`SchedulerKind::Lcm`], whose timesteps are those of its distillation.
    pub fn with_timestep_spacing(mut self, spacing: TimestepSpacing) -> Result<Self> {
        if let Some(field) = self.definition().timesteps_from {
            let what = format!("not supported by {}, whose timesteps come from {field}; leave this out", self.kind);
            return Err(Error::parameter(Field::TimestepSpacing, what));
        }
        self.diffsynth = false;
        self.set("timestep_spacing", spacing.to_string().into());
        self.checked()
    }

    /// Changes the noise levels. [`SigmaSchedule::SgmUniform`] sets the timesteps' spacing, too.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a schedule that the scheduler does not take.
    pub fn with_sigma_schedule(mut self, schedule: SigmaSchedule) -> Result<Self> {
        let refuse = |what: String| Err(Error::parameter(Field::SigmaSchedule, what));
        let definition = self.definition();
        if schedule.field().is_some() && !definition.sigma_schedules {
            let able = SchedulerKind::ALL.iter().filter(|kind| kind.definition().sigma_schedules);
            let able: Vec<&str> = able.map(|kind| kind.name()).collect();
            return refuse(format!("`{schedule}` is not supported by {}, only by {}", self.kind, any_of(&able)));
        }
        if schedule == SigmaSchedule::SgmUniform
            && let Some(field) = definition.timesteps_from
        {
            return refuse(format!(
                "`{schedule}` is not supported by {}, whose timesteps come from {field}",
                self.kind
            ));
        }
        if schedule == SigmaSchedule::AlignYourSteps && self.scheduler()?.1 != AYS_TRAIN_TIMESTEPS {
            let what =
                format!("`{schedule}` was found for {AYS_TRAIN_TIMESTEPS} training timesteps, the model has others");
            return refuse(what);
        }
        for name in ["use_lu_lambdas", "use_flow_sigmas"] {
            self.fields.remove(name);
        }
        for other in SigmaSchedule::all().filter_map(SigmaSchedule::field) {
            self.fields.remove(other);
        }
        if let Some(field) = schedule.field() {
            self.set(field, true.into());
        }
        if schedule == SigmaSchedule::SgmUniform {
            return self.with_timestep_spacing(TimestepSpacing::Trailing);
        }
        self.checked()
    }

    /// Changes eta, 0 to 1: the fresh part of each step's noise with DDIM, gamma with TCD. Other schedulers ignore it, as in
    /// diffusers.
    ///
    /// # Errors
    /// [`Error::Parameter`] if it is outside that range, or above 0 with DiffSynth's scheduler, which has none.
    pub fn with_eta(mut self, eta: f32) -> Result<Self> {
        if !(0.0..=1.0).contains(&eta) || (self.diffsynth && eta > 0.0) {
            let range = if self.diffsynth { "must be 0 with DiffSynth's DDIM" } else { "must be from 0 to 1" };
            return Err(Error::parameter(Field::Eta, format!("{range}, got {eta}")));
        }
        self.eta = f64::from(eta);
        Ok(self)
    }

    fn set(&mut self, name: &str, value: Value) {
        if let Some(Value::Array(defaults)) = self.fields.get_mut("_use_default_values") {
            defaults.retain(|n| n != name);
        }
        self.fields.insert(name.to_owned(), value);
    }

    /// Computes the coefficients for a number of steps, as diffusers' `set_timesteps(steps)` followed by one `step` for
    /// each timestep. [`StepTable::steps`] has `steps` rows but where a spacing gives fewer.
    ///
    /// # Errors
    /// [`Error::Parameter`] for 0 steps, for more than the schedule has, and where the peer's own arithmetic
    /// breaks down (two equal noise levels in a row).
    pub fn table(&self, steps: usize) -> Result<StepTable> {
        self.checked_table(steps, |scheduler| scheduler.table(steps))
    }

    /// Computes the coefficients for an image that noise of a `strength` of 0 to 1 is put on, as diffusers' image to image
    /// does with the last `int(steps * strength)` of the steps: a multistep scheduler begins anew in the first of them.
    /// DiffSynth's scheduler takes all steps, from a lower noise level.
    ///
    /// # Errors
    /// As [`Self::table`], and for a strength beyond the range or so low that no step is left.
    pub fn image_to_image_table(&self, steps: usize, strength: f64) -> Result<StepTable> {
        if !(0.0..=1.0).contains(&strength) {
            return Err(Error::parameter(Field::Strength, format!("{strength} given; 0 to 1 is allowed")));
        }
        self.checked_table(steps, |scheduler| scheduler.image_to_image_table(steps, strength))
    }

    fn checked_table(&self, steps: usize, table: impl Fn(&dyn Scheduler) -> Result<StepTable>) -> Result<StepTable> {
        let (scheduler, most) = self.scheduler()?;
        if steps == 0 || (steps > most && !self.diffsynth) {
            return Err(Error::parameter(Field::Steps, format!("must be from 1 to {most}, got {steps}")));
        }
        let table = table(scheduler.as_ref())?;
        let finite = table.steps.iter().all(StepCoefficients::is_finite) && table.init_noise_sigma.is_finite();
        if table.steps.is_empty() || !finite {
            let what = format!("{steps} steps make two noise levels of this schedule coincide; use fewer");
            return Err(Error::parameter(Field::Steps, what));
        }
        Ok(table)
    }
}

/// Whether any class of diffusers that is supported, or that diffusers calls compatible with those, has the field;
/// others are worth a warning.
fn is_known(field: &str) -> bool {
    let own = |kind: &SchedulerKind| kind.definition().config_keys.contains(&field);
    settings::CONFIG_KEYS.contains(&field) || OTHER_CONFIG_KEYS.contains(&field) || SchedulerKind::ALL.iter().any(own)
}

/// Refuses the configuration of a model that no scheduler here can run, whichever is chosen instead of its own.
fn demand_diffusion(fields: &Fields<'_>) -> Result<()> {
    if let Some(why) = fields.get("_class_name").and_then(Value::as_str).and_then(SchedulerKind::foreign) {
        return Err(fields.refuse("_class_name", why));
    }
    if fields.get("prediction_type").and_then(Value::as_str) == Some("flow_prediction") {
        return Err(fields.refuse("prediction_type", FLOW_MATCHING));
    }
    fields.off("use_flow_sigmas", FLOW_MATCHING)
}

fn json_of(path: &Path, text: &str) -> Result<Value> {
    serde_json::from_str(&strict(text)).map_err(|e| Error::malformed(path, format!("not JSON: {e}")))
}

fn object(path: &Path, value: &Value) -> Result<Map<String, Value>> {
    let what = "a JSON object of scheduler fields is needed";
    value.as_object().cloned().ok_or_else(|| Error::malformed(path, what))
}

/// The fields that no supported scheduler reads.
const OTHER_CONFIG_KEYS: &[&str] = &[
    "dynamic_thresholding_ratio",
    "flow_shift",
    "rho",
    "sample_max_value",
    "shift_terminal",
    "sigma_data",
    "sigma_schedule",
    "skip_prk_steps",
    "time_shift_type",
    "use_dynamic_shifting",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SchedulerConfig> {
        SchedulerConfig::parse(Path::new("scheduler_config.json"), text)
    }

    fn euler(field: &str) -> String {
        let text = format!(r#"{{"_class_name": "EulerDiscreteScheduler", {field}}}"#);
        parse(&text).map_or_else(|e| e.to_string(), |_| "accepted".into())
    }

    fn solver(field: &str) -> String {
        let text = format!(r#"{{"_class_name": "DPMSolverMultistepScheduler", {field}}}"#);
        parse(&text).map_or_else(|e| e.to_string(), |_| "accepted".into())
    }

    #[test]
    fn refusal_messages() {
        assert_eq!(
            euler(r#""use_beta_sigmas": true, "use_karras_sigmas": true"#),
            "scheduler_config.json: `use_beta_sigmas` is true: not together with use_karras_sigmas"
        );
        assert_eq!(
            euler(r#""beta_schedule": "sigmoid""#),
            "scheduler_config.json: `beta_schedule` is \"sigmoid\": supported: linear, scaled_linear, squaredcos_cap_v2"
        );
        for field in [
            r#""num_train_timesteps": 1"#,
            r#""num_train_timesteps": 1e99"#,
            r#""num_train_timesteps": null"#,
            r#""beta_end": 1.5"#,
            r#""beta_start": "x""#,
            r#""beta_start": -0.1"#,
            r#""trained_betas": [0.1, 2.0]"#,
            r#""trained_betas": [0.1, null]"#,
            r#""trained_betas": []"#,
            r#""prediction_type": "flow_prediction""#,
            r#""timestep_spacing": 3"#,
            r#""steps_offset": -1"#,
            r#""sigma_max": 0"#,
            r#""use_karras_sigmas": 1"#,
            r#""use_karras_sigmas": true, "use_exponential_sigmas": true"#,
        ] {
            let text = euler(field);
            let name = field.split('"').nth(1).unwrap();
            let exclusive = name == "use_karras_sigmas" && text.contains("`use_exponential_sigmas` is true");
            assert!(text.contains(&format!("`{name}` is ")) || exclusive, "{field}: {text}");
        }
        for field in [
            r#""solver_order": 3"#,
            r#""algorithm_type": "sde-dpmsolver""#,
            r#""algorithm_type": "deis""#,
            r#""solver_type": "rk""#,
            r#""thresholding": true"#,
            r#""use_flow_sigmas": true"#,
            r#""variance_type": "learned_range""#,
            r#""lambda_min_clipped": "x""#,
        ] {
            let text = solver(field);
            assert!(text.contains(&format!("`{}` is ", field.split('"').nth(1).unwrap())), "{field}: {text}");
        }
        // Euler's class ignores what only the solver knows.
        assert_eq!(euler(r#""solver_order": 3, "thresholding": true, "\u001b[31m": 1"#), "accepted");
        assert_eq!(solver(r#""lambda_min_clipped": -Infinity, "variance_type": null"#), "accepted");
        let text = parse(r#"{"_class_name": "PNDMScheduler"}"#).unwrap_err().to_string();
        assert!(text.contains("`_class_name` is \"PNDMScheduler\": supported: EulerDiscrete"), "{text}");
        assert!(parse("{}").unwrap_err().to_string().contains("`_class_name` is absent"));
        assert!(matches!(parse("[1]"), Err(Error::Malformed { .. })));
        assert!(matches!(parse("{"), Err(Error::Malformed { .. })));
        let noisy = r#"{"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": true, "clip_sample": false}"#;
        assert!(parse(noisy).unwrap_err().to_string().contains("v_prediction"));
        assert!(SchedulerConfig::parse_as(Path::new("f"), noisy, SchedulerKind::Euler).is_ok());
    }

    #[test]
    fn steps_out_of_range() {
        let sdxl = SchedulerConfig::sdxl_default();
        let text = |config: &SchedulerConfig, steps| config.table(steps).unwrap_err().to_string();
        assert_eq!(text(&sdxl, 0), "steps: must be from 1 to 1000, got 0");
        assert_eq!(text(&sdxl, 1001), "steps: must be from 1 to 1000, got 1001");
        assert_eq!(text(&sdxl, usize::MAX), format!("steps: must be from 1 to 1000, got {}", usize::MAX));
        let with = |kind| sdxl.clone().with_kind(kind).unwrap();
        assert!(text(&with(SchedulerKind::Ddim), 1000).contains("steps_offset 1"));
        assert!(text(&with(SchedulerKind::Lcm), 51).contains("1 to 50"));
        assert!(text(&with(SchedulerKind::Dpmpp2M), 1000).contains("use fewer"));
        assert_eq!(SchedulerConfig::diffsynth().table(5000).unwrap().steps.len(), 1000);
        assert!(SchedulerConfig::diffsynth().table(0).is_err());
    }

    #[test]
    fn overrides_before_file() {
        let sdxl = SchedulerConfig::sdxl_default();
        let timesteps = |config: &SchedulerConfig, n| -> Vec<f32> {
            config.table(n).unwrap().steps.iter().map(|s| s.timestep).collect()
        };
        assert_eq!(timesteps(&sdxl, 4), [751.0, 501.0, 251.0, 1.0]);
        let trailing = sdxl.clone().with_timestep_spacing(TimestepSpacing::Trailing).unwrap();
        assert_eq!(timesteps(&trailing, 4), [999.0, 749.0, 499.0, 249.0]);
        let karras = sdxl.clone().with_sigma_schedule(SigmaSchedule::Karras).unwrap();
        assert_eq!(timesteps(&karras.with_sigma_schedule(SigmaSchedule::Default).unwrap(), 4), timesteps(&sdxl, 4));
        let spaced = |kind, schedule| {
            let config = sdxl.clone().with_kind(kind).unwrap().with_sigma_schedule(schedule);
            config.map(|config| timesteps(&config, 4)).map_err(|e| e.to_string())
        };
        assert_eq!(spaced(SchedulerKind::Ddim, SigmaSchedule::SgmUniform), Ok(timesteps(&trailing, 4)));
        assert_eq!(spaced(SchedulerKind::Lms, SigmaSchedule::AlignYourSteps).unwrap()[0], 999.0);
        let refused = [
            (SchedulerKind::Tcd, SigmaSchedule::Beta, "`beta` is not supported by tcd, only by euler, dpmpp-2m, heun,"),
            (SchedulerKind::Ddim, SigmaSchedule::AlignYourSteps, "`ays` is not supported by ddim"),
            (SchedulerKind::Lcm, SigmaSchedule::SgmUniform, "timesteps come from original_inference_steps"),
        ];
        for (kind, schedule, part) in refused {
            let text = spaced(kind, schedule).unwrap_err();
            assert!(text.contains(part), "{text}");
        }
        let short =
            SchedulerConfig::parse_as(Path::new("f"), r#"{"num_train_timesteps": 500}"#, SchedulerKind::Euler).unwrap();
        let text = short.with_sigma_schedule(SigmaSchedule::AlignYourSteps).unwrap_err().to_string();
        assert!(text.contains("found for 1000 training timesteps"), "{text}");
        // The class is the same, the algorithm decides; a scheduler that is asked for counts before both.
        let sde = r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}"#;
        assert_eq!(parse(sde).unwrap().kind(), SchedulerKind::Dpmpp2MSde);
        assert_eq!(parse(sde).unwrap().with_kind(SchedulerKind::Dpmpp2M).unwrap().table(4).unwrap().draws(), 0);
        let ancestral = sdxl.clone().with_kind(SchedulerKind::EulerAncestral).unwrap();
        assert!(ancestral.clone().with_sigma_schedule(SigmaSchedule::Karras).is_err());
        assert!(ancestral.with_prediction_type(PredictionType::Sample).is_err());
        assert!(
            sdxl.clone()
                .with_kind(SchedulerKind::Lcm)
                .unwrap()
                .with_timestep_spacing(TimestepSpacing::Leading)
                .is_err()
        );
        assert!(sdxl.clone().with_eta(f32::NAN).is_err());
        // SDXL's file says clip_sample false, which Euler ignores and DDIM obeys.
        let ddim = sdxl.with_kind(SchedulerKind::Ddim).unwrap();
        assert_eq!(ddim.table(4).unwrap().steps[0].clip, None);
        // DiffSynth's timesteps go with its scheduler and end with another one.
        let diffsynth = SchedulerConfig::diffsynth();
        assert_eq!(timesteps(&diffsynth, 7), [999.0, 832.0, 666.0, 500.0, 333.0, 166.0, 0.0]);
        assert_eq!(diffsynth.clone().with_kind(SchedulerKind::Ddim).unwrap(), diffsynth);
        let leading = diffsynth.with_timestep_spacing(TimestepSpacing::Leading).unwrap();
        assert_eq!(timesteps(&leading, 4), [750.0, 500.0, 250.0, 0.0]);
    }
}
