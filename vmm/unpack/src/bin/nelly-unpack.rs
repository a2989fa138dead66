//! Unpacks one image into the cache, for `nelly` and for programs that embed it.
//!
//! It reads an order on standard input, and reports on standard output (`nelly_image::Order`). When
//! standard input ends, nobody waits for it any more.
//!
//! With `stream FORM MOST [MEMBER]`, standard input is a packed file, and standard output the file
//! that gets what comes out of it.
//!
//! With `archive ORDER`, standard input is an archive of images, of which it finds the files; it
//! reports on standard error (`nelly_image::ArchiveOrder`).

use std::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufReader, Write, stderr, stdin, stdout};
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use nelly_image::{ARCHIVE, ArchiveOrder, Order, Store};
use nelly_unpack::confine::{ConfineError, begin, confine, confine_to_archive, confine_to_streams};
use nelly_unpack::stream::{NO_MEMBER, StreamError, StreamOrder, unpack};

const HELP: &str = "\
Unpacks an image into the cache of nelly.

nelly starts it; there is nothing to be done with it by hand. It gives up its rights before it reads the image: it can
read that image, write to the cache, and reaches no network, no other process and, on Linux 5.19 or newer, no other file.
With stream, it unpacks the file that is its standard input into the one that is its standard output, and reaches no other.
With archive, it finds the files of the archive that is its standard input.

  --help      print this help
  --version   print the version
";

/// The word before the order for one file.
const STREAM: &str = "stream";

fn main() -> ExitCode {
    match std::env::args_os().nth(1).as_ref().map(|word| word.to_str()) {
        None => {}
        Some(Some("--help" | "-h")) => return print(HELP),
        Some(Some("--version" | "-V")) => {
            return print(concat!("nelly-unpack ", env!("CARGO_PKG_VERSION"), "\n"));
        }
        Some(Some(STREAM)) => return stream(),
        Some(Some(ARCHIVE)) => return archive(),
        Some(_) => return complain("unknown argument; see nelly-unpack --help"),
    }
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => complain(&chain(error.as_ref())),
    }
}

/// Whether the image is in the cache; if not, the reason was reported.
fn run() -> Result<bool, Box<dyn Error>> {
    begin()?;
    let order = Order::read(BufReader::new(stdin())).map_err(|error| {
        format!("standard input gives no order ({error}): nelly-unpack is started by nelly; see nelly-unpack --help")
    })?;
    confine(&order)?;
    Ok(Store::carry_out(&order, stdout().lock(), stdin())?)
}

/// Unpacks standard input into standard output.
fn stream() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(2).collect();
    let Some(order) = StreamOrder::read(&words) else {
        return complain("this is no order; see nelly-unpack --help");
    };
    let (from, to) = match files(confine_to_streams) {
        Ok(ready) => ready,
        Err(error) => return complain(&chain(error.as_ref())),
    };
    match unpack(&from, &to, &order) {
        Ok(_bytes) => ExitCode::SUCCESS,
        Err(error) => {
            let code = complain(&chain(&error));
            if matches!(error, StreamError::NoMember { .. }) { ExitCode::from(NO_MEMBER) } else { code }
        }
    }
}

/// Finds the files of the archive that is standard input.
fn archive() -> ExitCode {
    let word = std::env::args_os().nth(2);
    let order = match word.as_ref().and_then(|word| word.to_str()).map(ArchiveOrder::read) {
        Some(Ok(order)) => order,
        Some(Err(error)) => return complain(&format!("this is no order ({error}); see nelly-unpack --help")),
        None => return complain("there is no order; see nelly-unpack --help"),
    };
    let read = || -> Result<bool, Box<dyn Error>> {
        let (from, to) = files(|| confine_to_archive(order.most_written()))?;
        Ok(order.carry_out(from, to, &mut stderr())?)
    };
    match read() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => complain(&chain(error.as_ref())),
    }
}

/// Standard input and output as files, when nothing else is reached any more.
fn files(
    confine: impl FnOnce() -> Result<Vec<&'static str>, ConfineError>,
) -> Result<(File, File), Box<dyn Error>> {
    begin()?;
    let from = File::from(stdin().as_fd().try_clone_to_owned()?);
    let to = File::from(stdout().as_fd().try_clone_to_owned()?);
    confine()?;
    Ok((from, to))
}

fn chain(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}

fn print(text: &str) -> ExitCode {
    match stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn complain(message: &str) -> ExitCode {
    // Nobody is there to be told that nobody can be told.
    let _unheard = writeln!(stderr(), "nelly-unpack: {message}");
    ExitCode::FAILURE
}
