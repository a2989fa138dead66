//! Directories opened and listed.

use std::os::fd::AsFd;
use std::sync::PoisonError;

use nelly_disk::ReadBuffer;
use nelly_disk::number::at_most;

use super::place::Source;
use super::{Answer, Handle, Result, Server};
use crate::cache::{Key, Open};
use crate::errno::Errno;
use crate::stream::DirEntry;
use crate::sys::{self, OpenHow};
use crate::wire::{Entry, NAME_MAX, OUT_HEADER, dirent, fits_dirent, open_out};

/// Most bytes that one READDIR returns, whatever the driver has room for. Linux asks for a page.
const LIST_MAX: usize = 64 << 10;

impl Server {
    pub(super) fn open_dir(&self, node: u64) -> Result<Answer> {
        let _names = self.reading_names();
        let dir = self.dir(node)?;
        let fd = self.descriptor(|| sys::open_dir(dir.as_fd()))?;
        let number = self.new_handle(Handle { node, how: OpenHow(0), is_dir: true })?;
        self.cache.put(Key::Handle(number), Open::new(fd));
        Ok(open_out(number, self.open_dir_flags()).into())
    }

    /// READDIR and READDIRPLUS from the place `offset` on. An answer ends where what one call of
    /// the host returned ends, at the latest.
    pub(super) fn read_dir(
        &self,
        number: u64,
        offset: u64,
        size: u32,
        plus: bool,
        reply: &mut dyn ReadBuffer,
    ) -> Result<Answer> {
        let handle = self.handle_of(number)?;
        if !handle.is_dir {
            return Err(Errno::NOTDIR);
        }
        let open = self.open_file(number, &handle)?;
        let room: usize = at_most(size, reply.size().saturating_sub(OUT_HEADER).min(LIST_MAX));
        let mut out = Vec::with_capacity(room);
        let identity = self.nodes.identity(handle.node)?;
        let ino = |inode| self.ino(&sys::Identity { inode, ..identity });
        let _names = self.reading_names();
        let mut stream = open.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let mut index = stream.find(open.as_fd(), offset)?;
        let mut skipped = false;
        loop {
            let Some(entry) = stream.get(index) else {
                // Everything that was here is gone: go on behind it rather than tell the end.
                match (skipped && out.is_empty(), stream.last_place()) {
                    (true, Some(place)) => {
                        index = stream.find(open.as_fd(), place)?;
                        skipped = false;
                        continue;
                    }
                    _ => break,
                }
            };
            let name = entry.name.to_bytes();
            if !fits_dirent(out.len(), room, name.len(), plus) {
                if out.is_empty() {
                    return Err(Errno::INVAL);
                }
                break;
            }
            index += 1;
            if plus {
                skipped |= !self.list_plus(handle.node, &open, &entry, ino(entry.ino), &mut out);
            } else {
                dirent(&mut out, None, ino(entry.ino), entry.next, entry.kind.into(), name);
            }
        }
        reply.copy_in(OUT_HEADER, &out);
        Ok(Answer::Written(out.len()))
    }

    /// Appends an entry with its attributes, which counts as a lookup. Returns whether there was
    /// one: it may be gone since the directory was read.
    fn list_plus(
        &self,
        parent: u64,
        dir: &Open,
        entry: &DirEntry<'_>,
        mut ino: u64,
        out: &mut Vec<u8>,
    ) -> bool {
        let name = entry.name.to_bytes();
        let mut found = Entry::default();
        let mut kind = u32::from(entry.kind);
        // File systems without a limit of bytes have names that no request could have.
        if name != b"." && name != b".." && name.len() <= NAME_MAX {
            match sys::stat_at(dir.as_fd(), entry.name) {
                Ok(stat) => {
                    let attr = self.attr(&stat, Source::At(dir.as_fd(), entry.name));
                    (ino, kind) = (attr.ino, stat.kind() >> 12);
                    // A driver that knows too many is told the name alone: no listing drops names.
                    if let Ok(node) = self.nodes.enter(stat.identity, parent, entry.name) {
                        found = Entry { node, valid: self.valid(), attr };
                    }
                }
                Err(Errno::NOENT) => return false,
                Err(_) => {}
            }
        }
        dirent(out, Some(&found), ino, entry.next, kind, name);
        true
    }
}
