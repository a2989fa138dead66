//! A keeper beside a guest that is played: its machines are real ones, in threads, whose kernel is
//! one byte long.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

use async_trait::async_trait;
use nelly_protocol::messages as m;
use nelly_protocol::service::{self as agent_service, create_agent};
use nelly_vmm::machine::{Isolation, Machine};
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

use super::sockets::{Open, Sockets};
use super::*;
use crate::agent::{Agent, Tokens};
use crate::connect::{Connection, ExecSpec};
use crate::instance::{SandboxError, Streams};
use crate::life::stages::{container, machine_of};
use crate::spec::HealthCheck;
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
        let agent = Agent::new(UnixStream::connect(&path).unwrap()).unwrap();
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
            guests.streams.lock().unwrap().push(theirs);
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
        let mut container = container();
        container.process.stdin = true;
        container.options.health.clone_from(&script.health);
        // A guest that answers is never given up because this machine is busy.
        let kill_patience = if script.deaf { Duration::from_millis(50) } else { GRACE };
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
            let start: Start = Box::new(move || Box::pin(Arc::clone(&guests).start()));
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

#[tokio::test]
async fn a_container_that_ends_leaves_its_exit_and_all_its_output() {
    let (scene, life) = Scene::new(Script::default(), RestartPolicy::No, GRACE);
    let script = async {
        scene.status(Status::Running).await;
        assert_eq!(*scene.begun.lock().unwrap(), Some(Ok(())));
        let mut stdout = scene.guests.streams.lock().unwrap()[0].stdout.take().unwrap();
        let writes = tokio::task::spawn_blocking(move || stdout.write_all(&vec![b'x'; 1 << 20]));
        writes.await.unwrap().unwrap();
        scene.guests.end("", 7);
    };
    let (ended, ()) = tokio::join!(life, script);
    assert_eq!((ended.exit.code, ended.exit.reason.as_str()), (7, "exited"));
    assert_eq!(scene.statuses(), [Status::Starting, Status::Running, Status::Stopping, Status::Exited]);
    let last = scene.keeper.state();
    assert_eq!((last.exit.unwrap().code, last.holder, last.stopped_by_command), (7, None, false));
    assert_eq!(scene.keeper.ended().await, ended);
}

#[tokio::test]
async fn stop_asks_first_and_kills_after_the_grace_and_no_policy_brings_it_back() {
    // Obeys, ignores, does not answer at all.
    let table: [(Script, Duration, u8, &str, &[u32]); 4] = [
        (Script { obeys: &[15], ..Default::default() }, GRACE, 143, "exited", &[15]),
        (Script { obeys: &[9], ..Default::default() }, Duration::from_millis(50), 137, "exited", &[15, 9]),
        (Script { obeys: &[9], ..Default::default() }, Duration::ZERO, 137, "exited", &[9]),
        (Script { deaf: true, ..Default::default() }, Duration::ZERO, 137, "killed", &[]),
    ];
    for (script, grace, code, reason, heard) in table {
        let (scene, life) = Scene::new(script.clone(), RestartPolicy::Always, grace);
        let stops = async {
            scene.status(Status::Running).await;
            scene.keeper.stop(None, None);
            // A second wish of somebody else changes nothing.
            scene.keeper.stop(None, None);
        };
        let (ended, ()) = tokio::join!(life, stops);
        assert_eq!((ended.exit.code, ended.exit.reason.as_str()), (code, reason), "{script:?}");
        let mut signals: Vec<u32> =
            scene.guests.heard.borrow().iter().map(|(_, signal, _)| *signal).collect();
        signals.dedup();
        assert_eq!(signals, heard, "{script:?}");
        assert!(scene.keeper.state().stopped_by_command);
        assert_eq!(*scene.guests.starts.borrow(), 1);
    }
}

#[tokio::test]
async fn a_keeper_that_is_told_to_end_ends_its_sandbox_and_no_user_has_stopped_it() {
    let script = Script { obeys: &[15], ..Default::default() };
    let (scene, life) = Scene::new(script, RestartPolicy::UnlessStopped, GRACE);
    let leaves = async {
        scene.status(Status::Running).await;
        scene.keeper.leave();
    };
    let (ended, ()) = tokio::join!(life, leaves);
    assert_eq!((ended.exit.code, *scene.guests.starts.borrow()), (143, 1));
    assert!(!scene.keeper.state().stopped_by_command);
}

#[tokio::test]
async fn a_policy_starts_it_again_so_often_and_the_last_exit_counts() {
    let script = Script { exits: vec![1, 2, 0], ..Default::default() };
    for (policy, code, starts) in
        [(RestartPolicy::No, 1, 1), (RestartPolicy::OnFailure(1), 2, 2), (RestartPolicy::OnFailure(0), 0, 3)]
    {
        let (scene, life) = Scene::new(script.clone(), policy, GRACE);
        let ended = life.await;
        assert_eq!((ended.exit.code, *scene.guests.starts.borrow()), (code, starts), "{policy}");
        assert_eq!(scene.keeper.state().restarts, u32::try_from(starts - 1).unwrap());
        assert_eq!(*scene.begun.lock().unwrap(), Some(Ok(())));
    }
}

#[tokio::test]
async fn a_wait_for_a_restart_ends_with_a_stop_and_with_another_policy() {
    // So many failures in a row that the next wait is long.
    let script = Script { exits: vec![1; 30], ..Default::default() };
    for stop in [true, false] {
        let (scene, life) = Scene::new(script.clone(), RestartPolicy::Always, GRACE);
        let ends = async {
            let mut starts = scene.guests.starts.subscribe();
            starts.wait_for(|starts| *starts == 3).await.unwrap();
            let mut state = scene.keeper.state.subscribe();
            state.wait_for(|state| state.restarts == 2 && state.status == Status::Starting).await.unwrap();
            if stop {
                scene.keeper.stop(None, None);
            } else {
                scene.keeper.policy.send_replace(RestartPolicy::No);
            }
        };
        let (ended, ()) = tokio::join!(life, ends);
        assert_eq!((ended.exit.code, scene.keeper.state().status), (1, Status::Exited));
        assert_eq!(*scene.guests.starts.borrow(), 3);
    }
}

#[tokio::test]
async fn a_machine_that_ends_without_a_word_is_told_as_the_reason() {
    let (scene, life) = Scene::new(Script::default(), RestartPolicy::No, GRACE);
    let kills = async {
        scene.status(Status::Running).await;
        let sandbox = scene.keeper.sandbox().clone().unwrap();
        sandbox.machine().kill();
        scene.guests.end("", BROKEN);
    };
    let (ended, ()) = tokio::join!(life, kills);
    assert_eq!((ended.exit.code, ended.exit.reason.as_str()), (125, "failed"));
    assert!(ended.detail.contains("the machine ended"), "{ended:?}");
    assert_eq!(scene.keeper.state().detail, ended.detail);
}

/// With real sockets.
async fn served<T>(scene: &Scene, work: impl AsyncFnOnce(Connection) -> T) -> T {
    let home = tempfile::tempdir().unwrap();
    let get = |name: &str| (name == "NELLY_HOME").then(|| home.path().to_owned());
    let runtime = RuntimeDir::make(get, Id::random().unwrap()).unwrap();
    let sockets = Sockets::serve(&runtime, &scene.keeper, &Open::default()).await.unwrap();
    let done = work(Connection::open(runtime.path()).await.unwrap()).await;
    sockets.close().await;
    done
}

#[tokio::test]
async fn an_exec_has_its_bytes_to_itself_and_ends_with_its_client() {
    let (scene, life) =
        Scene::new(Script { obeys: &[1, 15], ..Default::default() }, RestartPolicy::No, GRACE);
    let spec = ExecSpec { args: vec!["cat".into()], stdin: true, ..Default::default() };
    let client = async {
        scene.status(Status::Running).await;
        served(&scene, async |connection| {
            let exec = connection.exec(&spec).await.unwrap().unwrap();
            let far = scene.guests.streams.lock().unwrap().pop().unwrap();
            let claimed = exec.claimed.unwrap();
            claimed.streams.stdin.as_ref().unwrap().write_all(b"in").unwrap();
            far.stdout.as_ref().unwrap().write_all(b"out").unwrap();
            let (mut came, mut said) = ([0; 2], [0; 3]);
            far.stdin.as_ref().unwrap().read_exact(&mut came).unwrap();
            claimed.streams.stdout.as_ref().unwrap().read_exact(&mut said).unwrap();
            assert_eq!((&came, &said), (b"in", b"out"));
            assert_eq!(connection.state().await.unwrap().execs.len(), 1);
            // The client ends its input: so the process reads.
            claimed.streams.stdin.as_ref().unwrap().shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(far.stdin.as_ref().unwrap().read(&mut [0]).unwrap(), 0);
            let waits = connection.wait(&exec.id);
            scene.guests.ended.send_modify(|ended| {
                ended.insert(exec.id.clone(), 5);
            });
            assert_eq!(waits.await.unwrap().exit.code, 5);
            // A second one, whose client dies.
            let exec = connection.exec(&spec).await.unwrap().unwrap();
            drop(exec.claimed);
            scene.guests.heard(&exec.id, 1, true).await;
            assert_eq!(connection.wait(&exec.id).await.unwrap().exit.code, 129);
            // A detached one lives on.
            let detached = ExecSpec { detach: true, stdin: false, ..spec.clone() };
            let exec = connection.exec(&detached).await.unwrap().unwrap();
            assert!(exec.claimed.is_none());
            assert!(connection.wait("nobody").await.is_err());
        })
        .await;
        scene.keeper.stop(None, None);
    };
    let (ended, ()) = tokio::join!(life, client);
    assert_eq!(ended.exit.code, 143);
}

/// What an attachment was sent: output, and what was lost; read to its end.
fn frames(mut stream: UnixStream) -> (Vec<u8>, u64) {
    let (mut all, mut decoder, mut said, mut lost) = (Vec::new(), Decoder::default(), Vec::new(), 0);
    stream.read_to_end(&mut all).unwrap();
    decoder.push(&all);
    while let Some(frame) = decoder.take().unwrap() {
        match frame {
            Frame::Bytes(_, bytes) => said.extend(bytes),
            Frame::Lost(count) => lost += count,
        }
    }
    (said, lost)
}

/// Reads output of an attachment until this came.
async fn until(stream: &UnixStream, wanted: &[u8]) {
    let (mut stream, wanted) = (stream.try_clone().unwrap(), wanted.to_owned());
    let reads = move || {
        let (mut decoder, mut said, mut buffer) = (Decoder::default(), Vec::new(), [0; 512]);
        while !said.ends_with(&wanted) {
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0, "it ended after {said:?}");
            decoder.push(&buffer[..count]);
            while let Some(frame) = decoder.take().unwrap() {
                if let Frame::Bytes(_, bytes) = frame {
                    said.extend(bytes);
                }
            }
        }
    };
    tokio::task::spawn_blocking(reads).await.unwrap();
}

#[tokio::test]
async fn a_policy_that_cannot_be_written_yet_holds_up_no_other_client() {
    let (scene, life) = Scene::new(Script { obeys: &[15], ..Default::default() }, RestartPolicy::No, GRACE);
    let clients = async {
        scene.status(Status::Running).await;
        served(&scene, async |connection| {
            let record = Arc::clone(&scene.record);
            let (go, waits) = std::sync::mpsc::channel::<()>();
            let (taken, is_taken) = tokio::sync::oneshot::channel();
            let holds = tokio::task::spawn_blocking(move || {
                let _held = record.lock().unwrap();
                taken.send(()).unwrap();
                waits.recv().unwrap();
            });
            is_taken.await.unwrap();
            let other = async {
                // Answered while the other call waits.
                assert_eq!(connection.state().await.unwrap().restart, "no");
                go.send(()).unwrap();
            };
            let always = Change { restart: Some(RestartPolicy::Always), ..Change::default() };
            let (set, ()) = tokio::join!(connection.update(always), other);
            set.unwrap();
            holds.await.unwrap();
            assert_eq!(connection.state().await.unwrap().restart, "always");
        })
        .await;
        scene.keeper.stop(None, None);
    };
    tokio::join!(life, clients);
}

#[tokio::test]
async fn a_session_outlives_its_clients_and_tells_its_code_to_whoever_is_there() {
    let (scene, life) =
        Scene::new(Script { obeys: &[1, 15], ..Default::default() }, RestartPolicy::No, GRACE);
    let spec = ExecSpec {
        args: vec!["sh".into()],
        stdin: true,
        session: true,
        terminal: true,
        ..Default::default()
    };
    let client = async {
        scene.status(Status::Running).await;
        served(&scene, async |connection| {
            let exec = connection.exec(&spec).await.unwrap().unwrap();
            let stream = exec.claimed.as_ref().unwrap().streams.stdin.as_ref().unwrap().try_clone().unwrap();
            // A terminal has one stream both ways.
            let mut far = scene.guests.streams.lock().unwrap().pop().unwrap().stdin.unwrap();
            far.write_all(b"$ ").unwrap();
            until(&stream, b"$ ").await;
            let mut typed = [0; 2];
            (&stream).write_all(b"ls").unwrap();
            let typed = tokio::task::spawn_blocking(move || {
                far.read_exact(&mut typed).unwrap();
                (far, typed)
            });
            let (mut far, typed) = typed.await.unwrap();
            assert_eq!(&typed, b"ls");
            let one = &connection.state().await.unwrap().execs[0];
            assert_eq!((one.session, one.attached, one.terminal), (true, 1, true));
            assert!(one.started_unix_ns > 0 && one.args == ["sh"]);
            // Its client dies: it goes on, and what it says is held.
            drop((stream, exec.claimed));
            let mut execs = connection.state().await.unwrap().execs;
            while execs[0].attached > 0 {
                tokio::task::yield_now().await;
                execs = connection.state().await.unwrap().execs;
            }
            far.write_all(b"more ").unwrap();
            // Two come back, by the beginning of its id; both see the latest.
            let beginning = &exec.id[..6];
            let back = [
                connection.attach(beginning, true).await.unwrap(),
                connection.attach(&exec.id, false).await.unwrap(),
            ];
            assert!(back.iter().all(|one| one.exec == exec.id && one.terminal));
            assert_eq!(back.each_ref().map(|one| one.stdin), [true, false]);
            let streams = back.map(|one| (one.claimed.streams.stdin.unwrap(), one.claimed.connection));
            for (stream, _) in &streams {
                until(stream, b"$ more ").await;
            }
            assert_eq!(connection.state().await.unwrap().execs[0].attached, 2);
            assert_eq!(scene.guests.heard.borrow().iter().filter(|(exec, ..)| !exec.is_empty()).count(), 0);
            // Its end is everybody's, also of one that comes later.
            far.write_all(b"bye").unwrap();
            drop(far);
            scene.guests.ended.send_modify(|ended| {
                ended.insert(exec.id.clone(), 6);
            });
            for (stream, _) in streams {
                let read = tokio::task::spawn_blocking(move || frames(stream));
                assert_eq!(read.await.unwrap(), (b"bye".to_vec(), 0));
            }
            assert_eq!(connection.wait(beginning).await.unwrap().exit.code, 6);
            assert_eq!(connection.state().await.unwrap().execs, []);
            let late = connection.attach(beginning, true).await.unwrap();
            let read = tokio::task::spawn_blocking(move || frames(late.claimed.streams.stdin.unwrap()))
                .await
                .unwrap();
            assert_eq!(read, (b"$ more bye".to_vec(), 0));
            // What is no session, or nothing, is refused.
            let plain = ExecSpec { session: false, ..spec.clone() };
            let plain = connection.exec(&plain).await.unwrap().unwrap();
            let refused = connection.attach(&plain.id, false).await.unwrap_err().to_string();
            assert!(refused.contains("no session"), "{refused}");
            assert!(connection.attach("none", false).await.unwrap_err().to_string().contains("none"));
            let both = ExecSpec { detach: true, ..spec.clone() };
            assert!(connection.exec(&both).await.is_err());
        })
        .await;
        scene.keeper.stop(None, None);
    };
    tokio::join!(life, client);
}

#[tokio::test]
async fn the_end_of_a_sessions_first_input_is_told_and_its_death_is_not() {
    let (scene, life) = Scene::new(Script { obeys: &[15], ..Default::default() }, RestartPolicy::No, GRACE);
    let spec = ExecSpec { args: vec!["cat".into()], stdin: true, session: true, ..Default::default() };
    let client = async {
        scene.status(Status::Running).await;
        served(&scene, async |connection| {
            for dies in [true, false] {
                let exec = connection.exec(&spec).await.unwrap().unwrap();
                let far = scene.guests.streams.lock().unwrap().pop().unwrap();
                let mut reads = far.stdin.unwrap();
                let claimed = exec.claimed.unwrap();
                let stream = claimed.streams.stdin.unwrap();
                (&stream).write_all(b"said").unwrap();
                if dies {
                    // Its stream first, as the system may close them.
                    drop(stream);
                    drop(claimed.connection);
                    // A later client types on.
                    let later = connection.attach(&exec.id, true).await.unwrap();
                    let stream = later.claimed.streams.stdin.unwrap();
                    (&stream).write_all(b" more").unwrap();
                    // The end of its input is not that of the process.
                    stream.shutdown(std::net::Shutdown::Write).unwrap();
                    let mut came = [0; 9];
                    let came = tokio::task::spawn_blocking(move || {
                        reads.read_exact(&mut came).unwrap();
                        reads.set_nonblocking(true).unwrap();
                        (came, reads.read(&mut [0]).map_err(|error| error.kind()))
                    });
                    let open = Err(std::io::ErrorKind::WouldBlock);
                    assert_eq!(came.await.unwrap(), (*b"said more", open));
                } else {
                    stream.shutdown(std::net::Shutdown::Write).unwrap();
                    let mut came = String::new();
                    let came = tokio::task::spawn_blocking(move || {
                        reads.read_to_string(&mut came).unwrap();
                        came
                    });
                    assert_eq!(came.await.unwrap(), "said");
                }
            }
        })
        .await;
        scene.keeper.stop(None, None);
    };
    tokio::join!(life, client);
}

#[tokio::test]
async fn clients_at_once_get_one_order_and_all_of_them_an_answer() {
    let (scene, life) =
        Scene::new(Script { obeys: &[15], ..Default::default() }, RestartPolicy::Always, GRACE);
    let clients = async {
        scene.status(Status::Running).await;
        served(&scene, async |connection| {
            connection.pause().await.unwrap();
            assert_eq!(scene.keeper.state().status, Status::Paused);
            assert!(connection.pause().await.unwrap_err().to_string().contains("paused"));
            let spec = ExecSpec { args: vec!["x".into()], ..Default::default() };
            assert!(connection.exec(&spec).await.unwrap_err().to_string().contains("paused"));
            connection.resume().await.unwrap();
            connection.pause().await.unwrap();
            // A stop wakes it, and everybody hears of the same end.
            let (one, two, three) =
                tokio::join!(connection.stop(None, None), connection.stop(None, None), connection.wait(""));
            let codes = [one, two, three].map(|end| end.unwrap().exit.code);
            assert_eq!(codes, [143; 3]);
            assert!(connection.kill("", Signal::TERM).await.is_err());
        })
        .await;
    };
    tokio::join!(life, clients);
}

mod containers;
mod health;
