//! FAT12, FAT16 and FAT32 with long names (Microsoft's "FAT32 File System Specification", 2000),
//! only read.

mod dir;

use std::sync::{Arc, Mutex, PoisonError};

use super::{Budget, Entry, FsError, NAMES_MAX, Node, NodeKind, Volume};
use crate::le::{u16_at, u32_at};
use crate::number::{at_most, fits};
use crate::traits::ReadAt;

/// Most bytes of a directory: 65,536 entries.
const DIRECTORY_MAX: u64 = 2 << 20;
/// Bytes of the table that are read at once.
const WINDOW: u64 = 4096;

/// How wide the entries of the table are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Twelve,
    Sixteen,
    ThirtyTwo,
}

/// A FAT file system.
pub struct Fat<'a> {
    disk: &'a dyn ReadAt,
    width: Width,
    /// Bytes of a cluster.
    cluster: u64,
    /// Clusters there are; their numbers begin with 2.
    clusters: u32,
    /// Where the table, the fixed root directory and the clusters begin, in bytes.
    table: u64,
    root: u64,
    root_bytes: u64,
    data: u64,
    root_cluster: u32,
    serial: u32,
    boot_label: [u8; 11],
    cache: Mutex<Cache>,
    budget: Budget,
}

#[derive(Default)]
struct Cache {
    /// A part of the table: where it begins, and its bytes.
    window: Option<(u64, Vec<u8>)>,
    /// The chain that was followed last: its first cluster.
    chain: Option<(u64, Arc<Vec<u32>>)>,
}

/// Whether the first sector of a disk may be that of a FAT file system.
pub(super) fn looks_like(head: &[u8]) -> bool {
    let (sector, cluster) = (u16_at(head, 11), head[13]);
    let jump = head[0] == 0xe9 || head[0] == 0xeb && head[2] == 0x90;
    let sound = sector.is_power_of_two() && (512..=4096).contains(&sector) && cluster.is_power_of_two();
    let media = head[21] == 0xf0 || head[21] >= 0xf8;
    jump && sound
        && media
        && matches!(head[16], 1 | 2)
        && u16_at(head, 14) > 0
        && head[510..512] == [0x55, 0xaa]
}

impl<'a> Fat<'a> {
    /// Opens the file system that fills `disk`.
    ///
    /// # Errors
    /// [`FsError`].
    pub fn open(disk: &'a dyn ReadAt) -> Result<Self, FsError> {
        if disk.len() < 512 {
            return FsError::corrupt("it is shorter than its first sector");
        }
        let mut head = [0; 512];
        disk.read_exact_at(&mut head, 0)?;
        if !looks_like(&head) {
            return FsError::corrupt("its first sector is none of FAT");
        }
        let sector = u64::from(u16_at(&head, 11));
        let (reserved, tables) = (u64::from(u16_at(&head, 14)), u64::from(head[16]));
        let root_entries = u64::from(u16_at(&head, 17));
        let short = |at: usize, long: usize| match u16_at(&head, at) {
            0 => u64::from(u32_at(&head, long)),
            short => u64::from(short),
        };
        let (sectors, table_sectors) = (short(19, 32), short(22, 36));
        let root_sectors = (root_entries * 32).div_ceil(sector);
        let before = reserved + tables * table_sectors + root_sectors;
        if sectors * sector > disk.len() || table_sectors == 0 || before >= sectors {
            return FsError::corrupt(format!("it has {sectors} sectors of {sector} bytes, which cannot be"));
        }
        let clusters = (sectors - before) / u64::from(head[13]);
        let wide = u16_at(&head, 22) == 0;
        let width = match clusters {
            _ if wide => Width::ThirtyTwo,
            0..4085 => Width::Twelve,
            _ => Width::Sixteen,
        };
        let (bits, most) = match width {
            Width::Twelve => (12, 4084),
            Width::Sixteen => (16, 65524),
            Width::ThirtyTwo => (32, 0x0fff_fff5),
        };
        // Both have at most 32 bits.
        if clusters > most || (clusters + 2) * bits > table_sectors * sector * 8 {
            return FsError::corrupt(format!("its table has no room for {clusters} clusters"));
        }
        // FAT32 may use one of its tables only.
        let flags = if wide { u16_at(&head, 40) } else { 0 };
        let active = if flags & 0x80 != 0 { u64::from(flags & 15) } else { 0 };
        if active >= tables || (wide && root_entries != 0) || (!wide && root_entries == 0) {
            return FsError::corrupt("its first sector contradicts itself");
        }
        let (serial, label) = if wide { (67, 71) } else { (39, 43) };
        let mut boot_label = [0; 11];
        boot_label.copy_from_slice(&head[label..label + 11]);
        Ok(Self {
            disk,
            width,
            cluster: u64::from(head[13]) * sector,
            clusters: fits(clusters, "fewer than 2^28"),
            table: (reserved + active * table_sectors) * sector,
            root: (reserved + tables * table_sectors) * sector,
            root_bytes: root_entries * 32,
            data: before * sector,
            root_cluster: if wide { u32_at(&head, 44) } else { 0 },
            serial: u32_at(&head, serial),
            boot_label,
            cache: Mutex::default(),
            budget: Budget::new(),
        })
    }

    /// The volume's serial number, which is its UUID.
    #[must_use]
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// Its label as `blkid` tells it: that of the root directory. The one in the first sector is
    /// another (`LABEL_FATBOOT`), and counts for nobody.
    ///
    /// # Errors
    /// [`FsError`].
    pub fn label(&self) -> Result<String, FsError> {
        let bytes = self.directory_bytes(self.root()?)?;
        Ok(dir::label(&bytes).unwrap_or_default())
    }

    /// The label in the first sector.
    #[must_use]
    pub fn boot_label(&self) -> String {
        crate::le::plain(String::from_utf8_lossy(&self.boot_label).trim_end())
    }

    /// The cluster after `cluster`; `None` at the end of the chain.
    fn next(&self, cluster: u32) -> Result<Option<u32>, FsError> {
        let (at, len) = match self.width {
            Width::Twelve => (u64::from(cluster) * 3 / 2, 2),
            Width::Sixteen => (u64::from(cluster) * 2, 2),
            Width::ThirtyTwo => (u64::from(cluster) * 4, 4),
        };
        let mut bytes = [0; 4];
        self.table_bytes(at, &mut bytes[..len])?;
        let word = u32_at(&bytes, 0);
        let (value, end) = match self.width {
            Width::Twelve if cluster % 2 == 1 => (word >> 4 & 0xfff, 0xff8),
            Width::Twelve => (word & 0xfff, 0xff8),
            Width::Sixteen => (word & 0xffff, 0xfff8),
            Width::ThirtyTwo => (word & 0x0fff_ffff, 0x0fff_fff8),
        };
        if value >= end {
            return Ok(None);
        }
        self.valid(value).map(Some)
    }

    fn valid(&self, cluster: u32) -> Result<u32, FsError> {
        if cluster < 2 || cluster - 2 >= self.clusters {
            return FsError::corrupt(format!("a chain leads to cluster {cluster}, which is none"));
        }
        Ok(cluster)
    }

    /// Bytes of the table, some of which are kept.
    fn table_bytes(&self, at: u64, into: &mut [u8]) -> Result<(), FsError> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let first = at / WINDOW * WINDOW;
        if cache.window.as_ref().is_none_or(|(start, _)| *start != first) {
            // An entry of twelve bits may lie across the end.
            let have = at_most(self.disk.len().saturating_sub(self.table + first), WINDOW) + 1;
            let len = at_most(have.min(self.disk.len().saturating_sub(self.table + first)), 8192);
            let mut bytes = vec![0; len];
            self.disk.read_exact_at(&mut bytes, self.table + first)?;
            cache.window = Some((first, bytes));
        }
        let window = cache.window.as_ref().map(|(_, bytes)| bytes.as_slice()).unwrap_or_default();
        let start: usize = fits(at - first, "inside the window");
        match window.get(start..start + into.len()) {
            Some(bytes) => into.copy_from_slice(bytes),
            None => return FsError::corrupt("its table is cut off"),
        }
        Ok(())
    }

    /// The clusters of a chain, at most `most` of them. It ends: no chain has more than there are.
    fn chain(&self, first: u64, most: u64) -> Result<Arc<Vec<u32>>, FsError> {
        let lock = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, chain)) = &lock().chain
            && *known == first
            && chain.len() as u64 >= most
        {
            return Ok(Arc::clone(chain));
        }
        let start = u32::try_from(first).map_err(|_| FsError::Corrupt("a cluster cannot be".to_owned()))?;
        let mut chain = vec![self.valid(start)?];
        while let Some(&last) = chain.last()
            && (chain.len() as u64) < most
        {
            let Some(next) = self.next(last)? else { break };
            if chain.len() as u64 >= u64::from(self.clusters) {
                return FsError::corrupt("a chain of clusters leads in a circle");
            }
            chain.push(next);
        }
        let chain = Arc::new(chain);
        lock().chain = Some((first, Arc::clone(&chain)));
        Ok(chain)
    }

    fn place(&self, cluster: u32) -> u64 {
        self.data + u64::from(cluster - 2) * self.cluster
    }

    /// All bytes of a directory.
    fn directory_bytes(&self, directory: Node) -> Result<Vec<u8>, FsError> {
        if directory.place == 0 {
            self.budget.spend(self.root_bytes.max(4096))?;
            let mut bytes = vec![0; fits(self.root_bytes, "at most 2 MiB")];
            self.disk.read_exact_at(&mut bytes, self.root)?;
            return Ok(bytes);
        }
        let most = DIRECTORY_MAX / self.cluster + 1;
        let chain = self.chain(directory.place, most + 1)?;
        if chain.len() as u64 > most {
            return FsError::corrupt("a directory has more than 65,536 entries, or leads in a circle");
        }
        let each: usize = fits(self.cluster, "at most 512 KiB");
        self.budget.spend(self.cluster * chain.len() as u64)?;
        let mut bytes = vec![0; each * chain.len()];
        for (part, cluster) in bytes.chunks_exact_mut(each).zip(chain.iter()) {
            self.disk.read_exact_at(&mut &mut *part, self.place(*cluster))?;
        }
        Ok(bytes)
    }
}

impl Volume for Fat<'_> {
    fn root(&self) -> Result<Node, FsError> {
        Ok(Node { kind: NodeKind::Directory, size: 0, place: u64::from(self.root_cluster) })
    }

    fn entries(&self, directory: Node, each: &mut dyn FnMut(&str, Entry) -> bool) -> Result<(), FsError> {
        let bytes = self.directory_bytes(directory)?;
        let mut count = 0;
        dir::walk(&bytes, &mut |name, node| {
            count += 1;
            // The root is its own parent, and its cluster is not written.
            let root = node.kind == NodeKind::Directory && node.place == 0;
            let place = if root { u64::from(self.root_cluster) } else { node.place };
            count <= NAMES_MAX && each(name, Entry::Node(Node { place, ..node }))
        });
        Ok(())
    }

    fn node(&self, entry: Entry) -> Result<Node, FsError> {
        match entry {
            Entry::Node(node) => Ok(node),
            Entry::Inode(_) => FsError::corrupt("FAT has no inodes"),
        }
    }

    fn same_name(&self, a: &str, b: &str) -> bool {
        a.eq_ignore_ascii_case(b)
    }

    fn read(&self, file: Node, into: &mut [u8], offset: u64) -> Result<usize, FsError> {
        let want = at_most(file.size.saturating_sub(offset), into.len());
        if want == 0 {
            return Ok(0);
        }
        let chain = self.chain(file.place, file.size.div_ceil(self.cluster))?;
        let (index, within) = (offset / self.cluster, offset % self.cluster);
        let index: usize = fits(index, "fewer than 2^32");
        let Some(&first) = chain.get(index) else {
            return FsError::corrupt("a file's chain of clusters ends before its end");
        };
        // Clusters that follow one another are read at once.
        let wanted = (within + want as u64).div_ceil(self.cluster);
        let mut count = 1;
        while count < wanted
            && chain.get(index + fits::<_, usize>(count, "fewer than 2^32")).copied()
                == first.checked_add(at_most(count, u32::MAX))
        {
            count += 1;
        }
        let some = at_most(count * self.cluster - within, want);
        self.disk.read_exact_at(&mut &mut into[..some], self.place(first) + within)?;
        Ok(some)
    }

    fn link(&self, _link: Node) -> Result<String, FsError> {
        FsError::corrupt("FAT has no symbolic links")
    }

    fn notes(&self) -> &[String] {
        &[]
    }
}
