//! The schedulers against diffusers' and DiffSynth's own step loops (tools/goldens/make_schedulers.py).
#![allow(clippy::unwrap_used)]

use std::path::Path;

use braid::schedulers::{
    NoiseLevel, PredictionType, SchedulerConfig, SchedulerKind, SigmaSchedule, StepCoefficients, StepTable,
    TimestepSpacing, classifier_free_guidance, step,
};
use serde_json::Value;

fn golden(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/schedulers").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

/// `fill` of tools/goldens/recipe.py for 16 values at scale 1.7.
fn fill(seed: u32) -> Vec<f32> {
    let value = |i: u32| {
        let mut x = i.wrapping_mul(0x9e37_79b9).wrapping_add(seed);
        x ^= x >> 16;
        x = x.wrapping_mul(0x7feb_352d);
        x ^= x >> 15;
        x = x.wrapping_mul(0x846c_a68b);
        x ^= x >> 16;
        1.7 * ((x >> 8) as f32 * 2f32.powi(-23) - 1.0)
    };
    (0..16).map(value).collect()
}

fn initial(case: u32) -> Vec<f32> {
    fill(1_000_003 * case + 1)
}

fn output(case: u32, step: usize) -> Vec<f32> {
    fill(1_000_003 * case + 1000 + step as u32)
}

fn noise(case: u32, step: usize) -> Vec<f32> {
    fill(1_000_003 * case + 500_000 + step as u32)
}

fn distance(found: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(wanted).map(|(&f, &w)| f64::from(f) - f64::from(w)));
    difference / norm(&mut wanted.iter().map(|&w| f64::from(w)))
}

/// The clean sample by a row: right at every row's level for a model that knows the noise, whatever the scheduler and the
/// prediction.
#[test]
fn clean_samples() {
    for &kind in SchedulerKind::ALL {
        let config = SchedulerConfig::sdxl_default().with_kind(kind).unwrap();
        for prediction in [PredictionType::Epsilon, PredictionType::V] {
            for row in config.clone().with_prediction_type(prediction).unwrap().table(6).unwrap().steps {
                let (clean, noise) = (0.3, -1.1);
                // The second evaluation of a step is at a level between those of `level`; the input's scale tells it.
                let scale = f64::from(row.input_scale);
                let between = NoiseLevel { alpha: 1.0, sigma: (scale.powi(-2) - 1.0).max(0.0).sqrt() as f32 };
                let level = if row.input_scale == 1.0 { row.level } else { between };
                let norm = (level.alpha.powi(2) + level.sigma.powi(2)).sqrt();
                let output = match prediction {
                    PredictionType::Epsilon => noise,
                    _ => (level.alpha * noise - level.sigma * clean) / norm,
                };
                let found = row.x0(level.add_noise(clean, noise), output);
                assert!(
                    (found - clean).abs() < 1e-4 * (1.0 + level.sigma / level.alpha),
                    "{kind} {prediction}: {found} {level:?}"
                );
            }
        }
    }
}

/// Runs the table's own loop and returns the last latents and the worst distance from the golden latents.
fn run(table: &StepTable, case: u32, latents: &[Vec<f32>]) -> (Vec<f32>, f64) {
    let mut x: Vec<f32> = initial(case).into_iter().map(|v| v * table.init_noise_sigma).collect();
    let mut history = vec![f32::NAN; if table.uses_history() { 3 * x.len() } else { 0 }];
    let skipped = table.steps.len() - latents.len();
    let mut worst = 0.0f64;
    for (i, row) in table.steps.iter().enumerate() {
        let drawn = row.noise.map(|_| noise(case, i));
        step(row, &mut x, &output(case, i), &mut history, drawn.as_deref()).unwrap();
        if i >= skipped {
            worst = worst.max(distance(&x, &latents[i - skipped]));
        }
    }
    (x, worst)
}

fn latents(case: &Value) -> Vec<Vec<f32>> {
    case["latents"].as_array().unwrap().iter().map(floats).collect()
}

#[test]
fn diffusers_step_loops() {
    for (index, case) in golden("diffusers.json").iter().enumerate() {
        let method: SchedulerKind = case["method"].as_str().unwrap().parse().unwrap();
        let mut fields = case["config"].clone();
        for (name, value) in case["overrides"].as_object().unwrap() {
            fields[name] = value.clone();
        }
        let what = format!("case {index}: {method} {} steps, {}", case["steps"], case["overrides"]);
        let ays = fields.as_object_mut().unwrap().remove("ays").is_some();
        let mut config = SchedulerConfig::from_json_as(Path::new("scheduler_config.json"), &fields, method).unwrap();
        if ays {
            config = config.with_sigma_schedule(SigmaSchedule::AlignYourSteps).unwrap();
        }
        let config = config.with_eta(case["eta"].as_f64().unwrap() as f32).unwrap();
        let [steps, first] = ["steps", "first"].map(|name| case[name].as_u64().unwrap() as usize);
        let table = match first {
            0 => config.table(steps).unwrap(),
            _ => config.image_to_image_table(steps, (steps - first) as f64 / steps as f64).unwrap(),
        };

        let draws: Vec<u64> = (0u64..).zip(&table.steps).filter(|(_, s)| s.noise.is_some()).map(|(i, _)| i).collect();
        assert_eq!(Value::from(draws), case["draws"], "{what}");
        let sigma = case["init_noise_sigma"].as_f64().unwrap() as f32;
        assert!((table.init_noise_sigma / sigma - 1.0).abs() < 2e-7, "{what}: {} {sigma}", table.init_noise_sigma);
        let timesteps = floats(&case["timesteps"]);
        if !timesteps.is_empty() {
            let found: Vec<f32> = table.steps.iter().map(|s| s.timestep).collect();
            assert_eq!(found.len(), timesteps.len(), "{what}");
            for (i, (f, w)) in found.iter().zip(&timesteps).enumerate() {
                // Fractions and what lies between two levels come from logarithms; other whole ones are exact.
                let between = ["dpm2", "dpm2-a", "dpmpp-sde"].contains(&method.name()) && i % 2 == 1;
                let tolerance = if w.fract() == 0.0 && !between { 0.0 } else { 1e-4 };
                assert!((f - w).abs() <= tolerance, "{what}: {found:?} {timesteps:?}");
            }
        }
        let latents = latents(case);
        let mut x: Vec<f32> = initial(index as u32).into_iter().map(|v| v * table.init_noise_sigma).collect();
        for (i, (row, wanted)) in table.steps.iter().zip(case["inputs"].as_array().unwrap()).enumerate() {
            let input: Vec<f32> = x[..4].iter().map(|v| v * row.input_scale).collect();
            assert!(distance(&input, &floats(wanted)) < 4e-7, "{what}, step {i}");
            x.clone_from(&latents[i]);
        }
        let (x, error) = run(&table, index as u32, &latents);
        let exact = distance(&x, &floats(&case["exact"]));
        let rounding = case["rounding"].as_f64().unwrap();
        println!("{error:.2e} from the peer, {exact:.2e} from f64, the peer {rounding:.2e} from f64: {what}");
        // A few schedules cost the peer more than 1e-6 by its own order of operations: a zero terminal SNR begins at
        // sigma 4096, and a thousand steps add up a thousand roundings.
        let tolerance = 1e-6f64.max(1.5 * rounding);
        assert!(exact <= tolerance.min(1.2e-6), "{exact:.2e} {what}");
        assert!(error <= tolerance, "{error:.2e} {what}");
    }
}

#[test]
fn built_in_sdxl_config() {
    let goldens = golden("diffusers.json");
    let file = &goldens[0]["config"];
    for &method in SchedulerKind::ALL {
        let built_in = SchedulerConfig::sdxl_default().with_kind(method).unwrap();
        let read = SchedulerConfig::from_json(Path::new("scheduler_config.json"), file).unwrap();
        assert_eq!(built_in.table(20).unwrap(), read.with_kind(method).unwrap().table(20).unwrap());
    }
}

#[test]
fn diffsynth_step_loops() {
    let goldens = golden("diffsynth.json");
    let (sweep, cases) = goldens.split_last().unwrap();
    for case in cases {
        let mut config = SchedulerConfig::diffsynth();
        if case["prediction"] == "v_prediction" {
            config = config.with_prediction_type(PredictionType::V).unwrap();
        }
        let table = config.table(case["steps"].as_u64().unwrap() as usize).unwrap();
        let timesteps: Vec<f32> = table.steps.iter().map(|s| s.timestep).collect();
        assert_eq!(timesteps, floats(&case["timesteps"]));
        let (_, error) = run(&table, case["case"].as_u64().unwrap() as u32, &latents(case));
        println!("{error:.2e} {} {} steps", case["prediction"], case["steps"]);
        assert!(error <= 1e-6, "{error:.2e}");
    }
    let most = sweep["sweep"].as_u64().unwrap() as usize;
    assert_eq!(hash(&SchedulerConfig::diffsynth(), most), sweep["hash"].as_u64().unwrap() as u32);
}

/// FNV-1a over the bits of all timesteps of 1 to `most` steps.
fn hash(config: &SchedulerConfig, most: usize) -> u32 {
    let mut hash = 0x811c_9dc5u32;
    for steps in 1..=most {
        for StepCoefficients { timestep, .. } in config.table(steps).unwrap().steps {
            hash = (hash ^ timestep.to_bits()).wrapping_mul(0x0100_0193);
        }
    }
    hash
}

#[test]
fn timesteps_by_step_count() {
    for line in golden("sweep.json") {
        let method: SchedulerKind = line["method"].as_str().unwrap().parse().unwrap();
        let spacing: TimestepSpacing = line["spacing"].as_str().unwrap().parse().unwrap();
        let fields = serde_json::json!({
            "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 0,
            "timestep_spacing": spacing.to_string(), "clip_sample": false,
        });
        let config = SchedulerConfig::from_json_as(Path::new("scheduler_config.json"), &fields, method).unwrap();
        let most = line["most"].as_u64().unwrap() as usize;
        assert_eq!(hash(&config, most), line["hash"].as_u64().unwrap() as u32, "{method} {spacing}");
    }
}

#[test]
fn guidance_and_its_rescale() {
    for (case, line) in (900..).zip(golden("guidance.json")) {
        let (scale, rescale) = (line["scale"].as_f64().unwrap() as f32, line["rescale"].as_f64().unwrap() as f32);
        let shaped = |i: usize, scale: f32, offset: f32| -> Vec<f32> {
            output(case, i).into_iter().map(|v| v * scale + offset).collect()
        };
        let images = [(shaped(0, 1.0, 0.0), shaped(2, 1.0, 0.0)), (shaped(1, 3.0, 0.0), shaped(3, 1.0, 1.0))];
        for ((negative, positive), wanted) in images.iter().zip(line["guided"].as_array().unwrap()) {
            let mut guided = vec![0.0; 16];
            classifier_free_guidance(negative, positive, scale, rescale, &mut guided).unwrap();
            assert!(distance(&guided, &floats(wanted)) < 2e-7, "{scale} {rescale}");
        }
    }
    let mut guided = [0.0; 4];
    classifier_free_guidance(&[1.0; 4], &[1.0; 4], 5.0, 0.7, &mut guided).unwrap();
    assert_eq!(guided, [1.0; 4]);
    assert!(classifier_free_guidance(&[1.0; 3], &[1.0; 4], 5.0, 0.7, &mut guided).is_err());
}

#[test]
fn odd_configurations() {
    let oddities = [
        r#"{}"#,
        r#"{"num_train_timesteps": 2}"#,
        r#"{"num_train_timesteps": 3, "steps_offset": 3, "original_inference_steps": 3}"#,
        r#"{"num_train_timesteps": 50, "trained_betas": [0.5, 0.5]}"#,
        r#"{"trained_betas": [0.0, 0.0, 0.0]}"#,
        r#"{"beta_start": 1e-40, "beta_end": 1e-40}"#,
        r#"{"beta_start": 0.9, "beta_end": 0.9999}"#,
        r#"{"rescale_betas_zero_snr": true, "beta_start": 0.02}"#,
        r#"{"rescale_betas_zero_snr": true, "prediction_type": "v_prediction"}"#,
        r#"{"lambda_min_clipped": 1e300, "final_sigmas_type": "sigma_min"}"#,
        r#"{"use_karras_sigmas": true, "sigma_min": 1e300, "sigma_max": 1e-300}"#,
        r#"{"use_exponential_sigmas": true, "interpolation_type": "log_linear", "num_train_timesteps": 7}"#,
        r#"{"clip_sample_range": 1e-45, "timestep_scaling": 1e300, "steps_offset": 1000}"#,
    ];
    let mut tables = 0;
    for text in oddities {
        for &method in SchedulerKind::ALL {
            let Ok(config) = SchedulerConfig::parse_as(Path::new("f"), text, method) else { continue };
            for spacing in [TimestepSpacing::Leading, TimestepSpacing::Trailing, TimestepSpacing::Linspace] {
                let respaced = if [SchedulerKind::Lcm, SchedulerKind::Tcd].contains(&method) {
                    Ok(config.clone())
                } else {
                    config.clone().with_timestep_spacing(spacing)
                };
                let Ok(config) = respaced else { continue };
                for steps in [0, 1, 2, 3, 49, 50, 61, 999, 1000, usize::MAX] {
                    let Ok(table) = config.table(steps) else { continue };
                    tables += 1;
                    assert!(
                        !table.steps.is_empty() && table.steps.len() < 2 * steps,
                        "{text} {method} {spacing} {steps}"
                    );
                    let finite = table
                        .steps
                        .iter()
                        .all(|s| s.timestep.is_finite() && s.x_from_x.is_finite() && s.history[0].from_x.is_finite());
                    assert!(finite && table.init_noise_sigma.is_finite(), "{text} {method} {spacing} {steps}");
                }
            }
        }
    }
    assert!(tables > 300, "{tables}");
}

#[test]
fn step_operand_checks() {
    let table = SchedulerConfig::sdxl_default().with_kind(SchedulerKind::Dpmpp2M).unwrap().table(4).unwrap();
    assert!(table.uses_history());
    let (mut x, output) = ([1.0; 3], [0.5; 3]);
    assert!(step(&table.steps[0], &mut x, &output[..2], &mut [0.0; 9], None).is_err());
    // The first row ignores what the history holds, the second one does not.
    let mut history = [f32::NAN; 9];
    step(&table.steps[0], &mut x, &output, &mut history, None).unwrap();
    assert!(x.iter().chain(&history[..3]).all(|v| v.is_finite()));
    assert!(step(&table.steps[1], &mut x, &output, &mut [], None).is_err());
    let table = SchedulerConfig::sdxl_default().with_kind(SchedulerKind::EulerAncestral).unwrap().table(4).unwrap();
    assert_eq!(table.draws(), 4);
    assert!(step(&table.steps[0], &mut x, &output, &mut [], None).is_err());
    step(&table.steps[3], &mut x, &output, &mut [], None).unwrap();
}
