//! What is given up leaves nothing, whatever the monitor does instead of answering.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nelly_protocol::messages as m;
use nelly_protocol::service::{Agent, create_agent};
use nelly_sandbox::agent::{ProcessId, Token};
use nelly_sandbox::instance::{Sandbox, SandboxError};
use nelly_sandbox::life::Outside;
use nelly_sandbox::spec::{ContainerSpec, ProcessSpec, Rights};
use nelly_vmm::config::{FileSource, MachineConfig};
use nelly_vmm::machine::{ControlError, Isolation, Resources};
use nelly_vmm::timeline::{Recorder, now_ns};
use tokio::sync::mpsc::unbounded_channel;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

/// An agent that starts execs and no containers.
struct Scripted;

fn streams() -> m::StreamTokens {
    let token = || Token::default().to_vec();
    m::StreamTokens { stdin: token(), stdout: token(), stderr: token(), ..Default::default() }
}

#[async_trait]
impl Agent for Scripted {
    async fn hello(&self, _: &TtrpcContext, _: m::HelloRequest) -> ttrpc::Result<m::HelloResponse> {
        Ok(m::HelloResponse::default())
    }

    async fn exec(&self, _: &TtrpcContext, _: m::ExecRequest) -> ttrpc::Result<m::StartResponse> {
        Ok(m::StartResponse { pid: 1, streams: Some(streams()).into(), ..Default::default() })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        _: m::CreateContainerRequest,
    ) -> ttrpc::Result<m::CreateContainerResponse> {
        Ok(m::CreateContainerResponse { streams: Some(streams()).into(), ..Default::default() })
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        _: m::StartContainerRequest,
    ) -> ttrpc::Result<m::StartResponse> {
        let failure = m::StartFailure {
            kind: m::start_failure::Kind::NOT_FOUND.into(),
            message: "no such program".into(),
            ..Default::default()
        };
        Ok(m::StartResponse { failure: Some(failure).into(), ..Default::default() })
    }

    async fn wait(&self, _: &TtrpcContext, _: m::WaitRequest) -> ttrpc::Result<m::WaitResponse> {
        std::future::pending().await
    }
}

/// A place with a false monitor in it, which runs `script`.
struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    fn new(script: &str) -> Self {
        let bench = Self { directory: tempfile::tempdir().unwrap() };
        fs::write(bench.at("monitor"), format!("#!/bin/sh\ncd {}\n{script}\n", bench.at("").display()))
            .unwrap();
        fs::set_permissions(bench.at("monitor"), fs::Permissions::from_mode(0o755)).unwrap();
        bench
    }

    /// One that comes to `stage`, see `monitor.py`.
    fn taken_over(stage: &str) -> Self {
        // A python that needs none of the environment, which a monitor does not get.
        let found =
            Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
        let python = String::from_utf8(found.stdout).unwrap();
        let bench = Self::new(&format!("exec {} monitor.py {stage} mark agent", python.trim()));
        fs::write(bench.at("monitor.py"), include_str!("monitor.py")).unwrap();
        bench
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn start(&self) -> Result<Sandbox, SandboxError> {
        let isolation = Isolation::Process { monitor: self.at("monitor") };
        Sandbox::start(MachineConfig::new(FileSource::Fd(0)), Resources::new(), isolation, "box").await
    }

    /// Waits for what the monitor says last, its number.
    async fn marked(&self, name: &str) -> String {
        loop {
            if let Ok(pid) = fs::read_to_string(self.at(name)) {
                return pid.trim().to_owned();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Does `work` until the monitor has come to its stage, and gives it up.
    async fn give_up(&self, work: impl Future) -> String {
        tokio::select! {
            _ = work => panic!("it came to an end"),
            pid = self.marked("mark") => pid,
        }
    }
}

/// Whether the process is there, a zombie too.
fn exists(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

/// Runs `test`, and ends with everything that it left behind in threads.
fn run(test: impl Future<Output = String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let pid = runtime.block_on(test);
    drop(runtime);
    assert!(!exists(&pid), "{pid} lives on");
}

#[test]
fn a_monitor_that_does_not_answer_is_killed_when_its_start_is_dropped() {
    // One that waits for something else, and one that is stopped: it would not even read that its
    // holder is gone.
    for instead in ["exec sleep 1000", "kill -STOP $$"] {
        let bench = Bench::new(&format!("echo $$ > mark.new && mv mark.new mark\n{instead}"));
        run(async {
            let pid = bench.give_up(bench.start()).await;
            assert!(!exists(&pid), "{instead:?} lives on");
            pid
        });
    }
}

#[test]
fn a_start_is_given_up_at_every_stage() {
    for stage in ["start", "listen", "ready", "word", "connect", "hello"] {
        let bench = Bench::taken_over(stage);
        run(async {
            let pid = bench.give_up(bench.start()).await;
            assert!(!exists(&pid), "{stage}: it lives on");
            pid
        });
    }
}

#[test]
fn a_monitor_that_says_that_it_ended_and_lives_on_can_be_given_up() {
    let bench = Bench::taken_over("ended");
    run(async { bench.give_up(bench.start()).await });
}

fn process() -> ProcessSpec {
    ProcessSpec {
        args: vec!["true".into()],
        env: Vec::new(),
        cwd: "/".into(),
        user: String::new(),
        terminal: false,
        stdin: true,
        rights: Rights::default(),
    }
}

/// A sandbox whose monitor answers no more.
async fn up(bench: &Bench) -> (Sandbox, Server) {
    let listener = Listener::bind_unix(bench.at("agent").to_str().unwrap()).unwrap();
    let mut server = Server::new().register_service(create_agent(Arc::new(Scripted))).add_listener(listener);
    server.start().await.unwrap();
    (bench.start().await.unwrap(), server)
}

#[test]
fn what_is_asked_of_a_machine_is_taken_back_when_it_is_given_up() {
    for stage in ["exec", "serial"] {
        let bench = Bench::taken_over(stage);
        run(async {
            let (sandbox, _server) = up(&bench).await;
            let process = process();
            let exec = sandbox.exec(ProcessId { container: "c", exec: "e" }, &process, None);
            match stage {
                "exec" => bench.give_up(exec).await,
                _ => bench.give_up(sandbox.serial()).await,
            };
            let pid = bench.marked("mark2").await;
            sandbox.machine().kill();
            pid
        });
    }
}

#[test]
fn a_finish_is_given_up_while_the_guests_counter_is_asked_for() {
    let bench = Bench::taken_over("counter");
    run(async {
        let (sandbox, _server) = up(&bench).await;
        let client = Recorder::new(now_ns());
        let pid = bench.give_up(sandbox.finish(&client)).await;
        assert!(!exists(&pid), "it lives on");
        pid
    });
}

/// Far below the minute after which a call of the agent fails by itself.
const SOON: Duration = Duration::from_secs(20);

/// What comes of `work` once the monitor is gone.
async fn told<T, E>(work: impl Future<Output = Result<T, E>>) -> E {
    let told = tokio::time::timeout(SOON, work).await.expect("a monitor that is gone keeps nobody");
    told.err().expect("nobody is left to answer")
}

/// Its sockets stay open behind it, so that nothing but its process tells the end.
#[test]
fn a_start_ends_with_the_monitors_process_at_every_stage() {
    for stage in ["start", "listen", "ready", "word", "connect", "hello"] {
        let bench = Bench::taken_over(&format!("gone-{stage}"));
        run(async {
            let error = told(bench.start()).await;
            assert!(
                matches!(error, SandboxError::Start(_) | SandboxError::Guest { .. }),
                "{stage}: {error:?}"
            );
            bench.marked("mark").await
        });
    }
}

#[test]
fn every_wait_of_a_sandbox_ends_with_the_monitors_process() {
    for stage in ["exec", "serial"] {
        let bench = Bench::taken_over(&format!("gone-{stage}"));
        run(async {
            let (sandbox, _server) = up(&bench).await;
            let id = ProcessId { container: "c", exec: "e" };
            let first = match stage {
                "exec" => told(sandbox.exec(id, &process(), None)).await,
                _ => told(sandbox.serial()).await,
            };
            // The same, told by the wait itself where it was woken by the half of an answer.
            let ended = match &first {
                SandboxError::Guest { what, .. } => what.starts_with("the machine ended: "),
                SandboxError::Machine { source, .. } => matches!(source, ControlError::Ended),
                _ => false,
            };
            assert!(ended, "{stage}: {first:?}");
            let (_send, requests) = unbounded_channel();
            let mut outside = Outside::new(requests, None);
            told(sandbox.during(outside.attend(sandbox.agent(), id))).await;
            tokio::time::timeout(SOON, sandbox.gone()).await.unwrap();
            let client = Recorder::new(now_ns());
            let finished = tokio::time::timeout(SOON, sandbox.finish(&client)).await.unwrap();
            assert!(finished.faults.is_none());
            bench.marked("mark").await
        });
    }
}

#[test]
fn nobody_waits_for_the_streams_of_a_program_that_did_not_start() {
    let bench = Bench::taken_over("exec");
    run(async {
        let (sandbox, _server) = up(&bench).await;
        let container = ContainerSpec::new(process(), "box");
        let ran = tokio::time::timeout(SOON, sandbox.run("c", &container, "/dev/vda", None)).await;
        let failure = ran.expect("its streams are not waited for").unwrap().err().unwrap();
        assert_eq!((failure.code, failure.message.as_str()), (127, "no such program"));
        let pid = sandbox.machine().process_id().unwrap().to_string();
        sandbox.machine().kill();
        pid
    });
}
