//! Where a kernel's or an initrd's bytes come from: a file, or memory after unpacking.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress};

use super::error::BootError;
use crate::memory::Memory;
use crate::sys::at_most;

/// The bytes of a file, read in place.
pub(super) struct Source<'a> {
    name: &'a str,
    bytes: Stored<'a>,
    len: u64,
}

enum Stored<'a> {
    File(&'a File),
    Unpacked(Vec<u8>),
}

impl<'a> Source<'a> {
    /// A file that the user gave. Its size is asked for once: a file that shrinks later fails to read, it does not confuse.
    pub(super) fn open(name: &'a str, file: &'a File) -> Result<Self, BootError> {
        let meta = file.metadata().map_err(|source| BootError::Read { file: name.to_owned(), source })?;
        if !meta.is_file() {
            return Err(BootError::unfit(name, "is not a regular file"));
        }
        if meta.len() == 0 {
            return Err(BootError::unfit(name, "is empty"));
        }
        Ok(Self { name, bytes: Stored::File(file), len: meta.len() })
    }

    /// What unpacking that file gave.
    pub(super) fn unpacked(name: &'a str, bytes: Vec<u8>) -> Self {
        let len = bytes.len() as u64;
        Self { name, bytes: Stored::Unpacked(bytes), len }
    }

    /// The name for messages.
    pub(super) fn name(&self) -> &'a str {
        self.name
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The file itself, if these are its own bytes.
    pub(super) fn file(&self) -> Option<&'a File> {
        match self.bytes {
            Stored::File(file) => Some(file),
            Stored::Unpacked(_) => None,
        }
    }

    /// Fails when `len` bytes at `offset` are not all there; `what` names them.
    pub(super) fn check(&self, offset: u64, len: u64, what: &'static str) -> Result<(), BootError> {
        let beyond = "a header names bytes beyond the end of the address space";
        let needs = offset.checked_add(len).ok_or_else(|| BootError::corrupt(self.name, beyond))?;
        if needs > self.len {
            return Err(BootError::truncated(self.name, what, needs, self.len));
        }
        Ok(())
    }

    /// Reads exactly `buffer.len()` bytes at `offset`; `what` names them when the file ends before.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8], what: &'static str) -> Result<(), BootError> {
        self.check(offset, buffer.len() as u64, what)?;
        match &self.bytes {
            Stored::File(file) => file
                .read_exact_at(buffer, offset)
                .map_err(|source| BootError::Read { file: self.name.to_owned(), source }),
            Stored::Unpacked(bytes) => {
                let start = usize::try_from(offset).map_err(|_| self.impossible())?;
                let part = bytes.get(start..start + buffer.len()).ok_or_else(|| self.impossible())?;
                buffer.copy_from_slice(part);
                Ok(())
            }
        }
    }

    /// Reads up to `limit` bytes from the start, fewer if the file is shorter.
    pub(super) fn head(&self, limit: usize) -> Result<Vec<u8>, BootError> {
        let len = at_most(self.len, limit);
        let mut head = vec![0; len];
        self.read(0, &mut head, "start")?;
        Ok(head)
    }

    /// Copies `len` bytes at `offset` to guest memory, without a buffer in between.
    pub(super) fn copy_to(
        &self,
        memory: &Memory,
        guest: u64,
        offset: u64,
        len: u64,
        what: &'static str,
    ) -> Result<(), BootError> {
        self.check(offset, len, what)?;
        match &self.bytes {
            Stored::File(file) => crate::memory::read_file_at(memory, guest, file, offset, len)
                .map_err(|source| BootError::Read { file: self.name.to_owned(), source }),
            Stored::Unpacked(bytes) => {
                let range = usize::try_from(offset).ok().zip(usize::try_from(len).ok());
                let part = range
                    .and_then(|(start, len)| bytes.get(start..start.checked_add(len)?))
                    .ok_or_else(|| self.impossible())?;
                memory
                    .write_slice(part, GuestAddress(guest))
                    .map_err(|source| BootError::Memory { what: "kernel", source })
            }
        }
    }

    /// A reader over `len` bytes at `offset`, for unpacking.
    pub(super) fn reader(&self, offset: u64, len: u64) -> impl Read + '_ {
        SourceReader { source: self, position: offset, end: offset.saturating_add(len).min(self.len) }
    }

    fn impossible(&self) -> BootError {
        BootError::corrupt(self.name, "a header names bytes beyond its end")
    }
}

struct SourceReader<'a> {
    source: &'a Source<'a>,
    position: u64,
    end: u64,
}

impl Read for SourceReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = at_most(self.end - self.position, buffer.len());
        let got = match &self.source.bytes {
            Stored::File(file) => file.read_at(&mut buffer[..want], self.position)?,
            Stored::Unpacked(bytes) => {
                let start = usize::try_from(self.position).map_err(io::Error::other)?;
                let part = bytes.get(start..start + want).ok_or(io::ErrorKind::UnexpectedEof)?;
                buffer[..want].copy_from_slice(part);
                want
            }
        };
        self.position += got as u64;
        Ok(got)
    }
}
