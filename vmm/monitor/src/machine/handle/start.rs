//! How a machine begins: its process or thread, and the first request to it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use super::ask::{Control, Pending};
use super::ending::{Body, EndState};
use super::error::{ControlError, MonitorError, StartError};
use super::vsock::Vsock;
use super::{Isolation, Machine, Resources};
use crate::config::MachineConfig;
use crate::machine::confine::Process;
use crate::machine::files::Handed;
use crate::machine::outcome::EndReason;
use crate::machine::server;
use crate::machine::snapshot::Snapshot;
use crate::machine::threads::{self, Role};
use crate::machine::wire::{self, ControlRequest};
use crate::sys::{self, ProcessHandle};
use crate::timeline::{self, Recorder, name};

impl Machine {
    /// Starts a machine and returns once its vCPUs run.
    pub fn start(
        config: &MachineConfig,
        resources: Resources,
        isolation: &Isolation,
    ) -> Result<Self, StartError> {
        Self::begin(config, resources, isolation)?.done()
    }

    /// The same in two steps, with a descriptor to poll in between: whoever starts a machine may
    /// give it up at any time.
    pub fn begin(
        config: &MachineConfig,
        resources: Resources,
        isolation: &Isolation,
    ) -> Result<Starting, StartError> {
        Self::begin_with(config, resources, None, isolation)
    }

    /// Starts a machine, or has one go on.
    pub(super) fn begin_with(
        config: &MachineConfig,
        resources: Resources,
        snapshot: Option<Snapshot>,
        isolation: &Isolation,
    ) -> Result<Starting, StartError> {
        config.validate()?;
        // The monitor is not where its holder is.
        let config = config.clone().with_absolute_paths()?;
        let (control, theirs) = sys::stream_pair().map_err(StartError::Talk)?;
        let body = match isolation {
            Isolation::Process { monitor } => spawn(monitor, theirs)
                .map_err(|source| StartError::Spawn { monitor: monitor.clone(), source })?,
            Isolation::Thread => thread(move || server::serve(theirs, recorder(), None, Process::Embedder))?,
        };
        Self::hold(&config, resources, snapshot, control, body)
    }

    /// Holds the machine that `body` serves at the other end of `control`, and asks for its start.
    pub(super) fn hold(
        config: &MachineConfig,
        resources: Resources,
        snapshot: Option<Snapshot>,
        control: OwnedFd,
        body: Body,
    ) -> Result<Starting, StartError> {
        let spawned_ns = timeline::now_ns();
        let (done, their_done) = sys::stream_pair().map_err(StartError::Talk)?;
        // Whoever took the monitor over may write half a word there: nobody waits for the other
        // half.
        sys::set_nonblocking(&done).map_err(StartError::Talk)?;
        let killer = match &body {
            Body::Process(child) => ProcessHandle::of(child).ok(),
            Body::Thread(_) => None,
        };
        let ending = Mutex::new(EndState::new(body));
        // From here on dropping the machine cleans up.
        let machine = Self { control: Control::new(control, done, killer), ending, spawned_ns };
        let Resources { mut handed, log } = resources;
        let mut config = Box::new(config.clone());
        handed.open(&mut config).map_err(|error| StartError::Refused(MonitorError::of(&error)))?;
        let Handed { files, labels } = handed;
        let request = ControlRequest::Start {
            version: wire::VERSION,
            config,
            log: log.is_some(),
            snapshot: snapshot.is_some(),
            labels,
        };
        let saved = snapshot.into_iter().flat_map(|Snapshot { state, memory }| [state, memory]);
        let extra: Vec<_> = std::iter::once(their_done).chain(log).chain(saved).chain(files).collect();
        let answer = machine.control.ask(&request, &extra);
        Ok(Starting { machine, answer })
    }

    /// Why a machine whose start was answered with `error` did not start. Of one that ended without
    /// a word it waits for the end, to tell how it came; [`Machine::kill`] ends that wait.
    pub fn failed_to_start(&self, error: ControlError) -> StartError {
        match error {
            ControlError::Refused(error) => StartError::Refused(error),
            ControlError::Talk(error) => StartError::Talk(error),
            _ => StartError::Died(match self.close().reason {
                EndReason::MonitorDied(how) => how,
                other => other.to_string(),
            }),
        }
    }
}

/// A machine that was asked to start. Dropping it ends the machine.
///
/// Whoever waits for the start with a thread calls [`Starting::done`]. Whoever has none polls the
/// descriptor, and that of [`Starting::process_end`], and calls [`Starting::answered`] at first and
/// each time that one of them is readable, until that says yes.
#[derive(Debug)]
pub struct Starting {
    machine: Machine,
    answer: Result<Pending, ControlError>,
}

impl Starting {
    /// Reads what there is of the machine's answer and says whether it is whole, or can never be.
    /// Waits for nothing. Once it says yes, [`Starting::done`] need not wait but for the end of a
    /// machine that did not start.
    pub fn answered(&mut self) -> bool {
        self.answer.as_mut().map_or(true, Pending::answered)
    }

    /// Waits until the machine's vCPUs run.
    pub fn done(self) -> Result<Machine, StartError> {
        let (machine, answer) = self.into_parts();
        match answer.and_then(Pending::done) {
            Ok(()) => Ok(machine),
            Err(error) => Err(machine.failed_to_start(error)),
        }
    }

    /// The machine, of which nothing is known yet, and the answer to come: for whoever needs to
    /// kill the one while the other is waited for. [`Pending::done`] says whether it runs,
    /// [`Machine::failed_to_start`] why not.
    pub fn into_parts(self) -> (Machine, Result<Pending, ControlError>) {
        (self.machine, self.answer)
    }

    /// Ends the machine at once, as [`Machine::kill`] does.
    pub fn kill(&self) {
        self.machine.kill();
    }

    /// As [`Machine::process_end`].
    #[must_use]
    pub fn process_end(&self) -> Option<BorrowedFd<'_>> {
        self.machine.process_end()
    }

    /// The guest's ports. What is asked of them is answered once the machine has started.
    #[must_use]
    pub fn vsock(&self) -> Vsock {
        self.machine.vsock()
    }
}

impl AsFd for Starting {
    /// Readable when there is something for [`Starting::answered`] to read, which need not be all
    /// of the answer.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.answer {
            Ok(answer) => answer.as_fd(),
            Err(_) => self.machine.as_fd(),
        }
    }
}

/// The process that serves the machine of the holder at the other end of `control`. It gets that
/// and standard error, and nothing else of this process's: it closes what descriptors were left
/// open to programs that are executed, and leaves the current directory.
fn spawn(monitor: &Path, control: OwnedFd) -> io::Result<Body> {
    let child = Command::new(std::path::absolute(monitor)?)
        .args(["--control", "fd:0"])
        .stdin(Stdio::from(control))
        .stdout(Stdio::null())
        .env_clear()
        .env(timeline::ORIGIN_VARIABLE, timeline::now_ns().to_string())
        // Ctrl-C at the holder's terminal is for the holder to answer: it may have a guest to ask
        // first.
        .process_group(0)
        .spawn()?;
    Ok(Body::Process(child))
}

/// For a machine whose server begins here.
pub(super) fn recorder() -> Recorder {
    let now = timeline::now_ns();
    let recorder = Recorder::new(now);
    recorder.stamp_at(name::MONITOR_MAIN, now);
    recorder
}

/// The thread that serves a machine of this process.
pub(super) fn thread(serve: impl FnOnce() + Send + 'static) -> Result<Body, StartError> {
    Ok(Body::Thread(threads::spawn(Role::Loop, serve).map_err(StartError::Talk)?))
}
