//! Records that the agent of a guest writes about a container. The guest is not trusted: each is
//! bounded, and what is none is an error.

use std::io::{self, BufReader, Read};
use std::os::unix::net::UnixStream;

pub use nelly_protocol::Message;
use nelly_protocol::inspect::{HEADER, Kind, parse};
use nelly_protocol::messages;
pub use nelly_protocol::messages::change::Kind as ChangeKind;
pub use nelly_protocol::messages::{Change, Process};

use crate::agent::sentence;

/// Why there are no more records.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The stream broke.
    #[error("the stream from the guest broke")]
    Broken(#[source] io::Error),
    /// The stream ended before its result.
    #[error("the stream from the guest ended in the middle: the container may have ended")]
    Cut,
    /// It said nothing within its time.
    #[error("the guest says nothing more: it may be paused, or hang")]
    Silent,
    /// Something that is no record.
    #[error("the guest sent something that is no record")]
    Damaged,
    /// More than is taken.
    #[error("the guest sends too much: more than {0}")]
    Endless(String),
    /// What the guest could not do, in its words, cut to 4 KiB.
    #[error("{0}")]
    Failed(String),
}

/// A record, or a sentence about what was left out.
#[derive(Clone, Debug, PartialEq)]
pub enum Told<M> {
    /// A record.
    Record(M),
    /// A sentence of the guest, cut to 4 KiB.
    Note(String),
}

/// Most sentences of a stream.
const NOTES_MOST: u32 = 64;

/// How much is taken from a guest, which may send without an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most {
    /// Records.
    pub records: u64,
    /// Bytes of all records together, as they are sent.
    pub bytes: u64,
}

impl Default for Most {
    /// As many processes as an agent tells of, and the bytes of their longest command lines.
    fn default() -> Self {
        Self { records: 8192, bytes: 64 << 20 }
    }
}

impl Most {
    /// No bound, for what is not held.
    pub const ENDLESS: Self = Self { records: u64::MAX, bytes: u64::MAX };
}

/// The stream of records. Reading it blocks.
#[derive(Debug)]
pub struct Records<R = UnixStream> {
    stream: BufReader<R>,
    most: Most,
    came: Most,
    notes: u32,
}

impl<R: Read> Records<R> {
    /// The records of a stream, as many as [`Most::default`] says.
    pub fn new(stream: R) -> Self {
        let (most, came) = (Most::default(), Most { records: 0, bytes: 0 });
        Self { stream: BufReader::with_capacity(64 << 10, stream), most, came, notes: 0 }
    }

    /// The same with other bounds.
    #[must_use]
    pub fn at_most(self, most: Most) -> Self {
        Self { most, ..self }
    }

    /// Counts a record of so many bytes.
    fn count(&mut self, length: usize) -> Result<(), RecordError> {
        self.came.records += 1;
        self.came.bytes = self.came.bytes.saturating_add(length as u64);
        if self.came.records > self.most.records {
            return Err(RecordError::Endless(format!("{} records", self.most.records)));
        }
        if self.came.bytes > self.most.bytes {
            return Err(RecordError::Endless(format!("{} bytes of records", self.most.bytes)));
        }
        Ok(())
    }

    /// The next; `None` after the last one, when all was found.
    ///
    /// # Errors
    /// [`RecordError`]; there is nothing after one.
    pub fn take<M: Message>(&mut self) -> Result<Option<Told<M>>, RecordError> {
        let mut header = [0; HEADER];
        self.fill(&mut header)?;
        let (kind, length) = parse(header).map_err(|_| RecordError::Damaged)?;
        match kind {
            Kind::Record => self.count(length)?,
            Kind::Note if self.notes == NOTES_MOST => {
                return Err(RecordError::Endless(format!("{NOTES_MOST} notes")));
            }
            Kind::Note => self.notes += 1,
            Kind::Result => {}
        }
        let mut payload = vec![0; length];
        self.fill(&mut payload)?;
        match kind {
            Kind::Record => M::parse_from_bytes(&payload)
                .map(|one| Some(Told::Record(one)))
                .map_err(|_| RecordError::Damaged),
            Kind::Note => Ok(Some(Told::Note(sentence(String::from_utf8_lossy(&payload).into_owned())))),
            Kind::Result => {
                let result = messages::InspectResult::parse_from_bytes(&payload);
                match result.map_err(|_| RecordError::Damaged)? {
                    result if result.code == 0 => Ok(None),
                    result => Err(RecordError::Failed(sentence(result.message))),
                }
            }
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), RecordError> {
        self.stream.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => RecordError::Cut,
            // A limit of the stream's.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => RecordError::Silent,
            _ => RecordError::Broken(error),
        })
    }
}

#[cfg(test)]
mod tests {
    use nelly_protocol::inspect::header;
    use nelly_protocol::messages::{Change, InspectResult};

    use super::*;

    fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
        [&header(kind, payload.len())[..], payload].concat()
    }

    #[test]
    fn records_end_with_their_result_and_not_without() {
        let change = Change { path: b"/a".to_vec(), ..Default::default() };
        let record = frame(Kind::Record, &change.write_to_bytes().unwrap());
        let note = frame(Kind::Note, b"left out");
        let result = frame(Kind::Result, &InspectResult::default().write_to_bytes().unwrap());
        let failed = InspectResult { code: 1, message: "no".into(), ..Default::default() };
        let failed = frame(Kind::Result, &failed.write_to_bytes().unwrap());
        let whole = [record.clone(), note.clone(), result].concat();
        let mut records = Records::new(&whole[..]);
        assert_eq!(records.take().unwrap(), Some(Told::Record(change)));
        assert_eq!(records.take::<Change>().unwrap(), Some(Told::Note("left out".into())));
        assert_eq!(records.take::<Change>().unwrap(), None);
        let mut records = Records::new(&failed[..]);
        assert!(matches!(records.take::<Change>(), Err(RecordError::Failed(text)) if text == "no"));
        for cut in 0..record.len() {
            let mut records = Records::new(&record[..cut]);
            assert!(matches!(records.take::<Change>(), Err(RecordError::Cut)), "{cut}");
        }
        for bad in [frame(Kind::Record, &[255; 9]), vec![9; 20], frame(Kind::Result, &[255])] {
            assert!(matches!(Records::new(&bad[..]).take::<Change>(), Err(RecordError::Damaged)), "{bad:?}");
        }
    }

    #[test]
    fn sentences_are_cut() {
        // 4096 is in the middle of a character.
        let long = format!("a{}", "ä".repeat(10_000));
        let failed = InspectResult { code: 1, message: long.clone(), ..Default::default() };
        let stream = [
            frame(Kind::Note, long.as_bytes()),
            frame(Kind::Note, &[0xff; 5000]),
            frame(Kind::Result, &failed.write_to_bytes().unwrap()),
        ];
        let stream = stream.concat();
        let mut records = Records::new(&stream[..]);
        for _ in 0..2 {
            let Ok(Some(Told::Note(text))) = records.take::<Change>() else { panic!("no note") };
            assert!((4090..=4096).contains(&text.len()), "{}", text.len());
        }
        let Err(RecordError::Failed(text)) = records.take::<Change>() else { panic!("no result") };
        assert_eq!(text, long[..4095]);
    }

    #[test]
    fn a_guest_that_says_nothing_more_is_left() {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_read_timeout(Some(std::time::Duration::from_millis(20))).unwrap();
        let record = frame(Kind::Record, &Change::default().write_to_bytes().unwrap());
        io::Write::write_all(&mut far, &[&record[..], &record[..3]].concat()).unwrap();
        let mut records = Records::new(near);
        assert!(records.take::<Change>().unwrap().is_some());
        assert!(matches!(records.take::<Change>(), Err(RecordError::Silent)));
    }

    /// What a stream that never ends is read to.
    fn endless(frame: &[u8], most: Most) -> (u64, String) {
        struct Again<'a>(&'a [u8], usize);
        impl Read for Again<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let count = buffer.len().min(self.0.len() - self.1);
                buffer[..count].copy_from_slice(&self.0[self.1..self.1 + count]);
                self.1 = (self.1 + count) % self.0.len();
                Ok(count)
            }
        }
        let mut records = Records::new(Again(frame, 0)).at_most(most);
        let mut taken = 0;
        loop {
            match records.take::<Process>() {
                Ok(told) => assert!(told.is_some()),
                Err(error) => return (taken, error.to_string()),
            }
            taken += 1;
        }
    }

    #[test]
    fn a_stream_without_an_end_is_an_error() {
        let most = Most::default();
        let (taken, error) = endless(&frame(Kind::Record, b""), most);
        assert_eq!((taken, error.as_str()), (8192, "the guest sends too much: more than 8192 records"));
        let long = Process { args: vec![vec![b'x'; 60_000]], ..Default::default() };
        let long = frame(Kind::Record, &long.write_to_bytes().unwrap());
        let (taken, error) = endless(&long, most);
        assert!(taken < 1200 && error.contains("67108864 bytes"), "{taken} {error}");
        let (taken, error) = endless(&frame(Kind::Note, b"x"), Most::ENDLESS);
        assert!(taken == 64 && error.contains("64 notes"), "{taken} {error}");
    }
}
