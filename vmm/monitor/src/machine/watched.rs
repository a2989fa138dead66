//! Descriptors of others that are read and written without waiting, whatever they are.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};

use crate::sys::{self, Interest, Poller};

/// A write of so much to a terminal or pipe that is ready does not wait.
const SURE_WRITE: usize = 512;

/// How a descriptor is read and written without waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Socket,
    /// Never waits, and cannot be polled.
    File,
    /// A terminal or pipe that is non-blocking.
    NonBlocking,
    /// A terminal or pipe whose file is shared with others, who would not like to see it made
    /// non-blocking.
    Shared,
}

/// A descriptor and what the poller waits for on it.
pub(super) struct Watched {
    pub(super) fd: OwnedFd,
    kind: Kind,
    interest: Option<Interest>,
}

impl Watched {
    pub(super) fn new(fd: OwnedFd, kind: Kind) -> Self {
        Self { fd, kind, interest: None }
    }

    /// A descriptor that stays as it is, also for those who share it.
    pub(super) fn shared(fd: OwnedFd) -> Self {
        let kind = kind(fd.as_fd());
        Self::new(fd, kind)
    }

    /// The same file, in a form that never waits, see [`independent`].
    pub(super) fn independent(fd: OwnedFd, mode: OFlags) -> Self {
        let (fd, kind) = independent(fd, mode);
        Self::new(fd, kind)
    }

    pub(super) fn watch(&mut self, poller: &Poller, token: u64, interest: Interest) {
        let wanted = (interest != Interest::NONE).then_some(interest);
        if self.kind == Kind::File || self.interest == wanted {
            return;
        }
        let result = match (self.interest, wanted) {
            (None, Some(interest)) => poller.add(self.fd.as_fd(), token, interest),
            (Some(_), Some(interest)) => poller.modify(self.fd.as_fd(), token, interest),
            (Some(_), None) => poller.remove(self.fd.as_fd()),
            (None, None) => Ok(()),
        };
        match result {
            Ok(()) => self.interest = wanted,
            // What cannot be polled never waits.
            Err(_) => self.kind = Kind::File,
        }
    }

    pub(super) fn forget(&mut self, poller: &Poller) {
        if self.interest.take().is_some() {
            drop(poller.remove(self.fd.as_fd()));
        }
    }

    pub(super) fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.kind == Kind::Shared && !ready(self.fd.as_fd(), PollFlags::IN) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.kind == Kind::Socket {
            return Ok(rustix::net::recv(&self.fd, bytes, rustix::net::RecvFlags::DONTWAIT)?.0);
        }
        Ok(rustix::io::read(&self.fd, bytes)?)
    }

    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.kind {
            Kind::Socket => sys::unix::try_send(self.fd.as_fd(), bytes),
            Kind::File | Kind::NonBlocking => Ok(rustix::io::write(&self.fd, bytes)?),
            Kind::Shared if ready(self.fd.as_fd(), PollFlags::OUT) => {
                Ok(rustix::io::write(&self.fd, &bytes[..bytes.len().min(SURE_WRITE)])?)
            }
            Kind::Shared => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

/// What kind of descriptor this is, if it stays as it is.
fn kind(fd: BorrowedFd<'_>) -> Kind {
    match rustix::fs::fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        Ok(FileType::Socket) => Kind::Socket,
        Ok(FileType::RegularFile | FileType::BlockDevice) => Kind::File,
        _ => Kind::Shared,
    }
}

/// Whether a call on `fd` would not wait.
fn ready(fd: BorrowedFd<'_>, what: PollFlags) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(fd, what)];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|count| count > 0)
}

/// A descriptor for the same file that can be non-blocking without a word to those who share it:
/// terminals and named or nameless pipes are opened again where the system allows that.
fn independent(fd: OwnedFd, mode: OFlags) -> (OwnedFd, Kind) {
    match kind(fd.as_fd()) {
        known @ (Kind::Socket | Kind::File) => (fd, known),
        Kind::Shared | Kind::NonBlocking => {
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            let flags = mode | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            match rustix::io::retry_on_intr(|| rustix::fs::open(&path, flags, Mode::empty())) {
                Ok(again) => (again, Kind::NonBlocking),
                Err(_) => (fd, Kind::Shared),
            }
        }
    }
}
