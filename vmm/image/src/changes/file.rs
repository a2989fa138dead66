//! The file that holds changes.
//!
//! All numbers little-endian: [`MAGIC`], the number of changes and the bytes of the data file they
//! point into (64 bits each), the bytes of the changes (64 bits), their SHA-256; then the changes.
//! Each begins with a byte for its kind; a string is its length (32 bits) and its bytes. The data
//! file of contents has no number in it: whoever reads says which part of the image it is.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use sha2::{Digest as _, Sha256};

use super::{Change, NewNode};
use crate::erofs::BLOCK;
use crate::num::{fits, to_u64};
use crate::tree::{Attr, FileData, Xattrs};

/// How the file begins.
const MAGIC: [u8; 8] = *b"NELLYCH1";
const DIGEST: usize = 32;
/// Magic, three numbers, digest.
const HEADER: usize = 8 + 3 * 8 + DIGEST;
/// Longest string: the value of an extended attribute is the longest that a tree takes.
const STRING_MAX: u32 = 1 << 16;

/// The file is not what [`Writer`] wrote, or the disk failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DamagedChanges {
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Content(&'static str),
}

/// Writes changes.
pub(crate) struct Writer {
    out: BufWriter<Hashed>,
    count: u64,
}

/// Hashes and counts what is written.
struct Hashed {
    file: File,
    sha: Sha256,
    bytes: u64,
}

impl Write for Hashed {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.file.write(data)?;
        self.sha.update(&data[..written]);
        self.bytes += to_u64(written);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Writer {
    /// Into `file`, which is empty.
    pub(crate) fn new(mut file: File) -> io::Result<Self> {
        file.seek(SeekFrom::Start(to_u64(HEADER)))?;
        let hashed = Hashed { file, sha: Sha256::new(), bytes: 0 };
        Ok(Self { out: BufWriter::with_capacity(256 << 10, hashed), count: 0 })
    }

    /// Adds one.
    pub(crate) fn put(&mut self, change: &Change) -> io::Result<()> {
        self.count += 1;
        match change {
            Change::Layer => self.out.write_all(&[0]),
            Change::Opaque(path) => self.tagged(1, path),
            Change::Whiteout(path) => self.tagged(2, path),
            Change::Link { path, target } => {
                self.tagged(3, path)?;
                self.string(target)
            }
            Change::Add { path, attr, node } => {
                self.tagged(4, path)?;
                self.attr(attr)?;
                self.node(node)
            }
        }
    }

    fn tagged(&mut self, tag: u8, path: &[u8]) -> io::Result<()> {
        self.out.write_all(&[tag])?;
        self.string(path)
    }

    fn string(&mut self, bytes: &[u8]) -> io::Result<()> {
        let len: u32 = fits(bytes.len(), "archives have no strings of 4 GiB");
        self.out.write_all(&len.to_le_bytes())?;
        self.out.write_all(bytes)
    }

    fn numbers(&mut self, numbers: [u32; 2]) -> io::Result<()> {
        numbers.iter().try_for_each(|number| self.out.write_all(&number.to_le_bytes()))
    }

    fn attr(&mut self, attr: &Attr) -> io::Result<()> {
        let Attr { mode, uid, gid, mtime, mtime_nsec, xattrs } = attr;
        self.out.write_all(&mode.to_le_bytes())?;
        self.numbers([*uid, *gid])?;
        self.out.write_all(&mtime.to_le_bytes())?;
        let count = xattrs.as_deref().map_or(0, Xattrs::len);
        self.numbers([*mtime_nsec, fits(count, "a file has few attributes")])?;
        for (name, value) in xattrs.iter().flat_map(|xattrs| xattrs.iter()) {
            self.string(name)?;
            self.string(value)?;
        }
        Ok(())
    }

    fn node(&mut self, node: &NewNode) -> io::Result<()> {
        match node {
            NewNode::Dir => self.out.write_all(b"d"),
            NewNode::File(FileData { size, block, part: _ }) => {
                self.out.write_all(b"f")?;
                self.out.write_all(&size.to_le_bytes())?;
                self.out.write_all(&block.to_le_bytes())
            }
            NewNode::Symlink(target) => self.tagged(b'l', target),
            NewNode::Char { major, minor } => {
                self.out.write_all(b"c")?;
                self.numbers([*major, *minor])
            }
            NewNode::Block { major, minor } => {
                self.out.write_all(b"b")?;
                self.numbers([*major, *minor])
            }
            NewNode::Fifo => self.out.write_all(b"p"),
            NewNode::Socket => self.out.write_all(b"s"),
        }
    }

    /// Completes the file, whose contents point into a data file of `data_bytes`; returns its
    /// length in bytes. It is not synced.
    pub(crate) fn complete(self, data_bytes: u64) -> io::Result<u64> {
        let Hashed { file, sha, bytes } = self.out.into_inner().map_err(|error| error.into_error())?;
        let mut header = MAGIC.to_vec();
        for number in [self.count, data_bytes, bytes] {
            header.extend(number.to_le_bytes());
        }
        header.extend(sha.finalize());
        file.write_all_at(&header, 0)?;
        Ok(to_u64(HEADER) + bytes)
    }
}

/// Reads changes, all of which were hashed when it was made.
pub(crate) struct Reader {
    input: BufReader<io::Take<File>>,
    left: u64,
    /// Bytes of the data file.
    pub(crate) data_bytes: u64,
    part: u32,
}

impl Reader {
    /// Opens `file` and checks that it is whole. Contents are said to be in data file `part`.
    pub(crate) fn new(mut file: File, part: u32) -> Result<Self, DamagedChanges> {
        let mut header = [0; HEADER];
        file.seek(SeekFrom::Start(0))?;
        file.read_exact(&mut header).map_err(|_| DamagedChanges::Content("it has no header"))?;
        let (magic, rest) = header.split_first_chunk().unwrap_or((&[0; 8], &[]));
        let (numbers, digest) = rest.split_at(3 * 8);
        let number = |at: usize| {
            let bytes = numbers.get(at * 8..).and_then(|rest| rest.first_chunk());
            u64::from_le_bytes(*bytes.unwrap_or(&[0; 8]))
        };
        let (left, data_bytes, bytes) = (number(0), number(1), number(2));
        let whole = file.metadata()?.len().checked_sub(to_u64(HEADER)) == Some(bytes);
        if *magic != MAGIC || !whole {
            return Err(DamagedChanges::Content("its header does not fit it"));
        }
        let mut sha = Sha256::new();
        let mut piece = vec![0; 64 << 10];
        loop {
            match file.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => sha.update(&piece[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if sha.finalize().as_slice() != digest {
            return Err(DamagedChanges::Content("its digest is another one"));
        }
        file.seek(SeekFrom::Start(to_u64(HEADER)))?;
        let input = BufReader::with_capacity(256 << 10, file.take(bytes));
        Ok(Self { input, left, data_bytes, part })
    }

    /// The next one; `None` after the last.
    pub(crate) fn next(&mut self) -> Result<Option<Change>, DamagedChanges> {
        let Some(left) = self.left.checked_sub(1) else {
            return match self.input.read(&mut [0])? {
                0 => Ok(None),
                _ => Err(DamagedChanges::Content("something follows the last change")),
            };
        };
        self.left = left;
        let [tag] = self.array()?;
        if tag == 0 {
            return Ok(Some(Change::Layer));
        }
        let path = self.string()?;
        Ok(Some(match tag {
            1 => Change::Opaque(path),
            2 => Change::Whiteout(path),
            3 => Change::Link { path, target: self.string()? },
            4 => Change::Add { path, attr: self.attr()?, node: self.node()? },
            _ => return Err(DamagedChanges::Content("a change is of no known kind")),
        }))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DamagedChanges> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u32, DamagedChanges> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn string(&mut self) -> Result<Vec<u8>, DamagedChanges> {
        let len = self.number()?;
        if len > STRING_MAX {
            return Err(DamagedChanges::Content("a string is too long"));
        }
        let mut bytes = vec![0; fits(len, "it was just bounded")];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn attr(&mut self) -> Result<Attr, DamagedChanges> {
        let mode = u16::from_le_bytes(self.array()?);
        let (uid, gid) = (self.number()?, self.number()?);
        let mtime = i64::from_le_bytes(self.array()?);
        let (mtime_nsec, count) = (self.number()?, self.number()?);
        if mode > 0o7777 || mtime_nsec >= 1_000_000_000 {
            return Err(DamagedChanges::Content("an inode's numbers are out of range"));
        }
        let mut xattrs = Xattrs::new();
        for _ in 0..count {
            let (name, value) = (self.string()?, self.string()?);
            if xattrs.insert(name.into(), value.into()).is_some() {
                return Err(DamagedChanges::Content("an extended attribute is there twice"));
            }
        }
        let xattrs = (!xattrs.is_empty()).then(|| Box::new(xattrs));
        Ok(Attr { mode, uid, gid, mtime, mtime_nsec, xattrs })
    }

    fn node(&mut self) -> Result<NewNode, DamagedChanges> {
        let [kind] = self.array()?;
        Ok(match kind {
            b'd' => NewNode::Dir,
            b'f' => {
                let size = u64::from_le_bytes(self.array()?);
                let block = self.number()?;
                let end = (u64::from(block) * BLOCK).checked_add(size);
                if size > 0 && end.is_none_or(|end| end > self.data_bytes) {
                    return Err(DamagedChanges::Content("contents lie outside of the data file"));
                }
                NewNode::File(FileData { size, block, part: self.part })
            }
            b'l' => NewNode::Symlink(self.string()?),
            b'c' => NewNode::Char { major: self.number()?, minor: self.number()? },
            b'b' => NewNode::Block { major: self.number()?, minor: self.number()? },
            b'p' => NewNode::Fifo,
            b's' => NewNode::Socket,
            _ => return Err(DamagedChanges::Content("an inode is of no known kind")),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DATA_BYTES: u64 = 1 << 30;

    fn string() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![prop::collection::vec(any::<u8>(), 0..40), Just(vec![b'x'; 4095])]
    }

    fn attr() -> impl Strategy<Value = Attr> {
        let xattrs = prop::collection::btree_map(
            string().prop_map(Vec::into_boxed_slice),
            string().prop_map(Vec::into_boxed_slice),
            0..3,
        );
        (0u16..=0o7777, any::<[u32; 2]>(), any::<i64>(), 0u32..1_000_000_000, xattrs).prop_map(
            |(mode, [uid, gid], mtime, mtime_nsec, xattrs)| Attr {
                mode,
                uid,
                gid,
                mtime,
                mtime_nsec,
                xattrs: (!xattrs.is_empty()).then(|| Box::new(xattrs)),
            },
        )
    }

    fn node() -> impl Strategy<Value = NewNode> {
        prop_oneof![
            Just(NewNode::Dir),
            Just(NewNode::Fifo),
            Just(NewNode::Socket),
            string().prop_map(NewNode::Symlink),
            any::<[u32; 2]>().prop_map(|[major, minor]| NewNode::Char { major, minor }),
            any::<[u32; 2]>().prop_map(|[major, minor]| NewNode::Block { major, minor }),
            (0u64..=1 << 20, 0u32..1 << 17).prop_map(|(size, block)| NewNode::File(FileData {
                size,
                block,
                part: 5
            })),
        ]
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            Just(Change::Layer),
            string().prop_map(Change::Opaque),
            string().prop_map(Change::Whiteout),
            (string(), string()).prop_map(|(path, target)| Change::Link { path, target }),
            (string(), attr(), node()).prop_map(|(path, attr, node)| Change::Add { path, attr, node }),
        ]
    }

    fn written(changes: &[Change]) -> File {
        let file = tempfile::tempfile().unwrap();
        let mut writer = Writer::new(file.try_clone().unwrap()).unwrap();
        changes.iter().for_each(|change| writer.put(change).unwrap());
        writer.complete(DATA_BYTES).unwrap();
        file
    }

    fn read(file: &File) -> Result<Vec<Change>, DamagedChanges> {
        let mut reader = Reader::new(file.try_clone().unwrap(), 5)?;
        let mut changes = Vec::new();
        while let Some(change) = reader.next()? {
            changes.push(change);
        }
        Ok(changes)
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_back(changes in prop::collection::vec(change(), 0..12)) {
            prop_assert_eq!(read(&written(&changes)).unwrap(), changes);
        }

        /// Neither the header nor the changes can be damaged unseen, and nothing panics.
        #[test]
        fn damage_is_seen(
            changes in prop::collection::vec(change(), 1..5),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
            cut in any::<bool>(),
        ) {
            let file = written(&changes);
            let len = file.metadata().unwrap().len();
            let at = to_u64(at.index(usize::try_from(len).unwrap()));
            if cut {
                file.set_len(at).unwrap();
            } else {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ flip], at).unwrap();
            }
            // The number of the data file's bytes is compared with that file by whoever has both.
            let data_bytes = (16..24).contains(&at) && !cut;
            if let Ok(read) = read(&file) {
                prop_assert!(data_bytes);
                prop_assert_eq!(read, changes);
            }
        }
    }

    #[test]
    fn contents_outside_of_the_data_file_are_refused() {
        for (size, block, fits) in [
            (DATA_BYTES, 0, true),
            (DATA_BYTES + 1, 0, false),
            (1, 1 << 18, false),
            (0, u32::MAX, true),
            (u64::MAX, u32::MAX, false),
        ] {
            let node = NewNode::File(FileData { size, block, part: 5 });
            let change = Change::Add { path: b"f".to_vec(), attr: Attr::default(), node };
            assert_eq!(read(&written(&[change])).is_ok(), fits, "{size} {block}");
        }
    }
}
