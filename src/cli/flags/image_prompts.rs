//! IP-Adapters and their reference images.

use crate::cli::adapters::ReferenceFile;
use crate::cli::failure::Failure;
use crate::cli::flag::{Flag, Generated, Group};
use crate::cli::labels::{number, path, size, stem};
use crate::cli::options::Options;
use crate::cli::value::Value;
use crate::error::Field;
use crate::inputs::fit::Fit;
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
    help: "a reference image (PNG, JPEG, WebP, GIF); may be repeated, the images of one adapter share its softmax",
    fields: &[Field::ImagePrompts],
    set: |o, v| {
        let path = v.path()?;
        o.adapters.last().images.push(ReferenceFile { path, ..ReferenceFile::default() });
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
    help: "full, style, layout, style+layout, composition (the same as layout), strong-style (all but layout and the middle), \
           precise-style (style, and layout in the negative row alone), or JSON as diffusers' set_ip_adapter_scale takes it, such as \
           '{\"up\": {\"block_0\": [0, 1, 0]}}' [default: full]",
    fields: &[Field::ScaleBlocks],
    set: |o, v| {
        let blocks = v.text()?;
        once(o.adapters.last().blocks.replace(blocks).is_some(), v)
    },
    ..Flag::NEW
};

/// The weight of a reference image.
pub const IP_ADAPTER_WEIGHT: Flag<Options> = Flag {
    long: "--ip-adapter-weight",
    value: Some("F"),
    help: "how much this image weighs among those of its adapter [default: 1]",
    fields: &[Field::ReferenceWeight],
    set: |o, v| {
        let weight = v.signed()?;
        once_an_image(o.adapters.last().reference().weight.replace(weight).is_some(), v)
    },
    ..Flag::NEW
};

/// A text that is added to a reference image's embedding.
pub const IP_ADAPTER_TEXT: Flag<Options> = Flag {
    long: "--ip-adapter-text",
    value: Some("TEXT[:F]"),
    help: "add a text's embedding, times F, to this image's; F below 0 takes out what the text names, 'a castle:-0.5' [default: 1]. For \
           base adapters on ViT-bigG; may be repeated. A text that ends in a colon and a number needs another :1",
    fields: &[Field::ReferenceTexts],
    set: |o, v| {
        let text = v.text()?;
        let split =
            text.rsplit_once(':').and_then(|(text, factor)| Some((text.to_owned(), factor.trim().parse().ok()?)));
        let (text, factor): (String, f32) = split.unwrap_or((text, 1.0));
        if !factor.is_finite() {
            return Err(v.wrong(&format!("the factor must be a finite number, got {factor}")));
        }
        o.adapters.last().reference().texts.push((text, factor));
        Ok(())
    },
    ..Flag::NEW
};

/// The mask of a reference image.
pub const IP_ADAPTER_MASK: Flag<Options> = Flag {
    long: "--ip-adapter-mask",
    value: Some("PATH"),
    help: "a grey image of any size: this reference acts where it is white; one for each image of the adapter, or none",
    fields: &[Field::ReferenceMask],
    set: |o, v| {
        let path = v.path()?;
        once_an_image(o.adapters.last().reference().mask.replace(path).is_some(), v)
    },
    ..Flag::NEW
};

/// The way in which several images act together.
pub const IP_ADAPTER_COMBINE: Flag<Options> = Flag {
    long: "--ip-adapter-combine",
    value: Some("HOW"),
    help: "several images of an adapter without masks: concat (one softmax over all), average (the mean of their \
           embeddings) or add (a softmax each) [default: concat]",
    fields: &[Field::Combine],
    set: |o, v| {
        let combine = v.named()?;
        once(o.adapters.last().combine.replace(combine).is_some(), v)
    },
    ..Flag::NEW
};

/// The part of the steps at which an adapter begins to act.
pub const IP_ADAPTER_START: Flag<Options> = Flag {
    long: "--ip-adapter-start",
    value: Some("F"),
    help: "the part of the steps, 0 to 1, at which the adapter begins to act [default: 0]",
    fields: &[Field::Start],
    set: |o, v| {
        let start = v.fraction()?;
        once(o.adapters.last().start.replace(start).is_some(), v)
    },
    ..Flag::NEW
};

/// The part of the steps at which an adapter ceases to act.
pub const IP_ADAPTER_END: Flag<Options> = Flag {
    long: "--ip-adapter-end",
    value: Some("F"),
    help: "the part of the steps, 0 to 1, at which the adapter ceases to act [default: 1]",
    fields: &[Field::End],
    set: |o, v| {
        let end = v.fraction()?;
        once(o.adapters.last().end.replace(end).is_some(), v)
    },
    ..Flag::NEW
};

/// The image of the negative row.
pub const IP_ADAPTER_NEGATIVE_IMAGE: Flag<Options> = Flag {
    long: "--ip-adapter-negative-image",
    value: Some("PATH"),
    help: "an image that the result should not be like, in place of the zero embedding in the negative row",
    fields: &[Field::NegativeImage],
    set: |o, v| {
        let path = v.path()?;
        once(o.adapters.last().negative_image.replace(path).is_some(), v)
    },
    ..Flag::NEW
};

/// The treatment of images that are not square.
pub const IP_ADAPTER_FIT: Flag<Options> = Flag {
    long: "--ip-adapter-fit",
    value: Some("HOW"),
    help: "reference images that are not square: crop (the middle square is kept), pad or stretch [default: crop]",
    fields: &[Field::Fit],
    set: |o, v| v.named().map(|value| o.fit = value),
    json: Some(("ip_adapter_fit", |o, _| (o.fit != Fit::default()).then(|| o.fit.to_string()).into())),
    ..Flag::NEW
};

/// The file of the image that the encoder sees.
pub const SAVE_REFERENCE: Flag<Options> = Flag {
    long: "--save-reference",
    value: Some("FILE"),
    help: "write each reference image as the encoder sees it (PNG); several are numbered",
    set: |o, v| v.path().map(|value| o.save_reference = Some(value)),
    ..Flag::NEW
};

/// A size for the reference images.
pub const IP_ADAPTER_IMAGE_RESIZE: Flag<Options> = Flag {
    long: "--ip-adapter-image-resize",
    value: Some("WxH"),
    help: "stretch every reference image (bicubic) before the encoder",
    fields: &[Field::Resize],
    set: |o, v| v.size(MAX_SIDE).map(|value| o.resize = Some(value)),
    json: Some(("ip_adapter_image_resize", |o, _| size(o.resize))),
    ..Flag::NEW
};

/// The group.
pub const GROUP: Group<Options> = Group {
    title: Some("Image prompts"),
    flags: &[
        IP_ADAPTER,
        IP_ADAPTER_IMAGE,
        IP_ADAPTER_WEIGHT,
        IP_ADAPTER_TEXT,
        IP_ADAPTER_MASK,
        IP_ADAPTER_STRENGTH,
        IP_ADAPTER_BLOCKS,
        IP_ADAPTER_COMBINE,
        IP_ADAPTER_START,
        IP_ADAPTER_END,
        IP_ADAPTER_NEGATIVE_IMAGE,
        IP_ADAPTER_FIT,
        IP_ADAPTER_IMAGE_RESIZE,
        SAVE_REFERENCE,
    ],
    note: Some(
        "Weight, texts and mask belong to the image that they follow; before an adapter's first image they are those of all its \
         images that have none. With several adapters the flags of an adapter and its images belong to the --ip-adapter \
         that they follow; those before the first belong to the first. With one the order is free.",
    ),
};

fn once_an_image(twice: bool, value: &Value<'_>) -> Result<(), Failure> {
    let what = "given twice for one --ip-adapter-image; it follows the image that it belongs to";
    if twice { Err(value.wrong(what)) } else { Ok(()) }
}

fn once(twice: bool, value: &Value<'_>) -> Result<(), Failure> {
    let what = "given twice for one --ip-adapter; it follows the adapter it belongs to";
    if twice { Err(value.wrong(what)) } else { Ok(()) }
}

fn adapters_json(o: &Options, g: &Generated) -> Json {
    let adapters = o.adapters.all.iter().map(|a| {
        let mut adapter = json!({
            "ip_adapter": path(&a.path, g),
            "images": a.images.iter().map(|image| path(&image.path, g)).collect::<Vec<_>>(),
            "strength": a.strength.unwrap_or(1.0),
            "blocks": a.blocks.as_deref().unwrap_or("full"),
        });
        // What is not there is at its default.
        let masks: Vec<_> = a.masks().into_iter().map(|mask| path(mask, g)).collect();
        let given = [
            ("weights", a.given_weights().map(|weights| json!(weights))),
            ("texts", a.given_texts().map(|texts| json!(texts))),
            ("masks", (!masks.is_empty()).then(|| json!(masks))),
            ("combine", a.combine.map(|combine| json!(combine.to_string()))),
            ("start", a.start.map(Json::from)),
            ("end", a.end.map(Json::from)),
            ("negative_image", a.negative_image.as_ref().map(|image| json!(path(image, g)))),
        ];
        for (key, value) in given {
            if let Some(value) = value {
                adapter[key] = value;
            }
        }
        adapter
    });
    adapters.collect()
}

fn adapters_text(o: &Options, _: &Generated) -> Vec<String> {
    let mut entries = Vec::new();
    for (i, adapter) in o.adapters.all.iter().enumerate() {
        let number = number(i);
        let images: Vec<_> = adapter.images.iter().map(|image| stem(&image.path)).collect();
        entries.push(format!("IP-Adapter{number}: {}", stem(&adapter.path)));
        entries.push(format!("IP-Adapter{number} images: {}", images.join(" ")));
        entries.push(format!("IP-Adapter{number} strength: {}", adapter.strength.unwrap_or(1.0)));
        if let Some(blocks) = &adapter.blocks {
            let quoted =
                if blocks.contains([',', ':']) { Json::from(blocks.as_str()).to_string() } else { blocks.clone() };
            entries.push(format!("IP-Adapter{number} blocks: {quoted}"));
        }
        let (weights, masks) = (adapter.given_weights().unwrap_or_default(), adapter.masks());
        let words = |words: Vec<String>| (!words.is_empty()).then(|| words.join(" "));
        let given = [
            ("weights", words(weights.iter().map(f32::to_string).collect())),
            ("texts", adapter.given_texts().map(|texts| json!(json!(texts).to_string()).to_string())),
            ("masks", words(masks.into_iter().map(|mask| stem(mask)).collect())),
            ("combine", adapter.combine.map(|combine| combine.to_string())),
            ("start", adapter.start.map(|start| start.to_string())),
            ("end", adapter.end.map(|end| end.to_string())),
            ("negative image", adapter.negative_image.as_ref().map(|image| stem(image))),
        ];
        let given = given.into_iter().filter_map(|(name, value)| Some((name, value?)));
        entries.extend(given.map(|(name, value)| format!("IP-Adapter{number} {name}: {value}")));
    }
    entries
}
