//! An image as a disk: data moves outside the lock of the metadata.

use std::io;
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::compress::unpack;
use super::entry::Entry;
use super::refcount::Run;
use super::{Qcow2, UNPACKED_MAX};
use crate::buffer::{ReadBuffer, Within, WriteBuffer, wide};
use crate::number::{at_most, fits};
use crate::traits::{Disk, Extent, ExtentKind, ReadAt, SECTOR};

/// What is to be written: bytes of a buffer, or zeroes.
#[derive(Clone, Copy)]
enum Source<'a> {
    Buffer(&'a dyn WriteBuffer),
    Zeroes(u64),
}

impl Source<'_> {
    fn size(&self) -> u64 {
        match self {
            Self::Buffer(buffer) => wide(buffer.size()),
            Self::Zeroes(bytes) => *bytes,
        }
    }
}

impl Qcow2 {
    /// The clusters that hold `len` bytes, at least one, from `offset` on.
    fn clusters(&self, offset: u64, len: u64) -> RangeInclusive<u64> {
        let bits = self.geometry.cluster_bits;
        offset >> bits..=(offset + len - 1) >> bits
    }

    /// What is at `offset`, and for how many of `len` bytes from there on.
    fn entry_at(&self, offset: u64, len: u64) -> io::Result<(Entry, u64)> {
        let clusters = self.clusters(offset, len);
        let count = clusters.end() - clusters.start() + 1;
        let (entry, count) = self.meta().run(&*self.store, *clusters.start(), count)?;
        let inside = offset % self.geometry.cluster();
        Ok((entry, len.min((count << self.geometry.cluster_bits) - inside)))
    }

    /// Reads at least one byte of what `entry` is, which begins with the cluster of `offset`.
    fn read_entry(&self, entry: Entry, into: &mut dyn ReadBuffer, offset: u64) -> io::Result<usize> {
        let (room, inside) = (into.size(), offset % self.geometry.cluster());
        match entry {
            Entry::Data { host, .. } => {
                let read = self.store.read_into(into, 0..room, host + inside)?;
                if read == 0 {
                    // The file ends in its last cluster, or in one that was not written to its end.
                    if host + inside < self.file_bytes {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    into.zero(0..room);
                    return Ok(room);
                }
                Ok(read)
            }
            Entry::Zero | Entry::ZeroAt { .. } => {
                into.zero(0..room);
                Ok(room)
            }
            Entry::Unallocated => self.read_backing(into, offset),
            Entry::Compressed { host, bytes } => {
                let cluster = self.unpacked(host, bytes)?;
                let inside: usize = fits(inside, "within a cluster");
                let some = room.min(cluster.len() - inside);
                into.copy_in(0, &cluster[inside..inside + some]);
                Ok(some)
            }
        }
    }

    /// Reads from the backing file; behind its end, and without one, there are zeroes.
    fn read_backing(&self, into: &mut dyn ReadBuffer, offset: u64) -> io::Result<usize> {
        let room = into.size();
        let left = self.backing.as_ref().map_or(0, |backing| backing.len().saturating_sub(offset));
        match &self.backing {
            Some(backing) if left > 0 => {
                let want = at_most(left, room);
                match backing.read_at(&mut Within::new(into, 0..want), offset)? {
                    0 => Err(io::ErrorKind::UnexpectedEof.into()),
                    read => Ok(read),
                }
            }
            _ => {
                into.zero(0..room);
                Ok(room)
            }
        }
    }

    /// A cluster that is compressed.
    fn unpacked(&self, host: u64, bytes: u64) -> io::Result<Arc<[u8]>> {
        let cache = || self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, cluster)) = cache().iter().find(|(at, _)| *at == host) {
            return Ok(Arc::clone(cluster));
        }
        // The last sector may be one that the file does not fill.
        let mut packed = vec![0; fits(bytes, "two clusters at most")];
        self.store.read_padded(&mut packed, host)?;
        let mut cluster = vec![0; fits(self.geometry.cluster(), "2 MiB at most")];
        unpack(self.header.compression, &packed, &mut cluster)?;
        let cluster: Arc<[u8]> = cluster.into();
        let mut cache = cache();
        // Freed space is never given out for compressed data, so an offset stays what it is.
        if cache.len() == UNPACKED_MAX {
            cache.pop_front();
        }
        cache.push_back((host, Arc::clone(&cluster)));
        Ok(cluster)
    }

    fn writable(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Writes at least one byte of a source that is not empty, inside the tables.
    fn write_some(&self, from: Source<'_>, offset: u64) -> io::Result<u64> {
        self.relieve()?;
        let clusters = self.clusters(offset, from.size());
        {
            let _held = self.ranges.hold(clusters.clone(), false);
            if let Some(written) = self.write_in_place(from, offset)? {
                return Ok(written);
            }
        }
        let _held = self.ranges.hold(clusters, true);
        // Another may have been faster.
        match self.write_in_place(from, offset)? {
            Some(written) => Ok(written),
            None => self.write_elsewhere(from, offset),
        }
    }

    /// Writes where the data is, if it is alone there.
    fn write_in_place(&self, from: Source<'_>, offset: u64) -> io::Result<Option<u64>> {
        let (entry, len) = self.entry_at(offset, from.size())?;
        let Entry::Data { host, copied: true } = entry else { return Ok(None) };
        let at = host + offset % self.geometry.cluster();
        let mut whole = 0;
        {
            let mut meta = self.meta();
            for cluster in self.clusters(at, len) {
                if !meta.is_own(&*self.store, cluster)? {
                    break;
                }
                whole += 1;
            }
        }
        if whole == 0 {
            return Ok(None);
        }
        let room = (whole << self.geometry.cluster_bits) - offset % self.geometry.cluster();
        self.write_source(from, len.min(room), at).map(Some)
    }

    fn write_source(&self, from: Source<'_>, len: u64, at: u64) -> io::Result<u64> {
        match from {
            Source::Buffer(buffer) => {
                let written = self.store.write_from(buffer, 0..fits(len, "within the buffer"), at)?;
                if written == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(wide(written)) }
            }
            Source::Zeroes(_) => self.store.write_zero_bytes(at, len).map(|()| len),
        }
    }

    /// Writes to clusters that are new, or were zeroes, and then points the tables to them.
    fn write_elsewhere(&self, from: Source<'_>, offset: u64) -> io::Result<u64> {
        let store = &*self.store;
        let clusters = self.clusters(offset, from.size());
        let (entries, run) = {
            let mut meta = self.meta();
            let mut entries = Vec::new();
            for cluster in clusters.clone().take(64) {
                let entry = meta.entry(store, cluster)?;
                let alone = matches!(entry, Entry::ZeroAt { copied: true, .. });
                let stays = matches!(entry, Entry::Data { copied: true, .. });
                if (alone || stays) && !entries.is_empty() {
                    break;
                }
                entries.push(entry);
                // The next one may have another table.
                if alone || (cluster + 1) % self.geometry.l2_entries() == 0 {
                    break;
                }
            }
            meta.ensure_table(store, *clusters.start())?;
            let run = match entries[0] {
                Entry::ZeroAt { host, copied: true }
                    if meta.is_own(store, host >> self.geometry.cluster_bits)? =>
                {
                    Kept(Run { first: host >> self.geometry.cluster_bits, count: 1, fresh: false })
                }
                _ => New(meta.counts.allocate(store, wide(entries.len()), false)?),
            };
            (entries, run)
        };
        let written = self.fill(from, offset, &entries, run.run());
        let mut meta = self.meta();
        let pointed = written.and_then(|written| {
            meta.point(store, *clusters.start(), run.run())?;
            Ok(written)
        });
        if let (Err(_), New(run)) = (&pointed, run) {
            // Nothing refers to them, unless the tables could not be read in the middle.
            if written_nothing(&mut meta, store, *clusters.start(), run, self.geometry.cluster_bits) {
                meta.counts.give_back(store, run)?;
            }
        }
        pointed
    }

    /// Writes to clusters that nothing refers to: what was there before up to `offset`, the source,
    /// and what was there behind it. Returns how much of the source.
    fn fill(&self, from: Source<'_>, offset: u64, entries: &[Entry], run: Run) -> io::Result<u64> {
        let (bits, cluster) = (self.geometry.cluster_bits, self.geometry.cluster());
        let (start, inside) = (offset & !(cluster - 1), offset % cluster);
        let bytes = run.count << bits;
        let len = from.size().min(bytes - inside);
        let host = run.first << bits;
        let last: usize = fits(run.count - 1, "not more than was asked for");
        self.keep(entries[0], start, inside, host, run.fresh)?;
        let mut done = 0;
        while done < len {
            let at = host + inside + done;
            done += match from {
                Source::Buffer(buffer) => {
                    let range = fits(done, "within the buffer")..fits(len, "within the buffer");
                    self.store.write_whole(buffer, range, at)?;
                    len - done
                }
                Source::Zeroes(_) => self.write_source(from, len - done, at)?,
            };
        }
        let end = inside + len;
        let rest = bytes - end;
        self.keep(entries[last], start + end, rest, host + end, run.fresh)?;
        Ok(len)
    }

    /// Copies `len` bytes of the disk from `offset` on, within one cluster that is `entry`.
    fn keep(&self, entry: Entry, offset: u64, len: u64, host: u64, fresh: bool) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let hidden = self.backing.as_ref().is_some_and(|backing| offset < backing.len());
        let zero = entry.is_zero() || (entry == Entry::Unallocated && !hidden);
        if zero {
            return if fresh { Ok(()) } else { self.store.write_zero_bytes(host, len) };
        }
        let mut bytes = vec![0; fits(len, "a cluster at most")];
        let mut done = 0;
        while done < bytes.len() {
            let end = bytes.len();
            let mut rest = Within::new(&mut bytes, done..end);
            done += self.read_entry(entry, &mut rest, offset + wide(done))?;
        }
        self.store.write_bytes(&bytes, host)
    }

    /// Writes all of a source.
    fn write_all(&self, from: Source<'_>, offset: u64) -> io::Result<()> {
        match from {
            Source::Zeroes(len) => {
                let mut done = 0;
                while done < len {
                    // What reads as zeroes takes no space for it.
                    let extent = self.extent_within(offset + done, len - done)?;
                    done += match extent.kind {
                        ExtentKind::Zero => extent.len,
                        _ => self.write_some(Source::Zeroes(extent.len), offset + done)?,
                    };
                }
                Ok(())
            }
            Source::Buffer(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Makes a range zeroes: whole clusters in the tables, the others by writing. `keep`: what has
    /// space keeps it. `whole_only`: what is not a whole cluster stays as it is.
    fn make_zero(&self, offset: u64, len: u64, keep: bool, whole_only: bool) -> io::Result<()> {
        let cluster = self.geometry.cluster();
        let end = offset + len;
        // Nothing follows the end of the disk in its last cluster.
        let whole_end =
            if end == self.bytes() { end.next_multiple_of(cluster) } else { end & !(cluster - 1) };
        let start = offset.next_multiple_of(cluster);
        if start >= whole_end {
            return if whole_only { Ok(()) } else { self.write_all(Source::Zeroes(len), offset) };
        }
        if !whole_only {
            self.write_all(Source::Zeroes(start - offset), offset)?;
        }
        let (first, last) = (start / cluster, whole_end / cluster);
        let step = self.geometry.slice() / 8;
        let mut at = first;
        while at < last {
            let next = last.min((at / step + 1) * step);
            self.relieve()?;
            let left = self.zero_clusters(at..=next - 1, keep, whole_only)?;
            for unchanged in left {
                let at = unchanged * cluster;
                self.write_all(Source::Zeroes(cluster.min(self.bytes().saturating_sub(at))), at)?;
            }
            at = next;
        }
        if !whole_only && end > whole_end {
            self.write_all(Source::Zeroes(end - whole_end), whole_end)?;
        }
        Ok(())
    }

    /// Zeroes clusters in the tables; returns those that the version of the format cannot have
    /// zero.
    fn zero_clusters(&self, clusters: RangeInclusive<u64>, keep: bool, hint: bool) -> io::Result<Vec<u64>> {
        let mut unchanged = Vec::new();
        let _held = self.ranges.hold(clusters.clone(), true);
        let mut meta = self.meta();
        for cluster in clusters {
            let offset = cluster << self.geometry.cluster_bits;
            let hidden = self.backing.as_ref().is_some_and(|backing| offset < backing.len());
            if self.geometry.version < 3 && (hidden || keep) {
                let entry = meta.entry(&*self.store, cluster)?;
                if !hint && (hidden || entry != Entry::Unallocated) {
                    unchanged.push(cluster);
                }
                continue;
            }
            meta.zero(&*self.store, cluster, keep, hidden)?;
        }
        Ok(unchanged)
    }

    fn zero_behind(&self, old: u64, end: u64) -> io::Result<()> {
        let cluster = self.geometry.cluster();
        let whole = old.next_multiple_of(cluster).min(end);
        if whole > old {
            let clusters = self.clusters(old, 1);
            let entry = self.meta().entry(&*self.store, *clusters.start())?;
            let hidden = self.backing.as_ref().is_some_and(|backing| old < backing.len());
            if !entry.is_zero() && (entry != Entry::Unallocated || hidden) {
                self.write_all(Source::Zeroes(whole - old), old)?;
            }
        }
        let mut at = whole.div_ceil(cluster);
        let last = end.div_ceil(cluster);
        let step = self.geometry.slice() / 8;
        while at < last {
            let next = last.min((at / step + 1) * step);
            self.relieve()?;
            for cluster_left in self.zero_clusters(at..=next - 1, false, false)? {
                self.write_all(Source::Zeroes(cluster), cluster_left * cluster)?;
            }
            at = next;
        }
        Ok(())
    }
}

/// Clusters to write to: new ones, or those that were zeroes with space.
#[derive(Clone, Copy)]
enum Place {
    New(Run),
    Kept(Run),
}
use Place::{Kept, New};

impl Place {
    fn run(self) -> Run {
        match self {
            New(run) | Kept(run) => run,
        }
    }
}

/// Whether no entry refers to a run.
fn written_nothing(
    meta: &mut super::meta::Meta,
    store: &dyn crate::store::Store,
    first: u64,
    run: Run,
    bits: u32,
) -> bool {
    (0..run.count).all(|n| {
        let host = (run.first + n) << bits;
        meta.entry(store, first + n).is_ok_and(|entry| entry != Entry::Data { host, copied: true })
    })
}

impl ReadAt for Qcow2 {
    fn len(&self) -> u64 {
        self.bytes()
    }

    fn read_at(&self, into: &mut dyn ReadBuffer, offset: u64) -> io::Result<usize> {
        let want: usize = at_most(self.len().saturating_sub(offset), into.size());
        if want == 0 {
            return Ok(0);
        }
        let _held = self.ranges.hold(self.clusters(offset, wide(want)), false);
        let (entry, len) = self.entry_at(offset, wide(want))?;
        self.read_entry(entry, &mut Within::new(into, 0..fits(len, "within the buffer")), offset)
    }

    fn extent(&self, offset: u64, len: u64) -> io::Result<Extent> {
        self.extent_of(offset, len)
    }
}

/// What lies where, with the images below.
impl Qcow2 {
    fn extent_of(&self, offset: u64, len: u64) -> io::Result<Extent> {
        self.extent_within(offset, len.min(self.bytes().saturating_sub(offset)).max(1))
    }

    /// The same, also behind the end of a disk that is about to grow. `len` is not 0.
    fn extent_within(&self, offset: u64, len: u64) -> io::Result<Extent> {
        let _held = self.ranges.hold(self.clusters(offset, len), false);
        let (entry, len) = self.entry_at(offset, len)?;
        let extent = |kind, host| Ok(Extent { len, kind, depth: 0, host });
        match entry {
            Entry::Data { host, .. } => {
                extent(ExtentKind::Data, Some(host + offset % self.geometry.cluster()))
            }
            Entry::Compressed { .. } => extent(ExtentKind::Compressed, None),
            Entry::Zero | Entry::ZeroAt { .. } => extent(ExtentKind::Zero, None),
            Entry::Unallocated => {
                let left = self.backing.as_ref().map_or(0, |backing| backing.len().saturating_sub(offset));
                match &self.backing {
                    Some(backing) if left > 0 => {
                        let below = backing.extent(offset, len.min(left))?;
                        Ok(Extent { depth: below.depth + 1, ..below })
                    }
                    _ => extent(ExtentKind::Zero, None),
                }
            }
        }
    }
}

impl Disk for Qcow2 {
    fn read_only(&self) -> bool {
        self.read_only
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn write_at(&self, from: &dyn WriteBuffer, offset: u64) -> io::Result<usize> {
        self.writable(offset, wide(from.size()))?;
        if from.size() == 0 {
            return Ok(0);
        }
        Ok(fits(self.write_some(Source::Buffer(from), offset)?, "within the buffer"))
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.commit() }
    }

    fn settle(&self) -> io::Result<()> {
        self.flush()
    }

    /// Whole clusters read as zeroes afterwards, whatever the backing file has; others stay.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.writable(offset, len)?;
        if len == 0 { Ok(()) } else { self.make_zero(offset, len, false, true) }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.writable(offset, len)?;
        if len == 0 { Ok(()) } else { self.make_zero(offset, len, !unmap, false) }
    }

    fn discard_size(&self) -> u32 {
        fits(self.geometry.cluster(), "2 MiB at most")
    }

    fn grow(&self, size: u64) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let old = self.bytes();
        if size < old || !size.is_multiple_of(SECTOR) || size > crate::traits::BYTES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.meta().grow_l1(&*self.store, size)?;
        // What the backing file has behind the old end, or its last cluster, must not appear.
        let cluster = self.geometry.cluster();
        let hidden = self.backing.as_ref().map_or(0, |backing| backing.len());
        let end = size.min(old.next_multiple_of(cluster).max(hidden.next_multiple_of(cluster)));
        if end > old {
            self.zero_behind(old, end)?;
        }
        self.meta().set_size(size);
        let grown = self.commit();
        if grown.is_err() {
            // Whatever is written later, the disk is as large as it was.
            self.meta().set_size(old);
        } else {
            self.size.store(size, Ordering::Release);
        }
        grown
    }
}
