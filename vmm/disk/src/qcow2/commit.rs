//! Making what waits durable, in the order that the top of the room describes.

use std::io;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::Qcow2;
use super::cache::write_parts;
use super::meta::Batch;
use super::refcount::TakenCounts;
use crate::buffer::wide;
use crate::number::fits;

/// Positions in the header.
const SIZE: u64 = 24;
const REFCOUNT_TABLE: u64 = 48;

impl Qcow2 {
    /// Commits all changes that were made before the call; see the top of the room.
    pub(super) fn commit(&self) -> io::Result<()> {
        let _turn = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        self.commit_now()
    }

    /// [`Qcow2::commit`] of who has the turn.
    fn commit_now(&self) -> io::Result<()> {
        let mut batch = self.meta().take();
        let written = self.write(&batch);
        self.meta().settle(&mut batch, written.is_ok());
        written?;
        self.release(batch.freed)
    }

    /// Commits if much waits.
    pub(super) fn relieve(&self) -> io::Result<()> {
        if !self.meta().commit_due() {
            return Ok(());
        }
        let _turn = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        // Another may have done it meanwhile.
        if self.meta().commit_due() { self.commit_now() } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let synced = self.store.sync();
        if synced.is_err() {
            // The host may have forgotten what it had accepted, and would not say so again.
            self.broken.store(true, Ordering::Release);
        }
        synced
    }

    fn write(&self, batch: &Batch) -> io::Result<()> {
        if self.broken.load(Ordering::Acquire) {
            return Err(io::Error::other(
                "an earlier flush of the image failed: what the host has is unknown",
            ));
        }
        let store = &*self.store;
        {
            // Nobody is given a cluster meanwhile: the length would cut off what they write there.
            let meta = self.meta();
            if store.len()? < meta.counts.end {
                store.set_len(meta.counts.end)?;
            }
        }
        self.write_counts(&batch.counts)?;
        // Data and counts, before what refers to them.
        self.sync()?;
        if batch.no_tables() {
            return Ok(());
        }
        write_parts(store, &batch.l2)?;
        if !batch.no_roots() {
            // Second-level tables, before the first-level table refers to new ones.
            self.sync()?;
            for (index, entry) in &batch.l1 {
                let at = batch.l1_offset + 8 * wide(*index);
                store.write_bytes(&entry.to_be_bytes(), at)?;
            }
            if let Some(table) = &batch.l1_moved {
                store.write_bytes(&big_endian(table), batch.l1_offset)?;
                self.sync()?;
            }
            if let Some(size) = batch.size {
                self.write_root(size, batch)?;
            }
        }
        self.sync()
    }

    /// Size, encryption (none), length and place of the first-level table: fields that lie in one
    /// sector, so that they change together.
    fn write_root(&self, size: u64, batch: &Batch) -> io::Result<()> {
        let entries: u32 = fits(batch.l1_entries, "4 million at most");
        let mut fields = Vec::with_capacity(24);
        fields.extend_from_slice(&size.to_be_bytes());
        fields.extend_from_slice(&0_u32.to_be_bytes());
        fields.extend_from_slice(&entries.to_be_bytes());
        fields.extend_from_slice(&batch.l1_offset.to_be_bytes());
        self.store.write_bytes(&fields, SIZE)
    }

    fn write_counts(&self, counts: &TakenCounts) -> io::Result<()> {
        let store = &*self.store;
        write_parts(store, &counts.blocks)?;
        if counts.entries.is_empty() && counts.moved.is_none() {
            return Ok(());
        }
        // Blocks, before the table refers to them.
        self.sync()?;
        for (index, block) in &counts.entries {
            store.write_bytes(&block.to_be_bytes(), counts.table_offset + 8 * wide(*index))?;
        }
        if let Some((offset, table)) = &counts.moved {
            store.write_bytes(&big_endian(table), *offset)?;
            self.sync()?;
            let clusters = (wide(table.len()) * 8).div_ceil(self.geometry.cluster());
            let clusters: u32 = fits(clusters, "8 MiB at most");
            let mut fields = offset.to_be_bytes().to_vec();
            fields.extend_from_slice(&clusters.to_be_bytes());
            store.write_bytes(&fields, REFCOUNT_TABLE)?;
        }
        Ok(())
    }

    /// Gives back clusters that nothing refers to any more, neither in memory nor in the file.
    fn release(&self, freed: Vec<u64>) -> io::Result<()> {
        if freed.is_empty() {
            return Ok(());
        }
        let last = self.meta().counts.last_users(&*self.store, &freed);
        let last = match last {
            Ok(last) => last,
            Err(error) => {
                self.meta().counts.pending.extend(freed);
                return Err(error);
            }
        };
        // Nobody gets them before this, so no data of theirs is lost.
        for run in last.chunk_by(|a, b| a + 1 == *b) {
            let bits = self.geometry.cluster_bits;
            // A host that cannot do it keeps the space.
            let _ = self.store.punch_hole(run[0] << bits, wide(run.len()) << bits);
        }
        let blocks = {
            let mut meta = self.meta();
            meta.counts.lower(&*self.store, &freed)?;
            meta.counts.take_blocks()
        };
        // Until the next commit these are leaks, if they are not written: no failure.
        let written = write_parts(&*self.store, &blocks).is_ok();
        self.meta().counts.settle_blocks(&blocks, written);
        Ok(())
    }
}

fn big_endian(table: &[u64]) -> Vec<u8> {
    table.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

/// Commits what waits, twice at most: the first may free clusters of tables.
impl Drop for Qcow2 {
    fn drop(&mut self) {
        for _ in 0..2 {
            let dirty = !self.read_only && self.meta().is_dirty();
            if !dirty || self.commit().is_err() {
                return;
            }
        }
    }
}
