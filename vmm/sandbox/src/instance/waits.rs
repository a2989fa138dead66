//! Waiting for a machine without a thread: whoever gives a wait up drops it, and nothing is left
//! waiting.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::task::Poll;
use std::time::Duration;

use nelly_vmm::machine::{ControlError, Machine, Pending, VsockListener};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long what a monitor said before its process ended may take to be read.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The monitor's process, whose end ends every wait for it. Its sockets do not tell the end of one
/// that was taken over: it may have left them open behind it.
pub(super) struct Process(Option<AsyncFd<OwnedFd>>);

/// The monitor's process has ended.
pub(super) struct Gone;

impl Process {
    /// That of a machine; of one in threads there is none, and it never ends.
    pub(super) fn of(machine: &Machine) -> io::Result<Self> {
        let end = machine.process_end().map(|end| end.try_clone_to_owned()).transpose()?;
        #[expect(deprecated, reason = "an OwnedFd means the same descriptor for as long as it lives")]
        let end = end.map(|end| AsyncFd::with_interest(end, Interest::READABLE)).transpose()?;
        Ok(Self(end))
    }

    /// Waits until the process has ended, and a while for what it said to be read.
    pub(super) async fn gone(&self) -> Gone {
        match &self.0 {
            Some(end) => {
                // An error means that nothing more is heard of it either.
                let _ended = end.readable().await;
                tokio::time::sleep(LAST_WORDS).await;
                Gone
            }
            None => std::future::pending().await,
        }
    }

    /// Does `work`, which waits for the monitor, for as long as there is one.
    pub(super) async fn during<T>(&self, work: impl Future<Output = T>) -> Result<T, Gone> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            gone = self.gone() => Err(gone),
        }
    }
}

/// Waits until `look` finds something, looking at first and each time that there is something to
/// read at `socket`, a non-blocking one.
async fn until<T: AsFd, R>(socket: &mut T, mut look: impl FnMut(&mut T) -> Option<R>) -> io::Result<R> {
    if let Some(found) = look(socket) {
        return Ok(found);
    }
    // The runtime waits at a descriptor of its own for the same socket.
    let waiting = UnixStream::from(socket.as_fd().try_clone_to_owned()?);
    let waiting = tokio::net::UnixStream::from_std(waiting)?;
    loop {
        waiting.readable().await?;
        let mut looked = || look(socket).ok_or_else(|| io::ErrorKind::WouldBlock.into());
        match waiting.try_io(Interest::READABLE, &mut looked) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

/// A request whose answer is there: what is asked of it then waits for nothing.
pub(super) async fn answered(mut pending: Pending) -> Result<Pending, ControlError> {
    let whole = until(&mut pending, |pending| pending.answered().then_some(()));
    whole.await.map_err(ControlError::Talk)?;
    Ok(pending)
}

/// The next that the guest dials.
pub(super) async fn accept(listener: &mut VsockListener) -> io::Result<UnixStream> {
    let accept = |listener: &mut VsockListener| match listener.poll_accept() {
        Ok(Poll::Pending) => None,
        Ok(Poll::Ready(stream)) => Some(Ok(stream)),
        Err(error) => Some(Err(error)),
    };
    until(listener, accept).await?
}

/// For what may wait: for a host's file, or for a monitor to take a request. It ends with the
/// machine.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Holds what is to be killed when whoever waits for it gives up: dropping a handle alone waits a
/// while for an orderly end.
pub(super) struct KillOnDrop<T> {
    held: Option<T>,
    kill: fn(&T),
}

impl<T> KillOnDrop<T> {
    pub(super) fn new(held: T, kill: fn(&T)) -> Self {
        Self { held: Some(held), kill }
    }

    /// Lets it live.
    pub(super) fn disarm(mut self) -> T {
        self.held.take().expect("it is taken here alone, which ends this value")
    }
}

impl<T> std::ops::Deref for KillOnDrop<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.held.as_ref().expect("it is taken only where this value ends")
    }
}

impl<T> Drop for KillOnDrop<T> {
    fn drop(&mut self) {
        if let Some(held) = &self.held {
            (self.kill)(held);
        }
    }
}
