//! Requests under way. Each has a socket of its own for its answer, and nobody who waits for one is
//! kept beyond the machine's end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::PollFlags;

use super::error::{ControlError, MonitorError};
use super::polling::first_ready;
use crate::machine::inspection::Inspection;
use crate::machine::wire::{self, Answer, ControlRequest, Received, Receiver};
use crate::sys::{self, ProcessHandle};
use crate::timeline::GuestCounter;

/// The control connection.
#[derive(Clone, Debug)]
pub(super) struct Control(Arc<Connection>);

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    /// Held while a request is written, so that two do not mix.
    sending: Mutex<()>,
    /// Readable once the machine has ended.
    done: OwnedFd,
    /// Of a machine in a process of its own, where the system has such.
    killer: Option<ProcessHandle>,
    killed: AtomicBool,
}

impl Control {
    pub(super) fn new(socket: OwnedFd, done: OwnedFd, killer: Option<ProcessHandle>) -> Self {
        let (sending, killed) = (Mutex::new(()), AtomicBool::new(false));
        Self(Arc::new(Connection { socket, sending, done, killer, killed }))
    }

    /// Where the monitor says its last word.
    pub(super) fn done(&self) -> BorrowedFd<'_> {
        self.0.done.as_fd()
    }

    pub(super) fn killer(&self) -> Option<&ProcessHandle> {
        self.0.killer.as_ref()
    }

    /// As on a system without such handles.
    #[cfg(test)]
    pub(super) fn forget_killer(&mut self) {
        Arc::get_mut(&mut self.0).expect("nothing is under way").killer = None;
    }

    pub(super) fn set_killed(&self) {
        self.0.killed.store(true, Ordering::SeqCst);
    }

    pub(super) fn was_killed(&self) -> bool {
        self.0.killed.load(Ordering::SeqCst)
    }

    /// Sends a request; `descriptors` follow the socket of its answer. Waits while a monitor that
    /// reads no requests has no room for one more, until the machine ends.
    pub(super) fn ask(
        &self,
        request: &ControlRequest,
        descriptors: &[OwnedFd],
    ) -> Result<Pending, ControlError> {
        let (ours, theirs) = sys::stream_pair().map_err(ControlError::Talk)?;
        // Whoever took the monitor over may write half an answer there: nobody waits for the other
        // half.
        sys::set_nonblocking(&ours).map_err(ControlError::Talk)?;
        let mut all = vec![theirs.as_fd()];
        all.extend(descriptors.iter().map(AsFd::as_fd));
        let sending = self.0.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = wire::send(self.0.socket.as_fd(), request, &all);
        drop(sending);
        match sent {
            Ok(()) => {
                let receiver = Receiver::new(1);
                Ok(Pending { socket: ours, receiver, control: self.clone(), found: None })
            }
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ControlError::Ended),
            Err(error) => Err(ControlError::Talk(error)),
        }
    }

    /// Without the lock: whoever writes a request that nobody reads is woken by this, as is whoever
    /// waits for an answer.
    pub(super) fn close(&self) {
        // Fails when the other side is gone already, which is as good.
        let _gone = rustix::net::shutdown(&self.0.socket, rustix::net::Shutdown::Both);
    }

    /// Waits until the machine tells its end or its process has ended; `false` when `timeout` was
    /// over first.
    pub(super) fn wait_for_end(&self, timeout: Option<Duration>) -> bool {
        let fds: Vec<_> = std::iter::once((self.done(), PollFlags::IN)).chain(self.process()).collect();
        // What cannot be waited for is looked at.
        first_ready(&fds, timeout).map_or(true, |ready| ready.is_some())
    }

    /// Waits until there is something to read at `fd`, which the monitor writes to; `false` when
    /// its process had ended before. A monitor that is at its end by itself closes it.
    pub(super) fn wait_for_word(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        let fds: Vec<_> = std::iter::once((fd, PollFlags::IN)).chain(self.process()).collect();
        Ok(first_ready(&fds, None)? == Some(0))
    }

    /// The same for what nobody tells any more once the connection is closed.
    fn wait_for_answer(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        let fds: Vec<_> =
            std::iter::once((fd, PollFlags::IN)).chain(self.process()).chain(self.closed()).collect();
        Ok(first_ready(&fds, None)? == Some(0))
    }

    /// Readable once the monitor's process has ended, where there is one and the system tells it.
    pub(super) fn process_end(&self) -> Option<BorrowedFd<'_>> {
        self.killer().map(AsFd::as_fd)
    }

    /// Whether the monitor's process is known to have ended, whatever it has said.
    pub(super) fn process_is_gone(&self) -> bool {
        self.killer().is_some_and(|killer| killer.ended(Duration::ZERO))
    }

    fn process(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        self.process_end().map(|fd| (fd, PollFlags::IN))
    }

    /// Ready once the connection is closed, by either side.
    fn closed(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        Some((self.0.socket.as_fd(), PollFlags::empty()))
    }

    fn is_over(&self) -> bool {
        let fds: Vec<_> = std::iter::once((self.done(), PollFlags::IN)).chain(self.closed()).collect();
        self.was_killed() || first_ready(&fds, Some(Duration::ZERO)).map_or(true, |ready| ready.is_some())
    }
}

/// What an answer is, with its descriptors, or why there is none.
type Found = Result<(Answer, Vec<OwnedFd>), ControlError>;

/// A request under way; dropping it takes the request back where that is possible.
///
/// Whoever has a thread to spare calls [`Pending::done`], [`Pending::stream`] or
/// [`Pending::guest_counter`], whichever fits the request: they wait for the answer, and no longer
/// than the machine lives. Whoever has none polls the descriptor, and [`Pending::process_end`]
/// beside it, and calls [`Pending::answered`] at first and each time that one of them is readable;
/// once that says yes, those calls wait for nothing.
#[derive(Debug)]
pub struct Pending {
    socket: OwnedFd,
    receiver: Receiver,
    control: Control,
    found: Option<Found>,
}

impl Pending {
    /// Reads what there is of the answer and says whether it is whole, or can never be. Waits for
    /// nothing.
    pub fn answered(&mut self) -> bool {
        if self.found.is_none() {
            self.found = self.receive();
        }
        if self.found.is_none() && self.control.process_is_gone() {
            // It may have written the last of it between the two looks.
            self.found = self.receive().or(Some(Err(ControlError::Ended)));
        }
        self.found.is_some()
    }

    /// Readable once the monitor's process has ended; see
    /// [`Machine::process_end`](super::Machine::process_end).
    #[must_use]
    pub fn process_end(&self) -> Option<BorrowedFd<'_>> {
        self.control.process_end()
    }

    fn receive(&mut self) -> Option<Found> {
        match self.receiver.receive(self.socket.as_fd()) {
            Ok(Received::Nothing) => None,
            Ok(Received::Frame(Answer::Failed(chain), _)) => {
                Some(Err(ControlError::Refused(MonitorError::from_chain(chain))))
            }
            Ok(Received::Frame(Answer::NoPowerButton, _)) => Some(Err(ControlError::NoPowerButton)),
            Ok(Received::Frame(Answer::Ended, _)) => Some(Err(ControlError::Ended)),
            Ok(Received::Frame(answer, descriptors)) => Some(Ok((answer, descriptors))),
            // A machine that ends says so, unless it is killed.
            Ok(Received::End) if self.control.is_over() => Some(Err(ControlError::Ended)),
            Ok(Received::End) => Some(Err(ControlError::Unanswered)),
            Err(error) => Some(Err(ControlError::Talk(error))),
        }
    }

    /// Waits for the answer, or for the machine's end.
    pub(super) fn finish(mut self) -> Found {
        while !self.answered() {
            let more = self.control.wait_for_answer(self.socket.as_fd()).map_err(ControlError::Talk)?;
            if !more {
                // The machine may have written the last of it between the two looks.
                self.answered();
                break;
            }
        }
        self.found.unwrap_or(Err(ControlError::Ended))
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

    /// Waits for what the machine shows of itself, see
    /// [`Machine::inspect`](super::Machine::inspect).
    pub fn inspection(self) -> Result<Inspection, ControlError> {
        match self.finish()? {
            (Answer::Inspection(inspection), _) => Ok(*inspection),
            _ => Err(ControlError::Confused),
        }
    }

    /// Waits for the guest's counter, see
    /// [`Machine::guest_counter`](super::Machine::guest_counter).
    pub fn guest_counter(self) -> Result<Option<GuestCounter>, ControlError> {
        match self.finish()? {
            (Answer::GuestCounter(counter), _) => Ok(counter),
            _ => Err(ControlError::Confused),
        }
    }
}

impl AsFd for Pending {
    /// Readable when there is something for [`Pending::answered`] to read, which need not be all of
    /// the answer.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
