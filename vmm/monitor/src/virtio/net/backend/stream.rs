//! A stream socket in QEMU's framing: 4 bytes of length, most significant first, before each frame.
//! No header, and so no offloads.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Backend, Received, Sent, closed, refused};
use crate::sys::fits;
use crate::sys::unix::{SocketKind, prepare, socket_kind, try_receive, try_send};
use crate::virtio::net::header::{Header, Offloads};
use crate::virtio::net::spec::{ETHERNET, FRAME_MAX};
use crate::virtio::queue::{QueueFault, Reader, Writer};

/// Bytes of a length.
const LENGTH: usize = 4;
/// Bytes that are read ahead: room for the longest frame.
const READ_AHEAD: usize = 128 << 10;
const _: () = assert!(READ_AHEAD >= FRAME_MAX as usize + LENGTH);

/// See the module.
pub(in crate::virtio::net) struct Stream {
    socket: OwnedFd,
    /// The end of a frame whose beginning the socket took.
    unsent: Vec<u8>,
    /// What was read and is not the guest's yet: `ahead[start..end]`.
    ahead: Vec<u8>,
    start: usize,
    end: usize,
}

impl Stream {
    pub(in crate::virtio::net) fn new(socket: OwnedFd) -> io::Result<Self> {
        if socket_kind(socket.as_fd())? != SocketKind::Stream {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no stream socket"));
        }
        prepare(&socket)?;
        Ok(Self { socket, unsent: Vec::new(), ahead: Vec::new(), start: 0, end: 0 })
    }

    fn waiting(&self) -> &[u8] {
        &self.ahead[self.start..self.end]
    }

    /// The length of the next frame, and whether all of it is there.
    fn next(&self) -> Option<(u32, bool)> {
        let waiting = self.waiting();
        let length = u32::from_be_bytes(*waiting.first_chunk::<LENGTH>()?);
        let bytes: usize = fits(length, "usize has at least 32 bits");
        Some((length, waiting.len() - LENGTH >= bytes))
    }

    /// Reads what is there; `None`: there is nothing.
    fn read(&mut self) -> io::Result<Option<usize>> {
        if self.ahead.is_empty() {
            // Pages that no frame has reached yet cost nothing.
            self.ahead = vec![0; READ_AHEAD];
        }
        self.ahead.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        match try_receive(self.socket.as_fd(), &mut self.ahead[self.end..]) {
            Ok(bytes) => {
                self.end += bytes;
                Ok(Some(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A frame that is half sent or half read cannot be gone on with by another device on this socket,
/// which a machine that starts again has: its link is down then.
impl Drop for Stream {
    fn drop(&mut self) {
        if !self.unsent.is_empty() || self.start != self.end {
            // A peer that is gone has no use for it.
            let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        }
    }
}

impl Backend for Stream {
    fn carries(&self) -> Offloads {
        Offloads::NONE
    }

    fn descriptor(&self, _pair: usize) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn tell(&mut self, _guest: Offloads) -> Sent {
        self.flush()
    }

    fn use_pairs(&mut self, _pairs: usize) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, _pair: usize, _header: &Header, frame: &mut Reader<'_>) -> Result<Sent, QueueFault> {
        match self.flush() {
            Sent::Taken => {}
            other => return Ok(other),
        }
        let (socket, left) = (self.socket.as_fd(), frame.left());
        let head = left.to_be_bytes();
        let mut taken = 0;
        let sent = frame.transfer(left, |pieces| {
            if pieces.bytes() != fits::<_, usize>(left, "usize has at least 32 bits") {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            taken = pieces.send_behind(&head, socket)?;
            Ok(taken.saturating_sub(LENGTH))
        })?;
        if let Err(error) = sent {
            return Ok(refused(error));
        }
        // What the socket did not take of this frame is held, so that its chain can go back.
        self.unsent.extend_from_slice(&head[taken.min(LENGTH)..]);
        let (from, rest) = (self.unsent.len(), fits::<_, usize>(frame.left(), "usize has at least 32 bits"));
        self.unsent.resize(from + rest, 0);
        frame.read_exact(&mut self.unsent[from..])?;
        Ok(Sent::Taken)
    }

    fn flush(&mut self) -> Sent {
        while !self.unsent.is_empty() {
            match try_send(self.socket.as_fd(), &self.unsent) {
                Ok(bytes) => drop(self.unsent.drain(..bytes)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Sent::Full,
                // Half a frame cannot be left out.
                Err(error) => return Sent::Gone(error),
            }
        }
        Sent::Taken
    }

    fn receive(&mut self, _pair: usize, space: &mut Writer<'_>) -> Result<Received, QueueFault> {
        let length = loop {
            match self.next() {
                Some((length, _)) if length > FRAME_MAX => {
                    let text = format!("the other side of the link announced a frame of {length} bytes");
                    return Ok(Received::Gone(io::Error::new(io::ErrorKind::InvalidData, text)));
                }
                Some((length, true)) => break length,
                _ => {}
            }
            match self.read() {
                Ok(Some(0)) => return Ok(Received::Gone(closed())),
                Ok(Some(_)) => {}
                Ok(None) => return Ok(Received::Nothing),
                Err(error) => return Ok(Received::Gone(error)),
            }
        };
        let from = self.start + LENGTH;
        self.start = from + fits::<_, usize>(length, "usize has at least 32 bits");
        if length < ETHERNET {
            return Ok(Received::Bad);
        }
        if length > space.left() {
            return Ok(Received::TooLong);
        }
        space.write_all(&self.ahead[from..self.start])?;
        Ok(Received::Frame(Header::default(), length))
    }
}
