//! The guest's console on stderr, for `--log-level debug`.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::{Context as _, Result};
use nelly_vmm::text;

use crate::out;

/// Kernel arguments that enable console output again: the last `loglevel` is used.
pub(crate) const TALKATIVE: &str = "loglevel=7";

/// Maximum length of a line; longer ones are split.
const LONGEST: usize = 1024;

/// Starts a thread that prints the console's lines on stderr until it ends.
///
/// # Errors
/// The thread cannot be started.
pub(crate) fn show(serial: UnixStream) -> Result<()> {
    let work = move || lines(BufReader::new(serial), |line| out::note(format_args!("guest: {line}\n")));
    thread::Builder::new().name("console".into()).spawn(work).context("cannot start the console's thread")?;
    Ok(())
}

/// Splits the guest's output into lines. It is hostile, and stderr may be a terminal.
fn lines(from: impl BufRead, mut say: impl FnMut(&str)) {
    let mut line = Vec::new();
    let mut tell = |line: &mut Vec<u8>| {
        let said = String::from_utf8_lossy(line);
        if !said.trim().is_empty() {
            say(&text::line(said.trim_end()));
        }
        line.clear();
    };
    for byte in from.bytes() {
        match byte {
            Ok(b'\n') => tell(&mut line),
            Ok(byte) => {
                line.push(byte);
                if line.len() >= LONGEST {
                    tell(&mut line);
                }
            }
            Err(_) => break,
        }
    }
    tell(&mut line);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_and_cannot_steer_a_terminal() {
        let mut said = Vec::new();
        let long = "x".repeat(LONGEST + 1);
        let text = format!("[0.1] one\r\n\n\x1b[2Jtwo\x07\n{long}\nlast");
        lines(text.as_bytes(), |line| said.push(line.to_owned()));
        assert_eq!(said, ["[0.1] one", "\\u{1b}[2Jtwo\\u{7}", &long[..LONGEST], "x", "last"]);
    }
}
