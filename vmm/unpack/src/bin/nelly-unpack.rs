//! Unpacks one image into the cache, for `nelly` and for programs that embed it.
//!
//! It reads an order on standard input, and reports on standard output (`nelly_image::Order`). When
//! standard input ends, nobody waits for it any more.

use std::error::Error;
use std::io::{BufReader, Write, stderr, stdin, stdout};
use std::process::ExitCode;

use nelly_image::{Order, Store};
use nelly_unpack::confine::{begin, confine};

const HELP: &str = "\
Unpacks an image into the cache of nelly.

nelly starts it; there is nothing to be done with it by hand. It gives up its rights before it reads the image: it can
read that image, write to the cache, and reaches no network, no other process and, on Linux 5.19 or newer, no other file.

  --help      print this help
  --version   print the version
";

fn main() -> ExitCode {
    match std::env::args_os().nth(1).as_ref().map(|word| word.to_str()) {
        None => {}
        Some(Some("--help" | "-h")) => return print(HELP),
        Some(Some("--version" | "-V")) => {
            return print(concat!("nelly-unpack ", env!("CARGO_PKG_VERSION"), "\n"));
        }
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
