//! Frames of the control protocol: a length and JSON; descriptors beside the first byte.
//! `docs/control-protocol.md` describes them.
//!
//! A request carries the socket its answer is written to, as its first descriptor. So every request
//! can be waited for on its own, dropped by whoever asked, and the server never waits for a reader:
//! an answer is one short write to an empty socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::files::Label;
use super::inspection::{DeviceState, Inspection};
use super::outcome::{ExitCounts, State};
use crate::config::{DeviceName, DiskConfig, DiskId, DiskLimits, MachineConfig};
use crate::sys::{self, Arrived};
use crate::timeline::GuestCounter;

/// The version of everything in this file. Holder and monitor are of one build, or at least of one
/// version: raise it with every change of a request, an answer or an event. What refuses another
/// version is the same in all: the start's `version`, and the answer `failed`.
pub(super) const VERSION: u32 = 8;

/// Why a first frame starts no machine.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadStart {
    #[error(
        "this monitor speaks version {VERSION} of the control protocol, and who started it version {0}: both have to be of one build"
    )]
    Version(u32),
    #[error("the first request on a control connection must be a machine's start")]
    Other,
    #[error("a machine's start cannot be read")]
    Unreadable(#[source] serde_json::Error),
}

/// The first request, read: see [`ControlRequest::Start`].
#[derive(Debug)]
pub(super) struct Start {
    pub(super) config: MachineConfig,
    pub(super) log: bool,
    pub(super) snapshot: bool,
    pub(super) labels: Vec<Label>,
}

/// What a holder asks of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub(super) enum ControlRequest {
    /// The first one. Descriptors: the answer, the socket for the outcome, where faults are said,
    /// the state and the memory of a saved machine, the config's resources in order.
    Start {
        /// The holder's [`VERSION`].
        version: u32,
        /// The machine.
        config: Box<MachineConfig>,
        /// Whether there is a descriptor to say faults on.
        log: bool,
        /// Whether there are two descriptors of a saved machine, which goes on instead of a boot.
        snapshot: bool,
        /// What is said of the resources, in their order.
        labels: Vec<Label>,
    },
    Pause,
    Resume,
    /// Of a paused machine. Descriptors: the answer, the files for its state and its memory.
    Save,
    Stop,
    /// Answered by [`Answer::NoPowerButton`] of a machine without one.
    PowerButton,
    State,
    Counters,
    Inspect,
    /// One virtio device of it.
    InspectDevice {
        device: DeviceName,
    },
    /// Answered once vCPU 0 is out of the guest.
    GuestCounter,
    /// Descriptors: the answer, the socket that events are written to.
    Events,
    /// Answered with a stream of the device's bytes.
    Stream {
        device: DeviceName,
    },
    /// Answered with a stream once the guest accepted.
    VsockConnect {
        port: u32,
    },
    /// Connects a stream to a port of the guest. Descriptors: the answer, the stream. Answered once
    /// the guest accepted.
    VsockJoin {
        port: u32,
        /// What the guest reads before the bytes of the stream.
        prefix: Vec<u8>,
    },
    /// Descriptors: the answer, the socket that accepted streams are sent to.
    VsockListen {
        port: u32,
    },
    /// What the device is to have in all: of the memory device, the guest's memory. A disk is made
    /// larger.
    Resize {
        device: DeviceName,
        bytes: u64,
    },
    /// Changes the limits of a disk's rates.
    LimitDisk {
        disk: DiskId,
        limits: DiskLimits,
    },
    /// Puts a device into an empty slot. Descriptors: the answer, and the files that the device's
    /// configuration refers to by their numbers.
    Attach {
        device: NewDevice,
    },
    /// Takes a device out of its slot. Answered once nothing of it is left.
    Detach {
        device: DeviceName,
    },
}

/// A device that a running machine can get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum NewDevice {
    Disk { disk: DiskConfig, labels: Vec<Label> },
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Done,
    State(State),
    Counters(ExitCounts),
    Inspection(Box<Inspection>),
    Device(Box<DeviceState>),
    GuestCounter(Option<GuestCounter>),
    /// Refused or failed: the layers' sentences, outermost first.
    Failed(Vec<String>),
    /// Its guest was told of no power button.
    NoPowerButton,
    /// The machine ended before it could be answered.
    Ended,
}

/// Longest JSON of a frame. A command line and sixty-four disks fit many times.
const MAX_FRAME: usize = 1 << 20;
/// Bytes before the JSON: its length, little endian.
const HEADER: usize = 4;

/// What is too long for a frame of the control protocol.
#[derive(Debug, thiserror::Error)]
#[error("{0} bytes are too many for a frame of the control protocol, which has at most {MAX_FRAME}")]
struct TooLong(usize);

/// Sends one frame.
///
/// # Errors
/// The socket's; [`io::ErrorKind::InvalidInput`] of a message that the other side would refuse, of
/// which nothing is sent.
pub(super) fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut frame = vec![0; HEADER];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - HEADER;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, TooLong(length)));
    }
    let length: u32 = sys::fits(length, "a mebibyte");
    frame[..HEADER].copy_from_slice(&length.to_le_bytes());
    sys::send(socket, &frame, descriptors)
}

/// Frames as they arrive on a socket, blocking or not.
///
/// Never a byte behind a frame is read before the frame is taken, so that descriptors which arrive
/// belong to that frame, whatever became of those of others.
#[derive(Debug)]
pub(super) struct Receiver {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    /// Most descriptors of a frame; what is beyond is closed.
    most: usize,
}

/// What one look at the socket found.
#[derive(Debug)]
pub(super) enum Received<T> {
    /// A frame. Descriptors may be fewer than were sent with it, when this process has no room for
    /// more.
    Frame(T, Vec<OwnedFd>),
    /// Not yet (non-blocking sockets).
    Nothing,
    /// The other side is gone.
    End,
}

impl Receiver {
    /// Of frames with at most `most` descriptors.
    pub(super) fn new(most: usize) -> Self {
        Self { bytes: Vec::new(), descriptors: Vec::new(), most }
    }

    /// Whether nothing of a next frame was read yet.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Reads until a frame is whole.
    pub(super) fn receive<T: DeserializeOwned>(&mut self, socket: BorrowedFd<'_>) -> io::Result<Received<T>> {
        self.receive_with(socket, |json| Ok(serde_json::from_slice(json)?))
    }

    /// Reads until the first frame of a control connection is whole.
    pub(super) fn receive_start(
        &mut self,
        socket: BorrowedFd<'_>,
    ) -> io::Result<Received<Result<Start, BadStart>>> {
        self.receive_with(socket, |json| Ok(start(json)))
    }

    fn receive_with<T>(
        &mut self,
        socket: BorrowedFd<'_>,
        read: impl Fn(&[u8]) -> io::Result<T>,
    ) -> io::Result<Received<T>> {
        loop {
            let missing = self.missing()?;
            if missing == 0 {
                let message = read(&self.bytes[HEADER..])?;
                self.bytes.clear();
                return Ok(Received::Frame(message, std::mem::take(&mut self.descriptors)));
            }
            let mut chunk = [0; 4096];
            let room = missing.min(chunk.len());
            match sys::receive(socket, &mut chunk[..room], &mut self.descriptors, self.most) {
                Ok(Arrived { bytes: 0, .. }) => return Ok(Received::End),
                Ok(Arrived { bytes, .. }) => self.bytes.extend_from_slice(&chunk[..bytes]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Nothing),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Received::End),
                Err(error) => return Err(error),
            }
        }
    }

    /// Bytes that the frame, or its header, still lacks.
    fn missing(&self) -> io::Result<usize> {
        let Some(header) = self.bytes.first_chunk() else { return Ok(HEADER - self.bytes.len()) };
        match usize::try_from(u32::from_le_bytes(*header)) {
            Ok(length) if length <= MAX_FRAME => Ok(HEADER + length - self.bytes.len()),
            _ => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "a frame of the control protocol is too long"))
            }
        }
    }
}

/// Reads a start. Of another version nothing else may be readable: so that is looked for where
/// anything is amiss.
fn start(json: &[u8]) -> Result<Start, BadStart> {
    #[derive(Deserialize)]
    struct Spoken {
        version: u32,
    }
    match serde_json::from_slice(json) {
        Ok(ControlRequest::Start { version: VERSION, config, log, snapshot, labels }) => {
            Ok(Start { config: *config, log, snapshot, labels })
        }
        Ok(ControlRequest::Start { version, .. }) => Err(BadStart::Version(version)),
        Ok(_) => Err(BadStart::Other),
        Err(error) => match serde_json::from_slice(json) {
            Ok(Spoken { version }) if version != VERSION => Err(BadStart::Version(version)),
            _ => Err(BadStart::Unreadable(error)),
        },
    }
}

/// The server's end of one request's answer. Dropped unanswered, it tells that the machine ended.
#[derive(Debug)]
pub(super) struct Reply(Option<OwnedFd>);

impl Reply {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(Some(socket))
    }

    /// Answers. Whoever asked may be gone: then nobody needs to know.
    pub(super) fn answer(mut self, answer: &Answer, descriptor: Option<OwnedFd>) {
        self.send(answer, descriptor.as_ref());
    }

    fn send(&mut self, answer: &Answer, descriptor: Option<&OwnedFd>) {
        let Some(socket) = self.0.take() else { return };
        let descriptor: Vec<_> = descriptor.into_iter().map(AsFd::as_fd).collect();
        let sent = send(socket.as_fd(), answer, &descriptor);
        // Whoever asked hears that there is an answer, and why it does not come.
        if let Err(error) = sent
            && error.kind() == io::ErrorKind::InvalidInput
        {
            let _gone = send(socket.as_fd(), &Answer::Failed(chain(&error)), &[]);
        }
    }

    pub(super) fn done(self) {
        self.answer(&Answer::Done, None);
    }

    pub(super) fn failed(self, error: &dyn std::error::Error) {
        self.answer(&Answer::Failed(chain(error)), None);
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.send(&Answer::Ended, None);
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
        send(near.as_fd(), &ControlRequest::Pause, &[extra.as_fd()]).unwrap();
        send(near.as_fd(), &ControlRequest::VsockConnect { port: 7 }, &[extra.as_fd(), extra.as_fd()])
            .unwrap();
        drop(near);
        let mut receiver = Receiver::new(2);
        let mut seen = Vec::new();
        while let Received::Frame(request, descriptors) =
            receiver.receive::<ControlRequest>(far.as_fd()).unwrap()
        {
            seen.push((request, descriptors.len()));
        }
        assert_eq!(seen, [(ControlRequest::Pause, 1), (ControlRequest::VsockConnect { port: 7 }, 2)]);
    }

    #[test]
    fn a_config_travels_as_it_is_and_a_wrong_one_is_refused() {
        let config = Box::new(MachineConfig::new(crate::config::FileSource::Fd(0)));
        let labels = Vec::new();
        let request = ControlRequest::Start {
            version: VERSION,
            config: config.clone(),
            log: false,
            snapshot: true,
            labels,
        };
        let text = serde_json::to_string(&request).unwrap();
        let read = start(text.as_bytes()).unwrap();
        assert_eq!((read.config, read.log, read.snapshot), (*config, false, true));
        let wrong = text.replace("\"cpus\":1", "\"cpus\":99");
        let BadStart::Unreadable(error) = start(wrong.as_bytes()).unwrap_err() else { panic!("it was read") };
        assert!(error.to_string().starts_with("cpus: "));
    }

    #[test]
    fn the_page_names_this_version_and_every_request_and_answer() {
        let page = include_str!("../../../../docs/control-protocol.md");
        assert!(page.contains(&format!("This page describes version {VERSION}.")));
        let config = Box::new(MachineConfig::new(crate::config::FileSource::Fd(0)));
        let source = crate::config::FileSource::Fd(0);
        let disk = DiskConfig::new(crate::config::DiskId::new("d").unwrap(), source, true);
        let requests = [
            ControlRequest::Start {
                version: VERSION,
                config,
                log: false,
                snapshot: false,
                labels: Vec::new(),
            },
            ControlRequest::Pause,
            ControlRequest::Save,
            ControlRequest::Resume,
            ControlRequest::Stop,
            ControlRequest::PowerButton,
            ControlRequest::State,
            ControlRequest::Counters,
            ControlRequest::Inspect,
            ControlRequest::GuestCounter,
            ControlRequest::Events,
            ControlRequest::Stream { device: DeviceName::Serial },
            ControlRequest::InspectDevice { device: DeviceName::Rng },
            ControlRequest::VsockConnect { port: 1 },
            ControlRequest::VsockJoin { port: 1, prefix: vec![0, 255] },
            ControlRequest::VsockListen { port: 1 },
            ControlRequest::Resize { device: DeviceName::Memory, bytes: 1 },
            ControlRequest::Attach { device: NewDevice::Disk { disk, labels: vec![Label::default()] } },
            ControlRequest::Detach { device: DeviceName::Rng },
        ];
        for request in requests {
            let value = serde_json::to_value(&request).unwrap();
            let row = format!("| `{}` |", value["op"].as_str().unwrap());
            assert!(page.contains(&row), "{row}");
        }
        let answers = [
            Answer::Done,
            Answer::State(State::Running),
            Answer::Counters(ExitCounts::default()),
            Answer::GuestCounter(None),
            Answer::Failed(Vec::new()),
            Answer::NoPowerButton,
            Answer::Ended,
        ];
        for answer in answers {
            let value = serde_json::to_value(&answer).unwrap();
            let word = value.as_str().or_else(|| Some(value.as_object()?.keys().next()?)).unwrap();
            assert!(page.contains(&format!("\"{word}\"")), "{word}");
        }
    }

    #[test]
    fn a_start_of_another_version_is_told_by_that_alone() {
        let config = Box::new(MachineConfig::new(crate::config::FileSource::Fd(0)));
        let request = ControlRequest::Start {
            version: VERSION + 1,
            config,
            log: true,
            snapshot: false,
            labels: Vec::new(),
        };
        let same = serde_json::to_string(&request).unwrap();
        let later = VERSION + 1;
        let other = format!(r#"{{"op":"begin","version":{later},"machine":[]}}"#);
        for text in [same, other] {
            let said = start(text.as_bytes()).unwrap_err().to_string();
            let versions = [format!("version {VERSION} "), format!("version {later}:")];
            assert!(versions.iter().all(|version| said.contains(version)), "{said}");
        }
        for (text, wanted) in [
            (r#"{"op":"pause"}"#, "must be a machine's start"),
            (r#"{"op":"start"}"#, "cannot be read"),
            (r#"{"op":"start","version":8}"#, "cannot be read"),
            ("", "cannot be read"),
        ] {
            let said = start(text.as_bytes()).unwrap_err().to_string();
            assert!(said.contains(wanted), "{text}: {said}");
        }
    }

    #[test]
    fn what_is_too_long_is_not_sent_and_whoever_asked_hears_why() {
        let (near, far) = sys::stream_pair().unwrap();
        let fits = Answer::Failed(vec!["x".repeat(MAX_FRAME - "{\"failed\":[\"\"]}".len())]);
        let long = Answer::Failed(vec!["x".repeat(MAX_FRAME)]);
        let error = send(near.as_fd(), &long, &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let (reads, expected) = (
            std::thread::spawn(move || {
                let mut receiver = Receiver::new(1);
                std::iter::from_fn(|| match receiver.receive::<Answer>(far.as_fd()).unwrap() {
                    Received::Frame(answer, _) => Some(answer),
                    _ => None,
                })
                .collect::<Vec<_>>()
            }),
            fits.clone(),
        );
        send(near.as_fd(), &fits, &[]).unwrap();
        Reply::new(near).answer(&long, None);
        let read = reads.join().unwrap();
        assert!(read[0] == expected && read.len() == 2);
        let Answer::Failed(said) = &read[1] else { panic!("it was answered") };
        assert!(said[0].contains("too many for a frame"), "{said:?}");
    }

    #[test]
    fn a_frame_that_is_too_long_is_an_error() {
        let (near, far) = sys::stream_pair().unwrap();
        sys::send(near.as_fd(), &[0xff; 4], &[]).unwrap();
        assert!(Receiver::new(1).receive::<ControlRequest>(far.as_fd()).is_err());
    }

    #[test]
    fn surplus_descriptors_are_closed_and_missing_ones_do_not_move_those_of_the_next_frame() {
        let (near, far) = sys::stream_pair().unwrap();
        let (extra, other) = sys::stream_pair().unwrap();
        // Byte by byte with a descriptor each, as no sender of ours would.
        let mut frame = Vec::new();
        serde_json::to_writer(&mut frame, &ControlRequest::Pause).unwrap();
        let length = u32::try_from(frame.len()).unwrap();
        for byte in length.to_le_bytes().into_iter().chain(frame) {
            sys::send(near.as_fd(), &[byte], &[extra.as_fd()]).unwrap();
        }
        send(near.as_fd(), &ControlRequest::Stop, &[]).unwrap();
        send(near.as_fd(), &ControlRequest::Resume, &[extra.as_fd()]).unwrap();
        drop(extra);
        let mut receiver = Receiver::new(1);
        let mut next = || match receiver.receive::<ControlRequest>(far.as_fd()).unwrap() {
            Received::Frame(request, descriptors) => (request, descriptors),
            other => panic!("{other:?}"),
        };
        for (request, count) in
            [(ControlRequest::Pause, 1), (ControlRequest::Stop, 0), (ControlRequest::Resume, 1)]
        {
            let (seen, descriptors) = next();
            assert_eq!((seen, descriptors.len()), (request, count));
        }
        assert_eq!(rustix::io::read(&other, &mut [0; 1]), Ok(0), "nobody holds one more");
    }
}
