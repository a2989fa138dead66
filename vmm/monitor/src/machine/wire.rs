//! Frames of the control protocol: a length, a descriptor count, JSON; descriptors beside the first byte.
//!
//! A request carries the socket its answer is written to, as its first descriptor. So every request can be waited for on its own,
//! dropped by whoever asked, and the server never waits for a reader: an answer is one short write to an empty socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::inspect::Inspection;
use super::outcome::{ExitCounts, State};
use crate::config::{DiskConfig, MachineConfig};
use crate::sys;
use crate::timeline::GuestCounter;

/// What a holder asks of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub(super) enum Request {
    /// The first one. Descriptors: the answer, the socket for the outcome, where faults are said, the config's resources in order.
    Start {
        /// The machine.
        config: Box<MachineConfig>,
        /// Whether there is a descriptor to say faults on.
        log: bool,
    },
    Pause,
    Resume,
    Stop,
    Kill,
    State,
    Counters,
    Inspect,
    /// Answered once vCPU 0 is out of the guest.
    GuestCounter,
    /// Descriptors: the answer, the socket that events are written to.
    Events,
    /// Answered with a stream.
    Attach {
        port: Port,
    },
    /// Answered with a stream once the guest accepted.
    VsockConnect {
        port: u32,
    },
    /// Descriptors: the answer, the socket that accepted streams are sent to.
    VsockListen {
        port: u32,
    },
    /// Bytes that the guest shall have in all.
    Memory {
        bytes: u64,
    },
    /// Descriptors: the answer and, when the disk's source is a descriptor, that.
    AttachDisk {
        disk: DiskConfig,
    },
}

/// Which of the machine's byte streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Port {
    Serial,
    Console,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Done,
    State(State),
    Counters(ExitCounts),
    Inspection(Box<Inspection>),
    GuestCounter(Option<GuestCounter>),
    /// Refused or failed: the layers' sentences, outermost first.
    Failed(Vec<String>),
}

/// Longest JSON of a frame. A command line and nineteen disks fit many times.
const MAX_FRAME: usize = 1 << 20;
/// Bytes before the JSON: its length and the number of descriptors, little endian.
const HEADER: usize = 8;

/// Sends one frame.
pub(super) fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut frame = vec![0; HEADER];
    serde_json::to_writer(&mut frame, message)?;
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let length = u32::try_from(frame.len() - HEADER).map_err(too_long)?;
    let count = u32::try_from(descriptors.len()).map_err(too_long)?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    frame[4..HEADER].copy_from_slice(&count.to_le_bytes());
    sys::send(socket, &frame, descriptors)
}

/// Frames as they arrive on a socket, blocking or not.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// What one look at the socket found.
#[derive(Debug)]
pub(super) enum Received<T> {
    /// A frame.
    Frame(T, Vec<OwnedFd>),
    /// Not yet (non-blocking sockets).
    Nothing,
    /// The other side is gone.
    End,
}

impl Receiver {
    /// Reads until a frame is whole.
    pub(super) fn receive<T: DeserializeOwned>(&mut self, socket: BorrowedFd<'_>) -> io::Result<Received<T>> {
        loop {
            if let Some((message, descriptors)) = self.take()? {
                return Ok(Received::Frame(message, descriptors));
            }
            let mut chunk = [0; 4096];
            match sys::receive(socket, &mut chunk, &mut self.descriptors) {
                Ok(0) => return Ok(Received::End),
                Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Nothing),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Received::End),
                Err(error) => return Err(error),
            }
        }
    }

    fn take<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let Some(header) = self.bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let [a, b, c, d, e, f, g, h] = *header;
        let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let count = usize::try_from(u32::from_le_bytes([e, f, g, h])).unwrap_or(usize::MAX);
        if length > MAX_FRAME || count > sys::MAX_DESCRIPTORS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a frame of the control protocol is too long",
            ));
        }
        if self.bytes.len() < HEADER + length {
            return Ok(None);
        }
        if self.descriptors.len() < count {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame came without its descriptors"));
        }
        let message = serde_json::from_slice(&self.bytes[HEADER..HEADER + length])?;
        self.bytes.drain(..HEADER + length);
        Ok(Some((message, self.descriptors.drain(..count).collect())))
    }
}

/// The server's end of one request's answer. Dropped unanswered, it tells that the machine ended.
#[derive(Debug)]
pub(super) struct Reply(OwnedFd);

impl Reply {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Answers. Whoever asked may be gone: then nobody needs to know.
    pub(super) fn answer(self, answer: &Answer, descriptor: Option<OwnedFd>) {
        let descriptor: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
        let _gone = send(self.0.as_fd(), answer, &descriptor);
    }

    pub(super) fn done(self) {
        self.answer(&Answer::Done, None);
    }

    pub(super) fn failed(self, error: &dyn std::error::Error) {
        self.answer(&Answer::Failed(chain(error)), None);
    }
}

/// The sentences of an error and its sources.
pub(super) fn chain(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_keep_their_order_and_their_descriptors() {
        let (near, far) = sys::stream_pair().unwrap();
        let (extra, _other) = sys::stream_pair().unwrap();
        send(near.as_fd(), &Request::Pause, &[extra.as_fd()]).unwrap();
        send(near.as_fd(), &Request::VsockConnect { port: 7 }, &[extra.as_fd(), extra.as_fd()]).unwrap();
        drop(near);
        let mut receiver = Receiver::default();
        let mut seen = Vec::new();
        while let Received::Frame(request, descriptors) = receiver.receive::<Request>(far.as_fd()).unwrap() {
            seen.push((request, descriptors.len()));
        }
        assert_eq!(seen, [(Request::Pause, 1), (Request::VsockConnect { port: 7 }, 2)]);
    }

    #[test]
    fn a_config_travels_as_it_is_and_a_wrong_one_is_refused() {
        let config = Box::new(MachineConfig::new(crate::config::FileSource::Fd(0)));
        let text = serde_json::to_string(&Request::Start { config: config.clone(), log: false }).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), Request::Start { config, log: false });
        let wrong = text.replace("\"cpus\":1", "\"cpus\":99");
        assert!(serde_json::from_str::<Request>(&wrong).unwrap_err().to_string().starts_with("cpus: "));
    }

    #[test]
    fn a_frame_that_lies_about_its_size_is_an_error() {
        let (near, far) = sys::stream_pair().unwrap();
        sys::send(near.as_fd(), &[0xff; 8], &[]).unwrap();
        assert!(Receiver::default().receive::<Request>(far.as_fd()).is_err());
        let (near, far) = sys::stream_pair().unwrap();
        sys::send(near.as_fd(), &[2, 0, 0, 0, 1, 0, 0, 0, b'{', b'}'], &[]).unwrap();
        assert!(Receiver::default().receive::<Request>(far.as_fd()).is_err());
    }
}
