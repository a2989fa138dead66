//! The client of `nelly-agent`: typed calls over a stream to the guest.

mod network;
mod relay;

use std::os::unix::net::UnixStream;

use nelly_protocol::messages as wire;
use nelly_protocol::ports::TOKEN_BYTES;
use nelly_protocol::service::AgentClient;
use nelly_protocol::{PROTOCOL_MAJOR, features};
use serde::Serialize;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::Context;

use crate::spec::network::GuestNetwork;
use crate::spec::options::Device;
use crate::spec::{ContainerSpec, ProcessSpec, Share, Volume, oci, shares};
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

/// Time limit for making a container with volumes, in nanoseconds.
const FILL_NS: i64 = 900_000_000_000;

/// Time limit for reading stamps, in nanoseconds.
const TIMELINE_NS: i64 = 2_000_000_000;

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
        "a machine of nelly boot has no agent of Nelly, which this needs; `nelly attach` shows its console, and ssh may lead into it"
    )]
    Absent,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The agent's error message.
    #[error("{0}")]
    Refused(String),
    /// The connection failed, or a message was invalid.
    #[error(transparent)]
    Connection(ttrpc::Error),
}

impl From<ttrpc::Error> for CallError {
    /// Only the message of a status is useful; ttrpc would print it with its code and empty fields.
    fn from(error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) if !status.message.is_empty() => Self::Refused(status.message),
            ttrpc::Error::RpcStatus(status) => Self::Refused(format!("status {:?}", status.code())),
            other => Self::Connection(other),
        }
    }
}

/// Why a program was not started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StartFailure {
    /// 125, 126 or 127.
    pub code: u8,
    /// What was tried, on which path, and the error.
    pub message: String,
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

/// The streams of a process, with their tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Standard input, or both directions of a terminal.
    pub stdin: Option<Token>,
    /// Standard output; none with a terminal.
    pub stdout: Option<Token>,
    /// Standard error; none with a terminal.
    pub stderr: Option<Token>,
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
    /// None where no agent runs.
    client: Option<AgentClient>,
}

/// The id of a process: a container's first process, or an exec.
#[derive(Clone, Copy, Debug)]
pub struct ProcessId<'a> {
    /// The container.
    pub container: &'a str,
    /// The exec; empty for the first process.
    pub exec: &'a str,
}

fn context() -> Context {
    ttrpc::context::with_timeout(CALL_NS)
}

fn failed(call: &'static str) -> impl FnOnce(ttrpc::Error) -> AgentError {
    move |source| AgentError::Call { call, source: source.into() }
}

fn json(call: &'static str, object: &impl Serialize) -> Result<Vec<u8>, AgentError> {
    serde_json::to_vec(object).map_err(|source| AgentError::Request { call, source })
}

fn volume(volume: &Volume) -> wire::Volume {
    wire::Volume {
        name: volume.name.clone(),
        path: volume.path.clone(),
        read_only: volume.read_only,
        copy_up: volume.copy_up,
        ..Default::default()
    }
}

/// A share of this number.
fn share((number, share): (usize, &Share)) -> wire::Share {
    wire::Share {
        tag: shares::tag(number).as_str().to_owned(),
        path: share.path.clone(),
        read_only: share.read_only,
        file: share.file,
        ..Default::default()
    }
}

fn guest_device(device: &Device) -> wire::Device {
    wire::Device {
        source: device.source.clone(),
        path: device.path.clone(),
        access: device.access.clone(),
        ..Default::default()
    }
}

/// The streams of a process; `size` is the initial size of its terminal, rows and columns.
fn stdio(process: &ProcessSpec, size: Option<(u16, u16)>) -> wire::Stdio {
    // 0 selects the kernel's default size.
    let (rows, columns) = size.unwrap_or((0, 0));
    wire::Stdio {
        terminal: process.terminal,
        rows: rows.into(),
        columns: columns.into(),
        stdin: process.stdin || process.terminal,
        stdout: !process.terminal,
        stderr: !process.terminal,
        ..Default::default()
    }
}

/// The tokens in an answer, which must be those of the requested streams.
fn tokens(call: &'static str, asked: &wire::Stdio, given: wire::StreamTokens) -> Result<Tokens, AgentError> {
    let take = |asked: bool, given: Vec<u8>| match (asked, Token::try_from(given)) {
        (true, Ok(token)) => Ok(Some(token)),
        (false, Err(given)) if given.is_empty() => Ok(None),
        _ => Err(failed(call)(ttrpc::Error::Others(
            "the answer does not contain the tokens of the streams".into(),
        ))),
    };
    Ok(Tokens {
        stdin: take(asked.stdin, given.stdin)?,
        stdout: take(asked.stdout, given.stdout)?,
        stderr: take(asked.stderr, given.stderr)?,
    })
}

impl Agent {
    /// Creates a client on a stream to the agent's port. Needs a tokio runtime.
    ///
    /// # Errors
    /// The descriptor cannot be made non-blocking or registered.
    pub fn new(stream: UnixStream) -> Result<Self, AgentError> {
        stream.set_nonblocking(true).map_err(AgentError::Connect)?;
        let socket = Socket::try_from(stream).map_err(AgentError::Connect)?;
        Ok(Self { client: Some(AgentClient::new(Client::new(socket))) })
    }

    /// The agent of a guest that has none: every call is refused.
    #[must_use]
    pub fn absent() -> Self {
        Self { client: None }
    }

    fn client(&self) -> Result<&AgentClient, AgentError> {
        self.client.as_ref().ok_or(AgentError::Absent)
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
        let response = self.client()?.hello(context(), &request).await.map_err(failed("Hello"))?;
        // A program without a build id (plain `cargo build`) is not checked.
        if let Some(host) = BUILD.filter(|host| !response.build.is_empty() && *host != response.build) {
            return Err(AgentError::Build { agent: response.build, host: host.to_owned() });
        }
        Ok(Greeting {
            kernel_release: response.kernel_release,
            boot_ns: response.boot_ns,
            ready_ns: response.ready_ns,
        })
    }

    /// Creates a container on the read-only image `device`, without running its program. Returns
    /// the tokens of the streams of its first process. `size` is the size of its terminal, rows and
    /// columns, if it has one.
    ///
    /// # Errors
    /// The container cannot be created.
    pub async fn create(
        &self,
        id: &str,
        spec: &ContainerSpec,
        device: &str,
        size: Option<(u16, u16)>,
    ) -> Result<Tokens, AgentError> {
        let rootfs = wire::Rootfs {
            device: device.to_owned(),
            filesystem: "erofs".to_owned(),
            read_only: spec.read_only,
            upper_bytes: spec.upper_bytes,
            upper_device: spec.upper_device.clone().unwrap_or_default(),
            volumes: spec.options.volumes.iter().map(volume).collect(),
            shares: spec.options.shares.iter().enumerate().map(share).collect(),
            ..Default::default()
        };
        let stdio = stdio(&spec.process, size);
        let request = wire::CreateContainerRequest {
            id: id.to_owned(),
            spec: json("CreateContainer", &oci::container(spec))?,
            user: spec.process.user.clone(),
            additional_groups: spec.process.rights.groups.clone(),
            hosts: spec.options.hosts.iter().map(|host| format!("{} {}", host.address, host.name)).collect(),
            init: spec.options.init,
            devices: spec.options.devices.iter().map(guest_device).collect(),
            rootfs: Some(rootfs).into(),
            stdio: Some(stdio.clone()).into(),
            ..Default::default()
        };
        // New volumes are filled, however much the image has for them.
        let limit = if spec.options.volumes.is_empty() { CALL_NS } else { FILL_NS };
        let response = self.client()?.create_container(ttrpc::context::with_timeout(limit), &request).await;
        let response = response.map_err(failed("CreateContainer"))?;
        tokens("CreateContainer", &stdio, response.streams.unwrap_or_default())
    }

    /// The number of a container's first process in the guest; `None` when it does not run.
    ///
    /// # Errors
    /// There is no such container, or the connection failed.
    pub async fn first_process(&self, container: &str) -> Result<Option<u32>, AgentError> {
        let request = wire::StateRequest { container_id: container.to_owned(), ..Default::default() };
        let response = self.client()?.state(context(), &request).await.map_err(failed("State"))?;
        let runs = |state: &&wire::ContainerState| {
            state.id == container && state.status == wire::container_state::Status::RUNNING.into()
        };
        let running = response.containers.iter().find(runs);
        Ok(running.map(|state| state.pid).filter(|process| *process != 0))
    }

    /// Starts a created container's process.
    ///
    /// # Errors
    /// The call failed. If the program cannot be executed, this is the inner error.
    pub async fn start(&self, container: &str) -> Result<Result<u32, StartFailure>, AgentError> {
        let request =
            wire::StartContainerRequest { container_id: container.to_owned(), ..Default::default() };
        let response =
            self.client()?.start_container(context(), &request).await.map_err(failed("StartContainer"))?;
        Ok(started(response))
    }

    /// Starts another process in a running container, otherwise as [`Agent::create`] and
    /// [`Agent::start`].
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub async fn exec(
        &self,
        id: ProcessId<'_>,
        process: &ProcessSpec,
        size: Option<(u16, u16)>,
    ) -> Result<Result<Tokens, StartFailure>, AgentError> {
        let stdio = stdio(process, size);
        let request = wire::ExecRequest {
            container_id: id.container.to_owned(),
            exec_id: id.exec.to_owned(),
            process: json("Exec", &oci::process(process))?,
            user: process.user.clone(),
            additional_groups: process.rights.groups.clone(),
            stdio: Some(stdio.clone()).into(),
            ..Default::default()
        };
        let mut response = self.client()?.exec(context(), &request).await.map_err(failed("Exec"))?;
        let given = response.streams.take().unwrap_or_default();
        match started(response) {
            Ok(_) => tokens("Exec", &stdio, given).map(Ok),
            Err(failure) => Ok(Err(failure)),
        }
    }

    /// Waits for the end of a process, without a time limit.
    ///
    /// # Errors
    /// There is no such process, or the connection failed.
    pub async fn wait(&self, id: ProcessId<'_>) -> Result<wire::WaitResponse, AgentError> {
        let request = wire::WaitRequest {
            container_id: id.container.to_owned(),
            exec_id: id.exec.to_owned(),
            ..Default::default()
        };
        self.client()?.wait(Context::default(), &request).await.map_err(failed("Wait"))
    }

    /// Deletes the result of an exec, which [`Agent::wait`] returns until then.
    ///
    /// # Errors
    /// There is no such exec, or it has not ended.
    pub async fn delete_exec(&self, container: &str, exec: &str) -> Result<(), AgentError> {
        let request = wire::DeleteExecRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.client()?.delete_exec(context(), &request).await.map_err(failed("DeleteExec"))?;
        Ok(())
    }

    /// Sends a signal, as a Linux signal number.
    ///
    /// # Errors
    /// There is no such process.
    pub async fn signal(&self, id: ProcessId<'_>, signal: u32) -> Result<(), AgentError> {
        let request = wire::SignalRequest {
            container_id: id.container.to_owned(),
            exec_id: id.exec.to_owned(),
            signal,
            ..Default::default()
        };
        self.client()?.signal(context(), &request).await.map_err(failed("Signal"))?;
        Ok(())
    }

    /// The same for the process group that a process leads: every process is started as the leader
    /// of a session of its own.
    ///
    /// # Errors
    /// There is no such process.
    pub async fn signal_group(&self, id: ProcessId<'_>, signal: u32) -> Result<(), AgentError> {
        let request = wire::SignalRequest {
            container_id: id.container.to_owned(),
            exec_id: id.exec.to_owned(),
            signal,
            group: true,
            ..Default::default()
        };
        self.client()?.signal(context(), &request).await.map_err(failed("Signal"))?;
        Ok(())
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// There is no such process, or it has no terminal.
    pub async fn resize(&self, id: ProcessId<'_>, rows: u16, columns: u16) -> Result<(), AgentError> {
        let request = wire::ResizePtyRequest {
            container_id: id.container.to_owned(),
            exec_id: id.exec.to_owned(),
            rows: rows.into(),
            columns: columns.into(),
            ..Default::default()
        };
        self.client()?.resize_pty(context(), &request).await.map_err(failed("ResizePty"))?;
        Ok(())
    }

    /// Resource use of a container, or of the guest if `container` is empty.
    ///
    /// # Errors
    /// There is no such container.
    pub async fn stats(&self, container: &str) -> Result<wire::StatsResponse, AgentError> {
        let request = wire::StatsRequest { container_id: container.to_owned(), ..Default::default() };
        self.client()?.stats(context(), &request).await.map_err(failed("Stats"))
    }

    /// Sets the limit of a container's memory in bytes, or removes it.
    ///
    /// # Errors
    /// The container does not run or uses more, the agent does not know the call, or the connection
    /// failed.
    pub async fn limit_memory(&self, container: &str, limit: Option<u64>) -> Result<(), AgentError> {
        let request = wire::UpdateContainerRequest {
            container_id: container.to_owned(),
            memory_limit_bytes: limit.unwrap_or(0),
            ..Default::default()
        };
        let answer = self.client()?.update_container(context(), &request).await;
        answer.map(drop).map_err(failed("UpdateContainer"))
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
        let disk = |wire::Disk { id, device, bytes, .. }| GuestDisk { id, device, bytes };
        Ok(response.disks.into_iter().map(disk).collect())
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

fn started(response: wire::StartResponse) -> Result<u32, StartFailure> {
    use wire::start_failure::Kind;
    match response.failure.into_option() {
        None => Ok(response.pid),
        Some(failure) => {
            let code = match failure.kind.enum_value() {
                Ok(Kind::NOT_FOUND) => crate::state::outcome::NOT_FOUND,
                Ok(Kind::NOT_EXECUTABLE) => crate::state::outcome::NOT_EXECUTABLE,
                Ok(Kind::OTHER) | Err(_) => crate::state::outcome::FAILED,
            };
            Err(StartFailure { code, message: failure.message })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    /// An error as it is printed.
    fn shown(error: &(dyn Error + 'static)) -> String {
        let chain = std::iter::successors(Some(error), |error| (*error).source());
        chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
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

    #[test]
    fn an_answer_has_the_tokens_of_the_streams_and_no_other() {
        let asked = wire::Stdio { stdout: true, ..Default::default() };
        let given = |stdin: usize, stdout: usize| wire::StreamTokens {
            stdin: vec![1; stdin],
            stdout: vec![2; stdout],
            ..Default::default()
        };
        let right = tokens("Exec", &asked, given(0, 16)).unwrap();
        assert_eq!(right, Tokens { stdout: Some([2; 16]), ..Tokens::default() });
        for (stdin, stdout) in [(0, 0), (0, 15), (0, 17), (16, 16), (1, 16)] {
            assert!(tokens("Exec", &asked, given(stdin, stdout)).is_err(), "{stdin} {stdout}");
        }
    }
}
