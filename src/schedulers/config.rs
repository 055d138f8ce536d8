//! Scheduler configurations: diffusers' scheduler_config.json, the built-in ones, and overrides.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::fields::{Fields, strict};
use super::settings::Settings;
use super::{Method, Prediction, Schedule, Spacing, Table, ddim, dpmpp, euler, lcm};
use crate::{Error, Result};

/// The classes of diffusers that are supported.
const CLASSES: &[(&str, Method)] = &[
    ("EulerDiscreteScheduler", Method::Euler),
    ("EulerAncestralDiscreteScheduler", Method::EulerAncestral),
    ("DDIMScheduler", Method::Ddim),
    ("DPMSolverMultistepScheduler", Method::Dpmpp2M),
    ("LCMScheduler", Method::Lcm),
];

/// What a sampler is made from: a method, and the fields of a configuration file as they stand.
///
/// Fields are kept as the file gave them, because a file may carry fields of classes other than its own: SDXL's file
/// names Euler's class and holds `clip_sample` and `set_alpha_to_one`, which matter once the method is DDIM.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    path: PathBuf,
    fields: Map<String, Value>,
    method: Method,
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
    pub fn parse_as(path: &Path, text: &str, method: Method) -> Result<Self> {
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
    pub fn from_json_as(path: &Path, value: &Value, method: Method) -> Result<Self> {
        Self::new(path, object(path, value)?, method)
    }

    fn new(path: &Path, fields: Map<String, Value>, method: Method) -> Result<Self> {
        let foreign = |name: &&String| !name.starts_with('_') && !KNOWN.contains(&name.as_str());
        for name in fields.keys().filter(foreign) {
            tracing::warn!(file = %path.display(), field = name, "unknown scheduler field ignored");
        }
        Self { path: path.to_owned(), fields, method, eta: 0.0, diffsynth: false }.checked()
    }

    fn checked(self) -> Result<Self> {
        self.settings()?;
        Ok(self)
    }

    fn settings(&self) -> Result<Settings> {
        Settings::resolve(&Fields { path: &self.path, map: &self.fields }, self.method)
    }

    /// The scheduler of the published SDXL base model: Euler, leading spacing. Also that of single-file checkpoints.
    pub fn sdxl_default() -> Self {
        let fields = json!({
            "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
            "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1,
            "interpolation_type": "linear", "use_karras_sigmas": false, "trained_betas": null,
            "clip_sample": false, "sample_max_value": 1.0, "set_alpha_to_one": false, "skip_prk_steps": true,
        });
        Self::built_in(fields, Method::Euler, false)
    }

    /// DiffSynth-Studio 1.1.9's `EnhancedDDIMScheduler` as its SDXL pipeline makes it: DDIM whose timesteps run from
    /// 999 to exactly 0. More than 1000 steps are 1000.
    pub fn diffsynth() -> Self {
        let fields = json!({
            "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
            "prediction_type": "epsilon", "clip_sample": false, "set_alpha_to_one": true,
        });
        Self::built_in(fields, Method::Ddim, true)
    }

    fn built_in(fields: Value, method: Method, diffsynth: bool) -> Self {
        let fields = if let Value::Object(map) = fields { map } else { Map::new() };
        Self { path: "built-in scheduler".into(), fields, method, eta: 0.0, diffsynth }
    }

    /// The sampling method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// What the model's output is taken for.
    ///
    /// # Errors
    /// None: a configuration is checked when it is made.
    pub fn prediction(&self) -> Result<Prediction> {
        Ok(self.settings()?.prediction)
    }

    /// Another method, with what diffusers' `from_config` makes of this configuration for it. The same method changes
    /// nothing; another one leaves DiffSynth's timesteps.
    ///
    /// # Errors
    /// [`Error::Config`] names a field that the new method needs and whose value is not supported.
    pub fn with_method(mut self, method: Method) -> Result<Self> {
        self.diffsynth &= method == self.method;
        self.method = method;
        self.checked()
    }

    /// Another `prediction_type`.
    ///
    /// # Errors
    /// [`Error::Parameter`] if the method does not know it.
    pub fn with_prediction(mut self, prediction: Prediction) -> Result<Self> {
        let word = match prediction {
            Prediction::Epsilon => "epsilon",
            Prediction::V => "v_prediction",
            Prediction::Sample => "sample",
        };
        let unknown = match self.method {
            Method::EulerAncestral => prediction == Prediction::Sample,
            _ => self.diffsynth && prediction == Prediction::Sample,
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
    /// [`Error::Parameter`] for [`Method::Lcm`], whose timesteps are those of its distillation.
    pub fn with_spacing(mut self, spacing: Spacing) -> Result<Self> {
        if self.method == Method::Lcm {
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
    pub fn with_schedule(mut self, schedule: Schedule) -> Result<Self> {
        let karras = schedule == Schedule::Karras;
        if karras && !matches!(self.method, Method::Euler | Method::Dpmpp2M) {
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
    /// timestep. [`Table::steps`] has `steps` rows but where a spacing gives fewer.
    ///
    /// # Errors
    /// [`Error::Parameter`] named `--steps` for 0, for more than the schedule has, and where the peer's own arithmetic
    /// breaks down (two equal noise levels in a row).
    pub fn table(&self, steps: usize) -> Result<Table> {
        let settings = self.settings()?;
        let most = settings.train_steps;
        if steps == 0 || (steps > most && !self.diffsynth) {
            return Err(Error::parameter("--steps", format!("{steps} is not usable; 1 to {most} are")));
        }
        let table = match self.method {
            Method::Euler => euler::table(&settings, steps),
            Method::EulerAncestral => euler::ancestral(&settings, steps),
            Method::Ddim if self.diffsynth => ddim::diffsynth(&settings, steps),
            Method::Ddim => ddim::table(&settings, steps, self.eta)?,
            Method::Dpmpp2M => dpmpp::table(&settings, steps),
            Method::Lcm => lcm::table(&settings, steps)?,
        };
        let finite = |s: &super::Step| {
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
