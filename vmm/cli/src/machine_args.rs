//! The flags of the machine that `run` and `boot` share.

use clap::{Args, ValueEnum};

/// The log level on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    /// Errors
    Error,
    /// Errors and warnings
    Warn,
    /// Also each main step
    Info,
    /// Also details, and the guest's console
    Debug,
    /// Everything
    Trace,
}

/// The value of `--confine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConfineArg {
    /// Wholly, or the machine is refused
    Strict,
    /// As far as this host can
    On,
    /// Not at all: it keeps all rights of the user
    Off,
}

/// Flags of the machine that `run` and `boot` share.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct MachineArgs {
    /// Number of vCPUs, 1 to 32 [env: NELLY_CPUS] [default: 1]
    #[arg(long, value_name = "N", value_parser = crate::vcpus::whole)]
    pub(crate) cpus: Option<u32>,
    /// Memory size, such as 512M or 1.5G (binary) [env: NELLY_MEMORY] [default: 512M]
    #[arg(short, long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// Expose SVM or VMX to the guest, so that it can run virtual machines itself
    #[arg(long)]
    pub(crate) nested: bool,
    /// Whether nelly-monitor gives up what the machine does not need before the guest runs: rights,
    /// files, system calls [default: on]
    #[arg(long, value_name = "HOW")]
    pub(crate) confine: Option<ConfineArg>,
    /// As root: the user that nelly-monitor becomes before the guest runs, with namespaces and an
    /// empty root directory of its own; a name of /etc/passwd, UID, or UID:GID
    #[arg(long, value_name = "USER")]
    pub(crate) monitor_user: Option<String>,
    /// Text to append to the kernel command line [env: NELLY_APPEND]
    #[arg(long, value_name = "WORDS")]
    pub(crate) append: Option<String>,
    /// Stop the machine after this time (500ms, 1m30s, or a number of seconds) and exit with code
    /// 124
    #[arg(long, value_name = "DURATION")]
    pub(crate) timeout: Option<String>,
    /// Log level on stderr [env: NELLY_LOG] [default: warn]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<LogLevel>,
    /// Print the configuration as JSON without writing a file or starting a machine
    #[arg(long)]
    pub(crate) dry_run: bool,
}
