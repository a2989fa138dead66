//! Hypervisor.framework of macOS 15 and newer, on Apple silicon.
//!
//! `apple` makes the framework's calls; everything else is written against `framework`, compiled
//! for every host's tests, and driven there by a script (`scripted`). It was never run on a Mac:
//! `docs/macos.md` says what of it is proven and how.
//!
//! # What the framework does, and what is done here
//! It has the interrupt controller (GICv3) and with it each vCPU's timer and the messages between
//! vCPUs. Here: loads and stores of devices, the firmware (PSCI), system registers that nobody
//! has, waits that come out, and kicks. A process has one machine.
//!
//! With the feature `standin`, for tests, all of it is compiled for 64-bit Arm Linux too, `apple`
//! included, and linked with a stand-in for the framework.

// A monitor that is optimised may be one that ships, with a tests' crate for its hypervisor.
#[cfg(all(feature = "standin", not(debug_assertions)))]
compile_error!("the feature `standin` of nelly-vmm is for tests, which are built with debug assertions");

#[cfg(all(target_arch = "aarch64", any(target_os = "macos", feature = "standin")))]
mod apple;
#[cfg(any(test, all(target_arch = "aarch64", any(target_os = "macos", feature = "standin"))))]
mod framework;
#[cfg(any(test, all(target_arch = "aarch64", any(target_os = "macos", feature = "standin"))))]
mod ignored;
#[cfg(any(test, all(target_arch = "aarch64", any(target_os = "macos", feature = "standin"))))]
mod pages;
#[cfg(any(test, all(target_arch = "aarch64", any(target_os = "macos", feature = "standin"))))]
mod psci;
#[cfg(test)]
mod scripted;
#[cfg(any(test, all(target_arch = "aarch64", any(target_os = "macos", feature = "standin"))))]
mod syndrome;
#[cfg(test)]
mod tests;
#[cfg(any(test, all(target_arch = "aarch64", any(target_os = "macos", feature = "standin"))))]
mod timer;
#[cfg(any(test, all(target_arch = "aarch64", any(target_os = "macos", feature = "standin"))))]
mod vcpu;
#[cfg(any(test, all(target_arch = "aarch64", any(target_os = "macos", feature = "standin"))))]
mod vm;
#[cfg(any(test, all(target_arch = "aarch64", any(target_os = "macos", feature = "standin"))))]
mod wakes;

use super::HvError;

/// Opens the hypervisor.
///
/// # Errors
/// [`HvError::Unsupported`] on a Mac that cannot run machines. Whether this program may is found
/// out with the first machine.
#[cfg(all(target_arch = "aarch64", any(target_os = "macos", feature = "standin")))]
pub fn open() -> Result<impl super::Hypervisor, HvError> {
    apple::open().map(vm::Hvf::new)
}

/// Opens the hypervisor.
///
/// # Errors
/// Always [`HvError::Unsupported`].
#[cfg(not(any(target_os = "linux", all(target_os = "macos", target_arch = "aarch64"))))]
pub fn open() -> Result<impl super::Hypervisor, HvError> {
    Err::<super::never::Never, _>(unsupported())
}

/// What asking for this back end is answered with where it is none.
#[must_use]
pub fn unsupported() -> HvError {
    HvError::Unsupported { what: "Hypervisor.framework" }
}
