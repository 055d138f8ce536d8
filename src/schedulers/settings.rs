//! A scheduler configuration resolved for one method: its fields checked, its defaults filled in.

use serde_json::Value;

use super::betas::{Betas, alphas_cumprod};
use super::fields::Fields;
use super::sigmas::SigmaSpacing;
use super::{PredictionType, SchedulerKind, TimestepSpacing};
use crate::Result;

/// More training timesteps than any model has; bounds the memory that a configuration file can demand.
const MAX_TRAIN_STEPS: usize = 100_000;

/// What the methods need. Fields that a method's diffusers class does not know stay at neutral values.
pub(super) struct SchedulerSettings {
    pub train_steps: usize,
    /// The cumulative product of 1 - beta at each training timestep.
    pub alphas: Vec<f32>,
    /// `rescale_betas_zero_snr`: the last of `alphas` is 0.
    pub zero_snr: bool,
    pub prediction: PredictionType,
    pub spacing: TimestepSpacing,
    pub steps_offset: usize,
    /// `clip_sample_range` where `clip_sample` is set.
    pub clip: Option<f32>,
    /// `set_alpha_to_one`.
    pub alpha_to_one: bool,
    pub sigmas: SigmaSpacing,
    pub sigma_min: Option<f64>,
    pub sigma_max: Option<f64>,
    /// `interpolation_type` is `log_linear`.
    pub log_linear: bool,
    /// `final_sigmas_type` is `sigma_min`, not `zero`.
    pub ends_at_sigma_min: bool,
    /// `timestep_type` is `continuous`.
    pub continuous: bool,
    pub solver_order: usize,
    /// `solver_type` is `heun`, not `midpoint`.
    pub heun: bool,
    pub lower_order_final: bool,
    pub euler_at_final: bool,
    pub lambda_min_clipped: f64,
    /// Whether the betas are `squaredcos_cap_v2`, for which DPM++ does not round its timesteps.
    pub cosine: bool,
    pub original_inference_steps: usize,
    pub timestep_scaling: f64,
}

impl SchedulerSettings {
    /// Reads the fields that `method`'s diffusers class takes, with that class's defaults.
    pub fn resolve(fields: &Fields<'_>, method: SchedulerKind) -> Result<Self> {
        let train_steps = fields.count("num_train_timesteps", 1000, 2, MAX_TRAIN_STEPS)?;
        let betas = betas(fields, method)?;
        let zero_snr = fields.flag("rescale_betas_zero_snr", false)?;
        let Some(alphas) = alphas_cumprod(&betas, train_steps, zero_snr) else {
            let field = if matches!(betas, Betas::Trained(_)) { "trained_betas" } else { "beta_end" };
            return Err(fields.refuse(field, "the betas of a schedule are above 0 and below 1"));
        };
        let late = matches!(method, SchedulerKind::Ddim | SchedulerKind::Lcm);
        let spacing = [
            ("leading", TimestepSpacing::Leading),
            ("trailing", TimestepSpacing::Trailing),
            ("linspace", TimestepSpacing::Linspace),
        ];
        let mut settings = Self {
            train_steps,
            alphas,
            zero_snr,
            prediction: prediction(fields, method)?,
            spacing: fields.choice(
                "timestep_spacing",
                if late { TimestepSpacing::Leading } else { TimestepSpacing::Linspace },
                &spacing,
            )?,
            steps_offset: fields.count("steps_offset", 0, 0, train_steps)?,
            clip: None,
            alpha_to_one: true,
            sigmas: SigmaSpacing::Interpolated,
            sigma_min: None,
            sigma_max: None,
            log_linear: false,
            ends_at_sigma_min: false,
            continuous: false,
            solver_order: 2,
            heun: false,
            lower_order_final: true,
            euler_at_final: false,
            lambda_min_clipped: f64::NEG_INFINITY,
            cosine: betas == Betas::SquaredCosine,
            original_inference_steps: 50,
            timestep_scaling: 10.0,
        };
        match method {
            SchedulerKind::Euler => {
                settings.read_sigmas(fields)?;
                settings.log_linear =
                    fields.choice("interpolation_type", false, &[("linear", false), ("log_linear", true)])?;
                settings.continuous =
                    fields.choice("timestep_type", false, &[("discrete", false), ("continuous", true)])?;
            }
            SchedulerKind::EulerAncestral => {}
            SchedulerKind::Ddim => settings.read_clip(fields, true)?,
            SchedulerKind::Lcm => {
                settings.read_clip(fields, false)?;
                let original = fields.count("original_inference_steps", 50, 1, train_steps)?;
                if original > train_steps {
                    let what = format!("its default, {original}, is more than num_train_timesteps, {train_steps}");
                    return Err(fields.refuse("original_inference_steps", what));
                }
                settings.original_inference_steps = original;
                settings.timestep_scaling = fields.positive("timestep_scaling")?.unwrap_or(10.0);
            }
            SchedulerKind::Dpmpp2M => settings.read_solver(fields)?,
        }
        if zero_snr && late && settings.prediction == PredictionType::Epsilon {
            let why = "a zero terminal SNR needs `prediction_type` v_prediction or sample: no noise level is left to \
                       predict x0 from at the last timestep";
            return Err(fields.refuse("rescale_betas_zero_snr", why));
        }
        Ok(settings)
    }

    fn read_sigmas(&mut self, fields: &Fields<'_>) -> Result<()> {
        fields.off("use_beta_sigmas", "supported: use_karras_sigmas, use_exponential_sigmas, or neither")?;
        let karras = fields.flag("use_karras_sigmas", false)?;
        let exponential = fields.flag("use_exponential_sigmas", false)?;
        if karras && exponential {
            return Err(fields.refuse("use_exponential_sigmas", "not together with use_karras_sigmas"));
        }
        if karras {
            self.sigmas = SigmaSpacing::Karras;
        } else if exponential {
            self.sigmas = SigmaSpacing::Exponential;
        }
        self.sigma_min = fields.positive("sigma_min")?;
        self.sigma_max = fields.positive("sigma_max")?;
        self.ends_at_sigma_min = fields.choice("final_sigmas_type", false, &[("zero", false), ("sigma_min", true)])?;
        Ok(())
    }

    fn read_clip(&mut self, fields: &Fields<'_>, default: bool) -> Result<()> {
        fields.off("thresholding", "dynamic thresholding is for pixels, not latents; false is supported")?;
        let range = fields.positive("clip_sample_range")?.unwrap_or(1.0);
        self.clip = fields.flag("clip_sample", default)?.then_some(range as f32);
        self.alpha_to_one = fields.flag("set_alpha_to_one", true)?;
        Ok(())
    }

    fn read_solver(&mut self, fields: &Fields<'_>) -> Result<()> {
        self.read_sigmas(fields)?;
        fields.off("thresholding", "dynamic thresholding is for pixels, not latents; false is supported")?;
        fields.off("use_flow_sigmas", "flow matching models are not supported; false is")?;
        if fields.flag("use_lu_lambdas", false)? && self.sigmas != SigmaSpacing::Karras {
            self.sigmas = SigmaSpacing::Lu;
        }
        if !matches!(fields.get("variance_type"), None | Some(Value::Null)) {
            return Err(fields.refuse("variance_type", "models that predict a variance are not supported; null is"));
        }
        // diffusers reads the older names `deis`, `logrho`, `bh1` and `bh2` as its defaults, `deis` with one condition.
        let deis = fields.choice("algorithm_type", false, &[("dpmsolver++", false), ("deis", true)])?;
        if deis && !self.ends_at_sigma_min {
            return Err(
                fields.refuse("algorithm_type", "supported: dpmsolver++, or deis if final_sigmas_type is sigma_min")
            );
        }
        let types = [("midpoint", false), ("heun", true), ("logrho", false), ("bh1", false), ("bh2", false)];
        self.heun = fields.choice("solver_type", false, &types)?;
        self.solver_order = fields.count("solver_order", 2, 1, 2)?;
        self.lower_order_final = fields.flag("lower_order_final", true)?;
        self.euler_at_final = fields.flag("euler_at_final", false)?;
        self.lambda_min_clipped = match fields.get("lambda_min_clipped") {
            Some(Value::String(text)) if text == "-Infinity" => f64::NEG_INFINITY,
            _ => fields.optional("lambda_min_clipped")?.unwrap_or(f64::NEG_INFINITY),
        };
        Ok(())
    }
}

fn betas(fields: &Fields<'_>, method: SchedulerKind) -> Result<Betas> {
    #[derive(Clone, Copy)]
    enum Kind {
        Linear,
        Scaled,
        Cosine,
    }
    if let Some(value) = fields.get("trained_betas").filter(|v| !v.is_null()) {
        let values = value.as_array().filter(|list| list.len() <= MAX_TRAIN_STEPS);
        let values = values.and_then(|list| list.iter().map(|v| v.as_f64().map(|v| v as f32)).collect());
        return values.map(Betas::Trained).ok_or_else(|| fields.refuse("trained_betas", "a list of numbers is needed"));
    }
    let (start, end, kind) = match method {
        SchedulerKind::Lcm => (0.00085, 0.012, Kind::Scaled),
        _ => (0.0001, 0.02, Kind::Linear),
    };
    let start = fields.positive("beta_start")?.unwrap_or(start);
    let end = fields.positive("beta_end")?.unwrap_or(end);
    let kinds = [("linear", Kind::Linear), ("scaled_linear", Kind::Scaled), ("squaredcos_cap_v2", Kind::Cosine)];
    Ok(match fields.choice("beta_schedule", kind, &kinds)? {
        Kind::Linear => Betas::Linear { start, end },
        Kind::Scaled => Betas::ScaledLinear { start, end },
        Kind::Cosine => Betas::SquaredCosine,
    })
}

fn prediction(fields: &Fields<'_>, method: SchedulerKind) -> Result<PredictionType> {
    let words = [
        ("epsilon", PredictionType::Epsilon),
        ("v_prediction", PredictionType::V),
        ("sample", PredictionType::Sample),
        ("original_sample", PredictionType::Sample),
    ];
    let known = match method {
        SchedulerKind::Euler => &words[..],
        SchedulerKind::EulerAncestral => &words[..2],
        _ => &words[..3],
    };
    fields.choice("prediction_type", PredictionType::Epsilon, known)
}
