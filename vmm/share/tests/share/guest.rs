//! The guest's half.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nelly_share::wire::Op;
use nelly_share::{Options, Server, Tree};

/// The root's number.
pub(crate) const ROOT: u64 = 1;

pub(crate) const O_RDONLY: u32 = 0;
pub(crate) const O_WRONLY: u32 = 1;
pub(crate) const O_RDWR: u32 = 2;

pub(crate) const EPERM: i32 = 1;
pub(crate) const ENOENT: i32 = 2;
pub(crate) const EBADF: i32 = 9;
pub(crate) const EINVAL: i32 = 22;
pub(crate) const ENFILE: i32 = 23;
pub(crate) const EROFS: i32 = 30;
pub(crate) const ENOSYS: i32 = 38;
pub(crate) const ENODATA: i32 = 61;
pub(crate) const ESTALE: i32 = 116;

/// A server and a driver of it.
pub(crate) struct Guest {
    pub(crate) server: Server,
    unique: AtomicU64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The fields of `fuse_attr` that tests look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attr {
    pub(crate) ino: u64,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// `fuse_entry_out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) node: u64,
    pub(crate) valid: u64,
    pub(crate) attr: Attr,
}

/// An entry of a listing.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) node: u64,
    pub(crate) ino: u64,
    pub(crate) next: u64,
    pub(crate) name: Vec<u8>,
}

pub(crate) type Result<T> = std::result::Result<T, i32>;

pub(crate) fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

fn attr(bytes: &[u8]) -> Attr {
    Attr {
        ino: long(bytes, 0),
        size: long(bytes, 8),
        mode: word(bytes, 60),
        nlink: word(bytes, 64),
        uid: word(bytes, 68),
        gid: word(bytes, 72),
    }
}

/// A request's body, put together.
#[derive(Clone, Default)]
pub(crate) struct Body(pub(crate) Vec<u8>);

impl Body {
    pub(crate) fn long(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn word(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn name(mut self, name: impl AsRef<[u8]>) -> Self {
        self.0.extend_from_slice(name.as_ref());
        self.0.push(0);
        self
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

pub(crate) fn body() -> Body {
    Body::default()
}

pub(crate) fn directory(path: &Path) -> OwnedFd {
    std::fs::OpenOptions::new().read(true).custom_flags(0o200_000).open(path).unwrap().into()
}

/// A request as its bytes.
pub(crate) fn request(opcode: u32, unique: u64, node: u64, ids: (u32, u32), body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&u32::try_from(40 + body.len()).unwrap().to_le_bytes());
    bytes.extend_from_slice(&opcode.to_le_bytes());
    bytes.extend_from_slice(&unique.to_le_bytes());
    bytes.extend_from_slice(&node.to_le_bytes());
    bytes.extend_from_slice(&ids.0.to_le_bytes());
    bytes.extend_from_slice(&ids.1.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(body);
    bytes
}

impl Guest {
    pub(crate) fn new(path: &Path, options: Options) -> Self {
        Self::of(Tree::Directory(directory(path)), options)
    }

    pub(crate) fn of(tree: Tree, options: Options) -> Self {
        let server = Server::new(tree, options).unwrap();
        let guest = Self { server, unique: AtomicU64::new(1), uid: 0, gid: 0 };
        guest.init();
        guest
    }

    pub(crate) fn init(&self) -> Vec<u8> {
        let init = body().word(7).word(41).word(128 << 10).word(u32::MAX).word(u32::MAX).bytes(&[0; 44]);
        self.ask(Op::Init, 0, init).unwrap()
    }

    /// Sends a request; its answer's body, or the error's number.
    pub(crate) fn ask(&self, op: Op, node: u64, body: Body) -> Result<Vec<u8>> {
        let opcode = Op::ALL.iter().find(|(known, _)| *known == op).unwrap().1;
        self.ask_raw(opcode, node, body, 4608)
    }

    pub(crate) fn ask_raw(&self, opcode: u32, node: u64, body: Body, room: usize) -> Result<Vec<u8>> {
        let unique = self.unique.fetch_add(1, Ordering::Relaxed);
        self.ask_as(unique, opcode, node, &body.0, room)
    }

    pub(crate) fn ask_as(
        &self,
        unique: u64,
        opcode: u32,
        node: u64,
        body: &[u8],
        room: usize,
    ) -> Result<Vec<u8>> {
        let request = request(opcode, unique, node, (self.uid, self.gid), body);
        let mut reply = vec![0xee; room + 16];
        let len = self.server.handle(&request, &mut reply);
        if matches!(opcode, 2 | 36 | 42) {
            assert_eq!(len, 0, "nobody waits for an answer");
            return Ok(Vec::new());
        }
        assert!(len >= 16, "{opcode} is answered");
        assert_eq!(usize::try_from(word(&reply, 0)).unwrap(), len, "what is said is what was written");
        assert_eq!(long(&reply, 8), unique);
        assert!(reply[len..].iter().all(|byte| *byte == 0xee), "nothing behind the answer");
        match word(&reply, 4).cast_signed() {
            0 => Ok(reply[16..len].to_vec()),
            error => {
                assert!((-511..0).contains(&error), "{error}");
                assert_eq!(len, 16, "an error has no body");
                Err(-error)
            }
        }
    }

    fn entry(answer: &[u8]) -> Entry {
        Entry { node: long(answer, 0), valid: long(answer, 16), attr: attr(&answer[40..]) }
    }

    pub(crate) fn lookup(&self, parent: u64, name: impl AsRef<[u8]>) -> Result<Entry> {
        self.ask(Op::Lookup, parent, body().name(name)).map(|answer| Self::entry(&answer))
    }

    /// The number of what a path leads to.
    pub(crate) fn walk(&self, path: &str) -> Result<u64> {
        path.split('/').try_fold(ROOT, |node, name| Ok(self.lookup(node, name)?.node))
    }

    pub(crate) fn forget(&self, node: u64, lookups: u64) {
        self.ask(Op::Forget, node, body().long(lookups)).unwrap();
    }

    pub(crate) fn attr(&self, node: u64) -> Result<Attr> {
        self.ask(Op::GetAttr, node, body().long(0).long(0)).map(|answer| attr(&answer[16..]))
    }

    pub(crate) fn attr_of(&self, node: u64, handle: u64) -> Result<Attr> {
        self.ask(Op::GetAttr, node, body().word(1).word(0).long(handle)).map(|answer| attr(&answer[16..]))
    }

    /// SETATTR with `valid` and its fields: size, mode, uid, gid; times are 1, 2 seconds.
    pub(crate) fn set(&self, node: u64, valid: u32, size: u64, mode: u32, ids: (u32, u32)) -> Result<Attr> {
        let body = body().word(valid).word(0).long(0).long(size).long(0).long(1).long(2).long(3);
        let body = body.word(4).word(5).word(6).word(mode).word(0).word(ids.0).word(ids.1).word(0);
        self.ask(Op::SetAttr, node, body).map(|answer| attr(&answer[16..]))
    }

    pub(crate) fn chmod(&self, node: u64, mode: u32) -> Result<Attr> {
        self.set(node, 1, 0, mode, (0, 0))
    }

    pub(crate) fn chown(&self, node: u64, uid: u32, gid: u32) -> Result<Attr> {
        self.set(node, 6, 0, 0, (uid, gid))
    }

    pub(crate) fn mkdir(&self, parent: u64, name: impl AsRef<[u8]>, mode: u32) -> Result<Entry> {
        self.ask(Op::MkDir, parent, body().word(mode).word(0).name(name)).map(|answer| Self::entry(&answer))
    }

    pub(crate) fn mknod(&self, parent: u64, name: &str, mode: u32, device: u32) -> Result<Entry> {
        let body = body().word(mode).word(device).long(0).name(name);
        self.ask(Op::MkNod, parent, body).map(|answer| Self::entry(&answer))
    }

    pub(crate) fn symlink(&self, parent: u64, name: impl AsRef<[u8]>, target: &str) -> Result<Entry> {
        self.ask(Op::SymLink, parent, body().name(name).name(target)).map(|answer| Self::entry(&answer))
    }

    pub(crate) fn readlink(&self, node: u64) -> Result<Vec<u8>> {
        self.ask(Op::ReadLink, node, body())
    }

    pub(crate) fn link(&self, node: u64, parent: u64, name: impl AsRef<[u8]>) -> Result<Entry> {
        self.ask(Op::Link, parent, body().long(node).name(name)).map(|answer| Self::entry(&answer))
    }

    pub(crate) fn unlink(&self, parent: u64, name: impl AsRef<[u8]>) -> Result<()> {
        self.ask(Op::Unlink, parent, body().name(name)).map(drop)
    }

    pub(crate) fn rmdir(&self, parent: u64, name: impl AsRef<[u8]>) -> Result<()> {
        self.ask(Op::RmDir, parent, body().name(name)).map(drop)
    }

    pub(crate) fn rename(&self, from: (u64, &str), to: (u64, &str), flags: u32) -> Result<()> {
        let body = body().long(to.0).word(flags).word(0).name(from.1).name(to.1);
        self.ask(Op::Rename2, from.0, body).map(drop)
    }

    pub(crate) fn open(&self, node: u64, flags: u32) -> Result<u64> {
        self.ask(Op::Open, node, body().word(flags).word(0)).map(|answer| long(&answer, 0))
    }

    pub(crate) fn create(
        &self,
        parent: u64,
        name: impl AsRef<[u8]>,
        flags: u32,
        mode: u32,
    ) -> Result<(Entry, u64)> {
        let body = body().word(flags).word(mode).word(0).word(0).name(name);
        self.ask(Op::Create, parent, body).map(|answer| (Self::entry(&answer), long(&answer, 128)))
    }

    pub(crate) fn tmpfile(&self, parent: u64) -> Result<(Entry, u64)> {
        let body = body().word(O_RDWR).word(0o600).word(0).word(0).name("/");
        self.ask(Op::TmpFile, parent, body).map(|answer| (Self::entry(&answer), long(&answer, 128)))
    }

    pub(crate) fn read(&self, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>> {
        let body = body().long(handle).long(offset).word(size).word(0).long(0).long(0);
        let room = usize::try_from(size).unwrap().min(2 << 20);
        self.ask_raw(15, 0, body, room)
    }

    pub(crate) fn write(&self, handle: u64, offset: u64, data: &[u8]) -> Result<u32> {
        self.write_with(handle, offset, data, 0)
    }

    pub(crate) fn write_with(&self, handle: u64, offset: u64, data: &[u8], flags: u32) -> Result<u32> {
        let size = u32::try_from(data.len()).unwrap();
        let body = body().long(handle).long(offset).word(size).word(flags).long(0).long(0).bytes(data);
        self.ask(Op::Write, 0, body).map(|answer| word(&answer, 0))
    }

    pub(crate) fn release(&self, handle: u64) -> Result<()> {
        self.ask(Op::Release, 0, body().long(handle).long(0).long(0)).map(drop)
    }

    pub(crate) fn open_dir(&self, node: u64) -> Result<u64> {
        self.ask(Op::OpenDir, node, body().long(0)).map(|answer| long(&answer, 0))
    }

    /// One READDIR or READDIRPLUS of a page.
    pub(crate) fn list_page(&self, handle: u64, offset: u64, plus: bool) -> Result<Vec<Listed>> {
        let op = if plus { Op::ReadDirPlus } else { Op::ReadDir };
        let body = body().long(handle).long(offset).word(4096).word(0).long(0).long(0);
        let answer = self.ask(op, 0, body)?;
        assert!(answer.len() <= 4096);
        let mut rest = &answer[..];
        let mut found = Vec::new();
        while !rest.is_empty() {
            let at = if plus { 128 } else { 0 };
            let len = usize::try_from(word(rest, at + 16)).unwrap();
            let record = (at + 24 + len).next_multiple_of(8);
            let name = rest[at + 24..at + 24 + len].to_vec();
            assert!(rest[at + 24 + len..record].iter().all(|byte| *byte == 0), "padding is zero");
            let node = if plus { long(rest, 0) } else { 0 };
            found.push(Listed { node, ino: long(rest, at), next: long(rest, at + 8), name });
            rest = &rest[record..];
        }
        Ok(found)
    }

    /// A whole listing: names without `.` and `..`, and each entry.
    pub(crate) fn list(&self, node: u64, plus: bool) -> BTreeMap<String, Listed> {
        let handle = self.open_dir(node).unwrap();
        let mut found = BTreeMap::new();
        let mut offset = 0;
        loop {
            let page = self.list_page(handle, offset, plus).unwrap();
            let Some(last) = page.last() else { break };
            offset = last.next;
            for entry in page {
                assert_ne!(entry.ino, 0);
                let name = String::from_utf8(entry.name.clone()).unwrap();
                assert!(found.insert(name.clone(), entry).is_none(), "{name} twice");
            }
        }
        self.ask(Op::ReleaseDir, node, body().long(handle).long(0).long(0)).unwrap();
        assert!(found.remove(".").is_some() && found.remove("..").is_some());
        found
    }

    pub(crate) fn set_xattr(&self, node: u64, name: &str, value: &[u8]) -> Result<()> {
        let size = u32::try_from(value.len()).unwrap();
        self.ask(Op::SetXattr, node, body().word(size).word(0).name(name).bytes(value)).map(drop)
    }

    pub(crate) fn get_xattr(&self, node: u64, name: &str, size: u32) -> Result<Vec<u8>> {
        self.ask(Op::GetXattr, node, body().word(size).word(0).name(name))
    }

    pub(crate) fn list_xattr(&self, node: u64, size: u32) -> Result<Vec<u8>> {
        self.ask(Op::ListXattr, node, body().word(size).word(0))
    }

    pub(crate) fn remove_xattr(&self, node: u64, name: &str) -> Result<()> {
        self.ask(Op::RemoveXattr, node, body().name(name)).map(drop)
    }
}

/// A tree with a directory `d`, files `d/f` and `g`, and a link `l` to `d/f`.
pub(crate) fn tree() -> tempfile::TempDir {
    let tree = tempfile::tempdir().unwrap();
    std::fs::create_dir(tree.path().join("d")).unwrap();
    std::fs::write(tree.path().join("d/f"), b"contents of f").unwrap();
    std::fs::write(tree.path().join("g"), b"contents of g").unwrap();
    std::os::unix::fs::symlink("d/f", tree.path().join("l")).unwrap();
    tree
}

/// A guest of [`tree`].
pub(crate) fn guest() -> (Guest, tempfile::TempDir) {
    let tree = tree();
    (Guest::new(tree.path(), Options::default()), tree)
}
