//! Running a small program for its output: credential helpers, and the resolver of host names.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::cancel::Cancel;

/// How often a program that runs is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Most bytes of each output.
const MOST: u64 = 64 << 10;

/// What a program said.
pub(crate) struct Output {
    pub(crate) success: bool,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// Ends the program with its guard.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // It may have ended, which is not an error worth telling.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `program` without a shell, for `most` time.
///
/// # Errors
/// It cannot be started, says too much, or takes too long. [`io::ErrorKind::Interrupted`]: it was
/// cancelled.
pub(crate) fn run(
    program: &OsStr,
    args: &[&str],
    input: &[u8],
    most: Duration,
    cancel: &Cancel,
) -> io::Result<Output> {
    let end = Instant::now() + most;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Guard(command.spawn()?);
    let stdin = child.0.stdin.take();
    let (sender, outputs) = mpsc::channel();
    let readers: [(usize, Option<Box<dyn Read + Send>>); 2] = [
        (0, child.0.stdout.take().map(|pipe| Box::new(pipe) as _)),
        (1, child.0.stderr.take().map(|pipe| Box::new(pipe) as _)),
    ];
    for (index, pipe) in readers {
        let sender = sender.clone();
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let read = pipe.map_or(Ok(0), |pipe| pipe.take(MOST + 1).read_to_end(&mut bytes));
            // The receiver may have given up.
            let _ = sender.send((index, read.map(|_| bytes)));
        });
    }
    // What fits into a pipe is written at once; a program that does not read it says why.
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(input);
    }
    let mut said = [None, None];
    while said.iter().any(Option::is_none) {
        match outputs.recv_timeout(LOOK) {
            Ok((index, bytes)) => {
                let bytes: Vec<u8> = bytes?;
                if bytes.len() as u64 > MOST {
                    return Err(io::Error::other(format!("it says more than {MOST} bytes")));
                }
                said[index] = Some(bytes);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => check(end, most, cancel)?,
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = loop {
        if let Some(status) = child.0.try_wait()? {
            break status;
        }
        check(end, most, cancel)?;
        thread::sleep(LOOK);
    };
    let [stdout, stderr] = said.map(Option::unwrap_or_default);
    Ok(Output { success: status.success(), stdout, stderr })
}

fn check(end: Instant, most: Duration, cancel: &Cancel) -> io::Result<()> {
    if cancel.is_cancelled() {
        return Err(io::ErrorKind::Interrupted.into());
    }
    if Instant::now() >= end {
        let why = format!("it did not end within {} ms", most.as_millis());
        return Err(io::Error::new(io::ErrorKind::TimedOut, why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, most: Duration) -> io::Result<Output> {
        run(OsStr::new("sh"), &["-c", script], b"in", most, &Cancel::new())
    }

    #[test]
    fn a_program_says_what_it_was_told() {
        let output = sh("cat; echo err >&2; exit 3", Duration::from_secs(60)).unwrap();
        assert_eq!(
            (output.success, &output.stdout[..], &output.stderr[..]),
            (false, &b"in"[..], &b"err\n"[..])
        );
    }

    #[test]
    fn a_program_that_talks_or_sleeps_too_long_is_ended() {
        let talks = sh("yes", Duration::from_secs(60)).err().unwrap().to_string();
        assert!(talks.contains("more than"), "{talks}");
        let sleeps = sh("exec sleep 1000", Duration::from_millis(50)).err().unwrap();
        assert_eq!(sleeps.kind(), io::ErrorKind::TimedOut);
        // Also when it hides that it goes on.
        let hides = sh("exec >&- 2>&- sleep 1000", Duration::from_millis(50)).err().unwrap();
        assert_eq!(hides.kind(), io::ErrorKind::TimedOut);
        let cancel = Cancel::new();
        cancel.cancel();
        let cancelled = run(OsStr::new("sleep"), &["1000"], b"", Duration::from_secs(60), &cancel);
        assert_eq!(cancelled.err().unwrap().kind(), io::ErrorKind::Interrupted);
        assert_eq!(
            run(OsStr::new("no-such-program"), &[], b"", Duration::from_secs(60), &Cancel::new())
                .err()
                .unwrap()
                .kind(),
            io::ErrorKind::NotFound
        );
    }
}
