//! The journal (jbd2): what an unclean stop left to be done, as a map of blocks.
//!
//! As the kernel recovers it, in three passes over the log, which is a ring: how far whole
//! transactions go; which blocks they revoked and when; which blocks they wrote. Instead of writing
//! them, reads of those blocks are led to the log.

use std::collections::{BTreeMap, HashMap};

use super::super::FsError;
use super::super::crc32c::crc32c;
use crate::le::be32_at;
use crate::number::fits;

const MAGIC: u32 = 0xc03b_3998;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const REVOKE: u32 = 5;

const COMPAT_CHECKSUM: u32 = 1;
const INCOMPAT_64BIT: u32 = 2;
const INCOMPAT_CSUM_V2: u32 = 8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
/// Revocations, 64 bits, asynchronous commits, both checksums, fast commits.
const INCOMPAT_KNOWN: u32 = 1 | 2 | 4 | 8 | 0x10 | 0x20;

/// Most bytes of a log that is read.
const LOG_MAX: u64 = 4 << 30;
/// Most blocks that are revoked.
const REVOKED_MAX: usize = 1 << 20;

/// Where a block is found in place of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    /// A block of the file system.
    pub(super) block: u64,
    /// Its first four bytes are the journal's magic number, which the log has as zeroes.
    pub(super) escaped: bool,
}

/// Blocks of the file system, and where they are.
pub(super) type Replay = BTreeMap<u64, Moved>;

/// The first four bytes of an escaped block.
pub(super) const ESCAPED: [u8; 4] = MAGIC.to_be_bytes();

/// What a journal lies in.
pub(super) trait Log {
    /// Bytes of a block.
    fn block_size(&self) -> usize;
    /// Blocks of the journal's inode.
    fn blocks(&self) -> u64;
    /// The block of the file system that block `index` of the journal is.
    fn place(&self, index: u64) -> Result<u64, FsError>;
    /// Reads a block of the file system.
    fn read(&self, place: u64, into: &mut [u8]) -> Result<(), FsError>;
}

/// The journal's own superblock.
struct Header {
    /// The first block of the ring, and the one behind its last.
    ring: (u64, u64),
    start: u64,
    sequence: u32,
    tag_bytes: usize,
    wide: bool,
    v3: bool,
    /// The sum that others continue, where there are checksums.
    seed: Option<u32>,
    fast_commits: bool,
}

fn corrupt<T>(what: &str) -> Result<T, FsError> {
    FsError::corrupt(format!("its journal {what}"))
}

impl Header {
    fn read(log: &dyn Log) -> Result<Self, FsError> {
        let mut block = vec![0; log.block_size()];
        log.read(log.place(0)?, &mut block)?;
        if be32_at(&block, 0) != MAGIC || !matches!(be32_at(&block, 4), 3 | 4) {
            return corrupt("has no superblock");
        }
        let second = be32_at(&block, 4) == 4;
        let feature = |at| if second { be32_at(&block, at) } else { 0 };
        let (compat, incompat) = (feature(0x24), feature(0x28));
        if incompat & !INCOMPAT_KNOWN != 0 || compat & COMPAT_CHECKSUM != 0 {
            let what = format!(
                "was not closed, and its journal has features that are not supported ({compat:#x}, {incompat:#x})"
            );
            return Err(FsError::Unsupported(format!("{what}; {REPAIR}")));
        }
        if u64::from(be32_at(&block, 12)) != log.block_size() as u64 {
            return corrupt("has blocks of another size");
        }
        let checksums = incompat & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) != 0;
        let v3 = incompat & INCOMPAT_CSUM_V3 != 0;
        if checksums {
            let mut summed = block[..1024].to_vec();
            summed[0xfc..0x100].fill(0);
            if block[0x50] != 4 || crc32c(u32::MAX, &summed) != be32_at(&block, 0xfc) {
                return corrupt("has a superblock whose checksum does not match");
            }
        }
        let (first, len) = (u64::from(be32_at(&block, 0x14)), u64::from(be32_at(&block, 0x10)));
        let fast_commits = incompat & INCOMPAT_FAST_COMMIT != 0;
        let fast = match (fast_commits, be32_at(&block, 0x54)) {
            (true, 0) => 256,
            (true, blocks) => u64::from(blocks),
            (false, _) => 0,
        };
        let end = len.saturating_sub(fast);
        let start = u64::from(be32_at(&block, 0x1c));
        let bytes = len.saturating_mul(log.block_size() as u64);
        if len > log.blocks() || bytes > LOG_MAX || first == 0 || first >= end {
            return corrupt("has an impossible size");
        }
        if start != 0 && !(first..end).contains(&start) {
            return corrupt("begins outside of its log");
        }
        let wide = incompat & INCOMPAT_64BIT != 0;
        let short = if wide { 12 } else { 8 };
        let tag_bytes = match (v3, checksums) {
            (true, _) => 16,
            (false, true) => short + 2,
            (false, false) => short,
        };
        let seed = checksums.then(|| crc32c(u32::MAX, &block[0x30..0x40]));
        Ok(Self {
            ring: (first, end),
            start,
            sequence: be32_at(&block, 0x18),
            tag_bytes,
            wide,
            v3,
            seed,
            fast_commits,
        })
    }

    fn next(&self, index: u64, by: u64) -> u64 {
        let (first, end) = self.ring;
        first + (index - first + by) % (end - first)
    }

    /// Whether the sum at the end of a descriptor or a revocation is right.
    fn tail_matches(&self, block: &[u8]) -> bool {
        let Some(seed) = self.seed else { return true };
        let (body, tail) = block.split_at(block.len() - 4);
        crc32c(crc32c(seed, body), &[0; 4]) == be32_at(tail, 0)
    }

    fn commit_matches(&self, block: &[u8]) -> bool {
        let Some(seed) = self.seed else { return true };
        let mut summed = block.to_vec();
        summed[16..20].fill(0);
        crc32c(seed, &summed) == be32_at(block, 16)
    }

    fn tags(&self, block: &[u8]) -> Result<Vec<Tag>, FsError> {
        let end = block.len() - if self.seed.is_some() { 4 } else { 0 };
        let (mut at, mut tags) = (12, Vec::new());
        while at + self.tag_bytes <= end {
            let tag = &block[at..at + self.tag_bytes];
            let low = u64::from(be32_at(tag, 0));
            let (flags, checksum, high) = if self.v3 {
                (be32_at(tag, 4), be32_at(tag, 12), be32_at(tag, 8))
            } else {
                let word = be32_at(tag, 4);
                (word & 0xffff, word >> 16, if self.wide { be32_at(tag, 8) } else { 0 })
            };
            let high = if self.wide { u64::from(high) << 32 } else { 0 };
            tags.push(Tag { block: low | high, escaped: flags & 1 != 0, checksum });
            at += self.tag_bytes + if flags & 2 == 0 { 16 } else { 0 };
            if flags & 8 != 0 {
                return Ok(tags);
            }
        }
        corrupt("has a list of blocks without an end")
    }
}

struct Tag {
    block: u64,
    escaped: bool,
    checksum: u32,
}

const REPAIR: &str = "start it once in a machine, or repair a copy of it with e2fsck";

/// A block of the log that is none of data.
struct Step {
    index: u64,
    sequence: u32,
    kind: u32,
}

/// What applying the journal would change.
pub(super) fn replay(log: &dyn Log) -> Result<Replay, FsError> {
    let header = Header::read(log)?;
    if header.start == 0 {
        no_fast_commits(log, &header, header.sequence)?;
        return Ok(Replay::new());
    }
    let (steps, next) = whole_transactions(log, &header)?;
    no_fast_commits(log, &header, next)?;
    let revoked = revoked(log, &header, &steps)?;
    let (mut replay, mut block, mut data) =
        (Replay::new(), vec![0; log.block_size()], vec![0; log.block_size()]);
    for step in steps.iter().filter(|step| step.kind == DESCRIPTOR) {
        log.read(log.place(step.index)?, &mut block)?;
        for (offset, tag) in (1..).zip(header.tags(&block)?) {
            if revoked.get(&tag.block).is_some_and(|last| !after(step.sequence, *last)) {
                continue;
            }
            let place = log.place(header.next(step.index, offset))?;
            if let Some(seed) = header.seed {
                log.read(place, &mut data)?;
                let sum = crc32c(crc32c(seed, &step.sequence.to_be_bytes()), &data);
                if tag.checksum != if header.v3 { sum } else { sum & 0xffff } {
                    return corrupt("has a block whose checksum does not match");
                }
            }
            replay.insert(tag.block, Moved { block: place, escaped: tag.escaped });
        }
    }
    Ok(replay)
}

/// Whether transaction `a` comes after `b`: numbers go round.
fn after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}

/// The blocks of all transactions that were committed, in order, and the number of the next one.
fn whole_transactions(log: &dyn Log, header: &Header) -> Result<(Vec<Step>, u32), FsError> {
    let (mut index, mut sequence) = (header.start, header.sequence);
    let (mut steps, mut pending) = (Vec::new(), Vec::new());
    let mut left = header.ring.1 - header.ring.0;
    let mut block = vec![0; log.block_size()];
    while left > 0 {
        log.read(log.place(index)?, &mut block)?;
        if be32_at(&block, 0) != MAGIC || be32_at(&block, 8) != sequence {
            break;
        }
        let kind = be32_at(&block, 4);
        let mut blocks = 1;
        match kind {
            // What does not match was being written when it stopped.
            DESCRIPTOR if header.tail_matches(&block) => {
                blocks += fits::<_, u64>(header.tags(&block)?.len(), "fewer than bytes of a block");
            }
            REVOKE if header.tail_matches(&block) => {}
            COMMIT if header.commit_matches(&block) => {}
            _ => break,
        }
        if blocks > left {
            break;
        }
        pending.push(Step { index, sequence, kind });
        if kind == COMMIT {
            steps.append(&mut pending);
            sequence = sequence.wrapping_add(1);
        }
        index = header.next(index, blocks);
        left -= blocks;
    }
    Ok((steps, sequence))
}

/// Blocks that were revoked, and the last transaction that did.
fn revoked(log: &dyn Log, header: &Header, steps: &[Step]) -> Result<HashMap<u64, u32>, FsError> {
    let mut revoked = HashMap::new();
    let width = if header.wide { 8 } else { 4 };
    let mut block = vec![0; log.block_size()];
    for step in steps.iter().filter(|step| step.kind == REVOKE) {
        log.read(log.place(step.index)?, &mut block)?;
        let end: usize = fits(be32_at(&block, 12), "hosts of Nelly have 64 bits");
        let most = block.len() - if header.seed.is_some() { 4 } else { 0 };
        if !(16..=most).contains(&end) {
            return corrupt("has a list of revoked blocks that is too long");
        }
        for entry in block[16..end].chunks_exact(width) {
            let number = match width {
                8 => u64::from(be32_at(entry, 0)) << 32 | u64::from(be32_at(entry, 4)),
                _ => u64::from(be32_at(entry, 0)),
            };
            revoked.insert(number, step.sequence);
        }
        if revoked.len() > REVOKED_MAX {
            return corrupt("revokes more blocks than are kept in memory");
        }
    }
    Ok(revoked)
}

/// Refuses a journal with fast commits behind its last transaction, which are of another format.
fn no_fast_commits(log: &dyn Log, header: &Header, next: u32) -> Result<(), FsError> {
    // The kernel leaves a block free behind the ring.
    let first = header.ring.1 + 1;
    if !header.fast_commits || first >= log.blocks() {
        return Ok(());
    }
    let mut block = vec![0; log.block_size()];
    log.read(log.place(first)?, &mut block)?;
    // A head: type 9, length 8, features, the transaction that it follows, all little-endian.
    let head = crate::le::u16_at(&block, 0) == 9 && crate::le::u32_at(&block, 8) == next;
    if head {
        return Err(FsError::Unsupported(format!(
            "was not closed, and its journal has fast commits, which are not supported; {REPAIR}"
        )));
    }
    Ok(())
}
