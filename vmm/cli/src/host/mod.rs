//! Capabilities of the host: its hypervisor and its processor.

#[cfg(not(target_os = "macos"))]
mod linux;
#[cfg(target_os = "macos")]
mod macos;

use anyhow::{Error, Result};
use nelly_sandbox::state::BootRecord;

use crate::advice;
use crate::fail::Hint;

#[cfg(not(target_os = "macos"))]
pub(crate) use linux::{CHECK, GOOD, LACKS, PROBE_HINT, support};
#[cfg(target_os = "macos")]
pub(crate) use macos::{CHECK, GOOD, LACKS, PROBE_HINT, support};

/// What the system lacks of what Nelly can do elsewhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lack {
    /// Its name in the report of `nelly doctor`.
    pub(crate) check: &'static str,
    /// What does not work.
    pub(crate) text: &'static str,
    /// What does in its place.
    pub(crate) hint: &'static str,
}

/// The state of the host's hypervisor, as far as it can be checked without starting anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HostSupport {
    /// It can be used, and the processor has hardware virtualisation.
    Mainstream,
    /// It can be opened, but there is no hardware virtualisation: a paravirtual KVM, which runs a
    /// few instructions but no stock kernel.
    #[cfg_attr(target_os = "macos", expect(dead_code, reason = "only KVM can be so"))]
    Paravirtual,
    /// It cannot be used: the reason, and what to do.
    Unusable(String, String),
}

/// Returns an error that names an alternative, if the host's hypervisor cannot run a stock kernel.
///
/// # Errors
/// No hypervisor, no permission, or a paravirtual KVM.
pub(crate) fn require_mainstream() -> Result<()> {
    match support() {
        HostSupport::Mainstream => Ok(()),
        HostSupport::Unusable(message, hint) => Err(Hint::error(message, hint)),
        HostSupport::Paravirtual => Err(paravirtual()),
    }
}

/// The same for what a sandbox boots. Whoever boots a kernel of their own knows what it needs: any
/// hypervisor that can be used will do, as it does for `nelly boot` in the foreground.
///
/// # Errors
/// As [`require_mainstream`]; for a kernel of one's own, only where the hypervisor cannot be used
/// at all.
pub(crate) fn require_for(boot: Option<&BootRecord>) -> Result<()> {
    if boot.is_none_or(|boot| boot.kernel.is_none()) {
        return require_mainstream();
    }
    match support() {
        HostSupport::Unusable(message, hint) => Err(Hint::error(message, hint)),
        HostSupport::Mainstream | HostSupport::Paravirtual => Ok(()),
    }
}

fn paravirtual() -> Error {
    Hint::error(
        "this host's KVM is paravirtual (the processor has neither svm nor vmx) and cannot run a stock kernel",
        format!("{}; `nelly doctor` shows details", advice::another_host()),
    )
}
