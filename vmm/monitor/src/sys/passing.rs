//! Bytes with descriptors beside them on a Unix stream socket (`SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Most descriptors of one send: Linux's own bound (`SCM_MAX_FD`).
pub const MAX_DESCRIPTORS: usize = 253;

/// Two connected Unix stream sockets, close-on-exec.
pub fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, PAIR_FLAGS, None)?;
    close_on_exec([&pair.0, &pair.1])?;
    Ok(pair)
}

#[cfg(target_os = "linux")]
pub(super) const PAIR_FLAGS: SocketFlags = SocketFlags::CLOEXEC;
#[cfg(target_os = "linux")]
const RECEIVE_FLAGS: RecvFlags = RecvFlags::CMSG_CLOEXEC;
#[cfg(target_os = "linux")]
pub(super) const SEND_FLAGS: SendFlags = SendFlags::NOSIGNAL;

#[cfg(not(target_os = "linux"))]
pub(super) const PAIR_FLAGS: SocketFlags = SocketFlags::empty();
#[cfg(not(target_os = "linux"))]
const RECEIVE_FLAGS: RecvFlags = RecvFlags::empty();
#[cfg(not(target_os = "linux"))]
pub(super) const SEND_FLAGS: SendFlags = SendFlags::empty();

/// Linux made them so atomically.
#[cfg(target_os = "linux")]
#[expect(clippy::unnecessary_wraps, reason = "elsewhere it can fail")]
pub(super) fn close_on_exec<'a>(_: impl IntoIterator<Item = &'a OwnedFd>) -> io::Result<()> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn close_on_exec<'a>(descriptors: impl IntoIterator<Item = &'a OwnedFd>) -> io::Result<()> {
    for fd in descriptors {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
    }
    Ok(())
}

/// Sends all of `bytes`, the descriptors with the first of them. Waits for room unless the socket
/// is non-blocking. A peer that is gone is an error (`EPIPE`), never a signal on Linux.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if descriptors.len() > MAX_DESCRIPTORS || bytes.is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(descriptors.len().max(1)))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut sent = 0;
    while sent < bytes.len() {
        let slices = [IoSlice::new(&bytes[sent..])];
        let result = sendmsg(socket, &slices, &mut ancillary, SEND_FLAGS);
        match result {
            Ok(count) => {
                sent += count;
                ancillary.clear();
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What one call received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Bytes; 0 is the end of the stream.
    pub bytes: usize,
    /// Descriptors came along that were not taken: more than were wanted, or this process has no
    /// room for more.
    pub lost: bool,
}

/// Receives into `bytes` and appends what descriptors came along, until `descriptors` holds `most`;
/// what is beyond that is closed.
pub fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
    most: usize,
) -> io::Result<Arrived> {
    let first = descriptors.len();
    let room = most.saturating_sub(first).min(MAX_DESCRIPTORS);
    // Without room for one the kernel closes what comes.
    let size = if room == 0 { 0 } else { rustix::cmsg_space!(ScmRights(room)) };
    let mut space = vec![MaybeUninit::uninit(); size];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let (received, flags) = loop {
        let mut slices = [IoSliceMut::new(bytes)];
        match recvmsg(socket, &mut slices, &mut ancillary, RECEIVE_FLAGS) {
            Ok(received) => break (received.bytes, received.flags),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    // The space is rounded up to whole words, which may hold one more.
    let surplus = descriptors.len() > first + room;
    descriptors.truncate(first + room);
    close_on_exec(&descriptors[first..])?;
    Ok(Arrived { bytes: received, lost: surplus || flags.contains(ReturnFlags::CTRUNC) })
}

/// Makes reads and writes of a descriptor return instead of waiting. The flag belongs to the open
/// file, not to the descriptor: whoever shares it sees it too.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn descriptors_arrive_with_the_first_byte() {
        let (ours, theirs) = stream_pair().unwrap();
        let (near, far) = stream_pair().unwrap();
        send(ours.as_fd(), b"one", &[far.as_fd(), far.as_fd()]).unwrap();
        send(ours.as_fd(), b"two", &[]).unwrap();
        drop(far);
        let (mut bytes, mut descriptors) = ([0; 1], Vec::new());
        let one = receive(theirs.as_fd(), &mut bytes, &mut descriptors, 2).unwrap();
        assert_eq!(one, Arrived { bytes: 1, lost: false });
        assert_eq!(descriptors.len(), 2);
        let mut bytes = [0; 16];
        let mut rest = 0;
        while rest < 5 {
            rest += receive(theirs.as_fd(), &mut bytes[rest..], &mut descriptors, 2).unwrap().bytes;
        }
        assert_eq!((&bytes[..5], descriptors.len()), (&b"netwo"[..], 2));
        std::fs::File::from(descriptors.remove(0)).write_all(b"through").unwrap();
        drop(descriptors);
        let mut text = String::new();
        std::fs::File::from(near).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        drop(ours);
        assert_eq!(receive(theirs.as_fd(), &mut [0; 1], &mut Vec::new(), 0).unwrap().bytes, 0);
    }

    #[test]
    fn no_more_descriptors_are_taken_than_were_wanted() {
        let (ours, theirs) = stream_pair().unwrap();
        for most in 0..4 {
            let (near, far) = stream_pair().unwrap();
            send(ours.as_fd(), b"x", &[far.as_fd(); 5]).unwrap();
            drop(far);
            let mut descriptors = Vec::new();
            let arrived = receive(theirs.as_fd(), &mut [0; 1], &mut descriptors, most).unwrap();
            assert_eq!((arrived, descriptors.len()), (Arrived { bytes: 1, lost: true }, most));
            drop(descriptors);
            // The surplus is closed: nobody holds the other end.
            assert_eq!(std::fs::File::from(near).read(&mut [0; 1]).unwrap(), 0);
        }
    }
}
