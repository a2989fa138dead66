//! A keeper beside a guest that is played: its machines are real ones, in threads, whose kernel is
//! one byte long.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::OnceLock;

use async_trait::async_trait;
use nelly_protocol::messages as m;
use nelly_protocol::service::{self as agent_service, create_agent};
use nelly_vmm::config::Platform;
use nelly_vmm::machine::{Isolation, Machine};
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

use self::boots::Booted;
use super::sockets::{Open, Sockets};
use super::*;
use crate::agent::lies::{Lie, liar};
use crate::agent::{Agent, Tokens};
use crate::connect::{Connection, ExecSpec};
use crate::instance::{SandboxError, Streams};
use crate::life::stages::{container, machine_of};
use crate::spec::{HealthCheck, Relay};
use crate::state::{Id, RuntimeDir};
use crate::wire::frames::{Decoder, Frame};

/// Ends a test that hangs: far above what a busy machine takes, whose vCPUs all spin here.
const SOON: Duration = Duration::from_secs(300);

/// The code of a process whose agent is gone: its connection breaks.
const BROKEN: u32 = u32::MAX;

/// What a played guest does.
#[derive(Clone, Debug, Default)]
struct Script {
    /// Signals that end the container; others are only heard.
    obeys: &'static [u32],
    /// Exit codes of starts that end by themselves, in order; later ones run.
    exits: Vec<u32>,
    /// Nothing that is asked of the agent while the container runs is answered.
    deaf: bool,
    /// The container's health check.
    health: Option<HealthCheck>,
    /// The container's relays.
    relays: Vec<Relay>,
    /// Execs are started only once a test lets them.
    holds_execs: bool,
    /// Asked for this, it lies in this way, and says nothing true any more.
    lies: Option<(&'static str, Lie)>,
}

/// The guests of one sandbox, over all its starts.
struct Guests {
    script: Script,
    starts: watch::Sender<usize>,
    /// Execs that were asked for.
    execs: watch::Sender<Vec<m::ExecRequest>>,
    /// Execs whose results were deleted.
    deleted: watch::Sender<Vec<String>>,
    /// Signals as they came: exec, number, whether for the group.
    heard: watch::Sender<Vec<(String, u32, bool)>>,
    /// Codes with which processes ended: the first one's under "".
    ended: watch::Sender<BTreeMap<String, u32>>,
    /// How many execs may start, if they are held.
    lets: tokio::sync::Semaphore,
    /// The other ends of the first process's and of execs' streams.
    streams: Mutex<Vec<Streams>>,
}

struct Played {
    guests: Arc<Guests>,
    machine: Arc<OnceLock<Arc<Machine>>>,
}

impl Played {
    async fn deaf(&self) {
        if self.guests.script.deaf {
            std::future::pending::<()>().await;
        }
    }
}

fn streams(stdio: &m::Stdio) -> m::StreamTokens {
    let token = |asked: bool, fill: u8| if asked { vec![fill; 16] } else { Vec::new() };
    m::StreamTokens {
        stdin: token(stdio.stdin, 1),
        stdout: token(stdio.stdout, 2),
        stderr: token(stdio.stderr, 3),
        ..Default::default()
    }
}

/// How a process is named here: the first container's by its exec alone.
fn key(container: &str, exec: &str) -> String {
    if container == "c" { exec.to_owned() } else { format!("{container}{exec}") }
}

#[async_trait]
impl agent_service::Agent for Played {
    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: m::CreateContainerRequest,
    ) -> ttrpc::Result<m::CreateContainerResponse> {
        let streams = Some(streams(&request.stdio)).into();
        Ok(m::CreateContainerResponse { streams, ..Default::default() })
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: m::StartContainerRequest,
    ) -> ttrpc::Result<m::StartResponse> {
        if request.container_id != "c" {
            return Ok(m::StartResponse::default());
        }
        self.guests.ended.send_modify(|ended| {
            ended.remove("");
        });
        let start = *self.guests.starts.borrow();
        self.guests.starts.send_modify(|starts| *starts += 1);
        if let Some(code) = self.guests.script.exits.get(start) {
            // Its output ends with it, as nobody waits for what never comes.
            self.guests.streams.lock().unwrap().clear();
            self.guests.ended.send_modify(|ended| {
                ended.insert(String::new(), *code);
            });
        }
        Ok(m::StartResponse::default())
    }

    async fn exec(&self, _: &TtrpcContext, request: m::ExecRequest) -> ttrpc::Result<m::StartResponse> {
        self.deaf().await;
        let streams = Some(streams(&request.stdio)).into();
        self.guests.execs.send_modify(|execs| execs.push(request));
        if self.guests.script.holds_execs {
            self.guests.lets.acquire().await.unwrap().forget();
        }
        Ok(m::StartResponse { streams, ..Default::default() })
    }

    async fn wait(&self, _: &TtrpcContext, request: m::WaitRequest) -> ttrpc::Result<m::WaitResponse> {
        let process = key(&request.container_id, &request.exec_id);
        let mut ended = self.guests.ended.subscribe();
        let ended = ended.wait_for(|ended| ended.contains_key(&process)).await;
        let exit_code = ended.expect("the guests outlive their agents")[&process];
        if exit_code == BROKEN {
            return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INTERNAL, "gone".to_owned())));
        }
        Ok(m::WaitResponse { exit_code, ..Default::default() })
    }

    async fn signal(&self, _: &TtrpcContext, request: m::SignalRequest) -> ttrpc::Result<m::Empty> {
        self.deaf().await;
        let process = key(&request.container_id, &request.exec_id);
        self.guests.heard.send_modify(|heard| heard.push((process.clone(), request.signal, request.group)));
        if self.guests.script.obeys.contains(&request.signal) {
            if process.is_empty() {
                self.guests.streams.lock().unwrap().clear();
            }
            self.guests.ended.send_modify(|ended| {
                ended.insert(process, 128 + request.signal);
            });
        }
        Ok(m::Empty::default())
    }

    async fn state(&self, _: &TtrpcContext, request: m::StateRequest) -> ttrpc::Result<m::StateResponse> {
        let runs = !self.guests.ended.borrow().contains_key("");
        let state = m::ContainerState {
            id: request.container_id,
            status: m::container_state::Status::RUNNING.into(),
            pid: u32::from(runs),
            ..Default::default()
        };
        Ok(m::StateResponse { containers: vec![state], ..Default::default() })
    }

    async fn probe_devices(
        &self,
        _: &TtrpcContext,
        _: m::ProbeDevicesRequest,
    ) -> ttrpc::Result<m::ProbeDevicesResponse> {
        let machine = Arc::clone(self.machine.get().unwrap());
        let devices = tokio::task::spawn_blocking(move || machine.inspect().unwrap().devices).await.unwrap();
        let named =
            devices.into_iter().filter(|device| device.kind == "block").filter_map(|device| device.name);
        let disk = |id| m::Disk { id, device: "/dev/vdz".to_owned(), ..Default::default() };
        Ok(m::ProbeDevicesResponse { disks: named.map(disk).collect(), ..Default::default() })
    }

    async fn release_device(&self, _: &TtrpcContext, _: m::ReleaseDeviceRequest) -> ttrpc::Result<m::Empty> {
        Ok(m::Empty::default())
    }

    async fn delete_exec(&self, _: &TtrpcContext, request: m::DeleteExecRequest) -> ttrpc::Result<m::Empty> {
        self.guests.deleted.send_modify(|deleted| deleted.push(request.exec_id));
        Ok(m::Empty::default())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: m::ShutdownRequest) -> ttrpc::Result<m::Empty> {
        if let Some(machine) = self.machine.get() {
            machine.kill();
        }
        Ok(m::Empty::default())
    }
}

impl Guests {
    fn new(script: Script) -> Arc<Self> {
        Arc::new(Self {
            script,
            starts: watch::Sender::default(),
            execs: watch::Sender::default(),
            deleted: watch::Sender::default(),
            heard: watch::Sender::default(),
            ended: watch::Sender::default(),
            lets: tokio::sync::Semaphore::new(0),
            streams: Mutex::default(),
        })
    }

    /// Starts a machine with a played agent.
    async fn start(self: Arc<Self>) -> Result<Sandbox, SandboxError> {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("agent");
        let machine_of_agent = Arc::new(OnceLock::new());
        let played = Played { guests: Arc::clone(&self), machine: Arc::clone(&machine_of_agent) };
        let listener = Listener::bind_unix(path.to_str().unwrap()).unwrap();
        let mut server =
            Server::new().register_service(create_agent(Arc::new(played))).add_listener(listener);
        server.start().await.unwrap();
        let agent = match self.script.lies {
            None => Agent::new(UnixStream::connect(&path).unwrap()).unwrap(),
            Some((at, lie)) => {
                let (near, far) = UnixStream::pair().unwrap();
                far.set_nonblocking(true).unwrap();
                tokio::spawn(liar(tokio::net::UnixStream::from_std(far).unwrap(), Some(at), lie));
                Agent::new(near).unwrap()
            }
        };
        // It serves for as long as the test's runtime runs.
        std::mem::forget(server);
        let (mut config, resources, _console) = machine_of();
        config.spare_slots = 1;
        let machine = Machine::start(&config, resources, &Isolation::Thread).unwrap();
        let guests = Arc::clone(&self);
        let dials = move |tokens: Tokens| {
            let mut theirs = Streams::default();
            let mut pair = |wanted: bool, far: fn(&mut Streams) -> &mut Option<UnixStream>| {
                wanted.then(|| {
                    let (near, other) = UnixStream::pair().unwrap();
                    *far(&mut theirs) = Some(other);
                    near
                })
            };
            let ours = Streams {
                stdin: pair(tokens.stdin.is_some(), |streams| &mut streams.stdin),
                stdout: pair(tokens.stdout.is_some(), |streams| &mut streams.stdout),
                stderr: pair(tokens.stderr.is_some(), |streams| &mut streams.stderr),
            };
            // What a liar's processes say is at its end.
            if guests.script.lies.is_none() {
                guests.streams.lock().unwrap().push(theirs);
            }
            ours
        };
        let sandbox = Sandbox::played(agent, machine).dialling(Box::new(dials));
        assert!(machine_of_agent.set(sandbox.shared_machine()).is_ok());
        Ok(sandbox)
    }

    /// The first process ends with this code, its output with it.
    fn end(&self, exec: &str, code: u32) {
        self.streams.lock().unwrap().clear();
        self.ended.send_modify(|ended| {
            ended.insert(exec.to_owned(), code);
        });
    }

    async fn heard(&self, exec: &str, signal: u32, group: bool) {
        let mut heard = self.heard.subscribe();
        let wanted = (exec.to_owned(), signal, group);
        heard.wait_for(|heard| heard.contains(&wanted)).await.unwrap();
    }
}

/// A sandbox whose life is lived beside the test.
struct Scene {
    keeper: Arc<Keeper>,
    guests: Arc<Guests>,
    written: Arc<Mutex<Vec<SandboxState>>>,
    /// Held while the record cannot be written.
    record: Arc<Mutex<()>>,
    begun: Arc<Mutex<Option<Begun>>>,
}

impl Scene {
    fn new(script: Script, restart: RestartPolicy, grace: Duration) -> (Self, impl Future<Output = Ended>) {
        Self::of(script, restart, grace, None)
    }

    /// A machine of `nelly boot`, described to its guest in this way.
    fn booted(platform: Platform, grace: Duration) -> (Self, impl Future<Output = Ended>) {
        Self::of(Script::default(), RestartPolicy::No, grace, Some(Booted { platform, ..Booted::default() }))
    }

    /// Another one.
    fn of_guest(booted: Booted) -> (Self, impl Future<Output = Ended>) {
        Self::of(Script::default(), RestartPolicy::No, GRACE, Some(booted))
    }

    fn of(
        script: Script,
        restart: RestartPolicy,
        grace: Duration,
        booted: Option<Booted>,
    ) -> (Self, impl Future<Output = Ended>) {
        let mut container = container();
        (container.process.stdin, container.process.terminal) = (true, booted.is_some());
        container.options.health.clone_from(&script.health);
        container.options.relays.clone_from(&script.relays);
        // A guest that answers is never given up because this machine is busy.
        let answers = !script.deaf && script.lies.is_none();
        let kill_patience = if answers { GRACE } else { Duration::from_millis(50) };
        let (id, stop_signal) = ("c".into(), Signal::TERM);
        let kept = Kept {
            id,
            container,
            stop_signal,
            stop_grace: grace,
            kill_patience,
            restart,
            memory: MemorySize::default(),
            size: None,
            foreground: false,
            booted: booted.is_some(),
        };
        let written = Arc::new(Mutex::new(Vec::new()));
        let writes = Arc::clone(&written);
        let record = Arc::new(Mutex::new(()));
        let held = Arc::clone(&record);
        let books = Books {
            state: Box::new(move |state| writes.lock().unwrap().push(state.clone())),
            change: Box::new(move |_| {
                // As long as somebody else has the lock of the state directory.
                drop(held.lock().unwrap());
                Ok(())
            }),
            log: Box::new(|_| Ok(Box::new(|_, _| {}))),
            forget: Box::new(|_| {}),
        };
        let output = Output::new(Box::new(|_, _| {}));
        let (keeper, mut requests) = Keeper::new(kept, SandboxState::created(), books, output);
        let guests = Guests::new(script);
        let begun = Arc::new(Mutex::new(None));
        let scene = Self {
            keeper: Arc::clone(&keeper),
            guests: Arc::clone(&guests),
            written,
            record,
            begun: Arc::clone(&begun),
        };
        let life = async move {
            let start: Start = Box::new(move || match booted {
                Some(booted) => Box::pin(boots::start(booted)),
                None => Box::pin(Arc::clone(&guests).start()),
            });
            let tell = |how| *begun.lock().unwrap() = Some(how);
            let lived = keeper.run(&start, &mut requests, tell);
            tokio::time::timeout(SOON, lived).await.expect("the guest kept its keeper")
        };
        (scene, life)
    }

    async fn status(&self, status: Status) {
        let mut state = self.keeper.state.subscribe();
        state.wait_for(|state| state.status == status).await.unwrap();
    }

    /// The order of the states that were written, each once.
    fn statuses(&self) -> Vec<Status> {
        let mut all: Vec<_> = self.written.lock().unwrap().iter().map(|state| state.status).collect();
        all.dedup();
        all
    }
}

const GRACE: Duration = Duration::from_secs(30);

/// With real sockets.
async fn served<T>(scene: &Scene, work: impl AsyncFnOnce(Connection) -> T) -> T {
    served_at(scene, async |_, connection| work(connection).await).await
}

/// The same, for further clients.
async fn served_at<T>(scene: &Scene, work: impl AsyncFnOnce(PathBuf, Connection) -> T) -> T {
    let home = tempfile::tempdir().unwrap();
    let get = |name: &str| (name == "NELLY_HOME").then(|| home.path().to_owned());
    let runtime = RuntimeDir::make(get, Id::random().unwrap()).unwrap();
    let sockets = Sockets::serve(&runtime, &scene.keeper, &Open::default()).await.unwrap();
    let connection = Connection::open(runtime.path()).await.unwrap();
    let done = work(runtime.path().to_owned(), connection).await;
    sockets.close().await;
    done
}

mod boots;
mod clients;
mod containers;
mod execs;
mod health;
mod lies;
mod life;
mod sessions;
