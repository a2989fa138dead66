//! A small reader of uncompressed EROFS, written from the kernel's header and not from the writer.
//! It panics on whatever it finds wrong.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

const BLOCK: u64 = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Type and permissions.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub mtime_nsec: u32,
    pub nlink: u32,
    pub size: u64,
    pub rdev: u32,
    /// Contents of a file, target of a link.
    pub data: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Inode number.
    pub nid: u64,
}

pub struct ErofsReader {
    file: File,
    size: u64,
    meta: u64,
    xattr: u64,
    root: u64,
    pub inodes: u64,
}

fn le(data: &[u8], at: usize, len: usize) -> u64 {
    data[at..at + len].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

impl ErofsReader {
    pub fn new(file: File) -> Self {
        let size = file.metadata().unwrap().len();
        assert_eq!(size % BLOCK, 0);
        let mut sb = [0; 128];
        file.read_exact_at(&mut sb, 1024).unwrap();
        assert_eq!(le(&sb, 0, 4), 0xe0f5_e1e2, "magic");
        assert_eq!(sb[12], 12, "block bits");
        assert_eq!(le(&sb, 80, 4), 0, "incompatible features");
        assert_eq!(le(&sb, 24, 8), 0, "build time");
        assert_eq!(le(&sb, 36, 4) * BLOCK, size, "blocks");
        Self {
            file,
            size,
            meta: le(&sb, 40, 4) * BLOCK,
            xattr: le(&sb, 44, 4) * BLOCK,
            root: le(&sb, 14, 2),
            inodes: le(&sb, 16, 8),
        }
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        assert!(at + len as u64 <= self.size, "outside of the image: {at} + {len}");
        let mut data = vec![0; len];
        self.file.read_exact_at(&mut data, at).unwrap();
        data
    }

    fn xattr_entry(&self, at: u64) -> (Vec<u8>, Vec<u8>, u64) {
        let head = self.read(at, 4);
        let (name_len, index) = (head[0] as usize, head[1]);
        let value_len = le(&head, 2, 2) as usize;
        let body = self.read(at + 4, name_len + value_len);
        let prefix: &[u8] = match index {
            1 => b"user.",
            2 => b"system.posix_acl_access",
            3 => b"system.posix_acl_default",
            4 => b"trusted.",
            6 => b"security.",
            other => panic!("xattr prefix {other}"),
        };
        let name = [prefix, &body[..name_len]].concat();
        (name, body[name_len..].to_vec(), (4 + name_len + value_len).next_multiple_of(4) as u64)
    }

    pub fn inode(&self, nid: u64) -> Item {
        let at = self.meta + nid * 32;
        let head = self.read(at, 32);
        let format = le(&head, 0, 2);
        let extended = format & 1 == 1;
        let inode = self.read(at, if extended { 64 } else { 32 });
        let layout = format >> 1 & 7;
        let xattr_count = le(&inode, 2, 2);
        let xattr_bytes = if xattr_count == 0 { 0 } else { 12 + (xattr_count - 1) * 4 };
        let mode = le(&inode, 4, 2) as u32;
        let location = le(&inode, 16, 4);
        let (size, nlink, uid, gid, mtime, nsec);
        if extended {
            size = le(&inode, 8, 8);
            uid = le(&inode, 24, 4);
            gid = le(&inode, 28, 4);
            mtime = (le(&inode, 32, 8)).cast_signed();
            nsec = le(&inode, 40, 4);
            nlink = le(&inode, 44, 4);
        } else {
            size = le(&inode, 8, 4);
            uid = le(&inode, 24, 2);
            gid = le(&inode, 26, 2);
            (mtime, nsec) = (0, 0);
            nlink = le(&inode, 6, 2);
        }
        let after = at + inode.len() as u64;
        let mut xattrs = BTreeMap::new();
        if xattr_count > 0 {
            let header = self.read(after, 12);
            let shared = u64::from(header[4]);
            for i in 0..shared {
                let id = le(&self.read(after + 12 + i * 4, 4), 0, 4);
                let (name, value, _) = self.xattr_entry(self.xattr + id * 4);
                assert!(xattrs.insert(name, value).is_none(), "xattr twice");
            }
            let mut entry = after + 12 + shared * 4;
            while entry < after + xattr_bytes {
                let (name, value, len) = self.xattr_entry(entry);
                assert!(xattrs.insert(name, value).is_none(), "xattr twice");
                entry += len;
            }
            assert_eq!(entry, after + xattr_bytes, "xattr area");
        }
        let has_data = matches!(mode & 0o170_000, 0o040_000 | 0o100_000 | 0o120_000);
        let data = if has_data {
            self.data(layout, location * BLOCK, size, after + xattr_bytes)
        } else {
            assert_eq!((layout, size), (0, 0));
            Vec::new()
        };
        let rdev = if has_data { 0 } else { location as u32 };
        let (uid, gid, mtime_nsec, nlink) = (uid as u32, gid as u32, nsec as u32, nlink as u32);
        Item { mode, uid, gid, mtime, mtime_nsec, nlink, size, rdev, data, xattrs, nid }
    }

    fn data(&self, layout: u64, start: u64, size: u64, inline: u64) -> Vec<u8> {
        match layout {
            0 if size == 0 => Vec::new(),
            0 => {
                assert!(start > 0);
                self.read(start, size as usize)
            }
            2 => {
                let tail = size % BLOCK;
                assert!(tail > 0, "an inline tail of a whole block");
                assert_eq!(inline / BLOCK, (inline + tail - 1) / BLOCK, "a tail that crosses blocks");
                let whole = size - tail;
                let mut data = if whole > 0 { self.read(start, whole as usize) } else { Vec::new() };
                data.extend(self.read(inline, tail as usize));
                data
            }
            other => panic!("layout {other}"),
        }
    }

    /// Names, inode numbers and types of a directory, in the order on the disk.
    pub fn entries(dir: &Item) -> Vec<(Vec<u8>, u64, u8)> {
        let mut all = Vec::new();
        for block in dir.data.chunks(BLOCK as usize) {
            let count = le(block, 8, 2) as usize / 12;
            assert!(count > 0);
            for i in 0..count {
                let start = le(block, i * 12 + 8, 2) as usize;
                let end = if i + 1 < count { le(block, i * 12 + 20, 2) as usize } else { block.len() };
                let mut name = block[start..end].to_vec();
                if i + 1 == count
                    && let Some(nul) = name.iter().position(|&b| b == 0)
                {
                    name.truncate(nul);
                }
                assert!(!name.is_empty() && !name.contains(&0));
                all.push((name, le(block, i * 12, 8), block[i * 12 + 10]));
            }
        }
        assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0), "names are not sorted");
        all
    }

    /// Everything by path, the root as the empty path.
    pub fn tree(&self) -> BTreeMap<Vec<u8>, Item> {
        let mut tree = BTreeMap::new();
        let mut seen = HashSet::new();
        let mut todo = vec![(Vec::new(), self.root, self.root)];
        while let Some((path, nid, parent)) = todo.pop() {
            let item = self.inode(nid);
            seen.insert(nid);
            if item.mode & 0o170_000 == 0o040_000 {
                let mut subdirs = 0;
                for (name, child, file_type) in Self::entries(&item) {
                    match &name[..] {
                        b"." => assert_eq!(child, nid),
                        b".." => assert_eq!(child, parent),
                        _ => {
                            let mode = self.inode(child).mode & 0o170_000;
                            let want = match mode {
                                0o100_000 => 1,
                                0o040_000 => 2,
                                0o020_000 => 3,
                                0o060_000 => 4,
                                0o010_000 => 5,
                                0o140_000 => 6,
                                0o120_000 => 7,
                                other => panic!("mode {other:o}"),
                            };
                            assert_eq!(file_type, want);
                            subdirs += u32::from(want == 2);
                            let mut below = path.clone();
                            if !below.is_empty() {
                                below.push(b'/');
                            }
                            below.extend(&name);
                            todo.push((below, child, nid));
                        }
                    }
                }
                assert_eq!(item.nlink, 2 + subdirs);
            }
            tree.insert(path, item);
        }
        assert_eq!(self.inodes, seen.len() as u64);
        tree
    }
}
