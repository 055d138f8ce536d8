//! What a PNG file says of its picture.

use crate::options::Options;
use braid::inputs::noise::RngKind;
use braid::output::PngMetadata;
use braid::schedulers::{SchedulerKind, SigmaSchedule};
use serde_json::{Value, json};
use std::path::Path;

/// The scheduler's name as AUTOMATIC1111's interface has it.
fn sampler(method: SchedulerKind, schedule: Option<SigmaSchedule>) -> String {
    let karras = if schedule == Some(SigmaSchedule::Karras) { " Karras" } else { "" };
    format!("{}{karras}", method.label())
}

fn stem(path: &Path) -> String {
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    // A comma would end the value.
    name.unwrap_or(path.as_os_str()).to_string_lossy().replace(',', " ")
}

/// The texts of one picture.
pub fn texts(o: &Options, method: SchedulerKind, seed: u64, (width, height): (usize, usize)) -> PngMetadata {
    let mut parameters = o.prompt.clone();
    if let Some(negative) = &o.negative {
        parameters.push_str(&format!("\nNegative prompt: {negative}"));
    }
    let mut facts = vec![
        format!("Steps: {}", o.steps),
        format!("Sampler: {}", sampler(method, o.schedule)),
        format!("CFG scale: {}", o.guidance),
        format!("Seed: {seed}"),
        format!("Size: {width}x{height}"),
        format!("Model: {}", stem(&o.model)),
    ];
    if o.clip_skip > 0 {
        facts.push(format!("Clip skip: {}", o.clip_skip));
    }
    for (i, adapter) in o.adapters.iter().enumerate() {
        let number = if i == 0 { String::new() } else { format!(" {}", i + 1) };
        let images: Vec<_> = adapter.images.iter().map(|p| stem(p)).collect();
        facts.push(format!("IP-Adapter{number}: {}", stem(&adapter.path)));
        facts.push(format!("IP-Adapter{number} images: {}", images.join(" ")));
        facts.push(format!("IP-Adapter{number} strength: {}", adapter.strength.unwrap_or(1.0)));
        if let Some(blocks) = &adapter.blocks {
            let quoted =
                if blocks.contains([',', ':']) { Value::from(blocks.as_str()).to_string() } else { blocks.clone() };
            facts.push(format!("IP-Adapter{number} blocks: {quoted}"));
        }
    }
    facts.push(concat!("Version: Braid ", env!("CARGO_PKG_VERSION")).into());
    parameters.push_str(&format!("\n{}", facts.join(", ")));
    PngMetadata { parameters: Some(parameters), braid: Some(request(o, method, seed, (width, height)).to_string()) }
}

/// The whole request under the names of the flags.
fn request(o: &Options, method: SchedulerKind, seed: u64, (width, height): (usize, usize)) -> Value {
    let text = |v: Option<String>| v.map_or(Value::Null, Value::from);
    let adapters: Vec<_> = o
        .adapters
        .iter()
        .map(|a| {
            json!({
                "ip_adapter": a.path.to_string_lossy(),
                "images": a.images.iter().map(|i| i.to_string_lossy()).collect::<Vec<_>>(),
                "strength": a.strength.unwrap_or(1.0),
                "blocks": a.blocks.as_deref().unwrap_or("full"),
            })
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": o.model.to_string_lossy(),
        "config": o.config.as_ref().map(|p| p.to_string_lossy()),
        "clip_vision": o.clip_vision.as_ref().map(|p| p.to_string_lossy()),
        "ip_adapters": adapters,
        "ip_adapter_image_resize": o.resize.map(|(w, h)| [w, h]),
        "prompt": o.prompt,
        "negative_prompt": o.negative,
        "steps": o.steps,
        "cfg_scale": o.guidance,
        "guidance_rescale": o.guidance_rescale,
        "width": width,
        "height": height,
        "seed": seed,
        "sampling_method": method.to_string(),
        "schedule": text(o.schedule.map(|v| v.to_string())),
        "prediction": text(o.prediction.map(|v| v.to_string())),
        "timestep_spacing": text(o.spacing.map(|v| v.to_string())),
        "eta": o.eta,
        "clip_skip": o.clip_skip,
        "compat": o.compat.name,
        "rng": if o.rng == RngKind::Cpu { "cpu" } else { "cuda" },
        "dtype": o.dtype.map(|v| v.to_string()),
        "latents_in": o.latents.as_ref().map(|p| p.to_string_lossy()),
    })
}
