//! A container in a machine of its own that runs, whoever holds it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::held::Held;
use super::nelly::LAST_WORDS;
use super::process::{Pipes, Process, Way};
use super::{EndReport, Error, Exec, Port, Publish, Signal, Traffic, blocking, ports};
use crate::connect::{Connection, ExecSpec};
use crate::spec::RelayAddress;
use crate::state::{Id, Name, SandboxDir, Sandboxes, StateError};
use crate::{connect, instance};

/// A sandbox that was started. What this process holds (of [`super::Builder::start`]) ends when
/// this value is dropped: the machine is killed, which waits for nobody. Of what a keeper holds
/// (of [`super::Builder::keep`] and [`super::connect`]) this is a connection, and dropping it ends
/// nothing.
pub struct Sandbox {
    id: Id,
    name: Name,
    holder: Holder,
}

enum Holder {
    Held(Box<Held>, Option<Pipes>),
    Kept(Box<Kept>),
}

struct Kept {
    connection: Connection,
    /// Its directory, in the directory of all.
    place: Arc<(Sandboxes, SandboxDir)>,
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Sandbox {
    pub(super) fn of_machine(id: Id, name: Name, held: Held, pipes: Option<Pipes>) -> Self {
        Self { id, name, holder: Holder::Held(Box::new(held), pipes) }
    }

    pub(super) fn of_keeper(
        id: Id,
        name: Name,
        connection: Connection,
        sandboxes: Sandboxes,
        sandbox: SandboxDir,
    ) -> Self {
        let place = Arc::new((sandboxes, sandbox));
        Self { id, name, holder: Holder::Kept(Box::new(Kept { connection, place })) }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> Id {
        self.id
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The streams of the container's first process, once, if [`super::Builder::piped`] asked for
    /// them. With them dropped, what it writes is an error for it.
    pub fn take_pipes(&mut self) -> Option<Pipes> {
        match &mut self.holder {
            Holder::Held(_, pipes) => pipes.take(),
            Holder::Kept(_) => None,
        }
    }

    /// Describes a further process: program and arguments.
    pub fn exec<S: Into<String>>(&self, args: impl IntoIterator<Item = S>) -> Exec<'_> {
        Exec::new(self, args.into_iter().map(Into::into).collect())
    }

    /// Connects to a Unix socket or a loopback port of the container. It needs no network.
    ///
    /// # Errors
    /// Nobody accepts there, or it does not run.
    pub async fn connect(&self, to: &RelayAddress) -> Result<tokio::net::UnixStream, Error> {
        let stream = match &self.holder {
            Holder::Held(held, _) => held.machine.connect(&self.id.to_string(), to).await?,
            Holder::Kept(kept) => kept.connection.connect(to).await?,
        };
        let registered = stream.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(stream));
        registered.map_err(Error::host("use the connection to the container"))
    }

    /// Publishes a port of this host until the machine ends; port 0 of the host is a free one.
    /// Gives where it listens. A [`Publish`] is parsed from `[BIND:]HOST:GUEST[/udp]`.
    ///
    /// # Errors
    /// [`Error::Port`], or [`Error::Keeper`] of what a keeper holds: the port is taken, or
    /// published already. [`Error::Invalid`]: the sandbox has no user-mode network.
    pub async fn add_port(&self, port: Publish) -> Result<Publish, Error> {
        match &self.holder {
            Holder::Held(held, _) => ports::add(&held.machine, port).await,
            Holder::Kept(kept) => ports::add_kept(&kept.connection, &port).await,
        }
    }

    /// Publishes a port no more. Connections that were accepted go on.
    ///
    /// # Errors
    /// As [`Sandbox::add_port`]; it is not published.
    pub async fn remove_port(&self, port: Publish) -> Result<(), Error> {
        match &self.holder {
            Holder::Held(held, _) => ports::remove(&held.machine, port).await,
            Holder::Kept(kept) => Ok(kept.connection.remove_port(&port).await.map(drop)?),
        }
    }

    /// The published ports with their counters, and what the guest asked for and what became of it.
    ///
    /// # Errors
    /// The sandbox has no user-mode network, or that has ended or does not answer.
    pub async fn ports(&self) -> Result<(Vec<Port>, Traffic), Error> {
        match &self.holder {
            Holder::Held(held, _) => ports::list(&held.machine).await,
            Holder::Kept(kept) => ports::list_kept(&kept.connection).await,
        }
    }

    /// Waits until the container's first process has ended; of what a keeper holds, until it has
    /// ended for good, restarts included. Any number of times. The machine of this process goes on.
    ///
    /// # Errors
    /// The machine ended first, or the keeper cannot be asked any more.
    pub async fn wait(&self) -> Result<EndReport, Error> {
        match &self.holder {
            Holder::Held(held, _) => held.wait().await,
            Holder::Kept(kept) => Ok(kept.connection.wait("").await?),
        }
    }

    /// Sends a signal to the container's first process. What a keeper holds is ended by SIGKILL,
    /// whatever its restart policy.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill(&self, signal: Signal) -> Result<(), Error> {
        match &self.holder {
            Holder::Held(held, _) => held.kill(signal).await,
            Holder::Kept(kept) => Ok(kept.connection.kill("", signal).await?),
        }
    }

    /// Stops it: its stop signal, SIGKILL after the grace (`None`: its own, ten seconds if nobody
    /// said another), a sync, the machine's end. Says how the first process ended. What a keeper
    /// holds is not started again by its policy, and can be started by [`super::Nelly::start`].
    ///
    /// # Errors
    /// The keeper cannot be asked. A machine of this process always ends.
    pub async fn stop(&self, grace: Option<Duration>) -> Result<EndReport, Error> {
        match &self.holder {
            Holder::Held(held, _) => Ok(held.stop(grace).await),
            Holder::Kept(kept) => Ok(kept.connection.stop(None, grace).await?),
        }
    }

    /// Pauses the machine: its vCPUs stand still, and nothing in it answers.
    ///
    /// # Errors
    /// It does not run.
    pub async fn pause(&self) -> Result<(), Error> {
        match &self.holder {
            Holder::Held(held, _) => Ok(held.machine.pause().await?),
            Holder::Kept(kept) => Ok(kept.connection.pause().await?),
        }
    }

    /// Lets a paused machine run on.
    ///
    /// # Errors
    /// It is not paused.
    pub async fn resume(&self) -> Result<(), Error> {
        match &self.holder {
            Holder::Held(held, _) => Ok(held.machine.resume().await?),
            Holder::Kept(kept) => Ok(kept.connection.resume().await?),
        }
    }

    /// Ends it at once, and removes everything of it: of what a keeper holds the writable layer,
    /// volumes and logs, too.
    ///
    /// # Errors
    /// The keeper does not end it, or a file cannot be removed.
    pub async fn remove(self) -> Result<(), Error> {
        let Holder::Kept(kept) = self.holder else { return Ok(()) };
        let Kept { connection, place } = *kept;
        let stopped = connection.stop(None, Some(Duration::ZERO)).await;
        drop(connection);
        let removed = move || {
            let (sandboxes, sandbox) = &*place;
            match sandboxes.lock_ended(sandbox, LAST_WORDS).and_then(|lock| sandboxes.remove(sandbox, lock)) {
                // It removed itself at its end, or somebody was faster.
                Err(StateError::Missing { .. }) => Ok(()),
                removed => removed,
            }
        };
        match (blocking(removed).await, stopped) {
            (Ok(()), _) => Ok(()),
            // It still runs, and this is why.
            (Err(StateError::Busy { .. }), Err(error)) => Err(error.into()),
            (Err(error), _) => Err(error.into()),
        }
    }

    /// The machine below, if this process holds it, with everything that it can do.
    #[must_use]
    pub fn machine(&self) -> Option<&instance::Sandbox> {
        match &self.holder {
            Holder::Held(held, _) => Some(&held.machine),
            Holder::Kept(_) => None,
        }
    }

    /// The connection to the keeper, if one holds it, with everything that it can be asked:
    /// attachments, sessions, further containers, figures.
    #[must_use]
    pub fn keeper(&self) -> Option<&connect::Connection> {
        match &self.holder {
            Holder::Held(..) => None,
            Holder::Kept(kept) => Some(&kept.connection),
        }
    }

    /// The directory of what a keeper holds, with its record, state and logs.
    #[must_use]
    pub fn directory(&self) -> Option<&SandboxDir> {
        match &self.holder {
            Holder::Held(..) => None,
            Holder::Kept(kept) => Some(&kept.place.1),
        }
    }

    pub(super) async fn start_exec(&self, spec: &ExecSpec) -> Result<Process, Error> {
        match &self.holder {
            Holder::Held(held, _) => held.exec(spec).await,
            Holder::Kept(kept) => {
                let connection = kept.connection.clone();
                let exec = connection.exec(spec).await??;
                let claimed = exec.claimed.ok_or_else(|| {
                    Error::host("use the process's streams")(std::io::Error::other(
                        "the process that holds the sandbox gave none",
                    ))
                })?;
                let pipes = Pipes::new(claimed.streams, spec.terminal)?;
                let alive = Some(claimed.connection);
                Ok(Process::new(exec.id, pipes, Way::Kept { connection, alive }))
            }
        }
    }
}
