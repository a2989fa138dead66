//! What happens to a machine, as it happens.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::Poll;

use super::ask::Control;
use crate::machine::outcome::Event;
use crate::machine::wire::{Received, Receiver};
use crate::sys;

/// What happens to a machine, as it happens.
#[derive(Debug)]
pub struct Events {
    socket: OwnedFd,
    receiver: Receiver,
    control: Control,
}

impl Events {
    /// Events as they arrive on `socket`.
    pub(super) fn new(socket: OwnedFd, control: Control) -> io::Result<Self> {
        // Half an event of a monitor that was taken over keeps nobody.
        sys::set_nonblocking(&socket)?;
        Ok(Self { socket, receiver: Receiver::new(0), control })
    }

    /// The next event, or `None` after the last one; [`Poll::Pending`] when none is whole yet.
    /// Waits for nothing.
    pub fn poll_event(&mut self) -> io::Result<Poll<Option<Event>>> {
        Ok(match self.receiver.receive(self.socket.as_fd())? {
            Received::Frame(event, _) => Poll::Ready(Some(event)),
            Received::End => Poll::Ready(None),
            Received::Nothing => Poll::Pending,
        })
    }

    /// Waits for the next event. `None` after the last one.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        loop {
            if let Poll::Ready(event) = self.poll_event()? {
                return Ok(event);
            }
            if !self.control.wait_for_word(self.socket.as_fd())? {
                // A machine tells its events before its end: what is not there by now does not
                // come.
                return Ok(match self.poll_event()? {
                    Poll::Ready(event) => event,
                    Poll::Pending => None,
                });
            }
        }
    }
}

impl AsFd for Events {
    /// Readable when there is something for [`Events::poll_event`] to read, which need not be all
    /// of an event.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
