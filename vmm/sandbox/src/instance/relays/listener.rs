//! The host's ends of relays: listeners that are made, sockets that are connected.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nelly_vmm::sys::unix;
use rustix::fs::{FlockOperation, Mode, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use super::super::waits::blocking;
use crate::spec::relay::RelayAddress;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// How long a connection to a socket of the host may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How soon a Unix socket whose queue is full is tried again: no event tells that it has room.
const AGAIN: Duration = Duration::from_millis(20);

/// How long somebody else may hold the lock of a socket's directory, and how often it is asked for.
const LOCKED: Duration = Duration::from_secs(2);
const ASK: Duration = Duration::from_millis(2);

/// Somebody to listen on the host. Dropping it removes its socket from the file system.
#[derive(Debug)]
pub(super) enum Listener {
    Unix(tokio::net::UnixListener, #[expect(dead_code, reason = "removed with it")] Made),
    Tcp(TcpListener),
}

/// The file of a socket.
#[derive(Debug)]
pub(super) struct Made {
    path: PathBuf,
    /// Device and inode, so that only the socket made here is removed.
    made: (u64, u64),
}

impl Drop for Made {
    fn drop(&mut self) {
        let ours = self.path.symlink_metadata();
        if ours.is_ok_and(|found| (found.dev(), found.ino()) == self.made) {
            // Nothing is left to be told to if this fails.
            let _left = std::fs::remove_file(&self.path);
        }
    }
}

impl Listener {
    /// Listens at `address`, within a runtime.
    pub(super) fn bind(address: &RelayAddress) -> io::Result<Self> {
        match address {
            RelayAddress::Tcp(port) => {
                let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, *port))?;
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener).map(Self::Tcp)
            }
            RelayAddress::Unix(path) => {
                let (listener, made) = listen_unix(path)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(tokio::net::UnixListener::from_std(listener)?, made))
            }
        }
    }

    /// Where it listens, with the port that was found free.
    pub(super) fn address(&self, asked: &RelayAddress) -> RelayAddress {
        match self {
            Self::Unix(..) => asked.clone(),
            Self::Tcp(listener) => listener
                .local_addr()
                .map_or_else(|_| asked.clone(), |address| RelayAddress::Tcp(address.port())),
        }
    }

    /// The next connection, as a socket of its own that does not block.
    pub(super) async fn accept(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(listener, _) => Ok(listener.accept().await?.0.into_std()?.into()),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Only latency is lost without.
                let _slow = stream.set_nodelay(true);
                Ok(stream.into_std()?.into())
            }
        }
    }
}

/// Refuses a path at which a relay cannot listen: it is too long for a socket, its directory is
/// missing, somebody listens there, or there is a file that is no socket. Nothing is changed.
///
/// # Errors
/// It cannot listen there.
pub(super) fn check(path: &Path) -> io::Result<()> {
    let refuse = |kind, why: &str| Err(io::Error::new(kind, why.to_owned()));
    unix::check_length(path)?;
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match path.parent().map(Path::metadata) {
            Some(Ok(parent)) if parent.is_dir() => Ok(()),
            _ => refuse(io::ErrorKind::NotFound, "its directory does not exist"),
        },
        Err(error) => Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            refuse(io::ErrorKind::AlreadyExists, "a file that is no socket is there")
        }
        Ok(_) => match unix::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            _ => refuse(io::ErrorKind::AddrInUse, "somebody listens there already"),
        },
    }
}

/// Listens at `path`, in the place of a socket whose owner is gone. Of several who do so at once
/// one listens, and the others find that somebody does.
fn listen_unix(path: &Path) -> io::Result<(UnixListener, Made)> {
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    check(path)?;
    let directory = OwnedFd::from(std::fs::File::open(parent)?);
    lock(&directory)?;
    check(path)?;
    if path.symlink_metadata().is_ok() {
        // Its owner is gone.
        std::fs::remove_file(path)?;
    }
    bind_unix(path)
}

/// Locks a directory, which ends when it is closed. Nobody holds that for longer than it takes to
/// make a socket.
fn lock(directory: &OwnedFd) -> io::Result<()> {
    let until = std::time::Instant::now() + LOCKED;
    loop {
        match flock(directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) if std::time::Instant::now() < until => {
                std::thread::sleep(ASK);
            }
            // Of a file system without locks, where the check alone has to do.
            Err(Errno::NOTSUP | Errno::NOSYS | Errno::INVAL | Errno::NOLCK) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {
                let why = "another process holds a lock of its directory";
                return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Nobody can connect before the file has its mode, which the file has from its socket.
fn bind_unix(path: &Path) -> io::Result<(UnixListener, Made)> {
    let socket = nelly_net::sys::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    let given = rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR);
    let made = unix::reached(path, |short| {
        rustix::net::bind(socket.as_fd(), &SocketAddrUnix::new(short)?)?;
        let found = short.symlink_metadata()?;
        // From here on it is removed when something fails.
        let made = Made { path: path.to_owned(), made: (found.dev(), found.ino()) };
        if given.is_err() {
            // Where sockets have no mode of their own, as on macOS.
            std::fs::set_permissions(short, std::fs::Permissions::from_mode(0o600))?;
        }
        Ok(made)
    })?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok((socket.into(), made))
}

/// Connects to a socket of the host.
pub(super) async fn connect(address: &RelayAddress) -> io::Result<OwnedFd> {
    let late = || io::Error::from(io::ErrorKind::TimedOut);
    match address {
        RelayAddress::Tcp(port) => {
            let made = timeout(PATIENCE, TcpStream::connect((Ipv4Addr::LOCALHOST, *port)));
            let stream = made.await.map_err(|_| late())??;
            let _slow = stream.set_nodelay(true);
            Ok(stream.into_std()?.into())
        }
        RelayAddress::Unix(path) => {
            let until = Instant::now() + PATIENCE;
            loop {
                let path = path.clone();
                // Looking a path up may wait for a file system.
                match blocking(move || unix::connect(&path)).await {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                        sleep(AGAIN).await;
                    }
                    made => return made.map(OwnedFd::from),
                }
            }
        }
    }
}
