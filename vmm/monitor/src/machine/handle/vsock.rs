//! The guest's socket ports.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::task::Poll;

use super::ask::{Control, Pending};
use super::error::ControlError;
use crate::machine::wire::ControlRequest;
use crate::sys;
use crate::virtio::vsock::receive_accepted;

/// The guest's socket ports. Outlives nothing: after the machine's end every call answers
/// [`ControlError::Ended`].
#[derive(Clone, Debug)]
pub struct Vsock(pub(super) Control);

impl Vsock {
    /// A stream to `port` of the guest, once the guest has accepted it.
    pub fn connect(&self, port: u32) -> Result<UnixStream, ControlError> {
        self.begin_connect(port)?.stream()
    }

    /// The same in two steps, with a descriptor to poll in between.
    pub fn begin_connect(&self, port: u32) -> Result<Pending, ControlError> {
        self.0.ask(&ControlRequest::VsockConnect { port }, &[])
    }

    /// Connects `stream`, a connected stream socket of any family, to `port` of the guest. The
    /// guest reads `prefix` (at most 64 bytes) and then what comes on `stream`, and what it says
    /// goes out on it: the monitor moves the bytes, and nobody stands between. [`Pending::done`]
    /// says when the guest has accepted; when it has not, the monitor has closed its copy of
    /// `stream`. Nobody else may use it from here on.
    pub fn begin_join(&self, port: u32, prefix: &[u8], stream: OwnedFd) -> Result<Pending, ControlError> {
        self.0.ask(&ControlRequest::VsockJoin { port, prefix: prefix.to_vec() }, &[stream])
    }

    /// Takes what the guest dials on `port` of the host (context id 2), until the listener is
    /// dropped.
    pub fn listen(&self, port: u32) -> Result<VsockListener, ControlError> {
        let (listener, listening) = self.begin_listen(port)?;
        listening.done()?;
        Ok(listener)
    }

    /// The same in two steps, with a descriptor to poll in between: the listener is of use once the
    /// machine says that it is done.
    pub fn begin_listen(&self, port: u32) -> Result<(VsockListener, Pending), ControlError> {
        let (channel, theirs) = sys::stream_pair().map_err(ControlError::Talk)?;
        sys::set_nonblocking(&channel).map_err(ControlError::Talk)?;
        let listening = self.0.ask(&ControlRequest::VsockListen { port }, &[theirs])?;
        Ok((VsockListener { channel, port, control: self.0.clone() }, listening))
    }
}

/// A port of the host that the guest can dial.
#[derive(Debug)]
pub struct VsockListener {
    channel: OwnedFd,
    port: u32,
    control: Control,
}

impl VsockListener {
    /// Waits for the guest to dial. [`io::ErrorKind::UnexpectedEof`] when the machine has ended.
    pub fn accept(&self) -> io::Result<UnixStream> {
        loop {
            if let Poll::Ready(stream) = self.poll_accept()? {
                return Ok(stream);
            }
            self.control.wait_for_word(self.channel.as_fd())?;
        }
    }

    /// What the guest has dialled; [`Poll::Pending`] when it has not. Waits for nothing.
    pub fn poll_accept(&self) -> io::Result<Poll<UnixStream>> {
        let ended = self.control.process_is_gone();
        match receive_accepted(self.channel.as_fd()) {
            Ok(Some((stream, _guest, _host))) => Ok(Poll::Ready(stream)),
            Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && ended => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Poll::Pending),
            Err(error) => Err(error),
        }
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }
}

impl AsFd for VsockListener {
    /// Readable when there is something for [`VsockListener::poll_accept`]; to be polled beside
    /// [`Machine::process_end`](super::Machine::process_end).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
