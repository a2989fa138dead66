//! What the tests share: finding the built programs, running them with a limit of time, a scratch
//! directory.

pub mod random;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The checkout.
#[must_use]
pub fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A program that `make` built (`nelly`, `nelly-monitor`).
///
/// # Panics
/// It was not built.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let path = top().join("target/nelly/bin").join(name);
    assert!(path.is_file(), "{} is missing: run `make build`", path.display());
    path
}

/// A file that ships with Nelly (`vmlinux`, `initramfs.cpio`, `busybox`).
///
/// # Panics
/// It was not built.
#[must_use]
pub fn asset(name: &str) -> PathBuf {
    let path = top().join("target/nelly/share/nelly").join(name);
    assert!(path.exists(), "{} is missing: run `make build`", path.display());
    path
}

/// The kernel that ships with Nelly.
///
/// # Panics
/// It was not built.
#[must_use]
pub fn kernel() -> PathBuf {
    asset(if cfg!(target_arch = "aarch64") { "Image" } else { "vmlinux" })
}

/// What a program did.
#[derive(Debug)]
pub struct Done {
    /// Its exit code; 128 + the signal that ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// How long it took.
    pub took: Duration,
}

impl Done {
    /// Standard output as text.
    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails the test, showing everything, when the exit code is another.
    ///
    /// # Panics
    /// As said.
    #[track_caller]
    pub fn expect(&self, code: i32) -> &Self {
        assert_eq!(self.code, code, "\n--- stdout\n{}\n--- stderr\n{}", self.out(), self.err());
        self
    }
}

/// The exit code as a shell says it.
#[must_use]
pub fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// `limit` on a machine that may be slower than the one it was made for: `make test` measures how
/// many times, and says so in `NELLY_SLOWNESS`.
#[must_use]
pub fn scaled(limit: Duration) -> Duration {
    let slowness = std::env::var("NELLY_SLOWNESS").ok().and_then(|text| text.parse().ok());
    limit.mul_f64(slowness.unwrap_or(1.0_f64).clamp(1.0, 10.0))
}

/// [`scaled`], as a machine's configuration has it.
#[must_use]
pub fn scaled_ms(limit: Duration) -> Option<u64> {
    u64::try_from(scaled(limit).as_millis()).ok()
}

/// Waits for `child`, killing it at `limit` ([`scaled`]). It sleeps until then: each look at the
/// clock would take an emulated processor out of the guest that is waited for.
///
/// # Panics
/// The limit was over.
#[track_caller]
pub fn wait(child: &mut Child, limit: Duration) -> ExitStatus {
    let limit = scaled(limit);
    let until = Instant::now() + limit;
    // One that was waited for already is no process any more.
    while child.try_wait().expect("waiting for a child").is_none() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the program did not end within {} s", limit.as_secs());
        }
        let ended = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).expect("a child that runs");
        let left = Timespec::try_from(left).expect("less than a limit");
        // Its result says nothing that the child does not: it is asked again.
        let _ = poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&left));
    }
    child.wait().expect("waiting for a child")
}

/// Runs `command` with `input` on its standard input, and collects its output.
///
/// # Panics
/// It cannot be started, or does not end within `limit`.
#[track_caller]
pub fn run(command: &mut Command, input: &[u8], limit: Duration) -> Done {
    let began = Instant::now();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    // A program that ends without reading breaks the pipe: no failure of the test.
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let stdout = collect(child.stdout.take().expect("piped"));
    let stderr = collect(child.stderr.take().expect("piped"));
    let status = wait(&mut child, limit);
    writer.join().expect("the writer does not panic");
    let (stdout, stderr) = (stdout.join().expect("reads"), stderr.join().expect("reads"));
    Done { code: code(status), stdout, stderr, took: began.elapsed() }
}

fn collect(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).expect("reading a pipe");
        bytes
    })
}

/// Ends the whole test program, saying what every process of ours waits for, when it is not dropped
/// within a limit. A test that hangs is a defect somewhere below it: this shows where, and ends the
/// room long before its own limit.
#[derive(Debug)]
pub struct Watchdog {
    /// Its drop stops the clock.
    _keep: mpsc::Sender<()>,
}

impl Watchdog {
    /// Starts the clock, with a [`scaled`] limit, for the test of the calling thread.
    ///
    /// # Panics
    /// No thread can be started.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        let limit = scaled(limit);
        let (_keep, gone) = mpsc::channel();
        let test = thread::current().name().unwrap_or("a test").to_owned();
        thread::spawn(move || {
            if gone.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{test} hangs: {} s are over. Processes:\n{}", limit.as_secs(), waits());
                std::process::exit(3);
            }
        });
        Self { _keep }
    }
}

/// What each thread of this machine's `nelly` programs, and of this one, waits for.
fn waits() -> String {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut text = String::new();
    for process in entries(Path::new("/proc")) {
        let command = fs::read_to_string(process.join("comm")).unwrap_or_default();
        if !["nelly", "e2e"].iter().any(|name| command.starts_with(name)) {
            continue;
        }
        for task in entries(&process.join("task")) {
            let read = |name: &str| fs::read_to_string(task.join(name)).unwrap_or_default().trim().to_owned();
            let state =
                read("status").lines().find(|line| line.starts_with("State")).unwrap_or_default().to_owned();
            text += &format!(
                "{} {} {state} syscall {}\n{}\n",
                task.display(),
                read("comm"),
                read("syscall"),
                read("stack")
            );
        }
    }
    text
}

/// `nelly` with `words`, in an environment of its own below `home`.
#[must_use]
pub fn nelly(home: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(program("nelly"));
    command.args(words).env("NELLY_HOME", home);
    for name in [
        "NELLY_KERNEL",
        "NELLY_INITRD",
        "NELLY_MONITOR",
        "NELLY_CPUS",
        "NELLY_MEMORY",
        "NELLY_APPEND",
        "NELLY_LOG",
    ] {
        command.env_remove(name);
    }
    // The emulated x86 processor loses an interrupt of asynchronous page faults, once in some
    // hundred boots (docs/emulated-host.md).
    if cfg!(target_arch = "x86_64") && std::env::var_os("NELLY_EMULATED_HOST").is_some() {
        command.env("NELLY_APPEND", "no-kvmapf");
    }
    command
}
