//! Errors of the driver for GPUs.

use super::ffi::{Cuda, StatusCode, describe};
use crate::error::{Error, Field, Message};

/// The device as the user names it.
pub(crate) const DEVICE: &str = "cuda";

/// An error for something that must be there before a device can be opened.
pub(crate) fn missing(what: impl Into<Message>) -> Error {
    Error::Device { device: DEVICE.into(), what: what.into() }
}

/// The same, where the CPU is the way out: the message ends with the setting that chooses it.
pub(crate) fn missing_or_cpu(what: impl Into<Message>) -> Error {
    missing(what.into().setting(Field::Device, "cpu"))
}

/// An error of a call that was made before a device was opened.
pub(crate) fn early(cuda: &Cuda, call: &str, code: StatusCode) -> Error {
    let text = describe(cuda, code);
    let what = Message::from(match code {
        StatusCode::NO_DEVICE => format!(
            "{call}: {text}; is a GPU there (nvidia-smi)? One that is newer than its driver needs a newer one: update the driver (Blackwell \
             needs one for CUDA 12.8), or "
        ),
        _ => format!("{call}: {text}; is a GPU there and its driver loaded (nvidia-smi)? "),
    });
    missing(what.setting(Field::Device, "cpu").text(" needs none"))
}

/// Whether a fault makes the context unusable: the kinds that the CUDA manual calls sticky.
pub(crate) fn is_sticky(code: StatusCode) -> bool {
    matches!(code.0, 4 | 214 | 220 | 226 | 700 | 702 | 709 | 710 | 714..=719 | 721 | 911 | 999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_that_stay() {
        // Illegal address, launch failure and an unknown error are sticky; out of memory and a bad value are not.
        assert!([700, 719, 999, 214].into_iter().all(|code| is_sticky(StatusCode(code))));
        assert!(![1, 2, 400, 701, 801, 900].into_iter().any(|code| is_sticky(StatusCode(code))));
    }
}
