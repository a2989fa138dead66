//! Hypervisor.framework, on macOS.

use nelly_vmm::sys::host::{has_hypervisor, system_version};

use super::{HostSupport, Lack};

/// The name of the check.
pub(crate) const CHECK: &str = "hypervisor";
/// What is said where it can be used.
pub(crate) const GOOD: &str = "macOS has Hypervisor.framework with an interrupt controller for guests";
/// What a guest that does not run means.
pub(crate) const PROBE_HINT: &str = "machines run in nelly-monitor, which needs the same signature";
/// What macOS has no calls for, or Nelly does not use yet.
pub(crate) const LACKS: &[Lack] = &[
    Lack {
        check: "shares",
        text: "directories of this Mac cannot be mounted in machines (-v, --share): what keeps a guest inside of them is there on Linux only",
        hint: "nelly cp copies files in and out",
    },
    Lack {
        check: "networks",
        text: "machines cannot share a network (nelly network, --network NAME): this system's Unix sockets keep no messages apart over a connection",
        hint: "--net user gives each machine a network of its own, and -p publishes ports",
    },
    Lack {
        check: "devices",
        text: "vhost-user devices and tap networks are there on Linux only",
        hint: "disks and --net user work without",
    },
    Lack {
        check: "state",
        text: "machines are neither saved nor restored, and do not show their virtualisation",
        hint: "the framework's calls for it are not used yet",
    },
    Lack {
        check: "bench",
        text: "nelly bench takes no figures: it reads them from /proc",
        hint: "nelly bench compare reads those of a Linux host",
    },
];

/// The first macOS whose framework has an interrupt controller.
const LEAST: u32 = 15;

/// Asks the system.
pub(crate) fn support() -> HostSupport {
    let version = match system_version() {
        Ok(version) => version,
        Err(error) => {
            let why = format!("the version of macOS is unknown: {error}");
            return HostSupport::Unusable(why, "macOS 15 or newer is needed".into());
        }
    };
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < LEAST) {
        let why = format!("macOS {version} has no interrupt controller for guests");
        return HostSupport::Unusable(why, format!("update to macOS {LEAST} or newer"));
    }
    if !has_hypervisor() {
        return HostSupport::Unusable(
            "this Mac's processor, or the machine that macOS runs in, has no hardware virtualisation (kern.hv_support is 0)".into(),
            "a Mac with Apple silicon is needed; in a virtual machine, one of macOS 15 on an M3 or newer that shows its virtualisation".into(),
        );
    }
    HostSupport::Mainstream
}
