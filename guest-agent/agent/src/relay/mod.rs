//! Connections between the host and containers: the container's ends of them.
//!
//! A path of a container is the container's business: it may lead into a file system that the
//! container itself serves, and wait for ever. So the calls on it are made by a process of its own
//! (`door`), which is in the container's mounts and network, one for each container, and sends
//! back the socket. Whoever makes it wait holds up relays of this container alone, and for a while.

mod address;
mod door;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

pub use address::{Address, BadAddress};
use door::{Ask, Door};

use crate::stdio::{Stream, connected};

/// Most connections of each kind at a time, and so their descriptors.
pub const CONNECTIONS_MOST: usize = 2048;

/// Most listeners at a time.
pub const LISTENERS_MOST: usize = 64;

/// How long a connection may take to be made.
const PATIENCE: Duration = Duration::from_secs(10);

/// How soon a Unix socket whose queue is full is tried again: no event tells that it has room.
const AGAIN: Duration = Duration::from_millis(20);

/// Why there is no connection or no listener.
#[derive(Debug, Error)]
pub enum RelayError {
    /// What was named is no address.
    #[error(transparent)]
    Address(#[from] BadAddress),
    /// Nothing accepts there.
    #[error("cannot connect to {0}")]
    Connect(Address, #[source] io::Error),
    /// The container's processes cannot be listened to there.
    #[error("cannot listen at {0}")]
    Listen(Address, #[source] io::Error),
    /// There are too many.
    #[error("too many {0} are open in the guest at a time; the most are {1}")]
    TooMany(&'static str, usize),
    /// There is no such listener, or its container has ended.
    #[error("there is no listener {0}")]
    NoListener(u32),
}

/// The way into one container.
pub struct Entrance {
    /// The container's first process.
    first: Arc<OwnedFd>,
    /// Made when it is first needed, and anew after it had to be ended.
    door: Mutex<Option<Door>>,
}

/// Does `work` with what is in `place`, or with what `open` makes, and puts it back if it served.
/// It is out of its place meanwhile: work that fails, or that its caller gives up, ends it, so that
/// nobody later has the answer to what was asked before.
async fn taken<T, R, E, F>(
    place: &Mutex<Option<T>>,
    open: impl FnOnce() -> io::Result<T>,
    work: impl AsyncFnOnce(&T) -> Result<Result<R, F>, E>,
) -> io::Result<Result<Result<R, F>, E>> {
    let mut place = place.lock().await;
    let held = match place.take() {
        Some(held) => held,
        None => open()?,
    };
    let done = work(&held).await;
    if let Ok(Ok(_)) = done {
        *place = Some(held);
    }
    Ok(done)
}

impl Entrance {
    /// That of the container whose first process has this pidfd.
    #[must_use]
    pub fn new(first: Arc<OwnedFd>) -> Self {
        Self { first, door: Mutex::new(None) }
    }

    /// The container's first process.
    #[must_use]
    pub fn first(&self) -> &Arc<OwnedFd> {
        &self.first
    }

    /// Ends the process in the container: nothing is asked of it any more.
    pub async fn close(&self) {
        *self.door.lock().await = None;
    }

    async fn ask(&self, ask: Ask, address: &Address) -> io::Result<OwnedFd> {
        let open = || Door::open(&self.first);
        taken(&self.door, open, async |door: &Door| timeout(PATIENCE, door.ask(ask, address)).await)
            .await?
            .unwrap_or_else(|_late| Err(io::ErrorKind::TimedOut.into()))?
    }

    /// Connects to `address`.
    ///
    /// # Errors
    /// Those of connect(2), and `TimedOut`.
    pub async fn connect(&self, address: &Address) -> io::Result<Stream> {
        let until = Instant::now() + PATIENCE;
        loop {
            let error = match self.ask(Ask::Connect, address).await {
                Ok(socket) => {
                    let made = timeout(PATIENCE, connected(socket)).await;
                    return made
                        .unwrap_or_else(|_late| Err(io::ErrorKind::TimedOut.into()))
                        .and_then(Stream::new);
                }
                Err(error) => error,
            };
            if error.kind() != io::ErrorKind::WouldBlock || Instant::now() >= until {
                return Err(error);
            }
            sleep(AGAIN).await;
        }
    }

    /// Listens at `address`.
    ///
    /// # Errors
    /// Those of socket(2), bind(2) and listen(2).
    pub async fn listen(&self, address: &Address) -> io::Result<Stream> {
        self.ask(Ask::Listen, address).await.and_then(Stream::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_is_asked_in_vain_is_not_asked_again() {
        let place = Mutex::new(None);
        let made = std::cell::Cell::new(0);
        let open = || {
            made.set(made.get() + 1);
            Ok(made.get())
        };
        let ask = |served: Result<Result<(), ()>, ()>| {
            taken(&place, open, async move |held: &i32| {
                let _one = *held;
                served
            })
        };
        ask(Ok(Ok(()))).await.unwrap().unwrap().unwrap();
        ask(Ok(Ok(()))).await.unwrap().unwrap().unwrap();
        assert_eq!((made.get(), *place.lock().await), (1, Some(1)), "one serves for all");
        ask(Err(())).await.unwrap().unwrap_err();
        assert_eq!(*place.lock().await, None, "it did not answer in time");
        ask(Ok(Err(()))).await.unwrap().unwrap().unwrap_err();
        assert_eq!((made.get(), *place.lock().await), (2, None), "it is gone");
        // The caller gives up, as at the deadline of its call.
        let dropped =
            taken(&place, open, async |_: &i32| std::future::pending::<Result<Result<(), ()>, ()>>().await);
        assert!(timeout(Duration::ZERO, dropped).await.is_err());
        assert_eq!((made.get(), *place.lock().await), (3, None), "its answer would be another's");
    }
}
