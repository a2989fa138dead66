//! What a keeper is started with: one line of JSON over the socket that is its standard input, and
//! descriptors with it; and its answers, a line of JSON each. Private to one build.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nelly_vmm::config::MachineConfig;
use nelly_vmm::sys;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::spec::network::SecretValues;
use crate::state::Id;

/// Longest order.
const ORDER_MOST: usize = 2 << 20;

/// The order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// [`Order::SCHEMA`].
    pub schema: u32,
    /// The state directory of all sandboxes.
    pub sandboxes: PathBuf,
    /// The sandbox.
    pub id: Id,
    /// What its files are.
    pub machine: MachineOrder,
    /// Which streams of the container go to the client that gives the order, from the first byte
    /// on; those that are absent are not wanted.
    pub client: ClientStreams,
    /// First size of the container's terminal, rows and columns.
    pub size: Option<(u16, u16)>,
    /// The values of its secrets, which stand nowhere else.
    #[serde(default)]
    pub secrets: SecretValues,
}

/// What the files of a machine are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineOrder {
    /// That of a container: kernel, initramfs, and these.
    Container {
        /// How many files the image's disk has.
        disks: usize,
        /// Whether it has a disk for its writable layer.
        storage: bool,
        /// How many directories and files of the host it has.
        shares: usize,
    },
    /// That of `nelly boot`.
    Boot {
        /// The machine in its JSON form, whose descriptors count through the files.
        config: String,
        /// How many files it has.
        files: usize,
    },
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
    /// Those of its machine.
    pub machine: MachineFiles,
    /// The keeper's ends of the client's streams.
    pub client: ClientEnds,
    /// The values of its secrets. They are in the order itself, and come with it.
    pub secrets: SecretValues,
}

/// The open files of a machine.
#[derive(Debug)]
pub enum MachineFiles {
    /// Of one for a container.
    Container(ContainerFiles),
    /// Of one of `nelly boot`.
    Boot(Box<BootFiles>),
}

/// The open files of the machine of `nelly boot`.
#[derive(Debug)]
pub struct BootFiles {
    /// The machine without its network, whose descriptors count through `files`.
    pub config: MachineConfig,
    /// Kernel, initrd, disks.
    pub files: Vec<OwnedFd>,
}

/// The open files of a container's machine, in the order of their descriptors.
#[derive(Debug)]
pub struct ContainerFiles {
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
}

impl MachineFiles {
    /// What an order says of them.
    #[must_use]
    pub fn order(&self) -> MachineOrder {
        match self {
            Self::Container(ContainerFiles { disks, storage, shares, .. }) => MachineOrder::Container {
                disks: disks.len(),
                storage: storage.is_some(),
                shares: shares.len(),
            },
            Self::Boot(boot) => MachineOrder::Boot { config: boot.config.to_json(), files: boot.files.len() },
        }
    }

    fn all(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Container(ContainerFiles { kernel, initrd, disks, storage, shares }) => {
                [kernel.as_fd(), initrd.as_fd()]
                    .into_iter()
                    .chain(disks.iter().map(AsFd::as_fd))
                    .chain(storage.iter().map(AsFd::as_fd))
                    .chain(shares.iter().map(AsFd::as_fd))
                    .collect()
            }
            Self::Boot(boot) => boot.files.iter().map(AsFd::as_fd).collect(),
        }
    }
}

impl MachineOrder {
    /// How many files there are; `None` of more than can be.
    fn count(&self) -> Option<usize> {
        match self {
            Self::Container { disks, storage, shares } => {
                disks.checked_add(2 + usize::from(*storage))?.checked_add(*shares)
            }
            Self::Boot { files, .. } => Some(*files),
        }
    }

    fn take(&self, mut next: impl FnMut() -> io::Result<OwnedFd>) -> io::Result<MachineFiles> {
        Ok(match self {
            Self::Container { disks, storage, shares } => MachineFiles::Container(ContainerFiles {
                kernel: next()?.into(),
                initrd: next()?.into(),
                disks: (0..*disks).map(|_| next().map(File::from)).collect::<io::Result<_>>()?,
                storage: storage.then(&mut next).transpose()?.map(File::from),
                shares: (0..*shares).map(|_| next()).collect::<io::Result<_>>()?,
            }),
            Self::Boot { config, files } => {
                let config = MachineConfig::from_json(config.as_bytes());
                MachineFiles::Boot(Box::new(BootFiles {
                    config: config.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?,
                    files: (0..*files).map(|_| next()).collect::<io::Result<_>>()?,
                }))
            }
        })
    }
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
        lock.chain(self.machine.all())
            .chain(self.client.stdin.iter().map(AsFd::as_fd))
            .chain(self.client.stdout.iter().map(AsFd::as_fd))
            .chain(self.client.stderr.iter().map(AsFd::as_fd))
    }
}

impl Order {
    /// The schema of this build.
    pub const SCHEMA: u32 = 5;

    /// Receives an order with its files.
    ///
    /// # Errors
    /// It is no order, or lacks files.
    pub fn receive(from: BorrowedFd<'_>) -> io::Result<(Self, Files)> {
        // It may have values, and each growth would leave a copy.
        let (mut text, mut descriptors) = (Zeroizing::new(Vec::with_capacity(ORDER_MOST + 4096)), Vec::new());
        let mut part = Zeroizing::new([0; 4096]);
        while text.last() != Some(&b'\n') {
            let arrived = sys::receive(from, &mut part[..], &mut descriptors, sys::MAX_DESCRIPTORS)?;
            if arrived.bytes == 0 || arrived.lost || text.len() > ORDER_MOST {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the order is not whole"));
            }
            text.extend_from_slice(&part[..arrived.bytes]);
        }
        let mut order: Self = serde_json::from_slice(&text)?;
        let wrong = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        if order.schema != Self::SCHEMA {
            return Err(wrong("the order is of another version"));
        }
        let others = 1 + order.client.count();
        if order.machine.count().and_then(|files| files.checked_add(others)) != Some(descriptors.len()) {
            return Err(wrong("the order has other files than it says"));
        }
        let mut next = descriptors.into_iter();
        let mut take = || next.next().ok_or_else(|| wrong("a file is missing"));
        let lock = Some(take()?);
        let machine = order.machine.take(&mut take)?;
        let mut stream = |there: bool| there.then(&mut take).transpose().map(|fd| fd.map(UnixStream::from));
        let ClientStreams { stdin, stdout, stderr } = order.client;
        let client = ClientEnds { stdin: stream(stdin)?, stdout: stream(stdout)?, stderr: stream(stderr)? };
        let secrets = std::mem::take(&mut order.secrets);
        Ok((order, Files { lock, machine, client, secrets }))
    }
}

#[cfg(test)]
mod tests {
    use nelly_vmm::config::FileSource;

    use super::*;

    #[test]
    fn an_order_brings_its_files_or_is_refused() {
        let (ours, theirs) = sys::stream_pair().unwrap();
        let file = || tempfile::tempfile().unwrap();
        let machine = |container: bool| match container {
            true => MachineFiles::Container(ContainerFiles {
                kernel: file(),
                initrd: file(),
                disks: vec![file(), file()],
                storage: Some(file()),
                shares: vec![file().into(), file().into(), file().into()],
            }),
            false => MachineFiles::Boot(Box::new(BootFiles {
                config: MachineConfig::new(FileSource::Fd(1)),
                files: vec![file().into(), file().into()],
            })),
        };
        let files = |container: bool| Files {
            lock: Some(file().into()),
            machine: machine(container),
            client: ClientEnds { stdout: Some(UnixStream::pair().unwrap().0), ..ClientEnds::default() },
            secrets: SecretValues::default(),
        };
        let send = |order: &Order, files: &Files| {
            let text = serde_json::to_string(order).unwrap() + "\n";
            let descriptors: Vec<_> = files.all().collect();
            sys::send(ours.as_fd(), text.as_bytes(), &descriptors).unwrap();
        };
        let order = |files: &Files| Order {
            schema: Order::SCHEMA,
            sandboxes: "/d".into(),
            id: Id::random().unwrap(),
            machine: files.machine.order(),
            client: files.client(),
            size: Some((3, 4)),
            secrets: SecretValues::default(),
        };
        for container in [true, false] {
            let files = files(container);
            let order = order(&files);
            send(&order, &files);
            let (received, came) = Order::receive(theirs.as_fd()).unwrap();
            assert_eq!(
                (&received, came.machine.order(), came.client()),
                (&order, order.machine.clone(), order.client)
            );
        }
        let files = files(true);
        let order = order(&files);
        let machine = |disks, shares| MachineOrder::Container { disks, storage: true, shares };
        for wrong in [
            Order { machine: machine(1, 3), ..order.clone() },
            Order { machine: machine(2, 4), ..order.clone() },
            Order { machine: machine(2, usize::MAX), ..order.clone() },
            Order { machine: MachineOrder::Boot { config: "{}".into(), files: 8 }, ..order.clone() },
            Order { schema: 1, ..order },
        ] {
            send(&wrong, &files);
            assert!(Order::receive(theirs.as_fd()).is_err());
        }
        drop(ours);
        assert!(Order::receive(theirs.as_fd()).is_err());
    }
}
