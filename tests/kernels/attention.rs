use crate::common::*;
use braid::device::cuda::ops::attention::AttentionParams;
use braid::device::cuda::ops::branches::{DecoupledParams, KvBranch, MAX_BRANCHES};
use braid::device::cuda::ops::kernel::{Pointer, blocks};
use braid::device::cuda::ops::strided_tensor::{StridedTensor, softmax_scale};
use braid::device::cuda::ops::{attention, attention_sm90, decoupled, decoupled_sm90};
use braid::tensor::DType;
use braid_ptx::Schedule;

/// softmax(q k^T / sqrt dim) v of one head; rows `dim` wide.
fn softmax(q: &[f32], k: &[f32], v: &[f32], dim: usize, causal: bool) -> Vec<f64> {
    let mut out = Vec::new();
    for (t, q) in q.chunks_exact(dim).enumerate() {
        let seen = if causal { t + 1 } else { usize::MAX };
        let dot = |k: &[f32]| q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let scores: Vec<f64> = k.chunks_exact(dim).take(seen).map(|k| dot(k) / (dim as f64).sqrt()).collect();
        let max = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let column = |i: usize| {
            weights.iter().zip(v.chunks_exact(dim)).map(|(w, v)| w * f64::from(v[i])).sum::<f64>() / sum.max(1e-300)
        };
        out.extend((0..dim).map(column));
    }
    out
}

/// The columns of one head of one image.
fn head(x: &[f32], tokens: std::ops::Range<usize>, width: usize, from: usize, dim: usize) -> Vec<f32> {
    tokens.flat_map(|t| x[t * width + from..][..dim].to_vec()).collect()
}

fn rows(data: Pointer, tokens: usize, width: usize, dim: usize) -> StridedTensor {
    StridedTensor { data, batch: (tokens * width) as i64, row: width as i64, head_stride: dim as i64 }
}

fn column(data: Pointer, columns: usize) -> Pointer {
    Pointer(data.0 + columns as u64 * 2)
}

struct Case {
    dim: usize,
    heads: usize,
    images: usize,
    tokens: usize,
    causal: bool,
    counts: Option<Vec<i32>>,
    /// Factor of the inputs: large ones make a softmax of few keys.
    gain: f32,
}

/// A fused [B, T, 3 C] tensor, read in place.
fn self_attention(dtype: DType, case: &Case) -> Vec<f32> {
    let Case { dim, heads, images, tokens, causal, counts, gain } = case;
    let (dim, heads, images, tokens, causal) = (*dim, *heads, *images, *tokens, *causal);
    let c = heads * dim;
    let x: Vec<f32> = values(images * tokens * 3 * c, 11).iter().map(|x| x * gain).collect();
    let x = rounded(dtype, &x);
    let gpu = Gpu::new();
    let at = gpu.upload(dtype, &x);
    let out = gpu.room(images * tokens * c * 2);
    let fused = |part: usize| rows(column(at, part * c), tokens, 3 * c, dim);
    let config = attention::choose(dim).unwrap();
    let (name, block) = (config.kernel.name, config.queries);
    let params = AttentionParams {
        q: fused(0),
        k: fused(1),
        v: fused(2),
        out: rows(out, tokens, c, dim),
        counts: counts.as_ref().map_or(Pointer(0), |c| gpu.i32(c)),
        queries: tokens as i32,
        keys: tokens as i32,
        dim: dim as i32,
        causal: causal.into(),
        scale: softmax_scale(dim),
        reserved: 0,
    };
    gpu.launch(name, dtype, [blocks(tokens, block), heads as u32, images as u32], &params);
    let mut want = vec![0.0; images * tokens * c];
    for image in 0..images {
        let count = counts.as_ref().map_or(tokens, |c| tokens.min(c[image] as usize));
        for h in 0..heads {
            let part =
                |part: usize, n: usize| head(&x, image * tokens..image * tokens + n, 3 * c, part * c + h * dim, dim);
            let exact = softmax(&part(0, tokens), &part(1, count), &part(2, count), dim, causal);
            for t in 0..tokens {
                want[(image * tokens + t) * c + h * dim..][..dim].copy_from_slice(&exact[t * dim..][..dim]);
            }
        }
    }
    let got = gpu.download(dtype, out, want.len());
    let bound = if dtype == DType::F16 { 8e-4 } else { 6e-3 };
    within(&format!("{dtype} {dim} {tokens} causal {causal} {counts:?}"), bound, &got, &want);
    got
}

#[test]
fn head_sizes_and_odd_lengths() {
    if !compiled() {
        return;
    }
    let case = |dim, tokens| Case { dim, heads: 2, images: 1, tokens, causal: false, counts: None, gain: 2.0 };
    for dtype in HALVES {
        for (dim, tokens) in
            [(64, 1), (64, 77), (64, 130), (80, 33), (80, 65), (104, 17), (104, 66), (40, 20), (8, 70), (112, 64)]
        {
            self_attention(dtype, &case(dim, tokens));
        }
    }
}

#[test]
fn causal_attention_and_lengths() {
    if !compiled() {
        return;
    }
    for dtype in HALVES {
        for (tokens, counts) in
            [(77, None), (130, None), (77, Some(vec![5, 77])), (70, Some(vec![0, 64])), (65, Some(vec![99, 65]))]
        {
            for causal in [true, false] {
                let images = 2;
                self_attention(
                    dtype,
                    &Case { dim: 64, heads: 1, images, tokens, causal, counts: counts.clone(), gain: 6.0 },
                );
            }
        }
    }
    self_attention(
        DType::F16,
        &Case { dim: 104, heads: 1, images: 1, tokens: 70, causal: true, counts: None, gain: 3.0 },
    );
}

#[test]
fn batch_invariance() {
    if !compiled() {
        return;
    }
    let run = |images| {
        let case = Case { dim: 64, heads: 2, images, tokens: 70, causal: false, counts: None, gain: 3.0 };
        self_attention(DType::F16, &case)
    };
    let (alone, batch) = (run(1), run(4));
    assert_eq!(alone[..], batch[..alone.len()]);
}

/// Values that are not finite stay in their row, and keys that do not count are not read.
#[test]
fn not_finite_row() {
    if !compiled() {
        return;
    }
    let (dtype, tokens, dim) = (DType::F16, 70, 40);
    let gpu = Gpu::new();
    let [mut q, k, v] = [1, 2, 3].map(|seed| rounded(dtype, &values(tokens * dim, seed)));
    let want = softmax(&q, &k, &v, dim, false);
    q[0] = f32::NAN;
    let at = |x: &[f32]| rows(gpu.upload(dtype, x), tokens, dim, dim);
    let (q, k, v, queries, scale) = (at(&q), at(&k), at(&v), tokens as i32, softmax_scale(dim));
    let out = gpu.room(tokens * dim * 2);
    let check = |name: &str| {
        let got = gpu.download(dtype, out, tokens * dim);
        assert!(got[..dim].iter().all(|x| x.is_nan()), "{name}");
        within(name, 8e-4, &got[dim..], &want[dim..]);
    };
    let params = AttentionParams {
        q,
        k,
        v,
        out: rows(out, tokens, dim, dim),
        queries,
        keys: queries,
        dim: dim as i32,
        scale,
        ..AttentionParams::default()
    };
    gpu.launch("attention_64", dtype, [1, 1, 1], &params);
    check("attention");
    let mut decoupled = DecoupledParams {
        q,
        out: params.out,
        counts: gpu.i32(&[queries]),
        scales: gpu.f32(&[0.0]),
        queries,
        dim: dim as i32,
        branches: 1,
        batch: 1,
        scale,
        ..DecoupledParams::default()
    };
    decoupled.branch[0] = KvBranch { k, v, mask: Pointer(0), mask_batch: 0, capacity: queries, reserved: 0 };
    gpu.launch("decoupled_64", dtype, [2, 1, 1], &decoupled);
    check("decoupled");
    let unwritten = rows(gpu.room(tokens * dim * 2), tokens, dim, dim);
    let none = AttentionParams { k: unwritten, v: unwritten, counts: gpu.i32(&[0]), ..params };
    gpu.launch("attention_64", dtype, [1, 1, 1], &none);
    assert_eq!(gpu.download(dtype, out, tokens * dim), vec![0.0; tokens * dim]);
}

struct Branch {
    capacity: usize,
    counts: Vec<i32>,
    scales: Vec<f32>,
    mask: bool,
    /// Whether K and V are never written.
    unwritten: bool,
}

/// Text keys and values in [B, T, 2 C], each branch in a tensor of its own.
fn decoupled(dtype: DType, dim: usize, heads: usize, images: usize, queries: usize, branches: &[Branch]) {
    decoupled_of(3.0, dtype, [dim, heads, images, queries], branches);
}

/// `gain` is the factor of the queries. The result of sm_90a's kernel, where there is one.
fn decoupled_of(
    gain: f32,
    dtype: DType,
    [dim, heads, images, queries]: [usize; 4],
    branches: &[Branch],
) -> Option<Vec<f32>> {
    let c = heads * dim;
    let gpu = Gpu::new();
    let q = rounded(dtype, &values(images * queries * c, 3).iter().map(|x| x * gain).collect::<Vec<_>>());
    let out = gpu.room(images * queries * c * 2);
    let mut params = DecoupledParams {
        q: rows(gpu.upload(dtype, &q), queries, c, dim),
        out: rows(out, queries, c, dim),
        queries: queries as i32,
        dim: dim as i32,
        branches: branches.len() as i32,
        batch: images as i32,
        scale: softmax_scale(dim),
        ..DecoupledParams::default()
    };
    let mut want = vec![0.0; images * queries * c];
    let (mut counts, mut scales) = (Vec::new(), Vec::new());
    for (b, branch) in branches.iter().enumerate() {
        let kv = rounded(dtype, &values(images * branch.capacity * 2 * c, 20 + b as u32));
        let at = if branch.unwritten { gpu.room(kv.len() * 2) } else { gpu.upload(dtype, &kv) };
        let mask: Vec<f32> = (0..images * queries).map(|i| (i % 7) as f32 / 6.0).collect();
        params.branch[b] = KvBranch {
            k: rows(at, branch.capacity, 2 * c, dim),
            v: rows(column(at, c), branch.capacity, 2 * c, dim),
            mask: if branch.mask { gpu.f32(&mask) } else { Pointer(0) },
            mask_batch: if branch.mask { queries as i64 } else { 0 },
            capacity: branch.capacity as i32,
            reserved: 0,
        };
        counts.extend_from_slice(&branch.counts);
        if b > 0 {
            scales.extend_from_slice(&branch.scales);
        }
        for image in 0..images {
            let scale = if b == 0 { 1.0 } else { branch.scales[image] };
            if scale == 0.0 {
                continue;
            }
            let n = (branch.counts[image] as usize).min(branch.capacity);
            for h in 0..heads {
                let part = |part: usize| {
                    let from = image * branch.capacity;
                    head(&kv, from..from + n, 2 * c, part * c + h * dim, dim)
                };
                let q = head(&q, image * queries..(image + 1) * queries, c, h * dim, dim);
                let exact = softmax(&q, &part(0), &part(1), dim, false);
                for t in 0..queries {
                    let factor =
                        f64::from(scale) * if branch.mask { f64::from(mask[image * queries + t]) } else { 1.0 };
                    for i in 0..dim {
                        want[(image * queries + t) * c + h * dim + i] += factor * exact[t * dim + i];
                    }
                }
            }
        }
    }
    params.counts = gpu.i32(&counts);
    params.scales = gpu.f32(&scales);
    let (name, block) = (decoupled::choose(dim).unwrap().name, decoupled::QUERIES);
    gpu.launch(name, dtype, [blocks(queries, block), heads as u32, images as u32], &params);
    let got = gpu.download(dtype, out, want.len());
    let bound = if dtype == DType::F16 { 8e-4 } else { 6e-3 };
    within(&format!("{dtype} {dim} {queries} {}", branches.len()), bound, &got, &want);
    // Tiles of few queries are not worth that kernel's while, but it can do them.
    if !compiled_for_hopper() || !attention_sm90::takes(queries.max(128), dim, (9, 0)) {
        return None;
    }
    let (params, maps) = decoupled_sm90::params(params, heads, dtype);
    let mut first = None;
    for (blocks, schedule) in [(1, Schedule::InOrder), (3, Schedule::Greedy), (2, Schedule::Random(5))] {
        gpu.put(out, dtype, &vec![f32::NAN; want.len()]);
        gpu.mapped("decoupled_sm90_64", dtype, [blocks, 1, 1], &params, &maps, &[schedule]);
        let got = gpu.download(dtype, out, want.len());
        within(&format!("sm_90a: {dtype} {queries} {}", branches.len()), bound, &got, &want);
        assert!(*first.get_or_insert_with(|| got.clone()) == got, "blocks or schedule change a result");
    }
    first
}

/// Branches that are not an image's own change nothing of it, however many keys they have.
#[test]
fn branches_of_others() {
    if !compiled() {
        return;
    }
    let text = || Branch { capacity: 77, counts: vec![77, 40], scales: vec![], mask: false, unwritten: false };
    let other = Branch { capacity: 600, counts: vec![0, 600], scales: vec![0.0, 1.0], mask: false, unwritten: false };
    let sizes = [64, 2, 2, 140];
    let alone = decoupled_of(3.0, DType::F16, sizes, &[text()]);
    let beside = decoupled_of(3.0, DType::F16, sizes, &[text(), other]);
    if let (Some(alone), Some(beside)) = (alone, beside) {
        let first = alone.len() / 2;
        assert_eq!(alone[..first], beside[..first]);
        assert_ne!(alone[first..], beside[first..]);
    }
}

/// A text and one branch beside it, whose tiles follow each other as steps do on sm_90a: over several heads, of images whose branches
/// are others.
#[test]
fn text_and_another_branch() {
    if !compiled() {
        return;
    }
    let branch = |capacity: usize, counts: [i32; 2], scales: [f32; 2], mask: bool| {
        let (counts, scales) = (counts.to_vec(), scales.to_vec());
        Branch { capacity, counts, scales, mask, unwritten: false }
    };
    let sizes = [64, 2, 2, 140];
    // Both beside another branch, the one of 8 columns and the other of 16; then one beside two, and one alone.
    let two = [branch(80, [80, 65], [1.0; 2], false), branch(16, [8, 9], [0.7, -0.4], true)];
    decoupled_of(3.0, DType::F16, sizes, &two);
    let three = [
        branch(77, [77, 77], [1.0; 2], false),
        branch(4, [4, 3], [0.7, 0.0], false),
        branch(16, [16, 1], [0.5, 0.0], true),
    ];
    decoupled_of(3.0, DType::BF16, sizes, &three);
}

#[test]
fn decoupled_softmaxes() {
    if !compiled() {
        return;
    }
    let branch = |capacity: usize, scale: f32| Branch {
        capacity,
        counts: vec![capacity as i32; 2],
        scales: vec![scale, -0.5 * scale],
        mask: false,
        unwritten: false,
    };
    for dtype in HALVES {
        decoupled(dtype, 64, 2, 2, 70, &[branch(77, 1.0), branch(4, 0.7)]);
        decoupled(dtype, 64, 1, 2, 33, &[branch(154, 1.0), branch(16, 1.0), branch(80, 0.3), branch(4, 1.3)]);
        decoupled(dtype, 64, 1, 2, 5, &[branch(1, 1.0)]);
        // More than a tile of queries, and branches whose keys are cut by 80 and 16.
        decoupled(dtype, 64, 1, 2, 150, &[branch(90, 1.0), branch(17, 0.5)]);
        // More keys than fit into shared memory at once, in one branch and in all.
        decoupled(dtype, 64, 1, 2, 150, &[branch(77, 1.0), branch(570, 0.5), branch(16, 1.0)]);
        decoupled(dtype, 80, 1, 2, 17, &[branch(20, 1.0), branch(4, 0.5)]);
        decoupled(dtype, 104, 1, 2, 17, &[branch(65, 1.0), branch(5, 0.5)]);
    }
    // Scores whose exponentials overflow without their own greatest taken off first, or with that of another branch.
    for dtype in HALVES {
        decoupled_of(80.0, dtype, [64, 1, 2, 20], &[branch(77, 1.0), branch(4, 1.0), branch(70, 1.0)]);
    }
    // Few keys, whose scores are far below zero in some rows.
    decoupled_of(80.0, DType::F16, [64, 1, 2, 70], &[branch(1, 1.0), branch(2, 1.0)]);
    decoupled_of(80.0, DType::BF16, [64, 1, 2, 70], &[branch(2, 1.0), branch(1, 1.0)]);
    // More image tokens than text, and counts past the capacity.
    let past = Branch { counts: vec![99, 16], ..branch(16, 0.8) };
    decoupled(DType::F16, 64, 1, 2, 20, &[branch(5, 1.0), past]);
    // No branch at all counts: the queries' copy is all that is waited for.
    for dtype in HALVES {
        let empty = |capacity| Branch { counts: vec![0; 2], ..branch(capacity, 1.0) };
        decoupled(dtype, 64, 1, 2, 70, &[empty(77)]);
        decoupled(dtype, 64, 1, 2, 70, &[empty(77), empty(4)]);
    }
    // As many branches as there can be.
    let mut all = vec![branch(77, 1.0)];
    all.extend((1..MAX_BRANCHES).map(|b| branch(4 * b, 0.1 * b as f32)));
    decoupled(DType::F16, 64, 1, 2, 20, &all);
}

#[test]
fn zero_scale_branch() {
    if !compiled() {
        return;
    }
    let text = || Branch { capacity: 77, counts: vec![77, 9], scales: vec![], mask: false, unwritten: false };
    let unwritten =
        |scales: Vec<f32>, counts: Vec<i32>| Branch { capacity: 16, counts, scales, mask: false, unwritten: true };
    let masked = || Branch { capacity: 16, counts: vec![16, 3], scales: vec![1.0, 0.5], mask: true, unwritten: false };
    for dtype in HALVES {
        decoupled(dtype, 64, 1, 2, 40, &[text(), unwritten(vec![0.0, 0.0], vec![16, 16])]);
        decoupled(dtype, 64, 1, 2, 40, &[text(), unwritten(vec![0.0, 1.0], vec![16, 0]), masked()]);
        decoupled(dtype, 64, 1, 2, 40, &[text(), masked(), unwritten(vec![1.0, 0.0], vec![0, 4]), masked()]);
    }
}
