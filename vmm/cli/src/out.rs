//! What Nelly itself says: results on standard output, messages on standard error. All of it passes
//! through here, where what came from images, guests and file names is made fit for a terminal
//! ([`nelly_vmm::text`]).

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use anyhow::{Context as _, Result};
use nelly_vmm::text;

/// Writes a text of one or more lines and a newline on standard output. A reader that went away
/// (`nelly config show | head -1`) has what it wanted: no error.
///
/// # Errors
/// Standard output is full or failed otherwise.
pub(crate) fn line(said: impl Display) -> Result<()> {
    deliver(&text::lines(&said.to_string()))
}

/// The same for a JSON value.
///
/// # Errors
/// As [`line`].
pub(crate) fn json(value: impl Display) -> Result<()> {
    deliver(&text::json(&value.to_string()))
}

fn deliver(said: &str) -> Result<()> {
    let written = {
        let mut out = io::stdout().lock();
        writeln!(out, "{said}").and_then(|()| out.flush())
    };
    arrived(written).context("cannot write to standard output")
}

fn arrived(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Says one sentence on standard error, on a line that begins with our name.
pub(crate) fn message(sentence: impl Display) {
    aside(format_args!("nelly: {}\n", text::line(&sentence.to_string())));
}

/// Says lines that need no name before them on standard error; the text ends with a newline.
pub(crate) fn note(said: impl Display) {
    aside(text::lines(&said.to_string()));
}

/// A standard error that cannot be written (its terminal is gone) is no reason to fail: there is
/// nobody to tell.
fn aside(said: impl Display) {
    let _ = write!(io::stderr(), "{said}");
}

/// Standard error for the log: a writer that is given whole lines.
pub(crate) struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        note(String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reader_that_went_away_is_no_error() {
        assert!(arrived(Err(ErrorKind::BrokenPipe.into())).is_ok());
        assert!(arrived(Err(ErrorKind::StorageFull.into())).is_err());
        assert!(arrived(Ok(())).is_ok());
    }
}
