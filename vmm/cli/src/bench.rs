//! `nelly bench`: converts flags to plans, and writes records as tables and files. The benchmarks
//! themselves are in `nelly-bench`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Error, Result};
use nelly_bench::host::Environment;
use nelly_bench::plan::{BootPlan, DensityLimit, GuestSetup, Rounds, RunPlan, SandboxPlan};
use nelly_bench::record::{GuestRecord, Record};
use nelly_bench::report;
use nelly_bench::runner::{self, RunnerError};
use nelly_sandbox::spec::machine::COMMAND_LINE;
use nelly_sandbox::spec::quantity::{self, Time};
use nelly_vmm::config::{CommandLine, CpuCount, MemorySize, Platform};
use nelly_vmm::sys::files::Accept;
use nelly_vmm::sys::terminal;
use nelly_vmm::text;

use crate::assets::{self, Assets};
use crate::bench_args::{
    BenchArgs, BenchVerb, BootFlags, CommandFlags, CommonFlags, CompareFlags, RoundFlags, Until,
};
use crate::context::Context;
use crate::fail::{Hint, OfFlag as _, Usage};
use crate::host::{self, HostSupport};
use crate::output_file::OutputFile;
use crate::{advice, machine, out};

/// Runs the verb. Exit code 0; 1 if a start failed or a comparison found a slowdown; 128+n after
/// signal n.
pub(crate) fn run(args: &BenchArgs, context: &Context) -> Result<ExitCode> {
    if !matches!(args.verb, BenchVerb::Compare(_)) {
        nelly_bench::supported()?;
    }
    let outputs = match &args.verb {
        BenchVerb::Boot(flags) => Outputs::open(&flags.common)?,
        BenchVerb::Run(flags) | BenchVerb::Exec(flags) => Outputs::open(&flags.common)?,
        BenchVerb::Density(flags) => Outputs::open(&flags.common)?,
        BenchVerb::Compare(flags) => return compare(flags),
    };
    let measured = match &args.verb {
        BenchVerb::Boot(flags) => boot(flags, context)?,
        BenchVerb::Run(flags) => whole(flags, context)?,
        BenchVerb::Exec(flags) => {
            let rounds = rounds(&flags.rounds, &flags.common)?;
            let plan = sandbox(&flags.common, context)?;
            let command = command(flags);
            runner::exec(&plan, &command, &rounds, environment(), &mut progress())
        }
        BenchVerb::Density(flags) => {
            let memory =
                flags.memory_limit.as_deref().map(quantity::bytes).transpose().of_flag("--memory-limit")?;
            let limit = DensityLimit { count: flags.count, memory_bytes: memory };
            let plan = sandbox(&flags.common, context)?;
            runner::density(&plan, &limit, environment(), &mut progress())
        }
        BenchVerb::Compare(flags) => return compare(flags),
    };
    match measured {
        Ok(record) => deliver(&record, outputs),
        Err(RunnerError::Interrupted(number)) => {
            out::message("interrupted; all machines and programs that were started have been stopped");
            Ok(ExitCode::from(u8::try_from(128 + number).expect("signals end at 64")))
        }
        Err(error) => Err(error.into()),
    }
}

/// The output files, opened before the measurement.
#[derive(Debug)]
struct Outputs {
    json: Option<OutputFile>,
    csv: Option<OutputFile>,
    html: Option<OutputFile>,
}

impl Outputs {
    /// # Errors
    /// A file cannot be written, or is a FIFO without a reader.
    fn open(common: &CommonFlags) -> Result<Self> {
        let open = |flag, path: &Option<PathBuf>| {
            path.as_deref().map(|path| OutputFile::file(flag, path)).transpose()
        };
        Ok(Self {
            json: open("--json", &common.json)?,
            csv: open("--csv", &common.csv)?,
            html: open("--html", &common.html)?,
        })
    }
}

fn deliver(record: &Record, outputs: Outputs) -> Result<ExitCode> {
    let Outputs { json, csv, html } = outputs;
    if let Some(target) = json {
        target.write(&serde_json::to_string(record)?)?;
    }
    if let Some(target) = csv {
        target.write(report::csv(record).trim_end())?;
    }
    if let Some(target) = html {
        target.write(report::html(record).trim_end())?;
    }
    out::line(report::table(record))?;
    Ok(ExitCode::from(u8::from(!record.went_well())))
}

/// Prints progress: on a terminal, each line replaces the one before; otherwise only skipped
/// monitors are printed.
fn progress() -> impl FnMut(&str) {
    let live = terminal::is_terminal(std::io::stderr());
    move |said| {
        if live {
            eprint!("\r\x1b[K{}\r", text::line(said));
        } else if said.contains("skipped") {
            out::message(said);
        }
    }
}

fn environment() -> Environment {
    let kvm = match host::support() {
        HostSupport::Mainstream => "mainstream".to_owned(),
        HostSupport::Paravirtual => "paravirtual".to_owned(),
        HostSupport::Unusable(why, _) => why,
    };
    let build = nelly_sandbox::agent::BUILD.unwrap_or("unset");
    Environment::read(kvm, format!("nelly {} (build {build})", env!("CARGO_PKG_VERSION")))
}

fn rounds(rounds: &RoundFlags, common: &CommonFlags) -> Result<Rounds> {
    let limit = Time::LIMIT.parse(&common.limit).of_flag("--limit")?;
    Ok(Rounds { counted: rounds.rounds, warm_up: rounds.warm_up, limit })
}

fn hardware(common: &CommonFlags) -> Result<(CpuCount, MemorySize)> {
    let cpus = CpuCount::new(common.cpus).map_err(Error::msg).of_flag("--cpus")?;
    let bytes = quantity::bytes(&common.memory).of_flag("--memory")?;
    if bytes % (1 << 20) != 0 {
        return Err(Usage::error(format!(
            "--memory {}: not a multiple of 1 MiB, which some of the other monitors require",
            common.memory
        )));
    }
    let memory = MemorySize::new(bytes).map_err(Error::msg).of_flag("--memory")?;
    Ok((cpus, memory))
}

/// The kernel's command line, with what is appended to it.
fn command_line(common: &CommonFlags) -> Result<String> {
    let line = format!("{COMMAND_LINE} {}", common.append);
    let line = line.trim_end().to_owned();
    CommandLine::new(&line).map_err(Error::msg).of_flag("--append")?;
    Ok(line)
}

fn command(flags: &CommandFlags) -> Vec<String> {
    if flags.command.is_empty() { vec!["true".to_owned()] } else { flags.command.clone() }
}

fn sandbox(common: &CommonFlags, context: &Context) -> Result<SandboxPlan> {
    // What is asked for before what this host has.
    let (cpus, memory) = hardware(common)?;
    command_line(common)?;
    host::require_mainstream()?;
    let assets = Assets::find(&context.search, &context.settings, None, None)?;
    Ok(SandboxPlan {
        monitor: assets::monitor(&context.search, &context.settings)?.path,
        kernel: assets.kernel.path,
        initrd: assets.initrd.path,
        platform: assets.platform.unwrap_or(Platform::Auto),
        builtin: assets
            .builtin
            .ok_or_else(|| Hint::error("the built-in image is not installed", advice::install()))?,
        cache: context.places.cache.clone(),
        cpus,
        memory,
        append: common.append.clone(),
    })
}

type Measured = Result<Record, RunnerError>;

fn boot(flags: &BootFlags, context: &Context) -> Result<Measured> {
    let rounds = rounds(&flags.rounds, &flags.common)?;
    if flags.until == Until::Ready {
        if !flags.vs.is_empty() || flags.kernel.is_some() || flags.initrd.is_some() || flags.no_initrd {
            return Err(Usage::error(
                "--until ready boots Nelly's own guest; --vs, --kernel, --initrd and --no-initrd need --until marker",
            ));
        }
        let plan = sandbox(&flags.common, context)?;
        return Ok(runner::ready(&plan, &rounds, environment(), &mut progress()));
    }
    if flags.marker.is_empty() {
        return Err(Usage::error("--marker must not be empty"));
    }
    let (cpus, memory) = hardware(&flags.common)?;
    let command_line = command_line(&flags.common)?;
    let (kernel, platform) = match &flags.kernel {
        // A tiny kernel runs on any KVM.
        Some(kernel) => (kernel.clone(), Platform::Auto),
        None => {
            host::require_mainstream()?;
            let assets = Assets::find(&context.search, &context.settings, None, None)?;
            (assets.kernel.path, assets.platform.unwrap_or(Platform::Auto))
        }
    };
    machine::kernel(&kernel)?;
    let initrd = match &flags.initrd {
        _ if flags.no_initrd => None,
        Some(initrd) => Some(initrd.clone()),
        None => Some(assets::manifest(&context.search)?.0.join("marker.cpio")),
    };
    if let Some(initrd) = &initrd {
        machine::open("--initrd", initrd, Accept::Regular)?;
    }
    let absolute =
        |path: PathBuf| path.canonicalize().with_context(|| format!("cannot use {}", path.display()));
    let guest = GuestSetup {
        kernel: absolute(kernel)?,
        initrd: initrd.map(absolute).transpose()?,
        command_line,
        cpus,
        memory,
        platform,
    };
    let plan = BootPlan {
        guest,
        monitor: assets::monitor(&context.search, &context.settings)?.path,
        peers: flags.vs.clone(),
        rounds,
        marker: flags.marker.clone(),
    };
    Ok(runner::boot(&plan, environment(), flags.syscalls, &mut progress()))
}

/// `bench run`, which executes this program.
fn whole(flags: &CommandFlags, context: &Context) -> Result<Measured> {
    let rounds = rounds(&flags.rounds, &flags.common)?;
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
    let program = context.program.clone();
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
        out::json(serde_json::to_string(&comparison)?)?;
    } else {
        out::line(comparison.table())?;
    }
    Ok(ExitCode::from(u8::from(comparison.regressed())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Verb};

    #[test]
    fn what_cannot_be_written_is_refused_before_anything_is_measured() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
        let open = |flag: &str, path: &Path| {
            let words = ["nelly", "bench", "run", flag, path.to_str().unwrap()].map(str::to_owned);
            let Verb::Bench(args) = Cli::from_words(&words).unwrap().verb else { panic!("not bench") };
            let BenchVerb::Run(flags) = args.verb else { panic!("not run") };
            Outputs::open(&flags.common)
        };
        for flag in ["--json", "--csv", "--html"] {
            // Nobody reads it, and nobody ever will.
            let error = format!("{:#}", open(flag, &fifo).unwrap_err());
            assert!(error.starts_with(flag) && error.contains("no process has open for reading"), "{error}");
            open(flag, &directory.path().join("file")).unwrap();
        }
    }
}
