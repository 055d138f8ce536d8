//! Maps of where each reference acted: the images are the same, and the maps show what weights, masks and scales say.

use super::*;
use braid::AttributionMap;
use braid::error::Field;
use braid::pipeline::{Combine, Reference};

fn embedding(seed: usize) -> Reference {
    let values = (0..24).map(|i| ((i * 5 + 7 * seed) % 24) as f32 / 24.0).collect();
    Reference::from(ReferenceImage::Embedding(values))
}

const SIDE: usize = 128;

/// White on the left half, or on the right one; as large as the image, so that no layer sees an edge between two values.
fn half(left: bool) -> Image {
    let white = |i: usize| (i % SIDE < SIDE / 2) == left;
    Image::new(SIDE, SIDE, (0..SIDE * SIDE).flat_map(|i| [u8::from(white(i)) * 255; 3]).collect()).unwrap()
}

fn asked(references: Vec<Reference>, combine: Combine) -> Request {
    let mut r = request();
    (r.width, r.height) = (Some(SIDE), Some(SIDE));
    let prompt = &mut r.image_prompts[0];
    (prompt.references, prompt.combine) = (references, combine);
    r.with_attribution(true)
}

fn maps(pipeline: &Pipeline, request: &Request) -> Vec<AttributionMap> {
    let maps = pipeline.generate(request).unwrap().attributions;
    for map in &maps {
        assert_eq!(map.values.len(), map.width * map.height);
        assert!(map.values.iter().all(|v| (0.0..=1.0).contains(v)), "{map:?}");
    }
    maps
}

/// Requests of all kinds: with maps and without the images are the same, alone and beside one another, and so are the maps.
#[test]
fn same_images() {
    let masked = |left| embedding(3).with_mask(half(left));
    let guided = asked(vec![embedding(1)], Combine::Concat).with_num_images(2);
    let one_row = asked(vec![embedding(1)], Combine::Concat).with_guidance_scale(1.0);
    let several = asked(vec![embedding(1), embedding(2).with_weight(0.5)], Combine::Concat);
    let added = asked(vec![embedding(1), embedding(2).with_weight(-0.5)], Combine::Add);
    let averaged = asked(vec![embedding(1), embedding(2)], Combine::Average).with_seed(3);
    let masks = asked(vec![masked(true), masked(false)], Combine::Concat);
    let requests = [guided, one_row, several, added, averaged, masks];
    let (alone, together) = (Model::folder(), Model::folder());
    let (alone, together) = (alone.load().unwrap(), Pipeline::load(&together.options().with_max_batch(8)).unwrap());
    let plain = requests.clone().map(|r| r.with_attribution(false));
    let all: Vec<Request> = requests.iter().chain(&plain).cloned().collect();
    let drawn = together.generate_batch(&all);
    for (i, request) in requests.iter().enumerate() {
        let want = alone.generate(&plain[i]).unwrap();
        let got = alone.generate(request).unwrap();
        assert!(want.attributions.is_empty() && !got.attributions.is_empty(), "{i}");
        assert!(got.images == want.images, "{i}: the image is another one");
        let [with, without] = [&drawn[i], &drawn[i + requests.len()]].map(|output| output.as_ref().unwrap());
        assert!(with.images == want.images && without.images == want.images, "{i} together");
        assert!(with.attributions == got.attributions && without.attributions.is_empty(), "{i} together");
    }
}

/// Each side of the UNet, each size, each reference of each image has a map, in the order of evaluation.
#[test]
fn groups_and_references() {
    let pipeline = Model::folder().load().unwrap();
    let request = asked(vec![embedding(1), embedding(2)], Combine::Concat).with_num_images(2);
    let maps = maps(&pipeline, &request);
    let found: Vec<_> = maps.iter().map(|map| (map.image, map.group.as_str(), map.adapter, map.reference)).collect();
    let groups: Vec<&str> = found.iter().filter(|map| (map.0, map.3) == (0, 0)).map(|map| map.1).collect();
    assert!(
        groups.len() >= 3 && groups[0].starts_with("down ") && groups.iter().any(|group| group.starts_with("mid "))
    );
    assert!(groups[groups.len() - 1].starts_with("up "), "{groups:?}");
    let of = |image| groups.iter().flat_map(move |group| [0, 1].map(|reference| (image, *group, 0, reference)));
    assert_eq!(found, of(0).chain(of(1)).collect::<Vec<_>>());
    for map in &maps {
        assert!(map.group.ends_with(&format!(" {}x{}", map.width, map.height)));
        assert!(map.values.iter().all(|v| *v > 0.0 && *v < 1.0), "{map:?}");
    }
}

/// Groups of an image that is no square have their feature maps' width and height.
#[test]
fn wide_images() {
    let pipeline = Model::folder().load().unwrap();
    let mut request = asked(vec![embedding(1)], Combine::Concat);
    request.height = Some(SIDE / 2);
    let maps = maps(&pipeline, &request);
    assert!(maps.iter().all(|map| map.width == 2 * map.height && !map.values.is_empty()), "{maps:?}");
    assert!(maps.iter().all(|map| map.group.ends_with(&format!(" {}x{}", map.width, map.height))));
}

#[test]
fn masked_halves() {
    let pipeline = Model::folder().load().unwrap();
    let both = [true, false].map(|left| embedding(1).with_mask(half(left)));
    let maps = maps(&pipeline, &asked(both.to_vec(), Combine::Concat));
    for map in &maps {
        for (i, value) in map.values.iter().enumerate() {
            let left = i % map.width < map.width / 2;
            assert_eq!(*value > 0.0, left == (map.reference == 0), "{} {i}: {value}", map.group);
        }
    }
    assert!(maps.iter().any(|map| map.width >= 8));
}

/// Nothing where the scale is 0, where the reference's weight is 0, and in blocks without the adapter; less in half of the steps.
#[test]
fn absent_references() {
    let pipeline = Model::folder().load().unwrap();
    let of = |change: &dyn Fn(&mut ImagePrompt)| {
        let mut request = asked(vec![embedding(1), embedding(2)], Combine::Concat);
        change(&mut request.image_prompts[0]);
        maps(&pipeline, &request)
    };
    assert!(of(&|p| p.scales = 0.0.into()).iter().all(|map| map.values.iter().all(|v| *v == 0.0)));
    for map in of(&|p| p.references[1].weight = 0.0) {
        assert_eq!(map.values.iter().all(|v| *v == 0.0), map.reference == 1, "{}", map.group);
    }
    let style = of(&|p| p.scales = Scales::parse("style", 1.0).unwrap());
    assert!(style.iter().any(|map| map.values.iter().all(|v| *v == 0.0)));
    assert!(style.iter().any(|map| map.group.starts_with("up ") && map.values.iter().all(|v| *v > 0.0)));
    let (whole, part) = (of(&|_| ()), of(&|p| p.end = 0.5));
    let sum = |maps: &[AttributionMap]| maps.iter().flat_map(|map| &map.values).map(|v| f64::from(*v)).sum::<f64>();
    assert!(sum(&part) > 0.0 && sum(&part) < sum(&whole), "{} of {}", sum(&part), sum(&whole));
}

/// A reference twice, by halves, has together the part that it has once: the vectors are parallel. Two others have less together than
/// all.
#[test]
fn parts_that_add_up() {
    let pipeline = Model::folder().load().unwrap();
    let of = |references: Vec<Reference>, combine| maps(&pipeline, &asked(references, combine));
    let once = of(vec![embedding(1)], Combine::Concat);
    let halves = of(vec![embedding(1).with_weight(0.5), embedding(1).with_weight(0.5)], Combine::Add);
    let shared = of(vec![embedding(1), embedding(1)], Combine::Concat);
    for (name, twice) in [("two softmaxes", halves), ("one softmax", shared)] {
        for (map, pair) in once.iter().zip(twice.chunks(2)) {
            assert_eq!((&map.group, pair[0].reference, pair[1].reference), (&pair[0].group, 0, 1));
            for (i, one) in map.values.iter().enumerate() {
                let [a, b] = [pair[0].values[i], pair[1].values[i]];
                assert!((a - b).abs() < 1e-4 * one && (a + b - one).abs() < 1e-3 * one, "{name}: {a} + {b}, {one}");
            }
        }
    }
    let others = of(vec![embedding(1), embedding(2)], Combine::Add);
    for pair in others.chunks(2) {
        assert!(pair[0].values != pair[1].values);
        assert!(pair[0].values.iter().zip(&pair[1].values).all(|(a, b)| a + b < 1.0));
    }
}

#[test]
fn without_references() {
    let pipeline = Model::folder().load().unwrap();
    let mut request = asked(vec![embedding(1)], Combine::Concat);
    request.image_prompts.clear();
    let error = refused(pipeline.generate(&request), "maps of no reference");
    assert!(matches!(error, Error::Parameter { field: Field::Attribution, .. }), "{error}");
    assert!(error.to_string().contains("image_prompts"), "{error}");
    request.image_prompts = vec![ImagePrompt::default()];
    refused(pipeline.generate(&request), "maps of an empty image prompt");
}
