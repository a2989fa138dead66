//! Refcounts, and where the next cluster comes from.
//!
//! What memory has is newer than the file until a commit. Counts are raised at once, and lowered
//! only when no durable metadata refers to the cluster any more, so that a crash leaks clusters at
//! worst.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::cache::{Cache, Taken};
use super::entry::{FILE_MAX, Geometry, corrupt, table_offset};
use super::header::REFCOUNT_TABLE_BYTES_MAX;
use crate::buffer::wide;
use crate::number::fits;
use crate::store::Store;

/// The refcount table, its blocks, and the clusters of all metadata.
#[derive(Debug)]
pub(crate) struct Refcounts {
    geometry: Geometry,
    /// Offsets of refcount blocks; 0: none yet, so all its counts are 0.
    table: Vec<u64>,
    table_offset: u64,
    /// Entries that differ from the file.
    table_dirty: BTreeSet<usize>,
    /// The whole table has another place than in the file.
    table_moved: bool,
    blocks: Cache,
    /// Clusters of tables and blocks, and the header's: never given to data.
    metadata: BTreeSet<u64>,
    /// No cluster below has the count 0.
    scan: u64,
    /// Bytes that the file has, or will have at the next commit.
    pub(crate) end: u64,
    /// From this cluster on nothing was ever written: it reads as zeroes.
    fresh: u64,
    /// Clusters that nothing in memory refers to any more; a commit makes that durable first.
    pub(crate) pending: Vec<u64>,
}

/// Clusters one after another that were given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The number of the first.
    pub(crate) first: u64,
    pub(crate) count: u64,
    /// They read as zeroes already.
    pub(crate) fresh: bool,
}

/// What a commit writes of it.
#[derive(Debug)]
pub(crate) struct TakenCounts {
    pub(crate) blocks: Taken,
    /// Index and offset.
    pub(crate) entries: Vec<(usize, u64)>,
    /// Where the table is that they are entries of.
    pub(crate) table_offset: u64,
    /// The whole table and its offset, if it has moved.
    pub(crate) moved: Option<(u64, Vec<u64>)>,
}

impl Refcounts {
    pub(crate) fn new(
        geometry: Geometry,
        table_at: u64,
        table: Vec<u64>,
        file_bytes: u64,
    ) -> io::Result<Self> {
        let mut metadata = BTreeSet::from([0]);
        let bits = geometry.cluster_bits;
        let clusters = (wide(table.len()) * 8).div_ceil(geometry.cluster());
        metadata.extend((table_at >> bits)..(table_at >> bits) + clusters);
        for raw in &table {
            let block = table_offset(*raw, 0, geometry, "refcount table")?;
            if block >= file_bytes {
                return Err(corrupt("a refcount block lies behind the end of the file"));
            }
            if block > 0 && !metadata.insert(block >> bits) {
                return Err(corrupt("two parts of the metadata have the same cluster"));
            }
        }
        let end = file_bytes.next_multiple_of(geometry.cluster());
        Ok(Self {
            geometry,
            table,
            table_offset: table_at,
            table_dirty: BTreeSet::new(),
            table_moved: false,
            blocks: Cache::new(geometry.slice()),
            metadata,
            scan: 1,
            end,
            fresh: end >> bits,
            pending: Vec::new(),
        })
    }

    /// Says that clusters hold metadata.
    pub(crate) fn claim(&mut self, first: u64, count: u64) -> io::Result<()> {
        if self.metadata.range(first..first + count).next().is_some() {
            return Err(corrupt("two parts of the metadata have the same cluster"));
        }
        self.metadata.extend(first..first + count);
        Ok(())
    }

    /// They hold none any more.
    pub(crate) fn disclaim(&mut self, first: u64, count: u64) {
        for cluster in first..first + count {
            self.metadata.remove(&cluster);
        }
    }

    pub(crate) fn is_metadata(&self, cluster: u64) -> bool {
        self.metadata.contains(&cluster)
    }

    pub(crate) fn dirty(&self) -> usize {
        self.blocks.dirty() + self.table_dirty.len() + usize::from(self.table_moved)
    }

    /// The place of a cluster's count: the offset of its first byte in the file, if it has a block.
    fn place(&self, cluster: u64) -> Option<u64> {
        let index = usize::try_from(cluster / self.geometry.block_entries()).ok()?;
        let block = self.table.get(index).copied().filter(|block| *block > 0)?;
        let bit = (cluster % self.geometry.block_entries()) << self.geometry.refcount_order;
        Some(block + bit / 8)
    }

    /// The count of a cluster.
    pub(crate) fn get(&mut self, store: &dyn Store, cluster: u64) -> io::Result<u64> {
        let order = self.geometry.refcount_order;
        let Some(place) = self.place(cluster) else { return Ok(0) };
        let (bytes, at) = self.blocks.read(store, place)?;
        Ok(read_count(bytes, at, cluster, order))
    }

    /// Sets the count of a cluster that has a block.
    pub(crate) fn set(&mut self, store: &dyn Store, cluster: u64, count: u64) -> io::Result<()> {
        let order = self.geometry.refcount_order;
        let place = self.place(cluster);
        let place = place.ok_or_else(|| corrupt(format!("the cluster {cluster} has no refcount")))?;
        let (bytes, at) = self.blocks.write(store, place)?;
        write_count(bytes, at, cluster, order, count);
        if count == 0 {
            self.scan = self.scan.min(cluster);
        }
        Ok(())
    }

    /// Finds the first run of clusters with count 0, of `want` at most, or of exactly so many.
    fn find(&mut self, store: &dyn Store, want: u64, exact: bool) -> io::Result<(u64, u64)> {
        while self.get(store, self.scan)? > 0 {
            self.scan += 1;
        }
        let mut first = self.scan;
        loop {
            while self.get(store, first)? > 0 {
                first += 1;
            }
            let mut count = 1;
            while count < want && self.get(store, first + count)? == 0 {
                count += 1;
            }
            if (first + count) << self.geometry.cluster_bits > FILE_MAX {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            if count == want || !exact {
                return Ok((first, count));
            }
            first += count;
        }
    }

    /// Gives out clusters with the count 1: `want` at most, or exactly so many.
    pub(crate) fn allocate(&mut self, store: &dyn Store, want: u64, exact: bool) -> io::Result<Run> {
        let (first, count) =
            if exact && want > 1 { self.find_whole(store, want)? } else { self.find_some(store, want)? };
        if let Some(taken) = (first..first + count).find(|cluster| self.is_metadata(*cluster)) {
            return Err(corrupt(format!("the cluster {taken} holds metadata and has the refcount 0")));
        }
        for cluster in first..first + count {
            self.set(store, cluster, 1)?;
        }
        if self.scan == first {
            self.scan = first + count;
        }
        Ok(Run { first, count, fresh: self.reach(first, count) })
    }

    /// Finds a run of clusters with count 0 that have blocks, of `want` at most.
    fn find_some(&mut self, store: &dyn Store, want: u64) -> io::Result<(u64, u64)> {
        let entries = self.geometry.block_entries();
        loop {
            let (first, count) = self.find(store, want, false)?;
            let mut made = false;
            for block in first / entries..=(first + count - 1) / entries {
                made |= self.ensure_block(store, block)?;
            }
            // A block that was made may have taken one of them.
            if !made {
                return Ok((first, count));
            }
        }
    }

    /// Finds a run of exactly `want` clusters with count 0. Blocks that these lack are made before
    /// the run, all beside one another: in the places that [`Refcounts::ensure_block`] gives them
    /// they would cut a run that is longer than what a block counts.
    fn find_whole(&mut self, store: &dyn Store, want: u64) -> io::Result<(u64, u64)> {
        let entries = self.geometry.block_entries();
        let mut before = 0;
        loop {
            let (first, count) = self.find(store, want + before, true)?;
            let last = (first + count - 1) / entries;
            if last >= wide(self.table.len()) {
                self.grow_table(store, last)?;
                continue;
            }
            let mut missing = Vec::new();
            for index in first / entries..=last {
                let index: usize = fits(index, "an index of the table");
                if self.table[index] == 0 {
                    missing.push(index);
                }
            }
            let blocks = wide(missing.len());
            if blocks > before {
                before = blocks;
                continue;
            }
            if blocks > 0 {
                self.new_metadata(store, first, blocks)?;
                for (cluster, index) in (first..).zip(&missing) {
                    self.table[*index] = cluster << self.geometry.cluster_bits;
                    self.table_dirty.insert(*index);
                }
                if let Err(error) = (first..first + blocks).try_for_each(|at| self.set(store, at, 1)) {
                    // Some of their counts may lie in blocks that stay.
                    (first..first + blocks).try_for_each(|at| self.set(store, at, 0)).unwrap_or(());
                    self.take_back(&missing);
                    return Err(error);
                }
            }
            return Ok((first + blocks, want));
        }
    }

    /// The file reaches to the end of these clusters. Whether they were never written.
    fn reach(&mut self, first: u64, count: u64) -> bool {
        let fresh = first >= self.fresh;
        self.fresh = self.fresh.max(first + count);
        self.end = self.end.max((first + count) << self.geometry.cluster_bits);
        fresh
    }

    /// Makes the refcount block `index` if there is none. It lies in the first cluster that it
    /// counts, which is free as all the others are.
    fn ensure_block(&mut self, store: &dyn Store, index: u64) -> io::Result<bool> {
        if index >= wide(self.table.len()) {
            self.grow_table(store, index)?;
            return Ok(true);
        }
        let index: usize = fits(index, "an index of the table");
        if self.table[index] > 0 {
            return Ok(false);
        }
        let cluster = wide(index) * self.geometry.block_entries();
        self.new_metadata(store, cluster, 1)?;
        self.table[index] = cluster << self.geometry.cluster_bits;
        self.table_dirty.insert(index);
        if let Err(error) = self.set(store, cluster, 1) {
            self.take_back(&[index]);
            return Err(error);
        }
        Ok(true)
    }

    /// Forgets blocks that were just made and could not be counted. Nothing refers to them yet.
    fn take_back(&mut self, blocks: &[usize]) {
        for index in blocks {
            let block = std::mem::take(&mut self.table[*index]);
            self.table_dirty.remove(index);
            self.blocks.forget(block, block + self.geometry.cluster());
            self.disclaim(block >> self.geometry.cluster_bits, 1);
        }
    }

    /// Zeroes clusters for metadata. It is written now, so that there is room for it when a commit
    /// writes it.
    fn new_metadata(&mut self, store: &dyn Store, first: u64, count: u64) -> io::Result<()> {
        let bits = self.geometry.cluster_bits;
        // First, for a damaged image may count what it has there as free.
        self.claim(first, count)?;
        if let Err(error) = store.write_zero_bytes(first << bits, count << bits) {
            self.disclaim(first, count);
            return Err(error);
        }
        self.reach(first, count);
        Ok(())
    }

    /// Moves the refcount table to where it has room for the block `index`. The first new blocks
    /// and the table lie in the clusters that these blocks count.
    fn grow_table(&mut self, store: &dyn Store, index: u64) -> io::Result<()> {
        let geometry = self.geometry;
        let (entries, old) = (geometry.block_entries(), wide(self.table.len()));
        let first_block = old;
        let least = (index + 1).max(old + old / 2);
        // The blocks for the new clusters are among those that the table must name.
        let mut blocks = 1;
        let clusters = loop {
            let clusters = (least + blocks).div_ceil(geometry.l2_entries());
            if blocks * entries >= blocks + clusters {
                break clusters;
            }
            blocks += 1;
        };
        if clusters << geometry.cluster_bits > REFCOUNT_TABLE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let first = first_block * entries;
        if (first + blocks + clusters) << geometry.cluster_bits > FILE_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.new_metadata(store, first, blocks + clusters)?;
        let bits = geometry.cluster_bits;
        let old_first = self.table_offset >> bits;
        let old_clusters = (old * 8).div_ceil(geometry.cluster());
        self.table.resize(fits(clusters * geometry.l2_entries(), "1 million at most"), 0);
        for block in 0..blocks {
            let index: usize = fits(first_block + block, "an index of the table");
            self.table[index] = (first + block) << bits;
        }
        let old_offset = std::mem::replace(&mut self.table_offset, (first + blocks) << bits);
        let moved = std::mem::replace(&mut self.table_moved, true);
        if let Err(error) = (first..first + blocks + clusters).try_for_each(|at| self.set(store, at, 1)) {
            // All of these counts lie in the new blocks.
            self.table.truncate(fits(old, "an index of the table"));
            (self.table_offset, self.table_moved) = (old_offset, moved);
            self.blocks.forget(first << bits, (first + blocks) << bits);
            self.disclaim(first, blocks + clusters);
            return Err(error);
        }
        self.disclaim(old_first, old_clusters);
        self.pending.extend(old_first..old_first + old_clusters);
        Ok(())
    }

    /// Takes back clusters that were given out and never referred to.
    pub(crate) fn give_back(&mut self, store: &dyn Store, run: Run) -> io::Result<()> {
        for cluster in run.first..run.first + run.count {
            self.set(store, cluster, 0)?;
        }
        Ok(())
    }

    /// What a commit writes; see [`Refcounts::settle`].
    pub(crate) fn take(&mut self) -> TakenCounts {
        let moved = std::mem::take(&mut self.table_moved).then(|| (self.table_offset, self.table.clone()));
        let dirty = std::mem::take(&mut self.table_dirty);
        let entries = if moved.is_some() { BTreeSet::new() } else { dirty };
        let entries = entries.into_iter().map(|index| (index, self.table[index])).collect();
        TakenCounts { blocks: self.blocks.take(), entries, table_offset: self.table_offset, moved }
    }

    /// The blocks only; see [`Refcounts::settle_blocks`].
    pub(crate) fn take_blocks(&mut self) -> Taken {
        self.blocks.take()
    }

    /// As [`Refcounts::settle`].
    pub(crate) fn settle_blocks(&mut self, taken: &Taken, written: bool) {
        self.blocks.settle(taken, written);
    }

    /// What was taken is written, or else waits again.
    pub(crate) fn settle(&mut self, taken: &TakenCounts, written: bool) {
        self.blocks.settle(&taken.blocks, written);
        if !written {
            self.table_moved |= taken.moved.is_some();
            self.table_dirty.extend(taken.entries.iter().map(|(index, _)| *index));
        }
    }

    /// Of clusters, each as often as it was freed, those whose count becomes 0.
    pub(crate) fn last_users(&mut self, store: &dyn Store, freed: &[u64]) -> io::Result<Vec<u64>> {
        let mut last = Vec::new();
        for (cluster, times) in counted(freed) {
            let count = self.get(store, cluster)?;
            // A damaged image may have counted it as free, and metadata may be there now.
            if count > 0 && count <= times && !self.is_metadata(cluster) {
                last.push(cluster);
            }
        }
        Ok(last)
    }

    /// Lowers the counts of clusters, each as often as it was freed.
    pub(crate) fn lower(&mut self, store: &dyn Store, freed: &[u64]) -> io::Result<()> {
        for (cluster, times) in counted(freed) {
            let count = self.get(store, cluster)?;
            // A count of 0 is a damage that a check tells.
            if count > 0 && !self.is_metadata(cluster) {
                self.set(store, cluster, count.saturating_sub(times))?;
            }
        }
        Ok(())
    }
}

fn counted(freed: &[u64]) -> BTreeMap<u64, u64> {
    let mut times = BTreeMap::new();
    for cluster in freed {
        *times.entry(*cluster).or_insert(0) += 1;
    }
    times
}

/// Reads the count of `cluster`, whose first byte is at `at`. Counts of less than a byte begin at
/// the lowest bit.
pub(crate) fn read_count(bytes: &[u8], at: usize, cluster: u64, order: u32) -> u64 {
    if order < 3 {
        let bits = 1 << order;
        let shift = cluster % (8 >> order) * bits;
        return u64::from(bytes[at]) >> shift & ((1 << bits) - 1);
    }
    let size = 1 << (order - 3);
    bytes[at..at + size].iter().fold(0, |count, byte| count << 8 | u64::from(*byte))
}

/// Writes a count.
pub(crate) fn write_count(bytes: &mut [u8], at: usize, cluster: u64, order: u32, count: u64) {
    if order < 3 {
        let bits = 1 << order;
        let shift = cluster % (8 >> order) * bits;
        let mask: u64 = ((1 << bits) - 1) << shift;
        let byte = u64::from(bytes[at]) & !mask | (count << shift) & mask;
        bytes[at] = fits(byte, "a byte");
        return;
    }
    let size = 1 << (order - 3);
    bytes[at..at + size].copy_from_slice(&count.to_be_bytes()[8 - size..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_every_size_are_read_and_written() {
        for order in 0..=6 {
            let mut bytes = [0; 64];
            let max = u64::MAX >> (64 - (1 << order));
            let at = |cluster: u64| usize::try_from((cluster << order) / 8).unwrap();
            let value = |cluster: u64| cluster.wrapping_mul(0x9e37_79b9_7f4a_7c15) & max;
            for cluster in 0..8 {
                write_count(&mut bytes, at(cluster), cluster, order, max);
                write_count(&mut bytes, at(cluster), cluster, order, value(cluster));
            }
            for cluster in 0..8 {
                assert_eq!(
                    read_count(&bytes, at(cluster), cluster, order),
                    value(cluster),
                    "{order} {cluster}"
                );
            }
        }
        let mut bytes = [0; 2];
        write_count(&mut bytes, 0, 1, 0, 1);
        write_count(&mut bytes, 1, 8 + 2, 1, 3);
        assert_eq!(bytes, [0b10, 0b11_0000], "from the lowest bit");
    }
}
