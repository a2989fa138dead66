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

use nelly_net::config::SecretsConfig;
use nelly_net::sys::{message_pair, write_with_descriptors};
use rustix::process::{WaitId, WaitIdOptions};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{NetworkError, READY_WITHIN};

/// Most that is read of what it says, in bytes.
const MOST: u64 = 64 << 10;

/// What it says when it serves, in one line.
#[derive(Debug, Default, Deserialize)]
struct Ready {
    authority: String,
    confinement: Vec<String>,
}

/// The process. Dropping it ends the process.
#[derive(Debug)]
pub struct Secrets {
    child: Child,
    ready: Ready,
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
        let nowhere = std::process::Stdio::null();
        command.stdin(OwnedFd::from(telling)).stdout(nowhere).stderr(OwnedFd::from(complaints));
        // A terminal's Ctrl-C is for the container, which ends in its own time.
        command.process_group(0);
        let child = command.spawn().map_err(failed)?;
        drop(command);
        let mut secrets = Self { child, ready: Ready::default() };
        let files: Vec<_> = [theirs.as_fd()].into_iter().chain(log.map(AsFd::as_fd)).collect();
        match write_with_descriptors(&said, &text, &files).and_then(|()| said.shutdown(Shutdown::Write)) {
            // It has ended, and says why.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(failed(error)),
            _ => {}
        }
        drop((theirs, text));
        said.set_read_timeout(Some(READY_WITHIN)).map_err(failed)?;
        let mut line = String::new();
        let read = BufReader::new(said.take(MOST)).read_line(&mut line);
        let ready = read.map_err(|error| refused(&error.to_string()))?;
        secrets.ready = match serde_json::from_str(&line) {
            Ok(ready) => ready,
            Err(_) if ready == 0 => return Err(refused("it ended before it said why")),
            Err(_) => return Err(refused(&line)),
        };
        Ok((secrets, handovers))
    }

    /// The certificate of its authority, in PEM form.
    #[must_use]
    pub(super) fn authority(&self) -> &str {
        &self.ready.authority
    }

    /// Its process; `None` if that has ended, and connections to the hosts of secrets with it.
    #[must_use]
    pub fn process(&self) -> Option<u32> {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw)?;
        // It stays to be collected, with its number, until this goes.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let ended = rustix::process::waitid(WaitId::Pid(pid), look).is_ok_and(|status| status.is_some());
        (!ended).then(|| self.child.id())
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
        // Nobody else collects it; it may have ended already.
        let _ended = self.child.kill();
        let _collected = self.child.wait();
    }
}
