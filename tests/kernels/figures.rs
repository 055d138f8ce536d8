//! The compiler's and assembler's figures of every kernel, as a table (`make kernels`), with limits on those that must not change
//! unnoticed.

use crate::interpreter::compiled;
use braid::device::cuda::compile::cubin;
use braid::device::cuda::compile::images::{Binary, Code, modules};
use braid::device::cuda::driver::Kernel;
use braid::device::cuda::ops::registry::kernels;
use braid::tensor::DType;

/// An entry point on one architecture.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Figures {
    registers: u32,
    spilled: u32,
    /// Static shared memory in bytes.
    shared: u32,
    /// Instructions of tensor cores in the code.
    tensor: usize,
    /// Blocks that a multiprocessor can hold.
    blocks: u32,
}

fn figures(kernel: &Kernel, entry: &str, binary: &Binary, elf: &[u8]) -> Figures {
    let logged = |word| cubin::logged(binary.log, entry, word);
    let (registers, shared) = (logged(" registers"), logged(" bytes smem"));
    Figures {
        registers,
        spilled: logged(" bytes spill stores") + logged(" bytes spill loads"),
        shared,
        tensor: cubin::products(cubin::code(elf, entry).unwrap()),
        blocks: cubin::resident_blocks(binary.target, kernel.threads, registers, shared + kernel.shared).unwrap(),
    }
}

/// The main loops that a guided step spends its time in: entry point without its type, target, and of the slower of f16 and bf16 the
/// instructions that a warp executes in a turn, its stall counts in cycles, its tensor-core products, and the registers of a thread.
const MAIN_LOOPS: [(&str, &str, [usize; 4]); 36] = [
    ("gemm_geglu_256x128", "sm_80", [139, 667, 64, 212]),
    ("gemm_geglu_256x128", "sm_89", [139, 667, 64, 212]),
    ("gemm_geglu_256x128", "sm_90a", [148, 589, 64, 217]),
    ("gemm_geglu_128x128", "sm_80", [151, 678, 64, 212]),
    ("gemm_geglu_128x128", "sm_89", [151, 683, 64, 212]),
    ("gemm_geglu_128x128", "sm_90a", [156, 587, 64, 215]),
    ("gemm_256x128", "sm_80", [154, 702, 64, 209]),
    ("gemm_256x128", "sm_89", [154, 702, 64, 209]),
    ("gemm_256x128", "sm_90a", [164, 582, 64, 228]),
    ("gemm_128x128", "sm_80", [157, 679, 64, 210]),
    ("gemm_128x128", "sm_89", [157, 679, 64, 210]),
    ("gemm_128x128", "sm_90a", [162, 582, 64, 220]),
    ("gemm_128x64", "sm_80", [113, 403, 32, 122]),
    ("gemm_128x64", "sm_89", [113, 403, 32, 122]),
    ("gemm_128x64", "sm_90a", [117, 373, 32, 126]),
    ("gemm_64x64", "sm_80", [77, 227, 16, 72]),
    ("gemm_64x64", "sm_89", [81, 248, 16, 69]),
    ("gemm_64x64", "sm_90a", [83, 241, 16, 72]),
    ("convolution_256x128", "sm_80", [184, 721, 64, 219]),
    ("convolution_256x128", "sm_89", [184, 721, 64, 219]),
    ("convolution_256x128", "sm_90a", [196, 643, 64, 222]),
    ("convolution_128x128", "sm_80", [188, 729, 64, 221]),
    ("convolution_128x128", "sm_89", [188, 729, 64, 221]),
    ("convolution_128x128", "sm_90a", [198, 641, 64, 224]),
    ("convolution_128x64", "sm_80", [143, 445, 32, 126]),
    ("convolution_128x64", "sm_89", [149, 453, 32, 124]),
    ("convolution_128x64", "sm_90a", [160, 412, 32, 124]),
    ("convolution_64x64", "sm_80", [83, 257, 16, 95]),
    ("convolution_64x64", "sm_89", [91, 251, 16, 80]),
    ("convolution_64x64", "sm_90a", [96, 269, 16, 80]),
    ("attention_64", "sm_80", [717, 2252, 128, 238]),
    ("attention_64", "sm_89", [717, 2243, 128, 238]),
    ("attention_64", "sm_90a", [743, 2121, 128, 238]),
    ("decoupled_64", "sm_80", [504, 1541, 64, 167]),
    ("decoupled_64", "sm_89", [515, 1592, 64, 168]),
    ("decoupled_64", "sm_90a", [547, 1600, 64, 162]),
];

/// Instructions of a warp outside the main loop of GEGLU's product, each once, since no loop is among them: f16 and bf16.
const AROUND_GEGLU: [(&str, &str, [usize; 2]); 6] = [
    ("gemm_geglu_256x128", "sm_80", [1931, 1931]),
    ("gemm_geglu_256x128", "sm_89", [1931, 1931]),
    ("gemm_geglu_256x128", "sm_90a", [1985, 1985]),
    ("gemm_geglu_128x128", "sm_80", [1969, 1969]),
    ("gemm_geglu_128x128", "sm_89", [1969, 1969]),
    ("gemm_geglu_128x128", "sm_90a", [2021, 2021]),
];

/// The way in and out of GEGLU's product does not grow unnoticed either.
#[test]
fn around_geglu() {
    if !compiled() {
        return;
    }
    let Some(Code::Compiled(binaries)) = modules().iter().find(|m| m.name == "gemm").map(|m| m.code) else { return };
    for (kernel, target, expected) in AROUND_GEGLU {
        let Some(binary) = binaries.iter().find(|binary| binary.target == target) else { continue };
        let elf = binary.unpack().unwrap();
        let outside = ["f16", "bf16"].map(|dtype| {
            let code = cubin::code(&elf, &format!("{kernel}_{dtype}")).unwrap();
            cubin::main_loop(code, target).unwrap().outside.executed
        });
        println!("(\"{kernel}\", \"{target}\", {outside:?}),");
        for (found, expected) in outside.into_iter().zip(expected) {
            assert!(
                found as f64 <= expected as f64 * (1.0 + LARGER),
                "{kernel} {target}: {outside:?}, expected at most {expected}"
            );
        }
    }
}

/// Shares of a figure by which it may be larger than the one above before a test fails.
const LARGER: f64 = 0.02;

/// No main loop becomes longer unnoticed: a change of a kernel that makes one so states the new figures, with its reason.
#[test]
fn main_loops() {
    if !compiled() {
        return;
    }
    let mut longer = Vec::new();
    for module in modules() {
        let Code::Compiled(binaries) = module.code else { continue };
        for kernel in kernels().filter(|kernel| kernel.module == module.name) {
            for binary in binaries {
                let known = MAIN_LOOPS.iter().find(|row| (row.0, row.1) == (kernel.name, binary.target));
                let Some((.., expected)) = known else { continue };
                let elf = binary.unpack().unwrap();
                let halves = kernel.types.each().iter().filter(|dtype| **dtype != DType::F32);
                let mut greatest = [0; 4];
                for entry in halves.map(|&dtype| kernel.entry(dtype)) {
                    let body = cubin::main_loop(cubin::code(&elf, &entry).unwrap(), binary.target).unwrap().body;
                    let registers = figures(kernel, &entry, binary, &elf).registers as usize;
                    let found = [body.executed, body.stalls, body.products, registers];
                    greatest = std::array::from_fn(|i| greatest[i].max(found[i]));
                }
                let name = format!("{} {}", kernel.name, binary.target);
                println!("(\"{}\", \"{}\", {greatest:?}),", kernel.name, binary.target);
                let exceeds = |(found, expected): (&usize, &usize)| *found as f64 > *expected as f64 * (1.0 + LARGER);
                if greatest.iter().zip(expected).any(exceeds) {
                    longer.push(format!("{name}: {greatest:?}, expected at most {expected:?} and 2 % for each"));
                }
                assert_eq!(greatest[2], expected[2], "{name}: tensor-core products of a turn");
            }
        }
    }
    assert!(longer.is_empty(), "{longer:#?}");
}

/// Stages of cp.async, or of tensor copies.
fn stages(kernel: &Kernel) -> u32 {
    match kernel.module {
        "attention" | "decoupled" | "decoupled_sm90" => 2,
        "gemm" | "convolution" | "attention_sm90" => 4,
        "gemm_sm90" | "convolution_sm90" | "gemm_fp8_sm90" | "convolution_fp8_sm90" => {
            let (m, n) = kernel.name.rsplit_once('_').and_then(|(_, tile)| tile.split_once('x')).unwrap();
            let rows = m.parse::<u32>().unwrap() + n.parse::<u32>().unwrap();
            // Beside them lie boxes of the result, and barriers.
            (kernel.shared - (16 << 10)) / (rows * 128)
        }
        _ => 0,
    }
}

#[test]
fn figures_table() {
    if !compiled() {
        return;
    }
    let targets = cubin::MULTIPROCESSORS.map(|known| known.0);
    println!("| kernel | spills | static | dynamic | stages | {} |", targets.join(" | "));
    println!("|---|{}", "--:|".repeat(4 + targets.len()));
    for module in modules() {
        let Code::Compiled(binaries) = module.code else { continue };
        let cubins: Vec<(&Binary, Vec<u8>)> = binaries
            .iter()
            .filter(|binary| binary.target.starts_with("sm_"))
            .map(|binary| (binary, binary.unpack().unwrap()))
            .collect();
        // A compiler may know fewer.
        assert!(!cubins.is_empty() && cubins.iter().all(|(binary, _)| targets.contains(&binary.target)));
        let ptx = String::from_utf8(module.ptx((9, 0)).unwrap().unpack().unwrap()).unwrap();
        for kernel in kernels().filter(|kernel| kernel.module == module.name) {
            let mut rows: Vec<(String, String)> = Vec::new();
            for &dtype in kernel.types.each() {
                let entry = kernel.entry(dtype);
                let text =
                    ptx.split(&format!(".entry {entry}(")).nth(1).unwrap().split(".visible .entry").next().unwrap();
                let mma = text.matches("mma.sync").count() + text.matches("wgmma.mma_async").count();
                let all: Vec<Figures> = cubins.iter().map(|(b, elf)| figures(kernel, &entry, b, elf)).collect();
                for (f, (binary, _)) in all.iter().zip(&cubins) {
                    let target = binary.target;
                    assert!(f.registers > 0 && f.registers <= 255, "{entry} {target}: {f:?}");
                    assert_eq!(f.spilled, 0, "{entry} {target}");
                    assert!(f.blocks > 0, "{entry} {target}: no block fits a multiprocessor: {f:?}");
                    // The assembler neither unrolls a loop once more nor loses a product.
                    assert_eq!(f.tensor, mma, "{entry} {target}: tensor-core instructions in the cubin and in the PTX");
                    assert_eq!(mma > 0, stages(kernel) > 0 && dtype != DType::F32, "{entry}");
                }
                let cell = |f: &Figures| format!("{} · {} · {}", f.registers, f.blocks, f.tensor);
                let of = |target: &str| cubins.iter().position(|(binary, _)| binary.target == target);
                let cells = targets.iter().map(|target| of(target).map_or("–".into(), |at| cell(&all[at])));
                let row = format!(
                    "{} | {} | {} | {} | {}",
                    all.iter().map(|f| f.spilled).sum::<u32>(),
                    all[0].shared,
                    kernel.shared,
                    stages(kernel),
                    cells.collect::<Vec<_>>().join(" | ")
                );
                // The types in one row where they do not differ.
                match rows.iter_mut().find(|(_, same)| *same == row) {
                    Some((types, _)) => *types += &format!(", {dtype}"),
                    None => rows.push((dtype.to_string(), row)),
                }
            }
            for (types, row) in rows {
                println!("| `{}` {types} | {row} |", kernel.name);
            }
        }
    }
}
