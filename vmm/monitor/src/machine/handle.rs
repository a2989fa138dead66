//! The handle: what an embedder holds of a machine, wherever the machine runs.
//!
//! Every method but the constructors takes `&self` and may be called from any thread. Nothing polls: each wait has a descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::files::Handed;
use super::inspection::{DeviceState, Inspection};
use super::outcome::{EndReason, Event, ExitCounts, Outcome, State};
use super::server;
use super::threads::{self, Role};
use super::wire::{self, Answer, NewDevice, Received, Receiver, Request};
use crate::config::{ConfigError, DeviceName, DiskConfig, FileSource, MachineConfig};
use crate::sys::{self, Killer, fits};
use crate::timeline::{self, GuestCounter, Recorder, name};
use crate::virtio::vsock::receive_accepted;

/// How long `nelly-monitor` has to end by itself once it should. It takes milliseconds; what takes longer is stuck in the host, or is the
/// guest's own by now, and is killed.
const DROP_PATIENCE: Duration = Duration::from_secs(2);

/// Where a machine runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a process of its own: `nelly-monitor`, found at this path. It inherits standard error.
    Process {
        /// The program.
        monitor: PathBuf,
    },
    /// In threads of this process.
    Thread,
}

/// Files that a machine is given: [`FileSource::Fd`] of its config counts through them.
#[derive(Debug, Default)]
pub struct Resources {
    files: Vec<OwnedFd>,
    log: Option<OwnedFd>,
}

impl Resources {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file and says how the config names it.
    pub fn add(&mut self, file: impl Into<OwnedFd>) -> FileSource {
        let index = fits(self.files.len(), "nobody has 2^32 descriptors");
        self.files.push(file.into());
        FileSource::Fd(index)
    }

    /// Where the machine says a line for the first fault of each kind that its guest makes. Without it `nelly-monitor` says them on
    /// its standard error, and a machine in threads nowhere: [`Machine::inspect`], [`Outcome::faults`] and [`Event::Fault`] tell them too.
    pub fn log_to(&mut self, log: impl Into<OwnedFd>) {
        self.log = Some(log.into());
    }
}

/// A sentence of the monitor, and the one below it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct MonitorError {
    sentence: String,
    source: Option<Box<MonitorError>>,
}

impl MonitorError {
    /// What is refused before the monitor is asked.
    fn of(error: &dyn std::error::Error) -> Self {
        Self::from_chain(wire::chain(error))
    }

    fn from_chain(chain: Vec<String>) -> Self {
        let below = |source, sentence| Some(Box::new(Self { sentence, source }));
        match chain.into_iter().rev().fold(None, below) {
            Some(error) => *error,
            None => Self { sentence: "the monitor refused without a word".into(), source: None },
        }
    }
}

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The config contradicts itself.
    #[error("the machine's configuration is refused")]
    Config(#[from] ConfigError),
    /// The monitor could not be started.
    #[error("cannot start {}", .monitor.display())]
    Spawn {
        /// The program.
        monitor: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The connection to the monitor failed.
    #[error("cannot talk to the monitor")]
    Talk(#[source] io::Error),
    /// The monitor ended before it answered.
    #[error("the monitor ended before the machine started: {0}")]
    Died(String),
    /// The machine was refused, or the host could not make it.
    #[error("cannot start the machine")]
    Refused(#[source] MonitorError),
}

/// Why a request to a machine failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The machine ended.
    #[error("the machine has ended")]
    Ended,
    /// The connection to the monitor failed.
    #[error("cannot talk to the monitor")]
    Talk(#[source] io::Error),
    /// The monitor refused or failed.
    #[error("the machine refused")]
    Refused(#[source] MonitorError),
    /// The machine goes on, but this one request was lost.
    #[error(
        "the machine did not answer: its monitor has no room for more descriptors, raise its limit on open files"
    )]
    Unanswered,
    /// The stream of the answer did not arrive.
    #[error(
        "the stream did not arrive: this process has no room for more descriptors, raise the limit on open files"
    )]
    Descriptor,
    /// The answer was not one to this question.
    #[error("the monitor's answer makes no sense")]
    Confused,
}

/// A running machine. Dropping it ends the machine at once and returns every descriptor, thread and mapping.
#[derive(Debug)]
pub struct Machine {
    control: Control,
    ending: Mutex<Ending>,
    killed: AtomicBool,
    /// Of a machine in a process of its own, where the system has such.
    killer: Option<Killer>,
    spawned_ns: u64,
}

#[derive(Debug)]
struct Ending {
    receiver: Receiver,
    /// When the first of the last word was heard, or that there will be none.
    begun: Option<Instant>,
    outcome: Option<Outcome>,
    body: Option<Body>,
}

#[derive(Debug)]
enum Body {
    Process(Child),
    Thread(JoinHandle<()>),
}

impl Machine {
    /// Starts a machine and returns once its vCPUs run.
    pub fn start(config: &MachineConfig, resources: Resources, place: &Place) -> Result<Self, StartError> {
        Self::begin(config, resources, place)?.done()
    }

    /// The same in two steps, with a descriptor to poll in between: whoever starts a machine may give it up at any time.
    pub fn begin(
        config: &MachineConfig,
        resources: Resources,
        place: &Place,
    ) -> Result<Starting, StartError> {
        config.validate()?;
        // The monitor is not where its holder is.
        let config = config.clone().with_absolute_paths()?;
        let (control, theirs) = sys::stream_pair().map_err(StartError::Talk)?;
        let body = match place {
            Place::Process { monitor } => spawn(monitor, theirs)
                .map_err(|source| StartError::Spawn { monitor: monitor.clone(), source })?,
            Place::Thread => thread(move || server::serve(theirs, recorder(), None))?,
        };
        Self::hold(&config, resources, control, body)
    }

    /// Holds the machine that `body` serves at the other end of `control`, and asks for its start.
    fn hold(
        config: &MachineConfig,
        resources: Resources,
        control: OwnedFd,
        body: Body,
    ) -> Result<Starting, StartError> {
        let spawned_ns = timeline::now_ns();
        let (done, their_done) = sys::stream_pair().map_err(StartError::Talk)?;
        // Whoever took the monitor over may write half a word there: nobody waits for the other half.
        sys::set_nonblocking(&done).map_err(StartError::Talk)?;
        let killer = match &body {
            Body::Process(child) => Killer::of(child).ok(),
            Body::Thread(_) => None,
        };
        let ending =
            Mutex::new(Ending { receiver: Receiver::new(0), begun: None, outcome: None, body: Some(body) });
        let control = Control(Arc::new(Connection { socket: control, sending: Mutex::new(()), done }));
        // From here on dropping the machine cleans up.
        let machine = Self { control, ending, killed: AtomicBool::new(false), killer, spawned_ns };
        let Resources { files, log } = resources;
        let (mut config, mut handed) = (Box::new(config.clone()), Handed::with(files));
        handed.open(&mut config).map_err(|error| StartError::Refused(MonitorError::of(&error)))?;
        let Handed { files, labels } = handed;
        let request = Request::Start { config, log: log.is_some(), labels };
        let extra: Vec<_> = std::iter::once(their_done).chain(log).chain(files).collect();
        let answer = machine.control.ask(&request, &extra);
        Ok(Starting { machine, answer })
    }

    /// Waits for the end. A monitor that begins to tell of it and does not end within two seconds is killed.
    pub fn wait(&self) -> Outcome {
        // What is there is read first: the monitor may wait for room for the rest of a long word.
        while !self.ending().hear(self.as_fd()) {
            readable(self.as_fd(), None);
        }
        if !self.process_ended(DROP_PATIENCE) {
            self.end_process();
        }
        let mut ending = self.ending();
        let how = ending.reap();
        self.conclude(&mut ending, how)
    }

    /// The end, if it came. Waits for nothing.
    pub fn try_wait(&self) -> Option<Outcome> {
        let mut ending = self.ending();
        ending.hear(self.as_fd());
        if let (None, Some(since)) = (&ending.outcome, ending.begun) {
            if let Some(how) = ending.collect() {
                return Some(self.conclude(&mut ending, how));
            }
            if since.elapsed() > DROP_PATIENCE {
                ending.kill();
            }
        }
        ending.outcome.clone()
    }

    /// The end of a machine whose process or thread was collected: what it said of it, or else how it went.
    fn conclude(&self, ending: &mut Ending, how: String) -> Outcome {
        ending.hear(self.as_fd());
        let unsaid = || {
            let killed = self.killed.load(Ordering::SeqCst);
            Outcome::of(if killed { EndReason::Killed } else { EndReason::MonitorDied(how) })
        };
        ending.outcome.get_or_insert_with(unsaid).clone()
    }

    /// Asks for an orderly end: devices drained and flushed. Returns when it is under way; [`Machine::wait`] tells when it is over. What
    /// the guest should do before that is its agent's business.
    pub fn stop(&self) -> Result<(), ControlError> {
        self.control.ask(&Request::Stop, &[])?.done()
    }

    /// Ends the machine at once: nothing is flushed. Waits for nobody and nothing: neither for requests that other threads have under way,
    /// nor for a monitor that reads none.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::SeqCst);
        self.end_process();
        // A server without a holder ends its machine at once, and there is no other way to a thread.
        self.control.close();
    }

    /// What dropping it does, and how it ended: at once, every thread and mapping given back.
    pub fn close(&self) -> Outcome {
        self.control.close();
        if !readable(self.as_fd(), Some(DROP_PATIENCE)) {
            self.kill();
        }
        self.wait()
    }

    /// Gets the vCPUs out of the guest and parks the devices between requests. Returns when nothing is in flight.
    pub fn pause(&self) -> Result<(), ControlError> {
        self.control.ask(&Request::Pause, &[])?.done()
    }

    /// Lets a paused machine run on.
    pub fn resume(&self) -> Result<(), ControlError> {
        self.control.ask(&Request::Resume, &[])?.done()
    }

    /// Where the machine is in its life.
    pub fn state(&self) -> Result<State, ControlError> {
        match self.control.ask(&Request::State, &[])?.finish()? {
            (Answer::State(state), _) => Ok(state),
            _ => Err(ControlError::Confused),
        }
    }

    /// What made the vCPUs leave the guest so far. Counts of vCPUs that are in the guest may lag behind.
    pub fn exit_counts(&self) -> Result<ExitCounts, ControlError> {
        match self.control.ask(&Request::Counters, &[])?.finish()? {
            (Answer::Counters(counts), _) => Ok(counts),
            _ => Err(ControlError::Confused),
        }
    }

    /// What the machine shows of itself: every device's counters, faults and queue positions, exits, memory, consoles. Waits for no vCPU,
    /// whatever it does, and works in a pause too.
    pub fn inspect(&self) -> Result<Inspection, ControlError> {
        match self.control.ask(&Request::Inspect, &[])?.finish()? {
            (Answer::Inspection(inspection), _) => Ok(*inspection),
            _ => Err(ControlError::Confused),
        }
    }

    /// What the guest's counter shows, and when: it puts on CLOCK_MONOTONIC what the guest stamped. Gets every vCPU out of the guest
    /// once. `None` when the hypervisor cannot tell; refused of a machine that does not run.
    pub fn guest_counter(&self) -> Result<Option<GuestCounter>, ControlError> {
        match self.control.ask(&Request::GuestCounter, &[])?.finish()? {
            (Answer::GuestCounter(counter), _) => Ok(counter),
            _ => Err(ControlError::Confused),
        }
    }

    /// CLOCK_MONOTONIC in nanoseconds when the machine's process or thread had been made.
    #[must_use]
    pub fn spawned_ns(&self) -> u64 {
        self.spawned_ns
    }

    /// What happens to the machine from now on.
    pub fn events(&self) -> Result<Events, ControlError> {
        let (ours, theirs) = sys::stream_pair().map_err(ControlError::Talk)?;
        self.control.ask(&Request::Events, &[theirs])?.done()?;
        Ok(Events { socket: ours, receiver: Receiver::new(0) })
    }

    /// The stream of the virtio console, whose endpoint must be `stream`. Starts with the latest output; a second call takes the
    /// console over from the first.
    pub fn console(&self) -> Result<UnixStream, ControlError> {
        self.control.ask(&Request::Stream { device: DeviceName::Console }, &[])?.stream()
    }

    /// The stream of the serial port, see [`Machine::console`].
    pub fn serial(&self) -> Result<UnixStream, ControlError> {
        self.control.ask(&Request::Stream { device: DeviceName::Serial }, &[])?.stream()
    }

    /// The guest's ports.
    #[must_use]
    pub fn vsock(&self) -> Vsock {
        Vsock(self.control.clone())
    }

    /// Puts a disk into a spare slot of the running machine. A source that is a descriptor is the one file of `resources`, and one that is a
    /// path is opened here: the monitor opens nothing.
    pub fn attach_disk(&self, disk: &DiskConfig, resources: Resources) -> Result<(), ControlError> {
        let mut disk = disk.clone();
        disk.source = disk
            .source
            .with_absolute_path("disk")
            .map_err(|error| ControlError::Refused(MonitorError::of(&error)))?;
        let mut handed = Handed::with(resources.files);
        handed.open_disk(&mut disk).map_err(|error| ControlError::Refused(MonitorError::of(&error)))?;
        let (source, label) = (handed.files.pop(), handed.labels.pop().unwrap_or_default());
        let source: Vec<_> = source.into_iter().collect();
        let device = NewDevice::Disk { disk, label };
        self.control.ask(&Request::Attach { device }, &source)?.done()
    }

    /// Takes a disk, or the entropy device, out of the running machine: when this returns, nothing of it is held any more, and its slot
    /// can be filled again. The guest should have let go of it before; one that has not finds no device, and what it asked for last is
    /// never answered.
    ///
    /// # Errors
    /// The machine has no such device, or has ended.
    pub fn detach(&self, device: &DeviceName) -> Result<(), ControlError> {
        self.control.ask(&Request::Detach { device: device.clone() }, &[])?.done()
    }

    /// What [`Machine::inspect`] shows of one virtio device.
    ///
    /// # Errors
    /// The machine has no such device, or has ended.
    pub fn inspect_device(&self, device: &DeviceName) -> Result<DeviceState, ControlError> {
        let request = Request::InspectDevice { device: device.clone() };
        match self.control.ask(&request, &[])?.finish()? {
            (Answer::Device(device), _) => Ok(*device),
            _ => Err(ControlError::Unanswered),
        }
    }

    /// Asks the guest to have `bytes` of memory in all: `memory_bytes` of the configuration, and up to `hotplug_bytes` more in steps of
    /// 2 MiB. The guest's driver is told and follows as soon as it can; whether it has, the guest knows.
    ///
    /// # Errors
    /// The machine has ended, has no memory device, or cannot have so many bytes.
    pub fn request_memory(&self, bytes: u64) -> Result<(), ControlError> {
        self.begin_request_memory(bytes)?.done()
    }

    /// The same without waiting for the machine's answer, for which the result can be waited.
    ///
    /// # Errors
    /// The machine has ended.
    pub fn begin_request_memory(&self, bytes: u64) -> Result<Pending, ControlError> {
        self.control.ask(&Request::Resize { device: DeviceName::Memory, bytes }, &[])
    }

    /// The number of the monitor's process, when the machine has one of its own and has not ended.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        match &self.ending().body {
            Some(Body::Process(child)) => Some(child.id()),
            _ => None,
        }
    }

    /// Kills the monitor's process, if the machine has one, and waits for nobody.
    fn end_process(&self) {
        if let Some(killer) = &self.killer {
            killer.kill();
        } else if let Ok(mut ending) = self.ending.try_lock() {
            // A lock that is taken means that somebody collects it.
            ending.kill();
        }
    }

    /// Waits until the monitor's process has ended; `false` when `timeout` was over first. There is none for a machine in threads.
    fn process_ended(&self, timeout: Duration) -> bool {
        match &self.killer {
            Some(killer) => killer.ended(timeout),
            // The next best sign is that it has closed everything.
            None => !self.ending().lives() || (hung_up(self.as_fd(), timeout) && !self.ending().lives()),
        }
    }

    fn ending(&self) -> MutexGuard<'_, Ending> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Machine {
    /// Readable once the machine has ended. A monitor that was taken over can make it so before; [`Machine::wait`] then ends it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.0.done.as_fd()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // End of file on the control connection ends the machine.
        self.control.close();
        if !self.process_ended(DROP_PATIENCE) {
            self.end_process();
        }
        self.ending().reap();
    }
}

/// A machine that was asked to start. Dropping it ends the machine.
#[derive(Debug)]
pub struct Starting {
    machine: Machine,
    answer: Result<Pending, ControlError>,
}

impl Starting {
    /// Waits until the machine's vCPUs run.
    pub fn done(self) -> Result<Machine, StartError> {
        let Self { machine, answer } = self;
        match answer.and_then(Pending::done) {
            Ok(()) => Ok(machine),
            Err(ControlError::Refused(error)) => Err(StartError::Refused(error)),
            Err(ControlError::Talk(error)) => Err(StartError::Talk(error)),
            Err(_) => {
                let how = match machine.close().reason {
                    EndReason::MonitorDied(how) => how,
                    other => other.to_string(),
                };
                Err(StartError::Died(how))
            }
        }
    }

    /// Ends the machine at once, as [`Machine::kill`] does.
    pub fn kill(&self) {
        self.machine.kill();
    }

    /// The guest's ports. What is asked of them is answered once the machine has started.
    #[must_use]
    pub fn vsock(&self) -> Vsock {
        self.machine.vsock()
    }
}

impl AsFd for Starting {
    /// Readable once [`Starting::done`] need not wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.answer {
            Ok(answer) => answer.as_fd(),
            Err(_) => self.machine.as_fd(),
        }
    }
}

impl Ending {
    /// Reads what has come of the last word, and says whether anything has: a byte, or that there will be none.
    fn hear(&mut self, done: BorrowedFd<'_>) -> bool {
        if self.outcome.is_none() {
            let nothing = match self.receiver.receive::<Outcome>(done) {
                Ok(Received::Frame(outcome, _)) => {
                    self.outcome = Some(outcome);
                    false
                }
                Ok(Received::Nothing) => self.receiver.is_empty(),
                Ok(Received::End) | Err(_) => false,
            };
            if !nothing {
                self.begun.get_or_insert_with(Instant::now);
            }
        }
        self.begun.is_some()
    }

    /// Whether there is a process that has not ended.
    fn lives(&mut self) -> bool {
        match &mut self.body {
            Some(Body::Process(child)) => matches!(child.try_wait(), Ok(None)),
            _ => false,
        }
    }

    /// Kills the process, if there is one.
    fn kill(&mut self) {
        if let Some(Body::Process(child)) = &mut self.body {
            // A failure means that it ended already.
            drop(child.kill());
        }
    }

    /// As [`Ending::reap`], if that need not wait.
    fn collect(&mut self) -> Option<String> {
        let ended = match &self.body {
            Some(Body::Thread(thread)) => thread.is_finished(),
            _ => !self.lives(),
        };
        ended.then(|| self.reap())
    }

    /// Collects process or thread, which ends or has ended, and says how.
    fn reap(&mut self) -> String {
        match self.body.take() {
            Some(Body::Process(mut child)) => match child.wait() {
                Ok(status) => status.to_string(),
                Err(error) => format!("its exit status is unknown: {error}"),
            },
            Some(Body::Thread(thread)) => match thread.join() {
                Ok(()) => "its thread ended".into(),
                Err(_) => "its thread panicked".into(),
            },
            None => "it was collected before".into(),
        }
    }
}

/// The process that serves the machine of the holder at the other end of `control`. It gets that and standard error, and nothing else of
/// this process's: it closes what descriptors were left open to programs that are executed, and leaves the current directory.
fn spawn(monitor: &Path, control: OwnedFd) -> io::Result<Body> {
    let child = Command::new(std::path::absolute(monitor)?)
        .args(["--control", "fd:0"])
        .stdin(Stdio::from(control))
        .stdout(Stdio::null())
        .env_clear()
        .env(timeline::ORIGIN_VARIABLE, timeline::now_ns().to_string())
        // Ctrl-C at the holder's terminal is for the holder to answer: it may have a guest to ask first.
        .process_group(0)
        .spawn()?;
    Ok(Body::Process(child))
}

/// For a machine whose server begins here.
fn recorder() -> Recorder {
    let now = timeline::now_ns();
    let recorder = Recorder::new(now);
    recorder.stamp_at(name::MONITOR_MAIN, now);
    recorder
}

/// The thread that serves a machine of this process.
fn thread(serve: impl FnOnce() + Send + 'static) -> Result<Body, StartError> {
    Ok(Body::Thread(threads::spawn(Role::Loop, serve).map_err(StartError::Talk)?))
}

/// Waits until `fd` is readable or hung up; `false` when `timeout` was over first.
fn readable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> bool {
    ready(fd, PollFlags::IN, timeout)
}

/// Waits until the other end of `fd` is closed; `false` when `timeout` was over first.
fn hung_up(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    ready(fd, PollFlags::empty(), Some(timeout))
}

fn ready(fd: BorrowedFd<'_>, flags: PollFlags, timeout: Option<Duration>) -> bool {
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    loop {
        let mut polled = [PollFd::from_borrowed_fd(fd, flags)];
        match poll(&mut polled, timeout.as_ref()) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return true,
        }
    }
}

/// The control connection.
#[derive(Clone, Debug)]
struct Control(Arc<Connection>);

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    /// Held while a request is written, so that two do not mix.
    sending: Mutex<()>,
    /// Readable once the machine has ended.
    done: OwnedFd,
}

impl Connection {
    fn is_over(&self) -> bool {
        let mut polled = [
            PollFd::from_borrowed_fd(self.done.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::empty()),
        ];
        poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).map_or(true, |ready| ready > 0)
    }
}

impl Control {
    fn ask(&self, request: &Request, descriptors: &[OwnedFd]) -> Result<Pending, ControlError> {
        let (ours, theirs) = sys::stream_pair().map_err(ControlError::Talk)?;
        let mut all = vec![theirs.as_fd()];
        all.extend(descriptors.iter().map(AsFd::as_fd));
        let sending = self.0.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = wire::send(self.0.socket.as_fd(), request, &all);
        drop(sending);
        match sent {
            Ok(()) => {
                Ok(Pending { socket: ours, receiver: Receiver::new(1), connection: Arc::clone(&self.0) })
            }
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ControlError::Ended),
            Err(error) => Err(ControlError::Talk(error)),
        }
    }

    /// Without the lock: whoever writes a request that nobody reads is woken by this.
    fn close(&self) {
        // Fails when the other side is gone already, which is as good.
        let _gone = rustix::net::shutdown(&self.0.socket, rustix::net::Shutdown::Both);
    }
}

/// A request under way. Its descriptor is readable when the answer is there; dropping it takes the request back where that is possible.
#[derive(Debug)]
pub struct Pending {
    socket: OwnedFd,
    receiver: Receiver,
    connection: Arc<Connection>,
}

impl Pending {
    fn finish(mut self) -> Result<(Answer, Vec<OwnedFd>), ControlError> {
        match self.receiver.receive(self.socket.as_fd()) {
            Ok(Received::Frame(Answer::Failed(chain), _)) => {
                Err(ControlError::Refused(MonitorError::from_chain(chain)))
            }
            Ok(Received::Frame(Answer::Ended, _)) => Err(ControlError::Ended),
            Ok(Received::Frame(answer, descriptors)) => Ok((answer, descriptors)),
            // A machine that ends says so, unless it is killed.
            Ok(Received::Nothing | Received::End) => {
                Err(if self.connection.is_over() { ControlError::Ended } else { ControlError::Unanswered })
            }
            Err(error) => Err(ControlError::Talk(error)),
        }
    }

    /// Waits until the machine says that it is done, or why not.
    pub fn done(self) -> Result<(), ControlError> {
        match self.finish()? {
            (Answer::Done, _) => Ok(()),
            _ => Err(ControlError::Confused),
        }
    }

    /// Waits for the stream that was asked for.
    pub fn stream(self) -> Result<UnixStream, ControlError> {
        match self.finish()? {
            (Answer::Done, mut descriptors) if descriptors.len() == 1 => {
                Ok(UnixStream::from(descriptors.remove(0)))
            }
            (Answer::Done, _) => Err(ControlError::Descriptor),
            _ => Err(ControlError::Confused),
        }
    }
}

impl AsFd for Pending {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What happens to a machine, as it happens.
#[derive(Debug)]
pub struct Events {
    socket: OwnedFd,
    receiver: Receiver,
}

impl Events {
    /// Waits for the next event. `None` after the last one.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        match self.receiver.receive(self.socket.as_fd())? {
            Received::Frame(event, _) => Ok(Some(event)),
            Received::Nothing | Received::End => Ok(None),
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The guest's socket ports. Outlives nothing: after the machine's end every call answers [`ControlError::Ended`].
#[derive(Clone, Debug)]
pub struct Vsock(Control);

impl Vsock {
    /// A stream to `port` of the guest, once the guest has accepted it.
    pub fn connect(&self, port: u32) -> Result<UnixStream, ControlError> {
        self.begin_connect(port)?.stream()
    }

    /// The same in two steps, with a descriptor to poll in between.
    pub fn begin_connect(&self, port: u32) -> Result<Pending, ControlError> {
        self.0.ask(&Request::VsockConnect { port }, &[])
    }

    /// Takes what the guest dials on `port` of the host (context id 2), until the listener is dropped.
    pub fn listen(&self, port: u32) -> Result<VsockListener, ControlError> {
        let (channel, theirs) = sys::stream_pair().map_err(ControlError::Talk)?;
        self.0.ask(&Request::VsockListen { port }, &[theirs])?.done()?;
        Ok(VsockListener { channel, port })
    }
}

/// A port of the host that the guest can dial.
#[derive(Debug)]
pub struct VsockListener {
    channel: OwnedFd,
    port: u32,
}

impl VsockListener {
    /// Waits for the guest to dial. [`io::ErrorKind::WouldBlock`] when it has not and the listener is non-blocking,
    /// [`io::ErrorKind::UnexpectedEof`] when the machine has ended.
    pub fn accept(&self) -> io::Result<UnixStream> {
        match receive_accepted(self.channel.as_fd())? {
            Some((stream, _guest, _host)) => Ok(stream),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Makes [`VsockListener::accept`] return instead of waiting.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        sys::set_nonblocking(&self.channel)
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }
}

impl AsFd for VsockListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
