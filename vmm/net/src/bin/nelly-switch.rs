//! The switch of a network of machines.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode};
use std::time::Duration;

use nelly_net::switch::{Place, READY, serve};
use nelly_net::{peers, sys};

/// How long what comes on standard error may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest text that comes there, in bytes.
const MOST: usize = 64;

const HELP: &str = "\
The switch of a network of virtual machines: what one of them sends to another passes through it.

Usage: nelly-switch --network NAME --directory NAME [--serve]

  --network NAME     what the network is called
  --directory NAME   the directory of the socket `switch`, to be removed at the end
  --serve            stay in the foreground
  --help             print this help
  --version          print the version

The first machine of a network starts it, and it ends with the last one; there is nothing to be done with it by hand.
Standard input is the socket that listens (SOCK_SEQPACKET), standard output the file whose lock those hold who are
about to join, and standard error a Unix stream socket, on which descriptors come with a text: the directory that holds
the one of the socket, and a file that is kept open until the end. There it says `ready`, or why not. See docs/network.md.

Exit codes: 0 the last machine has left, 2 usage, 125 everything else.
";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let (mut network, mut directory, mut serves) = (None, None, false);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--help" | "-h" => return print(HELP),
            "--version" | "-V" => return print(concat!("nelly-switch ", env!("CARGO_PKG_VERSION"), "\n")),
            "--network" => network = words.next(),
            "--directory" => directory = words.next(),
            "--serve" => serves = true,
            _ => return ExitCode::from(2),
        }
    }
    // A name that is a part of a path and no more.
    let names =
        network.filter(|name| peers::is_name(name)).zip(directory.filter(|name| peers::is_name(name)));
    let Some((network, directory)) = names else { return ExitCode::from(2) };
    let served = if serves { run(network, directory) } else { detach(&network, &directory) };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody hears it once it has served.
            let _unheard = writeln!(std::io::stderr(), "{}", chain(&*error));
            ExitCode::from(125)
        }
    }
}

/// Starts this program again, as nobody's child: it stays longer than whoever started it.
fn detach(network: &str, directory: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--serve", "--network", network, "--directory", directory]);
    // It inherits the three descriptors.
    command.env_clear().current_dir("/").spawn()?;
    Ok(())
}

fn run(network: String, directory: String) -> Result<(), Box<dyn std::error::Error>> {
    sys::forget_environment()?;
    let (listener, lock, said) = (sys::inherited(0)?, sys::inherited(1)?, sys::inherited(2)?);
    sys::close_all_but(&[&listener, &lock, &said])?;
    let said = UnixStream::from(said);
    // Whoever holds the other end sends before this is started.
    said.set_read_timeout(Some(PATIENCE))?;
    let (_, files) = sys::read_with_descriptors(&said, MOST)?;
    let [parent, kept] = <[OwnedFd; 2]>::try_from(files)
        .map_err(|files| format!("{} descriptors came, not a directory and a file to keep", files.len()))?;
    // Of its own session: neither a terminal's hang-up nor its Ctrl-C is meant for it.
    rustix::process::setsid()?;
    std::panic::set_hook(Box::new(|_| {}));
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    drop(null);
    rustix::io::ioctl_fionbio(&listener, true)?;
    let place = Place { parent, directory, name: "switch".to_owned(), lock };
    let confine = || {
        sys::confine(sys::Role::Switch, &[]).map_err(std::io::Error::other)?;
        // Whoever reads it goes; standard error leads nowhere then.
        sys::write_with_descriptors(&said, READY, &[])
    };
    let served = serve(network, listener, &place, confine);
    drop(kept);
    Ok(served?)
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
