//! The user-mode network of one machine, in a process of its own.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;

use nelly_net::config::{Confine, UsernetConfig};
use nelly_net::shell::{Journal, RESOLV_CONF, Reader, Shell};
use nelly_net::sys::{self, Role};

const HELP: &str = "\
The user-mode network of one virtual machine: what the guest sends becomes connections of ordinary sockets.

Usage: nelly-usernet --config fd:N --link fd:N [--ready fd:N]

  --config fd:N   read the configuration, as JSON (schema 1), from file descriptor N to its end; if that is a Unix
                  socket, the log may come with it as a descriptor
  --link fd:N     the machine: a message socket (SOCK_SEQPACKET), one frame a message; the program ends with it
  --ready fd:N    write one line of JSON when everything listens and this program is confined:
                  {\"published\":[\"127.0.0.1:49152:80/tcp\"],\"confinement\":[\"seccomp\"]}
  --help          print this help
  --version       print the version

Whoever starts a machine starts it; there is nothing to be done with it by hand. Descriptors that are not named
are closed. See docs/network.md.

Exit codes: 0 the machine has ended, 2 usage or configuration, 159 a system call was denied, 125 everything else.
";

/// The longest configuration, in bytes.
const MOST: usize = 1 << 20;

/// What to say, and the exit code.
type Failed = (String, u8);

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.first().and_then(|word| word.to_str()) {
        Some("--help" | "-h") => return print(HELP),
        Some("--version" | "-V") => return print(concat!("nelly-usernet ", env!("CARGO_PKG_VERSION"), "\n")),
        _ => {}
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err((text, code)) => {
            // A standard error that is gone is no reason to fail: there is nobody to tell.
            let _gone = writeln!(std::io::stderr(), "nelly-usernet: {}", text.escape_debug());
            ExitCode::from(code)
        }
    }
}

fn run(arguments: &[std::ffi::OsString]) -> Result<(), Failed> {
    let usage = |text: String| (format!("{text}; see nelly-usernet --help"), 2);
    let (mut config, mut link, mut ready) = (None, None, None);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let (name, slot) = match word.to_str() {
            Some(name @ "--config") => (name, &mut config),
            Some(name @ "--link") => (name, &mut link),
            Some(name @ "--ready") => (name, &mut ready),
            _ => return Err(usage(format!("unknown argument {}", word.display()))),
        };
        let value = words.next().ok_or_else(|| usage(format!("{name} needs a value, fd:N")))?;
        let number = value.to_str().and_then(|text| text.strip_prefix("fd:")?.parse::<u32>().ok());
        let number = number.ok_or_else(|| {
            usage(format!("{name} {}: this is not a file descriptor, fd:N", value.display()))
        })?;
        let file = sys::inherited(number)
            .map_err(|e| (format!("{name} fd:{number}: cannot use the file descriptor: {e}"), 2))?;
        if slot.replace(file).is_some() {
            return Err(usage(format!("{name} is given twice")));
        }
    }
    sys::forget_environment().map_err(|e| (format!("cannot clear the environment: {e}"), 125))?;
    let config = config.ok_or_else(|| usage("--config fd:N is missing".to_owned()))?;
    let link = link.ok_or_else(|| usage("--link fd:N is missing".to_owned()))?;
    serve(config, link, ready)
}

fn serve(config: OwnedFd, link: OwnedFd, ready: Option<OwnedFd>) -> Result<(), Failed> {
    let failed = |text: &str| {
        let text = text.to_owned();
        move |e: std::io::Error| (format!("{text}: {e}"), 125)
    };
    let read = sys::read_with_descriptors(&config, MOST + 1);
    let (text, descriptors) = read.map_err(failed("cannot read the configuration"))?;
    drop(config);
    if text.len() > MOST {
        return Err((format!("configuration: it is longer than {MOST} bytes"), 2));
    }
    let mut config =
        UsernetConfig::from_json(&text).map_err(|e| (format!("the configuration is wrong: {e}"), 2))?;
    let log = config.log_fd.map(sys::inherited).transpose();
    let mut log = log.map_err(|e| (format!("log_fd: cannot use the file descriptor: {e}"), 2))?;
    let mut descriptors = descriptors.into_iter();
    let port = if config.peers { descriptors.next() } else { None };
    if config.peers && port.is_none() {
        return Err(("peers: a port on a switch comes with the configuration, and none came".to_owned(), 2));
    }
    let control = if config.control { descriptors.next() } else { None };
    if config.control && control.is_none() {
        return Err((
            "control: a socket of the holder comes with the configuration, and none came".to_owned(),
            2,
        ));
    }
    let secrets = if config.secrets.is_empty() { None } else { descriptors.next() };
    if !config.secrets.is_empty() && secrets.is_none() {
        return Err(("secrets: a socket for them comes with the configuration, and none came".to_owned(), 2));
    }
    if let Some(passed) = descriptors.next() {
        config.log_fd = Some(passed.as_raw_fd().unsigned_abs());
        log = Some(passed);
    }
    drop(descriptors);
    let kept = [Some(&link), ready.as_ref(), log.as_ref(), port.as_ref(), control.as_ref(), secrets.as_ref()];
    let kept: Vec<&OwnedFd> = kept.into_iter().flatten().collect();
    sys::close_all_but(&kept).map_err(failed("cannot close inherited file descriptors"))?;
    let log = log.map(|log| Arc::new(Journal::new(File::from(log))));
    let panics = log.clone();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.to_string().escape_debug().to_string();
        if let Some(log) = &panics {
            log.say(&text);
        }
        let _gone = writeln!(std::io::stderr(), "nelly-usernet: {text}");
    }));
    sys::keep_privileges_down().map_err(failed("cannot give up privileges"))?;
    let confined = config.confine == Confine::On;
    let reader = config.dns_servers.is_empty().then(|| Reader::start(RESOLV_CONF.as_ref(), confined));
    let reader = reader.transpose().map_err(failed("cannot start the reader of resolv.conf"))?;
    let words = log.clone();
    let mut shell = Shell::new(config, link, log, reader).map_err(|e| (chain(&e), 125))?;
    if let Some(port) = port {
        shell.join(port).map_err(|e| (chain(&e), 125))?;
    }
    if let Some(control) = control {
        shell.obey(control).map_err(|e| (chain(&e), 125))?;
    }
    let role = if secrets.is_some() { Role::Swapping } else { Role::Network };
    if let Some(secrets) = secrets {
        shell.keep_secrets(secrets);
    }
    let stderr = std::io::stderr();
    let told: Vec<_> = std::iter::once(stderr.as_fd()).chain(words.as_ref().map(|log| log.file())).collect();
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(failed("cannot open /dev/null"))?;
    let confinement = if confined { sys::confine(role, &told) } else { Ok(Vec::new()) };
    let confinement = confinement.map_err(|e| (chain(&e), 125))?;
    if let Some(ready) = ready {
        let published: Vec<String> = shell.published().collect();
        let line = serde_json::json!({"published": published, "confinement": confinement});
        let line = format!("{line}\n");
        File::from(ready).write_all(line.as_bytes()).map_err(failed("cannot say that it is ready"))?;
    }
    leave_terminal(&null).map_err(failed("cannot leave standard input and output"))?;
    shell.run().map(|_| ()).map_err(|e| (chain(&e), 125))
}

/// Standard input and output are nobody's any more. On standard error last words are said.
fn leave_terminal(null: &File) -> std::io::Result<()> {
    rustix::stdio::dup2_stdin(null)?;
    rustix::stdio::dup2_stdout(null)?;
    Ok(())
}

/// An error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(cause) = below {
        text.push_str(&format!(": {cause}"));
        below = cause.source();
    }
    text
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
