//! IP-Adapters and their reference images.

use crate::cli::failure::Failure;
use crate::cli::flag::{Flag, Generated, Group};
use crate::cli::labels::{path, stem};
use crate::cli::options::Options;
use crate::cli::value::Value;
use crate::error::Field;
use crate::pipeline::MAX_SIDE;
use serde_json::{Value as Json, json};

/// An IP-Adapter.
pub const IP_ADAPTER: Flag<Options> = Flag {
    long: "--ip-adapter",
    value: Some("PATH"),
    help: "an IP-Adapter (.safetensors or .bin); may be repeated",
    fields: &[Field::Adapters],
    set: |o, v| v.path().map(|value| o.adapters.open(value)),
    json: Some(("ip_adapters", adapters_json)),
    parameters: Some((7, adapters_text)),
    ..Flag::NEW
};

/// A reference image.
pub const IP_ADAPTER_IMAGE: Flag<Options> = Flag {
    long: "--ip-adapter-image",
    value: Some("PATH"),
    help: "a reference image (PNG, JPEG, WebP); may be repeated, the images of one adapter share its softmax",
    fields: &[Field::ImagePrompts],
    set: |o, v| {
        let path = v.path()?;
        o.adapters.last().images.push(path);
        Ok(())
    },
    ..Flag::NEW
};

/// The strength of an adapter.
pub const IP_ADAPTER_STRENGTH: Flag<Options> = Flag {
    long: "--ip-adapter-strength",
    value: Some("F"),
    help: "how much the adapter weighs [default: 1]",
    fields: &[Field::ScaleStrength],
    set: |o, v| {
        let strength = v.signed()?;
        once(o.adapters.last().strength.replace(strength).is_some(), v)
    },
    ..Flag::NEW
};

/// The blocks in which an adapter acts.
pub const IP_ADAPTER_BLOCKS: Flag<Options> = Flag {
    long: "--ip-adapter-blocks",
    value: Some("SPEC"),
    help: "full, style, layout, style+layout, or JSON as diffusers' set_ip_adapter_scale takes it, such as \
           '{\"up\": {\"block_0\": [0, 1, 0]}}' [default: full]",
    fields: &[Field::ScaleBlocks],
    set: |o, v| {
        let blocks = v.text()?;
        once(o.adapters.last().blocks.replace(blocks).is_some(), v)
    },
    ..Flag::NEW
};

/// A size for the reference images.
pub const IP_ADAPTER_IMAGE_RESIZE: Flag<Options> = Flag {
    long: "--ip-adapter-image-resize",
    value: Some("WxH"),
    help: "stretch every reference image (bicubic) before the encoder",
    fields: &[Field::Resize],
    set: |o, v| v.size(MAX_SIDE).map(|value| o.resize = Some(value)),
    json: Some(("ip_adapter_image_resize", |o, _| o.resize.map(|(w, h)| json!([w, h])).into())),
    ..Flag::NEW
};

/// The group.
pub const GROUP: Group<Options> = Group {
    title: Some("Image prompts"),
    flags: &[IP_ADAPTER, IP_ADAPTER_IMAGE, IP_ADAPTER_STRENGTH, IP_ADAPTER_BLOCKS, IP_ADAPTER_IMAGE_RESIZE],
    note: Some(
        "With several adapters, image, strength and blocks belong to the --ip-adapter that they follow; those before \
         the first belong to the first. With one the order is free.",
    ),
};

fn once(twice: bool, value: &Value<'_>) -> Result<(), Failure> {
    let what = "given twice for one --ip-adapter; it follows the adapter it belongs to";
    if twice { Err(value.wrong(what)) } else { Ok(()) }
}

fn adapters_json(o: &Options, _: &Generated) -> Json {
    let adapters = o.adapters.all.iter().map(|a| {
        json!({
            "ip_adapter": path(&a.path),
            "images": a.images.iter().map(|image| path(image)).collect::<Vec<_>>(),
            "strength": a.strength.unwrap_or(1.0),
            "blocks": a.blocks.as_deref().unwrap_or("full"),
        })
    });
    adapters.collect()
}

fn adapters_text(o: &Options, _: &Generated) -> Vec<String> {
    let mut entries = Vec::new();
    for (i, adapter) in o.adapters.all.iter().enumerate() {
        let number = if i == 0 { String::new() } else { format!(" {}", i + 1) };
        let images: Vec<_> = adapter.images.iter().map(|image| stem(image)).collect();
        entries.push(format!("IP-Adapter{number}: {}", stem(&adapter.path)));
        entries.push(format!("IP-Adapter{number} images: {}", images.join(" ")));
        entries.push(format!("IP-Adapter{number} strength: {}", adapter.strength.unwrap_or(1.0)));
        if let Some(blocks) = &adapter.blocks {
            let quoted =
                if blocks.contains([',', ':']) { Json::from(blocks.as_str()).to_string() } else { blocks.clone() };
            entries.push(format!("IP-Adapter{number} blocks: {quoted}"));
        }
    }
    entries
}
