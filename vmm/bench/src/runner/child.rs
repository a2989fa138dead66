//! One process from its start to its end: its console watched for the marker, its use of the host taken, always reaped.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nelly_vmm::sys::signals::Signals;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use super::RunnerError;
use crate::host;
use crate::peer::Launch;
use crate::sys::{self, Usage};

/// What a process that ends itself may take for it once the marker is there.
const LAST: Duration = Duration::from_secs(10);
/// Most bytes of what it said that an error carries.
const TAIL: usize = 600;

/// What was seen of one process.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// The clock just before its start.
    pub(super) start_ns: u64,
    /// The marker's last byte, or, without a marker, the process's end.
    pub(super) end_ns: u64,
    /// The process's end; `None` where it was ended.
    pub(super) gone_ns: Option<u64>,
    /// What it used over its life.
    pub(super) usage: Usage,
    /// The most it held until the marker.
    pub(super) peak_rss_bytes: Option<u64>,
}

/// Finds a marker in a stream of chunks, also across their borders.
struct Finder<'a> {
    marker: &'a [u8],
    kept: Vec<u8>,
}

impl Finder<'_> {
    /// Whether the marker's last byte is in `chunk`.
    fn feed(&mut self, chunk: &[u8]) -> bool {
        self.kept.extend_from_slice(chunk);
        let found = self.kept.windows(self.marker.len()).any(|window| window == self.marker);
        // Enough for a marker that goes on in the next chunk, and for a person who asks what was said last.
        let surplus = self.kept.len().saturating_sub(TAIL.max(self.marker.len()));
        self.kept.drain(..surplus);
        found
    }

    /// The end of what was said, without control characters: a guest writes it.
    fn tail(&self, errors: &Self) -> String {
        let mut said = String::from_utf8_lossy(&errors.kept).into_owned();
        said.push_str(&String::from_utf8_lossy(&self.kept));
        let said: String = said.chars().filter(|c| *c == '\n' || !c.is_control()).collect();
        match said.trim() {
            "" => "; it said nothing".to_owned(),
            said => format!("; it said last:\n{said}"),
        }
    }
}

/// A child that does not outlive this value.
struct Child {
    id: u32,
    end: OwnedFd,
    reaped: bool,
}

impl Child {
    /// Ends it and what it started: it leads a group of processes of its own, whose number is taken until it is reaped.
    fn kill(&self) {
        // Either may have ended by itself just now.
        let _ = pidfd_send_signal(&self.end, Signal::KILL);
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

/// Starts what `launch` says and watches it until its end. With a marker, that is where the measured time ends; without, it ends with the
/// process, which must say success.
///
/// # Errors
/// It cannot be started, does not come to its end within `limit`, or fails; a signal came. It has ended then as well.
pub(super) fn watch(
    launch: &Launch,
    marker: Option<&str>,
    limit: Duration,
    signals: &Signals,
) -> Result<Seen, RunnerError> {
    for (path, content) in &launch.files {
        let cannot = RunnerError::host(format!("cannot write {}", path.display()));
        fs::write(path, content).map_err(cannot)?;
    }
    let mut command = Command::new(&launch.program);
    command
        .args(&launch.arguments)
        .stdin(Stdio::null())
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
    let end = i32::try_from(id).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData.into());
    let end = end.and_then(|id| Ok(pidfd_open(id, PidfdFlags::empty())?));
    let end = end.map_err(|source| {
        let _ = child.kill();
        let _ = child.wait();
        RunnerError::Host { what: "cannot watch a process".into(), source }
    })?;
    let finder = |marker: &'static str| Finder { marker: marker.as_bytes(), kept: Vec::new() };
    let watch = Watch {
        child: Child { id, end, reaped: false },
        output: child.stdout.take(),
        errors: child.stderr.take(),
        said: Finder { marker: marker.unwrap_or("\0never").as_bytes(), kept: Vec::new() },
        complained: finder("\0never"),
        signals,
    };
    for fd in [watch.output.as_ref().map(AsFd::as_fd), watch.errors.as_ref().map(AsFd::as_fd)] {
        let Some(fd) = fd else { continue };
        nelly_vmm::sys::set_nonblocking(fd)
            .map_err(RunnerError::host("cannot read a pipe without waiting"))?;
    }
    let deadline = start_ns.saturating_add(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX));
    match marker {
        Some(marker) => watch.until_marker(launch, marker, start_ns, deadline, limit),
        None => watch.until_gone(start_ns, deadline, limit),
    }
}

impl Watch<'_> {
    fn until_marker(
        mut self,
        launch: &Launch,
        marker: &str,
        start_ns: u64,
        deadline: u64,
        limit: Duration,
    ) -> Result<Seen, RunnerError> {
        let end_ns = match self.turn(deadline)? {
            Turn::Marker(at) => at,
            Turn::Gone(_) => {
                let (status, _) = self.child.reap()?;
                let before = format!("before {marker:?} was on its console");
                return Err(RunnerError::Died { status, before, tail: self.said.tail(&self.complained) });
            }
            Turn::Late => {
                let what = format!("{marker:?} on its console");
                return Err(RunnerError::Late { what, limit, tail: self.said.tail(&self.complained) });
            }
        };
        // The clock has been read: this costs nobody. By rusage it could not be told from what this process holds.
        let peak_rss_bytes = host::peak_rss_bytes(self.child.id);
        let mut gone_ns = None;
        if launch.ends_itself {
            let last = sys::now_ns().saturating_add(u64::try_from(LAST.as_nanos()).unwrap_or(u64::MAX));
            loop {
                match self.turn(last)? {
                    Turn::Marker(_) => {}
                    Turn::Gone(at) => break gone_ns = Some(at),
                    Turn::Late => break,
                }
            }
        }
        if gone_ns.is_none() {
            self.child.kill();
        }
        let (_, usage) = self.child.reap()?;
        Ok(Seen { start_ns, end_ns, gone_ns, usage, peak_rss_bytes })
    }

    fn until_gone(mut self, start_ns: u64, deadline: u64, limit: Duration) -> Result<Seen, RunnerError> {
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
        Ok(Seen { start_ns, end_ns, gone_ns: None, usage, peak_rss_bytes })
    }

    /// Watches until something happens. What the process says goes on being read, so that it never waits for us.
    fn turn(&mut self, deadline: u64) -> Result<Turn, RunnerError> {
        loop {
            let now = sys::now_ns();
            let Some(left) = deadline.checked_sub(now).filter(|left| *left > 0) else {
                return Ok(Turn::Late);
            };
            let left = Duration::from_nanos(left);
            let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
            let mut fds =
                vec![PollFd::new(self.signals, PollFlags::IN), PollFd::new(&self.child.end, PollFlags::IN)];
            fds.extend(self.output.as_ref().map(|output| PollFd::new(output, PollFlags::IN)));
            fds.extend(self.errors.as_ref().map(|errors| PollFd::new(errors, PollFlags::IN)));
            match poll(&mut fds, Some(&left)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(RunnerError::host("cannot watch a process")(error.into())),
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

/// Reads what is there; the time of the read that completed the marker. A stream at its end is closed.
fn drain(stream: &mut Option<impl Read>, finder: &mut Finder<'_>) -> Option<u64> {
    let mut found = None;
    let mut chunk = [0; 4096];
    while let Some(open) = stream {
        match open.read(&mut chunk) {
            Ok(0) => *stream = None,
            Ok(count) => {
                let at = sys::now_ns();
                if finder.feed(&chunk[..count]) && found.is_none() {
                    found = Some(at);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(_) => *stream = None,
        }
    }
    found
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

    fn seen(script: &str, limit: Duration) -> Result<Seen, RunnerError> {
        let directory = tempfile::tempdir().unwrap();
        let launch = stand_in(directory.path(), script);
        // In a thread of its own, whose blocked signals go with it.
        let signals = Signals::block(&[12]).unwrap();
        watch(&launch, Some("NELLY-INIT"), limit, &signals)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_marker_is_found_across_chunks() {
        let mut finder = Finder { marker: b"MARK", kept: Vec::new() };
        assert!(!finder.feed(b"xxMA"));
        assert!(!finder.feed(b""));
        assert!(finder.feed(b"RKyy"));
        let mut finder = Finder { marker: b"MARK", kept: Vec::new() };
        assert!(!finder.feed(&[b'x'; 5000]) && finder.kept.len() == TAIL);
        assert!(finder.feed(b"MARK"));
    }

    #[test]
    fn time_ends_at_the_marker_and_the_process_is_gone() {
        let script = "sleep 0.2; printf NELLY-; sleep 0.1; printf 'INIT\\n'; sleep 0.3";
        let seen = seen(script, LONG).unwrap();
        let total = seen.end_ns - seen.start_ns;
        let teardown = seen.gone_ns.unwrap() - seen.end_ns;
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
        assert!(error.contains("signal: 9") && error.contains("said nothing"), "{error}");
    }

    #[test]
    fn a_lot_of_output_does_not_stop_it() {
        let script = "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; echo NELLY-INIT; head -c 1000000 /dev/zero";
        assert!(seen(script, LONG).unwrap().gone_ns.is_some());
    }

    #[test]
    fn what_would_start_again_is_ended_after_the_marker() {
        let directory = tempfile::tempdir().unwrap();
        let mut launch = stand_in(directory.path(), "echo NELLY-INIT; exec sleep 1000");
        launch.ends_itself = false;
        let signals = Signals::block(&[12]).unwrap();
        let began = Instant::now();
        let seen = watch(&launch, Some("NELLY-INIT"), LONG, &signals).unwrap();
        assert!(seen.gone_ns.is_none() && began.elapsed() < LONG);
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
        assert!(seen.end_ns - seen.start_ns >= 100_000_000 && seen.gone_ns.is_none());
        let bad = stand_in(directory.path(), "exit 125");
        let error = watch(&bad, None, LONG, &signals).unwrap_err().to_string();
        assert!(error.contains("125") && error.contains("with an error"), "{error}");
        let missing = Launch { program: "/no/such/program".into(), ..good };
        let error = watch(&missing, None, LONG, &signals).unwrap_err().to_string();
        assert!(error.contains("/no/such/program"), "{error}");
    }
}
