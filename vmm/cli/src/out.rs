//! What Nelly itself says on standard output: whole texts, and an error when they do not arrive.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use anyhow::{Context as _, Result};

/// Writes `text` and a newline. A reader that went away (`nelly config show | head -1`) has what it wanted: no error.
///
/// # Errors
/// Standard output is full or failed otherwise.
pub(crate) fn line(text: impl Display) -> Result<()> {
    let written = {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush())
    };
    arrived(written).context("cannot write to standard output")
}

fn arrived(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
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
