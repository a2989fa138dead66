//! vhost-user: how whoever has a guest tells another process to serve the guest's queues. Messages
//! over a Unix stream socket, each with the descriptors that it is about.
//!
//! The crate `vhost` has this side of the protocol, too. It asks again at once, and for ever, when
//! the socket has nothing for it, so a peer that is silent would hold up its thread: here every
//! exchange has one time limit.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_timeout};

use super::passing::{receive, send, set_nonblocking};
use super::unix::{SocketKind, socket_kind};

/// Requests of the side that has the guest, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names are those of the specification")]
pub enum Request {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    SetMemTable = 5,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    SetVringErr = 14,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    GetQueueNum = 17,
    SetVringEnable = 18,
    NetSetMtu = 20,
}

/// A request may be answered although it asks nothing, and what else there is on top of virtio's
/// own features: a bit of the answer to [`Request::GetFeatures`].
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Bits of the answer to [`Request::GetProtocolFeatures`].
pub mod protocol {
    /// There may be several pairs of queues, and [`super::Request::GetQueueNum`].
    pub const MQ: u64 = 1;
    /// Each request is answered if its sender wants it.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// There is [`super::Request::NetSetMtu`].
    pub const MTU: u64 = 1 << 4;
}

/// Most regions of memory of one table.
pub const REGIONS_MAX: usize = 8;
/// Bytes before each message: request, flags, length of what follows.
const HEADER: usize = 12;
/// The version, in the flags.
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// How long the other side may take for one exchange: longer than a busy host needs, shorter than
/// whoever waits for a pause has patience.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A connection to the process that serves queues. When it fails, it is ended: what comes late is
/// no answer to something else.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    acknowledges: bool,
    until: Instant,
}

impl Channel {
    /// Takes a connected stream socket, which becomes non-blocking, and says whether an earlier
    /// channel was on it.
    ///
    /// # Errors
    /// It is something else, or the system has no descriptors by which queues are told of.
    pub fn new(socket: OwnedFd) -> io::Result<(Self, bool)> {
        if !cfg!(target_os = "linux") {
            let text = "vhost-user needs memory files and eventfds, which only Linux has";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        if socket_kind(socket.as_fd())? != SocketKind::Stream {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no stream socket"));
        }
        set_nonblocking(&socket)?;
        // A machine that starts again has a duplicate of the socket, and some of those who serve
        // queues end when they are claimed twice. What belongs to the socket itself tells: the
        // limit of a call that never waits.
        let was_used = socket_timeout(&socket, Timeout::Recv)? == Some(ANSWER_WITHIN);
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_WITHIN))?;
        Ok((Self { socket, acknowledges: false, until: Instant::now() + ANSWER_WITHIN }, was_used))
    }

    /// From now on each request is acknowledged.
    pub fn acknowledged(&mut self) {
        self.acknowledges = true;
    }

    /// Exchanges begin that have the time limit together.
    pub fn begin(&mut self) {
        self.until = Instant::now() + ANSWER_WITHIN;
    }

    /// Tells the other side something, and waits for its acknowledgement where those are agreed on.
    ///
    /// # Errors
    /// It refuses, is gone, is late, or says something else.
    pub fn tell(&mut self, request: Request, words: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let flags = if self.acknowledges { NEED_REPLY } else { 0 };
        self.send(request, flags, words, files)?;
        if !self.acknowledges {
            return Ok(());
        }
        match u64::from_ne_bytes(self.answer(request)?) {
            0 => Ok(()),
            code => Err(self.end(io::Error::other(format!("it refuses {request:?} ({code})")))),
        }
    }

    /// Asks for `N` bytes.
    ///
    /// # Errors
    /// As of [`Channel::tell`].
    pub fn ask<const N: usize>(&mut self, request: Request, words: &[u8]) -> io::Result<[u8; N]> {
        self.send(request, 0, words, &[])?;
        self.answer(request)
    }

    fn send(&self, request: Request, flags: u32, words: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let len = u32::try_from(words.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let head = [request as u32, VERSION | flags, len].map(u32::to_ne_bytes).concat();
        send(self.socket.as_fd(), &[&head[..], words].concat(), files).map_err(|error| {
            self.end(match error.kind() {
                // So many messages that it has not read.
                io::ErrorKind::WouldBlock => late(request),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ended(request),
                _ => error,
            })
        })
    }

    fn answer<const N: usize>(&self, request: Request) -> io::Result<[u8; N]> {
        self.receive(request).map_err(|error| self.end(error))
    }

    fn receive<const N: usize>(&self, request: Request) -> io::Result<[u8; N]> {
        let mut head = [0; HEADER];
        self.read(&mut head, request)?;
        let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        // Flags beside these are nobody's.
        let is_answer = word(0) == request as u32 && word(4) & (REPLY | 3) == REPLY | VERSION;
        if !is_answer || usize::try_from(word(8)) != Ok(N) {
            let [number, flags, len] = [0, 4, 8].map(word);
            let text =
                format!("its answer to {request:?} is none: number {number}, flags {flags:#x}, {len} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let mut words = [0; N];
        self.read(&mut words, request)?;
        Ok(words)
    }

    /// Fills `bytes`. Descriptors that come with them are closed.
    fn read(&self, bytes: &mut [u8], request: Request) -> io::Result<()> {
        let mut have = 0;
        while have < bytes.len() {
            match receive(self.socket.as_fd(), &mut bytes[have..], &mut Vec::new(), 0) {
                Ok(arrived) if arrived.bytes == 0 => return Err(self.silent(request)),
                Ok(arrived) => have += arrived.bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(request)?,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(ended(request)),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The error of a connection on which nothing more comes: whoever only says nothing more is
    /// there still.
    fn silent(&self, request: Request) -> io::Error {
        let mut ends = [PollFd::new(&self.socket, PollFlags::empty())];
        let polled = poll(&mut ends, Some(&Timespec::default()));
        if polled.is_ok() && ends[0].revents().contains(PollFlags::HUP) {
            return ended(request);
        }
        let text =
            format!("it closed its side of the connection instead of answering {request:?}, and goes on");
        io::Error::new(io::ErrorKind::InvalidData, text)
    }

    fn wait(&self, request: Request) -> io::Result<()> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late(request));
        }
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Nothing of what comes after this can be believed.
    fn end(&self, error: io::Error) -> io::Error {
        self.close();
        error
    }

    /// Ends the connection, which others may have duplicates of.
    pub fn close(&self) {
        // One that is gone is what was wanted.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

fn late(request: Request) -> io::Error {
    let text = format!("it has not answered {request:?} within {} seconds", ANSWER_WITHIN.as_secs());
    io::Error::new(io::ErrorKind::TimedOut, text)
}

fn ended(request: Request) -> io::Error {
    let text = format!("it ended the connection instead of answering {request:?}");
    io::Error::new(io::ErrorKind::UnexpectedEof, text)
}

impl AsFd for Channel {
    /// What tells that the other side is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
