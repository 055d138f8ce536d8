//! Attention with branches of keys, each with a softmax of its own.

use crate::reference::Attention;
use crate::table::{Case, CaseBuilder, operation};
use braid::graph::{ChannelSlice, KvBranch, NodeId};

/// A branch over rows of keys and values, side by side.
#[derive(Default)]
struct Branch {
    operand: usize,
    length: Option<usize>,
    /// The operand of the scales and its element for the first image.
    scale: Option<(usize, usize)>,
    /// A factor for each query.
    mask: Option<Vec<f32>>,
}

/// A query, then lengths, then scales, then keys with values.
struct Operands {
    heads: usize,
    query: Vec<usize>,
    lengths: Vec<i32>,
    scales: (Vec<usize>, Vec<f32>),
    /// Shape [images, keys, 2 * channels].
    kv: Vec<Vec<f32>>,
}

fn case(name: &str, o: &Operands, branches: &[Branch], kernel: Option<&'static str>) -> Case {
    let (images, channels) = (o.query[0], *o.query.last().unwrap());
    let tokens: usize = o.query[1..o.query.len() - 1].iter().product();
    let mut c = CaseBuilder::new(name);
    let (qi, q) = c.input("i", &o.query, 1);
    let mut operands: Vec<NodeId> = vec![qi];
    operands.push(c.integers("i", &[images], &o.lengths));
    operands.push(c.given("i", &o.scales.0, o.scales.1.clone()).0);
    let keys = |kv: &[f32]| kv.len() / images / channels / 2;
    let kv: Vec<Vec<f64>> = o.kv.iter().map(|kv| kv.iter().map(|v| f64::from(*v)).collect()).collect();
    for kv in &o.kv {
        operands.push(c.given("i", &[images, keys(kv), 2 * channels], kv.clone()).0);
    }
    let slice = |operand, start| ChannelSlice { operand, start };
    let masks: Vec<Option<usize>> = branches
        .iter()
        .map(|b| {
            let mask = b.mask.clone()?;
            operands.push(c.given("i", &[mask.len()], mask).0);
            Some(operands.len() - 1)
        })
        .collect();
    let declared = branches.iter().zip(masks).map(|(b, mask)| KvBranch {
        keys: slice(b.operand, 0),
        values: slice(b.operand, channels),
        length: b.length,
        scale: b.scale,
        mask,
    });
    let y = c.graph.decoupled_attention(&operands, o.heads, false, declared.collect());

    let attention = Attention { heads: o.heads, dim: channels / o.heads, causal: false };
    let mut want = vec![0.0; q.len()];
    for (image, want) in want.chunks_mut(tokens * channels).enumerate() {
        for branch in branches {
            let weight = branch.scale.map_or(1.0, |(_, start)| f64::from(o.scales.1[start + image]));
            // A zero skips: the keys may hold anything.
            if weight == 0.0 {
                continue;
            }
            let keys = keys(&o.kv[branch.operand - 3]);
            let rows =
                kv[branch.operand - 3][image * keys * 2 * channels..][..keys * 2 * channels].chunks(2 * channels);
            let k: Vec<f64> = rows.clone().flat_map(|row| row[..channels].to_vec()).collect();
            let v: Vec<f64> = rows.flat_map(|row| row[channels..].to_vec()).collect();
            let seen = branch.length.map_or(keys, |_| o.lengths[image] as usize);
            let q = &q[image * tokens * channels..][..tokens * channels];
            let masked = |at: usize| branch.mask.as_ref().map_or(1.0, |mask| f64::from(mask[at / channels]));
            let parts = attention.apply(q, &k, &v, seen).into_iter().enumerate();
            want.iter_mut().zip(parts).for_each(|(sum, (at, part))| *sum += weight * masked(at) * part);
        }
    }
    c.output(y, want);
    kernel.into_iter().for_each(|kernel| c.launches(kernel));
    c.finish()
}

/// Text with lengths and two adapters; the second adapter counts in one image alone, and its keys for the other hold no numbers.
fn text_and_adapters() -> Case {
    use crate::interpreter::values;
    let (c, text, image) = (80, 154, 8);
    let mut kv = [values(2 * text * 2 * c, 2), values(2 * image * 2 * c, 3), values(2 * image * 2 * c, 4)];
    kv[2][..image * 2 * c].fill(f32::NAN);
    let operands = Operands {
        heads: 2,
        query: vec![2, 5, 6, c],
        lengths: vec![154, 77],
        // [layer, adapter, image]; the second layer's are used.
        scales: (vec![2, 2, 2], vec![9.0, 9.0, 9.0, 9.0, 0.6, 1.0, 0.0, -0.5]),
        kv: kv.to_vec(),
    };
    let branches = [
        Branch { operand: 3, length: Some(1), ..Branch::default() },
        Branch { operand: 4, scale: Some((2, 4)), ..Branch::default() },
        Branch { operand: 5, scale: Some((2, 6)), ..Branch::default() },
    ];
    case("text and two adapters", &operands, &branches, Some("decoupled_64"))
}

/// Two attentions over the same rows, each with lengths of its own.
fn two_lengths() -> Case {
    let (c, keys) = (16, 9);
    let mut b = CaseBuilder::new("two attentions with lengths of their own");
    let (qi, q) = b.input("q", &[2, 4, c], 1);
    let (ki, kv) = b.input("kv", &[2, keys, 2 * c], 2);
    let lengths = [[9, 3], [2, 7]];
    let ids = lengths.map(|lengths| b.integers("lengths", &[2], &lengths));
    let slice = |start| ChannelSlice { operand: 1, start };
    for (id, lengths) in ids.into_iter().zip(lengths) {
        let branch = KvBranch { keys: slice(0), values: slice(c), length: Some(2), scale: None, mask: None };
        let y = b.graph.decoupled_attention(&[qi, ki, id], 1, false, vec![branch]);
        let image = |(i, seen): (usize, i32)| {
            let rows = kv[i * keys * 2 * c..][..keys * 2 * c].chunks(2 * c);
            let side = |start: usize| rows.clone().flat_map(|row| row[start..start + c].to_vec()).collect::<Vec<_>>();
            let attention = Attention { heads: 1, dim: c, causal: false };
            attention.apply(&q[i * 4 * c..][..4 * c], &side(0), &side(c), seen as usize)
        };
        b.output(y, lengths.into_iter().enumerate().flat_map(image).collect());
    }
    b.finish()
}

fn cases() -> Vec<Case> {
    use crate::interpreter::values;
    let (c, keys) = (64, 21);
    let with = |scales: (Vec<usize>, Vec<f32>), kv: Vec<Vec<f32>>| Operands {
        heads: 1,
        query: vec![2, 9, c],
        lengths: vec![21, 5],
        scales,
        kv,
    };
    let two =
        with((vec![4], vec![0.5, 2.0, -1.0, 0.25]), vec![values(2 * keys * 2 * c, 2), values(2 * keys * 2 * c, 3)]);
    let branch = |operand, length, scale| Branch { operand, length, scale, mask: None };
    // Factors below 0 and above 1 too; 9 queries do not fill a block of any kernel.
    let masked = |operand, scale, seed| Branch { operand, length: None, scale, mask: Some(values(9, seed)) };
    // The text and 16 image branches of four tokens; and one more.
    let many = |count: usize| {
        let kv = (0..=count as u32).map(|i| values(2 * 4 * 2 * c, 2 + i)).collect();
        let scales = (0..2 * count).map(|i| 0.1 * i as f32 - 0.5).collect();
        let branches: Vec<Branch> =
            (0..=count).map(|i| branch(3 + i, None, i.checked_sub(1).map(|i| (2, 2 * i)))).collect();
        case(&format!("{count} adapters"), &with((vec![2 * count], scales), kv), &branches, None)
    };
    let refused = |mut case: Case, message| {
        case.cuda_refuses = Some(message);
        case
    };
    vec![
        many(16),
        refused(many(17), "18 branches; at most 17 are allowed"),
        refused(
            case("scales apart", &two, &[branch(3, None, Some((2, 0))), branch(4, None, Some((2, 1)))], None),
            "must follow one another",
        ),
        refused(
            case("one of two with a scale", &two, &[branch(3, None, Some((2, 0))), branch(4, None, None)], None),
            "the weights of the branches must follow one another",
        ),
        two_lengths(),
        text_and_adapters(),
        case("one with a scale", &two, &[branch(3, None, Some((2, 1)))], None),
        case("two without", &two, &[branch(3, None, None), branch(4, Some(1), None)], None),
        case("two with", &two, &[branch(3, Some(1), Some((2, 0))), branch(4, None, Some((2, 2)))], None),
        case("one with a length", &two, &[branch(3, Some(1), None)], None),
        case(
            "masks",
            &two,
            &[branch(3, Some(1), None), masked(4, Some((2, 0)), 5), masked(3, Some((2, 2)), 6)],
            Some("decoupled_64"),
        ),
        case("one with a mask", &two, &[masked(4, None, 7)], Some("decoupled_64")),
        // Without an adapter the operand of the scales is empty.
        case(
            "no adapter",
            &with((vec![3, 0, 2], vec![]), vec![values(2 * keys * 2 * c, 2)]),
            &[branch(3, Some(1), None)],
            None,
        ),
    ]
}

operation!(cases());
