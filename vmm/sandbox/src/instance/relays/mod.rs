//! Relays that run: who listens, and what became of the connections.
//!
//! A connection that was made is given to the monitor, which moves its bytes between the socket
//! and the guest, where the agent has made or accepted the other end. Nothing of it stays here: not
//! the socket, no buffer, no task. So a relay costs this process no more than its beginning.

mod listener;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nelly_vmm::machine::Vsock;
use nelly_vmm::text;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};

use self::listener::Listener;
use super::waits::{answered, blocking};
use super::{SandboxError, what};
use crate::agent::{Agent, Token};
use crate::spec::relay::{Relay, RelayAddress, Side};

/// Most connections of a container's relays that are being made at a time; more wait, one of each
/// relay accepted already.
const BEGINNING_MOST: usize = 32;

/// Most requests to the monitor that are being written at a time: each may hold a thread.
const ASKING_MOST: usize = 2;

/// Most bytes that are kept of why a connection failed.
const SENTENCE_MOST: usize = 512;

/// How long accepting waits after it failed, as it does when a process has no descriptor left.
const AGAIN: Duration = Duration::from_millis(100);

/// How long the agent may take to close the end of a connection that has no other.
const FORGET: Duration = Duration::from_secs(5);

/// What is known of a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayState {
    /// The relay, with the port that was found free in the place of 0.
    pub relay: Relay,
    /// Connections that were joined.
    pub connections: u64,
    /// Connections that were accepted and could not be joined: they were closed.
    pub failed: u64,
    /// Why the latest of those was not, or why it does not listen; empty if there was none.
    pub last_failure: String,
}

/// What the tasks of a relay count.
#[derive(Debug)]
struct Tally {
    relay: Relay,
    connections: AtomicU64,
    failed: AtomicU64,
    last_failure: Mutex<String>,
}

impl Tally {
    fn new(relay: Relay) -> Self {
        let (connections, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { relay, connections, failed, last_failure: Mutex::default() }
    }

    fn fail(&self, why: String) {
        self.note(why);
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// What the guest says may be long.
    fn note(&self, mut why: String) {
        why.truncate(why.floor_char_boundary(SENTENCE_MOST));
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    fn state(&self) -> RelayState {
        RelayState {
            relay: self.relay.clone(),
            connections: self.connections.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            last_failure: self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// Checks that relays can listen on this host now, and changes nothing.
///
/// # Errors
/// One cannot; the error names its address.
pub fn check(relays: &[Relay]) -> Result<(), SandboxError> {
    for relay in relays.iter().filter(|relay| relay.listens == Side::Host) {
        let free = match &relay.listen {
            RelayAddress::Unix(path) => listener::check(path),
            RelayAddress::Tcp(port) => {
                std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, *port)).map(drop)
            }
        };
        free.map_err(|source| SandboxError::Relay { listen: relay.listen.clone(), source })?;
    }
    Ok(())
}

/// What joins connections with the guest.
#[derive(Clone)]
pub(super) struct Carrier {
    pub(super) agent: Agent,
    pub(super) guest: Joins,
    /// The container.
    pub(super) id: String,
}

/// Who takes a socket for a stream of the guest.
#[derive(Clone)]
pub(super) enum Joins {
    /// The monitor, for the guest's port of streams.
    Monitor(Vsock, u32),
    /// A test.
    #[cfg(test)]
    Played(std::sync::mpsc::Sender<(Token, OwnedFd)>),
}

/// Relays that listen and are not served yet.
pub(super) struct Listening {
    carrier: Carrier,
    open: Vec<(Relay, Way)>,
}

enum Way {
    In(Listener),
    Out(u32),
}

impl Carrier {
    /// Listens for `relays`, on the host and in the container, which need not have started.
    pub(super) async fn listen(self, relays: &[Relay]) -> Result<Listening, SandboxError> {
        let mut open = Vec::with_capacity(relays.len());
        for relay in relays {
            let mut relay = relay.clone();
            let way = match relay.listens {
                Side::Guest => Way::Out(self.agent.listen(&self.id, &relay.listen).await?),
                Side::Host => {
                    let asked = relay.listen.clone();
                    let bound = Listener::bind(&asked);
                    let listener =
                        bound.map_err(|source| SandboxError::Relay { listen: asked.clone(), source })?;
                    relay.listen = listener.address(&asked);
                    Way::In(listener)
                }
            };
            open.push((relay, way));
        }
        Ok(Listening { carrier: self, open })
    }
}

impl Listening {
    /// Serves connections until the value is dropped.
    pub(super) fn serve(self) -> Relays {
        let carrier = Arc::new(Serving {
            carrier: self.carrier,
            beginning: Arc::new(Semaphore::new(BEGINNING_MOST)),
            asking: Semaphore::new(ASKING_MOST),
        });
        let mut relays = Relays { tallies: Vec::new(), tasks: Vec::new() };
        for (relay, way) in self.open {
            let tally = Arc::new(Tally::new(relay));
            relays.tallies.push(Arc::clone(&tally));
            let serving = Arc::clone(&carrier);
            relays.tasks.push(match way {
                Way::In(listener) => tokio::spawn(serving.inward(listener, tally)),
                Way::Out(number) => tokio::spawn(serving.outward(number, tally)),
            });
        }
        relays
    }
}

/// Relays that are served. Dropping it ends them; connections that were joined go on.
#[derive(Debug)]
pub(super) struct Relays {
    tallies: Vec<Arc<Tally>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Relays {
    /// One that does not listen, which its state says.
    pub(super) fn deaf(relay: Relay, error: &SandboxError) -> Self {
        let tally = Tally::new(relay);
        tally.note(format!("it does not listen: {}", text::chain(error)));
        Self { tallies: vec![Arc::new(tally)], tasks: Vec::new() }
    }

    pub(super) fn states(&self) -> Vec<RelayState> {
        self.tallies.iter().map(|tally| tally.state()).collect()
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

struct Serving {
    carrier: Carrier,
    beginning: Arc<Semaphore>,
    asking: Semaphore,
}

impl Serving {
    /// Joins each connection to a socket of the host with one in the container.
    async fn inward(self: Arc<Self>, listener: Listener, tally: Arc<Tally>) {
        let mut beginning = JoinSet::new();
        let mut is_told = false;
        loop {
            while beginning.try_join_next().is_some() {}
            match listener.accept().await {
                Ok(client) => {
                    is_told = false;
                    let Some(permit) = self.begins().await else { return };
                    let (serving, tally) = (Arc::clone(&self), Arc::clone(&tally));
                    beginning.spawn(async move {
                        serving.begin_inward(client, &tally).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Whoever connected waits, and is not one more who failed at each trial.
                    if !std::mem::replace(&mut is_told, true) {
                        tally.fail(format!("cannot accept a connection: {error}"));
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Waits until one more connection may begin. Taken for a connection that is there: a relay
    /// that nobody uses takes nothing away from others.
    async fn begins(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.beginning).acquire_owned().await.ok()
    }

    async fn begin_inward(&self, client: OwnedFd, tally: &Tally) {
        let Carrier { agent, id, .. } = &self.carrier;
        let made = match agent.connect(id, &tally.relay.connect).await {
            Ok(token) => self.join(token, &client).await,
            Err(error) => Err(text::chain(&error)),
        };
        match made {
            Ok(()) => drop(tally.connections.fetch_add(1, Ordering::Relaxed)),
            Err(why) => {
                reset(&client);
                tally.fail(why);
            }
        }
    }

    /// Joins each connection of a process of the container with one to a socket of the host.
    async fn outward(self: Arc<Self>, listener: u32, tally: Arc<Tally>) {
        let mut beginning = JoinSet::new();
        let mut is_told = false;
        loop {
            while beginning.try_join_next().is_some() {}
            match self.carrier.agent.accept(listener).await {
                Ok(token) => {
                    is_told = false;
                    let Some(permit) = self.begins().await else { return };
                    let (serving, tally) = (Arc::clone(&self), Arc::clone(&tally));
                    beginning.spawn(async move {
                        serving.begin_outward(token, &tally).await;
                        drop(permit);
                    });
                }
                // The container has ended, or the guest is out of descriptors.
                Err(error) => {
                    if !std::mem::replace(&mut is_told, true) {
                        tally.fail(text::chain(&error));
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn begin_outward(&self, token: Token, tally: &Tally) {
        let made = match listener::connect(&tally.relay.connect).await {
            Ok(server) => self.join(token, &server).await,
            Err(error) => {
                self.give_up(&token).await;
                Err(format!("cannot connect to {}: {error}", tally.relay.connect))
            }
        };
        match made {
            Ok(()) => drop(tally.connections.fetch_add(1, Ordering::Relaxed)),
            Err(why) => tally.fail(why),
        }
    }

    /// Closes the container's end of a connection that has no other, which would else be open until
    /// the token expires.
    async fn give_up(&self, token: &Token) {
        // An agent that cannot be told is gone with its container, or waits for that minute; the
        // other end is not to be held open for so long.
        let _told = tokio::time::timeout(FORGET, self.carrier.agent.forget(token)).await;
    }

    /// Gives a socket to the monitor, for the stream of the guest that `token` stands for. If it
    /// does not take it, the container's end is closed.
    async fn join(&self, token: Token, socket: &OwnedFd) -> Result<(), String> {
        let join = async {
            let theirs = socket.try_clone().map_err(nelly_vmm::machine::ControlError::Talk)?;
            let (vsock, port) = match &self.carrier.guest {
                Joins::Monitor(vsock, port) => (vsock.clone(), *port),
                #[cfg(test)]
                Joins::Played(takes) => {
                    let gone =
                        || nelly_vmm::machine::ControlError::Talk(std::io::ErrorKind::BrokenPipe.into());
                    return takes.send((token, theirs)).map_err(|_| gone());
                }
            };
            let one = self.asking.acquire().await;
            let begun = blocking(move || vsock.begin_join(port, &token, theirs)).await;
            drop(one);
            answered(begun?).await?.done()
        };
        let joined: Result<(), SandboxError> = join.await.map_err(what("cannot join a connection"));
        if joined.is_err() {
            self.give_up(&token).await;
        }
        joined.map_err(|error| text::chain(&error))
    }
}

/// Of a TCP connection that is closed next: its client hears of a reset, not of an end.
fn reset(client: &OwnedFd) {
    // That of a Unix socket has no such.
    let _none = rustix::net::sockopt::set_socket_linger(client.as_fd(), Some(Duration::ZERO));
}
