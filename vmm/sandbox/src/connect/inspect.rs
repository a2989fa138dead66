//! Records that the agent of a guest writes about a container. The guest is not trusted: each is
//! bounded, and what is none is an error.

use std::io::{self, BufReader, Read};
use std::os::unix::net::UnixStream;

pub use nelly_protocol::Message;
use nelly_protocol::inspect::{HEADER, Kind, parse};
use nelly_protocol::messages;
pub use nelly_protocol::messages::change::Kind as ChangeKind;
pub use nelly_protocol::messages::{Change, Process};

/// Why there are no more records.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The stream broke.
    #[error("the stream from the guest broke")]
    Broken(#[source] io::Error),
    /// The stream ended before its result.
    #[error("the stream from the guest ended in the middle: the container may have ended")]
    Cut,
    /// Something that is no record.
    #[error("the guest sent something that is no record")]
    Damaged,
    /// What the guest could not do.
    #[error("{0}")]
    Failed(String),
}

/// A record, or a sentence about what was left out.
#[derive(Clone, Debug, PartialEq)]
pub enum Told<M> {
    /// A record.
    Record(M),
    /// A sentence, as the guest wrote it.
    Note(String),
}

/// The stream of records. Reading it blocks.
#[derive(Debug)]
pub struct Records<R = UnixStream> {
    stream: BufReader<R>,
}

impl<R: Read> Records<R> {
    /// The records of a stream.
    pub fn new(stream: R) -> Self {
        Self { stream: BufReader::with_capacity(64 << 10, stream) }
    }

    /// The next; `None` after the last one, when all was found.
    ///
    /// # Errors
    /// [`RecordError`]; there is nothing after one.
    pub fn take<M: Message>(&mut self) -> Result<Option<Told<M>>, RecordError> {
        let mut header = [0; HEADER];
        self.fill(&mut header)?;
        let (kind, length) = parse(header).map_err(|_| RecordError::Damaged)?;
        let mut payload = vec![0; length];
        self.fill(&mut payload)?;
        match kind {
            Kind::Record => M::parse_from_bytes(&payload)
                .map(|one| Some(Told::Record(one)))
                .map_err(|_| RecordError::Damaged),
            Kind::Note => Ok(Some(Told::Note(String::from_utf8_lossy(&payload).into_owned()))),
            Kind::Result => {
                let result = messages::InspectResult::parse_from_bytes(&payload);
                match result.map_err(|_| RecordError::Damaged)? {
                    result if result.code == 0 => Ok(None),
                    result => Err(RecordError::Failed(result.message)),
                }
            }
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), RecordError> {
        self.stream.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => RecordError::Cut,
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
}
