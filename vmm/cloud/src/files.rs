//! Files of an image, taken out.

use std::io::{self, Write};

use nelly_disk::ReadAt;
use nelly_disk::fs::open;

use crate::entry::{BootEntry, FileRef};
use crate::error::{CloudError, chain};
use crate::layout::Image;

/// Most bytes of a kernel.
pub const KERNEL_MAX: u64 = 256 << 20;
/// Most bytes of an entry's initrds together.
pub const INITRD_MAX: u64 = 1 << 30;

impl Image<'_> {
    /// The bytes of a file, to be read.
    ///
    /// # Errors
    /// [`CloudError::File`].
    pub fn reader(&self, file: &FileRef) -> Result<impl ReadAt + '_, CloudError> {
        let failed = |why: String| CloudError::File { path: self.shown(file), why };
        let volume =
            self.volume(file.slot).ok_or_else(|| failed("its file system is not read".to_owned()))?;
        let opened = open(volume, &file.path).map_err(|error| failed(chain(&error)))?;
        opened.ok_or_else(|| failed("it is not there".to_owned()))
    }

    /// A file's path with its partition.
    #[must_use]
    pub fn shown(&self, file: &FileRef) -> String {
        let slot = self.slots.get(file.slot).map_or_else(String::new, |slot| slot.name());
        format!("{} on {slot}", file.path)
    }

    /// Writes a file of at most `max` bytes to `out`; returns its bytes.
    ///
    /// # Errors
    /// [`CloudError`].
    pub fn copy(&self, file: &FileRef, max: u64, out: &mut dyn Write) -> Result<u64, CloudError> {
        let reader = self.reader(file)?;
        let failed = |why: String| CloudError::File { path: self.shown(file), why };
        if reader.len() > max {
            return Err(failed(format!("it has {} bytes, more than {max}", reader.len())));
        }
        let (mut at, mut buffer) = (0, vec![0; 1 << 20]);
        while at < reader.len() {
            let read = reader.read_at(&mut buffer, at).map_err(|error| failed(chain(&error)))?;
            if read == 0 {
                return Err(failed("it ends before its end".to_owned()));
            }
            out.write_all(&buffer[..read]).map_err(CloudError::Write)?;
            at += read as u64;
        }
        Ok(at)
    }

    /// Writes the initrds of an entry one after the other, each at a multiple of four bytes, as the
    /// kernel wants them; returns the bytes of all.
    ///
    /// # Errors
    /// [`CloudError`].
    pub fn copy_initrds(&self, entry: &BootEntry, out: &mut dyn Write) -> Result<u64, CloudError> {
        let mut total = 0_u64;
        for file in &entry.initrds {
            let gap = total.next_multiple_of(4) - total;
            io::copy(&mut io::Read::take(io::repeat(0), gap), &mut &mut *out).map_err(CloudError::Write)?;
            total += gap;
            total += self.copy(file, INITRD_MAX.saturating_sub(total), out)?;
        }
        Ok(total)
    }
}
