//! Hypervisor.framework of macOS. Not written yet: [`open`] says so.

use super::HvError;

/// The hypervisor, once there is one.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub type Hvf = super::never::Never;

/// Opens the hypervisor.
///
/// # Errors
/// Always [`HvError::Unsupported`].
#[cfg(not(target_os = "linux"))]
pub fn open() -> Result<Hvf, HvError> {
    Err(unsupported())
}

/// What asking for this back end is answered with.
#[must_use]
pub fn unsupported() -> HvError {
    HvError::Unsupported { what: "Hypervisor.framework" }
}
