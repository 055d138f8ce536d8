//! The compiler's and assembler's figures of every kernel, as a table (`make kernels`), with limits on those that must not change
//! unnoticed.

use crate::interpreter::compiled;
use braid::device::cuda::compile::images::{Binary, Code, modules};
use braid::device::cuda::driver::Kernel;
use braid::device::cuda::ops::registry::kernels;
use braid::tensor::DType;

/// The resources of a multiprocessor (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"): warps, blocks,
/// bytes of shared memory. All have 65,536 registers, given out to warps by 256, and take 1 KiB of each block for themselves.
const PROCESSORS: [(&str, u32, u32, u32); 4] = [
    ("sm_80", 64, 32, 164 << 10),
    ("sm_86", 48, 16, 100 << 10),
    ("sm_89", 48, 24, 100 << 10),
    ("sm_90a", 64, 32, 228 << 10),
];

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

fn number_before(text: &str, word: &str) -> u32 {
    let head = text.split(word).next().filter(|_| text.contains(word)).unwrap_or("");
    head.split_whitespace().last().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The code of one entry point in a cubin: the section `.text.NAME` of a 64-bit little-endian ELF file.
fn code<'a>(elf: &'a [u8], entry: &str) -> &'a [u8] {
    let number =
        |at: usize, bytes: usize| elf[at..at + bytes].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    let (table, size, count, names) = (number(0x28, 8), number(0x3a, 2), number(0x3c, 2), number(0x3e, 2));
    let place = |section: usize| {
        let header = table + section * size;
        (number(header, 4), number(header + 0x18, 8), number(header + 0x20, 8))
    };
    let strings = place(names).1;
    let wanted = format!(".text.{entry}\0");
    let found = (0..count).map(place).find(|&(name, ..)| elf[strings + name..].starts_with(wanted.as_bytes()));
    let (_, from, bytes) = found.unwrap_or_else(|| panic!("no section {wanted:?}"));
    &elf[from..from + bytes]
}

/// Instructions are 16 bytes from sm_70 on; the lowest 12 bits are the operation, 0x23c an HMMA.
fn tensor_instructions(code: &[u8]) -> usize {
    code.chunks_exact(16).filter(|word| u16::from_le_bytes([word[0], word[1]]) & 0xfff == 0x23c).count()
}

fn figures(kernel: &Kernel, entry: &str, binary: &Binary, elf: &[u8]) -> Figures {
    let (_, warps, blocks, memory) = PROCESSORS.into_iter().find(|p| p.0 == binary.target).unwrap();
    let log =
        binary.log.split("Compiling entry function '").find(|part| part.starts_with(&format!("{entry}'"))).unwrap();
    let registers = number_before(log, " registers");
    let shared = number_before(log, " bytes smem");
    let of_block = kernel.threads.div_ceil(32);
    let by_registers = 65_536 / (registers.next_multiple_of(8) * 32) / of_block;
    let by_memory = memory / (shared + kernel.shared + 1024);
    Figures {
        registers,
        spilled: number_before(log, " bytes spill stores") + number_before(log, " bytes spill loads"),
        shared,
        tensor: tensor_instructions(code(elf, entry)),
        blocks: by_registers.min(by_memory).min(warps / of_block).min(blocks),
    }
}

/// Stages of cp.async.
fn stages(module: &str) -> u32 {
    match module {
        "attention" | "decoupled" => 2,
        "gemm" | "convolution" => 4,
        _ => 0,
    }
}

#[test]
fn figures_table() {
    if !compiled() {
        return;
    }
    println!("| kernel | spills | static | dynamic | stages | sm_80 | sm_86 | sm_89 | sm_90a |");
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|");
    for module in modules() {
        let Code::Compiled(binaries) = module.code else { continue };
        let cubins: Vec<(&Binary, Vec<u8>)> = binaries
            .iter()
            .filter(|binary| binary.target.starts_with("sm_"))
            .map(|binary| (binary, binary.unpack().unwrap()))
            .collect();
        assert_eq!(cubins.len(), PROCESSORS.len());
        let ptx = String::from_utf8(module.ptx().unwrap().unpack().unwrap()).unwrap();
        for kernel in kernels().filter(|kernel| kernel.module == module.name) {
            let mut rows: Vec<(String, String)> = Vec::new();
            for &dtype in kernel.types.each() {
                let entry = kernel.entry(dtype);
                let text =
                    ptx.split(&format!(".entry {entry}(")).nth(1).unwrap().split(".visible .entry").next().unwrap();
                let mma = text.matches("mma.sync").count();
                let all: Vec<Figures> = cubins.iter().map(|(b, elf)| figures(kernel, &entry, b, elf)).collect();
                for (f, (binary, _)) in all.iter().zip(&cubins) {
                    let target = binary.target;
                    assert!(f.registers > 0 && f.registers <= 255, "{entry} {target}: {f:?}");
                    assert_eq!(f.spilled, 0, "{entry} {target}");
                    assert!(f.blocks > 0, "{entry} {target}: no block fits a multiprocessor: {f:?}");
                    // The assembler neither unrolls a loop once more nor loses a product.
                    assert_eq!(f.tensor, mma, "{entry} {target}: tensor-core instructions in the cubin and in the PTX");
                    assert_eq!(mma > 0, stages(module.name) > 0 && dtype != DType::F32, "{entry}");
                }
                let cells = all.iter().map(|f| format!("{} · {} · {}", f.registers, f.blocks, f.tensor));
                let row = format!(
                    "{} | {} | {} | {} | {}",
                    all.iter().map(|f| f.spilled).sum::<u32>(),
                    all[0].shared,
                    kernel.shared,
                    stages(module.name),
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
