//! The root of a share that is one file: a directory that exists nowhere, with one entry.

use std::os::fd::AsFd;

use nelly_disk::ReadBuffer;
use nelly_disk::number::at_most;

use super::place::Source;
use super::{Answer, Handle, Result, Server};
use crate::errno::Errno;
use crate::nodes::ROOT;
use crate::sys::{self, OpenHow, S_IFDIR};
use crate::wire::{
    Attr, Entry, Header, OUT_HEADER, Operation, attr_out, dirent, entry_out, fits_dirent, open_out,
};

/// The name of a file that is shared alone.
pub const FILE_NAME: &str = "file";

/// The number of the root, which is no inode of the host.
const ROOT_INO: u64 = 1;

impl Server {
    /// Answers what concerns the made-up root; `None`: it is something else's. Nothing can be made,
    /// moved or removed in it.
    pub(super) fn single_root(
        &self,
        header: &Header,
        operation: &Operation<'_>,
        reply: &mut dyn ReadBuffer,
    ) -> Option<Result<Answer>> {
        use Operation as O;
        match *operation {
            // A directory's handle is the root's: there is no other directory.
            O::ReadDir { handle, offset, size, plus } => {
                return Some(self.list_single(handle, offset, size, plus, reply));
            }
            O::FSyncDir { handle, .. } => return Some(self.handle_of(handle).map(|_| Answer::Done)),
            O::Link { .. } | O::Rename { .. } => return Some(Err(Errno::PERM)),
            _ if header.node != ROOT => return None,
            _ => {}
        }
        Some(match operation {
            O::Lookup { name } if name.as_c_str().to_bytes() == FILE_NAME.as_bytes() => {
                self.single_entry().map(|entry| entry_out(&entry).into())
            }
            O::Lookup { .. } => Err(Errno::NOENT),
            O::GetAttr { .. } => Ok(attr_out(&root_attr(), self.valid()).into()),
            O::OpenDir { .. } => self
                .new_handle(Handle { node: ROOT, how: OpenHow(0), is_dir: true })
                .map(|number| open_out(number, 0).into()),
            O::Access { mask } => {
                if mask & 2 == 0 {
                    Ok(Answer::Done)
                } else {
                    Err(Errno::ACCES)
                }
            }
            O::StatFs => self.single_file().and_then(|file| Ok(sys::stat_fs(file.as_fd())?.encode().into())),
            O::Open { .. } => Err(Errno::ISDIR),
            O::ReadLink => Err(Errno::INVAL),
            O::GetXattr { .. } => Err(Errno::NODATA),
            O::ListXattr { size: 0 } => Ok([0; 8].into()),
            O::ListXattr { .. } => Ok(Answer::Done),
            O::SetAttr(_)
            | O::SymLink { .. }
            | O::MkNod { .. }
            | O::MkDir { .. }
            | O::Unlink { .. }
            | O::RmDir { .. }
            | O::Create { .. }
            | O::TmpFile { .. }
            | O::SetXattr { .. }
            | O::RemoveXattr { .. } => Err(if self.options.read_only { Errno::ROFS } else { Errno::PERM }),
            // What does not look at the inode.
            _ => return None,
        })
    }

    fn single_file(&self) -> Result<&std::sync::Arc<std::os::fd::OwnedFd>> {
        self.file.as_ref().ok_or(Errno::NOENT)
    }

    fn single_entry(&self) -> Result<Entry> {
        let file = self.single_file()?;
        let stat = sys::stat(file.as_fd())?;
        let attr = self.attr(&stat, Source::Fd(file.as_fd()));
        let node = self.nodes.enter_pinned(stat.identity, std::sync::Arc::clone(file))?;
        Ok(Entry { node, valid: self.valid(), attr })
    }

    /// `.`, `..` and the file; the places behind them are 1, 2 and 3.
    fn list_single(
        &self,
        handle: u64,
        offset: u64,
        size: u32,
        plus: bool,
        reply: &mut dyn ReadBuffer,
    ) -> Result<Answer> {
        if !self.handle_of(handle)?.is_dir {
            return Err(Errno::NOTDIR);
        }
        let room: usize = at_most(size, reply.size().saturating_sub(OUT_HEADER));
        let mut out = Vec::new();
        for (place, name) in [(1, "."), (2, ".."), (3, FILE_NAME)] {
            if place <= offset || !fits_dirent(out.len(), room, name.len(), plus) {
                continue;
            }
            let entry = if place == 3 { self.single_entry_for(plus)? } else { Entry::default() };
            let (ino, kind) = if place == 3 { (entry.attr.ino, 8) } else { (ROOT_INO, 4) };
            dirent(&mut out, plus.then_some(&entry), ino, place, kind, name.as_bytes());
        }
        reply.copy_in(OUT_HEADER, &out);
        Ok(Answer::Written(out.len()))
    }

    /// The entry of the file; only with attributes it counts as a lookup.
    fn single_entry_for(&self, plus: bool) -> Result<Entry> {
        if plus {
            return self.single_entry();
        }
        let file = self.single_file()?;
        let attr = self.attr(&sys::stat(file.as_fd())?, Source::Fd(file.as_fd()));
        Ok(Entry { attr, ..Entry::default() })
    }
}

fn root_attr() -> Attr {
    Attr { ino: ROOT_INO, mode: S_IFDIR | 0o555, nlink: 2, block_size: 4096, ..Attr::default() }
}
