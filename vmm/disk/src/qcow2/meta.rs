//! Where the clusters of the disk lie: both levels of tables, in memory as far as they are used.

use std::collections::BTreeSet;
use std::io;

use super::cache::{Cache, Taken};
use super::entry::{COPIED, Entry, Geometry, ZERO, corrupt, table_offset};
use super::header::{Header, L1_BYTES_MAX, l1_entries};
use super::refcount::{Refcounts, Run, TakenCounts};
use crate::buffer::wide;
use crate::number::fits;
use crate::store::Store;

/// Parts of tables that may wait for a commit: 4 MiB.
const DIRTY_MAX: usize = 1024;
/// Freed clusters that may wait for a commit.
const PENDING_MAX: usize = 1 << 16;

/// All metadata that changes, under one lock.
#[derive(Debug)]
pub(crate) struct Meta {
    geometry: Geometry,
    /// Empty in an image that is only read: it is read where it is used, so that no image costs
    /// more memory than its cache, whatever it says.
    l1: Vec<u64>,
    /// Entries of the first-level table in the file, for those that are only read.
    l1_in_file: Option<u64>,
    l1_offset: u64,
    /// Entries that differ from the file.
    l1_dirty: BTreeSet<usize>,
    /// The whole table has another place or length than in the file.
    l1_moved: bool,
    size: u64,
    size_dirty: bool,
    l2: Cache,
    pub(crate) counts: Refcounts,
}

/// What a commit writes. Fields are in the order in which they are written.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) counts: TakenCounts,
    pub(crate) l2: Taken,
    /// Index and entry.
    pub(crate) l1: Vec<(usize, u64)>,
    /// The whole first-level table, if it has moved.
    pub(crate) l1_moved: Option<Vec<u64>>,
    pub(crate) l1_entries: usize,
    pub(crate) l1_offset: u64,
    /// The disk's size, if it has changed.
    pub(crate) size: Option<u64>,
    /// Clusters that are free when all of this is durable.
    pub(crate) freed: Vec<u64>,
}

impl Batch {
    /// Whether the refcounts have nothing to write.
    pub(crate) fn no_tables(&self) -> bool {
        self.l2.is_empty() && self.no_roots()
    }

    /// Whether neither the first-level table nor the size changes.
    pub(crate) fn no_roots(&self) -> bool {
        self.l1.is_empty() && self.l1_moved.is_none() && self.size.is_none()
    }
}

impl Meta {
    /// An image that is only read, of whose refcounts nothing is needed.
    pub(crate) fn for_reading(header: &Header, file_bytes: u64) -> io::Result<Self> {
        let geometry = geometry(header);
        Ok(Self {
            geometry,
            l1: Vec::new(),
            l1_in_file: Some(header.l1_entries.into()),
            l1_offset: header.l1_offset,
            l1_dirty: BTreeSet::new(),
            l1_moved: false,
            size: header.size,
            size_dirty: false,
            l2: Cache::new(geometry.slice()),
            counts: Refcounts::new(geometry, 0, Vec::new(), file_bytes)?,
        })
    }

    /// Reads the tables that a header names.
    pub(crate) fn load(store: &dyn Store, header: &Header, file_bytes: u64) -> io::Result<Self> {
        let geometry = geometry(header);
        let entries = u64::from(header.refcount_table_clusters) * geometry.l2_entries();
        let table = read_table(store, header.refcount_table_offset, entries)?;
        let mut counts = Refcounts::new(geometry, header.refcount_table_offset, table, file_bytes)?;
        let l1 = read_table(store, header.l1_offset, header.l1_entries.into())?;
        let bits = header.cluster_bits;
        counts.claim(header.l1_offset >> bits, clusters_of(l1.len(), geometry))?;
        for raw in &l1 {
            let table = table_offset(*raw, COPIED, geometry, "L1 table")?;
            if table >= counts.end {
                return Err(corrupt("an L2 table lies behind the end of the file"));
            }
            if table > 0 {
                counts.claim(table >> bits, 1)?;
            }
        }
        Ok(Self {
            geometry,
            l1,
            l1_in_file: None,
            l1_offset: header.l1_offset,
            l1_dirty: BTreeSet::new(),
            l1_moved: false,
            size: header.size,
            size_dirty: false,
            l2: Cache::new(geometry.slice()),
            counts,
        })
    }

    /// Whether so much waits that a commit is due.
    pub(crate) fn commit_due(&self) -> bool {
        self.l2.dirty() + self.counts.dirty() > DIRTY_MAX || self.counts.pending.len() > PENDING_MAX
    }

    /// Whether anything waits.
    pub(crate) fn is_dirty(&self) -> bool {
        let tables = self.l2.dirty() + self.counts.dirty() + self.l1_dirty.len() + self.counts.pending.len();
        tables > 0 || self.l1_moved || self.size_dirty
    }

    fn l1_index(&self, cluster: u64) -> usize {
        fits(cluster / self.geometry.l2_entries(), "4 million at most, for the disk's size is checked")
    }

    /// The offset of a cluster's entry, if it has a second-level table.
    fn place(&mut self, store: &dyn Store, cluster: u64) -> io::Result<Option<u64>> {
        let index = self.l1_index(cluster);
        let raw = match self.l1_in_file {
            None => self.l1.get(index).copied().unwrap_or(0),
            Some(entries) if wide(index) < entries => {
                self.l2.entry(store, self.l1_offset + 8 * wide(index))?
            }
            Some(_) => 0,
        };
        let table = table_offset(raw, COPIED, self.geometry, "L1 table")?;
        if table >= self.counts.end {
            return Err(corrupt("an L2 table lies behind the end of the file"));
        }
        Ok((table > 0).then(|| table + cluster % self.geometry.l2_entries() * 8))
    }

    /// What a cluster of the disk is.
    pub(crate) fn entry(&mut self, store: &dyn Store, cluster: u64) -> io::Result<Entry> {
        let Some(place) = self.place(store, cluster)? else { return Ok(Entry::Unallocated) };
        let raw = self.l2.entry(store, place)?;
        let entry = Entry::decode(raw, self.geometry)?;
        let behind = match entry {
            Entry::Data { host, .. } | Entry::ZeroAt { host, .. } | Entry::Compressed { host, .. } => {
                host >= self.counts.end
            }
            Entry::Unallocated | Entry::Zero => false,
        };
        if behind {
            return Err(corrupt(format!("the L2 entry {raw:#x} names what is behind the end of the file")));
        }
        Ok(entry)
    }

    /// Whether a cluster of the file that an entry names as its own may be written in place: it is
    /// counted once, so nobody else is given it meanwhile.
    ///
    /// # Errors
    /// It holds metadata.
    pub(crate) fn is_own(&mut self, store: &dyn Store, cluster: u64) -> io::Result<bool> {
        if self.counts.is_metadata(cluster) {
            return Err(corrupt("an L2 entry names a cluster of the image's own metadata"));
        }
        Ok(self.counts.get(store, cluster)? == 1)
    }

    /// What the cluster `first` is, and how many of `most` from it on, all in one part of a table,
    /// are of the same kind and, if they are data, lie one after another.
    pub(crate) fn run(&mut self, store: &dyn Store, first: u64, most: u64) -> io::Result<(Entry, u64)> {
        let table = self.geometry.l2_entries();
        if self.place(store, first)?.is_none() {
            return Ok((Entry::Unallocated, most.min(table - first % table)));
        }
        let entry = self.entry(store, first)?;
        let part = self.geometry.slice() / 8;
        let most = most.min(part - first % part);
        let mut count = 1;
        while count < most {
            let next = self.entry(store, first + count)?;
            let goes_on = match (entry, next) {
                (Entry::Data { host, copied }, Entry::Data { host: other, copied: same }) => {
                    host + (count << self.geometry.cluster_bits) == other && copied == same
                }
                (Entry::Unallocated, Entry::Unallocated) => true,
                (a, b) => a.is_zero() && b.is_zero(),
            };
            if !goes_on {
                break;
            }
            count += 1;
        }
        Ok((entry, count))
    }

    /// Makes the second-level table for `cluster` if there is none, and checks that it is no
    /// snapshot's.
    pub(crate) fn ensure_table(&mut self, store: &dyn Store, cluster: u64) -> io::Result<()> {
        let index = self.l1_index(cluster);
        let raw = self.l1.get(index).copied();
        let raw = raw.ok_or_else(|| corrupt("the L1 table is too small for the disk"))?;
        if raw != 0 {
            let shared = raw & COPIED == 0;
            return if shared { Err(corrupt("an L2 table is shared without a snapshot")) } else { Ok(()) };
        }
        let run = self.counts.allocate(store, 1, true)?;
        let at = run.first << self.geometry.cluster_bits;
        // Written now, so that there is room for it when a commit writes it.
        let zeroed = store.write_zero_bytes(at, self.geometry.cluster());
        if let Err(error) = zeroed.and_then(|()| self.counts.claim(run.first, 1)) {
            self.counts.give_back(store, run)?;
            return Err(error);
        }
        self.l1[index] = at | COPIED;
        self.l1_dirty.insert(index);
        Ok(())
    }

    /// Changes what a cluster is, which has a table. What it used before is free after the next
    /// commit, except what the new entry uses.
    pub(crate) fn set(&mut self, store: &dyn Store, cluster: u64, raw: u64) -> io::Result<()> {
        let old = self.entry(store, cluster)?;
        // An image that lies must not have its own metadata freed.
        if old.hosts(self.geometry).any(|host| self.counts.is_metadata(host)) {
            return Err(corrupt("an L2 entry names a cluster of the image's own metadata"));
        }
        let place = self.place(store, cluster)?.ok_or_else(|| corrupt("an L2 table vanished"))?;
        self.l2.set_entry(store, place, raw)?;
        let kept = Entry::decode(raw, self.geometry)?.hosts(self.geometry);
        self.counts.pending.extend(old.hosts(self.geometry).filter(|host| !kept.contains(host)));
        Ok(())
    }

    /// Points clusters to a run that was written.
    pub(crate) fn point(&mut self, store: &dyn Store, cluster: u64, run: Run) -> io::Result<()> {
        for n in 0..run.count {
            let host = (run.first + n) << self.geometry.cluster_bits;
            self.set(store, cluster + n, Entry::data(host))?;
        }
        Ok(())
    }

    /// Makes a cluster zeroes: with `keep`, data that nobody else uses keeps its space. `hidden`:
    /// the backing file has something there.
    pub(crate) fn zero(
        &mut self,
        store: &dyn Store,
        cluster: u64,
        keep: bool,
        hidden: bool,
    ) -> io::Result<()> {
        let without = if hidden { ZERO } else { 0 };
        let raw = match self.entry(store, cluster)? {
            Entry::Unallocated if !hidden => return Ok(()),
            Entry::Zero => return Ok(()),
            Entry::ZeroAt { .. } if keep => return Ok(()),
            Entry::Data { host, copied: true } if keep => host | COPIED | ZERO,
            _ => without,
        };
        self.ensure_table(store, cluster)?;
        self.set(store, cluster, raw)
    }

    /// Room for a disk of `size` bytes in the first-level table, which moves if it has none.
    pub(crate) fn grow_l1(&mut self, store: &dyn Store, size: u64) -> io::Result<()> {
        let entries = l1_entries(size, self.geometry.cluster_bits);
        if entries * 8 > L1_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let entries: usize = fits(entries, "4 million at most");
        if entries <= self.l1.len() {
            return Ok(());
        }
        let clusters = clusters_of(entries, self.geometry);
        let run = self.counts.allocate(store, clusters, true)?;
        let at = run.first << self.geometry.cluster_bits;
        let zeroed = store.write_zero_bytes(at, clusters << self.geometry.cluster_bits);
        if let Err(error) = zeroed.and_then(|()| self.counts.claim(run.first, clusters)) {
            self.counts.give_back(store, run)?;
            return Err(error);
        }
        let (old, old_clusters) =
            (self.l1_offset >> self.geometry.cluster_bits, clusters_of(self.l1.len(), self.geometry));
        self.counts.disclaim(old, old_clusters);
        self.counts.pending.extend(old..old + old_clusters);
        self.l1.resize(entries, 0);
        self.l1_offset = at;
        self.l1_moved = true;
        Ok(())
    }

    /// The disk's size from the next commit on.
    pub(crate) fn set_size(&mut self, size: u64) {
        self.size = size;
        self.size_dirty = true;
    }

    /// What a commit writes; see [`Meta::settle`].
    pub(crate) fn take(&mut self) -> Batch {
        let l1_moved = std::mem::take(&mut self.l1_moved);
        let dirty = std::mem::take(&mut self.l1_dirty);
        let l1 = if l1_moved { BTreeSet::new() } else { dirty };
        Batch {
            counts: self.counts.take(),
            l2: self.l2.take(),
            l1: l1.into_iter().map(|index| (index, self.l1[index])).collect(),
            l1_moved: l1_moved.then(|| self.l1.clone()),
            l1_entries: self.l1.len(),
            l1_offset: self.l1_offset,
            size: (std::mem::take(&mut self.size_dirty) || l1_moved).then_some(self.size),
            freed: std::mem::take(&mut self.counts.pending),
        }
    }

    /// What was taken is durable, or else waits again.
    pub(crate) fn settle(&mut self, batch: &mut Batch, written: bool) {
        self.counts.settle(&batch.counts, written);
        self.l2.settle(&batch.l2, written);
        if !written {
            self.l1_dirty.extend(batch.l1.iter().map(|(index, _)| *index));
            self.l1_moved |= batch.l1_moved.is_some();
            self.size_dirty |= batch.size.is_some();
            self.counts.pending.append(&mut batch.freed);
        }
    }
}

pub(crate) fn geometry(header: &Header) -> Geometry {
    Geometry {
        version: header.version,
        cluster_bits: header.cluster_bits,
        refcount_order: header.refcount_order,
    }
}

/// Clusters of a table of so many entries.
fn clusters_of(entries: usize, geometry: Geometry) -> u64 {
    (wide(entries) * 8).div_ceil(geometry.cluster())
}

/// Reads a table of entries of 8 bytes.
pub(crate) fn read_table(store: &dyn Store, offset: u64, entries: u64) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; fits(entries * 8, "32 MiB at most")];
    store.read_padded(&mut bytes, offset)?;
    Ok(bytes.chunks_exact(8).map(|entry| super::cache::long(entry, 0)).collect())
}
