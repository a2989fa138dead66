//! The flags of `nelly bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use nelly_bench::plan::Peer;

/// The marker that `share/nelly/marker.cpio` writes.
const MARKER: &str = "NELLY-INIT";
/// `nelly bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) verb: BenchVerb,
}

/// Verbs of `bench`.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchVerb {
    /// Measure a boot, from the start of the monitor to the guest's marker or agent
    #[command(after_help = "Examples:\n  \
        nelly bench boot\n  \
        nelly bench boot --rounds 50 --vs qemu --vs firecracker=./firecracker --html report.html\n  \
        nelly bench boot --until ready --json ready.json\n  \
        nelly bench boot --kernel tiny --no-initrd --marker NELLY-TINY")]
    Boot(BootFlags),
    /// Measure `nelly run -- COMMAND`, from the start of the process to its end
    #[command(
        after_help = "Examples:\n  nelly bench run\n  nelly bench run --rounds 50 --json run.json -- echo hello"
    )]
    Run(CommandFlags),
    /// Measure repeated execs of one command in a running container
    #[command(
        after_help = "Examples:\n  nelly bench exec --rounds 100\n  nelly bench exec --csv execs.csv -- echo hello"
    )]
    Exec(CommandFlags),
    /// Start machines until a limit is reached, and measure the memory that each one adds
    #[command(
        after_help = "Examples:\n  nelly bench density --count 8 -m 128M\n  nelly bench density --count 100 --memory-limit 4G --html density.html"
    )]
    Density(DensityFlags),
    /// Compare two results; exit code 1 if the second is slower
    #[command(
        after_help = "Examples:\n  nelly bench compare before.json after.json\n  nelly bench compare --least 2 before.json after.json"
    )]
    Compare(CompareFlags),
}

/// Flags that every measuring has.
#[derive(Debug, Args)]
pub(crate) struct CommonFlags {
    /// Number of vCPUs, 1 to 32
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) cpus: u64,
    /// Memory size, such as 128M or 1.5G (binary)
    #[arg(short, long, value_name = "SIZE", default_value = "128M")]
    pub(crate) memory: String,
    /// Text to append to the kernel command line
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub(crate) append: String,
    /// Time limit of each round: 500ms, 1m30s, or a number of seconds
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    pub(crate) limit: String,
    /// Write the result with all samples as JSON (schema 1)
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write all samples as CSV
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    /// Write a report with plots as one self-contained HTML file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

/// How often.
#[derive(Debug, Args)]
pub(crate) struct RoundFlags {
    /// Number of measured rounds
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) rounds: u32,
    /// Number of warm-up rounds, which are not counted
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub(crate) warm_up: u32,
}

/// What ends a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Until {
    /// The marker on the serial console (see --marker)
    Marker,
    /// The first answer of Nelly's agent; not possible with --vs
    Ready,
}

#[derive(Debug, Args)]
pub(crate) struct BootFlags {
    #[command(flatten)]
    pub(crate) rounds: RoundFlags,
    /// Also boot the same guest in another monitor, in turns: firecracker, cloud-hypervisor, qemu
    /// or alioth, found on PATH if no path is given
    #[arg(long, value_name = "NAME[=PATH]")]
    pub(crate) vs: Vec<Peer>,
    /// What ends a measured boot
    #[arg(long, value_name = "WHAT", default_value = "marker")]
    pub(crate) until: Until,
    /// Kernel to boot [default: the installed one]
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// Initramfs whose init writes the marker [default: the installed one]
    #[arg(long, value_name = "FILE", conflicts_with = "no_initrd")]
    pub(crate) initrd: Option<PathBuf>,
    /// Boot without an initramfs, for a kernel that writes the marker itself
    #[arg(long)]
    pub(crate) no_initrd: bool,
    /// Text on the serial console that ends a measured boot
    #[arg(long, value_name = "TEXT", default_value = MARKER)]
    pub(crate) marker: String,
    /// Count system calls with strace in one extra boot that is not timed
    #[arg(long)]
    pub(crate) syscalls: bool,
    #[command(flatten)]
    pub(crate) common: CommonFlags,
}

#[derive(Debug, Args)]
pub(crate) struct CommandFlags {
    #[command(flatten)]
    pub(crate) rounds: RoundFlags,
    #[command(flatten)]
    pub(crate) common: CommonFlags,
    /// The command to run in the container [default: true]
    #[arg(value_name = "COMMAND", last = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DensityFlags {
    /// Maximum number of machines
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) count: u32,
    /// Stop when the machines together use this much memory, such as 4G (binary)
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory_limit: Option<String>,
    #[command(flatten)]
    pub(crate) common: CommonFlags,
}

#[derive(Debug, Args)]
pub(crate) struct CompareFlags {
    /// Smallest change of a median to report, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=1000))]
    pub(crate) least: u64,
    /// Print JSON (schema 1)
    #[arg(long)]
    pub(crate) json: bool,
    /// The older result, a file written by --json
    pub(crate) before: PathBuf,
    /// The newer result
    pub(crate) after: PathBuf,
}
