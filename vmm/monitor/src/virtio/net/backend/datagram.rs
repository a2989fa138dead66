//! A socket that keeps the limits of messages: one frame each.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Backend, Received, Sent, closed, refused, unread};
use crate::sys::fits;
use crate::sys::unix::{SocketKind, prepare, socket_kind, try_send};
use crate::virtio::net::header::{Header, Offloads};
use crate::virtio::net::spec::header::BYTES;
use crate::virtio::queue::{QueueFault, Reader, Writer};

/// Bytes of a hello, which is shorter than any frame with its header.
const HELLO_BYTES: usize = 16;
const MAGIC: [u8; 4] = *b"NLNK";
const VERSION: u16 = 1;

/// See the module.
pub(in crate::virtio::net) struct Datagram {
    socket: OwnedFd,
    /// An empty message is the end of the connection.
    ends_with_empty: bool,
    /// With headers and hellos: the MTU that a hello says.
    mtu: Option<u16>,
    /// The hello that the peer has not been sent yet.
    hello: Option<[u8; HELLO_BYTES]>,
}

impl Datagram {
    /// With `mtu`, messages have headers, and hellos say this MTU.
    pub(in crate::virtio::net) fn new(socket: OwnedFd, mtu: Option<u16>) -> io::Result<Self> {
        let ends_with_empty = match socket_kind(socket.as_fd())? {
            SocketKind::Datagram => false,
            SocketKind::SeqPacket => true,
            SocketKind::Stream => {
                let text = "it is no socket that keeps the limits of messages";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        };
        prepare(&socket)?;
        Ok(Self { socket, ends_with_empty, mtu, hello: None })
    }
}

/// The first message of a link, and one for each change.
fn hello(guest: Offloads, mtu: u16) -> [u8; HELLO_BYTES] {
    let Offloads { checksum, tso4, tso6, uso } = guest;
    let bits = [(checksum, 1), (tso4, 2), (tso6, 4), (uso, 0x30)];
    let bits = bits.into_iter().filter(|(has, _)| *has).fold(0u32, |all, (_, bit)| all | bit);
    let mut bytes = [0; HELLO_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
    bytes[8..12].copy_from_slice(&bits.to_le_bytes());
    bytes[12..].copy_from_slice(&u32::from(mtu).to_le_bytes());
    bytes
}

impl Backend for Datagram {
    fn carries(&self) -> Offloads {
        if self.mtu.is_some() { Offloads::ALL } else { Offloads::NONE }
    }

    fn descriptor(&self, _pair: usize) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn tell(&mut self, guest: Offloads) -> Sent {
        self.hello = self.mtu.map(|mtu| hello(guest, mtu));
        self.flush()
    }

    fn use_pairs(&mut self, _pairs: usize) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, _pair: usize, header: &Header, frame: &mut Reader<'_>) -> Result<Sent, QueueFault> {
        match self.flush() {
            Sent::Taken => {}
            other => return Ok(other),
        }
        let head = self.mtu.map(|_| header.to_bytes(0));
        let head = head.as_ref().map_or(&[][..], |head| head);
        let (socket, left) = (self.socket.as_fd(), frame.left());
        let sent = frame.transfer(left, |pieces| {
            if pieces.bytes() != fits::<_, usize>(left, "usize has at least 32 bits") {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let sent = pieces.send_behind(head, socket)?;
            Ok(sent.saturating_sub(head.len()))
        })?;
        Ok(sent.map_or_else(refused, |_| Sent::Taken))
    }

    fn flush(&mut self) -> Sent {
        let Some(hello) = &self.hello else { return Sent::Taken };
        match try_send(self.socket.as_fd(), hello) {
            Ok(_) => {
                self.hello = None;
                Sent::Taken
            }
            Err(error) => refused(error),
        }
    }

    fn receive(&mut self, _pair: usize, space: &mut Writer<'_>) -> Result<Received, QueueFault> {
        let mut head = [0; BYTES];
        let head_bytes = if self.mtu.is_some() { BYTES } else { 0 };
        // What comes behind the guest's buffers shows that they were too small.
        let (mut tail, mut read) = ([0; 1], 0);
        let (socket, room) = (self.socket.as_fd(), space.left());
        let result = space.transfer(room, |pieces| {
            read = pieces.read_between(&mut head[..head_bytes], &mut tail, socket)?;
            Ok(read.saturating_sub(head_bytes).min(pieces.bytes()))
        })?;
        if let Err(error) = result {
            return Ok(unread(error));
        }
        let Some(bytes) = read.checked_sub(head_bytes).filter(|_| read > 0) else {
            let is_end = read == 0 && self.ends_with_empty;
            return Ok(if is_end { Received::Gone(closed()) } else { Received::Bad });
        };
        if self.mtu.is_some() && read == HELLO_BYTES {
            // Of the peer's there is nothing to know but that it speaks of this version.
            let is_known = head[..4] == MAGIC && head[4..6] == VERSION.to_le_bytes();
            return Ok(if is_known { Received::Word } else { Received::Bad });
        }
        let bytes = fits(bytes, "no message has 2^32 bytes");
        if bytes > room {
            return Ok(Received::TooLong);
        }
        Ok(Received::Frame(Header::parse(&head), bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_these_bytes() {
        // The network at the other end has the same test over the same bytes, but for one bit: it
        // knows UDP over the two versions of IP apart.
        let bytes = *b"NLNK\x01\x00\x00\x00\x03\x00\x00\x00\xf0\xff\x00\x00";
        let guest = Offloads { checksum: true, tso4: true, ..Offloads::NONE };
        assert_eq!(hello(guest, 65_520), bytes);
        assert_eq!(hello(Offloads::ALL, 0)[8..12], [0x37, 0, 0, 0]);
        assert_eq!(hello(Offloads::NONE, 0)[8..12], [0; 4]);
    }
}
