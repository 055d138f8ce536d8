//! Machine code of cubins: the code of an entry point, whether it waits for the launch before it, and the main loop of a kernel as the
//! assembler scheduled it.
//!
//! Instructions are 16 bytes from sm_70 on. The low half begins with 12 bits of operation; the high half ends with the
//! scheduler's control bits, of which the stall count (cycles until the warp may issue again) is read here. NVIDIA does not
//! document them; Jia et al. 2018, "Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking", does, and the
//! branches' targets below are checked by what they lead to.

use std::collections::BTreeSet;

/// Bytes of an instruction.
const WORD: usize = 16;

/// The operations that are counted, by the lowest 12 bits of an instruction.
mod operation {
    /// `mma.sync` of halves.
    pub(super) const HMMA: u64 = 0x23c;
    /// `wgmma` of halves: with the left factor in shared memory, and in registers.
    pub(super) const HGMMA: [u64; 2] = [0x9f0, 0xdf0];
    /// `wgmma` of e4m3, with the left factor in shared memory.
    pub(super) const QGMMA: u64 = 0x9f3;
    /// `ldmatrix`.
    pub(super) const LDSM: u64 = 0x83b;
    /// `cp.async`.
    pub(super) const LDGSTS: u64 = 0xfae;
    /// Reciprocals and exponentials, 16 a cycle of a multiprocessor.
    pub(super) const MUFU: u64 = 0x308;
    /// Branches.
    pub(super) const BRA: u64 = 0x947;
    /// The end of the kernel.
    pub(super) const EXIT: u64 = 0x94d;
    /// `__syncthreads`.
    pub(super) const BAR: u64 = 0xb1d;
    /// `griddepcontrol.wait`.
    pub(super) const ACQBULK: u64 = 0x82e;
}

/// Instructions of one warp along a path through the code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All.
    pub executed: usize,
    /// Cycles of the stall counts.
    pub stalls: usize,
    /// Tensor-core products, m16n8k16 in these kernels.
    pub products: usize,
    /// Accesses of 16 bytes a lane to shared memory: `ldmatrix.x4` and `cp.async`.
    pub shared: usize,
    /// Exponentials and reciprocals.
    pub exponentials: usize,
}

impl Counts {
    fn add(&mut self, instruction: Instruction) {
        let operation = instruction.operation();
        self.executed += 1;
        self.stalls += instruction.stall();
        self.products += usize::from(operation == operation::HMMA);
        self.shared += usize::from(matches!(operation, operation::LDSM | operation::LDGSTS));
        self.exponentials += usize::from(operation == operation::MUFU);
    }
}

/// The parts of a kernel that multiplies on tensor cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loop {
    /// One turn of the main loop in its steady state: where a branch skips work that is done at borders only, it is skipped.
    pub body: Counts,
    /// The instructions before the loop and behind it, each once.
    pub outside: Counts,
}

/// The resources of a multiprocessor by target: warps, blocks, bytes of shared memory. All have 65,536 registers, given out to
/// warps by 256, and take 1 KiB of each block for themselves (CUDA C++ Programming Guide, "Technical Specifications per Compute
/// Capability").
pub const MULTIPROCESSORS: [(&str, u32, u32, u32); 6] = [
    ("sm_80", 64, 32, 164 << 10),
    ("sm_86", 48, 16, 100 << 10),
    ("sm_89", 48, 24, 100 << 10),
    ("sm_90a", 64, 32, 228 << 10),
    ("sm_100", 64, 32, 228 << 10),
    ("sm_120", 48, 24, 100 << 10),
];

/// The blocks that a multiprocessor of a target holds: of so many threads, of so many registers each, with so much shared memory in
/// bytes. `None` for a target that is not known.
pub fn resident_blocks(target: &str, threads: u32, registers: u32, shared: u32) -> Option<u32> {
    let (_, warps, blocks, memory) = MULTIPROCESSORS.into_iter().find(|known| known.0 == target)?;
    let of_block = threads.div_ceil(32).max(1);
    let by_registers = 65_536 / (registers.max(1).next_multiple_of(8) * 32) / of_block;
    Some(by_registers.min(memory / (shared + 1024)).min(warps / of_block).min(blocks))
}

/// The number before `word` in the assembler's lines about an entry point, e.g. `" registers"`; 0 where it does not say.
pub fn logged(log: &str, entry: &str, word: &str) -> u32 {
    let own = log.split("Compiling entry function '").find(|part| part.starts_with(&format!("{entry}'")));
    let number = own.and_then(|text| text.split_once(word)?.0.split_whitespace().last()?.parse().ok());
    number.unwrap_or(0)
}

#[derive(Clone, Copy)]
struct Instruction {
    low: u64,
    high: u64,
}

impl Instruction {
    fn operation(self) -> u64 {
        self.low & 0xfff
    }

    fn stall(self) -> usize {
        (self.high >> 41) as usize & 15
    }

    /// Whether no predicate guards it.
    fn always(self) -> bool {
        self.low >> 12 & 15 == 7
    }

    /// The instruction to which a branch at `at` jumps. Before sm_90 its offset in bytes is bits 32 to 81; from then on bits 34
    /// to 81 and, below them, 16 to 23 count words of four bytes.
    fn target(self, at: usize, generation: u32) -> Option<usize> {
        if self.operation() != operation::BRA {
            return None;
        }
        let signed = |value: u64, bits: u32| (value << (64 - bits)) as i64 >> (64 - bits);
        let offset = if generation < 90 {
            signed(self.low >> 32 | (self.high & 0x3ffff) << 32, 50) & !3
        } else {
            (signed(self.low >> 34 | (self.high & 0x3ffff) << 30, 48) << 8 | (self.low >> 16 & 0xff) as i64) * 4
        };
        usize::try_from(i64::try_from(at).ok()? + 1 + offset.div_euclid(WORD as i64)).ok()
    }
}

/// The code of one entry point. `None` where the file has none.
pub fn code<'a>(elf: &'a [u8], entry: &str) -> Option<&'a [u8]> {
    entries(elf)?.find(|(name, _)| *name == entry).map(|(_, code)| code)
}

/// The entry points of an image, a cubin or PTX, that wait for the launch before theirs. A wait that a predicate guards is none.
pub fn waiting(image: &[u8]) -> BTreeSet<String> {
    if let Some(entries) = entries(image) {
        let waits = |word: &Instruction| word.operation() == operation::ACQBULK && word.always();
        let all = entries.filter(|(_, code)| instructions(code).iter().any(waits));
        return all.map(|(name, _)| name.to_owned()).collect();
    }
    let text = String::from_utf8_lossy(image);
    let all =
        text.split(".entry ").skip(1).filter(|entry| entry.lines().any(|line| line.trim() == "griddepcontrol.wait;"));
    all.filter_map(|entry| Some(entry.split_once('(')?.0.trim().to_owned())).collect()
}

/// Names and code of the entry points: the sections `.text.NAME` of a 64-bit little-endian ELF file. `None` where it is none.
fn entries(elf: &[u8]) -> Option<impl Iterator<Item = (&str, &[u8])>> {
    if !elf.starts_with(b"\x7fELF") {
        return None;
    }
    let number = move |at: usize, bytes: usize| {
        let digits = elf.get(at..at.checked_add(bytes)?)?;
        Some(digits.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    };
    let (table, size, count, names) = (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?, number(0x3e, 2)?);
    let place = move |section: usize| {
        let header = table.checked_add(section * size)?;
        Some((number(header, 4)?, number(header + 0x18, 8)?, number(header + 0x20, 8)?))
    };
    let strings = place(names)?.1;
    Some((0..count).filter_map(move |section| {
        let (name, from, bytes) = place(section)?;
        let name = elf.get(strings.checked_add(name)?..)?.split(|byte| *byte == 0).next()?;
        let name = std::str::from_utf8(name).ok()?.strip_prefix(".text.")?;
        Some((name, elf.get(from..from.checked_add(bytes)?)?))
    }))
}

fn instructions(code: &[u8]) -> Vec<Instruction> {
    let half = |word: &[u8]| word.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    code.chunks_exact(WORD).map(|word| Instruction { low: half(&word[..8]), high: half(&word[8..]) }).collect()
}

/// Tensor-core products in the code, each once: of warps, and of groups of four.
pub fn products(code: &[u8]) -> usize {
    let multiplies = |operation: u64| {
        matches!(operation, operation::HMMA | operation::QGMMA) || operation::HGMMA.contains(&operation)
    };
    instructions(code).iter().filter(|word| multiplies(word.operation())).count()
}

/// The main loop of a kernel for that target (`sm_90a`); `None` where none multiplies on tensor cores.
///
/// It is the backward branch around most products, of several the shortest. Its steady path takes every instruction but those
/// that a forward branch can skip and that neither multiply, copy nor wait: masks at borders. Of two alternatives, which join
/// behind the second, it takes one.
pub fn main_loop(code: &[u8], target: &str) -> Option<Loop> {
    let generation = target.trim_start_matches("sm_").trim_end_matches(char::is_alphabetic).parse().ok()?;
    let words = instructions(code);
    let products =
        |from: usize, to: usize| words[from..=to].iter().filter(|w| w.operation() == operation::HMMA).count();
    let backward = words.iter().enumerate().filter_map(|(at, word)| Some((word.target(at, generation)?, at)));
    let loops = backward.filter(|(from, at)| from <= at).map(|(from, at)| (from, at, products(from, at)));
    let (from, to, most) = loops.max_by_key(|&(from, at, products)| (products, usize::MAX - (at - from)))?;
    if most == 0 {
        return None;
    }
    let end = words.iter().rposition(|word| word.operation() == operation::EXIT).map_or(words.len(), |at| at + 1);
    let mut outside = Counts::default();
    words[..from].iter().chain(words.get(to + 1..end).unwrap_or_default()).for_each(|word| outside.add(*word));
    Some(Loop { body: steady(&words, (from, to), generation), outside })
}

/// The counts of a loop's steady path.
fn steady(words: &[Instruction], (from, to): (usize, usize), generation: u32) -> Counts {
    let forward = |at: usize| words[at].target(at, generation).filter(|&target| target > at && target <= to + 1);
    let works = |word: &Instruction| matches!(word.operation(), operation::HMMA | operation::LDGSTS | operation::BAR);
    let mut counts = Counts::default();
    let mut at = from;
    while at <= to {
        counts.add(words[at]);
        let next = match forward(at) {
            Some(target) if words[at].always() => target,
            Some(target) if !words[at + 1..target].iter().any(works) => {
                // An alternative ends in a branch over the other one.
                let alternative = target - 1 > at && forward(target - 1).is_some();
                if alternative { at + 1 } else { target }
            }
            _ => at + 1,
        };
        at = next;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cuda::compile::images::{self, Code};

    fn word(operation: u64, stall: u64) -> [u64; 2] {
        [operation | 7 << 12, stall << 41]
    }

    /// A branch over `words` instructions of sm_80, or back; predicated unless `always`.
    fn branch(words: i64, always: bool) -> [u64; 2] {
        let offset = (words * WORD as i64) as u64;
        let guard = if always { 7 } else { 0 };
        [operation::BRA | guard << 12 | offset << 32, (offset >> 32 & 0x3ffff) | 5 << 41]
    }

    fn bytes(words: &[[u64; 2]]) -> Vec<u8> {
        words.iter().flatten().flat_map(|half| half.to_le_bytes()).collect()
    }

    #[test]
    fn steady_path() {
        let add = word(0x210, 2);
        let words = [
            add,
            // The loop: a product, a mask that is skipped, and one of two alternatives.
            word(operation::HMMA, 8),
            branch(2, false),
            add,
            add,
            branch(2, false),
            add,
            branch(1, true),
            add,
            word(operation::LDSM, 1),
            branch(-10, false),
            word(operation::MUFU, 4),
            word(operation::EXIT, 5),
            add,
        ];
        let found = main_loop(&bytes(&words), "sm_80").unwrap();
        let body = Counts { executed: 7, stalls: 8 + 5 + 5 + 2 + 5 + 1 + 5, products: 1, shared: 1, exponentials: 0 };
        assert_eq!(found.body, body);
        assert_eq!(found.outside, Counts { executed: 3, stalls: 11, exponentials: 1, ..Counts::default() });
        assert_eq!(main_loop(&bytes(&words[11..]), "sm_80"), None);
        assert_eq!(main_loop(&bytes(&words), "compute_80"), None);
    }

    /// From sm_90 on the same distance is written otherwise.
    #[test]
    fn branches_of_hopper() {
        let offset = (-3 * WORD as i64 / 4) as u64;
        let back = [operation::BRA | (offset & 0xff) << 16 | offset >> 8 << 34, offset >> 38 & 0x3ffff];
        let words = [word(operation::HMMA, 6), word(0x210, 1), back];
        assert_eq!(main_loop(&bytes(&words), "sm_90a").unwrap().body.executed, 3);
    }

    #[test]
    fn residency_and_log() {
        assert_eq!(resident_blocks("sm_90a", 128, 213, 64 << 10), Some(2));
        assert_eq!(resident_blocks("sm_89", 128, 210, 64 << 10), Some(1));
        assert_eq!(resident_blocks("sm_80", 256, 32, 0), Some(8));
        assert_eq!(resident_blocks("sm_75", 128, 32, 0), None);
        let log = "Compiling entry function 'a' for 'sm_80'\nUsed 7 registers\nCompiling entry function 'b' for ..\nUsed 9 registers";
        assert_eq!(
            [logged(log, "a", " registers"), logged(log, "b", " registers"), logged(log, "a", " bytes")],
            [7, 9, 0]
        );
    }

    #[test]
    fn damaged_files() {
        for length in 0..64 {
            let mut file = vec![0xff; length];
            assert_eq!(code(&file, "gemm"), None);
            file.iter_mut().zip(b"\x7fELF").for_each(|(byte, mark)| *byte = *mark);
            assert_eq!((code(&file, "gemm"), waiting(&file).len()), (None, 0));
        }
    }

    /// Holds every kernel for sm_90 and later to a wait, in the cubin as in the PTX, and there before anything of global memory is touched.
    #[test]
    fn waits_of_every_kernel() {
        if !images::compiled() {
            return;
        }
        for module in images::modules() {
            let Code::Compiled(binaries) = module.code else { continue };
            let mut known: Option<BTreeSet<String>> = None;
            for binary in binaries {
                let (name, image) = (format!("{} {}", module.name, binary.target), binary.unpack().unwrap());
                let found = waiting(&image);
                let (_, number) = binary.target.split_once('_').unwrap();
                if number.trim_end_matches('a').parse::<u32>().unwrap() < 90 {
                    assert_eq!(found, BTreeSet::new(), "{name}");
                    continue;
                }
                assert_eq!(&found, known.get_or_insert_with(|| found.clone()), "{name}");
                if binary.target.starts_with("sm_") {
                    continue;
                }
                let text = String::from_utf8(image).unwrap();
                let entries: Vec<&str> = text.split(".entry ").skip(1).collect();
                assert_eq!(found.len(), entries.len(), "{name}");
                for entry in entries {
                    let (before, _) = entry.split_once("griddepcontrol.wait").unwrap();
                    let touches = ["ld.global", "st.global", "cp.async", "\tred.", "\tatom.", "\tret"];
                    let early: Vec<&str> = touches.into_iter().filter(|word| before.contains(word)).collect();
                    assert_eq!(early, [""; 0], "{name}: {before}");
                }
            }
            assert!(known.is_some_and(|waiting| !waiting.is_empty()), "{}", module.name);
        }
    }
}
