//! A guest that stopped answering is left at every stage of a sandbox, for every wish to end, and
//! its machine is gone then.
//!
//! The machine is a real one, in threads, whose kernel writes one byte to its console and is busy
//! from then on. Its agent is played here, and answers up to a stage.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use async_trait::async_trait;
use nelly_protocol::messages as m;
use nelly_protocol::service::{self, create_agent};
use nelly_vmm::boot::testing::{Segment, elf, note};
use nelly_vmm::config::{Endpoint, MachineConfig, MemorySize, VsockConfig};
use nelly_vmm::machine::{EndReason, Isolation, Machine, Resources};
use nelly_vmm::timeline::{Recorder, now_ns};
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::watch;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

use super::*;
use crate::instance::Sandbox;
use crate::spec::{ContainerSpec, Overrides, ProcessSpec};

/// Far below the minute after which a call fails by itself, and the two after which a start does;
/// far above what a busy machine takes.
const SOON: Duration = Duration::from_secs(45);

const ID: ProcessId<'_> = ProcessId { container: "c", exec: "" };

/// mov dx, 0x3f8; mov al, '.'; out dx, al; jmp $
const KERNEL: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee, 0xeb, 0xfe];

/// What a machine is started with, and this side of its console, which ends with the machine.
pub(crate) fn machine_of() -> (MachineConfig, Resources, UnixStream) {
    machine_of_code(KERNEL)
}

/// The same with this code as its kernel, which has a PVH entry too.
pub(crate) fn machine_of_code(code: &[u8]) -> (MachineConfig, Resources, UnixStream) {
    const ENTRY: u32 = 0x10_0000;
    let segment = Segment { address: ENTRY.into(), bytes: code, memory: 0x1000 };
    let notes = note("Xen", 18, &ENTRY.to_le_bytes());
    let mut kernel = nelly_vmm::sys::anonymous::memory_file("kernel").unwrap();
    kernel.write_all(&elf(ENTRY.into(), &[segment], &notes, &[])).unwrap();
    let (console, theirs) = UnixStream::pair().unwrap();
    console.set_read_timeout(Some(SOON)).unwrap();
    let mut resources = Resources::new();
    let mut config = MachineConfig::new(resources.add(OwnedFd::from(kernel)));
    config.memory_bytes = MemorySize::new(16 << 20).unwrap();
    config.vsock = Some(VsockConfig::default());
    let (input, output) = (resources.add(theirs.try_clone().unwrap()), resources.add(theirs));
    config.serial = Endpoint::Pair { input, output };
    (config, resources, console)
}

/// Reads the next byte of a console; `None` at the machine's end.
pub(crate) async fn next(console: &UnixStream) -> Option<u8> {
    let mut console = console.try_clone().unwrap();
    let read = move || {
        let mut byte = [0];
        (console.read(&mut byte).expect("the machine's console says something, or ends") == 1)
            .then_some(byte[0])
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

/// An agent that answers these calls, and forgets to answer all others.
struct Forgetful {
    answers: &'static [&'static str],
    /// Calls as they came.
    heard: watch::Sender<Vec<&'static str>>,
}

impl Forgetful {
    async fn hear<T>(&self, call: &'static str, answer: T) -> ttrpc::Result<T> {
        self.heard.send_modify(|heard| heard.push(call));
        if self.answers.contains(&call) { Ok(answer) } else { std::future::pending().await }
    }
}

#[async_trait]
impl service::Agent for Forgetful {
    async fn hello(&self, _: &TtrpcContext, _: m::HelloRequest) -> ttrpc::Result<m::HelloResponse> {
        self.hear("hello", m::HelloResponse::default()).await
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        _: m::CreateContainerRequest,
    ) -> ttrpc::Result<m::CreateContainerResponse> {
        let streams = m::StreamTokens { stdout: vec![1; 16], stderr: vec![2; 16], ..Default::default() };
        let answer = m::CreateContainerResponse { streams: Some(streams).into(), ..Default::default() };
        self.hear("create", answer).await
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        _: m::StartContainerRequest,
    ) -> ttrpc::Result<m::StartResponse> {
        self.hear("start", m::StartResponse::default()).await
    }

    async fn exec(&self, _: &TtrpcContext, _: m::ExecRequest) -> ttrpc::Result<m::StartResponse> {
        self.hear("exec", m::StartResponse::default()).await
    }

    async fn wait(&self, _: &TtrpcContext, _: m::WaitRequest) -> ttrpc::Result<m::WaitResponse> {
        self.hear("wait", m::WaitResponse::default()).await
    }

    async fn signal(&self, _: &TtrpcContext, _: m::SignalRequest) -> ttrpc::Result<m::Empty> {
        self.hear("signal", m::Empty::default()).await
    }

    async fn timeline(&self, _: &TtrpcContext, _: m::TimelineRequest) -> ttrpc::Result<m::TimelineResponse> {
        self.hear("timeline", m::TimelineResponse::default()).await
    }
}

/// A machine that runs, with such an agent.
struct Scene {
    sandbox: Sandbox,
    console: UnixStream,
    heard: watch::Receiver<Vec<&'static str>>,
    _server: Server,
    _place: tempfile::TempDir,
}

async fn scene(answers: &'static [&'static str]) -> Scene {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("agent");
    let (told, heard) = watch::channel(Vec::new());
    let agent = create_agent(Arc::new(Forgetful { answers, heard: told }));
    let listener = Listener::bind_unix(path.to_str().unwrap()).unwrap();
    let mut server = Server::new().register_service(agent).add_listener(listener);
    server.start().await.unwrap();
    let agent = Agent::new(UnixStream::connect(&path).unwrap()).unwrap();
    let (config, resources, console) = machine_of();
    let machine = Machine::start(&config, resources, &Isolation::Thread).unwrap();
    assert_eq!(next(&console).await, Some(b'.'));
    Scene { sandbox: Sandbox::played(agent, machine), console, heard, _server: server, _place: place }
}

fn process() -> ProcessSpec {
    let overrides = Overrides { command: vec!["x".into()], ..Default::default() };
    ProcessSpec::merge(&Default::default(), &overrides, "box").unwrap()
}

pub(crate) fn container() -> ContainerSpec {
    ContainerSpec::new(process(), "box")
}

/// How somebody wants the end: SIGTERM, the third Ctrl-C, the terminal's hang-up.
const WISHES: [(ProcessRequest, u8); 3] = [
    (ProcessRequest::Signal(Signal::TERM), 143),
    (ProcessRequest::Kill(Signal::INT), 130),
    (ProcessRequest::HangUp, 129),
];

/// What a stage is left with when, once `reached`, somebody has this wish, or when its time is
/// over.
async fn left<T>(
    wish: Option<ProcessRequest>,
    reached: impl Future<Output = ()>,
    stage: impl AsyncFnOnce(&mut Outside) -> T,
) -> T {
    let (send, requests) = unbounded_channel();
    let mut outside = Outside::new(requests, wish.is_none().then_some(Duration::from_secs(1)));
    let wishes = async {
        reached.await;
        if let Some(wish) = wish {
            send.send(wish).unwrap();
        }
        std::future::pending::<()>().await
    };
    let ended = async {
        tokio::select! {
            ended = stage(&mut outside) => ended,
            () = wishes => unreachable!("it waits for ever"),
        }
    };
    tokio::time::timeout(SOON, ended).await.expect("the guest kept its caller")
}

/// The exit that each wish leads to, the limit of time too.
fn wishes() -> impl Iterator<Item = (Option<ProcessRequest>, u8)> {
    WISHES.into_iter().map(|(wish, code)| (Some(wish), code)).chain([(None, 124)])
}

#[tokio::test]
async fn a_start_whose_agent_never_comes_is_left() {
    for (wish, code) in wishes() {
        let (config, resources, console) = machine_of();
        let runs = async {
            assert_eq!(next(&console).await, Some(b'.'));
        };
        let start = Sandbox::start(config, resources, Isolation::Thread, "box");
        let exit = left(wish, runs, async |outside| outside.during(start).await.err()).await;
        assert_eq!(exit.map(|exit| exit.code), Some(code));
        assert_eq!(next(&console).await, None, "its machine lives on");
    }
}

/// The stages that are calls of the agent, by the last that is heard.
#[tokio::test]
async fn an_agent_that_stops_answering_is_left_at_every_stage() {
    let stages: [(&str, &[&str]); 5] =
        [("hello", &[]), ("create", &[]), ("start", &["create"]), ("exec", &[]), ("wait", &[])];
    for (stage, answers) in stages {
        for (wish, code) in wishes() {
            let Scene { sandbox, console, mut heard, _server, _place } = scene(answers).await;
            let reached = async {
                heard.wait_for(|heard| heard.contains(&stage)).await.unwrap();
            };
            let (spec, process) = (container(), process());
            let exec = ProcessId { container: "c", exec: "e" };
            let agent = sandbox.agent();
            let exit: Option<Exit> = left(wish, reached, async |outside| match stage {
                "hello" => outside.during(agent.hello("box", 0, Vec::new(), None)).await.err(),
                "create" | "start" => outside.during(sandbox.run("c", &spec, "/dev/vda", None)).await.err(),
                "exec" => outside.during(sandbox.exec(exec, &process, None)).await.err(),
                _ => match outside.attend(agent, ID).await.unwrap() {
                    Ended::Left(exit) => Some(exit),
                    Ended::Exited(_) => None,
                },
            })
            .await;
            assert_eq!(exit.map(|exit| exit.code), Some(code), "{stage}");
            sandbox.machine().kill();
            assert_eq!(sandbox.machine().wait().reason, EndReason::Killed, "{stage}");
            assert_eq!(next(&console).await, None, "{stage}: its machine lives on");
        }
    }
}

#[tokio::test]
async fn an_end_whose_guest_tells_nothing_is_left() {
    for (wish, code) in wishes() {
        let Scene { sandbox, console, mut heard, _server, _place } = scene(&[]).await;
        let asked = async {
            heard.wait_for(|heard| heard.contains(&"timeline")).await.unwrap();
        };
        let recorder = Recorder::new(now_ns());
        let finish = sandbox.finish(&recorder);
        let exit = left(wish, asked, async |outside| outside.during(finish).await.err()).await;
        assert_eq!(exit.map(|exit| exit.code), Some(code));
        assert_eq!(next(&console).await, None, "its machine lives on");
    }
}
