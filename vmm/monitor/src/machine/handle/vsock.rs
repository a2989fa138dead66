//! The guest's socket ports.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::ask::{Control, Pending};
use super::error::ControlError;
use crate::machine::wire::Request;
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
        self.0.ask(&Request::VsockConnect { port }, &[])
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
        let listening = self.0.ask(&Request::VsockListen { port }, &[theirs])?;
        Ok((VsockListener { channel, port }, listening))
    }
}

/// A port of the host that the guest can dial.
#[derive(Debug)]
pub struct VsockListener {
    channel: OwnedFd,
    port: u32,
}

impl VsockListener {
    /// Waits for the guest to dial. [`io::ErrorKind::WouldBlock`] when it has not and the listener
    /// is non-blocking, [`io::ErrorKind::UnexpectedEof`] when the machine has ended.
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
