//! The client of `nelly-agent`: typed calls over a stream to the guest. Here are the connection and
//! what concerns the guest as a whole; `containers` has the calls for containers and processes,
//! `relay` those for connections to them.

mod containers;
mod guard;
mod network;
mod relay;

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use containers::{ProcessId, StartFailure, Tokens};
use nelly_protocol::messages as wire;
use nelly_protocol::ports::TOKEN_BYTES;
use nelly_protocol::service::AgentClient;
use nelly_protocol::{PROTOCOL_MAJOR, features};
use tokio::io::{AsyncRead, AsyncWrite};
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::Context;

use self::guard::Guard;
use crate::spec::network::GuestNetwork;
use crate::timeline::GuestStamps;

/// A disk in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestDisk {
    /// Its id in the machine's configuration, truncated to 20 bytes.
    pub id: String,
    /// Its device node in the guest, such as `/dev/vdb`.
    pub device: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Build id of this program, which must match the assets and the agent. `None` if the build has
/// none.
pub const BUILD: Option<&str> = option_env!("NELLY_BUILD_ID");

/// Time limit for calls that should be answered at once, in nanoseconds, so that a guest that hangs
/// causes an error.
const CALL_NS: i64 = 60_000_000_000;

/// Time limit for reading stamps, in nanoseconds.
const TIMELINE_NS: i64 = 2_000_000_000;

/// Most bytes of a sentence of the agent that are shown and written down.
const SENTENCE_MOST: usize = 4096;

/// Why a call to the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The stream to the agent cannot be used.
    #[error("cannot open the connection to the agent")]
    Connect(#[source] std::io::Error),
    /// The agent answered with an error, or the connection broke.
    #[error("the agent's {call} call failed")]
    Call {
        /// The method.
        call: &'static str,
        /// The error.
        #[source]
        source: CallError,
    },
    /// The request cannot be encoded.
    #[error("cannot encode the request for the agent's {call}")]
    Request {
        /// The method.
        call: &'static str,
        /// The error.
        #[source]
        source: serde_json::Error,
    },
    /// The agent has a different build id.
    #[error(
        "the agent in the initramfs has build id {agent}, this nelly has build id {host}: both have to be of one build"
    )]
    Build {
        /// The agent's build id.
        agent: String,
        /// This program's build id.
        host: String,
    },
    /// The guest was booted from a kernel or a disk image of its own.
    #[error(
        "the machine has no agent of Nelly, which this needs: `nelly boot -d --agent` brings one to an image with cloud-init and systemd; `nelly attach` shows its console, and ssh may lead into it"
    )]
    Absent,
    /// It is a service of a guest with an init of its own, which has not started it yet, or not
    /// again.
    #[error(
        "the machine's agent is not there yet, or not any more: cloud-init starts it late in the guest's boot, and `nelly attach` and `nelly logs` show how far that is"
    )]
    Awaited,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The agent's error message.
    #[error("{0}")]
    Refused(String),
    /// It did not answer within its time limit.
    #[error("it did not answer in time")]
    Silent,
    /// It sent what no agent sends; the connection is closed.
    #[error("{0}")]
    Lied(String),
    /// The connection failed, or a message was invalid.
    #[error(transparent)]
    Connection(ttrpc::Error),
}

impl From<ttrpc::Error> for CallError {
    /// Only the message of a status is useful; ttrpc would print it with its code and empty fields.
    fn from(error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) if !status.message.is_empty() => {
                Self::Refused(sentence(status.message))
            }
            ttrpc::Error::RpcStatus(status) => Self::Refused(format!("status {:?}", status.code())),
            // The client's own end of the wait.
            ttrpc::Error::Others(text) if text.contains("deadline elapsed") => Self::Silent,
            ttrpc::Error::Socket(text) if guard::is_lie(&text) => Self::Lied(text),
            other => Self::Connection(other),
        }
    }
}

/// What the guest says, which may be long, cut to a length that can be shown.
pub(crate) fn sentence(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(SENTENCE_MOST));
    text.shrink_to_fit();
    text
}

/// The token with which the host claims a stream of a process, see `Stdio` in the protocol.
pub type Token = [u8; TOKEN_BYTES];

/// What is asked of a container that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inspection {
    /// Its processes.
    Processes,
    /// How its files differ from its image.
    Changes,
    /// An archive of its files.
    CopyOut(CopySource),
    /// To write files into it, of an archive.
    CopyIn(CopyTarget),
}

/// What is copied out of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopySource {
    /// Its path in the container, from `/` on. With `/.` at the end, what is in the directory is
    /// meant; with `/`, a directory, also behind a link.
    pub path: Vec<u8>,
    /// If it is a link, what it leads to is copied.
    pub follow: bool,
    /// Holes of files may be left out of the archive, in GNU's form 1.0, which
    /// [`crate::connect::copy::to_host`] reads and not every other program; else they are zeros.
    pub sparse: bool,
}

/// Where and how files are copied into a container, by the rules of `docker cp`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyTarget {
    /// The path in the container, from `/` on.
    pub path: Vec<u8>,
    /// The name of what is copied; empty if it has none, as `/`.
    pub name: Vec<u8>,
    /// It is a directory.
    pub directory: bool,
    /// Not the directory is copied, but what is in it.
    pub contents: bool,
    /// Owners, set-user-id bits and extended attributes are set. Otherwise root owns the files.
    pub archive: bool,
    /// An archive of any names goes into `path`, a directory that exists; `name`, `directory` and
    /// `contents` are not looked at.
    pub tar: bool,
}

/// The agent's answer to Hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// `uname -r` of the guest.
    pub kernel_release: String,
    /// Guest CLOCK_BOOTTIME in nanoseconds when PID 1 started.
    pub boot_ns: u64,
    /// Guest CLOCK_BOOTTIME in nanoseconds when the agent listened.
    pub ready_ns: u64,
}

/// A connection to the agent, cheap to clone.
#[derive(Clone)]
pub struct Agent {
    peer: Arc<Mutex<Peer>>,
    /// It sent what no agent sends.
    lied: Arc<AtomicBool>,
}

/// Whom the calls go to.
enum Peer {
    /// No agent runs.
    Absent,
    /// One that comes and goes, and is not there.
    Awaited,
    /// One that is there for as long as its machine.
    There(Link),
    /// One that comes and goes, and has come.
    Came(Link),
}

/// A connection.
struct Link {
    client: AgentClient,
    /// It has ended.
    gone: Arc<AtomicBool>,
}

fn context() -> Context {
    ttrpc::context::with_timeout(CALL_NS)
}

fn failed(call: &'static str) -> impl FnOnce(ttrpc::Error) -> AgentError {
    move |source| AgentError::Call { call, source: source.into() }
}

impl Agent {
    /// Creates a client on a stream to the agent's port. Needs a tokio runtime.
    ///
    /// # Errors
    /// The descriptor cannot be made non-blocking or registered.
    pub fn new(stream: UnixStream) -> Result<Self, AgentError> {
        stream.set_nonblocking(true).map_err(AgentError::Connect)?;
        let stream = tokio::net::UnixStream::from_std(stream).map_err(AgentError::Connect)?;
        Ok(Self::over(stream))
    }

    /// The same over any stream.
    fn over(stream: impl AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static) -> Self {
        let (lied, gone) = (Arc::default(), Arc::default());
        let socket = Socket::new(Guard::new(stream, Arc::clone(&lied), Arc::clone(&gone)));
        Self::of(Peer::There(Link { client: AgentClient::new(Client::new(socket)), gone }), lied)
    }

    fn of(peer: Peer, lied: Arc<AtomicBool>) -> Self {
        Self { peer: Arc::new(Mutex::new(peer)), lied }
    }

    /// The agent of a guest that has none: every call is refused.
    #[must_use]
    pub fn absent() -> Self {
        Self::of(Peer::Absent, Arc::default())
    }

    /// An agent that comes and goes with the boots of its guest. Calls are refused while it is not
    /// there; see [`Agent::come`].
    #[must_use]
    pub fn awaited() -> Self {
        Self::of(Peer::Awaited, Arc::default())
    }

    /// One that comes and goes has come, by the connection of `other`, which was greeted.
    pub(crate) fn come(&self, other: &Self) {
        let came = std::mem::replace(&mut *other.peer(), Peer::Awaited);
        if let Peer::There(link) | Peer::Came(link) = came {
            *self.peer() = Peer::Came(link);
        }
    }

    /// Whether it could be called now, as far as is known.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.client().is_ok()
    }

    /// Whether its guest is one in which it comes and goes.
    #[must_use]
    pub fn comes_and_goes(&self) -> bool {
        matches!(*self.peer(), Peer::Awaited | Peer::Came(_))
    }

    /// What is known of it, in a word: `there`, `awaited`, or `none`.
    pub(crate) fn word(&self) -> &'static str {
        match self.client() {
            Ok(_) => "there",
            Err(AgentError::Absent) => "none",
            Err(_) => "awaited",
        }
    }

    fn peer(&self) -> MutexGuard<'_, Peer> {
        self.peer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it has sent what no agent sends. Its connection is closed then.
    #[must_use]
    pub fn has_lied(&self) -> bool {
        self.lied.load(Ordering::Relaxed)
    }

    fn client(&self) -> Result<AgentClient, AgentError> {
        match &*self.peer() {
            Peer::Absent => Err(AgentError::Absent),
            Peer::There(link) => Ok(link.client.clone()),
            Peer::Came(link) if !link.gone.load(Ordering::Relaxed) => Ok(link.client.clone()),
            Peer::Awaited | Peer::Came(_) => Err(AgentError::Awaited),
        }
    }

    /// The first call. `now_unix_ns` sets the guest's clock; `entropy` (at most 64 bytes) is added
    /// to its entropy pool; the guest's `network` is set up.
    ///
    /// # Errors
    /// The agent has another major version of the protocol, lacks a feature, or has another build
    /// id.
    pub async fn hello(
        &self,
        hostname: &str,
        now_unix_ns: i64,
        entropy: Vec<u8>,
        network: Option<&GuestNetwork>,
    ) -> Result<Greeting, AgentError> {
        let needed = [
            features::CONTAINERS,
            features::TERMINAL,
            features::DEVICE_CGROUP,
            features::OVERLAY_TMPFS,
            features::OVERLAY_DISK,
            features::HOSTS,
            features::VOLUMES,
            features::SHARES,
            features::INIT,
            features::GUEST_DEVICES,
        ];
        let request = wire::HelloRequest {
            protocol: PROTOCOL_MAJOR,
            build: BUILD.unwrap_or_default().to_owned(),
            features: needed
                .into_iter()
                .chain(network.map(|_| features::NETWORK))
                .map(str::to_owned)
                .collect(),
            network: network.map(network::message).into(),
            hostname: hostname.to_owned(),
            now_unix_ns,
            entropy,
            ..Default::default()
        };
        let response = self.greet(&request).await?;
        // A program without a build id (plain `cargo build`) is not checked.
        if let Some(host) = BUILD.filter(|host| !response.build.is_empty() && *host != response.build) {
            return Err(AgentError::Build { agent: sentence(response.build), host: host.to_owned() });
        }
        Ok(greeting(response))
    }

    /// The first call of an agent that comes and goes, which may be of another build: it lies in
    /// the machine's seed. Otherwise as [`Agent::hello`], of a guest that names itself and sets its
    /// network up.
    ///
    /// # Errors
    /// As [`Agent::hello`], but for the build.
    pub async fn hello_again(&self, now_unix_ns: i64, entropy: Vec<u8>) -> Result<Greeting, AgentError> {
        let needed = [
            features::TERMINAL,
            features::STATS,
            features::EXEC_RECORDS,
            features::PROCESSES,
            features::COPY,
            features::RELAYS,
        ];
        let request = wire::HelloRequest {
            protocol: PROTOCOL_MAJOR,
            build: BUILD.unwrap_or_default().to_owned(),
            features: needed.map(str::to_owned).to_vec(),
            now_unix_ns,
            entropy,
            ..Default::default()
        };
        self.greet(&request).await.map(greeting)
    }

    async fn greet(&self, request: &wire::HelloRequest) -> Result<wire::HelloResponse, AgentError> {
        self.client()?.hello(context(), request).await.map_err(failed("Hello"))
    }

    /// The stamps of agent and kernel, on the guest's clocks.
    ///
    /// # Errors
    /// The agent does not record stamps, or the connection failed.
    pub async fn timeline(&self) -> Result<GuestStamps, AgentError> {
        let context = ttrpc::context::with_timeout(TIMELINE_NS);
        let request = wire::TimelineRequest::default();
        let response = self.client()?.timeline(context, &request).await.map_err(failed("Timeline"))?;
        let plain =
            |stamps: Vec<wire::GuestStamp>| stamps.into_iter().map(|stamp| (stamp.name, stamp.at)).collect();
        Ok(GuestStamps {
            agent: plain(response.agent),
            kernel: plain(response.kernel),
            counter: response.counter,
            clock_ns: response.clock_ns,
        })
    }

    /// Binds drivers to devices that were attached since the guest started. Returns all disks,
    /// sorted by name.
    ///
    /// # Errors
    /// The agent does not support this, or binding a driver failed.
    pub async fn probe_devices(&self) -> Result<Vec<GuestDisk>, AgentError> {
        let request = wire::ProbeDevicesRequest::default();
        let response =
            self.client()?.probe_devices(context(), &request).await.map_err(failed("ProbeDevices"))?;
        let disk = |wire::Disk { id, device, bytes, .. }| GuestDisk {
            id: sentence(id),
            device: sentence(device),
            bytes,
        };
        Ok(response.disks.into_iter().map(disk).collect())
    }

    /// Tells whoever watches a shared directory that these paths of it have changed, at most 256.
    ///
    /// # Errors
    /// The agent does not support this, or there is no such directory.
    pub async fn touch(&self, tag: &str, paths: &[Vec<u8>]) -> Result<(), AgentError> {
        let request = wire::TouchRequest { tag: tag.to_owned(), paths: paths.to_vec(), ..Default::default() };
        self.client()?.touch(context(), &request).await.map_err(failed("Touch"))?;
        Ok(())
    }

    /// Unbinds the driver of the disk with this id, before the disk is detached from the machine.
    ///
    /// # Errors
    /// There is no such disk, or it is in use.
    pub async fn release_disk(&self, id: &str) -> Result<(), AgentError> {
        let request = wire::ReleaseDeviceRequest { disk: id.to_owned(), ..Default::default() };
        self.client()?.release_device(context(), &request).await.map_err(failed("ReleaseDevice"))?;
        Ok(())
    }

    /// Asks what is to be told of a running container. Returns the token of the stream with the
    /// frames.
    ///
    /// # Errors
    /// The agent does not support this, or refused.
    pub async fn inspect(&self, container: &str, what: Inspection) -> Result<Token, AgentError> {
        let container_id = container.to_owned();
        let (call, answer) = match what {
            Inspection::Processes => {
                let request = wire::ProcessesRequest { container_id, ..Default::default() };
                ("Processes", self.client()?.processes(context(), &request).await)
            }
            Inspection::Changes => {
                let request = wire::ChangesRequest { container_id, ..Default::default() };
                ("Changes", self.client()?.changes(context(), &request).await)
            }
            Inspection::CopyOut(CopySource { path, follow, sparse }) => {
                let request =
                    wire::CopyOutRequest { container_id, path, follow, sparse, ..Default::default() };
                ("CopyOut", self.client()?.copy_out(context(), &request).await)
            }
            Inspection::CopyIn(CopyTarget { path, name, directory, contents, archive, tar }) => {
                let request = wire::CopyInRequest {
                    container_id,
                    path,
                    name,
                    directory,
                    contents,
                    archive,
                    tar,
                    ..Default::default()
                };
                ("CopyIn", self.client()?.copy_in(context(), &request).await)
            }
        };
        let answer = answer.map_err(failed(call))?;
        Token::try_from(answer.token).map_err(|_| {
            failed(call)(ttrpc::Error::Others("the answer does not contain the token of the stream".into()))
        })
    }

    /// Ends all processes (SIGTERM, `grace_ms`, SIGKILL), syncs, and powers off the machine.
    ///
    /// # Errors
    /// The agent refused. The end of the connection is a success, because the machine ends, too.
    pub async fn shutdown(&self, grace_ms: u32) -> Result<(), AgentError> {
        let request = wire::ShutdownRequest { grace_ms, ..Default::default() };
        let context = ttrpc::context::with_timeout(CALL_NS + i64::from(grace_ms) * 1_000_000);
        match self.client()?.shutdown(context, &request).await {
            Err(ttrpc::Error::Socket(text)) if guard::is_lie(&text) => {
                Err(failed("Shutdown")(ttrpc::Error::Socket(text)))
            }
            Ok(_)
            | Err(
                ttrpc::Error::Socket(_)
                | ttrpc::Error::RemoteClosed
                | ttrpc::Error::LocalClosed
                | ttrpc::Error::Eof,
            ) => Ok(()),
            Err(error) => Err(failed("Shutdown")(error)),
        }
    }
}

fn greeting(response: wire::HelloResponse) -> Greeting {
    Greeting {
        kernel_release: sentence(response.kernel_release),
        boot_ns: response.boot_ns,
        ready_ns: response.ready_ns,
    }
}

#[cfg(test)]
pub(crate) mod lies;

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    /// An error as it is printed.
    fn shown(error: &(dyn Error + 'static)) -> String {
        let chain = std::iter::successors(Some(error), |error| (*error).source());
        chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }

    /// Waits until it is seen that it is gone.
    async fn goes(agent: &Agent) {
        let gone = async {
            while agent.is_there() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), gone).await.expect("it is gone");
    }

    #[tokio::test]
    async fn one_that_comes_and_goes_is_called_while_it_is_there() {
        let agent = Agent::awaited();
        // As whoever has a copy from before.
        let before = agent.clone();
        assert!(agent.comes_and_goes() && !agent.is_there());
        assert!(matches!(before.stats("machine").await, Err(AgentError::Awaited)));
        for _ in 0..2 {
            let (host, guest) = tokio::io::duplex(64);
            agent.come(&Agent::over(host));
            assert!(before.is_there() && before.comes_and_goes());
            drop(guest);
            // Its end is seen by who reads from it.
            goes(&before).await;
            assert!(matches!(agent.stats("machine").await, Err(AgentError::Awaited)));
        }
        // One that reads nothing: a call that is given up in the middle of its writing ends the
        // connection, which nobody reads then.
        let (host, _guest) = tokio::io::duplex(8);
        agent.come(&Agent::over(host));
        assert!(
            tokio::time::timeout(std::time::Duration::from_millis(50), agent.stats("machine")).await.is_err()
        );
        goes(&agent).await;
        let absent = Agent::absent();
        absent.come(&Agent::absent());
        assert!(!absent.is_there() && !absent.comes_and_goes());
    }

    #[test]
    fn what_the_agent_says_is_shown_alone() {
        let status = |message: &str| {
            failed("Exec")(ttrpc::Error::RpcStatus(ttrpc::get_status(
                ttrpc::Code::NOT_FOUND,
                message.to_owned(),
            )))
        };
        assert_eq!(
            shown(&status("no such container: c")),
            "the agent's Exec call failed: no such container: c"
        );
        assert_eq!(shown(&status("")), "the agent's Exec call failed: status NOT_FOUND");
        let broken = shown(&failed("Wait")(ttrpc::Error::RemoteClosed));
        assert!(broken.starts_with("the agent's Wait call failed: ") && !broken.contains('{'), "{broken}");
    }
}
