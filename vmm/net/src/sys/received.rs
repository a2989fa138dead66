//! Descriptors that come with what is read.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, SendAncillaryBuffer, SendAncillaryMessage, recvmsg, sendmsg,
};

use super::sockets::{CLOSE_ON_EXEC, QUIET};

/// The most descriptors that come with one text.
const MOST: usize = 4;

/// Reads `file` to its end, at most `most` bytes, with the descriptors that come if it is a Unix
/// socket. They are closed on exec.
///
/// # Errors
/// Those of reading.
pub fn read_with_descriptors(file: impl AsFd, most: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut text, mut descriptors) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; 16 << 10];
    while text.len() < most {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut came = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let len = match recvmsg(&file, &mut parts, &mut came, CLOSE_ON_EXEC) {
            Ok(message) => message.bytes,
            // A file or a pipe.
            Err(Errno::NOTSOCK) => rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut buffer))?,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for message in came.drain() {
            if let RecvAncillaryMessage::ScmRights(all) = message {
                descriptors.extend(all.take(MOST - descriptors.len().min(MOST)));
            }
        }
        if len == 0 {
            break;
        }
        text.extend(&buffer[..len]);
    }
    text.truncate(most);
    Ok((text, descriptors))
}

/// Writes all of `text` into a stream socket; descriptors go with it, at most four.
///
/// # Errors
/// Those of writing.
pub fn write_with_descriptors(
    file: impl AsFd,
    text: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut rest = text;
    let mut goes = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !goes.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors"));
    }
    while !rest.is_empty() {
        match sendmsg(&file, &[io::IoSlice::new(rest)], &mut goes, QUIET) {
            Ok(sent) => {
                rest = &rest[sent..];
                goes.clear();
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_descriptor_comes_with_a_text_of_any_length() {
        let text = vec![b'x'; 100_000];
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (one, other) = UnixStream::pair().unwrap();
        let sent = text.clone();
        let sender = std::thread::spawn(move || write_with_descriptors(ours, &sent, &[one.as_fd()]).unwrap());
        let (heard, descriptors) = read_with_descriptors(&theirs, 1 << 20).unwrap();
        sender.join().unwrap();
        assert_eq!((heard, descriptors.len()), (text, 1));
        drop(descriptors);
        assert_eq!(std::io::Read::read(&mut &other, &mut [0]).unwrap(), 0);
        let (pipe, mut end) = std::io::pipe().unwrap();
        std::io::Write::write_all(&mut end, b"plain").unwrap();
        drop(end);
        assert_eq!(read_with_descriptors(&pipe, 3).unwrap().0, b"pla");
    }
}
