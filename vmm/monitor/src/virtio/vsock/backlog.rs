//! Bytes received from the guest that the host side has not taken yet.

use std::collections::VecDeque;
use std::io::IoSlice;

/// A chunk is at least this big, so that many tiny packets do not cost an allocation each.
const SMALLEST_CHUNK: usize = 4096;

/// A first-in, first-out store of bytes in chunks; a chunk is allocated when bytes arrive and freed
/// when they are gone. How much it may hold is the connection's credit, see [`super::connection`].
#[derive(Debug, Default)]
pub(super) struct Backlog {
    chunks: VecDeque<Vec<u8>>,
    /// Bytes of the first chunk that are gone already.
    taken: usize,
    len: usize,
}

impl Backlog {
    /// Bytes stored.
    #[cfg(test)]
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Nothing is stored (and nothing allocated).
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends `len` bytes that `fill` provides piece by piece, in order; an error of `fill` leaves
    /// what came before it.
    pub(super) fn append<E>(
        &mut self,
        mut len: usize,
        mut fill: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while len > 0 {
            let room = self.chunks.back().map_or(0, |chunk| chunk.capacity() - chunk.len());
            if room == 0 {
                self.chunks.push_back(Vec::with_capacity(len.max(SMALLEST_CHUNK)));
                continue;
            }
            let Some(chunk) = self.chunks.back_mut() else { break };
            let (start, piece) = (chunk.len(), room.min(len));
            chunk.resize(start + piece, 0);
            if let Err(error) = fill(&mut chunk[start..]) {
                chunk.truncate(start);
                self.shed_empty();
                return Err(error);
            }
            self.len += piece;
            len -= piece;
        }
        Ok(())
    }

    /// The oldest bytes, in at most 16 pieces.
    #[must_use]
    pub(super) fn front(&self) -> Vec<IoSlice<'_>> {
        let skip = |index: usize| if index == 0 { self.taken } else { 0 };
        self.chunks
            .iter()
            .take(16)
            .enumerate()
            .map(|(index, chunk)| IoSlice::new(&chunk[skip(index)..]))
            .collect()
    }

    /// Forgets the oldest `count` bytes, or all of them.
    pub(super) fn consume(&mut self, count: usize) {
        let mut count = count.min(self.len);
        self.len -= count;
        while let Some(first) = self.chunks.front() {
            let left = first.len() - self.taken;
            if count < left {
                self.taken += count;
                break;
            }
            count -= left;
            self.taken = 0;
            self.chunks.pop_front();
        }
        self.shed_empty();
    }

    fn shed_empty(&mut self) {
        if self.len == 0 {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn put(backlog: &mut Backlog, bytes: &[u8]) {
        let mut rest = bytes;
        backlog
            .append(bytes.len(), |piece| {
                let (now, later) = rest.split_at(piece.len());
                piece.copy_from_slice(now);
                rest = later;
                Ok::<(), Infallible>(())
            })
            .unwrap();
    }

    #[test]
    fn tiny_packets_share_a_chunk_and_nothing_stays_allocated() {
        let mut backlog = Backlog::default();
        for byte in 0..100 {
            put(&mut backlog, &[byte]);
        }
        assert_eq!((backlog.len(), backlog.chunks.len()), (100, 1));
        backlog.consume(100);
        assert!(backlog.is_empty());
        assert_eq!(backlog.chunks.capacity(), 0);
    }

    #[test]
    fn a_failed_append_keeps_what_was_there() {
        let mut backlog = Backlog::default();
        assert_eq!(backlog.append(5, |_| Err("unreadable")), Err("unreadable"));
        assert!(backlog.is_empty());
        put(&mut backlog, b"abc");
        assert_eq!(backlog.append(5, |_| Err("unreadable")), Err("unreadable"));
        assert_eq!(&backlog.front()[0][..], b"abc");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn bytes_come_out_as_they_went_in(steps in proptest::collection::vec((0usize..9000, 0usize..9000), 1..60)) {
            let (mut backlog, mut fed, mut seen) = (Backlog::default(), Vec::new(), Vec::new());
            for (feed, take) in steps {
                let bytes: Vec<u8> = (0..feed).map(|i| u8::try_from((fed.len() + i) % 251).unwrap()).collect();
                put(&mut backlog, &bytes);
                fed.extend(bytes);
                let front: Vec<u8> = backlog.front().iter().flat_map(|piece| piece.to_vec()).collect();
                let take = take.min(front.len());
                seen.extend_from_slice(&front[..take]);
                backlog.consume(take);
                prop_assert_eq!(backlog.len(), fed.len() - seen.len());
                let held: usize = backlog.chunks.iter().map(Vec::capacity).sum();
                prop_assert!(held <= backlog.len() + 9000 + 2 * SMALLEST_CHUNK);
            }
            prop_assert!(fed.starts_with(&seen));
        }
    }
}
