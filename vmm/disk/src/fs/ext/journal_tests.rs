//! Logs that are written here: rings, transactions that were cut, revocations in every order.

use super::journal::{Log, Replay, replay};
use crate::fs::FsError;

const BLOCK: usize = 1024;

/// A log in memory; block `n` of the journal is block `1000 + n` of the file system.
struct Memory(Vec<[u8; BLOCK]>);

impl Log for Memory {
    fn block_size(&self) -> usize {
        BLOCK
    }

    fn blocks(&self) -> u64 {
        self.0.len() as u64
    }

    fn place(&self, index: u64) -> Result<u64, FsError> {
        assert!(index < self.blocks(), "block {index} is none of the log");
        Ok(1000 + index)
    }

    fn read(&self, place: u64, into: &mut [u8]) -> Result<(), FsError> {
        into.copy_from_slice(&self.0[usize::try_from(place).unwrap() - 1000]);
        Ok(())
    }
}

fn put(block: &mut [u8; BLOCK], at: usize, word: u32) {
    block[at..at + 4].copy_from_slice(&word.to_be_bytes());
}

fn head(kind: u32, sequence: u32) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    put(&mut block, 0, 0xc03b_3998);
    put(&mut block, 4, kind);
    put(&mut block, 8, sequence);
    block
}

/// Something that is written to the log.
enum Step<'a> {
    Write(u32, &'a [u32]),
    Revoke(u32, &'a [u32]),
    Commit(u32),
}

/// A log of `len` blocks without checksums that begins at block `start` with transaction `first`.
fn log(len: usize, start: usize, first: u32, steps: &[Step<'_>]) -> Memory {
    let mut blocks = vec![[0xaa; BLOCK]; len];
    let mut superblock = head(4, 0);
    for (at, word) in [
        (0xc, 1024),
        (0x10, u32::try_from(len).unwrap()),
        (0x14, 1),
        (0x18, first),
        (0x1c, u32::try_from(start).unwrap()),
        (0x28, 1),
    ] {
        put(&mut superblock, at, word);
    }
    blocks[0] = superblock;
    let mut at = start;
    let mut push = |block: [u8; BLOCK]| {
        blocks[at] = block;
        at = if at + 1 == len { 1 } else { at + 1 };
    };
    for step in steps {
        match step {
            Step::Write(sequence, numbers) => {
                let mut block = head(1, *sequence);
                for (index, number) in numbers.iter().enumerate() {
                    let last = if index + 1 == numbers.len() { 8 } else { 0 };
                    put(&mut block, 12 + 8 * index, *number);
                    put(&mut block, 16 + 8 * index, 2 | last);
                }
                push(block);
                numbers.iter().for_each(|_| push([0x55; BLOCK]));
            }
            Step::Revoke(sequence, numbers) => {
                let mut block = head(5, *sequence);
                put(&mut block, 12, u32::try_from(16 + 4 * numbers.len()).unwrap());
                for (index, number) in numbers.iter().enumerate() {
                    put(&mut block, 16 + 4 * index, *number);
                }
                push(block);
            }
            Step::Commit(sequence) => push(head(2, *sequence)),
        }
    }
    Memory(blocks)
}

fn found(log: &Memory) -> Vec<(u64, u64)> {
    let replay: Replay = replay(log).unwrap();
    replay.iter().map(|(block, moved)| (*block, moved.block - 1000)).collect()
}

#[test]
fn transactions_count_when_they_are_committed() {
    use Step::{Commit, Write};
    let whole = log(32, 1, 7, &[Write(7, &[50, 60]), Commit(7), Write(8, &[60]), Commit(8), Write(9, &[70])]);
    assert_eq!(found(&whole), [(50, 2), (60, 6)], "the later one of two, none without a commit");
    // What lies behind is of an earlier round.
    let old = log(32, 1, 7, &[Write(7, &[50]), Commit(7), Write(6, &[51]), Commit(6)]);
    assert_eq!(found(&old), [(50, 2)]);
    let skips = log(32, 1, 7, &[Write(7, &[50]), Commit(7), Write(9, &[51]), Commit(9)]);
    assert_eq!(found(&skips), [(50, 2)]);
    let closed = log(32, 0, 7, &[]);
    assert_eq!(found(&closed), []);
}

#[test]
fn the_log_is_a_ring_and_numbers_go_round() {
    use Step::{Commit, Write};
    for start in 1..16 {
        let last = u32::MAX;
        let ring =
            log(16, start, last, &[Write(last, &[50, 51, 52]), Commit(last), Write(0, &[52, 53]), Commit(0)]);
        let numbers: Vec<u64> = found(&ring).into_iter().map(|(block, _)| block).collect();
        assert_eq!(numbers, [50, 51, 52, 53], "{start}");
        let places: Vec<usize> =
            found(&ring).into_iter().map(|(_, place)| usize::try_from(place).unwrap()).collect();
        let at = |step: usize| 1 + (start - 1 + step) % 15;
        assert_eq!(places, [at(1), at(2), at(6), at(7)], "{start}");
    }
}

#[test]
fn revoked_blocks_are_those_of_transactions_up_to_it() {
    use Step::{Commit, Revoke, Write};
    let table: [(&[Step<'_>], &[u64]); 4] = [
        (&[Write(1, &[50, 51]), Commit(1), Revoke(2, &[50]), Commit(2)], &[51]),
        // In the same transaction, before it or behind it.
        (&[Write(1, &[50, 51]), Revoke(1, &[50]), Commit(1)], &[51]),
        // Written anew later.
        (&[Write(1, &[50]), Commit(1), Revoke(2, &[50]), Commit(2), Write(3, &[50]), Commit(3)], &[50]),
        // A revocation that was not committed is none.
        (&[Write(1, &[50]), Commit(1), Revoke(2, &[50])], &[50]),
    ];
    for (index, (steps, blocks)) in table.into_iter().enumerate() {
        let numbers: Vec<u64> = found(&log(32, 3, 1, steps)).into_iter().map(|(block, _)| block).collect();
        assert_eq!(numbers, blocks, "{index}");
    }
}

#[test]
fn lies_of_a_log_end() {
    use Step::{Commit, Write};
    let sound = || log(16, 3, 1, &[Write(1, &[50, 51]), Commit(1)]);
    let lies: [(usize, usize, u32, &str); 9] = [
        (0, 0, 0, "no superblock"),
        (0, 0xc, 4096, "another size"),
        (0, 0x10, 17, "impossible size"),
        (0, 0x10, u32::MAX, "impossible size"),
        (0, 0x14, 0, "impossible size"),
        (0, 0x14, 16, "impossible size"),
        (0, 0x1c, 16, "begins outside"),
        (0, 0x28, 0x8000_0000, "not supported"),
        (0, 0x24, 1, "not supported"),
    ];
    for (block, at, word, why) in lies {
        let mut log = sound();
        put(&mut log.0[block], at, word);
        let error = replay(&log).unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
    }
    // A list whose last entry is not marked, and one that is longer than the log.
    let mut log = sound();
    for at in (12..BLOCK).step_by(4) {
        put(&mut log.0[3], at, 2);
    }
    assert!(replay(&log).is_err());
    let mut log = sound();
    for at in (16..BLOCK - 8).step_by(8) {
        put(&mut log.0[3], at, 2);
    }
    put(&mut log.0[3], 1016, 8);
    assert!(replay(&log).is_err() || found(&log).is_empty());
}
