//! A sandbox: a running machine, its agent, and the containers in it.

mod changes;
mod disks;
mod guest;
pub mod relays;
mod seen;
mod visits;
mod waits;
mod why;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use guest::Guest;
use nelly_protocol::ports;
use nelly_vmm::config::MachineConfig;
use nelly_vmm::machine::{
    Confinement, ControlError, DeviceFaults, Isolation, Machine, Outcome, Pending, Resources, StartError,
    VsockListener,
};
use nelly_vmm::sys::unix;
use nelly_vmm::timeline::{Recorder, now_ns};
use tokio::io::AsyncReadExt;
use waits::{Gone, KillOnDrop, Process, accept, answered, blocking};
use why::{ended, explain};

use self::changes::Telling;
use self::relays::{Carrier, Joins, RelayState, Relays};
use crate::agent::{Agent, AgentError, Greeting, Inspection, ProcessId, StartFailure, Token, Tokens};
use crate::network::{NetworkError, Usernet};
use crate::spec::network::GuestNetwork;
use crate::spec::{ContainerSpec, ProcessSpec, RelayAddress, Share};
use crate::timeline::{Timeline, Who, name};

/// Longest wait for the agent after the machine's start. A cold kernel under emulation needs
/// seconds.
const READY: Duration = Duration::from_secs(120);

/// Longest wait for a guest's counter, which only a timeline wants.
const COUNTER: Duration = Duration::from_secs(2);

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
    #[error("{what}")]
    Guest {
        /// How the machine ended, or what the guest failed at.
        what: String,
        /// The last lines of its console, as it wrote them: not fit for a terminal. Empty when it
        /// said nothing.
        console: String,
    },
    /// The guest did not come up.
    #[error("the guest's agent did not answer within {} s", READY.as_secs())]
    NotReady,
    /// A relay cannot listen on the host.
    #[error("a relay cannot listen at {listen}")]
    Relay {
        /// Where.
        listen: RelayAddress,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its network was not made.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The agent failed a call.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

fn what(what: &'static str) -> impl FnOnce(ControlError) -> SandboxError {
    move |source| SandboxError::Machine { what, source }
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> SandboxError {
    move |source| SandboxError::Host { what, source }
}

/// A process's streams on this side. Each is a connected, blocking socket; a dropped one is closed
/// for the process.
#[derive(Debug, Default)]
pub struct Streams {
    /// Standard input; with a terminal, the terminal both ways.
    pub stdin: Option<UnixStream>,
    /// Standard output; none with a terminal.
    pub stdout: Option<UnixStream>,
    /// Standard error; none with a terminal.
    pub stderr: Option<UnixStream>,
}

/// A running machine whose agent has answered, if its guest has one. Dropping it ends the machine
/// and everything in it.
pub struct Sandbox {
    agent: Agent,
    /// None of a guest without an agent.
    greeting: Option<Greeting>,
    machine: Arc<Machine>,
    /// The stream of the serial port of a machine without an agent, asked for at its start.
    serial: Mutex<Option<Result<Pending, ControlError>>>,
    process: Process,
    /// Where the guest's agent takes streams.
    stream_port: u32,
    recorder: Arc<Recorder>,
    usernet: Option<Usernet>,
    /// Those of its containers.
    relays: Mutex<Vec<Relays>>,
    /// Those of its containers that have directories of the host.
    telling: Mutex<Vec<Telling>>,
    #[cfg(test)]
    dials: Option<Dials>,
}

/// Plays the streams of processes in a test.
#[cfg(test)]
pub(crate) type Dials = Box<dyn Fn(Tokens) -> Streams + Send + Sync>;

/// What is known of a sandbox after its end.
#[derive(Clone, Debug)]
pub struct Finished {
    /// When everything happened.
    pub timeline: Timeline,
    /// What the guest's drivers broke, and what failed behind its devices; `None` of a machine that
    /// was killed, which cannot tell.
    pub faults: Option<Vec<DeviceFaults>>,
    /// What the monitor gave up before the guest ran, if it came to that.
    pub confinement: Option<Confinement>,
}

impl Sandbox {
    /// Starts a machine and waits for its agent. `config` is what
    /// [`crate::spec::MachineSpec::config`] makes. Dropping the future kills the machine, however
    /// little its guest or its monitor answers.
    ///
    /// # Errors
    /// The machine did not start or ended, or its agent did not answer, or is of another build or
    /// protocol.
    pub async fn start(
        config: MachineConfig,
        resources: Resources,
        isolation: Isolation,
        guest: impl Into<Guest>,
    ) -> Result<Self, SandboxError> {
        let Guest { hostname, network, usernet } = guest.into();
        let recorder = Recorder::new(now_ns());
        let (machine, answer) = Machine::begin(&config, resources, &isolation)?.into_parts();
        let machine = KillOnDrop::new(Arc::new(machine), |machine| machine.kill());
        let process = Process::of(&machine).map_err(host("cannot watch the monitor"))?;
        let told = (hostname.as_str(), network.as_ref());
        let greeted = async {
            let greeted = greet(&machine, answer, told, &recorder);
            match &usernet {
                Some(usernet) => {
                    let serves = async { Ok(usernet.ready().await?) };
                    tokio::try_join!(greeted, serves).map(|(greeted, ())| greeted)
                }
                None => greeted.await,
            }
        };
        let greeted = process.during(greeted).await;
        let (agent, greeting) = match greeted {
            // Whoever is asked may notice the monitor's end before its process has ended.
            Ok(Err(SandboxError::Machine { source: ControlError::Ended, .. })) | Err(Gone) => {
                return Err(ended(&machine).await);
            }
            Ok(greeted) => greeted?,
        };
        recorder.stamp(name::READY);
        Ok(Self {
            agent,
            greeting: Some(greeting),
            machine: machine.disarm(),
            serial: Mutex::default(),
            process,
            stream_port: ports::STREAM_PORT,
            recorder: Arc::new(recorder),
            usernet,
            relays: Mutex::default(),
            telling: Mutex::default(),
            #[cfg(test)]
            dials: None,
        })
    }

    /// Starts a machine whose guest has no agent, or, if `visited`, one that comes and goes, see
    /// [`Sandbox::meet`]. It runs when this returns. Dropping the future kills the machine.
    ///
    /// # Errors
    /// The machine or its network did not start.
    pub async fn boot(
        config: MachineConfig,
        resources: Resources,
        isolation: Isolation,
        usernet: Option<Usernet>,
        visited: bool,
    ) -> Result<Self, SandboxError> {
        let recorder = Recorder::new(now_ns());
        let (machine, answer) = Machine::begin(&config, resources, &isolation)?.into_parts();
        let machine = KillOnDrop::new(Arc::new(machine), |machine| machine.kill());
        let process = Process::of(&machine).map_err(host("cannot watch the monitor"))?;
        // Asked for before the guest runs, so that the words of one that ends at once are read.
        // Neither request finds the connection full.
        let serial = machine.begin_serial();
        let runs = async {
            started(&machine, answer, &recorder).await?;
            match &usernet {
                Some(usernet) => Ok(usernet.ready().await?),
                None => Ok::<_, SandboxError>(()),
            }
        };
        match process.during(runs).await {
            Err(Gone) => return Err(ended(&machine).await),
            Ok(runs) => runs?,
        }
        Ok(Self {
            agent: if visited { Agent::awaited() } else { Agent::absent() },
            greeting: None,
            machine: machine.disarm(),
            serial: Mutex::new(Some(serial)),
            process,
            stream_port: ports::SERVICE_STREAM_PORT,
            recorder: Arc::new(recorder),
            usernet,
            relays: Mutex::default(),
            telling: Mutex::default(),
            #[cfg(test)]
            dials: None,
        })
    }

    /// Presses the power button of the machine, which asks its guest to switch itself off.
    ///
    /// # Errors
    /// The machine has no button, or has ended.
    pub async fn press_power_button(&self) -> Result<(), SandboxError> {
        let asked = Arc::clone(&self.machine);
        let pressed = blocking(move || asked.press_power_button());
        self.during(async { pressed.await.map_err(what("cannot press the machine's power button")) }).await
    }

    /// Waits for the machine's end, whoever brings it about.
    pub async fn outcome(&self) -> Outcome {
        let asked = Arc::clone(&self.machine);
        blocking(move || asked.wait()).await
    }

    /// Takes this side's stamps; the first of a name counts.
    #[must_use]
    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// Ends the machine and everything in it, as dropping it does, and says when everything
    /// happened: the stamps of `client`, this side's, the monitor's, and the guest's, where
    /// hypervisor and agent can tell them. The guest is asked first, which costs its vCPUs one exit
    /// and is a phase of its own. Dropping the future kills the machine.
    pub async fn finish(self, client: &Recorder) -> Finished {
        let Self { agent, machine, process, recorder, .. } = self;
        let machine = KillOnDrop::new(machine, |machine| machine.kill());
        // Of a machine that was killed or has ended there is nothing to hear.
        let guest = process.during(agent.timeline()).await.ok().and_then(Result::ok);
        let asked = Arc::clone(&machine);
        let counter = async {
            let pending = blocking(move || asked.begin_guest_counter()).await?;
            answered(pending).await?.guest_counter()
        };
        let counter = match tokio::time::timeout(COUNTER, counter).await {
            Ok(counter) => counter.ok().flatten(),
            Err(_) => None,
        };
        let read_ns = recorder.stamp(name::TIMELINE_READ);
        let ending = Arc::clone(&machine);
        let outcome = blocking(move || ending.close()).await;
        recorder.stamp(name::MACHINE_GONE);

        let mut timeline = Timeline::new(client.origin_ns());
        timeline.merge(Who::Client, client.timeline());
        timeline.merge(Who::Client, recorder.timeline());
        timeline.merge(Who::Monitor, outcome.timeline);
        if let (Some(guest), Some(counter)) = (guest, counter) {
            timeline.merge_guest(&guest, &counter, read_ns);
        }
        // A monitor that was killed has told of no start.
        Finished {
            timeline,
            faults: (outcome.starts > 0).then_some(outcome.faults),
            confinement: outcome.confinement,
        }
    }

    /// Ends the machine in order: what still runs is killed, what was written is flushed, and the
    /// guest powers off. A guest that does not within `patience`, whose agent lies, or whose last
    /// writes wait because the host's file system is full, is killed with its machine.
    pub async fn power_off(&self, patience: Duration) -> Outcome {
        let orderly = async {
            // Whatever it answers, its machine's end tells.
            let _answer = self.agent.shutdown(0).await;
            if self.agent.has_lied() {
                return None;
            }
            let ending = Arc::clone(&self.machine);
            Some(blocking(move || ending.wait()).await)
        };
        tokio::select! {
            ended = tokio::time::timeout(patience, self.process.during(orderly)) => {
                if let Ok(Ok(Some(outcome))) = ended {
                    return outcome;
                }
            }
            () = self.stays_without_room() => {}
        }
        self.machine.kill();
        let ending = Arc::clone(&self.machine);
        blocking(move || ending.wait()).await
    }

    /// Pauses the machine. Its guest answers nothing until it is resumed.
    ///
    /// # Errors
    /// It does not run, or the monitor has ended.
    pub async fn pause(&self) -> Result<(), SandboxError> {
        let asked = Arc::clone(&self.machine);
        let paused = blocking(move || asked.pause());
        self.during(async { paused.await.map_err(what("cannot pause the machine")) }).await
    }

    /// Lets a paused machine run on.
    ///
    /// # Errors
    /// It is not paused, or the monitor has ended.
    pub async fn resume(&self) -> Result<(), SandboxError> {
        let asked = Arc::clone(&self.machine);
        let resumed = blocking(move || asked.resume());
        self.during(async { resumed.await.map_err(what("cannot resume the machine")) }).await
    }

    /// The user-mode network of the machine, if it has one.
    #[must_use]
    pub fn usernet(&self) -> Option<&Usernet> {
        self.usernet.as_ref()
    }

    /// What the agent said of itself; none of a guest without one.
    #[must_use]
    pub fn greeting(&self) -> Option<&Greeting> {
        self.greeting.as_ref()
    }

    /// The agent, for calls that need no streams.
    #[must_use]
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Creates and starts a container on the read-only EROFS image at the guest's block device
    /// `device`.
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
        let run = async {
            let tokens = self.agent.create(id, spec, device, size).await?;
            self.recorder.stamp(name::CONTAINER_CREATED);
            // Before its program runs, which may need them at once.
            let relays = match &spec.options.relays[..] {
                [] => None,
                relays => Some(self.carrier(id).listen(relays).await?),
            };
            let start = async {
                match self.agent.start(id).await {
                    Ok(Ok(_)) => {
                        self.recorder.stamp(name::PROCESS_STARTED);
                        Ok(())
                    }
                    Ok(Err(failure)) => Err(Ok(failure)),
                    Err(error) => Err(Err(error)),
                }
            };
            // Its failure is no more than a symptom of the start's.
            let dial = async { Ok(self.dial(tokens).await) };
            // Side by side: what the process says first waits for its streams. Nobody serves those
            // of one that did not start.
            match tokio::try_join!(start, dial) {
                Ok(((), streams)) => {
                    let streams = streams?;
                    if let Some(relays) = relays {
                        self.served().push(relays.serve());
                    }
                    self.tell_changes(&spec.options.shares);
                    Ok(Ok(streams))
                }
                Err(Ok(failure)) => Ok(Err(failure)),
                Err(Err(error)) => Err(SandboxError::from(error)),
            }
        };
        self.during(run).await
    }

    /// Has the guest told of what the host changes in the directories that it shares.
    fn tell_changes(&self, shares: &[Share]) {
        if !shares.is_empty() {
            let telling = changes::tell(&self.agent, shares);
            self.telling.lock().unwrap_or_else(PoisonError::into_inner).push(telling);
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
        let exec = async {
            match self.agent.exec(id, process, size).await? {
                Ok(tokens) => Ok(Ok(self.dial(tokens).await?)),
                Err(failure) => Ok::<_, SandboxError>(Err(failure)),
            }
        };
        self.during(exec).await
    }

    fn carrier(&self, container: &str) -> Carrier {
        let guest = Joins::Monitor(self.machine.vsock(), self.stream_port);
        Carrier { agent: self.agent.clone(), guest, id: container.to_owned() }
    }

    fn served(&self) -> std::sync::MutexGuard<'_, Vec<Relays>> {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The relays of its containers.
    #[must_use]
    pub fn relays(&self) -> Vec<RelayState> {
        self.served().iter().flat_map(Relays::states).collect()
    }

    /// Ends its relays: nobody listens any more, and their sockets are removed.
    pub fn end_relays(&self) {
        self.served().clear();
    }

    /// Connects to an address of a running container, and returns the stream.
    ///
    /// # Errors
    /// Nobody accepts there, or the sandbox failed.
    pub async fn connect(&self, container: &str, to: &RelayAddress) -> Result<UnixStream, SandboxError> {
        let connect = async {
            let stdout = Some(self.agent.connect(container, to).await?);
            let streams = self.dial(Tokens { stdout, ..Tokens::default() }).await?;
            Ok::<_, SandboxError>(streams.stdout.expect("it was dialled"))
        };
        self.during(connect).await
    }

    /// Asks what is to be told of a running container, and returns the stream with the frames.
    ///
    /// # Errors
    /// The agent refused, or the sandbox failed.
    pub async fn inspect(&self, container: &str, what: Inspection) -> Result<UnixStream, SandboxError> {
        let inspect = async {
            let stdout = Some(self.agent.inspect(container, what).await?);
            let streams = self.dial(Tokens { stdout, ..Tokens::default() }).await?;
            Ok::<_, SandboxError>(streams.stdout.expect("it was dialled"))
        };
        self.during(inspect).await
    }

    /// Does `work`, which waits for the guest or its monitor, for as long as there is a monitor:
    /// one that was taken over can end and leave its sockets open behind it, and nothing is heard
    /// of them any more.
    ///
    /// # Errors
    /// Those of `work`, and that the monitor has ended.
    pub async fn during<T, E>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, SandboxError>
    where
        SandboxError: From<E>,
    {
        match self.process.during(work).await {
            Ok(done) => Ok(done?),
            Err(Gone) => Err(ended(&self.machine).await),
        }
    }

    /// Waits until the monitor's process has ended and what it said before could be read. Of a
    /// machine in threads it waits for ever: those close their sockets.
    pub async fn gone(&self) {
        let Gone = self.process.gone().await;
    }

    /// The machine, for pausing, consoles, streams and killing.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// What the guest says on its console from now on, beginning with the latest of what it said.
    ///
    /// # Errors
    /// The machine has ended.
    pub async fn serial(&self) -> Result<UnixStream, SandboxError> {
        let asked = Arc::clone(&self.machine);
        let first = self.serial.lock().expect("nobody panics while it is taken").take();
        let stream = async {
            let pending = match first {
                Some(pending) => pending?,
                None => blocking(move || asked.begin_serial()).await?,
            };
            answered(pending).await?.stream()
        };
        self.during(async { stream.await.map_err(what("cannot read the guest's console")) }).await
    }

    /// Why a call failed, seen from the machine: when it has ended, that is the reason, and a
    /// broken connection only its symptom.
    pub async fn explain(&self, error: SandboxError) -> SandboxError {
        explain(&self.machine, error).await
    }

    /// Dials the streams of a process side by side. A token is written without waiting for an
    /// answer: there is none.
    async fn dial(&self, tokens: Tokens) -> Result<Streams, SandboxError> {
        #[cfg(test)]
        if let Some(dials) = &self.dials {
            return Ok(dials(tokens));
        }
        let (vsock, port) = (self.machine.vsock(), self.stream_port);
        let begun = blocking(move || {
            let begin =
                |token: Option<Token>| token.map(|token| Ok((vsock.begin_connect(port)?, token))).transpose();
            Ok([begin(tokens.stdin)?, begin(tokens.stdout)?, begin(tokens.stderr)?])
        });
        let dialled = async {
            let [stdin, stdout, stderr] = begun.await?;
            let (stdin, stdout, stderr) = tokio::try_join!(prove(stdin), prove(stdout), prove(stderr))?;
            Ok(Streams { stdin, stdout, stderr })
        };
        dialled.await.map_err(what("cannot connect the process's streams"))
    }
}

/// Waits for the answer to a machine's start.
async fn started(
    machine: &Arc<Machine>,
    answer: Result<Pending, ControlError>,
    recorder: &Recorder,
) -> Result<(), SandboxError> {
    let answer = async { answered(answer?).await?.done() };
    if let Err(error) = answer.await {
        let failed = Arc::clone(machine);
        return Err(blocking(move || failed.failed_to_start(error)).await.into());
    }
    recorder.stamp_at(name::MONITOR_SPAWNED, machine.spawned_ns());
    Ok(())
}

/// Waits for a machine's agent, and greets it.
async fn greet(
    machine: &Arc<Machine>,
    answer: Result<Pending, ControlError>,
    (hostname, network): (&str, Option<&GuestNetwork>),
    recorder: &Recorder,
) -> Result<(Agent, Greeting), SandboxError> {
    // Asked for before the first answer is there: neither request finds the connection full.
    let ready = machine.vsock().begin_listen(ports::READY_PORT);
    started(machine, answer, recorder).await?;
    let ready = async {
        let (ready, listening) = ready?;
        answered(listening).await?.done()?;
        Ok(ready)
    };
    let ready = ready.await.map_err(what("cannot listen for the agent"))?;
    match tokio::time::timeout(READY, word(ready)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            return Err(explain(machine, host("the agent did not come")(error)).await);
        }
        Err(_) => return Err(explain(machine, SandboxError::NotReady).await),
    }
    let connected = async { answered(machine.vsock().begin_connect(ports::AGENT_PORT)?).await?.stream() };
    let stream = match connected.await.map_err(what("cannot connect to the agent")) {
        Ok(stream) => stream,
        Err(error) => return Err(explain(machine, error).await),
    };
    recorder.stamp(name::AGENT_CONNECTED);
    let agent = Agent::new(stream)?;
    let entropy = entropy().map_err(host("cannot read random bytes"))?;
    match agent.hello(hostname, now_unix_ns(), entropy, network).await {
        Ok(greeting) => Ok((agent, greeting)),
        Err(error) => Err(explain(machine, error.into()).await),
    }
}

/// The stream of a request for it, with its token written.
async fn prove(begun: Option<(Pending, Token)>) -> Result<Option<UnixStream>, ControlError> {
    let Some((pending, token)) = begun else { return Ok(None) };
    let stream = answered(pending).await?.stream()?;
    // There is room in a new stream; of what has none the guest has no use.
    match unix::try_send(stream.as_fd(), &token) {
        Ok(sent) if sent == token.len() => Ok(Some(stream)),
        Ok(_) => Err(ControlError::Talk(io::ErrorKind::WriteZero.into())),
        Err(error) => Err(ControlError::Talk(error)),
    }
}

/// Waits for the word that the agent says when it is ready.
async fn word(mut ready: VsockListener) -> io::Result<()> {
    let stream = accept(&mut ready).await?;
    stream.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(stream)?.read_exact(&mut [0]).await?;
    Ok(())
}

fn now_unix_ns() -> i64 {
    // A host whose clock stands before 1970 has no time to tell: 0 leaves the guest's.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).expect("nanoseconds since 1970 fit until 2262")
}

fn entropy() -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 64];
    nelly_vmm::sys::random(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
impl Sandbox {
    /// A machine whose agent is played by a test.
    pub(crate) fn played(agent: Agent, machine: Machine) -> Self {
        let process = Process::of(&machine).expect("a descriptor");
        let recorder = Arc::new(Recorder::new(now_ns()));
        Self {
            agent,
            greeting: None,
            machine: Arc::new(machine),
            serial: Mutex::default(),
            process,
            stream_port: ports::STREAM_PORT,
            recorder,
            usernet: None,
            relays: Mutex::default(),
            telling: Mutex::default(),
            dials: None,
        }
    }

    /// The same, whose streams the test plays too.
    pub(crate) fn dialling(self, dials: Dials) -> Self {
        Self { dials: Some(dials), ..self }
    }

    /// Its machine, for an agent that is played.
    pub(crate) fn shared_machine(&self) -> Arc<Machine> {
        Arc::clone(&self.machine)
    }
}
