//! The fields of a request, taken off its front.

use crate::errno::Errno;
use crate::wire::name::{Name, Target};

/// What is left of a request. A field that is not there is `EINVAL`.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Errno> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(*bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_le_bytes)
    }

    /// Bytes up to a NUL and with it.
    pub(super) fn terminated(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
        self.bytes(end + 1)
    }

    pub(super) fn name(&mut self) -> Result<Name<'a>, Errno> {
        Name::new(self.terminated()?)
    }

    pub(super) fn target(&mut self) -> Result<Target<'a>, Errno> {
        Target::new(self.terminated()?)
    }

    /// The name of an extended attribute: 1 to 255 bytes. It may hold any byte but NUL.
    pub(super) fn attribute(&mut self) -> Result<&'a std::ffi::CStr, Errno> {
        let name = std::ffi::CStr::from_bytes_with_nul(self.terminated()?).map_err(|_| Errno::INVAL)?;
        match name.count_bytes() {
            0 | 256.. => Err(Errno::RANGE),
            _ => Ok(name),
        }
    }

    /// Nothing may follow: a second NUL, a second name.
    pub(super) fn end(&self) -> Result<(), Errno> {
        if self.0.is_empty() { Ok(()) } else { Err(Errno::INVAL) }
    }
}
