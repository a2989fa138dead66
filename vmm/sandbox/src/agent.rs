//! The client of `nelly-agent`: typed calls over a stream to the guest.

use std::os::unix::net::UnixStream;

use nelly_protocol::messages as wire;
use nelly_protocol::ports::TOKEN_BYTES;
use nelly_protocol::service::AgentClient;
use nelly_protocol::{PROTOCOL_MAJOR, features};
use serde::Serialize;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::Context;

use crate::spec::{ContainerSpec, ProcessSpec, oci};
use crate::timeline::GuestStamps;

/// A disk as the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestDisk {
    /// Its id in the machine's configuration, cut to 20 bytes.
    pub id: String,
    /// Its device in the guest, such as `/dev/vdb`.
    pub device: String,
    /// Its size.
    pub bytes: u64,
}

/// Build id of this side: what the assets and the agent must carry too. `None` in a build that was
/// given none.
pub const BUILD: Option<&str> = option_env!("NELLY_BUILD_ID");

/// Longest wait for an answer that should come at once, in nanoseconds: a wedged guest is an error,
/// not a hang.
const CALL_NS: i64 = 60_000_000_000;

/// The same for stamps, which nobody waits long for.
const TIMELINE_NS: i64 = 2_000_000_000;

/// Why a call to the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The stream cannot be used.
    #[error("cannot open the connection to the agent")]
    Connect(#[source] std::io::Error),
    /// The agent answered with an error, or the connection broke.
    #[error("the agent's {call} call failed")]
    Call {
        /// The method.
        call: &'static str,
        /// The answer.
        #[source]
        source: CallError,
    },
    /// A request that cannot be written down.
    #[error("cannot encode the request for the agent's {call}")]
    Request {
        /// The method.
        call: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The agent comes from another build.
    #[error(
        "the agent in the initramfs has build id {agent}, this nelly has build id {host}: run `make` to build both"
    )]
    Build {
        /// The agent's.
        agent: String,
        /// Ours.
        host: String,
    },
}

/// Why a call has no answer that it wanted.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The agent's own words.
    #[error("{0}")]
    Refused(String),
    /// The connection to it, or what came over it.
    #[error(transparent)]
    Connection(ttrpc::Error),
}

impl From<ttrpc::Error> for CallError {
    /// A status is what the agent said, and of interest is that alone; the library would show it
    /// with its numbers and empty fields.
    fn from(error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) if !status.message.is_empty() => Self::Refused(status.message),
            ttrpc::Error::RpcStatus(status) => Self::Refused(format!("status {:?}", status.code())),
            other => Self::Connection(other),
        }
    }
}

/// Why a program did not start, as the guest's kernel said it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StartFailure {
    /// 125, 126 or 127.
    pub code: u8,
    /// What was tried, on which path, and the answer.
    pub message: String,
}

/// What the host says to dial a stream of a process, see `Stdio` of the protocol.
pub type Token = [u8; TOKEN_BYTES];

/// The streams that a process has, each with its token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Standard input, or the terminal both ways.
    pub stdin: Option<Token>,
    /// Standard output; none with a terminal.
    pub stdout: Option<Token>,
    /// Standard error; none with a terminal.
    pub stderr: Option<Token>,
}

/// What the agent said of itself.
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
    client: AgentClient,
}

/// Which process: a container's first one, or an exec.
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

/// The streams that a process wants; `size` is its terminal's first, rows and columns.
fn stdio(process: &ProcessSpec, size: Option<(u16, u16)>) -> wire::Stdio {
    // A terminal without a size has the kernel's, which 0 stands for.
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

/// The tokens of an answer, which must be those of the streams that were asked for.
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
    /// Takes over a stream to the agent's port. Needs a tokio runtime.
    ///
    /// # Errors
    /// The descriptor cannot be made non-blocking or registered.
    pub fn new(stream: UnixStream) -> Result<Self, AgentError> {
        stream.set_nonblocking(true).map_err(AgentError::Connect)?;
        let socket = Socket::try_from(stream).map_err(AgentError::Connect)?;
        Ok(Self { client: AgentClient::new(Client::new(socket)) })
    }

    /// The first call. `now_unix_ns` sets the guest's clock, `entropy` (at most 64 bytes) its
    /// random pool.
    ///
    /// # Errors
    /// Another protocol major, a feature that the agent lacks, another build.
    pub async fn hello(
        &self,
        hostname: &str,
        now_unix_ns: i64,
        entropy: Vec<u8>,
    ) -> Result<Greeting, AgentError> {
        let needed =
            [features::CONTAINERS, features::TERMINAL, features::DEVICE_CGROUP, features::OVERLAY_TMPFS];
        let request = wire::HelloRequest {
            protocol: PROTOCOL_MAJOR,
            build: BUILD.unwrap_or_default().to_owned(),
            features: needed.map(str::to_owned).to_vec(),
            hostname: hostname.to_owned(),
            now_unix_ns,
            entropy,
            ..Default::default()
        };
        let response = self.client.hello(context(), &request).await.map_err(failed("Hello"))?;
        // A side that was built without an id (plain `cargo build`) has nothing to compare.
        if let Some(host) = BUILD.filter(|host| !response.build.is_empty() && *host != response.build) {
            return Err(AgentError::Build { agent: response.build, host: host.to_owned() });
        }
        Ok(Greeting {
            kernel_release: response.kernel_release,
            boot_ns: response.boot_ns,
            ready_ns: response.ready_ns,
        })
    }

    /// Prepares a container on the read-only image `device`; nothing of it runs yet. Its first
    /// process has the streams whose tokens are answered, and a terminal of `size`, rows and
    /// columns, if it has one.
    ///
    /// # Errors
    /// What the guest could not prepare.
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
            ..Default::default()
        };
        let stdio = stdio(&spec.process, size);
        let request = wire::CreateContainerRequest {
            id: id.to_owned(),
            spec: json("CreateContainer", &oci::container(spec))?,
            user: spec.process.user.clone(),
            rootfs: Some(rootfs).into(),
            stdio: Some(stdio.clone()).into(),
            ..Default::default()
        };
        let response = self.client.create_container(context(), &request).await;
        let response = response.map_err(failed("CreateContainer"))?;
        tokens("CreateContainer", &stdio, response.streams.unwrap_or_default())
    }

    /// Starts a created container's process.
    ///
    /// # Errors
    /// A failed call; that the program cannot run is the inner error.
    pub async fn start(&self, container: &str) -> Result<Result<u32, StartFailure>, AgentError> {
        let request =
            wire::StartContainerRequest { container_id: container.to_owned(), ..Default::default() };
        let response =
            self.client.start_container(context(), &request).await.map_err(failed("StartContainer"))?;
        Ok(started(response))
    }

    /// Starts a further process in a running container, otherwise as [`Agent::create`] and
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
            stdio: Some(stdio.clone()).into(),
            ..Default::default()
        };
        let mut response = self.client.exec(context(), &request).await.map_err(failed("Exec"))?;
        let given = response.streams.take().unwrap_or_default();
        match started(response) {
            Ok(_) => tokens("Exec", &stdio, given).map(Ok),
            Err(failure) => Ok(Err(failure)),
        }
    }

    /// Waits for a process's end, without a limit of time.
    ///
    /// # Errors
    /// No such process, or the connection broke.
    pub async fn wait(&self, id: ProcessId<'_>) -> Result<wire::WaitResponse, AgentError> {
        let request = wire::WaitRequest {
            container_id: id.container.to_owned(),
            exec_id: id.exec.to_owned(),
            ..Default::default()
        };
        self.client.wait(Context::default(), &request).await.map_err(failed("Wait"))
    }

    /// Forgets how an exec ended, which until then [`Agent::wait`] tells as often as it is asked.
    ///
    /// # Errors
    /// No such exec, or it has not ended.
    pub async fn delete_exec(&self, container: &str, exec: &str) -> Result<(), AgentError> {
        let request = wire::DeleteExecRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.client.delete_exec(context(), &request).await.map_err(failed("DeleteExec"))?;
        Ok(())
    }

    /// Sends a signal, Linux's number.
    ///
    /// # Errors
    /// No such process.
    pub async fn signal(&self, id: ProcessId<'_>, signal: u32) -> Result<(), AgentError> {
        let request = wire::SignalRequest {
            container_id: id.container.to_owned(),
            exec_id: id.exec.to_owned(),
            signal,
            ..Default::default()
        };
        self.client.signal(context(), &request).await.map_err(failed("Signal"))?;
        Ok(())
    }

    /// Tells a process's terminal its size.
    ///
    /// # Errors
    /// No such process, or it has no terminal.
    pub async fn resize(&self, id: ProcessId<'_>, rows: u16, columns: u16) -> Result<(), AgentError> {
        let request = wire::ResizePtyRequest {
            container_id: id.container.to_owned(),
            exec_id: id.exec.to_owned(),
            rows: rows.into(),
            columns: columns.into(),
            ..Default::default()
        };
        self.client.resize_pty(context(), &request).await.map_err(failed("ResizePty"))?;
        Ok(())
    }

    /// Resource use of a container, or of the guest when `container` is empty.
    ///
    /// # Errors
    /// No such container.
    pub async fn stats(&self, container: &str) -> Result<wire::StatsResponse, AgentError> {
        let request = wire::StatsRequest { container_id: container.to_owned(), ..Default::default() };
        self.client.stats(context(), &request).await.map_err(failed("Stats"))
    }

    /// What agent and kernel stamped, by the guest's own clocks.
    ///
    /// # Errors
    /// An agent that takes no stamps, or the connection broke.
    pub async fn timeline(&self) -> Result<GuestStamps, AgentError> {
        let context = ttrpc::context::with_timeout(TIMELINE_NS);
        let request = wire::TimelineRequest::default();
        let response = self.client.timeline(context, &request).await.map_err(failed("Timeline"))?;
        let plain =
            |stamps: Vec<wire::GuestStamp>| stamps.into_iter().map(|stamp| (stamp.name, stamp.at)).collect();
        Ok(GuestStamps {
            agent: plain(response.agent),
            kernel: plain(response.kernel),
            counter: response.counter,
            clock_ns: response.clock_ns,
        })
    }

    /// Gives drivers to devices that came into the guest's slots since it started; all its disks,
    /// by name.
    ///
    /// # Errors
    /// An agent that cannot, or a driver that fails.
    pub async fn probe_devices(&self) -> Result<Vec<GuestDisk>, AgentError> {
        let request = wire::ProbeDevicesRequest::default();
        let response =
            self.client.probe_devices(context(), &request).await.map_err(failed("ProbeDevices"))?;
        let disk = |wire::Disk { id, device, bytes, .. }| GuestDisk { id, device, bytes };
        Ok(response.disks.into_iter().map(disk).collect())
    }

    /// Takes the driver from the disk with this id: to be done before it is taken out of the
    /// machine.
    ///
    /// # Errors
    /// No such disk, or it is in use.
    pub async fn release_disk(&self, id: &str) -> Result<(), AgentError> {
        let request = wire::ReleaseDeviceRequest { disk: id.to_owned(), ..Default::default() };
        self.client.release_device(context(), &request).await.map_err(failed("ReleaseDevice"))?;
        Ok(())
    }

    /// Ends every process (SIGTERM, `grace_ms`, SIGKILL), syncs, and switches the machine off.
    ///
    /// # Errors
    /// The agent refused; a connection that ends is a success, for the machine does too.
    pub async fn shutdown(&self, grace_ms: u32) -> Result<(), AgentError> {
        let request = wire::ShutdownRequest { grace_ms, ..Default::default() };
        let context = ttrpc::context::with_timeout(CALL_NS + i64::from(grace_ms) * 1_000_000);
        match self.client.shutdown(context, &request).await {
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

    /// An error as a person sees it.
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
