//! The process that puts secrets into what a guest says to their hosts: `nelly-secrets`, beside the
//! user-mode network, which hands connections over to it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Mutex;
use std::time::Duration;

use nelly_net::config::SecretsConfig;
use nelly_net::sys::{message_pair, write_with_descriptors};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{LAST_WORDS, NetworkError, READY_WITHIN, held, last_line};

/// Most that is read of what it says before it serves, in bytes.
const MOST: u64 = 64 << 10;
/// How long it waits with a word that nobody has room for, and drops it then: words are read when
/// it has ended.
const WITHOUT_ROOM: Duration = Duration::from_millis(10);

/// What it says when it serves, in one line.
#[derive(Debug, Default, Deserialize)]
struct Ready {
    authority: String,
    confinement: Vec<String>,
}

/// The process. Dropping it ends the process.
#[derive(Debug)]
pub struct Secrets {
    child: Mutex<Child>,
    ready: Ready,
    said: Mutex<Said>,
}

/// What it says after that.
#[derive(Debug)]
enum Said {
    /// Nobody has listened yet.
    Unheard(BufReader<UnixStream>),
    /// Why it ended.
    Reason(String),
}

impl Secrets {
    /// Starts `program`, and waits until it serves. Answers the socket on which connections are
    /// handed over to it, too.
    ///
    /// # Errors
    /// [`NetworkError::NoSecretsProgram`], [`NetworkError::Secrets`].
    pub(super) fn start(
        program: &Path,
        config: &SecretsConfig,
        log: Option<&File>,
    ) -> Result<(Self, OwnedFd), NetworkError> {
        if !program.exists() {
            return Err(NetworkError::NoSecretsProgram);
        }
        let failed = |source: io::Error| NetworkError::Start { program: program.to_owned(), source };
        let text = serde_json::to_vec(config).map(Zeroizing::new).map_err(|error| failed(error.into()))?;
        let (handovers, theirs) = message_pair().map_err(|error| failed(error.into()))?;
        let (said, telling) = UnixStream::pair().map_err(failed)?;
        let mut command = Command::new(std::path::absolute(program).map_err(failed)?);
        command.args(["--config", "fd:0", "--ready", "fd:0"]).env_clear().current_dir("/");
        // It says there, too, what is wrong.
        let complaints = telling.try_clone().map_err(failed)?;
        complaints.set_write_timeout(Some(WITHOUT_ROOM)).map_err(failed)?;
        let nowhere = std::process::Stdio::null();
        command.stdin(OwnedFd::from(telling)).stdout(nowhere).stderr(OwnedFd::from(complaints));
        // A terminal's Ctrl-C is for the container, which ends in its own time.
        command.process_group(0);
        let child = command.spawn().map_err(failed)?;
        drop(command);
        let ours = said.try_clone().map_err(failed)?;
        let said = Mutex::new(Said::Unheard(BufReader::new(said)));
        let mut secrets = Self { child: Mutex::new(child), ready: Ready::default(), said };
        let files: Vec<_> = [theirs.as_fd()].into_iter().chain(log.map(AsFd::as_fd)).collect();
        match write_with_descriptors(&ours, &text, &files).and_then(|()| ours.shutdown(Shutdown::Write)) {
            // It has ended, and says why.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(failed(error)),
            _ => {}
        }
        drop((theirs, text));
        ours.set_read_timeout(Some(READY_WITHIN)).map_err(failed)?;
        secrets.ready = secrets.first_line()?;
        Ok((secrets, handovers))
    }

    /// What it says first: that it serves, or what is wrong.
    fn first_line(&self) -> Result<Ready, NetworkError> {
        let mut line = String::new();
        let read = match &mut *held(&self.said) {
            Said::Unheard(said) => said.take(MOST).read_line(&mut line),
            Said::Reason(_) => Ok(0),
        };
        let read = read.map_err(|error| refused(&error.to_string()))?;
        match serde_json::from_str(&line) {
            Ok(ready) => Ok(ready),
            Err(_) if read == 0 => Err(refused("it ended before it said why")),
            Err(_) => Err(refused(&line)),
        }
    }

    /// The certificate of its authority, in PEM form.
    #[must_use]
    pub(super) fn authority(&self) -> &str {
        &self.ready.authority
    }

    /// Its process; `None` if that has ended, and connections to the hosts of secrets with it.
    #[must_use]
    pub fn process(&self) -> Option<u32> {
        let mut child = held(&self.child);
        matches!(child.try_wait(), Ok(None)).then(|| child.id())
    }

    /// Why it ended, as a line: its last words, or how the system has it. `None` while it runs.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        let status = held(&self.child).try_wait().ok().flatten()?;
        let mut said = held(&self.said);
        if let Said::Unheard(rest) = &mut *said {
            // It has ended, so there is an end to this.
            let _unchanged = rest.get_ref().set_nonblocking(true);
            let (mut words, mut part) = (Vec::new(), [0; 4096]);
            while let Ok(len @ 1..) = rest.read(&mut part) {
                words.extend(&part[..len]);
                words.drain(..words.len().saturating_sub(LAST_WORDS));
            }
            let words = last_line(&String::from_utf8_lossy(&words));
            *said = Said::Reason(if words.is_empty() { status.to_string() } else { words });
        }
        match &*said {
            Said::Reason(reason) => Some(reason.clone()),
            Said::Unheard(_) => None,
        }
    }

    /// What it gave up before it was handed a connection, a word a step.
    #[must_use]
    pub fn confinement(&self) -> &[String] {
        &self.ready.confinement
    }
}

/// Where the program lies, beside that of the network.
pub(super) fn program(usernet: &Path) -> PathBuf {
    usernet.with_file_name("nelly-secrets")
}

fn refused(text: &str) -> NetworkError {
    let text = text.trim();
    let text = text.strip_prefix("nelly-secrets: ").unwrap_or(text);
    NetworkError::Secrets(nelly_vmm::text::line(text).to_string())
}

impl Drop for Secrets {
    fn drop(&mut self) {
        let mut child = held(&self.child);
        // Nobody else collects it; it may have ended already.
        let _ended = child.kill();
        let _collected = child.wait();
    }
}
