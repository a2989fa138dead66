//! The agent's side of a stage: makes it, hears from it, opens its gate.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::plan::{ContainerRequest, StagePlan};
use super::{FailureKind, StageFailure, init, stage};
use crate::cgroup::Cgroup;
use crate::sys::{self, CloneRequest};

/// Why there is no stage at all.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// A namespace to be born in.
    #[error("cannot open the namespace {0}")]
    Namespace(String, #[source] io::Error),
    /// The program of an init.
    #[error("cannot copy the program of the init")]
    Init(#[source] io::Error),
    /// The process.
    #[error("cannot create the process")]
    Clone(#[source] io::Error),
}

/// How stages are made here.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// An empty directory over which each stage mounts in its own mount namespace.
    pub workdir: String,
}

/// A process that is not yet what it will be.
#[derive(Debug)]
pub struct Stage {
    /// Its id in the guest's root PID namespace.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: Arc<OwnedFd>,
    channel: AsyncFd<OwnedFd>,
    console: Option<OwnedFd>,
}

/// What a stage said.
enum StageMessage {
    Console(OwnedFd),
    Ready,
    Executing,
    Failed(StageFailure),
    End,
}

impl Launcher {
    /// Makes the first process of a container with these cgroups and streams.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn container(
        &self,
        request: &mut ContainerRequest,
        cgroup: &Cgroup,
        streams: &[OwnedFd; 3],
    ) -> Result<Stage, LaunchError> {
        let mut namespaces = 0;
        if let Some(container) = &mut request.stage.container {
            container.workdir.clone_from(&self.workdir);
            // The cgroup namespace's root is the cgroup that its maker is in: the stage makes it,
            // once it is there.
            namespaces = container.namespaces & !libc::CLONE_NEWCGROUP;
        }
        let pid_namespace = match &request.surroundings.pid_namespace {
            Some(path) => {
                Some(File::open(path).map_err(|error| LaunchError::Namespace(path.clone(), error))?)
            }
            None => None,
        };
        let pid_namespace = pid_namespace.as_ref().map(AsFd::as_fd);
        let init = request.stage.process.init.then(init::program).transpose().map_err(LaunchError::Init)?;
        Self::launch(&request.stage, namespaces, cgroup.of_container(), pid_namespace, init, streams)
    }

    /// Makes one more process in the container whose first process `first` is, in this cgroup.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn exec(
        &self,
        plan: &StagePlan,
        first: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
        streams: &[OwnedFd; 3],
    ) -> Result<Stage, LaunchError> {
        let first = Some(first).filter(|_| !plan.stays);
        Self::launch(plan, 0, cgroup, first, first, streams)
    }

    fn launch(
        plan: &StagePlan,
        namespaces: i32,
        cgroup: BorrowedFd<'_>,
        pid_namespace: Option<BorrowedFd<'_>>,
        last: Option<BorrowedFd<'_>>,
        streams: &[OwnedFd; 3],
    ) -> Result<Stage, LaunchError> {
        let (ours, theirs) = sys::socket_pair().map_err(LaunchError::Clone)?;
        let [stdin, stdout, stderr] = streams;
        let mut descriptors = vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd(), theirs.as_fd()];
        descriptors.extend(last);
        let request =
            CloneRequest { namespaces, cgroup: Some(cgroup), pid_namespace, descriptors: &descriptors };
        let (pid, pidfd) = sys::clone_child(&request, || stage::main(plan)).map_err(LaunchError::Clone)?;
        let channel = sys::watch(ours, Interest::READABLE).map_err(LaunchError::Clone)?;
        Ok(Stage { pid, pidfd: Arc::new(pidfd), channel, console: None })
    }
}

impl Stage {
    /// Waits until the surroundings are made and the stage stands at its gate.
    ///
    /// # Errors
    /// What the stage said it could not do.
    pub async fn ready(&mut self) -> Result<(), StageFailure> {
        loop {
            match self.receive().await? {
                StageMessage::Console(console) => self.console = Some(console),
                StageMessage::Ready => return Ok(()),
                StageMessage::Failed(failure) => return Err(failure),
                StageMessage::Executing | StageMessage::End => return Err(ended()),
            }
        }
    }

    /// The terminal, once ready.
    pub fn take_console(&mut self) -> Option<OwnedFd> {
        self.console.take()
    }

    /// Opens the gate and waits until the program runs.
    ///
    /// # Errors
    /// What the stage said it could not do.
    pub async fn start(mut self) -> Result<(), StageFailure> {
        // A stage that was killed at its gate: the next word is the end.
        let _ = sys::send(self.channel.get_ref().as_fd(), b"g", None);
        let mut executing = false;
        loop {
            match self.receive().await? {
                StageMessage::Executing => executing = true,
                StageMessage::End if executing => return Ok(()),
                StageMessage::Failed(failure) => return Err(failure),
                StageMessage::End | StageMessage::Console(_) | StageMessage::Ready => return Err(ended()),
            }
        }
    }

    async fn receive(&mut self) -> Result<StageMessage, StageFailure> {
        let mut buffer = [0; super::LONGEST_MESSAGE + 2];
        let received = self
            .channel
            .async_io(Interest::READABLE, |channel| sys::receive(channel.as_fd(), &mut buffer))
            .await;
        let received = match received {
            Ok(received) => received,
            // A reset: the stage ended with our word unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(StageMessage::End),
            Err(error) => {
                let message = format!("cannot read the report of the new process: {error}");
                return Err(StageFailure { kind: FailureKind::Other, message });
            }
        };
        let packet = buffer.get(..received.length).unwrap_or_default();
        Ok(match (packet, received.descriptor) {
            (b"c", Some(console)) => StageMessage::Console(console),
            (b"r", _) => StageMessage::Ready,
            (b"x", _) => StageMessage::Executing,
            ([b'e', kind, message @ ..], _) => StageMessage::Failed(StageFailure {
                kind: FailureKind::of_letter(*kind),
                message: String::from_utf8_lossy(message).into_owned(),
            }),
            _ => StageMessage::End,
        })
    }
}

fn ended() -> StageFailure {
    StageFailure {
        kind: FailureKind::Other,
        message: "the new process ended before it executed the program (it was killed, or ran out of memory)"
            .to_owned(),
    }
}
