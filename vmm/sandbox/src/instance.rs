//! A sandbox: a running machine, its agent, and the containers in it.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nelly_protocol::ports;
use nelly_vmm::config::MachineConfig;
use nelly_vmm::machine::{ControlError, Machine, Place, Resources, StartError, VsockListener};
use nelly_vmm::timeline::{Recorder, now_ns};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::agent::{Agent, AgentError, Greeting, ProcessId, StartFailure, StdioPorts};
use crate::spec::{ContainerSpec, ProcessSpec};
use crate::timeline::{Timeline, Who, name};

/// Longest wait for the agent after the machine's start. A cold kernel under emulation needs seconds.
const READY: Duration = Duration::from_secs(120);

/// Longest wait for streams that the agent has dialled before it answered.
const STREAMS: Duration = Duration::from_secs(30);

/// Why a sandbox failed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The machine did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A call on the machine failed.
    #[error("{what}")]
    Machine {
        /// What was tried.
        what: &'static str,
        /// The answer.
        #[source]
        source: ControlError,
    },
    /// The host failed below the machine.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The answer.
        #[source]
        source: io::Error,
    },
    /// The machine ended before its work was done, or its guest failed.
    #[error("{what}{console}")]
    Guest {
        /// How the machine ended, or what the guest failed at.
        what: String,
        /// The last lines of its console, introduced; empty when it said nothing.
        console: String,
    },
    /// The guest did not come up.
    #[error("the guest's agent did not answer within {} s", READY.as_secs())]
    NotReady,
    /// The agent failed a call.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The guest did not dial a stream that it said it had.
    #[error("the guest did not connect the process's streams")]
    Streams,
}

fn machine(what: &'static str) -> impl FnOnce(ControlError) -> SandboxError {
    move |source| SandboxError::Machine { what, source }
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> SandboxError {
    move |source| SandboxError::Host { what, source }
}

/// A process's streams on this side. Each is a connected, blocking socket; a dropped one is closed for the process.
#[derive(Debug, Default)]
pub struct Streams {
    /// Standard input; with a terminal, the terminal both ways.
    pub stdin: Option<UnixStream>,
    /// Standard output; none with a terminal.
    pub stdout: Option<UnixStream>,
    /// Standard error; none with a terminal.
    pub stderr: Option<UnixStream>,
}

/// A running machine whose agent has answered. Dropping it ends the machine and everything in it.
pub struct Sandbox {
    agent: Agent,
    greeting: Greeting,
    machine: Machine,
    next_port: AtomicU32,
    recorder: Arc<Recorder>,
}

impl Sandbox {
    /// Starts a machine and waits for its agent. `config` is what [`crate::spec::MachineSpec::config`] makes.
    ///
    /// # Errors
    /// The machine did not start or ended, or its agent did not answer, or is of another build or protocol.
    pub async fn start(
        config: MachineConfig,
        resources: Resources,
        place: Place,
        hostname: &str,
    ) -> Result<Self, SandboxError> {
        let recorder = Recorder::new(now_ns());
        let (machine_handle, ready) = blocking(move || {
            let machine_handle = Machine::start(&config, resources, &place)?;
            let ready = machine_handle.vsock().listen(ports::READY_PORT);
            let ready = ready.map_err(machine("cannot listen for the agent"))?;
            Ok::<_, SandboxError>((machine_handle, ready))
        })
        .await?;
        recorder.stamp_at(name::MONITOR_SPAWNED, machine_handle.spawned_ns());
        let came = blocking(move || ready.accept()?.read_exact(&mut [0]));
        match tokio::time::timeout(READY, came).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                return Err(explain(&machine_handle, host("the agent did not come")(error)).await);
            }
            Err(_) => return Err(explain(&machine_handle, SandboxError::NotReady).await),
        }
        let vsock = machine_handle.vsock();
        let connected = blocking(move || vsock.connect(ports::AGENT_PORT)).await;
        let stream = match connected.map_err(machine("cannot connect to the agent")) {
            Ok(stream) => stream,
            Err(error) => return Err(explain(&machine_handle, error).await),
        };
        recorder.stamp(name::AGENT_CONNECTED);
        let agent = Agent::new(stream)?;
        let entropy = entropy().map_err(host("cannot read random bytes"))?;
        let greeting = match agent.hello(hostname, now_unix_ns(), entropy).await {
            Ok(greeting) => greeting,
            Err(error) => return Err(explain(&machine_handle, error.into()).await),
        };
        recorder.stamp(name::READY);
        Ok(Self {
            agent,
            greeting,
            machine: machine_handle,
            next_port: AtomicU32::new(0),
            recorder: Arc::new(recorder),
        })
    }

    /// Takes this side's stamps; the first of a name counts.
    #[must_use]
    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// Ends the machine and everything in it, as dropping it does, and says when everything happened: the stamps of `client`, this
    /// side's, the monitor's, and the guest's, where hypervisor and agent can tell them. The guest is asked first, which costs its
    /// vCPUs one exit and is a phase of its own.
    pub async fn finish(self, client: &Recorder) -> Timeline {
        let Self { agent, machine, recorder, .. } = self;
        // Of a machine that was killed or has ended there is nothing to hear.
        let guest = agent.timeline().await.ok();
        let asked = blocking(move || (machine.guest_counter().ok().flatten(), machine)).await;
        let (counter, machine) = asked;
        let read_ns = recorder.stamp(name::TIMELINE_READ);
        let outcome = blocking(move || machine.close()).await;
        recorder.stamp(name::MACHINE_GONE);

        let mut timeline = Timeline::new(client.origin_ns());
        timeline.merge(Who::Client, client.timeline());
        timeline.merge(Who::Client, recorder.timeline());
        timeline.merge(Who::Monitor, outcome.timeline);
        if let (Some(guest), Some(counter)) = (guest, counter) {
            timeline.merge_guest(&guest, &counter, read_ns);
        }
        timeline
    }

    /// What the agent said of itself.
    #[must_use]
    pub fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// The agent, for calls that need no streams.
    #[must_use]
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Creates and starts a container on the read-only EROFS image at the guest's block device `device`.
    ///
    /// # Errors
    /// The sandbox failed; that the program cannot run is the inner error.
    pub async fn run(
        &self,
        id: &str,
        spec: &ContainerSpec,
        device: &str,
        size: Option<(u16, u16)>,
    ) -> Result<Result<Streams, StartFailure>, SandboxError> {
        let (listeners, stdio) = self.listen(&spec.process, size).await?;
        self.agent.create(id, spec, device, stdio).await?;
        self.recorder.stamp(name::CONTAINER_CREATED);
        match self.agent.start(id).await? {
            Ok(_) => {
                self.recorder.stamp(name::PROCESS_STARTED);
                Ok(Ok(listeners.streams().await?))
            }
            Err(failure) => Ok(Err(failure)),
        }
    }

    /// Starts a further process in a running container.
    ///
    /// # Errors
    /// As [`Sandbox::run`].
    pub async fn exec(
        &self,
        id: ProcessId<'_>,
        process: &ProcessSpec,
        size: Option<(u16, u16)>,
    ) -> Result<Result<Streams, StartFailure>, SandboxError> {
        let (listeners, stdio) = self.listen(process, size).await?;
        match self.agent.exec(id, process, stdio).await? {
            Ok(_) => Ok(Ok(listeners.streams().await?)),
            Err(failure) => Ok(Err(failure)),
        }
    }

    /// The machine, for pausing, consoles, streams and killing.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Why a call failed, seen from the machine: when it has ended, that is the reason, and a broken connection only its symptom.
    pub async fn explain(&self, error: SandboxError) -> SandboxError {
        explain(&self.machine, error).await
    }

    async fn listen(
        &self,
        process: &ProcessSpec,
        size: Option<(u16, u16)>,
    ) -> Result<(Listeners, StdioPorts), SandboxError> {
        let vsock = self.machine.vsock();
        let wanted = [process.stdin || process.terminal, !process.terminal, !process.terminal];
        // Ports go round: one is used again after ninety thousand others.
        let first = self.next_port.fetch_add(3, Ordering::Relaxed);
        let span = ports::STDIO_LAST - ports::STDIO_FIRST + 1;
        let port = |index: u32| ports::STDIO_FIRST + first.wrapping_add(index) % span;
        let numbers = [port(0), port(1), port(2)];
        let listeners = blocking(move || {
            let mut listeners = [None, None, None];
            for ((slot, wanted), number) in listeners.iter_mut().zip(wanted).zip(numbers) {
                if wanted {
                    *slot = Some(vsock.listen(number)?);
                }
            }
            Ok::<_, ControlError>(listeners)
        })
        .await
        .map_err(machine("cannot listen for the process's streams"))?;
        let number = |index: usize| if listeners[index].is_some() { numbers[index] } else { 0 };
        let (rows, columns) = size.unwrap_or_default();
        let ports = StdioPorts { stdin: number(0), stdout: number(1), stderr: number(2), rows, columns };
        Ok((Listeners(listeners), ports))
    }
}

/// What the guest will dial.
struct Listeners([Option<VsockListener>; 3]);

impl Listeners {
    /// They were dialled before the start call returned, so this waits for nothing but a guest that lies.
    async fn streams(self) -> Result<Streams, SandboxError> {
        let take = blocking(move || {
            let [stdin, stdout, stderr] =
                self.0.map(|listener| listener.map(|listener| listener.accept()).transpose());
            Ok::<_, io::Error>(Streams { stdin: stdin?, stdout: stdout?, stderr: stderr? })
        });
        let streams = tokio::time::timeout(STREAMS, take).await.map_err(|_| SandboxError::Streams)?;
        streams.map_err(host("cannot take the process's streams"))
    }
}

/// A machine that is ending has a moment to say so.
const LAST_WORD: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

async fn explain(machine: &Machine, error: SandboxError) -> SandboxError {
    let console = last_words(machine).await;
    if let Ok(ended) = machine.as_fd().try_clone_to_owned() {
        let wait = move || poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&LAST_WORD));
        // Whether it ended or the moment is over is asked below.
        let _ = blocking(wait).await;
    }
    let what = match machine.try_wait() {
        Some(outcome) => format!("the machine ended: {}", outcome.reason),
        None => chain(&error),
    };
    SandboxError::Guest { what, console }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Most bytes of the guest's console that an error carries.
const LAST_WORDS: usize = 2048;

/// The end of what the guest said on its serial port, without control characters: a hostile guest writes it.
async fn last_words(machine: &Machine) -> String {
    let Ok(mut serial) = machine.serial() else { return String::new() };
    let read = move || {
        let mut said = Vec::new();
        let mut chunk = [0; 4096];
        // What is there already, and no more: the machine may go on.
        while serial.set_read_timeout(Some(Duration::from_millis(50))).is_ok() {
            match serial.read(&mut chunk) {
                Ok(count) if count > 0 => said.extend_from_slice(&chunk[..count]),
                _ => break,
            }
            if said.len() > 64 << 10 {
                break;
            }
        }
        said
    };
    let said = blocking(read).await;
    let tail = String::from_utf8_lossy(&said[said.len().saturating_sub(LAST_WORDS)..]).into_owned();
    let tail: String = tail.chars().filter(|c| *c == '\n' || !c.is_control()).collect();
    match tail.trim() {
        "" => String::new(),
        tail => format!("\nthe guest's console ends with:\n{tail}"),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn now_unix_ns() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(0)
}

fn entropy() -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 64];
    let count = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    bytes.truncate(count);
    Ok(bytes)
}
