//! What a keeper is started with: one line of JSON over the socket that is its standard input, and
//! descriptors with it; and its answers, a line of JSON each. Private to one build.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nelly_vmm::sys;
use serde::{Deserialize, Serialize};

use crate::state::Id;

/// Longest order.
const ORDER_MOST: usize = 64 << 10;

/// The order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// [`Order::SCHEMA`].
    pub schema: u32,
    /// The state directory of all sandboxes.
    pub sandboxes: PathBuf,
    /// The sandbox.
    pub id: Id,
    /// How many files the image's disk has.
    pub disks: usize,
    /// Whether it has a disk for its writable layer.
    pub storage: bool,
    /// How many directories and files of the host it has.
    pub shares: usize,
    /// Which streams of the container go to the client that gives the order, from the first byte
    /// on; those that are absent are not wanted.
    pub client: ClientStreams,
    /// First size of the container's terminal, rows and columns.
    pub size: Option<(u16, u16)>,
}

/// Which of a container's streams a client has. With a terminal, standard input stands for it both
/// ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientStreams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

impl ClientStreams {
    /// Whether there is a client at all.
    #[must_use]
    pub fn any(self) -> bool {
        self.stdin || self.stdout || self.stderr
    }

    fn count(self) -> usize {
        [self.stdin, self.stdout, self.stderr].into_iter().filter(|there| *there).count()
    }
}

/// The keeper's ends of a client's streams.
#[derive(Debug, Default)]
pub struct ClientEnds {
    /// Where the client writes standard input; with a terminal, the terminal both ways.
    pub stdin: Option<UnixStream>,
    /// Where it reads standard output.
    pub stdout: Option<UnixStream>,
    /// Where it reads standard error.
    pub stderr: Option<UnixStream>,
}

/// The open files of a sandbox, in the order of their descriptors.
#[derive(Debug)]
pub struct Files {
    /// The lock of the sandbox, held; taken out by whoever adopts it.
    pub lock: Option<OwnedFd>,
    /// The kernel.
    pub kernel: File,
    /// The initramfs.
    pub initrd: File,
    /// The image's disk, one file after the other.
    pub disks: Vec<File>,
    /// The disk of the writable layer.
    pub storage: Option<File>,
    /// The container's directories and files of the host, in their order.
    pub shares: Vec<OwnedFd>,
    /// The keeper's ends of the client's streams.
    pub client: ClientEnds,
}

/// How the first start went: code 0, or the exit code of the command and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// 0, 125, 126 or 127.
    pub code: u8,
    /// Why; empty with 0.
    pub message: String,
}

/// How the sandbox ended, for a client that has its streams. The second answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// The exit code.
    pub code: u8,
    /// The reason, as in [`crate::state::Exit`].
    pub reason: String,
    /// A sentence, where those do not tell.
    pub detail: String,
}

impl Files {
    /// Which streams of a client there are.
    #[must_use]
    pub fn client(&self) -> ClientStreams {
        let ClientEnds { stdin, stdout, stderr } = &self.client;
        ClientStreams { stdin: stdin.is_some(), stdout: stdout.is_some(), stderr: stderr.is_some() }
    }

    /// Their descriptors.
    pub fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let lock = self.lock.iter().map(AsFd::as_fd);
        lock.chain([self.kernel.as_fd(), self.initrd.as_fd()])
            .chain(self.disks.iter().map(AsFd::as_fd))
            .chain(self.storage.iter().map(AsFd::as_fd))
            .chain(self.shares.iter().map(AsFd::as_fd))
            .chain(self.client.stdin.iter().map(AsFd::as_fd))
            .chain(self.client.stdout.iter().map(AsFd::as_fd))
            .chain(self.client.stderr.iter().map(AsFd::as_fd))
    }
}

impl Order {
    /// The schema of this build.
    pub const SCHEMA: u32 = 3;

    /// Receives an order with its files.
    ///
    /// # Errors
    /// It is no order, or lacks files.
    pub fn receive(from: BorrowedFd<'_>) -> io::Result<(Self, Files)> {
        let (mut text, mut descriptors) = (Vec::new(), Vec::new());
        let mut part = [0; 4096];
        while text.last() != Some(&b'\n') {
            let arrived = sys::receive(from, &mut part, &mut descriptors, sys::MAX_DESCRIPTORS)?;
            if arrived.bytes == 0 || arrived.lost || text.len() > ORDER_MOST {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the order is not whole"));
            }
            text.extend_from_slice(&part[..arrived.bytes]);
        }
        let order: Self = serde_json::from_slice(&text)?;
        let wrong = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        if order.schema != Self::SCHEMA {
            return Err(wrong("the order is of another version"));
        }
        let few = 3 + usize::from(order.storage) + order.client.count();
        let most = order.disks.checked_add(few).and_then(|most| most.checked_add(order.shares));
        if most != Some(descriptors.len()) {
            return Err(wrong("the order has other files than it says"));
        }
        let mut next = descriptors.into_iter();
        let mut take = || next.next().ok_or_else(|| wrong("a file is missing"));
        let (lock, kernel, initrd) = (Some(take()?), take()?.into(), take()?.into());
        let disks = (0..order.disks).map(|_| take().map(File::from)).collect::<io::Result<_>>()?;
        let storage = order.storage.then(&mut take).transpose()?.map(File::from);
        let shares = (0..order.shares).map(|_| take()).collect::<io::Result<_>>()?;
        let mut stream = |there: bool| there.then(&mut take).transpose().map(|fd| fd.map(UnixStream::from));
        let ClientStreams { stdin, stdout, stderr } = order.client;
        let client = ClientEnds { stdin: stream(stdin)?, stdout: stream(stdout)?, stderr: stream(stderr)? };
        Ok((order, Files { lock, kernel, initrd, disks, storage, shares, client }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_brings_its_files_or_is_refused() {
        let (ours, theirs) = sys::stream_pair().unwrap();
        let file = || tempfile::tempfile().unwrap();
        let files = Files {
            lock: Some(file().into()),
            kernel: file(),
            initrd: file(),
            disks: vec![file(), file()],
            storage: Some(file()),
            shares: vec![file().into(), file().into(), file().into()],
            client: ClientEnds { stdout: Some(UnixStream::pair().unwrap().0), ..ClientEnds::default() },
        };
        let send = |order: &Order| {
            let text = serde_json::to_string(order).unwrap() + "\n";
            let descriptors: Vec<_> = files.all().collect();
            sys::send(ours.as_fd(), text.as_bytes(), &descriptors).unwrap();
        };
        let order = Order {
            schema: Order::SCHEMA,
            sandboxes: "/d".into(),
            id: Id::random().unwrap(),
            disks: 2,
            storage: true,
            shares: 3,
            client: files.client(),
            size: Some((3, 4)),
        };
        send(&order);
        let (received, came) = Order::receive(theirs.as_fd()).unwrap();
        assert_eq!((received, came.disks.len(), came.storage.is_some()), (order.clone(), 2, true));
        assert_eq!((came.client(), came.shares.len()), (order.client, 3));
        for wrong in [
            Order { disks: 1, ..order.clone() },
            Order { shares: 4, ..order.clone() },
            Order { shares: usize::MAX, ..order.clone() },
            Order { schema: 1, ..order },
        ] {
            send(&wrong);
            assert!(Order::receive(theirs.as_fd()).is_err());
        }
        drop(ours);
        assert!(Order::receive(theirs.as_fd()).is_err());
    }
}
