//! How an image boots, for the verbs that ask: it is read by a process that has its files and
//! nothing else, which is this program with a hidden verb.

use std::io::{Write as _, stderr, stdin, stdout};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Error, Result};
use nelly_cloud::{AskError, Reader, Reading};
use nelly_unpack::confine::{begin, confine_to_images};
use nelly_vmm::text;

use crate::fail::{Hint, Usage};

/// The console of a machine of Nelly.
pub(crate) const CONSOLE: &str = "ttyS0";

/// The hidden verb: `nelly __read-image`, whose standard input is a socket.
pub(crate) const VERB: &str = "__read-image";

/// Who reads images.
///
/// # Errors
/// It is not known which program this is.
pub(crate) fn reader() -> Result<Reader> {
    let program = std::env::current_exe().context("cannot find out which program this is")?;
    Ok(Reader::new(program, vec![VERB.into()]))
}

/// Why it is not known how an image boots, with what to do.
pub(crate) fn advised(error: AskError, path: &Path) -> Error {
    let failed = format!("cannot find out how {} boots", path.display());
    match error {
        AskError::Nothing(_) => Hint::error(
            format!("{failed}: {error}"),
            "give the kernel itself: nelly boot --kernel FILE --initrd FILE --disk IMAGE --append 'root=/dev/vda1'",
        ),
        AskError::NoEntry(_) => Usage::error(format!("{}: {error}", path.display())),
        other => Error::new(other).context(failed),
    }
}

/// The process that reads an image. It takes the question and the files, gives up everything else,
/// and looks into the image after that alone.
pub(crate) fn read() -> ExitCode {
    let answered = (|| -> Result<()> {
        begin()?;
        let reading =
            Reading::receive(stdin()).context("standard input has no question: this is started by nelly")?;
        confine_to_images(reading.most_written())?;
        Ok(reading.answer(&mut stdout().lock())?)
    })();
    match answered {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is there to be told that nobody can be told.
            let _unheard = writeln!(stderr(), "{}", text::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
