//! A graph with everything that kernels of sm_90a compute, small enough for the interpreter: on two multiprocessors, 128 rows of 192
//! channels are enough for them to be chosen.

use super::interpreter::{values, weight_values};
use braid::graph::{Builder, Graph};
use braid::weights::{Scope, Weight, Weights};

/// Multiprocessors of the device.
pub const MULTIPROCESSORS: usize = 2;

/// The kernels that the graph is lowered to, without their tiles.
pub const KERNELS: [&str; 4] = ["attention_sm90_", "convolution_sm90_", "gemm_geglu_sm90_", "gemm_sm90_"];

const TENSORS: [(&str, &[usize]); 21] = [
    ("in.weight", &[192, 64, 3, 3]),
    ("in.bias", &[192]),
    ("half.weight", &[192, 64, 3, 3]),
    ("half.bias", &[192]),
    ("up.weight", &[192, 64, 3, 3]),
    ("up.bias", &[192]),
    ("join.weight", &[192, 256]),
    ("join.bias", &[192]),
    ("q.weight", &[192, 192]),
    ("k.weight", &[192, 192]),
    ("v.weight", &[192, 192]),
    ("ff.weight", &[384, 192]),
    ("ff.bias", &[384]),
    ("out.weight", &[192, 192]),
    ("out.bias", &[192]),
    ("last.weight", &[384]),
    ("last.bias", &[384]),
    ("doubled.weight", &[192]),
    ("doubled.bias", &[192]),
    ("mixed.weight", &[256]),
    ("mixed.bias", &[256]),
];

fn scope() -> Scope {
    let mut weights = Weights::new("test");
    for (seed, (name, shape)) in (1..).zip(TENSORS) {
        weights.insert(name, Weight::from_f32(&weight_values(shape, seed), shape, name).unwrap()).unwrap();
    }
    Scope::new(weights)
}

/// Convolutions of images of 16 by 8 pixels (plain with a bias of each image, halved, doubled), a layer over two sources, attention,
/// GEGLU, and a residual; norms of a product joined with a convolution, of the doubling, and of a convolution joined with an input. Its
/// inputs are `[images, 16, 8, 64]`, `[images, 192]` and `[images, 32, 16, 64]`.
pub fn block(images: usize) -> Graph {
    let (s, mut b) = (scope(), Builder::new());
    let x = b.input("x", &[images, 16, 8, 64]);
    let time = b.input("time", &[images, 192]);
    let large = b.input("large", &[images, 32, 16, 64]);
    let h = b.conv2d(x, &s.pp("in"), 192, 3, 1);
    let h = b.broadcast_add(h, time);
    let first = h;
    let both = b.concat(h, x);
    let both = b.reshape(both, &[images, 128, 256]);
    let h = b.linear(both, &s.pp("join"), 192);
    let [q, k, v] = ["q", "k", "v"].map(|name| b.linear_no_bias(h, &s.pp(name), 192));
    let a = b.attention(q, k, v, 3, false);
    let f = b.linear(a, &s.pp("ff"), 384);
    let f = b.geglu(f);
    let y = b.linear(f, &s.pp("out"), 192);
    let y = b.add(h, y);
    let half = b.conv2d(large, &s.pp("half"), 192, 3, 2);
    let up = b.upsample(x, 32, 16);
    let up = b.conv2d(up, &s.pp("up"), 192, 3, 1);
    let y = b.reshape(y, &[images, 16, 8, 192]);
    let last = b.concat(y, half);
    // Of three groups, one lies in both.
    let last = b.group_norm(last, &s.pp("last"), 3, 1e-5);
    let doubled = b.group_norm(up, &s.pp("doubled"), 32, 1e-5);
    let mixed = b.concat(first, x);
    let mixed = b.group_norm(mixed, &s.pp("mixed"), 2, 1e-5);
    let all = [("y", y), ("half", half), ("up", up), ("last", last), ("doubled", doubled), ("mixed", mixed)];
    // Results in f32 are for other kernels.
    for (name, id) in all {
        let id = b.scale_shift(id, 0.5, 0.0);
        b.output(name, id);
    }
    b.finish().unwrap()
}

/// The inputs of so many images from the image `first` on.
pub fn inputs(first: usize, images: usize) -> Vec<Vec<f32>> {
    let each = |(seed, len): (u32, usize)| {
        (first..first + images).flat_map(|image| values(len, seed + 10 * image as u32)).collect()
    };
    [(1, 16 * 8 * 64), (2, 192), (3, 32 * 16 * 64)].into_iter().map(each).collect()
}
