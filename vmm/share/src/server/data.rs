//! Files opened, read and written.

use std::os::fd::AsFd;

use nelly_disk::ReadBuffer;
use nelly_disk::number::{at_most, fits};

use super::{Answer, Handle, Request, Result, Server};
use crate::cache::{Key, Open};
use crate::config::CacheMode;
use crate::errno::Errno;
use crate::sys::{self, OpenHow, S_IFDIR, S_IFREG};
use crate::wire::{IN_HEADER, MAX_WRITE, OUT_HEADER, Write, open_out};

/// `fuse_open_out` flags: nothing is cached; what is cached stays.
const FOPEN_DIRECT_IO: u32 = 1 << 0;
const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// The entries of the directory may be kept.
const FOPEN_CACHE_DIR: u32 = 1 << 3;

/// Most bytes that one COPY_FILE_RANGE copies: it occupies a thread meanwhile.
const COPY_MAX: u64 = 64 << 20;

impl Server {
    /// What OPEN and CREATE tell of the cache.
    pub(super) fn open_flags(&self) -> u32 {
        match self.options.cache {
            CacheMode::Auto => 0,
            CacheMode::Always => FOPEN_KEEP_CACHE,
            CacheMode::None => FOPEN_DIRECT_IO,
        }
    }

    /// Whether a file may be opened so.
    pub(super) fn check_how(&self, how: OpenHow) -> Result<()> {
        if !how.is_sound() {
            return Err(Errno::INVAL);
        }
        if self.options.read_only && (how.writes() || how.truncates()) {
            return Err(Errno::ROFS);
        }
        Ok(())
    }

    /// OPEN. Only regular files are opened here: drivers open pipes and devices themselves.
    pub(super) fn open(&self, node: u64, how: OpenHow, kill_set_id: bool) -> Result<Answer> {
        self.check_how(how)?;
        let number = {
            let _names = self.reading_names();
            let (found, stat) = self.leaf_in_place(node)?;
            match stat.kind() {
                S_IFREG => {}
                S_IFDIR => return Err(Errno::ISDIR),
                _ => return Err(Errno::OPNOTSUPP),
            }
            let file = self.descriptor(|| sys::reopen(found.as_fd(), how))?;
            if how.truncates() {
                self.truncate(file.as_fd(), found.as_fd(), how, kill_set_id)?;
                self.own.note(node);
            }
            self.keep_open(node, how, file)?
        };
        Ok(open_out(number, self.open_flags()).into())
    }

    /// O_TRUNC, also of a file that is opened for reading only.
    pub(super) fn truncate(
        &self,
        file: std::os::fd::BorrowedFd<'_>,
        leaf: std::os::fd::BorrowedFd<'_>,
        how: OpenHow,
        kill_set_id: bool,
    ) -> Result<()> {
        if how.writes() {
            sys::set_len(file, 0)?;
        } else {
            let writable = self.descriptor(|| sys::reopen(leaf, OpenHow(1)))?;
            sys::set_len(writable.as_fd(), 0)?;
        }
        if kill_set_id { self.drop_set_id(leaf) } else { Ok(()) }
    }

    /// Makes a handle of an open file.
    pub(super) fn keep_open(&self, node: u64, how: OpenHow, file: std::os::fd::OwnedFd) -> Result<u64> {
        let number = self.new_handle(Handle { node, how: how.kept(), is_dir: false })?;
        self.cache.put(Key::Handle(number), Open::new(file));
        Ok(number)
    }

    fn file_of(&self, number: u64) -> Result<std::sync::Arc<Handle>> {
        let handle = self.handle_of(number)?;
        if handle.is_dir { Err(Errno::BADF) } else { Ok(handle) }
    }

    /// READ, from the file into the driver's memory. A short answer means the end of the file, so
    /// that what the system returns short is continued.
    pub(super) fn read(
        &self,
        number: u64,
        offset: u64,
        size: u32,
        reply: &mut dyn ReadBuffer,
    ) -> Result<Answer> {
        let handle = self.file_of(number)?;
        if !handle.how.reads() {
            return Err(Errno::BADF);
        }
        let room = reply.size().saturating_sub(OUT_HEADER);
        let want: usize = at_most(size.min(MAX_WRITE), room);
        let open = self.open_file(number, &handle)?;
        let mut done = 0;
        while done < want {
            let place =
                offset.checked_add(fits(done, "a request has less than 4 GiB")).ok_or(Errno::INVAL)?;
            if i64::try_from(place).is_err() {
                break;
            }
            match reply.read_file(OUT_HEADER + done..OUT_HEADER + want, open.as_fd(), place) {
                Ok(0) => break,
                Ok(read) => done += read,
                // Less would be taken for the file's end, also where something was read before.
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Answer::Written(done))
    }

    /// WRITE, from the driver's memory into the file.
    pub(super) fn write(&self, write: &Write, request: &Request<'_>) -> Result<Answer> {
        let handle = self.file_of(write.handle)?;
        if !handle.how.writes() {
            return Err(Errno::BADF);
        }
        let first = IN_HEADER + Write::LEN;
        let size: usize = fits(write.size, "sizes of hosts have 64 bits");
        // The data must be there, and no more: a lie in either number changes nothing.
        if write.size > MAX_WRITE || request.len.checked_sub(first) != Some(size) {
            return Err(Errno::INVAL);
        }
        let open = self.open_file(write.handle, &handle)?;
        // The host appends whatever it is given by a descriptor for appending.
        let in_place = match write.cached && handle.how.appends() {
            true => Some(self.descriptor(|| sys::reopen(open.as_fd(), OpenHow::WRITE_ONLY))?),
            false => None,
        };
        let file = in_place.as_ref().map_or(open.as_fd(), |file| file.as_fd());
        let mut done = 0;
        while done < size {
            let more: u64 = fits(done, "a request has less than 4 GiB");
            let place = write.offset.checked_add(more).ok_or(Errno::FBIG)?;
            if i64::try_from(place).is_err() {
                return Err(Errno::FBIG);
            }
            match request.buffer.write_file(first + done..first + size, file, place) {
                Ok(0) => break,
                Ok(written) => done += written,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error.into()),
            }
        }
        if write.kill_set_id && done > 0 {
            self.drop_set_id(open.as_fd())?;
        }
        self.own.note(handle.node);
        let mut out = [0; 8];
        let done: u32 = fits(done, "no more than was asked for");
        out[..4].copy_from_slice(&done.to_le_bytes());
        Ok(out.into())
    }

    /// RELEASE and RELEASEDIR. What the handle was for does not matter any more.
    pub(super) fn release(&self, number: u64, owner: u64, unlock: bool) -> Result<Answer> {
        let handle = self.handles().remove(&number).ok_or(Errno::BADF)?;
        self.cache.remove(Key::Handle(number));
        if unlock {
            self.locks.drop_owner(handle.node, owner, true);
        }
        self.gone(self.nodes.closed(handle.node));
        Ok(Answer::Done)
    }

    /// FLUSH: a descriptor of the guest was closed. Writes are not delayed here; the locks of the
    /// process end.
    pub(super) fn flush(&self, number: u64, owner: u64) -> Result<Answer> {
        let handle = self.handle_of(number)?;
        self.locks.drop_owner(handle.node, owner, false);
        Ok(Answer::Done)
    }

    /// FSYNC and FSYNCDIR.
    pub(super) fn fsync(&self, number: u64, data_only: bool) -> Result<Answer> {
        let handle = self.handle_of(number)?;
        let open = self.open_file(number, &handle)?;
        sys::sync(open.as_fd(), data_only)?;
        Ok(Answer::Done)
    }

    pub(super) fn allocate(&self, number: u64, offset: u64, len: u64, mode: u32) -> Result<Answer> {
        let handle = self.file_of(number)?;
        if !handle.how.writes() {
            return Err(Errno::BADF);
        }
        let open = self.open_file(number, &handle)?;
        sys::allocate(open.as_fd(), mode, offset, len)?;
        Ok(Answer::Done)
    }

    /// LSEEK: data and holes; drivers do the rest themselves.
    pub(super) fn seek(&self, number: u64, offset: u64, whence: u32) -> Result<Answer> {
        let handle = self.file_of(number)?;
        let data = match whence {
            3 => true,
            4 => false,
            _ => return Err(Errno::INVAL),
        };
        let open = self.open_file(number, &handle)?;
        Ok(sys::seek(open.as_fd(), offset, data)?.to_le_bytes().into())
    }

    pub(super) fn copy_range(&self, from: (u64, u64), to: (u64, u64), len: u64) -> Result<Answer> {
        let (source, target) = (self.file_of(from.0)?, self.file_of(to.0)?);
        let node = target.node;
        if !source.how.reads() || !target.how.writes() {
            return Err(Errno::BADF);
        }
        let [source, target] =
            [(from.0, source), (to.0, target)].map(|(n, handle)| self.open_file(n, &handle));
        let len: usize = fits(len.min(COPY_MAX), "64 MiB at most");
        let copied = sys::copy_range(source?.as_fd(), from.1, target?.as_fd(), to.1, len)?;
        self.own.note(node);
        let mut out = [0; 8];
        let copied: u32 = fits(copied, "no more than was asked for");
        out[..4].copy_from_slice(&copied.to_le_bytes());
        Ok(out.into())
    }

    /// What OPENDIR tells of the cache.
    pub(super) fn open_dir_flags(&self) -> u32 {
        match self.options.cache {
            CacheMode::Always => FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE,
            _ => 0,
        }
    }
}
