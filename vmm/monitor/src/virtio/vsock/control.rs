//! Streams into the guest for the process that holds the machine: no path in the file system,
//! nobody waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::sys::{self, Notifier};

/// How long [`VsockControl::connect`] waits for the guest's answer once the request could be sent.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What [`VsockControl::listen`] sends beside each descriptor: the guest's port and the host's,
/// little endian.
const ACCEPTED_LEN: usize = 8;

/// What is called with the stream, or with why there is none.
pub type ConnectReply = Box<dyn FnOnce(io::Result<UnixStream>) + Send>;

/// What is called once a stream is joined, or with why it is not.
pub type JoinReply = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Most bytes that [`VsockControl::join`] says before those of the stream.
pub const PREFIX_MOST: usize = 64;

/// What the device counts.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) faults: AtomicU64,
    pub(super) connections: AtomicUsize,
}

/// Reaches the device from any thread. No call waits: what is asked for before the guest's driver
/// is up is done when it is.
#[derive(Clone)]
pub struct VsockControl {
    requests: mpsc::Sender<HostRequest>,
    bell: Arc<Notifier>,
    counters: Arc<Counters>,
}

impl VsockControl {
    /// Connects to `port` of the guest. `reply` is called exactly once, on the device's thread, so
    /// it must not block: with a blocking stream after the guest accepted; with `ConnectionRefused`
    /// when the guest resets, `TimedOut` after [`CONNECT_TIMEOUT`], `QuotaExceeded` when the device
    /// has no room, `ConnectionReset` when the driver is reset, and `ConnectionAborted` when the
    /// machine ends. The time counts from when the device is active.
    pub fn connect(&self, port: u32, reply: ConnectReply) {
        self.connect_within(port, CONNECT_TIMEOUT, reply);
    }

    /// [`Self::connect`] with a time limit of its own, kept to about a second.
    pub fn connect_within(&self, port: u32, timeout: Duration, reply: ConnectReply) {
        self.ask(HostRequest::Connect { port, timeout, reply: Reply(Some(reply)) });
    }

    /// Connects `stream`, a connected stream socket of any family, to `port` of the guest: its
    /// bytes go to the guest behind `prefix`, and what the guest says comes out of it, without
    /// anybody in between. It becomes non-blocking, and nobody else may use it any more. `reply` is
    /// called as by [`Self::connect`]; `stream` is closed if it is an error, and `InvalidInput`
    /// says that `prefix` is longer than [`PREFIX_MOST`].
    pub fn join(&self, port: u32, prefix: Vec<u8>, stream: OwnedFd, reply: JoinReply) {
        self.ask(HostRequest::Join { port, prefix, stream: stream.into(), reply: Joined(Some(reply)) });
    }

    /// Accepts what the guest dials on `port` of the host: for each connection one end of a socket
    /// pair goes over `channel`, to be taken by [`receive_accepted`] at the other end of it.
    /// `channel` is a Unix stream socket, see [`sys::stream_pair`]; it becomes non-blocking, and a
    /// connection for which it has no room (Linux: some 250 wait) is reset. A second call replaces
    /// the channel. Once the other end is closed the port is not listened on any more.
    pub fn listen(&self, port: u32, channel: OwnedFd) {
        self.ask(HostRequest::Listen { port, channel });
    }

    /// Takes no more connections on `port`; those accepted stay. The channel is closed.
    pub fn unlisten(&self, port: u32) {
        self.ask(HostRequest::Unlisten { port });
    }

    /// Packets of the guest that broke the protocol, since the machine started.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.counters.faults.load(Ordering::Relaxed)
    }

    /// Connections now: open, being opened, or with bytes still to be delivered.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.counters.connections.load(Ordering::Relaxed)
    }

    fn ask(&self, request: HostRequest) {
        // A device that is gone drops the request, and with it the reply says so. A bell that
        // cannot be rung means that no descriptor works any more; the request is then seen at the
        // next one.
        if self.requests.send(request).is_ok() {
            let _ = self.bell.notify();
        }
    }
}

/// Takes one accepted connection from the other end of a channel given to [`VsockControl::listen`]:
/// the stream, the guest's port and the host's. Waits if the channel is blocking. `None`: the
/// device listens no more.
pub fn receive_accepted(channel: BorrowedFd<'_>) -> io::Result<Option<(UnixStream, u32, u32)>> {
    let (mut message, mut descriptors) = ([0u8; ACCEPTED_LEN], Vec::new());
    let arrived = sys::receive(channel, &mut message, &mut descriptors, 1)?;
    if arrived.bytes == 0 {
        return Ok(None);
    }
    let [a, b, c, d, e, f, g, h] = message;
    let stream = descriptors.pop().ok_or_else(|| match arrived.lost {
        true => io::Error::other("a connection is lost: this process has no room for more descriptors, raise the limit on open files"),
        false => io::ErrorKind::InvalidData.into(),
    })?;
    Ok(Some((stream.into(), u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))))
}

/// A stream for the device, prepared, and one for somebody else, blocking.
pub(super) fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (near, far) = sys::stream_pair()?;
    sys::unix::prepare(&near)?;
    Ok((near.into(), far.into()))
}

/// The other half of [`receive_accepted`].
pub(super) fn send_accepted(channel: &OwnedFd, stream: &UnixStream, guest: u32, host: u32) -> io::Result<()> {
    let mut message = [0u8; ACCEPTED_LEN];
    message[..4].copy_from_slice(&guest.to_le_bytes());
    message[4..].copy_from_slice(&host.to_le_bytes());
    sys::send(channel.as_fd(), &message, &[stream.as_fd()])
}

pub(super) enum HostRequest {
    Connect { port: u32, timeout: Duration, reply: Reply },
    Join { port: u32, prefix: Vec<u8>, stream: UnixStream, reply: Joined },
    Listen { port: u32, channel: OwnedFd },
    Unlisten { port: u32 },
}

/// A reply that cannot be forgotten: dropped, it says that the machine ended.
pub(super) struct Reply(Option<ConnectReply>);

impl Reply {
    pub(super) fn send(mut self, result: io::Result<UnixStream>) {
        if let Some(reply) = self.0.take() {
            reply(result);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(reply) = self.0.take() {
            reply(Err(io::ErrorKind::ConnectionAborted.into()));
        }
    }
}

/// The same of [`VsockControl::join`].
pub(super) struct Joined(Option<JoinReply>);

impl Joined {
    pub(super) fn send(mut self, result: io::Result<()>) {
        if let Some(reply) = self.0.take() {
            reply(result);
        }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        if let Some(reply) = self.0.take() {
            reply(Err(io::ErrorKind::ConnectionAborted.into()));
        }
    }
}

/// The device's end of a [`VsockControl`].
pub(super) struct Inbox {
    requests: mpsc::Receiver<HostRequest>,
    bell: Arc<Notifier>,
    pub(super) counters: Arc<Counters>,
}

impl Inbox {
    pub(super) fn new() -> io::Result<(Self, VsockControl)> {
        let (sender, requests) = mpsc::channel();
        let bell = Arc::new(Notifier::new()?);
        let counters = Arc::new(Counters::default());
        let control = VsockControl { requests: sender, bell: bell.clone(), counters: counters.clone() };
        Ok((Self { requests, bell, counters }, control))
    }

    pub(super) fn bell(&self) -> &Notifier {
        &self.bell
    }

    pub(super) fn next(&self) -> Option<HostRequest> {
        self.requests.try_recv().ok()
    }
}
