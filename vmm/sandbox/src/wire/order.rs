//! What a keeper is started with: one line of JSON over the socket that is its standard input, and
//! descriptors with it; and its one answer. Private to one build.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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
}

/// How the first start went: code 0, or the exit code of the command and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// 0, 125, 126 or 127.
    pub code: u8,
    /// Why; empty with 0.
    pub message: String,
}

impl Files {
    /// Their descriptors.
    pub fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let lock = self.lock.iter().map(AsFd::as_fd);
        lock.chain([self.kernel.as_fd(), self.initrd.as_fd()])
            .chain(self.disks.iter().map(AsFd::as_fd))
            .chain(self.storage.iter().map(AsFd::as_fd))
    }
}

impl Order {
    /// The schema of this build.
    pub const SCHEMA: u32 = 1;

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
        let most = order.disks.checked_add(3 + usize::from(order.storage));
        if most != Some(descriptors.len()) {
            return Err(wrong("the order has other files than it says"));
        }
        let mut next = descriptors.into_iter();
        let mut take = || next.next().ok_or_else(|| wrong("a file is missing"));
        let (lock, kernel, initrd) = (Some(take()?), take()?.into(), take()?.into());
        let mut disks: Vec<File> = next.map(File::from).collect();
        let storage = if order.storage { disks.pop() } else { None };
        Ok((order, Files { lock, kernel, initrd, disks, storage }))
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
        };
        let send = |order: &Order| {
            let text = serde_json::to_string(order).unwrap() + "\n";
            let descriptors: Vec<_> = files.all().collect();
            sys::send(ours.as_fd(), text.as_bytes(), &descriptors).unwrap();
        };
        let order =
            Order { schema: 1, sandboxes: "/d".into(), id: Id::random().unwrap(), disks: 2, storage: true };
        send(&order);
        let (received, came) = Order::receive(theirs.as_fd()).unwrap();
        assert_eq!((received, came.disks.len(), came.storage.is_some()), (order.clone(), 2, true));
        for wrong in [Order { disks: 1, ..order.clone() }, Order { schema: 2, ..order }] {
            send(&wrong);
            assert!(Order::receive(theirs.as_fd()).is_err());
        }
        drop(ours);
        assert!(Order::receive(theirs.as_fd()).is_err());
    }
}
