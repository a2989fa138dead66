//! Where a kernel's or an initrd's bytes come from: what the caller reads from, or memory after
//! unpacking.

use std::io::{self, Read};

use nelly_disk::{Mappable, ReadAt};

use super::error::BootError;
use crate::memory::Memory;
use crate::sys::at_most;

/// The bytes of an image, read in place.
pub(super) struct Source<'a> {
    name: &'a str,
    bytes: Stored<'a>,
}

enum Stored<'a> {
    Given(&'a dyn ReadAt),
    Unpacked(Vec<u8>),
}

impl<'a> Source<'a> {
    /// What the caller gave. Its length is fixed: what is cut short later fails to be read, it does
    /// not confuse.
    pub(super) fn open(name: &'a str, bytes: &'a dyn ReadAt) -> Result<Self, BootError> {
        if bytes.is_empty() {
            return Err(BootError::unfit(name, "is empty"));
        }
        Ok(Self { name, bytes: Stored::Given(bytes) })
    }

    /// What unpacking that file gave.
    pub(super) fn unpacked(name: &'a str, bytes: Vec<u8>) -> Self {
        Self { name, bytes: Stored::Unpacked(bytes) }
    }

    /// The name for messages.
    pub(super) fn name(&self) -> &'a str {
        self.name
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.bytes().len()
    }

    fn bytes(&self) -> &dyn ReadAt {
        match &self.bytes {
            Stored::Given(bytes) => *bytes,
            Stored::Unpacked(bytes) => bytes,
        }
    }

    /// Where `len` bytes at `offset` may be mapped from instead of copied.
    pub(super) fn mappable(&self, offset: u64, len: u64) -> Option<Mappable<'_>> {
        self.bytes().mappable(offset, len)
    }

    /// Fails when `len` bytes at `offset` are not all there; `what` names them.
    pub(super) fn check(&self, offset: u64, len: u64, what: &'static str) -> Result<(), BootError> {
        let beyond = "a header refers to bytes beyond the end of the address space";
        let needs = offset.checked_add(len).ok_or_else(|| BootError::corrupt(self.name, beyond))?;
        if needs > self.len() {
            return Err(BootError::truncated(self.name, what, needs, self.len()));
        }
        Ok(())
    }

    /// Reads exactly `buffer.len()` bytes at `offset`; `what` names them when the file ends before.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8], what: &'static str) -> Result<(), BootError> {
        self.check(offset, buffer.len() as u64, what)?;
        self.bytes()
            .read_exact_at(&mut &mut *buffer, offset)
            .map_err(|source| BootError::Read { file: self.name.to_owned(), source })
    }

    /// Reads up to `limit` bytes from the start, fewer if the file is shorter.
    pub(super) fn head(&self, limit: usize) -> Result<Vec<u8>, BootError> {
        let len = at_most(self.len(), limit);
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
        crate::memory::read_at(memory, guest, self.bytes(), offset, len)
            .map_err(|source| BootError::Read { file: self.name.to_owned(), source })
    }

    /// A reader over `len` bytes at `offset`, for unpacking.
    pub(super) fn reader(&self, offset: u64, len: u64) -> impl Read + '_ {
        SourceReader { source: self, position: offset, end: offset.saturating_add(len).min(self.len()) }
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
        let got = self.source.bytes().read_at(&mut &mut buffer[..want], self.position)?;
        self.position += got as u64;
        Ok(got)
    }
}
