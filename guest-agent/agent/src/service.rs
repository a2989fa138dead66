//! The ttrpc service: thin. Each call checks its request, asks the life of containers, and turns
//! answers and errors into messages. A client that goes away in the middle cancels nothing: what
//! was begun is finished.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use async_trait::async_trait;
use futures_core::Stream;
use nelly_protocol::messages::{self as m, container_state, start_failure};
use nelly_protocol::service::{Agent, create_agent};
use nelly_protocol::{PROTOCOL_MAJOR, features};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::{Code, get_status};

use crate::registry::{ContainerSummary, ProcessExit, ProcessKey, RegistryError, Status};
use crate::relay::RelayError;
use crate::slots::{DeviceSlots, GuestDisk, SlotError};
use crate::spawn::plan::PlanError;
use crate::spawn::{FailureKind, StageFailure, chain};
use crate::stdio::StdioError;
use crate::timeline::kernel_log;

mod guest;
mod lifecycle;

pub use guest::GuestError;
pub use lifecycle::{Config, GuestState, ServiceError, ShutdownRequest};

/// Paths of one call of Touch.
const TOUCHES_MAX: usize = 256;

/// Ends the sentence on a machine's own devices.
const OWN_DEVICES: &str = "leaves devices to the machine";

/// One connection: the calls of the one service, open after Hello.
struct Connection {
    guest: Arc<GuestState>,
    greeted: AtomicBool,
}

/// Serves one connected stream until its other end closes it.
///
/// # Errors
/// When the server cannot be started on it.
pub async fn serve<S>(guest: Arc<GuestState>, stream: S) -> ttrpc::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static,
{
    let _counted = guest.called();
    let (gone, closed) = oneshot::channel();
    let stream = Tracked { stream, _gone: gone };
    // One server a connection: it is the only way to know which connection a call came by, and so
    // whether it said Hello.
    let listener = Listener::new(Once(Some(stream)));
    let connection = Arc::new(Connection { guest, greeted: AtomicBool::new(false) });
    let mut server = Server::new().register_service(create_agent(connection)).add_listener(listener);
    server.start().await?;
    // The sender is dropped with the stream; that is the only message it ever has.
    let _ = closed.await;
    Ok(())
}

/// A stream of one connection.
struct Once<S>(Option<S>);

impl<S: Unpin> Stream for Once<S> {
    type Item = io::Result<S>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.0.take() {
            Some(stream) => Poll::Ready(Some(Ok(stream))),
            None => Poll::Pending,
        }
    }
}

/// Tells when the server let go of the stream.
struct Tracked<S> {
    stream: S,
    _gone: oneshot::Sender<()>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Tracked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tracked<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn status(code: Code, message: impl Into<String>) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code, message.into()))
}

fn registry_status(error: &RegistryError) -> ttrpc::Error {
    let code = match error {
        RegistryError::NoContainer(_) | RegistryError::NoExec(..) => Code::NOT_FOUND,
        RegistryError::ContainerExists(_) | RegistryError::ExecExists(..) => Code::ALREADY_EXISTS,
        RegistryError::ExecEnded(..) | RegistryError::ExecAlive(..) | RegistryError::State { .. } => {
            Code::FAILED_PRECONDITION
        }
    };
    status(code, error.to_string())
}

fn slot_status(error: &SlotError) -> ttrpc::Error {
    let code = match error {
        SlotError::NoDisk(_) => Code::NOT_FOUND,
        SlotError::InUse(_) => Code::FAILED_PRECONDITION,
        SlotError::Step(..) => Code::INTERNAL,
    };
    status(code, chain(error))
}

fn relay_status(error: &RelayError) -> ttrpc::Error {
    let code = match error {
        RelayError::Address(_) => Code::INVALID_ARGUMENT,
        RelayError::Connect(..) | RelayError::Listen(..) => Code::FAILED_PRECONDITION,
        RelayError::TooMany(..) => Code::RESOURCE_EXHAUSTED,
        RelayError::NoListener(_) => Code::NOT_FOUND,
    };
    status(code, chain(error))
}

impl From<ServiceError> for ttrpc::Error {
    fn from(error: ServiceError) -> Self {
        match &error {
            ServiceError::Registry(inner) => registry_status(inner),
            ServiceError::Relay(inner) => relay_status(inner),
            ServiceError::Plan(PlanError::Unsupported(_)) => status(Code::UNIMPLEMENTED, chain(&error)),
            ServiceError::Plan(_) | ServiceError::Stdio(StdioError::Terminal) | ServiceError::Signal(_) => {
                status(Code::INVALID_ARGUMENT, chain(&error))
            }
            ServiceError::Ending
            | ServiceError::Ended
            | ServiceError::NoTerminal
            | ServiceError::Busy
            | ServiceError::Machine(_)
            | ServiceError::InUse { .. } => status(Code::FAILED_PRECONDITION, chain(&error)),
            _ => status(Code::INTERNAL, chain(&error)),
        }
    }
}

/// Runs to its end whatever becomes of the caller.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, ServiceError>> + Send + 'static,
) -> ttrpc::Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => result.map_err(ttrpc::Error::from),
        Err(error) => Err(status(Code::INTERNAL, format!("the call panicked or was cancelled: {error}"))),
    }
}

/// A process's number as the host hears it.
fn pid(pid: i32) -> u32 {
    u32::try_from(pid).expect("the kernel numbers processes from 1")
}

fn start_response(started: Result<(i32, m::StreamTokens), StageFailure>) -> m::StartResponse {
    let mut response = m::StartResponse::new();
    match started {
        Ok((number, tokens)) => {
            response.pid = pid(number);
            response.streams = Some(tokens).into();
        }
        Err(failure) => {
            let kind = match failure.kind {
                FailureKind::Other => start_failure::Kind::OTHER,
                FailureKind::NotExecutable => start_failure::Kind::NOT_EXECUTABLE,
                FailureKind::NotFound => start_failure::Kind::NOT_FOUND,
            };
            let failure =
                m::StartFailure { kind: kind.into(), message: failure.message, ..m::StartFailure::default() };
            response.failure = Some(failure).into();
        }
    }
    response
}

fn wait_response(exit: ProcessExit) -> m::WaitResponse {
    m::WaitResponse {
        exit_code: exit.code,
        signal: exit.signal,
        oom_killed: exit.oom_killed,
        exited_ns: exit.at_ns,
        ..m::WaitResponse::default()
    }
}

fn container_state(summary: ContainerSummary) -> m::ContainerState {
    let status = match summary.status {
        Status::Creating => container_state::Status::UNKNOWN,
        Status::Created | Status::Starting => container_state::Status::CREATED,
        Status::Running => container_state::Status::RUNNING,
        Status::Stopped => container_state::Status::STOPPED,
    };
    m::ContainerState {
        id: summary.id,
        status: status.into(),
        pid: pid(summary.pid),
        exit: summary.exit.map(wait_response).into(),
        exec_ids: summary.exec_ids,
        ..m::ContainerState::default()
    }
}

impl Connection {
    fn guest_after_hello(&self) -> ttrpc::Result<&Arc<GuestState>> {
        if self.greeted.load(Ordering::Relaxed) {
            Ok(&self.guest)
        } else {
            Err(status(Code::FAILED_PRECONDITION, "the first call on a connection must be Hello"))
        }
    }
}

#[async_trait]
impl Agent for Connection {
    async fn hello(&self, _: &TtrpcContext, request: m::HelloRequest) -> ttrpc::Result<m::HelloResponse> {
        if request.protocol != PROTOCOL_MAJOR {
            let message = format!(
                "protocol version {} is not supported; this agent (build {}) supports version {PROTOCOL_MAJOR}",
                request.protocol,
                guest::BUILD
            );
            return Err(status(Code::UNIMPLEMENTED, message));
        }
        if let Some(unknown) = request.features.iter().find(|one| !features::ALL.contains(&one.as_str())) {
            return Err(status(Code::UNIMPLEMENTED, format!("this agent has no feature {unknown:?}")));
        }
        if request.network.is_some() {
            self.guest.only_of_containers("leaves the network to the machine")?;
        }
        match guest::apply(&request) {
            Ok(None) => {}
            Ok(Some(names)) => self.guest.set_names(names),
            Err(error) => return Err(status(error.code(), chain(&error))),
        }
        self.greeted.store(true, Ordering::Relaxed);
        Ok(m::HelloResponse {
            protocol: PROTOCOL_MAJOR,
            build: guest::BUILD.to_owned(),
            features: features::ALL.iter().map(|one| (*one).to_owned()).collect(),
            kernel_release: guest::kernel_release(),
            boot_ns: self.guest.config().boot_ns,
            ready_ns: self.guest.config().ready_ns,
            ..m::HelloResponse::default()
        })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: m::CreateContainerRequest,
    ) -> ttrpc::Result<m::CreateContainerResponse> {
        let guest = self.guest_after_hello()?.clone();
        let tokens = detached(async move { guest.create(request).await }).await?;
        Ok(m::CreateContainerResponse { streams: Some(tokens).into(), ..Default::default() })
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: m::StartContainerRequest,
    ) -> ttrpc::Result<m::StartResponse> {
        let guest = self.guest_after_hello()?.clone();
        let started = detached(async move { guest.start(&request.container_id).await }).await?;
        Ok(start_response(started.map(|pid| (pid, m::StreamTokens::new()))))
    }

    async fn exec(&self, _: &TtrpcContext, request: m::ExecRequest) -> ttrpc::Result<m::StartResponse> {
        let guest = self.guest_after_hello()?.clone();
        let started = detached(async move { guest.exec(request).await }).await?;
        Ok(start_response(started))
    }

    async fn signal(&self, _: &TtrpcContext, request: m::SignalRequest) -> ttrpc::Result<m::Empty> {
        let key = ProcessKey::new(&request.container_id, &request.exec_id);
        self.guest_after_hello()?.signal(&key, request.signal, request.all, request.group)?;
        Ok(m::Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: m::WaitRequest) -> ttrpc::Result<m::WaitResponse> {
        let key = ProcessKey::new(&request.container_id, &request.exec_id);
        Ok(wait_response(self.guest_after_hello()?.wait(&key).await?))
    }

    async fn delete_exec(&self, _: &TtrpcContext, request: m::DeleteExecRequest) -> ttrpc::Result<m::Empty> {
        self.guest_after_hello()?.delete_exec(&request.container_id, &request.exec_id)?;
        Ok(m::Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: m::ResizePtyRequest) -> ttrpc::Result<m::Empty> {
        let size = |number: u32, name: &str| {
            u16::try_from(number)
                .map_err(|_| status(Code::INVALID_ARGUMENT, format!("{number} {name} are too many")))
        };
        let (rows, columns) = (size(request.rows, "rows")?, size(request.columns, "columns")?);
        self.guest_after_hello()?.resize(
            &ProcessKey::new(&request.container_id, &request.exec_id),
            rows,
            columns,
        )?;
        Ok(m::Empty::new())
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: m::CloseStdinRequest) -> ttrpc::Result<m::Empty> {
        self.guest_after_hello()?.close_stdin(&ProcessKey::new(&request.container_id, &request.exec_id))?;
        Ok(m::Empty::new())
    }

    async fn state(&self, _: &TtrpcContext, request: m::StateRequest) -> ttrpc::Result<m::StateResponse> {
        let containers = self
            .guest_after_hello()?
            .summaries(&request.container_id)?
            .into_iter()
            .map(container_state)
            .collect();
        Ok(m::StateResponse { containers, ..m::StateResponse::default() })
    }

    async fn stats(&self, _: &TtrpcContext, request: m::StatsRequest) -> ttrpc::Result<m::StatsResponse> {
        let guest = self.guest_after_hello()?;
        let figures = guest.figures(&request.container_id)?;
        let memory = guest::memory();
        let disks = guest::disks(Path::new("/sys/block"));
        Ok(m::StatsResponse {
            cpu_usage_ns: figures.cpu_usage_ns,
            cpu_user_ns: figures.cpu_user_ns,
            cpu_system_ns: figures.cpu_system_ns,
            memory_current_bytes: figures.memory_current_bytes,
            memory_peak_bytes: figures.memory_peak_bytes,
            memory_limit_bytes: figures.memory_limit_bytes,
            oom_kills: figures.oom_kills,
            pids_current: figures.pids_current,
            agent_resident_bytes: guest::agent_resident_bytes(),
            guest_memory_total_bytes: memory.total_bytes,
            guest_memory_available_bytes: memory.available_bytes,
            disk_read_bytes: disks.read_bytes,
            disk_written_bytes: disks.written_bytes,
            ..m::StatsResponse::default()
        })
    }

    async fn processes(
        &self,
        _: &TtrpcContext,
        request: m::ProcessesRequest,
    ) -> ttrpc::Result<m::InspectResponse> {
        let token = self.guest_after_hello()?.tell_processes(&request.container_id)?;
        Ok(m::InspectResponse { token, ..m::InspectResponse::default() })
    }

    async fn changes(
        &self,
        _: &TtrpcContext,
        request: m::ChangesRequest,
    ) -> ttrpc::Result<m::InspectResponse> {
        let token = self.guest_after_hello()?.tell_changes(&request.container_id)?;
        Ok(m::InspectResponse { token, ..m::InspectResponse::default() })
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: m::UpdateContainerRequest,
    ) -> ttrpc::Result<m::Empty> {
        let limit = Some(request.memory_limit_bytes).filter(|limit| *limit > 0);
        self.guest_after_hello()?.limit_memory(&request.container_id, limit).await?;
        Ok(m::Empty::new())
    }

    async fn copy_out(
        &self,
        _: &TtrpcContext,
        request: m::CopyOutRequest,
    ) -> ttrpc::Result<m::InspectResponse> {
        let token = self.guest_after_hello()?.copy_out(request)?;
        Ok(m::InspectResponse { token, ..m::InspectResponse::default() })
    }

    async fn copy_in(
        &self,
        _: &TtrpcContext,
        request: m::CopyInRequest,
    ) -> ttrpc::Result<m::InspectResponse> {
        let token = self.guest_after_hello()?.copy_in(request)?;
        Ok(m::InspectResponse { token, ..m::InspectResponse::default() })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: m::ConnectRequest,
    ) -> ttrpc::Result<m::ConnectResponse> {
        let guest = self.guest_after_hello()?;
        let token = guest.connect(&request.container_id, &request.address).await?;
        Ok(m::ConnectResponse { token, ..m::ConnectResponse::default() })
    }

    async fn listen(&self, _: &TtrpcContext, request: m::ListenRequest) -> ttrpc::Result<m::ListenResponse> {
        let guest = self.guest_after_hello()?;
        let listener = guest.listen(&request.container_id, &request.address).await?;
        Ok(m::ListenResponse { listener, ..m::ListenResponse::default() })
    }

    async fn accept(&self, _: &TtrpcContext, request: m::AcceptRequest) -> ttrpc::Result<m::ConnectResponse> {
        let token = self.guest_after_hello()?.accept(request.listener).await?;
        Ok(m::ConnectResponse { token, ..m::ConnectResponse::default() })
    }

    async fn forget(&self, _: &TtrpcContext, request: m::ForgetRequest) -> ttrpc::Result<m::Empty> {
        self.guest_after_hello()?.forget(&request.token);
        Ok(m::Empty::default())
    }

    async fn timeline(&self, _: &TtrpcContext, _: m::TimelineRequest) -> ttrpc::Result<m::TimelineResponse> {
        let guest = self.guest_after_hello()?;
        let stamp =
            |(name, at): (&str, u64)| m::GuestStamp { name: name.to_owned(), at, ..m::GuestStamp::default() };
        let mut response = m::TimelineResponse::new();
        response.agent = guest.config().marks.taken().map(stamp).collect();
        // A guest without a log that can be read has the agent's stamps still.
        if let Ok(log) = kernel_log() {
            (response.counter, response.clock_ns) = (log.counter, log.clock_ns);
            let init = log.init_ns.map(|at| ("init", at));
            // The kernel's clock counts from there.
            response.kernel = [("kernel_entry", 0)].into_iter().chain(init).map(stamp).collect();
        }
        Ok(response)
    }

    async fn probe_devices(
        &self,
        _: &TtrpcContext,
        _: m::ProbeDevicesRequest,
    ) -> ttrpc::Result<m::ProbeDevicesResponse> {
        self.guest_after_hello()?.only_of_containers(OWN_DEVICES)?;
        let disks = DeviceSlots::default().probe().map_err(|error| slot_status(&error))?;
        let disks = disks.into_iter().map(|GuestDisk { id, device, bytes }| m::Disk {
            id,
            device,
            bytes,
            ..m::Disk::default()
        });
        Ok(m::ProbeDevicesResponse { disks: disks.collect(), ..m::ProbeDevicesResponse::default() })
    }

    async fn release_device(
        &self,
        _: &TtrpcContext,
        request: m::ReleaseDeviceRequest,
    ) -> ttrpc::Result<m::Empty> {
        self.guest_after_hello()?.only_of_containers(OWN_DEVICES)?;
        DeviceSlots::default().release(&request.disk).map_err(|error| slot_status(&error))?;
        Ok(m::Empty::new())
    }

    async fn touch(&self, _: &TtrpcContext, request: m::TouchRequest) -> ttrpc::Result<m::Empty> {
        let guest = self.guest_after_hello()?;
        guest.only_of_containers("tells nobody of changes in shared directories")?;
        if request.paths.len() > TOUCHES_MAX {
            return Err(status(Code::INVALID_ARGUMENT, format!("more than {TOUCHES_MAX} paths")));
        }
        let guest = Arc::clone(guest);
        detached(async move { guest.touch(request.tag, request.paths).await }).await?;
        Ok(m::Empty::new())
    }

    async fn shutdown(&self, _: &TtrpcContext, request: m::ShutdownRequest) -> ttrpc::Result<m::Empty> {
        let guest = self.guest_after_hello()?;
        if !guest.ask_init(request.reboot)? {
            guest.request_end(ShutdownRequest { reboot: request.reboot, grace_ms: request.grace_ms });
        }
        Ok(m::Empty::new())
    }
}
