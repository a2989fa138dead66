//! Plans of benchmarks: plain data, validated when it is created.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use nelly_vmm::config::{CpuCount, MemorySize, Platform};

/// A monitor that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Vmm {
    /// `nelly-monitor`.
    Nelly,
    /// Firecracker.
    Firecracker,
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// QEMU, its `microvm` machine.
    Qemu,
    /// Alioth.
    Alioth,
}

impl Vmm {
    /// All monitors except Nelly's.
    pub const PEERS: [Self; 4] = [Self::Firecracker, Self::CloudHypervisor, Self::Qemu, Self::Alioth];

    /// The name in reports and after `--vs`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nelly => "nelly",
            Self::Firecracker => "firecracker",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Qemu => "qemu",
            Self::Alioth => "alioth",
        }
    }

    /// The program to look up on PATH if no path is given.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Nelly => "nelly-monitor",
            Self::Qemu => "qemu-system-x86_64",
            other => other.name(),
        }
    }
}

impl fmt::Display for Vmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a `--vs` was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// There is no such monitor.
    #[error(
        "unknown monitor {0:?}: write firecracker, cloud-hypervisor, qemu or alioth, with =PATH if it is not on PATH"
    )]
    Unknown(String),
    /// `NAME=` without a path.
    #[error("the path after {0}= is empty; write a path, or leave out the =")]
    NoPath(&'static str),
}

/// A monitor to compare with: `NAME` or `NAME=PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The monitor.
    pub vmm: Vmm,
    /// Its program; `None` to look it up on PATH.
    pub program: Option<PathBuf>,
}

impl FromStr for Peer {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, PeerError> {
        let (name, path) = match text.split_once('=') {
            Some((name, path)) => (name, Some(path)),
            None => (text, None),
        };
        let Some(vmm) = Vmm::PEERS.into_iter().find(|vmm| vmm.name() == name) else {
            return Err(PeerError::Unknown(name.to_owned()));
        };
        match path {
            Some("") => Err(PeerError::NoPath(vmm.name())),
            path => Ok(Self { vmm, program: path.map(PathBuf::from) }),
        }
    }
}

/// The guest that all monitors boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestSetup {
    /// The kernel, as an absolute path.
    pub kernel: PathBuf,
    /// The initramfs, as an absolute path, if any.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub command_line: String,
    /// Number of vCPUs.
    pub cpus: CpuCount,
    /// Memory size.
    pub memory: MemorySize,
    /// How the hardware is described to the kernel by Nelly; other monitors have their own way.
    pub platform: Platform,
}

/// Number of rounds, and the time limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounds {
    /// Number of counted rounds, with one start of each monitor.
    pub counted: u32,
    /// Number of warm-up rounds before them, which fill caches.
    pub warm_up: u32,
    /// Time limit of one start.
    pub limit: Duration,
}

impl Rounds {
    /// All turns in order, as `(round, index)`, for this number of `contestants`. They are
    /// interleaved, and each round begins with the next one, so that the order changes. Rounds
    /// below `warm_up` do not count.
    #[must_use]
    pub fn turns(&self, contestants: usize) -> Vec<(u32, usize)> {
        let rounds = 0..self.warm_up + self.counted;
        let turn = |round: u32| {
            let first = usize::try_from(round).expect("32 bits fit everywhere that this runs");
            (0..contestants).map(move |place| (round, (first + place) % contestants))
        };
        rounds.flat_map(turn).collect()
    }
}

/// `bench boot`.
#[derive(Clone, Debug)]
pub struct BootPlan {
    /// The guest.
    pub guest: GuestSetup,
    /// `nelly-monitor`.
    pub monitor: PathBuf,
    /// The other monitors.
    pub peers: Vec<Peer>,
    /// The rounds.
    pub rounds: Rounds,
    /// The text on the serial console that ends a start.
    pub marker: String,
}

/// A sandbox of the built-in image, for `bench exec`, `bench density` and `bench boot --until
/// ready`.
#[derive(Clone, Debug)]
pub struct SandboxPlan {
    /// `nelly-monitor`.
    pub monitor: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs with the agent.
    pub initrd: PathBuf,
    /// How the hardware is described to the kernel.
    pub platform: Platform,
    /// The built-in image's OCI layout.
    pub builtin: PathBuf,
    /// The image cache.
    pub cache: PathBuf,
    /// Number of vCPUs.
    pub cpus: CpuCount,
    /// Memory size.
    pub memory: MemorySize,
    /// Text to append to the kernel command line.
    pub append: String,
}

/// `bench run`: a process with its arguments.
#[derive(Clone, Debug)]
pub struct RunPlan {
    /// `nelly`.
    pub program: PathBuf,
    /// Flags of `nelly run`, without `--result`.
    pub flags: Vec<String>,
    /// The command in the container.
    pub command: Vec<String>,
    /// The rounds.
    pub rounds: Rounds,
}

/// Limits of `bench density`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DensityLimit {
    /// Maximum number of machines.
    pub count: u32,
    /// Maximum memory of all machines together (PSS); `None` for the host's free memory.
    pub memory_bytes: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_named_and_others_refused() {
        let peer = |text: &str| text.parse::<Peer>();
        assert_eq!(peer("qemu"), Ok(Peer { vmm: Vmm::Qemu, program: None }));
        let firecracker = Peer { vmm: Vmm::Firecracker, program: Some("/x/fc=1".into()) };
        assert_eq!(peer("firecracker=/x/fc=1"), Ok(firecracker));
        assert_eq!(peer("alioth="), Err(PeerError::NoPath("alioth")));
        for unknown in ["", "nelly", "Qemu", "crosvm=/bin/crosvm"] {
            let error = peer(unknown).unwrap_err().to_string();
            assert!(error.contains("cloud-hypervisor"), "{error}");
        }
    }

    #[test]
    fn turns_are_interleaved_and_nobody_is_always_first() {
        let rounds = Rounds { counted: 2, warm_up: 1, limit: Duration::from_secs(1) };
        let turns = rounds.turns(3);
        assert_eq!(turns, [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 0), (2, 2), (2, 0), (2, 1)]);
        assert_eq!(rounds.turns(1), [(0, 0), (1, 0), (2, 0)]);
    }
}
