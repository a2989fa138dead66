//! One machine in a process of its own.

#![no_main]

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use nelly_vmm::config::{Endpoint, MachineConfig};
use nelly_vmm::machine::{self, EndReason, Outcome, Process};
use nelly_vmm::sys;
use nelly_vmm::sys::files::{self, Accept};
use nelly_vmm::sys::signals::{self, Signals};
use nelly_vmm::sys::terminal::{RawMode, is_terminal};
use nelly_vmm::text;
use nelly_vmm::timeline::{self, Recorder, name};

/// Exit code for everything that is not the guest's doing, usage errors too.
const FAILED: u8 = EndReason::FAILED;
/// SIGHUP, SIGINT, SIGTERM: an orderly end. The same numbers on Linux and macOS.
const SIGNALS: [i32; 3] = [1, 2, 15];

fn help() -> String {
    let (panicked, triple_faulted) = (EndReason::PANICKED, EndReason::TRIPLE_FAULTED);
    let timed_out = EndReason::TIMED_OUT;
    format!(
        "\
Runs one virtual machine.

Usage: nelly-monitor --config FILE|fd:N [--result FILE|fd:N]
       nelly-monitor --control fd:N

  --config FILE|fd:N   read the machine's configuration, as JSON (schema 1), from FILE or file descriptor N;
                       inherited file descriptors that it does not mention are closed
  --result FILE|fd:N   at the end, write one JSON object: reason, hint, timeline, exits, starts, faults,
                       confinement
  --control fd:N       receive the machine, and requests, on this Unix stream socket (from
                       nelly_vmm::machine::Machine); the machine ends when the socket is closed
  --help               print this help
  --version            print the version

If standard input is a terminal that is connected to the guest (\"serial\" or \"console\" is \"stdio\"),
Ctrl-A x ends the machine, and Ctrl-A Ctrl-A sends one Ctrl-A.

Exit codes: 0 power-off, halt or reset, {panicked} guest panic, {triple_faulted} triple fault, {timed_out} time limit, {FAILED} failure
of nelly-monitor, 141 the reader of the console has gone, 128+n terminated by signal n.
"
    )
}

/// A file or an inherited descriptor.
enum Source {
    File(PathBuf),
    Descriptor(u32),
}

enum Job {
    Print(String),
    Alone { config: Source, result: Option<Source> },
    Held(u32),
}

#[global_allocator]
static HEAP: sys::Heap = sys::Heap { program: "nelly-monitor:", code: FAILED };

nelly_vmm::entry!(run, keeping timeline::ORIGIN_VARIABLE);

fn run(origin: Option<OsString>) -> u8 {
    let recorder = recorder(origin);
    sys::host::share_one_heap();
    sys::host::raise_descriptor_limit();
    let job = match arguments(std::env::args_os().skip(1)) {
        Ok(job) => job,
        Err(error) => return complain(&format!("{error}; see nelly-monitor --help")),
    };
    let code = match job {
        Job::Print(text) => return print(&text),
        Job::Held(number) => held(number, recorder),
        Job::Alone { config, result } => alone(&config, result.as_ref(), recorder),
    };
    code.unwrap_or_else(|error| complain(&error))
}

/// Where faults of the guest are said.
fn stderr() -> Option<OwnedFd> {
    sys::inherited(2).ok()
}

/// The first thing: when this process began.
fn recorder(origin: Option<OsString>) -> Recorder {
    let main_ns = timeline::now_ns();
    let origin = origin.and_then(|word| word.into_string().ok());
    let recorder = Recorder::new(timeline::origin(origin.as_deref(), main_ns));
    recorder.stamp_at(name::MONITOR_MAIN, main_ns);
    recorder
}

fn arguments(arguments: impl Iterator<Item = OsString>) -> Result<Job, String> {
    let (mut config, mut control, mut result) = (None, None, None);
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let mut value = |name: &str| {
            let value = arguments.next().ok_or(format!("{name} needs a value"))?;
            match value.to_str().and_then(|text| text.strip_prefix("fd:")) {
                Some(number) => match number.parse() {
                    Ok(number) => Ok(Source::Descriptor(number)),
                    Err(_) => Err(format!("{name} fd:{number}: this is not a file descriptor number")),
                },
                None => Ok(Source::File(value.into())),
            }
        };
        let (name, slot) = match argument.to_str() {
            Some("--help" | "-h") => return Ok(Job::Print(help())),
            Some("--version" | "-V") => {
                return Ok(Job::Print(format!("nelly-monitor {}\n", env!("CARGO_PKG_VERSION"))));
            }
            Some(name @ "--config") => (name, &mut config),
            Some(name @ "--control") => (name, &mut control),
            Some(name @ "--result") => (name, &mut result),
            _ => return Err(format!("unknown argument {}", argument.display())),
        };
        if slot.replace(value(name)?).is_some() {
            return Err(format!("{name} is given twice"));
        }
    }
    match (config, control, result) {
        (Some(config), None, result) => Ok(Job::Alone { config, result }),
        (None, Some(Source::Descriptor(number)), None) => Ok(Job::Held(number)),
        (None, Some(Source::File(_)), _) => Err("--control needs a value of the form fd:N".into()),
        (None, None, _) => Err("--config or --control is needed".into()),
        _ => Err("--control cannot be combined with --config or --result".into()),
    }
}

/// Closes what this process was started with and nobody handed over: a guest that took the process
/// over could use it. The environment is gone already.
fn close_strays(handed: &[u32]) -> Result<(), String> {
    sys::close_all_but(handed).map_err(|error| format!("cannot close inherited file descriptors: {error}"))
}

/// Leaves the directory of whoever started this process.
fn leave() -> Result<(), String> {
    rustix::process::chdir("/").map_err(|error| format!("cannot change to the root directory: {error}"))
}

/// Serves a holder to the machine's end.
fn held(number: u32, recorder: Recorder) -> Result<u8, String> {
    close_strays(&[number])?;
    leave()?;
    let control = sys::inherited(number).map_err(|error| format!("--control fd:{number}: {error}"))?;
    machine::serve(control, recorder, stderr(), Process::Own);
    Ok(0)
}

/// Runs the machine of a config file, its console on the terminal if the config says so.
fn alone(config: &Source, result: Option<&Source>, recorder: Recorder) -> Result<u8, String> {
    let name = match config {
        Source::File(path) => path.display().to_string(),
        Source::Descriptor(number) => format!("fd:{number}"),
    };
    let text = read(config).map_err(|error| format!("--config {name}: {error}"))?;
    let config = MachineConfig::from_json(&text)
        .and_then(MachineConfig::with_absolute_paths)
        .map_err(|error| format!("--config {name}: {error}"))?;
    // Opened now, so that a result that cannot be written is refused before the guest runs.
    let result = result.map(open_result).transpose()?;
    let mut handed = config.descriptors();
    handed.extend(result.iter().map(|result| result.as_raw_fd().cast_unsigned()));
    close_strays(&handed)?;
    leave()?;

    // Before any thread exists, so that all of them have the signals blocked. Those that whoever
    // started this process had ignored (nohup, background jobs of shells) stay ignored.
    let mut numbers = SIGNALS.to_vec();
    numbers.retain(|number| !signals::ignored(*number).unwrap_or(false));
    let signals = Signals::block(&numbers).map_err(|error| format!("cannot wait for signals: {error}"))?;
    let stop = signals.as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
    let stdin = std::io::stdin();
    let typed = config.serial == Endpoint::Stdio || config.console == Endpoint::Stdio;
    let escape = typed && is_terminal(&stdin);
    // A terminal that may not be changed (a process in the background) stays as it is.
    let raw = if escape { RawMode::enter(&stdin).ok() } else { None };
    let outcome = machine::run_alone(config, Some(stop), escape, recorder, stderr());
    drop(raw);

    match (&outcome.reason, &outcome.hint) {
        (reason, Some(hint)) => message(&format!("{reason}: {hint}")),
        (EndReason::Error(what), None) => message(what),
        _ => {}
    }
    if let Some(result) = result {
        write_result(result, &outcome)?;
    }
    let signal = signals.take().map_err(|error| error.to_string())?;
    let by_signal = signal.filter(|_| outcome.reason == EndReason::Stopped);
    Ok(match by_signal.and_then(|number| u8::try_from(number).ok()) {
        Some(number) => 128 + number,
        None => outcome.reason.exit_code(),
    })
}

fn read(config: &Source) -> std::io::Result<Vec<u8>> {
    let mut file = match config {
        Source::File(path) => files::open(path, OpenOptions::new().read(true), Accept::Text)?,
        Source::Descriptor(number) => sys::inherited(*number)?.into(),
    };
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(text)
}

fn open_result(source: &Source) -> Result<OwnedFd, String> {
    match source {
        Source::File(path) => {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true);
            match files::open(path, &options, Accept::Stream) {
                Ok(file) => Ok(file.into()),
                Err(error) => Err(format!("--result {}: {error}", path.display())),
            }
        }
        Source::Descriptor(number) => {
            sys::inherited(*number).map_err(|error| format!("--result fd:{number}: {error}"))
        }
    }
}

fn write_result(result: OwnedFd, outcome: &Outcome) -> Result<(), String> {
    let mut text = serde_json::to_vec(outcome).map_err(|error| error.to_string())?;
    text.push(b'\n');
    File::from(result).write_all(&text).map_err(|error| format!("--result: {error}"))
}

fn print(text: &str) -> u8 {
    let mut out = std::io::stdout();
    // Nobody flushes at the end.
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => 0,
        Err(_) => FAILED,
    }
}

fn complain(error: &str) -> u8 {
    message(error);
    FAILED
}

/// One message on standard error, fit for a terminal: paths and what guests did come into it.
fn message(message: &str) {
    // A standard error that is gone is no reason to fail: there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "nelly-monitor: {}", text::line(message));
}
