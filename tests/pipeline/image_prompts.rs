//! Image prompts: those that cannot be, those for which nothing is compiled anew, and those that are the same another way.

use super::*;
use braid::error::Field;
use braid::pipeline::{Combine, Reference};

/// A difference of an image prompt.
type Change<'a> = &'a dyn Fn(&mut ImagePrompt);

fn embedding(offset: usize) -> ReferenceImage {
    ReferenceImage::Embedding((0..24).map(|i| ((i * 7 + offset) % 24) as f32 / 24.0).collect())
}

/// A grey ramp of an odd size, from `from` to `to`.
fn mask(from: u8, to: u8) -> Image {
    let row = (0..13u16).map(|x| (u16::from(from) * (12 - x) + u16::from(to) * x) / 12);
    let rgb: Vec<u8> = row.flat_map(|grey| [grey as u8; 3]).collect();
    Image::new(13, 7, rgb.repeat(7)).unwrap()
}

/// Two references, three steps, 40x24 pixels.
fn base() -> Request {
    let mut request = request();
    (request.steps, request.width, request.height) = (3, Some(40), Some(24));
    request.image_prompts = vec![ImagePrompt::default().with_reference(embedding(0)).with_reference(embedding(5))];
    request
}

fn with(change: Change<'_>) -> Request {
    let mut request = base();
    change(&mut request.image_prompts[0]);
    request
}

fn masked(prompt: &mut ImagePrompt) {
    prompt.references[0].mask = Some(mask(0, 255));
    prompt.references[1].mask = Some(mask(255, 0));
}

#[test]
fn b45_combinations() {
    let pipeline = Model::folder().load().unwrap();
    let before = generate(&pipeline, &base()).unwrap();
    let bad: [(Field, Change<'_>); 17] = [
        (Field::Start, &|p| (p.start, p.end) = (0.6, 0.5)),
        (Field::Start, &|p| p.start = -0.1),
        (Field::Start, &|p| p.start = f64::NAN),
        (Field::End, &|p| p.end = 1.5),
        (Field::End, &|p| p.end = f64::INFINITY),
        (Field::ReferenceWeight, &|p| p.references[1].weight = f32::NAN),
        (Field::ReferenceWeight, &|p| p.references[0].weight = f32::INFINITY),
        (Field::ReferenceWeight, &|p| {
            p.combine = Combine::Average;
            (p.references[0].weight, p.references[1].weight) = (1.0, -1.0);
        }),
        (Field::ReferenceWeight, &|p| {
            p.combine = Combine::Add;
            p.scales = 1e30.into();
            p.references[1].weight = 1e30;
        }),
        (Field::ReferenceMask, &|p| p.references[0].mask = Some(mask(0, 255))),
        (Field::ReferenceMask, &|p| {
            masked(p);
            p.references.push(embedding(1).into());
        }),
        (Field::Combine, &|p| {
            masked(p);
            p.combine = Combine::Average;
        }),
        (Field::NegativeImage, &|p| p.negative_image = Some(ReferenceImage::Embedding(vec![0.5; 23]))),
        (Field::NegativeImage, &|p| {
            p.references.clear();
            p.negative_image = Some(embedding(3));
        }),
        (Field::ImagePrompts, &|p| {
            p.combine = Combine::Add;
            p.references = vec![embedding(0).into(); 17];
        }),
        (Field::ImagePrompts, &|p| {
            p.references = vec![Reference::new(embedding(0)).with_mask(mask(9, 9)); 17];
        }),
        (Field::ScaleBlocks, &|p| p.scales = Scales::parse(r#"{"up": {"block_0": [1]}}"#, 1.0).unwrap()),
    ];
    for (i, (field, change)) in bad.iter().enumerate() {
        let error = refused(generate(&pipeline, &with(change)), field.name());
        assert!(matches!(&error, Error::Parameter { field: named, .. } if named == field), "{i}: {field}: {error}");
    }
    assert_eq!(generate(&pipeline, &base()).unwrap(), before);
    assert!(Scales::parse("strong", 1.0).unwrap_err().to_string().contains("strong-style"));
}

/// Another weight, mask, part of the steps, block or negative image: the image is another one, nothing is compiled, and no file
/// is opened, as there is none any more.
#[test]
fn changes_compile_nothing() {
    let plain: [Change<'_>; 8] = [
        &|p| p.references[1].weight = 0.25,
        &|p| p.start = 0.3,
        &|p| p.end = 0.7,
        &|p| p.scales = Scales::parse("style", 1.0).unwrap(),
        &|p| p.scales = Scales::parse("composition", 1.0).unwrap(),
        &|p| p.scales = Scales::parse("strong-style", 0.5).unwrap(),
        &|p| p.scales = Scales::parse("precise-style", 1.0).unwrap(),
        &|p| p.negative_image = Some(embedding(9)),
    ];
    let masks: [Change<'_>; 5] = [
        &|p| p.references[0].mask = Some(mask(200, 10)),
        &|p| p.references[1].weight = -0.5,
        &|p| p.scales = 0.4.into(),
        &|p| p.start = 0.5,
        &|p| p.negative_image = Some(embedding(4)),
    ];
    let model = Model::folder();
    let pipeline = model.load().unwrap();
    std::fs::remove_dir_all(model.dir.path()).unwrap();
    let starts: [(Change<'_>, &[Change<'_>]); 2] = [(&|_| (), &plain), (&masked, &masks)];
    for (start, changes) in starts {
        let (first, built) = compiled(|| generate(&pipeline, &with(start)).unwrap());
        assert!(built > 0);
        for (i, change) in changes.iter().enumerate() {
            let request = with(&|prompt| {
                start(prompt);
                change(prompt);
            });
            let (other, built) = compiled(|| generate(&pipeline, &request).unwrap());
            assert_eq!(built, 0, "change {i}");
            assert!(other != first, "change {i} changes nothing");
        }
        let (again, built) = compiled(|| generate(&pipeline, &with(start)).unwrap());
        assert_eq!((again == first, built), (true, 0));
    }
}

/// The same image in other words, byte for byte.
#[test]
fn equal_image_prompts() {
    let pipeline = Model::folder().load().unwrap();
    let one = |prompt: &mut ImagePrompt| prompt.references.truncate(1);
    let pairs: [(&str, Change<'_>, Change<'_>); 7] = [
        ("no step and scale 0", &|p| (p.start, p.end) = (0.5, 0.5), &|p| p.scales = 0.0.into()),
        (
            "a mean of weights 0 and scale 0",
            &|p| {
                p.combine = Combine::Average;
                p.references.iter_mut().for_each(|reference| reference.weight = 0.0);
            },
            &|p| p.scales = 0.0.into(),
        ),
        (
            "a weight of 0 and one reference, as sums",
            &|p| {
                p.combine = Combine::Add;
                p.references[1].weight = 0.0;
            },
            &|p| one(p),
        ),
        (
            "one weight and the scale",
            &|p| {
                one(p);
                p.references[0].weight = 0.5;
            },
            &|p| {
                one(p);
                p.scales = 0.5.into();
            },
        ),
        (
            "the mean of one",
            &|p| {
                one(p);
                p.combine = Combine::Average;
                p.references[0].weight = 0.5;
            },
            &|p| one(p),
        ),
        (
            "a mean of equals",
            &|p| {
                p.combine = Combine::Average;
                p.references[1] = p.references[0].clone();
            },
            &|p| one(p),
        ),
        (
            "black masks",
            &|p| {
                masked(p);
                p.references.iter_mut().for_each(|reference| reference.mask = Some(mask(0, 0)));
            },
            &|p| p.scales = 0.0.into(),
        ),
    ];
    for (name, first, second) in pairs {
        assert_eq!(generate(&pipeline, &with(first)).unwrap(), generate(&pipeline, &with(second)).unwrap(), "{name}");
    }
    // Without guidance the negative image has no part.
    let unguided = |change: Change<'_>| {
        let mut request = with(change);
        request.guidance_scale = 1.0;
        generate(&pipeline, &request).unwrap()
    };
    assert_eq!(unguided(&|p| p.negative_image = Some(embedding(9))), unguided(&|_| ()));
    // Two images of a request are those of two requests.
    let mut request = with(&masked);
    request.num_images = 2;
    let both = generate(&pipeline, &request).unwrap();
    (request.num_images, request.seed) = (1, request.seed + 1);
    assert_eq!(both[both.len() / 2..], generate(&pipeline, &request).unwrap());
}
