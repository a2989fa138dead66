//! Bytes that a file descriptor may come with.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// Reads `file`, a stream of any kind, to its end, but no more than `most` bytes and one. If it is
/// a Unix socket, one descriptor may come with them, close-on-exec; others are closed.
///
/// # Errors
/// The system's refusal to read.
pub fn read_with_file(file: &OwnedFd, most: usize) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let (mut text, mut passed, mut part) = (Vec::new(), None, [0; 4096]);
    while text.len() <= most {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut with = RecvAncillaryBuffer::new(&mut space);
        let slices = &mut [IoSliceMut::new(&mut part)];
        let len = match recvmsg(file, slices, &mut with, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => message.bytes,
            Err(Errno::NOTSOCK) => rustix::io::read(file, &mut part)?,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for message in with.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                for file in files {
                    passed.get_or_insert(file);
                }
            }
        }
        if len == 0 {
            break;
        }
        text.extend(&part[..len]);
    }
    Ok((text, passed))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{IoSlice, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    #[test]
    fn bytes_come_to_their_end_and_a_file_with_them() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (log, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let files = [log.as_fd(), other.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        assert!(with.push(SendAncillaryMessage::ScmRights(&files)));
        sendmsg(&ours, &[IoSlice::new(b"one ")], &mut with, SendFlags::empty()).unwrap();
        (&ours).write_all(&[b'x'; 9000]).unwrap();
        drop(ours);
        let (text, passed) = read_with_file(&theirs.into(), 1 << 20).unwrap();
        assert_eq!((text.len(), &text[..5]), (9004, &b"one x"[..]));
        let inode = |file: &File| rustix::fs::fstat(file).unwrap().st_ino;
        assert_eq!(inode(&passed.unwrap().into()), inode(&log));
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"plain").unwrap();
        drop(writer);
        let (text, passed) = read_with_file(&reader.into(), 3).unwrap();
        assert_eq!((text, passed.is_none()), (b"plain".to_vec(), true));
    }
}
