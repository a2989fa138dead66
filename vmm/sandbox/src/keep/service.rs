//! What clients ask of a keeper: `nelly.sandbox.v1`.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nelly_protocol::sandbox::PROTOCOL_MAJOR;
use nelly_protocol::sandbox::messages as m;
use nelly_protocol::sandbox::service::{Sandbox as Service, create_sandbox};
use nelly_vmm::sys::ProcessUsage;
use nelly_vmm::text;
use tokio::sync::{oneshot, watch};
use ttrpc::asynchronous::TtrpcContext;
use ttrpc::{Code, get_status};

use super::attach::{Attachment, Prepared};
use super::execs::{FindError, Stays};
use super::offers::STDOUT;
use super::{Ended, Keeper, containers, execs, network};
use crate::agent::{AgentError, CallError, CopySource, CopyTarget, Inspection, ProcessId};
use crate::instance::relays::RelayState;
use crate::instance::{Sandbox, SandboxError};
use crate::life::Signal;
use crate::metrics::{Scrape, Seen, Told};
use crate::network::{Secrets, Usernet};
use crate::spec::RelayAddress;
use crate::spec::relay::Side;
use crate::state::record::Status;
use crate::state::{Change, Exit, Id};

/// The service of a keeper.
#[must_use]
pub(super) fn service(keeper: Arc<Keeper>) -> HashMap<String, ttrpc::r#async::Service> {
    create_sandbox(Arc::new(Calls(keeper)))
}

struct Calls(Arc<Keeper>);

pub(super) fn status(code: Code, message: impl Into<String>) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code, message.into()))
}

/// What the agent refused, its client has to know as it is.
pub(super) fn refused(error: &SandboxError) -> ttrpc::Error {
    match error {
        SandboxError::Agent(AgentError::Call { source: CallError::Refused(message), .. }) => {
            status(Code::FAILED_PRECONDITION, message.clone())
        }
        SandboxError::Agent(error @ (AgentError::Absent | AgentError::Awaited)) => {
            status(Code::FAILED_PRECONDITION, error.to_string())
        }
        error => status(Code::INTERNAL, text::chain(error)),
    }
}

fn signal(number: u32) -> ttrpc::Result<Signal> {
    let number = u8::try_from(number).ok().and_then(Signal::new);
    number.ok_or_else(|| status(Code::INVALID_ARGUMENT, "a signal is a number from 1 to 64"))
}

pub(super) fn size(rows: u32, columns: u32) -> ttrpc::Result<(u16, u16)> {
    match (u16::try_from(rows), u16::try_from(columns)) {
        (Ok(rows), Ok(columns)) => Ok((rows, columns)),
        _ => Err(status(
            Code::INVALID_ARGUMENT,
            format!("a terminal of {rows} rows and {columns} columns is too large"),
        )),
    }
}

fn ended(ended: Ended) -> m::ExitStatus {
    m::ExitStatus {
        code: ended.exit.code.into(),
        reason: ended.exit.reason,
        detail: ended.detail,
        ..Default::default()
    }
}

fn relay(state: RelayState) -> m::RelayState {
    let listens = match state.relay.listens {
        Side::Host => "host",
        Side::Guest => "guest",
    };
    m::RelayState {
        listens: listens.to_owned(),
        listen: state.relay.listen.to_string(),
        connect: state.relay.connect.to_string(),
        connections: state.connections,
        failed: state.failed,
        last_failure: state.last_failure,
        ..Default::default()
    }
}

fn exited(exit: Exit) -> m::ExitStatus {
    m::ExitStatus { code: exit.code.into(), reason: exit.reason.to_owned(), ..Default::default() }
}

/// Waits for the result of an exec or of a further container.
async fn result(
    receiver: Option<watch::Receiver<Option<Exit>>>,
    missing: impl FnOnce() -> String,
) -> ttrpc::Result<m::ExitStatus> {
    let mut receiver = receiver.ok_or_else(|| status(Code::NOT_FOUND, missing()))?;
    match receiver.wait_for(Option::is_some).await.map(|exit| *exit) {
        Ok(Some(exit)) => Ok(exited(exit)),
        _ => Err(status(Code::INTERNAL, "the process was given up")),
    }
}

/// Does `work` to its end, also when the client is gone meanwhile: ttrpc drops the calls of a
/// connection that ends, and what was begun would be half done. What nobody hears any more is given
/// to `unheard`.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
    unheard: impl FnOnce(T) + Send + 'static,
) -> ttrpc::Result<T> {
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        if let Err(done) = tell.send(work.await) {
            unheard(done);
        }
    });
    told.await.map_err(|_| status(Code::INTERNAL, "the call was given up"))
}

impl Calls {
    /// The sandbox, while its container runs.
    fn running(&self) -> ttrpc::Result<Arc<Sandbox>> {
        let sandbox = self.0.sandbox().clone();
        sandbox.ok_or_else(|| {
            status(Code::FAILED_PRECONDITION, format!("the sandbox is {}", self.0.state().status.word()))
        })
    }

    /// The same, unless it is paused: its guest answers nothing then.
    fn answering(&self) -> ttrpc::Result<Arc<Sandbox>> {
        match self.0.state().status {
            Status::Paused => Err(status(Code::FAILED_PRECONDITION, "the sandbox is paused")),
            _ => self.running(),
        }
    }

    /// The further container that a request names; none if it means the first one.
    fn further(&self, word: &str) -> ttrpc::Result<Option<Id>> {
        if word.is_empty() {
            return Ok(None);
        }
        let found = self.0.container(word);
        found
            .map(Some)
            .ok_or_else(|| status(Code::NOT_FOUND, format!("the sandbox has no container {word:?}")))
    }

    /// The exec that a request names, by its id or the beginning of that, and its container.
    fn exec_id(&self, word: &str) -> ttrpc::Result<(String, String)> {
        self.0.execs().find(word).map_err(|error| {
            let code = match error {
                FindError::None(_) => Code::NOT_FOUND,
                FindError::Several(_) => Code::INVALID_ARGUMENT,
            };
            status(code, error.to_string())
        })
    }

    /// The process that a request names: container, and exec if it is not the first one.
    fn target(&self, container: &str, exec: &str) -> ttrpc::Result<(String, String)> {
        if exec.is_empty() {
            return Ok((self.container(self.further(container)?), String::new()));
        }
        self.exec_id(exec).map(|(exec, container)| (container, exec))
    }

    /// Waits until an exec that is being started has begun: before that the agent may not know it.
    async fn begun(&self, exec: &str) -> ttrpc::Result<()> {
        let Some(mut begun) = self.0.execs().begun(exec) else { return Ok(()) };
        match begun.wait_for(|begun| *begun).await {
            Ok(_) => Ok(()),
            Err(_) => Err(status(Code::NOT_FOUND, format!("exec {exec} did not start"))),
        }
    }

    /// The id of a container in the guest.
    fn container(&self, further: Option<Id>) -> String {
        further.map_or_else(|| self.0.id_in_guest().to_owned(), |id| id.to_string())
    }

    /// Offers the stream of what the agent does with a container.
    async fn inspect(&self, container: &str, what: Inspection) -> ttrpc::Result<m::InspectResponse> {
        let sandbox = self.answering()?;
        let container = self.container(self.further(container)?);
        self.offer(sandbox.inspect(&container, what).await.map_err(|error| refused(&error))?)
    }

    fn offer(&self, stream: UnixStream) -> ttrpc::Result<m::InspectResponse> {
        let offered = self.0.offers().offer(STDOUT, vec![stream.into()]);
        // Whoever does not claim it leaves it closed after a while.
        let (token, _) =
            offered.map_err(|error| status(Code::INTERNAL, format!("cannot make a token: {error}")))?;
        Ok(m::InspectResponse { token: token.to_vec(), ..Default::default() })
    }

    /// What the monitor shows of the machine, and what its process uses.
    async fn monitor_tells(&self) -> ttrpc::Result<Told> {
        let sandbox = self.running()?;
        let inspection = sandbox.inspection().await.map_err(|error| refused(&error))?;
        let usage = ProcessUsage::of(sandbox.machine().process_id().unwrap_or_default());
        Ok(Told { inspection, cpu_ns: usage.cpu_ns, resident_bytes: usage.resident_bytes })
    }

    async fn set_paused(&self, paused: bool) -> ttrpc::Result<m::Empty> {
        let calls = Self(Arc::clone(&self.0));
        to_its_end(async move { calls.pause_or_resume(paused).await }, drop).await?
    }

    async fn pause_or_resume(&self, paused: bool) -> ttrpc::Result<m::Empty> {
        let _one = self.0.pausing.lock().await;
        let sandbox = self.running()?;
        let (from, to) =
            if paused { (Status::Running, Status::Paused) } else { (Status::Paused, Status::Running) };
        let now = self.0.state().status;
        if now != from {
            return Err(status(
                Code::FAILED_PRECONDITION,
                format!("the sandbox is {}, not {}", now.word(), from.word()),
            ));
        }
        let done = if paused { sandbox.pause().await } else { sandbox.resume().await };
        done.map_err(|error| refused(&error))?;
        // It may have begun to end meanwhile.
        self.0.change(|state| {
            if state.status == from {
                state.status = to
            }
        });
        Ok(m::Empty::default())
    }
}

#[async_trait]
impl Service for Calls {
    async fn hello(&self, _: &TtrpcContext, request: m::HelloRequest) -> ttrpc::Result<m::HelloResponse> {
        if request.protocol != PROTOCOL_MAJOR {
            let message = format!(
                "the client speaks version {} of the sandbox protocol, the process that holds the sandbox version {PROTOCOL_MAJOR}",
                request.protocol
            );
            return Err(status(Code::UNIMPLEMENTED, message));
        }
        Ok(m::HelloResponse {
            protocol: PROTOCOL_MAJOR,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            id: self.0.id().to_owned(),
            ..Default::default()
        })
    }

    async fn state(&self, _: &TtrpcContext, _: m::StateRequest) -> ttrpc::Result<m::StateResponse> {
        let state = self.0.state();
        let (health, health_failures) = self.0.health.told();
        let sandbox = self.running().ok();
        let usernet = sandbox.as_ref().and_then(|sandbox| sandbox.usernet());
        let network = usernet.map(|usernet| if usernet.ended().is_none() { "up" } else { "down" });
        let relays = sandbox.as_ref().map(|sandbox| sandbox.relays()).unwrap_or_default();
        let secrets = usernet.and_then(Usernet::secrets);
        Ok(m::StateResponse {
            health,
            health_failures,
            status: state.status.word().to_owned(),
            restarts: state.restarts,
            restart: self.0.policy.borrow().to_string(),
            execs: self.0.execs().running(),
            foreground: self.0.kept.foreground,
            network: network.unwrap_or_default().to_owned(),
            published: usernet.map(Usernet::published).unwrap_or_default(),
            network_reason: usernet.and_then(Usernet::reason).unwrap_or_default(),
            network_process: usernet.filter(|usernet| usernet.ended().is_none()).map_or(0, Usernet::process),
            secrets_process: secrets.and_then(Secrets::process).unwrap_or(0),
            secrets_confinement: secrets.map(|secrets| secrets.confinement().to_vec()).unwrap_or_default(),
            secrets_reason: secrets.and_then(Secrets::reason).unwrap_or_default(),
            network_confinement: usernet.map(Usernet::confinement).unwrap_or_default(),
            containers: state.containers.into_iter().map(containers::wire::state).collect(),
            relays: relays.into_iter().map(relay).collect(),
            agent: sandbox.as_ref().map_or("", |sandbox| sandbox.agent().word()).to_owned(),
            ..Default::default()
        })
    }

    async fn stop(&self, _: &TtrpcContext, request: m::StopRequest) -> ttrpc::Result<m::ExitStatus> {
        let first = (request.signal != 0).then(|| signal(request.signal)).transpose()?;
        self.0.stop(first, request.grace_ms.map(|grace| Duration::from_millis(grace.into())));
        Ok(ended(self.0.ended().await))
    }

    async fn kill(&self, _: &TtrpcContext, request: m::KillRequest) -> ttrpc::Result<m::Empty> {
        let number = signal(request.signal)?;
        let sandbox = self.running()?;
        let (container, exec) = self.target(&request.container, &request.exec_id)?;
        self.begun(&exec).await?;
        let is_first = exec.is_empty() && container == self.0.id_in_guest();
        let mut before = None;
        if is_first && (number == Signal::KILL || number == self.0.kept.stop_signal) {
            // Who kills it does not want it back.
            self.0.change(|state| before = Some(std::mem::replace(&mut state.stopped_by_command, true)));
            if number == Signal::KILL {
                self.0.stop(None, Some(Duration::ZERO));
                return Ok(m::Empty::default());
            }
        }
        let told = match self.answering() {
            Ok(answering) => {
                let target = ProcessId { container: &container, exec: &exec };
                let told = answering.agent().signal(target, number.number().into()).await;
                told.map_err(|error| refused(&error.into()))
            }
            Err(error) => Err(error),
        };
        drop(sandbox);
        if let (Err(_), Some(before)) = (&told, before) {
            // Nothing was sent, so its policy holds as before; a stop may have been asked for, too.
            self.0.change(|state| state.stopped_by_command = before);
        }
        told.map(|()| m::Empty::default())
    }

    async fn wait(&self, _: &TtrpcContext, request: m::WaitRequest) -> ttrpc::Result<m::ExitStatus> {
        if request.exec_id.is_empty() {
            return match self.further(&request.container)? {
                None => Ok(ended(self.0.ended().await)),
                Some(id) => {
                    result(self.0.containers.result(id), || {
                        format!("container {} does not run yet", id.short())
                    })
                    .await
                }
            };
        }
        let (id, _) = self.exec_id(&request.exec_id)?;
        result(self.0.execs().result(&id), || FindError::None(id.clone()).to_string()).await
    }

    async fn exec(&self, _: &TtrpcContext, request: m::ExecRequest) -> ttrpc::Result<m::ExecResponse> {
        let sandbox = self.answering()?;
        let further = self.further(&request.container)?;
        let first = further.and_then(|id| self.0.containers.process(id));
        let first = first.unwrap_or_else(|| self.0.kept.container.process.clone());
        let process = execs::process(&first, &request)
            .map_err(|error| status(Code::INVALID_ARGUMENT, error.to_string()))?;
        let size = size(request.rows, request.columns)?;
        let stays = match (request.detach, request.session) {
            (true, true) => {
                let message = "an exec is either detached or a session, not both";
                return Err(status(Code::INVALID_ARGUMENT, message));
            }
            (true, false) => Stays::Detached,
            (false, true) => Stays::Session,
            (false, false) => Stays::WithClient,
        };
        let container = self.container(further);
        let keeper = Arc::clone(&self.0);
        let starts =
            async move { execs::start(&keeper, &sandbox, &container, &process, Some(size), stays).await };
        let keeper = Arc::clone(&self.0);
        let started = to_its_end(starts, move |started| {
            if let Ok(Ok(execs::Started { token: Some(token), .. })) = started {
                keeper.offers().withdraw(&token);
            }
        });
        match started.await?.map_err(|error| refused(&error))? {
            Ok(started) => Ok(m::ExecResponse {
                exec_id: started.id,
                token: started.token.map(Vec::from).unwrap_or_default(),
                ..Default::default()
            }),
            Err(failure) => {
                let failure = m::ExitStatus {
                    code: failure.code.into(),
                    detail: failure.message,
                    ..Default::default()
                };
                Ok(m::ExecResponse { failure: Some(failure).into(), ..Default::default() })
            }
        }
    }

    async fn attach(&self, _: &TtrpcContext, request: m::AttachRequest) -> ttrpc::Result<m::AttachResponse> {
        let internal =
            |error: std::io::Error| status(Code::INTERNAL, format!("cannot make a stream: {error}"));
        if !request.exec_id.is_empty() {
            let (id, _) = self.exec_id(&request.exec_id)?;
            let session = self.0.execs().session(&id).ok_or_else(|| {
                let message =
                    format!("exec {id} is no session: only what `--session` started can be attached");
                status(Code::FAILED_PRECONDITION, message)
            })?;
            let prepared = Prepared::new().map_err(internal)?;
            let (terminal, stdin) = (session.terminal, session.stdin && request.stdin);
            let token = prepared.offer(self.0.offers(), session.attachment(stdin));
            let (token, exec_id) = (token.to_vec(), id);
            return Ok(m::AttachResponse { token, terminal, exec_id, stdin, ..Default::default() });
        }
        self.running()?;
        if self.0.kept.foreground {
            let message = format!(
                "its streams are those of the `nelly run` that holds it, process {}",
                std::process::id()
            );
            return Err(status(Code::FAILED_PRECONDITION, message));
        }
        let process = &self.0.kept.container.process;
        if request.stdin && !process.stdin && !process.terminal {
            let message = "the container has no standard input: it was started without -i";
            return Err(status(Code::FAILED_PRECONDITION, message));
        }
        let attachment = Attachment {
            output: Arc::clone(&self.0.output),
            input: request.stdin.then(|| Arc::clone(&self.0.input)),
            ends_input: false,
            is_first: false,
            clients: self.0.clients.clone(),
        };
        let token = Prepared::new().map_err(internal)?.offer(self.0.offers(), attachment).to_vec();
        let (terminal, stdin) = (process.terminal, request.stdin);
        Ok(m::AttachResponse { token, terminal, stdin, ..Default::default() })
    }

    async fn resize(&self, _: &TtrpcContext, request: m::ResizeRequest) -> ttrpc::Result<m::Empty> {
        let (rows, columns) = size(request.rows, request.columns)?;
        let sandbox = self.answering()?;
        let (container, exec) = self.target(&request.container, &request.exec_id)?;
        self.begun(&exec).await?;
        let target = ProcessId { container: &container, exec: &exec };
        let resized = sandbox.agent().resize(target, rows, columns).await;
        resized.map_err(|error| refused(&error.into()))?;
        Ok(m::Empty::default())
    }

    async fn run(&self, _: &TtrpcContext, request: m::RunRequest) -> ttrpc::Result<m::RunResponse> {
        let sandbox = self.answering()?;
        if sandbox.agent().comes_and_goes() {
            let message = "a machine of nelly boot takes no containers of Nelly's: its guest starts its own";
            return Err(status(Code::FAILED_PRECONDITION, message));
        }
        let wanted = containers::wire::wanted(request)?;
        let keeper = Arc::clone(&self.0);
        let runs = async move { containers::run(&keeper, &sandbox, wanted).await };
        let keeper = Arc::clone(&self.0);
        let started = to_its_end(runs, move |started| {
            if let Ok(Ok(containers::Started { token: Some(token), .. })) = started {
                keeper.offers().withdraw(&token);
            }
        });
        containers::wire::answer(started.await?)
    }

    async fn pause(&self, _: &TtrpcContext, _: m::Empty) -> ttrpc::Result<m::Empty> {
        self.set_paused(true).await
    }

    async fn resume(&self, _: &TtrpcContext, _: m::Empty) -> ttrpc::Result<m::Empty> {
        self.set_paused(false).await
    }

    async fn update(&self, _: &TtrpcContext, request: m::UpdateRequest) -> ttrpc::Result<m::Empty> {
        let invalid = |why: String| status(Code::INVALID_ARGUMENT, why);
        let restart = Some(request.restart).filter(|policy| !policy.is_empty());
        let change = Change {
            restart: restart
                .map(|policy| policy.parse())
                .transpose()
                .map_err(|why| invalid(format!("{why}")))?,
            memory_limit: match request.memory_bytes {
                0 => None,
                u64::MAX => Some(None),
                bytes => Some(Some(bytes)),
            },
        };
        change.check(self.0.kept.memory).map_err(|why| invalid(why.to_string()))?;
        let keeper = Arc::clone(&self.0);
        to_its_end(async move { keeper.make(change).await }, drop).await??;
        Ok(m::Empty::default())
    }

    async fn processes(
        &self,
        _: &TtrpcContext,
        request: m::InspectRequest,
    ) -> ttrpc::Result<m::InspectResponse> {
        self.inspect(&request.container, Inspection::Processes).await
    }

    async fn changes(
        &self,
        _: &TtrpcContext,
        request: m::InspectRequest,
    ) -> ttrpc::Result<m::InspectResponse> {
        self.inspect(&request.container, Inspection::Changes).await
    }

    async fn copy_out(
        &self,
        _: &TtrpcContext,
        request: m::CopyOutRequest,
    ) -> ttrpc::Result<m::InspectResponse> {
        let m::CopyOutRequest { container, path, follow, sparse, .. } = request;
        self.inspect(&container, Inspection::CopyOut(CopySource { path, follow, sparse })).await
    }

    async fn copy_in(
        &self,
        _: &TtrpcContext,
        request: m::CopyInRequest,
    ) -> ttrpc::Result<m::InspectResponse> {
        let m::CopyInRequest { container, path, name, directory, contents, archive, tar, .. } = request;
        let target = CopyTarget { path, name, directory, contents, archive, tar };
        self.inspect(&container, Inspection::CopyIn(target)).await
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: m::ConnectRequest,
    ) -> ttrpc::Result<m::InspectResponse> {
        let address = request.address.parse::<RelayAddress>().and_then(RelayAddress::of_guest);
        let address = address.map_err(|error| status(Code::INVALID_ARGUMENT, error.to_string()))?;
        let sandbox = self.answering()?;
        let container = self.container(self.further(&request.container)?);
        let stream = sandbox.connect(&container, &address).await.map_err(|error| refused(&error))?;
        self.offer(stream)
    }

    async fn monitor(&self, _: &TtrpcContext, _: m::MonitorRequest) -> ttrpc::Result<m::MonitorResponse> {
        let Told { inspection, cpu_ns, resident_bytes } = self.monitor_tells().await?;
        let inspection = serde_json::to_string(&inspection);
        let inspection = inspection.map_err(|error| status(Code::INTERNAL, error.to_string()))?;
        Ok(m::MonitorResponse { inspection, cpu_ns, resident_bytes, ..Default::default() })
    }

    async fn metrics(
        &self,
        _: &TtrpcContext,
        request: m::MetricsRequest,
    ) -> ttrpc::Result<m::MetricsResponse> {
        let told = self.monitor_tells().await?;
        let state = self.0.state();
        let name = if request.sandbox.is_empty() { self.0.id() } else { &request.sandbox };
        let mut scrape = Scrape::default();
        scrape.add(&Seen {
            id: self.0.id(),
            name,
            status: state.status.word(),
            restarts: state.restarts,
            told: Some(&told),
        });
        Ok(m::MetricsResponse { text: scrape.to_string(), ..Default::default() })
    }

    async fn ports(&self, _: &TtrpcContext, _: m::PortsRequest) -> ttrpc::Result<m::PortsResponse> {
        network::ports(self.running()?).await
    }

    async fn add_port(&self, _: &TtrpcContext, request: m::PortRequest) -> ttrpc::Result<m::PortResponse> {
        let changes = network::change(Arc::clone(&self.0), self.running()?, request.port, true);
        to_its_end(changes, drop).await?
    }

    async fn remove_port(&self, _: &TtrpcContext, request: m::PortRequest) -> ttrpc::Result<m::PortResponse> {
        let changes = network::change(Arc::clone(&self.0), self.running()?, request.port, false);
        to_its_end(changes, drop).await?
    }

    async fn health(&self, _: &TtrpcContext, _: m::HealthRequest) -> ttrpc::Result<m::HealthResponse> {
        Ok(self.0.health.response())
    }

    async fn stats(&self, _: &TtrpcContext, _: m::StatsRequest) -> ttrpc::Result<m::StatsResponse> {
        let sandbox = self.answering()?;
        let stats =
            sandbox.agent().stats(self.0.id_in_guest()).await.map_err(|error| refused(&error.into()))?;
        let monitor_pid = sandbox.machine().process_id().unwrap_or_default();
        let monitor = ProcessUsage::of(monitor_pid);
        Ok(m::StatsResponse {
            cpu_usage_ns: stats.cpu_usage_ns,
            memory_current_bytes: stats.memory_current_bytes,
            memory_peak_bytes: stats.memory_peak_bytes,
            pids_current: stats.pids_current,
            oom_kills: stats.oom_kills,
            guest_memory_total_bytes: stats.guest_memory_total_bytes,
            guest_memory_available_bytes: stats.guest_memory_available_bytes,
            memory_limit_bytes: stats.memory_limit_bytes,
            disk_read_bytes: stats.disk_read_bytes,
            disk_written_bytes: stats.disk_written_bytes,
            monitor_pid,
            monitor_cpu_ns: monitor.cpu_ns,
            monitor_resident_bytes: monitor.resident_bytes,
            ..Default::default()
        })
    }
}
