//! The floor plan itself: what README draws, as data.

/// A crate and its rooms.
pub(crate) struct Crate {
    /// Its directory from the top of the repository.
    pub(crate) directory: &'static str,
    /// Rooms (top-level modules) and their floors. A room imports from lower floors only. Empty:
    /// any order without a cycle.
    pub(crate) floors: &'static [(&'static str, u8)],
    /// Rooms whose own modules are rooms too, so that no two of them know each other: one room a
    /// device, one a back end.
    pub(crate) halls: &'static [&'static str],
    /// Our other crates that it may depend on.
    pub(crate) stands_on: &'static [&'static str],
    /// Packages it must not depend on, whoever asks for them.
    pub(crate) never: &'static [&'static str],
    /// Modules that may hold `unsafe` code.
    pub(crate) unsafe_rooms: &'static [&'static str],
    /// Modules that may ask what they are compiled for.
    pub(crate) target_rooms: &'static [&'static str],
    /// It is a program: its files may end the process and use `anyhow`.
    pub(crate) program: bool,
}

/// Words that name a binding, the crate they may stand in, and its module.
pub(crate) const FENCES: &[(&str, &str, &[&str])] = &[
    ("kvm_ioctls", "vmm/monitor", &["hv::kvm"]),
    ("kvm_bindings", "vmm/monitor", &["hv::kvm"]),
    ("applevisor", "vmm/monitor", &["hv::hvf"]),
    ("applevisor_sys", "vmm/monitor", &["hv::hvf"]),
];

/// Words that belong to one processor architecture, in small letters and without separators.
pub(crate) const FOREIGN: &[&str] = &[
    "x86", "x8664", "pio", "gsi", "ioapic", "mptable", "acpi", "tsc", "cpuid", "i8042", "aarch64", "arm64",
    "gic", "pl011", "pl031", "psci",
];

/// Modules that know no architecture, each with those of its own that do, and with `true` when only
/// its own file is meant. Tests may.
pub(crate) const NEUTRAL: &[(&str, &str, &[&str], bool)] = &[
    ("vmm/monitor", "hv", &[], true),
    ("vmm/monitor", "hv::fake", &[], false),
    ("vmm/monitor", "bus", &[], false),
    ("vmm/monitor", "virtio", &[], false),
    ("vmm/monitor", "machine", &["machine::board"], false),
];

/// Files that may put another number in the place of one that does not fit, each with its reason.
/// Elsewhere the number that cannot be is an assertion (`fits`), and one from outside that may be
/// any is cut (`at_most`) or refused.
pub(crate) const SILENT: &[(&str, &str)] = &[(
    "vmm/monitor/src/virtio/transport/mmio.rs",
    "a queue's size that the driver writes and that has more than 16 bits is the size 0, which is refused",
)];

/// What a library must leave to programs, beside what its `never` says.
const HEAVY: &[&str] = &[
    "tokio",
    "clap",
    "ttrpc",
    "anyhow",
    "reqwest",
    "hyper",
    "rustls",
    "oci-client",
    "libcontainer",
    "protobuf",
];

/// Every crate.
pub(crate) const CRATES: &[Crate] = &[
    Crate {
        directory: "vmm/disk",
        floors: &[
            ("number", 0),
            ("sys", 0),
            ("buffer", 1),
            ("traits", 2),
            ("testing", 3),
            ("file", 4),
            ("read_only", 4),
            ("concat", 5),
            ("raw", 6),
        ],
        halls: &[],
        stands_on: &[],
        never: &["tokio", "clap", "ttrpc", "anyhow", "kvm-ioctls", "kvm-bindings", "vm-memory", "libc"],
        unsafe_rooms: &[],
        target_rooms: &["sys"],
        program: false,
    },
    Crate {
        directory: "vmm/net",
        floors: &[
            ("link", 0),
            ("number", 0),
            ("sys", 0),
            ("dns", 1),
            ("wire", 1),
            ("config", 2),
            ("policy", 3),
            ("core", 4),
            ("shell", 5),
        ],
        halls: &[],
        stands_on: &[],
        never: &["tokio", "clap", "ttrpc", "anyhow", "kvm-ioctls", "kvm-bindings", "vm-memory"],
        unsafe_rooms: &["sys"],
        target_rooms: &["sys"],
        program: false,
    },
    Crate {
        directory: "vmm/monitor",
        floors: &[
            ("arch", 0),
            ("config", 0),
            ("sys", 0),
            ("text", 0),
            ("memory", 1),
            ("state", 1),
            ("timeline", 1),
            ("hv", 2),
            ("bus", 3),
            ("devices", 4),
            ("virtio", 4),
            ("boot", 5),
            ("machine", 6),
        ],
        halls: &["hv", "virtio", "boot", "devices"],
        stands_on: &["nelly-disk"],
        never: HEAVY,
        unsafe_rooms: &["sys", "memory", "hv"],
        target_rooms: &["arch", "hv", "sys"],
        program: false,
    },
    Crate {
        directory: "vmm/image",
        floors: &[
            ("digest", 0),
            ("health", 0),
            ("limits", 0),
            ("num", 0),
            ("progress", 0),
            ("sys", 0),
            ("zstd", 0),
            ("descriptor", 1),
            ("name", 1),
            ("tree", 1),
            ("trusted", 1),
            ("lock", 2),
            ("reference", 2),
            ("removed", 2),
            ("version", 2),
            ("tar", 2),
            ("erofs", 2),
            ("cache", 3),
            ("changes", 3),
            ("rootfs", 3),
            ("layer", 4),
            ("blob", 5),
            ("source", 6),
            ("local", 7),
            ("error", 8),
            ("transfer", 8),
            ("merge", 9),
            ("store", 10),
        ],
        halls: &[],
        stands_on: &["nelly-disk"],
        never: &["clap", "ttrpc", "anyhow", "kvm-ioctls", "kvm-bindings"],
        unsafe_rooms: &[],
        target_rooms: &["sys"],
        program: false,
    },
    Crate {
        directory: "vmm/registry",
        floors: &[
            ("cancel", 0),
            ("challenge", 0),
            ("error", 0),
            ("options", 0),
            ("warnings", 0),
            ("program", 1),
            ("retry", 1),
            ("tls", 1),
            ("credentials", 2),
            ("resolve", 2),
            ("proxy", 3),
            ("http", 4),
            ("endpoint", 5),
            ("client", 6),
            ("transfer", 6),
            ("pull", 7),
            ("push", 8),
        ],
        halls: &[],
        stands_on: &["nelly-image"],
        never: &[
            "tokio",
            "clap",
            "ttrpc",
            "anyhow",
            "reqwest",
            "hyper",
            "webpki-roots",
            "kvm-ioctls",
            "kvm-bindings",
        ],
        unsafe_rooms: &[],
        target_rooms: &[],
        program: false,
    },
    Crate {
        directory: "vmm/sandbox",
        floors: &[
            ("spec", 0),
            ("timeline", 0),
            ("state", 1),
            ("wire", 2),
            ("agent", 3),
            ("instance", 4),
            ("life", 5),
            ("connect", 6),
            ("keep", 7),
            ("library", 8),
        ],
        halls: &[],
        stands_on: &["nelly-vmm", "nelly-image", "nelly-protocol", "nelly-archive"],
        never: &["clap", "anyhow", "kvm-ioctls", "kvm-bindings"],
        unsafe_rooms: &[],
        target_rooms: &[],
        program: false,
    },
    Crate {
        directory: "vmm/keeper",
        floors: &[],
        halls: &[],
        stands_on: &["nelly-vmm", "nelly-sandbox"],
        never: &["clap", "kvm-ioctls", "kvm-bindings"],
        unsafe_rooms: &[],
        target_rooms: &[],
        program: true,
    },
    Crate {
        directory: "vmm/bench",
        floors: &[
            ("memory_use", 0),
            ("host", 0),
            ("stats", 0),
            ("sys", 0),
            ("timeline", 0),
            ("plan", 1),
            ("record", 1),
            ("peer", 2),
            ("runner", 3),
            ("report", 4),
        ],
        halls: &[],
        stands_on: &["nelly-vmm", "nelly-image", "nelly-sandbox"],
        never: &["clap", "ttrpc", "anyhow", "kvm-ioctls", "kvm-bindings"],
        unsafe_rooms: &["sys"],
        target_rooms: &[],
        program: false,
    },
    Crate {
        directory: "vmm/cli",
        floors: &[],
        halls: &[],
        stands_on: &["nelly-vmm", "nelly-image", "nelly-registry", "nelly-sandbox", "nelly-bench"],
        never: &["ttrpc", "kvm-ioctls", "kvm-bindings"],
        unsafe_rooms: &[],
        target_rooms: &[],
        program: true,
    },
    Crate {
        directory: "guest-agent/protocol",
        floors: &[],
        halls: &[],
        stands_on: &[],
        never: &["clap", "anyhow"],
        unsafe_rooms: &[],
        target_rooms: &[],
        program: false,
    },
    Crate {
        directory: "guest-agent/archive",
        floors: &[],
        halls: &[],
        stands_on: &[],
        never: &["clap", "anyhow", "tokio"],
        unsafe_rooms: &[],
        target_rooms: &[],
        program: false,
    },
    Crate {
        directory: "guest-agent/agent",
        floors: &[
            ("arch", 0),
            ("sys", 0),
            ("cgroup", 1),
            ("network", 1),
            ("slots", 1),
            ("timeline", 1),
            ("mounts", 2),
            ("spawn", 3),
            ("inspect", 4),
            ("registry", 4),
            ("stdio", 5),
            ("service", 6),
        ],
        halls: &[],
        stands_on: &["nelly-protocol", "nelly-archive"],
        never: &["clap", "reqwest", "kvm-ioctls", "kvm-bindings", "vm-memory"],
        unsafe_rooms: &["sys", "arch::counter"],
        target_rooms: &["arch"],
        program: true,
    },
];
