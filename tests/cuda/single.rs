//! Operations by themselves, as `bench ops` runs them.

use super::{check, compiled, drivers, outputs, scope, values};
use braid::device::cuda::CudaDevice;
use braid::graph::{Activation, Builder, Op, fuse};
use braid::tensor::DType;

/// Every operation of a small residual block with attention gives alone what the CPU gives, and can be timed.
#[test]
fn each_operation_of_a_block() {
    if !compiled() {
        return;
    }
    let s = scope(&[
        ("in.weight", &[16, 4, 3, 3], 1),
        ("in.bias", &[16], 2),
        ("norm.weight", &[16], 3),
        ("norm.bias", &[16], 4),
        ("conv.weight", &[16, 16, 3, 3], 5),
        ("q.weight", &[16, 16], 6),
        ("k.weight", &[16, 16], 7),
        ("v.weight", &[16, 16], 8),
        ("ff.weight", &[32, 16], 9),
        ("out.weight", &[4, 16, 3, 3], 10),
    ]);
    let mut b = Builder::new();
    let x = b.input("x", &[2, 6, 5, 4]);
    let time = b.input("time", &[2, 16]);
    let x = b.conv2d(x, &s.pp("in"), 16, 3, 1);
    let h = b.group_norm(x, &s.pp("norm"), 4, 1e-5);
    let h = b.activation(h, Activation::Silu);
    let h = b.conv2d_no_bias(h, &s.pp("conv"), 16, 3, 1);
    let h = b.broadcast_add(h, time);
    let h = b.add(x, h);
    let [q, k, v] = ["q", "k", "v"].map(|name| b.linear_no_bias(h, &s.pp(name), 16));
    let h = b.attention(q, k, v, 2, false);
    let h = b.linear_no_bias(h, &s.pp("ff"), 32);
    let h = b.geglu(h);
    let y = b.conv2d_no_bias(h, &s.pp("out"), 4, 3, 1);
    b.output("y", y);
    let graph = fuse(b.finish().unwrap());
    let mut count = 0;
    for (id, node) in graph.iter().filter(|(_, node)| !matches!(node.op, Op::Input(_) | Op::Reshape)) {
        let alone = graph.single(id);
        let inputs: Vec<_> = (1..).zip(&alone.inputs).map(|(k, (_, id))| values(alone.node(*id).len(), k)).collect();
        let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
        check(&node.name, &alone, &inputs);
        let device = CudaDevice::new(drivers().remove(0), DType::F16).unwrap();
        let mut executable = device.compile_graph(alone).unwrap();
        let before = outputs(&mut executable, &inputs);
        for flush in [0, 4096] {
            assert!(executable.benchmark(flush, 2).unwrap() >= 0.0);
        }
        assert_eq!(before, outputs(&mut executable, &inputs), "{}", node.name);
        count += 1;
    }
    // Two convolutions at the ends, one within, the norm, three projections as one, attention, GEGLU.
    assert_eq!(count, 7);
}
