//! Settings and statistics of the whole guest.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nelly_protocol::messages::HelloRequest;
use thiserror::Error;
use ttrpc::Code;

use crate::cgroup::CgroupStats;
use crate::network::{self, Names, NetworkError};
use crate::sys;

/// The build id of this agent; builds of an initramfs may set the variable.
pub(super) const BUILD: &str = match option_env!("NELLY_BUILD_ID") {
    Some(build) => build,
    None => env!("CARGO_PKG_VERSION"),
};

/// The clock is set if it is wrong by more than this.
const TOLERANCE_NS: u64 = 10_000_000;

/// Maximum number of bytes that Hello may add to the entropy pool.
const MOST_ENTROPY: usize = 64;

/// Why a setting in a Hello request could not be applied.
#[derive(Debug, Error)]
pub enum GuestError {
    /// The host name cannot be set.
    #[error("cannot set the host name {0:?}")]
    Hostname(String, #[source] io::Error),
    /// The clock cannot be set.
    #[error("cannot set the clock")]
    Clock(#[source] io::Error),
    /// The bytes cannot be added to the entropy pool.
    #[error("cannot add {0} bytes to the entropy pool (the limit is 64)")]
    Entropy(usize, #[source] io::Error),
    /// The network cannot be set up.
    #[error("cannot set up the guest's network")]
    Network(#[source] NetworkError),
}

impl GuestError {
    /// The code of the answer.
    pub(super) fn code(&self) -> Code {
        match self {
            Self::Network(NetworkError::Value { .. } | NetworkError::NoInterface { .. }) => {
                Code::INVALID_ARGUMENT
            }
            _ => Code::INTERNAL,
        }
    }
}

/// Sets the host name, the clock and the network, and adds entropy, as far as the request contains
/// them. Answers the names of a network that was set.
pub(super) fn apply(request: &HelloRequest) -> Result<Option<Names>, GuestError> {
    if !request.entropy.is_empty() {
        let count = request.entropy.len();
        let fail = |error| GuestError::Entropy(count, error);
        if count > MOST_ENTROPY {
            return Err(fail(io::Error::from_raw_os_error(libc::EINVAL)));
        }
        let pool = OpenOptions::new().write(true).open("/dev/urandom").map_err(fail)?;
        sys::add_entropy(pool.as_fd(), &request.entropy).map_err(fail)?;
    }
    if let Ok(now @ 1..) = u64::try_from(request.now_unix_ns)
        && now.abs_diff(sys::real_time_ns()) > TOLERANCE_NS
    {
        sys::set_real_time_ns(now).map_err(GuestError::Clock)?;
    }
    if !request.hostname.is_empty() {
        nix::unistd::sethostname(&request.hostname)
            .map_err(|error| GuestError::Hostname(request.hostname.clone(), error.into()))?;
    }
    request.network.as_ref().map(network::set).transpose().map_err(GuestError::Network)
}

pub(super) fn kernel_release() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// Memory of the guest.
pub(super) struct Memory {
    pub(super) total_bytes: u64,
    pub(super) available_bytes: u64,
}

pub(super) fn memory() -> Memory {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name| kib_of(&text, name).saturating_mul(1024);
    Memory { total_bytes: kib("MemTotal:"), available_bytes: kib("MemAvailable:") }
}

fn kib_of(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok())
        .unwrap_or(0)
}

/// What was read from and written to the disks of the guest.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Disks {
    pub(super) read_bytes: u64,
    pub(super) written_bytes: u64,
}

/// The sum over all disks below `directory` (sysfs's `block`).
pub(super) fn disks(directory: &Path) -> Disks {
    let mut all = Disks::default();
    for disk in fs::read_dir(directory).into_iter().flatten().flatten() {
        // Documentation/block/stat.rst of the kernel: fields 3 and 7 are sectors of 512 bytes.
        let text = fs::read_to_string(disk.path().join("stat")).unwrap_or_default();
        let mut fields = text.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0_u64));
        let (read, written) = (fields.nth(2).unwrap_or(0), fields.nth(3).unwrap_or(0));
        all.read_bytes = all.read_bytes.saturating_add(read.saturating_mul(512));
        all.written_bytes = all.written_bytes.saturating_add(written.saturating_mul(512));
    }
    all
}

pub(super) fn agent_resident_bytes() -> u64 {
    kib_of(&fs::read_to_string("/proc/self/status").unwrap_or_default(), "VmRSS:").saturating_mul(1024)
}

/// Statistics of the whole guest; `root` is the mount point of cgroup v2.
pub(super) fn figures(root: &Path) -> CgroupStats {
    let memory = memory();
    let used = memory.total_bytes.saturating_sub(memory.available_bytes);
    let cpu = crate::cgroup::cpu_figures(root);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let vmstat = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let oom = vmstat.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
    CgroupStats {
        memory_current_bytes: used,
        memory_peak_bytes: 0,
        memory_limit_bytes: memory.total_bytes,
        oom_kills: oom.unwrap_or(0),
        pids_current: tasks(&load),
        ..cpu
    }
}

/// The number of tasks in /proc/loadavg: "0.00 0.00 0.00 1/57 61" has 57.
fn tasks(loadavg: &str) -> u64 {
    let word = loadavg.split_whitespace().nth(3).and_then(|word| word.split_once('/'));
    word.and_then(|(_, all)| all.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_by_name() {
        let text = "MemTotal:        2048 kB\nMemFree: 5 kB\nMemAvailable:    1024 kB\n";
        assert_eq!(kib_of(text, "MemTotal:"), 2048);
        assert_eq!(kib_of(text, "MemAvailable:"), 1024);
        assert_eq!(kib_of(text, "Swap:"), 0);
        assert_eq!(tasks("0.00 0.01 0.05 2/57 61\n"), 57);
        assert_eq!(tasks(""), 0);
        assert!(memory().total_bytes > memory().available_bytes);
        assert!(agent_resident_bytes() > 0);
    }

    #[test]
    fn what_disks_did_is_summed_up() {
        let root = tempfile::tempdir().expect("a directory");
        for (disk, text) in
            [("vda", "  10 0 4 1 20 0 3 9 0 0 0\n"), ("vdb", "1 0 2 1 0 0 0 0 0\n"), ("odd", "x\n")]
        {
            fs::create_dir(root.path().join(disk)).expect("made");
            fs::write(root.path().join(disk).join("stat"), text).expect("written");
        }
        assert_eq!(disks(root.path()), Disks { read_bytes: 6 * 512, written_bytes: 3 * 512 });
        assert_eq!(disks(&root.path().join("none")), Disks::default());
    }

    #[test]
    fn too_much_entropy_is_refused() {
        let request = HelloRequest { entropy: vec![0; 65], ..HelloRequest::default() };
        assert!(matches!(apply(&request), Err(GuestError::Entropy(65, _))));
    }
}
