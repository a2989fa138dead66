//! Output of Nelly itself: results on standard output, messages on standard error. All of it goes
//! through this module, which escapes control characters in text from images, guests and file names
//! ([`nelly_vmm::text`]).

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use anyhow::{Context as _, Result};
use nelly_vmm::text;

/// Writes text of one or more lines and a newline to standard output. If the reader has gone
/// (`nelly config show | head -1`), this is not an error.
///
/// # Errors
/// Writing failed, for example because the file system is full.
pub(crate) fn line(said: impl Display) -> Result<()> {
    deliver(&text::lines(&said.to_string()))
}

/// Writes lines of two columns with a tab between them, the second one only if it is not empty, for
/// programs that divide them again.
///
/// # Errors
/// As [`line`].
pub(crate) fn columns(rows: impl IntoIterator<Item = (String, String)>) -> Result<()> {
    let mut said = String::new();
    for (first, second) in rows {
        said += &text::line(&first);
        if !second.is_empty() {
            said.push('\t');
            said += &text::line(&second);
        }
        said.push('\n');
    }
    let written = {
        let mut out = io::stdout().lock();
        out.write_all(said.as_bytes()).and_then(|()| out.flush())
    };
    arrived(written).context("cannot write to standard output")
}

/// Like [`line`] for a JSON value.
///
/// # Errors
/// As [`line`].
pub(crate) fn json(value: impl Display) -> Result<()> {
    deliver(&text::json(&value.to_string()))
}

/// Like [`json`] for an array, whose values are made one after the other.
///
/// # Errors
/// As [`line`].
pub(crate) fn json_array(values: impl Iterator<Item = serde_json::Value>) -> Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let written = array(&mut out, values).and_then(|()| out.flush());
    if written.is_err() {
        // Nor is what is left of it tried again.
        let (_, _unwritten) = out.into_parts();
    }
    arrived(written).context("cannot write to standard output")
}

/// As an array in a serializer's pretty form.
fn array(out: &mut impl Write, values: impl Iterator<Item = serde_json::Value>) -> io::Result<()> {
    let mut lead = "[";
    for value in values {
        let value = format!("{value:#}").replace('\n', "\n  ");
        write!(out, "{lead}\n  {}", text::json(&value))?;
        lead = ",";
    }
    writeln!(out, "{}", if lead == "[" { "[]" } else { "\n]" })
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

/// Prints a message of one sentence, after the program's name, on standard error.
pub(crate) fn message(sentence: impl Display) {
    aside(format_args!("nelly: {}\n", text::line(&sentence.to_string())));
}

/// Prints lines without a prefix on standard error; the text ends with a newline.
pub(crate) fn note(said: impl Display) {
    aside(text::lines(&said.to_string()));
}

/// Errors are ignored: if standard error cannot be written, there is no place to report it.
fn aside(said: impl Display) {
    let _ = write!(io::stderr(), "{said}");
}

/// Standard error as a writer for the log, which writes whole lines.
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
    fn an_array_is_written_as_a_serializer_does() {
        let whole = serde_json::json!([{ "a": 1, "b": ["x", {}] }, "line\n\u{9b}", [], 5]);
        for count in 0..=4 {
            let some: Vec<_> = whole.as_array().unwrap()[..count].to_vec();
            let mut out = Vec::new();
            array(&mut out, some.iter().cloned()).unwrap();
            let pretty = format!("{:#}\n", serde_json::Value::from(some));
            assert_eq!(String::from_utf8(out).unwrap(), text::json(&pretty));
        }
    }

    #[test]
    fn only_a_reader_that_went_away_is_no_error() {
        assert!(arrived(Err(ErrorKind::BrokenPipe.into())).is_ok());
        assert!(arrived(Err(ErrorKind::StorageFull.into())).is_err());
        assert!(arrived(Ok(())).is_ok());
    }
}
