//! Weights that differ in one respect alone do not take one another's place on the device: of pairs over the same bytes of a file,
//! the second graph gives what it gives on a device that has not seen the first.

use super::ptx::PtxDriver;
use super::{compiled, outputs, scope, values};
use braid::device::cuda::CudaDevice;
use braid::device::{Device, PixelRounding, TensorData};
use braid::graph::{Builder, Graph, LinearWeights};
use braid::tensor::DType;
use braid::weights::{MappedBytes, Weight};
use std::sync::Arc;

/// Bytes of a file: small numbers in f16, bf16 and f32 alike.
fn storage() -> Arc<MappedBytes> {
    let bits = values(4096, 9).into_iter().map(|v| half::bf16::from_f32(v * 0.5).to_bits());
    Arc::new(MappedBytes::owned(bits.flat_map(u16::to_le_bytes).collect()))
}

fn weight(storage: &Arc<MappedBytes>, offset: usize, dtype: DType, shape: &[usize]) -> Weight {
    Weight::new(storage.clone(), offset, dtype, shape.to_vec(), "w").unwrap()
}

fn device() -> CudaDevice {
    CudaDevice::new(Arc::new(PtxDriver::new()), DType::F16).unwrap().with_cublaslt(false)
}

fn part(weight: Weight, bias: Option<Weight>) -> LinearWeights {
    LinearWeights { bias, ..weight.into() }
}

/// Rows of that many channels through joined matrices.
fn linear(inputs: usize, parts: Vec<LinearWeights>) -> Graph {
    let mut b = Builder::new();
    let x = b.input("x", &[1, 3, inputs]);
    let y = b.linear_parts(x, parts);
    b.output("y", y);
    b.finish().unwrap()
}

fn embedding(table: Weight, positions: Weight) -> Graph {
    let mut b = Builder::new();
    let ids = b.input_i32("ids", &[1, 3]);
    let y = b.embedding(ids, vec![table], positions);
    b.output("y", y);
    b.finish().unwrap()
}

/// The outputs of a graph, on inputs of its own, on that device.
fn run(device: &CudaDevice, graph: &Graph) -> (Vec<f32>, braid::device::cuda::CudaExecutable) {
    let x: TensorData<'_> = match graph.inputs[0].0.as_str() {
        "ids" => vec![0, 3, 1].into(),
        _ => values(graph.node(graph.inputs[0].1).len(), 5).into(),
    };
    let mut executable = device.compile_graph(graph.clone()).unwrap();
    (outputs(&mut executable, &[x]).remove(0), executable)
}

#[test]
fn one_difference_at_a_time() {
    if !compiled() {
        return;
    }
    let s = storage();
    let (f16, other) = (DType::F16, storage());
    let w = |offset, shape: &[usize]| weight(&s, offset, f16, shape);
    let plain = |weight: Weight| linear(weight.shape()[1], vec![part(weight, None)]);
    let [first, second, bias] = [w(0, &[8, 16]), w(1024, &[8, 16]), w(2048, &[8])];
    let joined = |a: Option<&Weight>, b: Option<&Weight>| {
        linear(16, vec![part(first.clone(), a.cloned()), part(second.clone(), b.cloned())])
    };
    // A bias of two parts, the second of which has none.
    let longer = |rows| linear(16, vec![part(first.clone(), Some(bias.clone())), part(w(1024, &[rows, 16]), None)]);
    let norm = |c: &Weight| {
        let mut weights = braid::weights::Weights::new("test");
        weights.insert("weight", c.clone()).unwrap();
        weights.insert("bias", w(3000, &[8])).unwrap();
        let mut b = Builder::new();
        let x = b.input("x", &[1, 2, 3, 8]);
        let y = b.group_norm(x, &braid::weights::Scope::new(weights), 2, 1e-5);
        b.output("y", y);
        b.finish().unwrap()
    };
    let square = w(0, &[16, 16]);
    let pairs: [(&str, Graph, Graph); 10] = [
        ("type", plain(w(0, &[24, 16])), plain(weight(&s, 0, DType::BF16, &[24, 16]))),
        ("offset", plain(w(0, &[24, 16])), plain(w(32, &[24, 16]))),
        ("rows", plain(w(0, &[20, 16])), plain(w(0, &[24, 16]))),
        ("shape", plain(w(0, &[16, 24])), plain(w(0, &[24, 16]))),
        ("strides", plain(square.clone()), plain(square.transposed().unwrap())),
        ("storage", plain(w(0, &[24, 16])), plain(weight(&other, 0, f16, &[24, 16]))),
        // A table's rows lie side by side, a matrix's begin at multiples of 8.
        ("pitch", embedding(w(0, &[4, 20]), w(512, &[3, 20])), plain(w(0, &[4, 20]))),
        ("f32", norm(&bias), joined(Some(&bias), Some(&bias))),
        ("place", joined(None, Some(&bias)), joined(Some(&bias), None)),
        ("bytes", longer(8), longer(200)),
    ];
    for (what, first, second) in pairs {
        let shared = device();
        let (_, held) = run(&shared, &first);
        assert_eq!(run(&shared, &second).0, run(&device(), &second).0, "{what}");
        drop(held);
        // And the other way round.
        let shared = device();
        let (_, held) = run(&shared, &second);
        assert_eq!(run(&shared, &first).0, run(&device(), &first).0, "{what}, turned round");
        drop(held);
    }
}

/// A decoder stores bf16 where the others store f16: the same matrix is on the device in both types.
#[test]
fn types_of_executables() {
    if !compiled() {
        return;
    }
    let weights = scope(&[("weight", &[8, 8, 3, 3], 1), ("bias", &[8], 2)]);
    let graph = || {
        let mut b = Builder::new();
        let x = b.input("x", &[1, 4, 4, 8]);
        let y = b.conv2d(x, &weights, 8, 3, 1);
        b.output("y", y);
        b.finish().unwrap()
    };
    let x = values(4 * 4 * 8, 3);
    let decoded = |device: &CudaDevice| {
        let mut decoder = device.compile_image_decoder(graph(), PixelRounding::Nearest).unwrap();
        decoder.decode(&x.clone().into(), true).unwrap().image
    };
    let shared = device();
    let mut plain = shared.compile_graph(graph()).unwrap();
    let before = outputs(&mut plain, &[&x]);
    assert_eq!(decoded(&shared), decoded(&device()));
    assert_eq!(outputs(&mut plain, &[&x]), before);
    let shared = device();
    let mut decoder = shared.compile_image_decoder(graph(), PixelRounding::Nearest).unwrap();
    decoder.decode(&x.clone().into(), true).unwrap();
    assert_eq!(outputs(&mut shared.compile_graph(graph()).unwrap(), &[&x]), before);
}

/// A tensor whose file is gone: another one in the same place of the host's memory is another, though the upload of the first is
/// still there for a tensor that went up with it.
#[test]
fn memory_of_a_file_that_is_gone() {
    if !compiled() {
        return;
    }
    let bytes = |seed| -> Vec<u8> { values(24 * 16, seed).iter().flat_map(|v| v.to_le_bytes()).collect() };
    let owned = |seed| weight(&Arc::new(MappedBytes::owned(bytes(seed))), 0, DType::F32, &[24, 16]);
    let shared = device();
    let kept = owned(1);
    let gone = owned(2);
    let (_, both) = run(&shared, &linear(16, vec![part(gone.clone(), None)]));
    let held = {
        // One upload for two matrices: the second executable keeps it for one of them.
        let mut b = Builder::new();
        let x = b.input("x", &[1, 3, 16]);
        for weight in [owned(3), kept.clone()] {
            let y = b.linear_parts(x, vec![part(weight, None)]);
            b.output("y", y);
        }
        let together = shared.compile_graph(b.finish().unwrap()).unwrap();
        let alone = run(&shared, &linear(16, vec![part(kept, None)])).1;
        drop(together);
        alone
    };
    drop((both, gone));
    for seed in 4..40 {
        let graph = linear(16, vec![part(owned(seed), None)]);
        assert_eq!(run(&shared, &graph).0, run(&device(), &graph).0, "{seed}");
    }
    drop(held);
}
