//! The client of a kept sandbox: starts its keeper, and asks it.

mod claim;
pub mod copy;
mod data;
mod find;
pub mod inspect;
pub mod launch;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use data::{Attached, Claimed, ConnectError, EndReport, Exec, ExecSpec, Run, RunSpec};
use nelly_net::config::Publish;
use nelly_protocol::sandbox::messages as wire;
pub use nelly_protocol::sandbox::messages::{
    ExecState, HealthResponse, PortState, PortsResponse, RelayState as RelayReport, StateResponse,
};
use nelly_protocol::sandbox::service::SandboxClient;
use nelly_protocol::sandbox::{CONTROL_SOCKET, PROTOCOL_MAJOR, STREAM_SOCKET};
use nelly_vmm::sys;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::{self, Context};

use crate::agent::{CopySource, CopyTarget, Inspection, StartFailure};
use crate::life::Signal;
use crate::spec::RelayAddress;
use crate::state::Change;
use crate::state::record::ExitRecord;
use crate::state::runtime::RuntimeDir;

/// How long a keeper may take for what it answers at once.
const ANSWER: Duration = Duration::from_secs(10);

/// How long a keeper may take for what its guest answers.
const GUEST_ANSWER: Duration = Duration::from_secs(60);

/// How long a guest may take for the next part of what it tells of its processes.
const TELLING: Duration = Duration::from_secs(60);

/// How long it may neither take nor give anything of a copy, or find no change: its disk may be
/// slow, and a machine can be paused.
const COPYING: Duration = Duration::from_secs(600);

/// A connection to a keeper.
#[derive(Clone)]
pub struct Connection {
    client: SandboxClient,
    runtime: Arc<RuntimeDir>,
    /// The container that calls are about, see [`Connection::of_container`].
    container: String,
}

fn within(limit: Duration) -> Context {
    context::with_timeout(i64::try_from(limit.as_nanos()).expect("a minute fits"))
}

fn refused(error: ttrpc::Error) -> ConnectError {
    match &error {
        ttrpc::Error::RpcStatus(status) if status.code() == ttrpc::Code::DEADLINE_EXCEEDED => {
            ConnectError::Silent
        }
        // The client's own end of the wait.
        ttrpc::Error::Others(text) if text.contains("deadline elapsed") => ConnectError::Silent,
        _ => ConnectError::Call(error.into()),
    }
}

fn ended(status: wire::ExitStatus) -> EndReport {
    let [code, ..] = status.code.to_le_bytes();
    EndReport { exit: ExitRecord { code, reason: status.reason }, detail: status.detail }
}

impl Connection {
    /// Connects to the keeper whose runtime directory this is, and greets it.
    ///
    /// # Errors
    /// There is none, it does not answer, or speaks another version of the protocol.
    pub async fn open(runtime: &Path) -> Result<Self, ConnectError> {
        let runtime = RuntimeDir::open(runtime)?.ok_or_else(|| ConnectError::Gone(runtime.to_owned()))?;
        let socket = runtime.connect(CONTROL_SOCKET)?;
        socket.set_nonblocking(true).map_err(ConnectError::Use)?;
        let socket = Socket::try_from(socket).map_err(ConnectError::Use)?;
        let client = SandboxClient::new(Client::new(socket));
        let request = wire::HelloRequest {
            protocol: PROTOCOL_MAJOR,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        };
        client.hello(within(ANSWER), &request).await.map_err(refused)?;
        Ok(Self { client, runtime: Arc::new(runtime), container: String::new() })
    }

    /// A connection whose calls `kill`, `wait`, `exec` and `resize` are about a further container,
    /// by its name, its id or the beginning of its id; about the first one if `container` is empty.
    #[must_use]
    pub fn of_container(&self, container: &str) -> Self {
        Self { container: container.to_owned(), ..self.clone() }
    }

    /// Starts a further container.
    ///
    /// # Errors
    /// As every call; that the program cannot run is the inner error.
    pub async fn run(&self, spec: &RunSpec) -> Result<Result<Run, StartFailure>, ConnectError> {
        let path = |path: &PathBuf| {
            path.to_str().map(str::to_owned).ok_or_else(|| {
                let error = format!("the path {} is not UTF-8", path.display());
                ConnectError::Use(io::Error::new(io::ErrorKind::InvalidInput, error))
            })
        };
        let request = wire::RunRequest {
            name: spec.name.as_ref().map(ToString::to_string).unwrap_or_default(),
            image: spec.image.reference.clone(),
            image_digest: spec.image.digest.clone(),
            disk_paths: spec.image.disk_paths.iter().map(path).collect::<Result<_, _>>()?,
            spec: serde_json::to_vec(&spec.container).map_err(|error| ConnectError::Use(error.into()))?,
            rows: spec.size.0.into(),
            columns: spec.size.1.into(),
            detach: spec.detach,
            ..Default::default()
        };
        let answer = self.client.run(within(GUEST_ANSWER), &request).await.map_err(refused)?;
        if let Some(failure) = answer.failure.into_option() {
            let [code, ..] = failure.code.to_le_bytes();
            return Ok(Err(StartFailure { code, message: failure.detail }));
        }
        let claimed = if spec.detach { None } else { Some(self.claim(&answer.token).await?) };
        Ok(Ok(Run { id: answer.id, name: answer.name, claimed }))
    }

    /// The state, with the execs that run.
    ///
    /// # Errors
    /// As every call.
    pub async fn state(&self) -> Result<wire::StateResponse, ConnectError> {
        self.client.state(within(ANSWER), &wire::StateRequest::default()).await.map_err(refused)
    }

    /// What the monitor shows of the machine, as a JSON object: see
    /// [`nelly_vmm::machine::Inspection`], of the version that the monitor has.
    ///
    /// # Errors
    /// As every call; a keeper of an older version does not know it.
    pub async fn monitor(&self) -> Result<String, ConnectError> {
        Ok(self.machine().await?.inspection)
    }

    /// The same, with what the monitor's process uses of the host.
    ///
    /// # Errors
    /// As [`Connection::monitor`].
    pub async fn machine(&self) -> Result<wire::MonitorResponse, ConnectError> {
        self.client.monitor(within(ANSWER), &wire::MonitorRequest::default()).await.map_err(refused)
    }

    /// What the machine counts, as Prometheus reads it, labelled with this name of the sandbox.
    ///
    /// # Errors
    /// As every call; a keeper of an older version does not know it.
    pub async fn metrics(&self, sandbox: &str) -> Result<String, ConnectError> {
        let request = wire::MetricsRequest { sandbox: sandbox.to_owned(), ..Default::default() };
        let answer = self.client.metrics(within(ANSWER), &request).await;
        answer.map(|answer| answer.text).map_err(refused)
    }

    /// The health of the first container, with the results of the latest probes. What they wrote is
    /// not fit for a terminal.
    ///
    /// # Errors
    /// As every call; a keeper of an older version does not know it.
    pub async fn health(&self) -> Result<HealthResponse, ConnectError> {
        self.client.health(within(ANSWER), &wire::HealthRequest::default()).await.map_err(refused)
    }

    /// Stops the sandbox, and waits until it has ended. `None` is its own signal or grace.
    ///
    /// # Errors
    /// As every call. A keeper that ended without an answer has written the exit down.
    pub async fn stop(
        &self,
        signal: Option<Signal>,
        grace: Option<Duration>,
    ) -> Result<EndReport, ConnectError> {
        let most = u32::MAX;
        let request = wire::StopRequest {
            signal: signal.map(|signal| signal.number().into()).unwrap_or_default(),
            grace_ms: grace.map(|grace| sys::at_most(grace.as_millis(), most)),
            ..Default::default()
        };
        self.client.stop(Context::default(), &request).await.map(ended).map_err(refused)
    }

    /// Sends a signal to an exec, or to the container's first process if `exec` is empty.
    ///
    /// # Errors
    /// As every call; it does not run.
    pub async fn kill(&self, exec: &str, signal: Signal) -> Result<(), ConnectError> {
        let request = wire::KillRequest {
            exec_id: exec.to_owned(),
            signal: signal.number().into(),
            container: self.container.clone(),
            ..Default::default()
        };
        self.client.kill(within(GUEST_ANSWER), &request).await.map(drop).map_err(refused)
    }

    /// Waits for the end of an exec, or of the sandbox if `exec` is empty.
    ///
    /// # Errors
    /// As every call.
    pub async fn wait(&self, exec: &str) -> Result<EndReport, ConnectError> {
        let request = wire::WaitRequest {
            exec_id: exec.to_owned(),
            container: self.container.clone(),
            ..Default::default()
        };
        self.client.wait(Context::default(), &request).await.map(ended).map_err(refused)
    }

    /// Starts a process.
    ///
    /// # Errors
    /// As every call; that the program cannot run is the inner error.
    pub async fn exec(&self, spec: &ExecSpec) -> Result<Result<Exec, StartFailure>, ConnectError> {
        let request = wire::ExecRequest { container: self.container.clone(), ..spec.request() };
        let answer = self.client.exec(within(GUEST_ANSWER), &request).await.map_err(refused)?;
        if let Some(failure) = answer.failure.into_option() {
            let [code, ..] = failure.code.to_le_bytes();
            return Ok(Err(StartFailure { code, message: failure.detail }));
        }
        let claimed = if spec.detach { None } else { Some(self.claim(&answer.token).await?) };
        Ok(Ok(Exec { id: answer.exec_id, claimed }))
    }

    /// Attaches to the output of a session, or of the container if `exec` is empty, and to its
    /// input if `stdin`.
    ///
    /// # Errors
    /// As every call; there is no such session, or the container has no input.
    pub async fn attach(&self, exec: &str, stdin: bool) -> Result<Attached, ConnectError> {
        let request = wire::AttachRequest { stdin, exec_id: exec.to_owned(), ..Default::default() };
        let answer = self.client.attach(within(ANSWER), &request).await.map_err(refused)?;
        let claimed = self.claim(&answer.token).await?;
        // An older keeper says nothing of the input, and refuses one that is not there.
        let stdin = if exec.is_empty() { stdin } else { answer.stdin };
        Ok(Attached { claimed, terminal: answer.terminal, stdin, exec: answer.exec_id })
    }

    /// Sets the size of a terminal, of an exec or of the container if `exec` is empty.
    ///
    /// # Errors
    /// As every call; it has no terminal.
    pub async fn resize(&self, exec: &str, rows: u16, columns: u16) -> Result<(), ConnectError> {
        let request = wire::ResizeRequest {
            exec_id: exec.to_owned(),
            rows: rows.into(),
            columns: columns.into(),
            container: self.container.clone(),
            ..Default::default()
        };
        self.client.resize(within(GUEST_ANSWER), &request).await.map(drop).map_err(refused)
    }

    /// Pauses the machine.
    ///
    /// # Errors
    /// As every call; it does not run.
    pub async fn pause(&self) -> Result<(), ConnectError> {
        self.client.pause(within(GUEST_ANSWER), &wire::Empty::default()).await.map(drop).map_err(refused)
    }

    /// Lets a paused machine run on.
    ///
    /// # Errors
    /// As every call; it is not paused.
    pub async fn resume(&self) -> Result<(), ConnectError> {
        self.client.resume(within(GUEST_ANSWER), &wire::Empty::default()).await.map(drop).map_err(refused)
    }

    /// Changes what can be changed of a sandbox that runs.
    ///
    /// # Errors
    /// As every call; the container uses more memory than it may have from now on; a limit that the
    /// machine cannot have.
    pub async fn update(&self, change: Change) -> Result<(), ConnectError> {
        let request = wire::UpdateRequest {
            restart: change.restart.map(|policy| policy.to_string()).unwrap_or_default(),
            memory_bytes: change.memory_limit.map_or(0, |limit| limit.unwrap_or(u64::MAX)),
            ..Default::default()
        };
        self.client.update(within(GUEST_ANSWER), &request).await.map(drop).map_err(refused)
    }

    /// The published ports of the user-mode network, and what it counted.
    ///
    /// # Errors
    /// As every call; there is no such network, or it has ended; a keeper of an older version does
    /// not know it.
    pub async fn ports(&self) -> Result<PortsResponse, ConnectError> {
        self.client.ports(within(ANSWER), &wire::PortsRequest::default()).await.map_err(refused)
    }

    /// Publishes a port until the machine ends; port 0 is a free one. Gives where it listens, as
    /// `ADDRESS:PORT:GUEST/PROTOCOL`.
    ///
    /// # Errors
    /// As [`Connection::ports`]; the port is taken.
    pub async fn add_port(&self, port: &Publish) -> Result<String, ConnectError> {
        let request = wire::PortRequest { port: port.to_string(), ..Default::default() };
        let added = self.client.add_port(within(ANSWER), &request).await;
        added.map(|answer| answer.published).map_err(refused)
    }

    /// Publishes a port no more. Connections that were accepted go on.
    ///
    /// # Errors
    /// As [`Connection::ports`]; it is not published.
    pub async fn remove_port(&self, port: &Publish) -> Result<String, ConnectError> {
        let request = wire::PortRequest { port: port.to_string(), ..Default::default() };
        let removed = self.client.remove_port(within(ANSWER), &request).await;
        removed.map(|answer| answer.published).map_err(refused)
    }

    /// Resource use of the container and its guest.
    ///
    /// # Errors
    /// As every call.
    pub async fn stats(&self) -> Result<wire::StatsResponse, ConnectError> {
        self.client.stats(within(GUEST_ANSWER), &wire::StatsRequest::default()).await.map_err(refused)
    }

    /// What the agent tells of the container that calls are about, which must run.
    ///
    /// # Errors
    /// As every call.
    pub async fn inspect(&self, what: Inspection) -> Result<inspect::Records, ConnectError> {
        Ok(inspect::Records::new(self.look(what).await?))
    }

    /// Asks for an archive of the files of the container that calls are about, which must run.
    ///
    /// # Errors
    /// As every call. That there is no such file is an error of reading the archive.
    pub async fn copy_out(&self, source: CopySource) -> Result<copy::CopyOut, ConnectError> {
        Ok(copy::CopyOut::new(self.look(Inspection::CopyOut(source)).await?))
    }

    /// Asks the container that calls are about, which must run, to take files of an archive.
    ///
    /// # Errors
    /// As every call. That it cannot write is an error of writing the archive.
    pub async fn copy_in(&self, target: CopyTarget) -> Result<copy::CopyIn, ConnectError> {
        Ok(copy::CopyIn::new(self.look(Inspection::CopyIn(target)).await?))
    }

    /// Connects to an address of the container that calls are about, which must run.
    ///
    /// # Errors
    /// As every call; nobody accepts there.
    pub async fn connect(&self, to: &RelayAddress) -> Result<UnixStream, ConnectError> {
        let request = wire::ConnectRequest {
            container: self.container.clone(),
            address: to.to_string(),
            ..Default::default()
        };
        let answer = self.client.connect(within(GUEST_ANSWER), &request).await.map_err(refused)?;
        self.claim_output(&answer.token).await
    }

    /// The stream of such a call.
    async fn look(&self, what: Inspection) -> Result<UnixStream, ConnectError> {
        let request = wire::InspectRequest { container: self.container.clone(), ..Default::default() };
        let patience = if what == Inspection::Processes { TELLING } else { COPYING };
        let answer = match what {
            Inspection::Processes => self.client.processes(within(GUEST_ANSWER), &request).await,
            Inspection::Changes => self.client.changes(within(GUEST_ANSWER), &request).await,
            Inspection::CopyOut(CopySource { path, follow, sparse }) => {
                let container = request.container;
                let request = wire::CopyOutRequest { container, path, follow, sparse, ..Default::default() };
                self.client.copy_out(within(GUEST_ANSWER), &request).await
            }
            Inspection::CopyIn(CopyTarget { path, name, directory, contents, archive, tar }) => {
                let request = wire::CopyInRequest {
                    container: request.container,
                    path,
                    name,
                    directory,
                    contents,
                    archive,
                    tar,
                    ..Default::default()
                };
                self.client.copy_in(within(GUEST_ANSWER), &request).await
            }
        };
        let stream = self.claim_output(&answer.map_err(refused)?.token).await?;
        stream.set_read_timeout(Some(patience)).map_err(ConnectError::Use)?;
        stream.set_write_timeout(Some(patience)).map_err(ConnectError::Use)?;
        Ok(stream)
    }

    async fn claim_output(&self, token: &[u8]) -> Result<UnixStream, ConnectError> {
        let claimed = self.claim(token).await?;
        let missing = || ConnectError::Streams(io::Error::other("it is not an output"));
        claimed.streams.stdout.ok_or_else(missing)
    }

    /// Shows a token, and receives its descriptors.
    async fn claim(&self, token: &[u8]) -> Result<Claimed, ConnectError> {
        let connection = self.runtime.connect(STREAM_SOCKET)?;
        let shown = tokio::time::timeout(ANSWER, claim::show(connection, token)).await;
        shown.map_err(|_| ConnectError::Silent)?.map_err(ConnectError::Streams)
    }
}
