//! The log of compiler and assembler; for build.rs, which includes this file, too.

/// The line that tells of a warning, of registers spilt to memory, or of something that the assembler gave up for the sake of
/// correctness: products on tensor cores one by one, registers that stay as they are (ptxas's notes C7504 to C7515).
pub(crate) fn flaw(log: &str) -> Option<&str> {
    let clean = "0 bytes spill stores, 0 bytes spill loads";
    let spills = |line: &str| line.contains("spill") && !line.contains(&format!(" {clean}"));
    let noted = |line: &str| {
        line.contains("Potential Performance Loss") || (7504..=7515).any(|code| line.contains(&format!("(C{code})")))
    };
    log.lines().map(str::trim).find(|line| line.contains("warning") || spills(line) || noted(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flaws_of_a_log() {
        let clean = "ptxas info    : 0 bytes gmem\nptxas info    : Compiling entry function 'a' for 'sm_90a'\n\
                     ptxas info    : Function properties for a\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
                     ptxas info    : Used 168 registers, used 1 barriers\n";
        assert_eq!(flaw(clean), None);
        for line in [
            "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to non wgmma \
             instructions defining accumulator registers of a wgmma between start and end of the pipeline stage in the function 'a'",
            "ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored to maintain minimum register requirements.",
            "ptxas info    : (C7515) in other words",
            "    8 bytes stack frame, 0 bytes spill stores, 8 bytes spill loads",
            "    8 bytes stack frame, 10 bytes spill stores, 0 bytes spill loads",
            "kernels/a.cu(3): warning #177-D: variable \"x\" was declared but never referenced",
        ] {
            assert_eq!(flaw(&format!("{clean}{line}\n{clean}")), Some(line.trim()));
        }
        assert_eq!(flaw("ptxas info    : (C7503) another note"), None);
    }
}
