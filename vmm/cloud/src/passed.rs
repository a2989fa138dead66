//! Open files that go to another process, by a connected pair of sockets.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Most files that go together: those of the longest chain of images, and two to write to.
pub(crate) const FILES_MAX: usize = 66;

/// Sends files.
pub(crate) fn send(to: &UnixStream, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    if files.len() > FILES_MAX {
        return Err(io::Error::other("too many files at once"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    loop {
        let mut goes = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !goes.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(io::Error::other("too many files at once"));
        }
        // Files go with a byte.
        match sendmsg(to, &[IoSlice::new(&[0])], &mut goes, SendFlags::empty()) {
            Ok(_one) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives what [`send`] sent, and then a text of at most `most` bytes, up to its end.
pub(crate) fn receive(from: impl AsFd, most: u64) -> io::Result<(Vec<OwnedFd>, Vec<u8>)> {
    let from = UnixStream::from(from.as_fd().try_clone_to_owned()?);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut files = Vec::new();
    let got = loop {
        let mut came = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        // This process starts no program that could inherit them.
        match recvmsg(&from, &mut [IoSliceMut::new(&mut byte)], &mut came, RecvFlags::empty()) {
            Ok(message) => {
                for message in came.drain() {
                    if let RecvAncillaryMessage::ScmRights(all) = message {
                        files.extend(all);
                    }
                }
                break message.bytes;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    let mut text = Vec::new();
    (&from).take(most + 1).read_to_end(&mut text)?;
    if got == 0 || text.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is cut or too long"));
    }
    Ok((files, text))
}
