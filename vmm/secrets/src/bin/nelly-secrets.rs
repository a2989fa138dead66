//! Secrets that a guest never has, in a process of their own.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use nelly_net::config::{Confine, SecretsConfig};
use nelly_net::shell::Journal;
use nelly_net::sys::{self, Role};
use nelly_secrets::authority::Authority;
use nelly_secrets::serve::{Served, Server};
use nelly_secrets::trust;
use zeroize::Zeroizing;

const HELP: &str = "\
Secrets of one virtual machine: puts them into the requests of a guest that never has them.

Usage: nelly-secrets --config fd:N --ready fd:N

  --config fd:N   read the configuration, as JSON (schema 1), from file descriptor N, a Unix socket, to its end; with
                  it come the message socket on which nelly-usernet hands connections over, and perhaps the log
  --ready fd:N    write one line of JSON when this program serves and is confined:
                  {\"authority\":\"-----BEGIN CERTIFICATE-----...\",\"confinement\":[\"seccomp\"]}
  --help          print this help
  --version       print the version

Whoever starts a machine starts it; there is nothing to be done with it by hand. Descriptors that are not named
are closed. See docs/network.md, \"Secrets\".

Exit codes: 0 the network has ended, 2 usage or configuration, 159 a system call was denied, 125 everything else.
";

/// The longest configuration, in bytes.
const MOST: usize = 4 << 20;

/// What to say, and the exit code.
type Failed = (String, u8);

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("--help" | "-h") => return print(HELP),
        Some("--version" | "-V") => return print(concat!("nelly-secrets ", env!("CARGO_PKG_VERSION"), "\n")),
        _ => {}
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err((text, code)) => {
            // A standard error that is gone is no reason to fail: there is nobody to tell.
            let _gone = writeln!(std::io::stderr(), "nelly-secrets: {}", text.escape_debug());
            ExitCode::from(code)
        }
    }
}

fn run(arguments: &[String]) -> Result<(), Failed> {
    let usage = |text: String| (format!("{text}; see nelly-secrets --help"), 2);
    let (mut config, mut ready) = (None, None);
    for pair in arguments.chunks(2) {
        let slot = match pair[0].as_str() {
            "--config" => &mut config,
            "--ready" => &mut ready,
            other => return Err(usage(format!("unknown argument {other}"))),
        };
        let number = pair.get(1).and_then(|text| text.strip_prefix("fd:")?.parse::<u32>().ok());
        let number = number.ok_or_else(|| usage(format!("{} needs a file descriptor, fd:N", pair[0])))?;
        let file = sys::inherited(number)
            .map_err(|e| (format!("{} fd:{number}: cannot use the file descriptor: {e}", pair[0]), 2))?;
        *slot = Some(file);
    }
    sys::forget_environment().map_err(|e| (format!("cannot clear the environment: {e}"), 125))?;
    let config = config.ok_or_else(|| usage("--config fd:N is missing".to_owned()))?;
    let ready = ready.ok_or_else(|| usage("--ready fd:N is missing".to_owned()))?;
    serve(config, ready)
}

fn failed(text: &'static str) -> impl FnOnce(std::io::Error) -> Failed {
    move |error| (format!("{text}: {error}"), 125)
}

fn serve(config: OwnedFd, ready: OwnedFd) -> Result<(), Failed> {
    let read = sys::read_with_descriptors(&config, MOST + 1);
    let (text, descriptors) = read.map_err(failed("cannot read the configuration"))?;
    let text = Zeroizing::new(text);
    drop(config);
    if text.len() > MOST {
        return Err((format!("configuration: it is longer than {MOST} bytes"), 2));
    }
    let wrong = |what: String| (format!("the configuration is wrong: {what}"), 2);
    let config = SecretsConfig::from_json(&text).map_err(wrong)?;
    drop(text);
    let mut descriptors = descriptors.into_iter();
    let handovers = descriptors.next();
    let handovers = handovers.ok_or_else(|| wrong("no socket for connections came with it".to_owned()))?;
    let log = descriptors.next();
    drop(descriptors);
    let kept: Vec<&OwnedFd> = [Some(&ready), Some(&handovers), log.as_ref()].into_iter().flatten().collect();
    sys::close_all_but(&kept).map_err(failed("cannot close inherited file descriptors"))?;
    std::panic::set_hook(Box::new(|panic| {
        // What it was about may be a value.
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let _gone = writeln!(std::io::stderr(), "nelly-secrets: panicked at {place}");
    }));
    sys::keep_privileges_down().map_err(failed("cannot give up privileges"))?;
    let of_host = trust::of_host().map_err(|text| (text, 125))?;
    let client = trust::client(&of_host, &config.authorities).map_err(|text| (text, 125))?;
    drop(of_host);
    let domains = config.secrets.iter().flat_map(|secret| &secret.hosts).map(|host| host.domain.name());
    let authority = Authority::new(domains).map_err(|e| (e.to_string(), 125))?;
    let pem = authority.pem();
    let log = log.map(|log| Journal::new(File::from(log)));
    let confined = config.confine == Confine::On;
    let served = Served { secrets: config.secrets.into(), authority, client, handovers, log };
    let server = Server::new(served).map_err(failed("cannot wait for connections"))?;
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(failed("cannot open /dev/null"))?;
    let stderr = std::io::stderr();
    let confinement = if confined { sys::confine(Role::Secrets, &[stderr.as_fd()]) } else { Ok(Vec::new()) };
    let confinement = confinement.map_err(|e| (e.to_string(), 125))?;
    let line = serde_json::json!({"authority": pem, "confinement": confinement});
    let said = File::from(ready).write_all(format!("{line}\n").as_bytes());
    said.map_err(failed("cannot say that it is ready"))?;
    // Standard input and output are nobody's any more. On standard error last words are said.
    let left = rustix::stdio::dup2_stdin(&null).and_then(|()| rustix::stdio::dup2_stdout(&null));
    left.map_err(|e| failed("cannot leave standard input and output")(e.into()))?;
    server.run().map_err(failed("cannot wait for connections"))
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
