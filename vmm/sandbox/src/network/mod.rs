//! The user-mode network of a machine: a process `nelly-usernet` of its own, which whoever starts
//! the machine starts beside it.
//!
//! It is given one end of a socket pair, whose other end the monitor gets as an inherited
//! descriptor, and ends by end of file when the monitor is gone, however that ended. Its own end
//! breaks the guest's link, and nothing else.

mod log;
pub mod member;
mod ports;
mod secrets;
pub mod subnets;

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nelly_net::config::UsernetConfig;
use nelly_net::holder::Holder;
use nelly_vmm::config::NetworkConfig;
use nelly_vmm::machine::Resources;
use nelly_vmm::sys::ProcessHandle;
use serde::Deserialize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, Interest};

use crate::spec::network::{GuestNetwork, Network, SecretValues};
use crate::state::networks::NetworksLock;

pub use log::open_log;
pub use member::{MemberError, Site};
pub use ports::PortError;
pub use secrets::Secrets;

/// Most that is read of what it says, in bytes.
const MOST: usize = 256 << 10;
/// So many bytes of its last words are looked at.
const LAST_WORDS: usize = 1024;

/// How long it may take to serve: it reads some files and binds its ports.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// What it says when it serves, in one line.
#[derive(Debug, Default, Deserialize)]
struct Ready {
    published: Vec<String>,
    #[serde(default)]
    confinement: Vec<String>,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why there is no user-mode network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Its program is not installed.
    #[error("--net user needs the program nelly-usernet, which is not installed beside nelly-monitor")]
    NoProgram,
    /// The program of its secrets is not installed.
    #[error("--secret needs the program nelly-secrets, which is not installed beside nelly-usernet")]
    NoSecretsProgram,
    /// That program ended, or said what is wrong.
    #[error("the process that has the secrets did not start: {0}")]
    Secrets(String),
    /// Its program cannot be started, or given its configuration.
    #[error("cannot start the user-mode network {}", .program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Its log cannot be written.
    #[error("--net-log: cannot write {}", .path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// The system's error, or what the file is instead.
        #[source]
        source: io::Error,
    },
    /// The machine is not on its network.
    #[error(transparent)]
    Member(#[from] Box<MemberError>),
    /// It ended, or said what is wrong.
    #[error("the user-mode network did not start: {0}")]
    Refused(String),
}

/// The process. Dropping it ends the process.
#[derive(Debug)]
pub struct Usernet {
    child: Mutex<Child>,
    /// What it says: a line when it is ready, and last words.
    said: UnixStream,
    ready: Mutex<Option<Ready>>,
    last_words: Mutex<String>,
    /// Asks it things while it runs.
    holder: Holder,
    /// The process that has the secrets of its guest.
    secrets: Option<Secrets>,
    /// The turn of whoever waits for an answer of it.
    asking: Arc<tokio::sync::Mutex<()>>,
}

impl Usernet {
    /// Starts `program` with this configuration, a log if it is to have one, the `port` on a switch
    /// that it may ask for, and who has the secrets. Answers the monitor's end of the link, too.
    ///
    /// # Errors
    /// [`NetworkError::Start`].
    pub fn start(
        program: &Path,
        config: &UsernetConfig,
        log: Option<File>,
        port: Option<OwnedFd>,
        secrets: Option<(Secrets, OwnedFd)>,
    ) -> Result<(Self, OwnedFd), NetworkError> {
        let failed = |source| NetworkError::Start { program: program.to_owned(), source };
        let config = UsernetConfig { control: true, ..config.clone() };
        let text = serde_json::to_vec(&config).map_err(|error| failed(error.into()))?;
        let (holder, control) = Holder::pair().map_err(failed)?;
        let (link, theirs) = nelly_net::sys::message_pair().map_err(|error| failed(error.into()))?;
        let (said, telling) = UnixStream::pair().map_err(failed)?;
        // Only standard streams are handed on without a moment in which every other child of this
        // process would get them, too.
        let mut command = Command::new(std::path::absolute(program).map_err(failed)?);
        command.args(["--link", "fd:0", "--config", "fd:1", "--ready", "fd:1"]);
        command.env_clear().current_dir("/");
        // It says there, too, what is wrong.
        let complaints = telling.try_clone().map_err(failed)?;
        command.stdin(theirs).stdout(OwnedFd::from(telling)).stderr(OwnedFd::from(complaints));
        // A terminal's Ctrl-C is for the container, which ends in its own time.
        command.process_group(0);
        let child = command.spawn().map_err(failed)?;
        drop(command);
        let child = Mutex::new(child);
        let (secrets, handovers) = secrets.unzip();
        let network = Self {
            child,
            said,
            ready: Mutex::default(),
            last_words: Mutex::default(),
            asking: Arc::default(),
            holder,
            secrets,
        };
        let said = &network.said;
        let files = port.iter().map(AsFd::as_fd).chain([control.as_fd()]);
        let files = files.chain(handovers.iter().map(AsFd::as_fd));
        let files = files.chain(log.iter().map(AsFd::as_fd));
        let files: Vec<BorrowedFd<'_>> = files.collect();
        let told = nelly_net::sys::write_with_descriptors(said, &text, &files);
        match told.and_then(|()| said.shutdown(Shutdown::Write)) {
            // It has ended: why is told to whoever waits for it.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(failed(error)),
            _ => {}
        }
        Ok((network, link))
    }

    /// Waits until it serves; its ports are bound then.
    ///
    /// # Errors
    /// [`NetworkError::Refused`].
    pub async fn ready(&self) -> Result<(), NetworkError> {
        if held(&self.ready).is_some() {
            return Ok(());
        }
        let said = self.said.try_clone().map_err(refused)?;
        said.set_nonblocking(true).map_err(refused)?;
        let mut said = tokio::net::UnixStream::from_std(said).map_err(refused)?;
        let mut text = Vec::new();
        let line = async {
            let mut part = [0; 4096];
            while goes_on(&text) {
                match said.read(&mut part).await? {
                    0 => break,
                    len => text.extend(&part[..len]),
                }
            }
            Ok(())
        };
        match tokio::time::timeout(READY_WITHIN, line).await {
            Ok(read) => read.map_err(refused)?,
            Err(_) => return Err(late()),
        }
        self.heard(&String::from_utf8_lossy(&text))
    }

    /// As [`Usernet::ready`], for a caller without an async runtime.
    ///
    /// # Errors
    /// [`NetworkError::Refused`].
    pub fn wait_ready(&self) -> Result<(), NetworkError> {
        if held(&self.ready).is_some() {
            return Ok(());
        }
        self.said.set_read_timeout(Some(READY_WITHIN)).map_err(refused)?;
        let (mut text, mut part) = (Vec::new(), [0; 4096]);
        while goes_on(&text) {
            match (&self.said).read(&mut part) {
                Ok(0) => break,
                Ok(len) => text.extend(&part[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(late()),
                Err(error) => return Err(refused(error)),
            }
        }
        self.heard(&String::from_utf8_lossy(&text))
    }

    fn heard(&self, text: &str) -> Result<(), NetworkError> {
        let (line, rest) = text.split_once('\n').unwrap_or((text, ""));
        if let Ok(ready) = serde_json::from_str(line) {
            *held(&self.ready) = Some(ready);
            *held(&self.last_words) = last_line(rest);
            return Ok(());
        }
        let why = without_name(text);
        Err(NetworkError::Refused(if why.is_empty() {
            "it ended before it said why".to_owned()
        } else {
            nelly_vmm::text::line(why).to_string()
        }))
    }

    /// The published ports, each as `ADDRESS:PORT:GUEST/PROTOCOL`, once it is ready.
    #[must_use]
    pub fn published(&self) -> Vec<String> {
        held(&self.ready).as_ref().map(|ready| ready.published.clone()).unwrap_or_default()
    }

    /// What it gave up before it heard of the guest, a word a step; nothing before it is ready.
    #[must_use]
    pub fn confinement(&self) -> Vec<String> {
        held(&self.ready).as_ref().map(|ready| ready.confinement.clone()).unwrap_or_default()
    }

    /// Why it ended, as a line: its last words, or how the system has it. `None` while it runs.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        let status = self.ended()?;
        let mut words = held(&self.last_words);
        if words.is_empty() {
            let mut text = vec![0; 4096];
            let _unchanged = self.said.set_nonblocking(true);
            let len = (&self.said).read(&mut text).unwrap_or(0);
            *words = last_line(&String::from_utf8_lossy(&text[..len]));
            if words.is_empty() {
                *words = status.to_string();
            }
        }
        Some(words.clone())
    }

    /// Waits until nobody else asks it things. One that does not answer has one thread wait,
    /// however many would.
    pub async fn turn(&self) -> tokio::sync::OwnedMutexGuard<()> {
        Arc::clone(&self.asking).lock_owned().await
    }

    /// How it ended; `None` while it runs.
    #[must_use]
    pub fn ended(&self) -> Option<ExitStatus> {
        held(&self.child).try_wait().ok().flatten()
    }

    /// Waits until it has said its last word, which it does when it ends, and gives that word. Only
    /// after [`Usernet::ready`]; what is waited for holds nothing of it.
    ///
    /// # Errors
    /// The system has no more descriptors.
    pub fn silence(&self) -> io::Result<impl Future<Output = String> + Send + 'static> {
        let said = self.said.try_clone()?;
        said.set_nonblocking(true)?;
        Ok(async move {
            let (mut text, mut part) = (Vec::new(), [0; 1024]);
            let Ok(mut said) = tokio::net::UnixStream::from_std(said) else {
                return std::future::pending().await;
            };
            loop {
                match said.read(&mut part).await {
                    Ok(0) | Err(_) => return String::from_utf8_lossy(&text).into_owned(),
                    Ok(len) => text.extend(&part[..len]),
                }
                // The end of it is what counts.
                if text.len() > 2 * LAST_WORDS {
                    text.drain(..text.len() - LAST_WORDS);
                }
            }
        })
    }

    /// Has it ended, whose last words these are, and waits until nothing but its exit code is left,
    /// which holds up no thread: [`Usernet::reason`] tells then. What is waited for holds nothing
    /// of it.
    pub fn collect(&self, words: &str) -> impl Future<Output = ()> + Send + 'static {
        let line = last_line(words);
        if !line.is_empty() {
            *held(&self.last_words) = line;
        }
        let mut child = held(&self.child);
        // One that was waited for has a number that may be another's.
        let runs = matches!(child.try_wait(), Ok(None));
        let end = runs.then(|| {
            // It says no more, so it ends; one that only says so is ended.
            let _ended = child.kill();
            let process = ProcessHandle::of(&child).ok()?;
            #[expect(deprecated, reason = "a handle means the same descriptor for as long as it lives")]
            let end = AsyncFd::with_interest(process, Interest::READABLE);
            if end.is_err() {
                // Without a descriptor: it was killed, so this is short.
                let _collected = child.wait();
            }
            end.ok()
        });
        async move {
            if let Some(end) = end.flatten() {
                let _ended = end.readable().await;
            }
        }
    }

    /// Ends it: its ports are free when this returns.
    pub fn end(&self) {
        let mut child = held(&self.child);
        // It may have ended already.
        let _ended = child.kill();
        let _collected = child.wait();
    }

    /// The process that has the secrets of its guest, if there are any.
    #[must_use]
    pub fn secrets(&self) -> Option<&Secrets> {
        self.secrets.as_ref()
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> u32 {
        held(&self.child).id()
    }
}

impl Drop for Usernet {
    fn drop(&mut self) {
        // Nobody else collects it.
        self.end();
    }
}

/// Whether there is no whole line yet, and may be one.
fn goes_on(text: &[u8]) -> bool {
    !text.contains(&b'\n') && text.len() < MOST
}

/// What a program says, without its name before it.
fn without_name(text: &str) -> &str {
    let text = text.trim();
    let of = |name| text.strip_prefix(name);
    of("nelly-usernet: ").or_else(|| of("nelly-secrets: ")).unwrap_or(text)
}

/// The last line of what it says, fit to be shown.
fn last_line(text: &str) -> String {
    let line = without_name(text.lines().next_back().unwrap_or_default());
    let line = &line[line.ceil_char_boundary(line.len().saturating_sub(LAST_WORDS))..];
    nelly_vmm::text::line(line).to_string()
}

#[expect(clippy::needless_pass_by_value, reason = "it stands where errors are mapped")]
fn refused(error: io::Error) -> NetworkError {
    NetworkError::Refused(error.to_string())
}

fn late() -> NetworkError {
    NetworkError::Refused(format!("it was not ready within {} seconds", READY_WITHIN.as_secs()))
}

/// What a machine gets of its network.
#[derive(Debug, Default)]
pub struct Attached {
    /// Its device.
    pub device: Option<NetworkConfig>,
    /// What its guest is told.
    pub guest: Option<GuestNetwork>,
    /// The process of a user-mode network.
    pub usernet: Option<Usernet>,
}

/// Makes the host's side of a network: the process `program` of a user-mode network, whose link
/// becomes one of the machine's resources. `seed` is what the guest's hardware address is of: the
/// sandbox's id; `name` is the sandbox's name. On a network of machines of `site` it joins, under
/// the `lock` of [`member::assign`] if that is still held. `secrets` are those of the network.
///
/// # Errors
/// [`NetworkError`].
pub fn attach(
    network: &Network,
    program: Option<&Path>,
    (seed, name): (&str, &str),
    resources: &mut Resources,
    secrets: &SecretValues,
    (site, lock): (&Site<'_>, Option<NetworksLock>),
) -> Result<Attached, NetworkError> {
    let mut authorities = String::new();
    let (usernet, link) = match network {
        Network::User(user) => {
            let program = program.ok_or(NetworkError::NoProgram)?;
            let port = user.member.as_ref().map(|member| {
                let switch = program.with_file_name("nelly-switch");
                member::join(site, member, (seed, name), &switch, lock).map_err(Box::new)
            });
            let (log, port) = (open_log(user)?, port.transpose()?);
            let secrets = secrets
                .config(user)
                .map(|config| secrets::Secrets::start(&secrets::program(program), &config, log.as_ref()));
            let secrets = secrets.transpose()?;
            if let Some((secrets, _)) = &secrets {
                secrets.authority().clone_into(&mut authorities);
            }
            let (usernet, link) = Usernet::start(program, &user.config(seed), log, port, secrets)?;
            (Some(usernet), Some(resources.add(link)))
        }
        Network::None | Network::Tap(_) | Network::Unix(_) | Network::VhostUser(_) => (None, None),
    };
    let mut guest = network.guest(seed).map(|guest| GuestNetwork { authorities, ..guest });
    if let (Network::User(_), Some(guest)) = (network, &mut guest)
        && !nelly_net::shell::reaches_ipv6()
    {
        // Programs would wait for the answers of addresses that nothing leads to.
        guest.gateways.retain(IpAddr::is_ipv4);
    }
    Ok(Attached { device: network.device(seed, link), guest, usernet })
}

#[cfg(test)]
pub(crate) mod tests;
