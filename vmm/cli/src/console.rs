//! The guest's console on stderr, for `--log-level debug`.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::{Context as _, Result};
use nelly_vmm::text;

use crate::out;

/// Kernel words that undo the silence of the usual ones: the last `loglevel` counts.
pub(crate) const TALKATIVE: &str = "loglevel=7";

/// Longest line; a longer one is cut into several.
const LONGEST: usize = 1024;

/// Prints the console's lines on stderr until it ends, from a thread of its own.
///
/// # Errors
/// No thread could be started.
pub(crate) fn show(serial: UnixStream) -> Result<()> {
    let work = move || lines(BufReader::new(serial), |line| out::note(format_args!("guest: {line}\n")));
    thread::Builder::new().name("console".into()).spawn(work).context("cannot start the console's thread")?;
    Ok(())
}

/// Cuts what a guest says into lines: it is hostile, and stderr may be a terminal.
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
