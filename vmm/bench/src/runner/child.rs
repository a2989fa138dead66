//! One process from its start to its end: its console watched for the marker, its use of the host
//! taken, always reaped.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nelly_vmm::sys::signals::Signals;
use nelly_vmm::sys::{ProcessHandle, at_most, fits};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};

use super::RunnerError;
use super::console::{Finder, drain};
use crate::memory_use::{self, MemoryUse};
use crate::peer::Launch;
use crate::sys::{self, Usage};

/// What a process that ends itself may take for it once the marker is there.
const LAST: Duration = Duration::from_secs(10);
/// What our init may take to tell of its start behind the marker, where its machine does not end by
/// itself.
const TELLING: Duration = Duration::from_secs(1);
/// Between the marker and the weighing of a guest that idles: what its monitor does at a start is
/// over then.
const SETTLE: Duration = Duration::from_millis(500);

/// What was seen of one process.
#[derive(Clone, Debug)]
pub(super) struct ProcessSample {
    /// The clock just before its start.
    pub(super) start_ns: u64,
    /// The marker's last byte, or, without a marker, the process's end.
    pub(super) end_ns: u64,
    /// From the last that its guest said to the process's end; `None` where it was ended.
    pub(super) teardown_ns: Option<u64>,
    /// What the guest said of its own start: names, and how long before `end_ns`, in nanoseconds.
    pub(super) stamps: Vec<(&'static str, u64)>,
    /// What it used over its life.
    pub(super) usage: Usage,
    /// The most it held until the marker.
    pub(super) peak_rss_bytes: Option<u64>,
}

/// A child that does not outlive this value.
struct Child {
    id: u32,
    end: ProcessHandle,
    reaped: bool,
}

impl Child {
    /// Ends it and what it started: it leads a group of processes of its own, whose number is taken
    /// until it is reaped.
    fn kill(&self) {
        // Either may have ended by itself just now.
        self.end.kill();
        if let Some(group) = i32::try_from(self.id).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    fn reap(&mut self) -> Result<(ExitStatus, Usage), RunnerError> {
        self.reaped = true;
        sys::reap(self.id).map_err(RunnerError::host("cannot wait for a process"))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            let _ = sys::reap(self.id);
        }
    }
}

/// The ends of a running process that are watched.
struct Watch<'a> {
    child: Child,
    /// What keeps its terminal, if it has one.
    _keeper: Option<OwnedFd>,
    output: Option<std::process::ChildStdout>,
    errors: Option<std::process::ChildStderr>,
    said: Finder<'a>,
    complained: Finder<'a>,
    signals: &'a Signals,
}

/// What a turn of watching brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The marker, at this time.
    Marker(u64),
    /// The process ended, at this time.
    Gone(u64),
    /// The deadline is over.
    Late,
}

/// Starts what `launch` says and watches it until its end. With a marker, that is where the
/// measured time ends; without, it ends with the process, which must say success.
///
/// # Errors
/// It cannot be started, does not come to its end within `limit`, or fails; a signal came. It has
/// ended then as well.
pub(super) fn watch(
    launch: &Launch,
    marker: Option<&str>,
    limit: Duration,
    signals: &Signals,
) -> Result<ProcessSample, RunnerError> {
    let (start_ns, watch) = start(launch, marker, signals)?;
    match marker {
        Some(marker) => watch.until_marker(launch, marker, start_ns, limit),
        None => watch.until_gone(start_ns, limit),
    }
}

/// Starts what `launch` says, lets its guest idle for a moment behind the marker, says what the
/// process holds, and ends it. Of a guest that ends at its marker it is what was held there.
///
/// # Errors
/// As [`watch`]; it was gone before it could be weighed, or its guest's memory, `guest_bytes`,
/// cannot be told apart.
pub(super) fn measure_memory(
    launch: &Launch,
    marker: &str,
    guest_bytes: u64,
    limit: Duration,
    signals: &Signals,
) -> Result<MemoryUse, RunnerError> {
    let (start_ns, mut watch) = start(launch, Some(marker), signals)?;
    watch.marker(marker, start_ns, limit)?;
    let at_once = memory_use::measure(watch.child.id, guest_bytes);
    let settled = after(sys::now_ns(), SETTLE);
    let held = loop {
        match watch.turn(settled)? {
            // What was said before is found once more when something else is said.
            Turn::Marker(_) => {}
            Turn::Late => break memory_use::measure(watch.child.id, guest_bytes),
            Turn::Gone(_) => break at_once,
        }
    };
    held.map_err(RunnerError::host("cannot measure the memory use of a process"))
}

/// Starts what `launch` says; the clock just before.
fn start<'a>(
    launch: &Launch,
    marker: Option<&'a str>,
    signals: &'a Signals,
) -> Result<(u64, Watch<'a>), RunnerError> {
    for (path, content) in &launch.files {
        let cannot = RunnerError::host(format!("cannot write {}", path.display()));
        fs::write(path, content).map_err(cannot)?;
    }
    let (keeper, input) = match launch.terminal {
        true => sys::terminal().map(|(keeper, user)| (Some(keeper), Stdio::from(user))),
        false => Ok((None, Stdio::null())),
    }
    .map_err(RunnerError::host("cannot create a pseudo-terminal"))?;
    let mut command = Command::new(&launch.program);
    command
        .args(&launch.arguments)
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C at the terminal is for this program to answer.
        .process_group(0);
    let start_ns = sys::now_ns();
    if launch.ours {
        command.env("NELLY_ORIGIN_NS", start_ns.to_string());
    }
    let child = command.spawn();
    let program = || launch.program.display().to_string();
    let mut child = child.map_err(|source| RunnerError::Spawn { program: program(), source })?;
    let id = child.id();
    let end = ProcessHandle::of(&child).map_err(|source| {
        let _ = child.kill();
        let _ = child.wait();
        RunnerError::Host { what: "cannot wait for the output of a process".into(), source }
    })?;
    let watch = Watch {
        child: Child { id, end, reaped: false },
        _keeper: keeper,
        output: child.stdout.take(),
        errors: child.stderr.take(),
        said: Finder::new(marker.unwrap_or("\0never")),
        complained: Finder::new("\0never"),
        signals,
    };
    for fd in [watch.output.as_ref().map(AsFd::as_fd), watch.errors.as_ref().map(AsFd::as_fd)] {
        let Some(fd) = fd else { continue };
        nelly_vmm::sys::set_nonblocking(fd).map_err(RunnerError::host("cannot make a pipe non-blocking"))?;
    }
    Ok((start_ns, watch))
}

/// The clock at `from` and `time` later; without an end where that is too far.
fn after(from: u64, time: Duration) -> u64 {
    from.saturating_add(at_most(time.as_nanos(), u64::MAX))
}

impl Watch<'_> {
    /// Waits for the marker; when it was there.
    fn marker(&mut self, marker: &str, start_ns: u64, limit: Duration) -> Result<u64, RunnerError> {
        match self.turn(after(start_ns, limit))? {
            Turn::Marker(at) => Ok(at),
            Turn::Gone(_) => {
                let (status, _) = self.child.reap()?;
                let before = format!("before {marker:?} was on its console");
                Err(RunnerError::Died { status, before, tail: self.said.tail(&self.complained) })
            }
            Turn::Late => {
                let what = format!("{marker:?} on its console");
                Err(RunnerError::Late { what, limit, tail: self.said.tail(&self.complained) })
            }
        }
    }

    fn until_marker(
        mut self,
        launch: &Launch,
        marker: &str,
        start_ns: u64,
        limit: Duration,
    ) -> Result<ProcessSample, RunnerError> {
        let end_ns = self.marker(marker, start_ns, limit)?;
        // The clock has been read: this costs nobody. By rusage it could not be told from what this
        // process holds.
        let peak_rss_bytes = memory_use::peak_rss_bytes(self.child.id);
        let mut teardown_ns = None;
        let patience = if launch.ends_itself { LAST } else { TELLING };
        let last = after(sys::now_ns(), patience);
        while launch.ends_itself || self.said.stamps().is_none() {
            match self.turn(last)? {
                Turn::Marker(_) => {}
                Turn::Gone(at) => {
                    teardown_ns = Some(at.saturating_sub(self.said.told_ns().unwrap_or(end_ns)));
                    break;
                }
                Turn::Late => break,
            }
        }
        if teardown_ns.is_none() {
            self.child.kill();
        }
        let (_, usage) = self.child.reap()?;
        let stamps = self.said.stamps().unwrap_or_default().to_vec();
        Ok(ProcessSample { start_ns, end_ns, teardown_ns, stamps, usage, peak_rss_bytes })
    }

    fn until_gone(mut self, start_ns: u64, limit: Duration) -> Result<ProcessSample, RunnerError> {
        let deadline = after(start_ns, limit);
        let end_ns = loop {
            match self.turn(deadline)? {
                Turn::Marker(_) => {}
                Turn::Gone(at) => break at,
                Turn::Late => {
                    let tail = self.said.tail(&self.complained);
                    return Err(RunnerError::Late { what: "end".into(), limit, tail });
                }
            }
        };
        let (status, usage) = self.child.reap()?;
        if !status.success() {
            let tail = self.said.tail(&self.complained);
            return Err(RunnerError::Died { status, before: "with an error".into(), tail });
        }
        let peak_rss_bytes = Some(usage.peak_rss_bytes);
        Ok(ProcessSample { start_ns, end_ns, teardown_ns: None, stamps: Vec::new(), usage, peak_rss_bytes })
    }

    /// Watches until something happens. What the process says goes on being read, so that it never
    /// waits for us.
    fn turn(&mut self, deadline: u64) -> Result<Turn, RunnerError> {
        loop {
            let now = sys::now_ns();
            let Some(left) = deadline.checked_sub(now).filter(|left| *left > 0) else {
                return Ok(Turn::Late);
            };
            let left = Duration::from_nanos(left);
            let left: Timespec = fits(left, "2^64 nanoseconds are less than 600 years");
            let mut fds =
                vec![PollFd::new(self.signals, PollFlags::IN), PollFd::new(&self.child.end, PollFlags::IN)];
            fds.extend(self.output.as_ref().map(|output| PollFd::new(output, PollFlags::IN)));
            fds.extend(self.errors.as_ref().map(|errors| PollFd::new(errors, PollFlags::IN)));
            match poll(&mut fds, Some(&left)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    return Err(RunnerError::host("cannot wait for the output of a process")(error.into()));
                }
            }
            let woke = sys::now_ns();
            let ended = !fds[1].revents().is_empty();
            let signalled = !fds[0].revents().is_empty();
            drop(fds);
            if signalled
                && let Some(number) = self.signals.take().map_err(RunnerError::host("cannot read signals"))?
            {
                return Err(RunnerError::Interrupted(number));
            }
            let found = drain(&mut self.output, &mut self.said);
            drain(&mut self.errors, &mut self.complained);
            if let Some(at) = found {
                return Ok(Turn::Marker(at));
            }
            if ended {
                return Ok(Turn::Gone(woke));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use super::*;

    /// A shell script in place of a monitor.
    fn stand_in(directory: &std::path::Path, script: &str) -> Launch {
        let program = directory.join("stand-in");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Launch { program, ends_itself: true, ..Launch::default() }
    }

    fn seen(script: &str, limit: Duration) -> Result<ProcessSample, RunnerError> {
        let directory = tempfile::tempdir().unwrap();
        let launch = stand_in(directory.path(), script);
        // In a thread of its own, whose blocked signals go with it.
        let signals = Signals::block(&[12]).unwrap();
        watch(&launch, Some("NELLY-INIT"), limit, &signals)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn time_ends_at_the_marker_and_the_process_is_gone() {
        let script = "sleep 0.2; printf NELLY-; sleep 0.1; printf 'INIT\\n'; sleep 0.3";
        let seen = seen(script, LONG).unwrap();
        let total = seen.end_ns - seen.start_ns;
        let teardown = seen.teardown_ns.unwrap();
        assert!(total >= 300_000_000, "{total}");
        assert!(teardown >= 250_000_000, "{teardown}");
        assert!(seen.usage.minor_faults > 0);
        assert!(seen.peak_rss_bytes.unwrap() > 0);
    }

    #[test]
    fn a_process_that_never_says_it_is_ended_at_the_limit() {
        let began = Instant::now();
        let error = seen("echo something else; exec sleep 1000", Duration::from_millis(300)).unwrap_err();
        assert!(began.elapsed() < LONG);
        let text = error.to_string();
        assert!(text.contains("\"NELLY-INIT\"") && text.contains("something else"), "{text}");
    }

    #[test]
    fn a_process_that_dies_is_told_with_its_last_words() {
        let error = seen("echo no kernel >&2; exit 3", LONG).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no kernel"), "{error}");
        let error = seen("kill -9 $$", LONG).unwrap_err().to_string();
        assert!(error.contains("signal: 9") && error.contains("there was no output"), "{error}");
    }

    #[test]
    fn a_lot_of_output_does_not_stop_it() {
        let script = "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; echo NELLY-INIT; head -c 1000000 /dev/zero";
        assert!(seen(script, LONG).unwrap().teardown_ns.is_some());
    }

    #[test]
    fn a_guest_that_idles_is_weighed_and_one_that_is_gone_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let signals = Signals::block(&[12]).unwrap();
        let weighed = |script: &str, guest_bytes| {
            measure_memory(&stand_in(directory.path(), script), "NELLY-INIT", guest_bytes, LONG, &signals)
        };
        // Its heap and its stack stand for the guest's memory.
        let held = weighed("echo NELLY-INIT; exec sleep 1000", 4096).unwrap();
        assert!(held.rss_bytes > held.outside_rss_bytes && held.outside_rss_bytes > 0, "{held:?}");
        let error = weighed("echo NELLY-INIT; exec sleep 1000", 1 << 46).unwrap_err().chain();
        assert!(error.contains("no guest memory"), "{error}");
        assert!(weighed("exit 1", 4096).is_err());
    }

    #[test]
    fn what_would_start_again_is_ended_after_the_marker() {
        let directory = tempfile::tempdir().unwrap();
        let mut launch = stand_in(directory.path(), "echo NELLY-INIT; exec sleep 1000");
        launch.ends_itself = false;
        let signals = Signals::block(&[12]).unwrap();
        let began = Instant::now();
        let seen = watch(&launch, Some("NELLY-INIT"), LONG, &signals).unwrap();
        assert!(seen.teardown_ns.is_none() && seen.stamps.is_empty() && began.elapsed() < LONG);
    }

    #[test]
    fn what_the_guest_tells_behind_its_marker_is_waited_for_and_is_no_teardown() {
        let directory = tempfile::tempdir().unwrap();
        let words = "echo NELLY-INIT; sleep 0.3; echo NELLY-STAMPS init=7";
        let signals = Signals::block(&[12]).unwrap();
        let endless =
            Launch { ends_itself: false, ..stand_in(directory.path(), &format!("{words}; exec sleep 1000")) };
        let seen = watch(&endless, Some("NELLY-INIT"), LONG, &signals).unwrap();
        assert_eq!((seen.stamps.as_slice(), seen.teardown_ns), ([("init", 7)].as_slice(), None));
        let ends = stand_in(directory.path(), words);
        let before = sys::now_ns();
        let seen = watch(&ends, Some("NELLY-INIT"), LONG, &signals).unwrap();
        let whole = sys::now_ns() - before;
        let teardown = seen.teardown_ns.unwrap();
        assert!(seen.stamps == [("init", 7)] && teardown + 300_000_000 <= whole, "{teardown} of {whole}");
    }

    #[test]
    fn who_wants_a_terminal_has_one_that_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut launch = stand_in(directory.path(), "[ -t 0 ] || exit 5; echo NELLY-INIT; read word; exit 6");
        launch.terminal = true;
        launch.ends_itself = false;
        let signals = Signals::block(&[12]).unwrap();
        watch(&launch, Some("NELLY-INIT"), LONG, &signals).unwrap();
        assert!(watch(&Launch { terminal: false, ..launch }, Some("NELLY-INIT"), LONG, &signals).is_err());
    }

    #[test]
    fn a_signal_ends_it() {
        let launch =
            Launch { program: "/bin/sleep".into(), arguments: vec!["1000".into()], ..Launch::default() };
        let signals = Signals::block(&[12]).unwrap();
        // To this thread alone: the others have not blocked it.
        crate::sys::signal_this_thread(12);
        let error = watch(&launch, Some("x"), LONG, &signals).unwrap_err();
        assert!(matches!(error, RunnerError::Interrupted(12)), "{error}");
    }

    #[test]
    fn a_whole_process_must_succeed() {
        let directory = tempfile::tempdir().unwrap();
        let signals = Signals::block(&[12]).unwrap();
        let good = stand_in(directory.path(), "sleep 0.1");
        let seen = watch(&good, None, LONG, &signals).unwrap();
        assert!(seen.end_ns - seen.start_ns >= 100_000_000 && seen.teardown_ns.is_none());
        let bad = stand_in(directory.path(), "exit 125");
        let error = watch(&bad, None, LONG, &signals).unwrap_err().to_string();
        assert!(error.contains("125") && error.contains("with an error"), "{error}");
        let missing = Launch { program: "/no/such/program".into(), ..good };
        let error = watch(&missing, None, LONG, &signals).unwrap_err().to_string();
        assert!(error.contains("/no/such/program"), "{error}");
    }
}
