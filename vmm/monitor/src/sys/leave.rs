//! Closing descriptors whose last close is slow, without waiting for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::passing::{MAX_DESCRIPTORS, send, stream_pair};

/// Leaves it to the kernel to drop what `descriptors` stand for, once the caller has closed them.
///
/// They go into a message to a socket that lies in the same message: nobody can receive it, and
/// when the caller's own descriptors are closed only the collector of unreachable sockets can find
/// it. Since Linux 6.10 that is a kernel thread's work (before, and elsewhere, it may be done by
/// the close itself, which is then as slow as it always was).
///
/// # Errors
/// More than 252 descriptors, or a limit on descriptors, open or in flight. Nothing has happened
/// then: closing does what it always does.
pub fn leave_behind(descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if descriptors.len() >= MAX_DESCRIPTORS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (near, far) = stream_pair()?;
    let mut all = Vec::with_capacity(descriptors.len() + 1);
    all.extend_from_slice(descriptors);
    all.push(near.as_fd());
    send(far.as_fd(), &[0], &all)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_left_behind_is_closed_by_the_kernel() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut reader = std::fs::File::from(reader);
        leave_behind(&[writer.as_fd()]).unwrap();
        drop(writer);
        // Ends when the last writer is gone; a leak would never end it.
        let (send, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || send.send(reader.read(&mut [0; 1]).unwrap()));
        // The collector looks whenever a socket is closed. A process that another test made in that
        // moment has our descriptors until its exec, so that one look may come too early, and on a
        // quiet machine nobody causes the next.
        let read = (0..600).find_map(|_| {
            drop(stream_pair());
            ended.recv_timeout(Duration::from_millis(100)).ok()
        });
        assert_eq!(read, Some(0));
    }

    #[test]
    fn too_many_are_refused_and_stay_with_the_caller() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let many = vec![reader.as_fd(); MAX_DESCRIPTORS];
        assert_eq!(leave_behind(&many).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
