//! The server: takes requests apart, has each answered, and writes the answers.

mod create;
mod data;
mod directory;
mod locks;
mod meta;
mod own;
mod place;
mod remove;
mod single;
mod xattr;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use nelly_disk::number::{at_most, fits};
use nelly_disk::{ReadBuffer, WriteBuffer};

use crate::cache::Cache;
use crate::config::{Options, Tree};
use crate::errno::Errno;
use crate::nodes::{Gone, Nodes, ROOT};
use crate::sys::{self, OpenHow};
use crate::wire::{self, BODY_MAX, Flags, Header, IN_HEADER, OUT_HEADER, Op, Operation, out_header};
use locks::LockTable;
use own::Own;
pub use own::TOUCH;
pub use single::FILE_NAME;

type Result<T> = std::result::Result<T, Errno>;

/// What is answered.
enum Answer {
    /// Nothing: the driver waits for none.
    None,
    /// That it is done.
    Done,
    /// These bytes.
    Bytes(Vec<u8>),
    /// So many bytes, which are in the buffer already.
    Written(usize),
}

impl<const N: usize> From<[u8; N]> for Answer {
    fn from(bytes: [u8; N]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

/// An open file or directory.
#[derive(Debug)]
struct Handle {
    node: u64,
    how: OpenHow,
    is_dir: bool,
}

/// What a server holds at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Inodes that the driver knows, and those above them.
    pub inodes: usize,
    /// Of these, such as have no name any more and so occupy a descriptor.
    pub unnamed: usize,
    /// Open files and directories.
    pub handles: usize,
}

/// A shared tree. Several threads may have it answer requests at once.
#[derive(Debug)]
pub struct Server {
    options: Options,
    /// The one file that is shared, if it is one.
    file: Option<Arc<OwnedFd>>,
    nodes: Nodes,
    cache: Cache,
    handles: Mutex<HashMap<u64, Arc<Handle>>>,
    last_handle: AtomicU64,
    /// File systems below the root other than its own, in the order in which they were met.
    devices: Mutex<Vec<u64>>,
    /// Whoever goes from an inode to its name and from there to the file reads; whoever changes
    /// names writes.
    names: RwLock<()>,
    locks: LockTable,
    own: Own,
}

impl Server {
    /// Serves `tree`.
    ///
    /// # Errors
    /// The descriptor is not what `tree` says, or the system cannot share trees.
    pub fn new(tree: Tree, options: Options) -> io::Result<Self> {
        sys::supported()?;
        let failed = |error: Errno| io::Error::from_raw_os_error(error.number());
        let descriptors = options
            .descriptors
            .unwrap_or_else(|| at_most::<u64, usize>(sys::descriptors_max() / 4, 4096).max(64));
        let descriptors = descriptors.max(16);
        let (fd, kind, what) = match tree {
            Tree::Directory(fd) => (fd, sys::S_IFDIR, "a directory"),
            Tree::File(fd) => (fd, sys::S_IFREG, "a regular file"),
        };
        let stat = sys::stat(fd.as_fd()).map_err(failed)?;
        if stat.kind() != kind {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("what is to be shared is not {what}"),
            ));
        }
        let fd = Arc::new(fd);
        let is_file = kind == sys::S_IFREG;
        let root = (!is_file).then(|| (stat.identity, Arc::clone(&fd)));
        Ok(Self {
            // Half of them for directories and open files, a quarter each for files that have lost
            // their names and for locks.
            nodes: Nodes::new(root, options.inodes.max(16), descriptors / 4),
            cache: Cache::new(descriptors / 2),
            locks: LockTable::new(descriptors / 4, options.locks),
            file: is_file.then_some(fd),
            handles: Mutex::default(),
            last_handle: AtomicU64::new(0),
            devices: Mutex::new(vec![stat.identity.device]),
            names: RwLock::new(()),
            own: Own::default(),
            options,
        })
    }

    /// Answers one request. `request` is what the driver made readable, `fuse_in_header` first;
    /// `reply` what it made writable. Returns the bytes written to the start of `reply`: 0 when
    /// there is no answer (FORGET, BATCH_FORGET, INTERRUPT), or no room for one or no request.
    ///
    /// It may block for as long as the host's file system does, and for a lock if
    /// [`crate::Locks::Host`] allows it.
    pub fn handle(&self, request: &dyn WriteBuffer, reply: &mut dyn ReadBuffer) -> usize {
        if request.size() < IN_HEADER {
            return 0;
        }
        // Read once: the guest may change its memory at any time.
        let mut bytes = [0; IN_HEADER];
        request.copy_out(0, &mut bytes);
        let header = Header::decode(&bytes);
        let (error, body) = match self.answer(&header, request, reply) {
            Ok(Answer::None) => return 0,
            _ if reply.size() < OUT_HEADER => return 0,
            Ok(Answer::Done) => (None, 0),
            Ok(Answer::Written(len)) => (None, len),
            Ok(Answer::Bytes(bytes)) if bytes.len() <= reply.size() - OUT_HEADER => {
                reply.copy_in(OUT_HEADER, &bytes);
                (None, bytes.len())
            }
            Ok(Answer::Bytes(_)) => (Some(Errno::RANGE), 0),
            // That this process has no more descriptors is the share's limit to the guest.
            Err(Errno::MFILE) => (Some(Errno::NFILE), 0),
            Err(error) => (Some(error), 0),
        };
        reply.copy_in(0, &out_header(header.unique, error, body));
        OUT_HEADER + body
    }

    /// The driver reset the device: all inodes and handles are forgotten, all locks released, and
    /// calls that wait for one end.
    pub fn reset(&self) {
        self.locks.reset();
        self.handles().clear();
        self.cache.clear();
        self.nodes.reset();
        self.own.reset();
    }

    /// What is held at present.
    pub fn usage(&self) -> Usage {
        let (inodes, unnamed) = self.nodes.count();
        Usage { inodes, unnamed, handles: self.handles().len() }
    }

    fn handles(&self) -> MutexGuard<'_, HashMap<u64, Arc<Handle>>> {
        // A map that only whole entries are put into.
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(
        &self,
        header: &Header,
        request: &dyn WriteBuffer,
        reply: &mut dyn ReadBuffer,
    ) -> Result<Answer> {
        let len: usize = fits(header.len, "sizes of hosts have 64 bits");
        let op = Op::of(header.opcode);
        if len < IN_HEADER || len > request.size() {
            return unless_silent(op, Errno::INVAL);
        }
        let Some(op) = op else {
            // Of what is unknown, a read-only tree knows that nothing may come of it either.
            return Err(Errno::NOSYS);
        };
        // One attribute may be set in any tree.
        if op.changes() && self.options.read_only && op != Op::SetXattr {
            return Err(Errno::ROFS);
        }
        let room = reply.size().saturating_sub(OUT_HEADER);
        let silent = matches!(op, Op::Forget | Op::BatchForget | Op::Interrupt);
        if !silent && (reply.size() < OUT_HEADER || room < op.answer_len()) {
            return Err(Errno::INVAL);
        }
        let take = match op {
            Op::Write => wire::Write::LEN.min(len - IN_HEADER),
            Op::BatchForget if len - IN_HEADER <= BODY_MAX => 8.min(len - IN_HEADER),
            _ if len - IN_HEADER > BODY_MAX => return unless_silent(Some(op), Errno::INVAL),
            _ => len - IN_HEADER,
        };
        let mut body = vec![0; take];
        request.copy_out(IN_HEADER, &mut body);
        let operation = match Operation::decode(op, &body) {
            Ok(operation) => operation,
            Err(error) => return unless_silent(Some(op), error),
        };
        let answer = self.dispatch(header, operation, &Request { buffer: request, len }, reply)?;
        // An attribute may be the one that changes nothing, and what is copied from is not changed.
        if op.changes() && !matches!(op, Op::SetXattr | Op::CopyFileRange) {
            self.own.note(header.node);
        }
        Ok(answer)
    }

    fn dispatch(
        &self,
        header: &Header,
        operation: Operation<'_>,
        request: &Request<'_>,
        reply: &mut dyn ReadBuffer,
    ) -> Result<Answer> {
        use Operation as O;
        if self.file.is_some()
            && let Some(answer) = self.single_root(header, &operation, reply)
        {
            return answer;
        }
        let node = header.node;
        match operation {
            O::Init { major, minor, readahead, flags } => {
                self.reset();
                let init = wire::negotiate(major, minor, readahead, flags, Flags::wanted(&self.options))?;
                Ok(init.out.into())
            }
            O::Destroy => {
                self.reset();
                Ok(Answer::Done)
            }
            O::Forget { lookups } => {
                self.gone(self.nodes.forget(node, lookups));
                Ok(Answer::None)
            }
            O::BatchForget { count } => {
                self.forget_all(count, request);
                Ok(Answer::None)
            }
            O::Interrupt { unique } => {
                self.locks.interrupt(unique);
                Ok(Answer::None)
            }
            O::Lookup { name } => self.lookup(node, name.as_c_str()),
            O::GetAttr { handle } => self.get_attr(node, handle),
            O::SetAttr(set) => self.set_attr(node, &set),
            O::ReadLink => self.read_link(node),
            O::Access { mask } => self.access(header, mask),
            O::StatFs => self.stat_fs(node),
            O::SyncFs => self.sync_fs(),
            O::SymLink { name, target } => self.symlink(header, name.as_c_str(), target.as_c_str()),
            O::MkNod { name, mode, device } => self.mknod(header, name.as_c_str(), mode, device),
            O::MkDir { name, mode } => self.mkdir(header, name.as_c_str(), mode),
            O::Create { name, flags, mode, kill_set_id } => {
                self.create(header, name.as_c_str(), OpenHow(flags), mode, kill_set_id)
            }
            O::TmpFile { flags, mode } => self.tmpfile(header, OpenHow(flags), mode),
            O::Link { old_node, name } => self.link(old_node, node, name.as_c_str()),
            O::Unlink { name } => self.unlink(node, name.as_c_str(), false),
            O::RmDir { name } => self.unlink(node, name.as_c_str(), true),
            O::Rename { name, new_parent, new_name, flags } => {
                self.rename(node, name.as_c_str(), new_parent, new_name.as_c_str(), flags)
            }
            O::Open { flags, kill_set_id } => self.open(node, OpenHow(flags), kill_set_id),
            O::OpenDir { .. } => self.open_dir(node),
            O::Read { handle, offset, size } => self.read(handle, offset, size, reply),
            O::Write(write) => self.write(&write, request),
            O::ReadDir { handle, offset, size, plus } => self.read_dir(handle, offset, size, plus, reply),
            O::Release { handle, owner, unlock } => self.release(handle, owner, unlock),
            O::ReleaseDir { handle } => self.release(handle, 0, false),
            O::Flush { handle, owner } => self.flush(handle, owner),
            O::FSync { handle, data_only } | O::FSyncDir { handle, data_only } => {
                self.fsync(handle, data_only)
            }
            O::SetXattr { name, value, flags } => self.set_xattr(node, name, value, flags),
            O::GetXattr { name, size } => self.get_xattr(node, name, size),
            O::ListXattr { size } => self.list_xattr(node, size),
            O::RemoveXattr { name } => self.remove_xattr(node, name),
            O::GetLk(lock) => self.get_lock(&lock),
            O::SetLk { lock, wait } => self.set_lock(&lock, wait.then_some(header.unique)),
            O::FAllocate { handle, offset, len, mode } => self.allocate(handle, offset, len, mode),
            O::LSeek { handle, offset, whence } => self.seek(handle, offset, whence),
            O::CopyFileRange { from, from_offset, to_node: _, to, to_offset, len } => {
                self.copy_range((from, from_offset), (to, to_offset), len)
            }
        }
    }

    /// BATCH_FORGET: pairs of node and lookups, as many as are really there.
    fn forget_all(&self, count: u32, request: &Request<'_>) {
        const PAIR: usize = 16;
        let first = IN_HEADER + 8;
        let there = request.len.saturating_sub(first) / PAIR;
        for index in 0..at_most(count, there) {
            let mut pair = [0; PAIR];
            request.buffer.copy_out(first + index * PAIR, &mut pair);
            let long = |at: usize| u64::from_le_bytes(*pair[at..].first_chunk().expect("16 bytes"));
            self.gone(self.nodes.forget(long(0), long(8)));
        }
    }

    /// Closes what belonged to inodes that are gone.
    fn gone(&self, gone: Gone) {
        for (number, _) in &gone {
            self.cache.remove(crate::cache::Key::Node(*number));
        }
    }

    fn new_handle(&self, handle: Handle) -> Result<u64> {
        let number = self.last_handle.fetch_add(1, Ordering::Relaxed) + 1;
        let mut handles = self.handles();
        if handles.len() >= self.options.handles {
            return Err(Errno::NFILE);
        }
        if self.file.is_none() || handle.node != ROOT {
            self.nodes.opened(handle.node, number)?;
        }
        handles.insert(number, Arc::new(handle));
        Ok(number)
    }

    fn handle_of(&self, number: u64) -> Result<Arc<Handle>> {
        self.handles().get(&number).cloned().ok_or(Errno::BADF)
    }
}

/// The part of a request's buffer that its header claims.
struct Request<'a> {
    buffer: &'a dyn WriteBuffer,
    len: usize,
}

/// An error, unless nobody waits for an answer.
fn unless_silent(op: Option<Op>, error: Errno) -> Result<Answer> {
    match op {
        Some(Op::Forget | Op::BatchForget | Op::Interrupt) => Ok(Answer::None),
        _ => Err(error),
    }
}
