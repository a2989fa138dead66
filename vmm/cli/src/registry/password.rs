//! Asking for a password: it is not shown while it is typed.

use std::io::{self, Read, Write, stderr, stdin};

use anyhow::{Context as _, Result, bail};
use nelly_sandbox::life::Signal;
use nelly_vmm::sys::terminal::{self, RawMode};

use crate::fail::Refused;

/// Longest answer in bytes.
const MOST: usize = 64 << 10;

/// Asks for a line on the terminal.
pub(super) fn ask(what: &str) -> Result<String> {
    need_terminal()?;
    prompt(what);
    let mut line = String::new();
    stdin().read_line(&mut line).context("cannot read the terminal")?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// Asks for a line that is not shown.
pub(super) fn ask_hidden(what: &str) -> Result<String> {
    need_terminal()?;
    let typed = {
        // The keys of signals are bytes now; so no signal can leave the terminal without echo.
        let _raw = RawMode::enter(stdin()).context("cannot read the terminal")?;
        // Not before: what is typed at the sight of it would be shown.
        prompt(what);
        read_typed(&mut stdin().lock())
    };
    let _ = stderr().write_all(b"\n");
    match typed.context("cannot read the terminal")? {
        Some(bytes) => String::from_utf8(bytes).context("the password is not UTF-8"),
        None => Err(Refused { code: Signal::INT.exit_code(), message: "interrupted".to_owned() }.into()),
    }
}

/// The password from standard input, without the end of its line.
pub(super) fn from_stdin() -> Result<String> {
    let mut bytes = Vec::new();
    stdin().take(MOST as u64 + 1).read_to_end(&mut bytes).context("cannot read standard input")?;
    if bytes.len() > MOST {
        bail!("the password on standard input has more than {MOST} bytes");
    }
    let text = String::from_utf8(bytes).context("the password is not UTF-8")?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

fn need_terminal() -> Result<()> {
    if !terminal::is_terminal(stdin()) {
        bail!("standard input is not a terminal; use --username NAME --password-stdin");
    }
    Ok(())
}

fn prompt(what: &str) {
    let _ = write!(stderr(), "{what}: ");
}

/// A line as it is typed in raw mode; `None` after Ctrl-C.
fn read_typed(input: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    loop {
        if input.read(&mut byte)? == 0 {
            return Ok(Some(line));
        }
        match byte[0] {
            b'\r' | b'\n' | 4 => return Ok(Some(line)),
            3 => return Ok(None),
            // Ctrl-U
            0x15 => line.clear(),
            8 | 0x7f => {
                // A whole character.
                while line.pop().is_some_and(|last| last & 0xc0 == 0x80) {}
            }
            other if line.len() < MOST => line.push(other),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_as_they_are_typed() {
        for (typed, want) in [
            (&b"secret\r"[..], Some(&b"secret"[..])),
            (b"secx\x7fret\n", Some(b"secret")),
            ("s\u{e4}\x7fo\r".as_bytes(), Some(b"so")),
            (b"junk\x15pw\r", Some(b"pw")),
            (b"\x7f\x7fa\r", Some(b"a")),
            (b"half", Some(b"half")),
            (b"sec\x03ret\r", None),
        ] {
            assert_eq!(read_typed(&mut &typed[..]).unwrap().as_deref(), want);
        }
    }
}
