//! `nelly bench`: flags into plans, records into tables and files. The measuring itself is `nelly-bench`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use nelly_bench::host::Environment;
use nelly_bench::plan::{BootPlan, DensityLimit, Guest, Peer, Rounds, RunPlan, SandboxPlan};
use nelly_bench::record::{GuestRecord, Record};
use nelly_bench::report;
use nelly_bench::runner::{self, RunnerError};
use nelly_sandbox::spec::size;
use nelly_vmm::config::{CommandLine, CpuCount, MemorySize, Platform};
use nelly_vmm::sys::terminal;

use crate::assets::Assets;
use crate::context::Context;
use crate::host::{self, Kvm};
use crate::{machine, out};

/// The marker that `share/nelly/marker.cpio` writes.
const MARKER: &str = "NELLY-INIT";
/// What everyone's kernel is told.
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=1 panic=-1 reboot=t random.trust_cpu=on";

/// `nelly bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    verb: BenchVerb,
}

/// Verbs of `bench`.
#[derive(Debug, Subcommand)]
enum BenchVerb {
    /// Boot a guest, from the monitor's start to the guest's marker or agent
    #[command(after_help = "Examples:\n  \
        nelly bench boot\n  \
        nelly bench boot --rounds 50 --vs qemu --vs firecracker=./firecracker --html report.html\n  \
        nelly bench boot --until ready --json ready.json\n  \
        nelly bench boot --kernel tiny --no-initrd --marker NELLY-TINY")]
    Boot(BootFlags),
    /// Run `nelly run -- COMMAND`, from the process's start to its end
    #[command(
        after_help = "Examples:\n  nelly bench run\n  nelly bench run --rounds 50 --json run.json -- echo hello"
    )]
    Run(CommandFlags),
    /// Run a command again and again in one container of one machine
    #[command(
        after_help = "Examples:\n  nelly bench exec --rounds 100\n  nelly bench exec --csv execs.csv -- echo hello"
    )]
    Exec(CommandFlags),
    /// Start machines side by side until a limit, and say what one more costs
    #[command(
        after_help = "Examples:\n  nelly bench density --count 8 -m 128M\n  nelly bench density --count 100 --memory-limit 4G --html density.html"
    )]
    Density(DensityFlags),
    /// Compare two results: exit code 1 when the second is slower
    #[command(
        after_help = "Examples:\n  nelly bench compare before.json after.json\n  nelly bench compare --least 2 before.json after.json"
    )]
    Compare(CompareFlags),
}

/// Flags that every measuring has.
#[derive(Debug, Args)]
struct Common {
    /// vCPUs of the machine, 1 to 32
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u64,
    /// Memory of the machine with a suffix M or G
    #[arg(short, long, value_name = "SIZE", default_value = "128M")]
    memory: String,
    /// Words added to the kernel's command line
    #[arg(long, value_name = "WORDS", default_value = "")]
    append: String,
    /// Longest time of one start: 500ms, 30s, 5m
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    limit: String,
    /// Write the whole result, raw samples too, as JSON (schema 1)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the raw samples as CSV
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write a report with plots as one HTML file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// How often.
#[derive(Debug, Args)]
struct Often {
    /// Rounds that count
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// Rounds before them that do not
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=1000))]
    warm_up: u32,
}

/// What ends a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Until {
    /// The marker on the serial console
    Marker,
    /// The agent's answer; peers have no agent
    Ready,
}

#[derive(Debug, Args)]
struct BootFlags {
    #[command(flatten)]
    often: Often,
    /// Boot the same guest in this monitor too, turn by turn: firecracker, cloud-hypervisor, qemu or alioth, found on PATH or given
    #[arg(long, value_name = "NAME[=PATH]")]
    vs: Vec<Peer>,
    /// What ends a start
    #[arg(long, value_name = "WHAT", default_value = "marker")]
    until: Until,
    /// Kernel [default: the one that ships with Nelly]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initramfs whose init writes the marker [default: the one that ships with Nelly]
    #[arg(long, value_name = "FILE", conflicts_with = "no_initrd")]
    initrd: Option<PathBuf>,
    /// No initramfs: the kernel itself writes the marker
    #[arg(long)]
    no_initrd: bool,
    /// What ends a start when the serial console has said it
    #[arg(long, value_name = "TEXT", default_value = MARKER)]
    marker: String,
    /// Count system calls by strace in one more, untimed start
    #[arg(long)]
    syscalls: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct CommandFlags {
    #[command(flatten)]
    often: Often,
    #[command(flatten)]
    common: Common,
    /// The command in the container [default: true]
    #[arg(value_name = "COMMAND", last = true)]
    command: Vec<String>,
}

#[derive(Debug, Args)]
struct DensityFlags {
    /// Most machines
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
    /// Stop when all of them hold so much
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct CompareFlags {
    /// Smallest change of a median that counts, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=1000))]
    least: u64,
    /// Print JSON (schema 1)
    #[arg(long)]
    json: bool,
    /// The earlier result of --json
    before: PathBuf,
    /// The later one
    after: PathBuf,
}

/// Runs the verb: 0, 1 when a start failed or a comparison found something slower, 128+n after signal n.
pub(crate) fn run(args: &BenchArgs, context: &Context) -> Result<ExitCode> {
    let (measured, common) = match &args.verb {
        BenchVerb::Boot(flags) => (boot(flags, context)?, &flags.common),
        BenchVerb::Run(flags) => (whole(flags, context)?, &flags.common),
        BenchVerb::Exec(flags) => {
            let rounds = rounds(&flags.often, &flags.common)?;
            let plan = sandbox(&flags.common, context)?;
            let command = command(flags);
            (runner::exec(&plan, &command, &rounds, environment(), &mut progress()), &flags.common)
        }
        BenchVerb::Density(flags) => {
            let memory =
                flags.memory_limit.as_deref().map(size::parse).transpose().context("--memory-limit")?;
            let limit = DensityLimit { count: flags.count, memory_bytes: memory };
            let plan = sandbox(&flags.common, context)?;
            (runner::density(&plan, &limit, environment(), &mut progress()), &flags.common)
        }
        BenchVerb::Compare(flags) => return compare(flags),
    };
    match measured {
        Ok(record) => deliver(&record, common),
        Err(RunnerError::Interrupted(number)) => {
            eprintln!("nelly: interrupted; everything that was started was ended");
            Ok(ExitCode::from(u8::try_from(128 + number).unwrap_or(1)))
        }
        Err(error) => Err(error.into()),
    }
}

fn deliver(record: &Record, common: &Common) -> Result<ExitCode> {
    let write = |path: &Path, text: String| {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    if let Some(path) = &common.json {
        write(path, format!("{}\n", serde_json::to_string(record)?))?;
    }
    if let Some(path) = &common.csv {
        write(path, report::csv(record))?;
    }
    if let Some(path) = &common.html {
        write(path, report::html(record))?;
    }
    out::line(report::table(record))?;
    Ok(ExitCode::from(u8::from(!record.went_well())))
}

/// A line on a terminal that takes the place of the one before; nothing elsewhere but what is no counting.
fn progress() -> impl FnMut(&str) {
    let live = terminal::is_terminal(std::io::stderr());
    move |text| {
        if live {
            eprint!("\r\x1b[K{text}\r");
        } else if text.contains("skipped") {
            eprintln!("nelly: {text}");
        }
    }
}

fn environment() -> Environment {
    let kvm = match host::kvm() {
        Kvm::Mainstream => "mainstream".to_owned(),
        Kvm::Paravirtual => "paravirtual".to_owned(),
        Kvm::Unusable(why, _) => why,
    };
    let build = nelly_sandbox::agent::BUILD.unwrap_or("unset");
    Environment::read(kvm, format!("nelly {} (build {build})", env!("CARGO_PKG_VERSION")))
}

fn rounds(often: &Often, common: &Common) -> Result<Rounds> {
    let limit = crate::duration::parse(&common.limit).context("--limit")?;
    Ok(Rounds { counted: often.rounds, warm_up: often.warm_up, limit })
}

fn hardware(common: &Common) -> Result<(CpuCount, MemorySize)> {
    let cpus = CpuCount::new(common.cpus).map_err(|reason| anyhow!("--cpus: {reason}"))?;
    let bytes = size::parse(&common.memory).context("--memory")?;
    if bytes % (1 << 20) != 0 {
        bail!("--memory {}: whole MiB, which every monitor can be told", common.memory);
    }
    let memory = MemorySize::new(bytes).map_err(|reason| anyhow!("--memory: {reason}"))?;
    Ok((cpus, memory))
}

fn command(flags: &CommandFlags) -> Vec<String> {
    if flags.command.is_empty() { vec!["true".to_owned()] } else { flags.command.clone() }
}

fn sandbox(common: &Common, context: &Context) -> Result<SandboxPlan> {
    host::require_mainstream()?;
    let assets = Assets::find(&context.search, &context.settings, None, None)?;
    let (cpus, memory) = hardware(common)?;
    Ok(SandboxPlan {
        monitor: context.search.monitor(&context.settings)?.path,
        kernel: assets.kernel.path,
        initrd: assets.initrd.path,
        platform: assets.platform.unwrap_or(Platform::Auto),
        builtin: assets.builtin.context("no built-in image installed: run `make`")?,
        cache: context.places.cache.clone(),
        cpus,
        memory,
        append: common.append.clone(),
    })
}

type Measured = Result<Record, RunnerError>;

fn boot(flags: &BootFlags, context: &Context) -> Result<Measured> {
    let rounds = rounds(&flags.often, &flags.common)?;
    if flags.until == Until::Ready {
        if !flags.vs.is_empty() || flags.kernel.is_some() || flags.initrd.is_some() || flags.no_initrd {
            bail!(
                "--until ready boots Nelly's own guest: --vs, --kernel and --initrd belong to --until marker"
            );
        }
        let plan = sandbox(&flags.common, context)?;
        return Ok(runner::ready(&plan, &rounds, environment(), &mut progress()));
    }
    if flags.marker.is_empty() {
        bail!("--marker: an empty text ends nothing");
    }
    let (cpus, memory) = hardware(&flags.common)?;
    let (kernel, platform) = match &flags.kernel {
        // A kernel of a few instructions runs on any KVM.
        Some(kernel) => (kernel.clone(), Platform::Auto),
        None => {
            host::require_mainstream()?;
            let assets = Assets::find(&context.search, &context.settings, None, None)?;
            (assets.kernel.path, assets.platform.unwrap_or(Platform::Auto))
        }
    };
    machine::file("--kernel", &kernel)?;
    let initrd = match &flags.initrd {
        _ if flags.no_initrd => None,
        Some(initrd) => Some(initrd.clone()),
        None => Some(context.search.manifest()?.0.join("marker.cpio")),
    };
    if let Some(initrd) = &initrd {
        machine::file("--initrd", initrd)?;
    }
    let absolute =
        |path: PathBuf| path.canonicalize().with_context(|| format!("cannot use {}", path.display()));
    let command_line = format!("{COMMAND_LINE} {}", flags.common.append);
    let command_line = command_line.trim_end().to_owned();
    CommandLine::new(&command_line).map_err(|reason| anyhow!("--append: {reason}"))?;
    let guest = Guest {
        kernel: absolute(kernel)?,
        initrd: initrd.map(absolute).transpose()?,
        command_line,
        cpus,
        memory,
        platform,
    };
    let plan = BootPlan {
        guest,
        monitor: context.search.monitor(&context.settings)?.path,
        peers: flags.vs.clone(),
        rounds,
        marker: flags.marker.clone(),
    };
    Ok(runner::boot(&plan, environment(), flags.syscalls, &mut progress()))
}

/// `bench run`: this very program, whole.
fn whole(flags: &CommandFlags, context: &Context) -> Result<Measured> {
    let rounds = rounds(&flags.often, &flags.common)?;
    let plan = sandbox(&flags.common, context)?;
    let mut words = vec!["--quiet".to_owned(), "--cpus".to_owned(), flags.common.cpus.to_string()];
    words.extend(["--memory".to_owned(), flags.common.memory.clone()]);
    if !flags.common.append.is_empty() {
        words.extend(["--append".to_owned(), flags.common.append.clone()]);
    }
    let guest = GuestRecord {
        kernel: plan.kernel.display().to_string(),
        initrd: Some(plan.initrd.display().to_string()),
        command_line: plan.append,
        cpus: plan.cpus.get(),
        memory_bytes: plan.memory.get(),
    };
    let program = context.search.program.clone();
    let plan = RunPlan { program, flags: words, command: command(flags), rounds };
    Ok(runner::run(&plan, guest, environment(), false, &mut progress()))
}

fn compare(flags: &CompareFlags) -> Result<ExitCode> {
    let read = |path: &Path| {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Record::from_json(&text).with_context(|| format!("cannot use {}", path.display()))
    };
    let comparison = report::compare(&read(&flags.before)?, &read(&flags.after)?, flags.least * 10)?;
    if flags.json {
        out::line(serde_json::to_string(&comparison)?)?;
    } else {
        out::line(comparison.table())?;
    }
    Ok(ExitCode::from(u8::from(comparison.regressed())))
}
