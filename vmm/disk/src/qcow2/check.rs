//! The consistency of an image: every cluster has as many references as its refcount says.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::cache::Cache;
use super::entry::{COPIED, Entry, Geometry, table_offset};
use super::meta::{geometry, read_table};
use super::refcount::read_count;
use super::{Qcow2Error, read_header};
use crate::number::fits;
use crate::store::Store;

/// Clusters whose references are counted in one piece.
const PIECE: u64 = 1024;
/// Most pieces: 256 MiB of counters, for 4 TiB of clusters of 64 KiB.
const PIECES_MAX: usize = 1 << 16;
/// Most findings that are described.
const FINDINGS_MAX: usize = 32;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Entries and refcounts by which data is, or can be, lost.
    pub corruptions: u64,
    /// Clusters that take space and that nothing refers to.
    pub leaks: u64,
    /// Clusters of the disk that have space in the file.
    pub allocated_clusters: u64,
    /// Those of them that are compressed.
    pub compressed_clusters: u64,
    /// Bytes of the file up to the end of the last cluster in use.
    pub end_bytes: u64,
    /// Sentences about the first corruptions.
    pub findings: Vec<String>,
}

struct Check<'a> {
    store: &'a dyn Store,
    geometry: Geometry,
    file_clusters: u64,
    blocks: Vec<u64>,
    counts: Cache,
    references: BTreeMap<u64, Box<[u32]>>,
    report: CheckReport,
}

/// Checks an image, and tells `progress` how many of how many tables are done. The image is only
/// read.
///
/// # Errors
/// [`Qcow2Error`]; also for an image with internal snapshots or persistent bitmaps, whose
/// references are not known. What is damaged behind the header is in the report.
pub fn check(store: &dyn Store, progress: &mut dyn FnMut(u64, u64)) -> Result<CheckReport, Qcow2Error> {
    let header = read_header(store)?;
    if header.snapshots > 0 {
        return Err(Qcow2Error::Unchecked("internal snapshots"));
    }
    if header.bitmaps {
        return Err(Qcow2Error::Unchecked("persistent bitmaps"));
    }
    let mut run = || -> io::Result<CheckReport> {
        let geometry = geometry(&header);
        let bits = geometry.cluster_bits;
        let mut check = Check {
            store,
            geometry,
            file_clusters: store.len()?.div_ceil(geometry.cluster()),
            blocks: Vec::new(),
            counts: Cache::new(geometry.slice()),
            references: BTreeMap::new(),
            report: CheckReport::default(),
        };
        check.refer(0, 1)?;
        let table_clusters = u64::from(header.refcount_table_clusters);
        check.refer(header.refcount_table_offset >> bits, table_clusters)?;
        check.blocks(header.refcount_table_offset, table_clusters * geometry.l2_entries())?;
        let l1_clusters = (u64::from(header.l1_entries) * 8).div_ceil(geometry.cluster());
        check.refer(header.l1_offset >> bits, l1_clusters)?;
        let l1 = read_table(store, header.l1_offset, header.l1_entries.into())?;
        check.tables(&l1, progress)?;
        check.compare()?;
        Ok(check.report)
    };
    run().map_err(Qcow2Error::Io)
}

impl Check<'_> {
    fn corruption(&mut self, finding: impl FnOnce() -> String) {
        self.report.corruptions += 1;
        if self.report.findings.len() < FINDINGS_MAX {
            self.report.findings.push(finding());
        }
    }

    /// Counts a reference to each of some clusters.
    fn refer(&mut self, first: u64, count: u64) -> io::Result<()> {
        for cluster in first..first + count {
            if cluster >= self.file_clusters {
                self.corruption(|| {
                    format!("the cluster {cluster} is in use and lies behind the end of the file")
                });
                continue;
            }
            if !self.references.contains_key(&(cluster / PIECE)) && self.references.len() == PIECES_MAX {
                return Err(io::Error::other("the image has too many clusters to be checked"));
            }
            let piece = self.references.entry(cluster / PIECE);
            let piece = piece.or_insert_with(|| vec![0; fits(PIECE, "a piece")].into_boxed_slice());
            let counter = &mut piece[fits::<u64, usize>(cluster % PIECE, "within a piece")];
            *counter = counter.saturating_add(1);
            let end = (cluster + 1) << self.geometry.cluster_bits;
            self.report.end_bytes = self.report.end_bytes.max(end);
        }
        Ok(())
    }

    /// Reads the refcount table, without the entries that cannot be.
    fn blocks(&mut self, offset: u64, entries: u64) -> io::Result<()> {
        let mut seen = BTreeSet::new();
        for raw in read_table(self.store, offset, entries)? {
            let block = match table_offset(raw, 0, self.geometry, "refcount table") {
                Ok(block) => block,
                Err(error) => {
                    self.corruption(|| error.to_string());
                    0
                }
            };
            let cluster = block >> self.geometry.cluster_bits;
            let mut counted = block;
            if block > 0 {
                self.refer(cluster, 1)?;
                if cluster >= self.file_clusters {
                    counted = 0;
                } else if !seen.insert(cluster) {
                    self.corruption(|| format!("the refcount block in the cluster {cluster} is named twice"));
                    counted = 0;
                }
            }
            self.blocks.push(counted);
        }
        Ok(())
    }

    fn count(&mut self, cluster: u64) -> io::Result<u64> {
        let entries = self.geometry.block_entries();
        let index = usize::try_from(cluster / entries).ok();
        let block = index.and_then(|index| self.blocks.get(index)).copied().unwrap_or(0);
        if block == 0 {
            return Ok(0);
        }
        let order = self.geometry.refcount_order;
        let (bytes, at) = self.counts.read(self.store, block + (((cluster % entries) << order) / 8))?;
        Ok(read_count(bytes, at, cluster, order))
    }

    fn tables(&mut self, l1: &[u64], progress: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        let total = crate::buffer::wide(l1.len());
        let mut seen = BTreeSet::new();
        for (index, raw) in l1.iter().enumerate() {
            progress(crate::buffer::wide(index), total);
            let table = match table_offset(*raw, COPIED, self.geometry, "L1 table") {
                Ok(0) => continue,
                Ok(table) => table,
                Err(error) => {
                    self.corruption(|| error.to_string());
                    continue;
                }
            };
            let cluster = table >> self.geometry.cluster_bits;
            self.refer(cluster, 1)?;
            if cluster >= self.file_clusters {
                continue;
            }
            if !seen.insert(cluster) {
                self.corruption(|| format!("the L2 table in the cluster {cluster} is named twice"));
                continue;
            }
            self.copied(*raw & COPIED != 0, cluster, "L2 table")?;
            let entries = read_table(self.store, table, self.geometry.l2_entries())?;
            entries.into_iter().try_for_each(|raw| self.entry(raw))?;
        }
        Ok(())
    }

    fn entry(&mut self, raw: u64) -> io::Result<()> {
        let entry = match Entry::decode(raw, self.geometry) {
            Ok(entry) => entry,
            Err(error) => {
                self.corruption(|| error.to_string());
                return Ok(());
            }
        };
        match entry {
            Entry::Unallocated | Entry::Zero => return Ok(()),
            Entry::Compressed { .. } => {
                self.report.compressed_clusters += 1;
                self.report.allocated_clusters += 1;
            }
            Entry::Data { host, copied } => {
                self.report.allocated_clusters += 1;
                self.copied(copied, host >> self.geometry.cluster_bits, "cluster")?;
            }
            Entry::ZeroAt { host, copied } => {
                self.copied(copied, host >> self.geometry.cluster_bits, "cluster")?;
            }
        }
        let hosts = entry.hosts(self.geometry);
        self.refer(hosts.start, hosts.end - hosts.start)
    }

    /// An entry says of itself that it is the only one exactly if that is so.
    fn copied(&mut self, copied: bool, cluster: u64, what: &str) -> io::Result<()> {
        let count = self.count(cluster)?;
        if (count == 1) != copied {
            self.corruption(|| {
                let says = if copied { "one reference" } else { "several references" };
                format!("the entry of the {what} {cluster} says {says}, and its refcount is {count}")
            });
        }
        Ok(())
    }

    /// Compares what was counted with the refcounts.
    fn compare(&mut self) -> io::Result<()> {
        let entries = self.geometry.block_entries();
        // Clusters with a reference, and those that a block counts.
        let pieces: Vec<u64> = self.references.keys().copied().collect();
        for piece in pieces {
            for cluster in piece * PIECE..(piece + 1) * PIECE {
                let wanted = self.wanted(cluster);
                let count = self.count(cluster)?;
                if count < wanted {
                    self.corruption(|| {
                        format!("the cluster {cluster} has {wanted} references, and its refcount is {count}")
                    });
                } else if count > wanted && wanted > 0 {
                    self.report.leaks += 1;
                }
            }
        }
        for index in 0..self.blocks.len() {
            if self.blocks[index] == 0 {
                continue;
            }
            let first = crate::buffer::wide(index) * entries;
            // What is behind the end takes no space.
            for cluster in first..(first + entries).min(self.file_clusters) {
                if self.count(cluster)? > 0 && self.wanted(cluster) == 0 {
                    self.report.leaks += 1;
                }
            }
        }
        Ok(())
    }

    fn wanted(&self, cluster: u64) -> u64 {
        let piece = self.references.get(&(cluster / PIECE));
        piece.map_or(0, |piece| piece[fits::<u64, usize>(cluster % PIECE, "within a piece")].into())
    }
}
