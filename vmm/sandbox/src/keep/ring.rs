//! The latest output of a container, for any number of readers: one bounded ring, and a position
//! in it for each reader. Writing never waits: it takes the room of the oldest bytes, and a reader
//! that had not read them is told how many it lost.

use std::collections::VecDeque;

use crate::wire::frames::Source;

/// Most runs of bytes of one source that a ring holds. It bounds what a container that changes
/// between its streams at each byte can make the keeper hold.
const RUNS_MOST: usize = 4096;

/// Bytes in a row from one source.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Position of the first byte, counted from the container's first.
    begin: u64,
    source: Source,
}

/// The ring.
#[derive(Debug)]
pub struct Ring {
    bytes: VecDeque<u8>,
    runs: VecDeque<Run>,
    /// Position of the oldest byte that is held.
    begin: u64,
    most: usize,
}

/// What a reader gets next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// So many bytes from this source.
    Bytes(Source, usize),
    /// So many bytes are gone.
    Lost(u64),
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).expect("a count of bytes in memory fits 64 bits")
}

impl Ring {
    /// A ring of the latest `most` bytes.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { bytes: VecDeque::new(), runs: VecDeque::new(), begin: 0, most }
    }

    /// Position behind the newest byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.begin + wide(self.bytes.len())
    }

    /// The position of a new reader that wants all that is held.
    #[must_use]
    pub fn oldest(&self) -> u64 {
        self.begin
    }

    /// Adds output, in the place of the oldest if need be.
    pub fn push(&mut self, source: Source, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.runs.back().is_none_or(|run| run.source != source) {
            self.runs.push_back(Run { begin: self.end(), source });
        }
        self.bytes.extend(bytes);
        self.drop_oldest(self.bytes.len().saturating_sub(self.most));
        if self.runs.len() > RUNS_MOST {
            let second = self.runs[1].begin - self.begin;
            self.drop_oldest(usize::try_from(second).expect("a run lies in memory"));
        }
    }

    fn drop_oldest(&mut self, count: usize) {
        self.bytes.drain(..count);
        self.begin += wide(count);
        while self.runs.get(1).is_some_and(|second| second.begin <= self.begin) {
            self.runs.pop_front();
        }
    }

    /// Whether a reader at `position` loses nothing by so many more pieces of at most so many
    /// bytes.
    #[must_use]
    pub fn has_room_for(&self, pieces: usize, most: usize, position: u64) -> bool {
        let before = self.runs.partition_point(|run| run.begin <= position).saturating_sub(1);
        let bytes = self.end().saturating_sub(position) + wide(pieces * most);
        bytes <= wide(self.most) && self.runs.len() - before + pieces <= RUNS_MOST
    }

    /// Copies the next bytes of one source for a reader into `into`, which has room, and moves its
    /// `position`. `None`: it has read all.
    pub fn read(&self, position: &mut u64, into: &mut [u8]) -> Option<Piece> {
        if *position < self.begin {
            let lost = self.begin - *position;
            *position = self.begin;
            return Some(Piece::Lost(lost));
        }
        if *position >= self.end() {
            return None;
        }
        let next = self.runs.partition_point(|run| run.begin <= *position);
        let run = self.runs[next - 1];
        let end = self.runs.get(next).map_or(self.end(), |run| run.begin);
        let offset = usize::try_from(*position - self.begin).expect("it lies in memory");
        let room = into.len().min(usize::try_from(end - *position).expect("it lies in memory"));
        for (to, from) in into.iter_mut().zip(self.bytes.range(offset..offset + room)) {
            *to = *from;
        }
        *position += wide(room);
        Some(Piece::Bytes(run.source, room))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push(Source, Vec<u8>),
        /// This reader reads so many pieces of at most so many bytes.
        Read(usize, usize, usize),
        Join,
    }

    fn step() -> impl Strategy<Value = Step> {
        let source = prop_oneof![Just(Source::Output), Just(Source::Error)];
        prop_oneof![
            3 => (source, proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|(source, bytes)| Step::Push(source, bytes)),
            3 => (0_usize..4, 1_usize..6, 1_usize..50).prop_map(|(reader, times, room)| Step::Read(reader, times, room)),
            1 => Just(Step::Join),
        ]
    }

    proptest! {
        /// Against a record of everything: what each reader gets, in order, with its gaps as long
        /// as it was told, is what was written from where it joined.
        #[test]
        fn every_reader_gets_all_but_what_it_is_told_it_lost(
            steps in proptest::collection::vec(step(), 1..100), most in 1_usize..100,
        ) {
            let mut ring = Ring::new(most);
            let mut all: Vec<(Source, u8)> = Vec::new();
            let mut readers: Vec<u64> = vec![0];
            let check = |ring: &Ring, all: &[(Source, u8)], position: &mut u64, room: usize| {
                let mut into = vec![0; room];
                let before = usize::try_from(*position).unwrap();
                match ring.read(position, &mut into) {
                    None => assert_eq!(before, all.len(), "something is left"),
                    Some(Piece::Lost(count)) => assert!(count > 0 && *position == u64::try_from(before).unwrap() + count),
                    Some(Piece::Bytes(source, count)) => {
                        assert!(count > 0);
                        for (index, byte) in into[..count].iter().enumerate() {
                            assert_eq!((source, *byte), all[before + index]);
                        }
                    }
                }
            };
            for step in steps {
                match step {
                    Step::Push(source, bytes) => {
                        all.extend(bytes.iter().map(|byte| (source, *byte)));
                        let safe: Vec<bool> =
                            readers.iter().map(|at| ring.has_room_for(1, bytes.len(), *at)).collect();
                        ring.push(source, &bytes);
                        for (at, safe) in readers.iter().zip(safe) {
                            prop_assert!(!safe || *at >= ring.begin);
                        }
                    }
                    Step::Read(reader, times, room) => {
                        let count = readers.len();
                        for _ in 0..times {
                            check(&ring, &all, &mut readers[reader % count], room);
                        }
                    }
                    Step::Join => readers.push(ring.oldest()),
                }
                prop_assert!(ring.bytes.len() <= most && ring.runs.len() <= ring.bytes.len().max(1));
                prop_assert_eq!(ring.end(), u64::try_from(all.len()).unwrap());
                // What is held is the latest of all.
                prop_assert_eq!(ring.bytes.len(), all.len().min(most));
            }
        }
    }

    #[test]
    fn a_container_that_changes_streams_at_each_byte_costs_no_more_than_the_bound() {
        let mut ring = Ring::new(1 << 20);
        for _ in 0..RUNS_MOST {
            ring.push(Source::Output, b"o");
            ring.push(Source::Error, b"e");
        }
        assert_eq!(ring.runs.len(), RUNS_MOST);
        // The oldest run goes with the next change of streams, and with it its one byte.
        assert!(!ring.has_room_for(1, 1, ring.begin) && ring.has_room_for(1, 1, ring.begin + 1));
        let mut position = 0;
        assert_eq!(ring.read(&mut position, &mut [0]), Some(Piece::Lost(wide(RUNS_MOST))));
        assert_eq!(ring.read(&mut position, &mut [0; 9]), Some(Piece::Bytes(Source::Output, 1)));
    }
}
