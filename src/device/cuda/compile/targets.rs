//! Kernel files for one architecture alone; for build.rs, which includes this file, too.

/// Whether a kernel file is for sm_90a alone, by its name: `gemm_sm90`. Its instructions (wgmma, tensor copies, setmaxnreg) exist
/// neither before nor after.
pub(crate) fn is_sm_90a_alone(file: &str) -> bool {
    file.ends_with("_sm90")
}
