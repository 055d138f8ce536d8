//! Scheduler configurations: diffusers' scheduler_config.json, the built-in ones, and overrides.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::fields::{Fields, strict};
use super::settings::SchedulerSettings;
use super::{PredictionType, SchedulerKind, SigmaSchedule, StepTable, TimestepSpacing, ddim, dpmpp, euler, lcm};
use crate::error::escape;
use crate::{Error, Result};

/// The classes of diffusers that are supported.
const CLASSES: &[(&str, SchedulerKind)] = &[
    ("EulerDiscreteScheduler", SchedulerKind::Euler),
    ("EulerAncestralDiscreteScheduler", SchedulerKind::EulerAncestral),
    ("DDIMScheduler", SchedulerKind::Ddim),
    ("DPMSolverMultistepScheduler", SchedulerKind::Dpmpp2M),
    ("LCMScheduler", SchedulerKind::Lcm),
];

/// What a sampler is made from: a method, and the fields of a configuration file as they stand.
///
/// Fields are kept as the file gave them, because a file may carry fields of classes other than its own: SDXL's file
/// names Euler's class and holds `clip_sample` and `set_alpha_to_one`, which matter once the method is DDIM.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    path: PathBuf,
    fields: Map<String, Value>,
    method: SchedulerKind,
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

    /// As [`Self::parse`], for a method other than the file's class, which need not be a supported one then.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_as(path: &Path, text: &str, method: SchedulerKind) -> Result<Self> {
        Self::from_json_as(path, &json_of(path, text)?, method)
    }

    /// Takes a scheduler_config.json to the letter: the sampler is its `_class_name`'s, absent fields have that
    /// class's defaults. `path` is for error messages. Fields that the class ignores are ignored here.
    ///
    /// # Errors
    /// [`Error::Config`] names the first class, field or value that is not supported.
    pub fn from_json(path: &Path, value: &Value) -> Result<Self> {
        let fields = object(path, value)?;
        let checked = Fields { path, map: &fields };
        let class = checked.get("_class_name").and_then(Value::as_str);
        let Some(method) = CLASSES.iter().find(|c| Some(c.0) == class).map(|c| c.1) else {
            let names: Vec<&str> = CLASSES.iter().map(|c| c.0).collect();
            let expected = format!("supported: {}; or choose another with --sampling-method", names.join(", "));
            return Err(checked.refuse("_class_name", expected));
        };
        Self::new(path, fields, method)
    }

    /// What diffusers' `from_config` of `method`'s class makes of a scheduler_config.json of any class: fields that
    /// both know are carried over, the rest have the defaults of `method`'s class.
    ///
    /// # Errors
    /// [`Error::Config`] names the first field that `method` needs and whose value is not supported.
    pub fn from_json_as(path: &Path, value: &Value, method: SchedulerKind) -> Result<Self> {
        Self::new(path, object(path, value)?, method)
    }

    fn new(path: &Path, fields: Map<String, Value>, method: SchedulerKind) -> Result<Self> {
        let foreign = |name: &&String| !name.starts_with('_') && !KNOWN.contains(&name.as_str());
        for name in fields.keys().filter(foreign) {
            let (file, field) = (escape(&path.to_string_lossy()), escape(name));
            tracing::warn!(file, field, "unknown scheduler field ignored");
        }
        Self { path: path.to_owned(), fields, method, eta: 0.0, diffsynth: false }.checked()
    }

    fn checked(self) -> Result<Self> {
        self.settings()?;
        Ok(self)
    }

    fn settings(&self) -> Result<SchedulerSettings> {
        SchedulerSettings::resolve(&Fields { path: &self.path, map: &self.fields }, self.method)
    }

    /// The scheduler of the published SDXL base model: Euler, leading spacing. Also that of single-file checkpoints.
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

    fn built_in(fields: Value, method: SchedulerKind, diffsynth: bool) -> Self {
        let fields = if let Value::Object(map) = fields { map } else { Map::new() };
        Self { path: "built-in scheduler".into(), fields, method, eta: 0.0, diffsynth }
    }

    /// The sampling method.
    pub fn kind(&self) -> SchedulerKind {
        self.method
    }

    /// Another method, with what diffusers' `from_config` makes of this configuration for it. The same method changes
    /// nothing; another one leaves DiffSynth's timesteps.
    ///
    /// # Errors
    /// [`Error::Config`] names a field that the new method needs and whose value is not supported.
    pub fn with_kind(mut self, method: SchedulerKind) -> Result<Self> {
        self.diffsynth &= method == self.method;
        self.method = method;
        self.checked()
    }

    /// Another `prediction_type`.
    ///
    /// # Errors
    /// [`Error::Parameter`] if the method does not know it.
    pub fn with_prediction_type(mut self, prediction: PredictionType) -> Result<Self> {
        let word = match prediction {
            PredictionType::Epsilon => "epsilon",
            PredictionType::V => "v_prediction",
            PredictionType::Sample => "sample",
        };
        let unknown = match self.method {
            SchedulerKind::EulerAncestral => prediction == PredictionType::Sample,
            _ => self.diffsynth && prediction == PredictionType::Sample,
        };
        if unknown {
            let what = format!("{prediction} is not known to this sampler; epsilon and v are");
            return Err(Error::parameter("--prediction", what));
        }
        self.set("prediction_type", word.into());
        self.checked()
    }

    /// Another `timestep_spacing`; leaves DiffSynth's timesteps.
    ///
    /// # Errors
    /// [`Error::Parameter`] for [`SchedulerKind::Lcm`], whose timesteps are those of its distillation.
    pub fn with_timestep_spacing(mut self, spacing: TimestepSpacing) -> Result<Self> {
        if self.method == SchedulerKind::Lcm {
            let what = "lcm has timesteps of its own, from original_inference_steps; leave this out";
            return Err(Error::parameter("--timestep-spacing", what));
        }
        self.diffsynth = false;
        self.set("timestep_spacing", spacing.to_string().into());
        self.checked()
    }

    /// Another noise schedule.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a schedule that the method does not know.
    pub fn with_sigma_schedule(mut self, schedule: SigmaSchedule) -> Result<Self> {
        let karras = schedule == SigmaSchedule::Karras;
        if karras && !matches!(self.method, SchedulerKind::Euler | SchedulerKind::Dpmpp2M) {
            let what = format!("karras is for euler and dpmpp-2m, not for {}", self.method);
            return Err(Error::parameter("--schedule", what));
        }
        for name in ["use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas"] {
            self.fields.remove(name);
        }
        self.set("use_karras_sigmas", karras.into());
        self.checked()
    }

    /// DDIM's eta, 0 to 1: how much of each step's noise is fresh. Other methods ignore it, as diffusers does.
    ///
    /// # Errors
    /// [`Error::Parameter`] if it is outside that range, or above 0 with DiffSynth's sampler, which has none.
    pub fn with_eta(mut self, eta: f32) -> Result<Self> {
        if !(0.0..=1.0).contains(&eta) || (self.diffsynth && eta > 0.0) {
            return Err(Error::parameter(
                "eta",
                format!("{eta} is not usable; 0 to 1 is, and 0 alone for DiffSynth's"),
            ));
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

    /// The coefficients for a number of steps, as diffusers' `set_timesteps(steps)` followed by one `step` for each
    /// timestep. [`StepTable::steps`] has `steps` rows but where a spacing gives fewer.
    ///
    /// # Errors
    /// [`Error::Parameter`] named `--steps` for 0, for more than the schedule has, and where the peer's own arithmetic
    /// breaks down (two equal noise levels in a row).
    pub fn table(&self, steps: usize) -> Result<StepTable> {
        let settings = self.settings()?;
        let most = settings.train_steps;
        if steps == 0 || (steps > most && !self.diffsynth) {
            return Err(Error::parameter("--steps", format!("{steps} is not usable; 1 to {most} are")));
        }
        let table = match self.method {
            SchedulerKind::Euler => euler::table(&settings, steps),
            SchedulerKind::EulerAncestral => euler::ancestral(&settings, steps),
            SchedulerKind::Ddim if self.diffsynth => ddim::diffsynth(&settings, steps),
            SchedulerKind::Ddim => ddim::table(&settings, steps, self.eta)?,
            SchedulerKind::Dpmpp2M => dpmpp::table(&settings, steps),
            SchedulerKind::Lcm => lcm::table(&settings, steps)?,
        };
        let finite = |s: &super::StepCoefficients| {
            let weights = [s.input_scale, s.x0_from_x, s.x0_from_output, s.x_from_x, s.x_from_output, s.x_from_x0];
            let rest = [s.timestep, s.x_from_previous, s.noise.unwrap_or(0.0)];
            weights.iter().chain(&rest).all(|w| w.is_finite())
        };
        if table.steps.is_empty() || !table.steps.iter().all(finite) || !table.init_noise_sigma.is_finite() {
            let what = format!("{steps} is not usable with this schedule: two of its noise levels coincide; use fewer");
            return Err(Error::parameter("--steps", what));
        }
        Ok(table)
    }
}

fn json_of(path: &Path, text: &str) -> Result<Value> {
    serde_json::from_str(&strict(text)).map_err(|e| Error::malformed(path, format!("not JSON: {e}")))
}

fn object(path: &Path, value: &Value) -> Result<Map<String, Value>> {
    let what = "a JSON object of scheduler fields is needed";
    value.as_object().cloned().ok_or_else(|| Error::malformed(path, what))
}

/// The fields of the supported classes and of those that diffusers calls compatible; others are worth a warning.
const KNOWN: &[&str] = &[
    "algorithm_type",
    "beta_end",
    "beta_schedule",
    "beta_start",
    "clip_sample",
    "clip_sample_range",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "euler_at_final",
    "final_sigmas_type",
    "flow_shift",
    "interpolation_type",
    "lambda_min_clipped",
    "lower_order_final",
    "num_train_timesteps",
    "original_inference_steps",
    "predict_x0",
    "prediction_type",
    "rescale_betas_zero_snr",
    "rho",
    "sample_max_value",
    "set_alpha_to_one",
    "shift_terminal",
    "sigma_data",
    "sigma_max",
    "sigma_min",
    "sigma_schedule",
    "skip_prk_steps",
    "solver_order",
    "solver_p",
    "solver_type",
    "steps_offset",
    "thresholding",
    "time_shift_type",
    "timestep_scaling",
    "timestep_spacing",
    "timestep_type",
    "trained_betas",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_flow_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
    "variance_type",
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
    fn refusals_name_file_field_value_and_what_is_supported() {
        assert_eq!(
            euler(r#""use_beta_sigmas": true"#),
            "scheduler_config.json: `use_beta_sigmas` is true: supported: use_karras_sigmas, use_exponential_sigmas, or neither"
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
            r#""algorithm_type": "sde-dpmsolver++""#,
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
        let text = parse(r#"{"_class_name": "UniPCMultistepScheduler"}"#).unwrap_err().to_string();
        assert!(text.contains("`_class_name` is \"UniPCMultistepScheduler\": supported: EulerDiscrete"), "{text}");
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
        assert_eq!(text(&sdxl, 0), "--steps: 0 is not usable; 1 to 1000 are");
        assert_eq!(text(&sdxl, 1001), "--steps: 1001 is not usable; 1 to 1000 are");
        assert_eq!(text(&sdxl, usize::MAX), format!("--steps: {} is not usable; 1 to 1000 are", usize::MAX));
        let with = |method| sdxl.clone().with_kind(method).unwrap();
        assert!(text(&with(SchedulerKind::Ddim), 1000).contains("steps_offset 1"));
        assert!(text(&with(SchedulerKind::Lcm), 51).contains("1 to 50"));
        assert!(text(&with(SchedulerKind::Dpmpp2M), 1000).contains("use fewer"));
        assert_eq!(SchedulerConfig::diffsynth().table(5000).unwrap().steps.len(), 1000);
        assert!(SchedulerConfig::diffsynth().table(0).is_err());
    }

    #[test]
    fn overrides_win_over_the_file() {
        let sdxl = SchedulerConfig::sdxl_default();
        let timesteps = |config: &SchedulerConfig, n| -> Vec<f32> {
            config.table(n).unwrap().steps.iter().map(|s| s.timestep).collect()
        };
        assert_eq!(timesteps(&sdxl, 4), [751.0, 501.0, 251.0, 1.0]);
        let trailing = sdxl.clone().with_timestep_spacing(TimestepSpacing::Trailing).unwrap();
        assert_eq!(timesteps(&trailing, 4), [999.0, 749.0, 499.0, 249.0]);
        let karras = sdxl.clone().with_sigma_schedule(SigmaSchedule::Karras).unwrap();
        assert_eq!(timesteps(&karras.with_sigma_schedule(SigmaSchedule::Default).unwrap(), 4), timesteps(&sdxl, 4));
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
        // DiffSynth's timesteps go with its method and end with another one.
        let diffsynth = SchedulerConfig::diffsynth();
        assert_eq!(timesteps(&diffsynth, 7), [999.0, 832.0, 666.0, 500.0, 333.0, 166.0, 0.0]);
        assert_eq!(diffsynth.clone().with_kind(SchedulerKind::Ddim).unwrap(), diffsynth);
        let leading = diffsynth.with_timestep_spacing(TimestepSpacing::Leading).unwrap();
        assert_eq!(timesteps(&leading, 4), [750.0, 500.0, 250.0, 0.0]);
    }
}
