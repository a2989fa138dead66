//! The guest's memory as a file: its slots one after the other, by their numbers. Pages that are
//! zero are holes, so that an image is no larger than what its guest has used.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nelly_disk::{FileReader, OpenError, ReadAt};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress};

use super::{GuestRam, read_at};
use crate::sys::{self, fits};

/// Bytes that are looked at, or read, at once.
const CHUNK: u64 = 1 << 20;
/// What is zero as a whole is left out.
const PAGE: usize = 4096;

/// Why memory was not written to a file, or not read from one.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A pipe or a device has no holes.
    #[error("the file of the memory is no regular file")]
    Kind,
    /// It is another machine's, or cut off.
    #[error("the file of the memory has {found} bytes, and this machine's memory {wanted}")]
    Length {
        /// Bytes of the file.
        found: u64,
        /// Bytes of the memory.
        wanted: u64,
    },
    /// The host refused to write.
    #[error("cannot write the file of the memory")]
    Write(#[source] io::Error),
    /// The host refused to read.
    #[error("cannot read the file of the memory")]
    Read(#[source] io::Error),
    /// Nobody wants it any more.
    #[error("the machine ended meanwhile")]
    GivenUp,
}

impl GuestRam {
    /// Bytes of its image: those of all slots.
    #[must_use]
    pub fn image_bytes(&self) -> u64 {
        self.slots.iter().map(super::Slot::len).sum()
    }

    /// Writes all of it to `file`, which loses what it had. The guest does not run, or the image is
    /// of no one moment. What is written has reached the file's disk when this returns. Between two
    /// chunks it asks whether it shall `go_on`.
    ///
    /// # Errors
    /// The file is no regular one, or the host refuses: then its content is of no use.
    pub fn write_image(&self, file: &File, go_on: impl Fn() -> bool) -> Result<(), ImageError> {
        let failed = ImageError::Write;
        if !sys::files::is_regular(file).map_err(failed)? {
            return Err(ImageError::Kind);
        }
        // Nothing of what was there stays where there will be holes.
        file.set_len(0).map_err(failed)?;
        file.set_len(self.image_bytes()).map_err(failed)?;
        let mut buffer = vec![0; fits(CHUNK, "a chunk is small")];
        let mut base = 0;
        for slot in &self.slots {
            let mut at = 0;
            while at < slot.len() {
                if !go_on() {
                    return Err(ImageError::GivenUp);
                }
                let len = CHUNK.min(slot.len() - at);
                let chunk = &mut buffer[..fits(len, "a chunk is small")];
                self.memory
                    .read_slice(chunk, GuestAddress(slot.guest + at))
                    .map_err(|error| failed(io::Error::other(error)))?;
                for (start, used) in used(chunk) {
                    let offset = base + at + fits::<_, u64>(start, "a chunk is small");
                    file.write_all_at(used, offset).map_err(failed)?;
                }
                at += len;
            }
            base += slot.len();
        }
        file.sync_data().map_err(failed)
    }

    /// Fills this memory, of which nothing was touched, from an image. The file's position is
    /// moved. Between two chunks it asks whether it shall `go_on`.
    ///
    /// # Errors
    /// The file is no regular one or of another length, or the host refuses. What was read until
    /// then is in the memory.
    pub fn read_image(&self, file: &File, go_on: impl Fn() -> bool) -> Result<(), ImageError> {
        if !file.metadata().map_err(ImageError::Read)?.is_file() {
            return Err(ImageError::Kind);
        }
        let reader = FileReader::new(file).map_err(|error| match error {
            OpenError::Kind => ImageError::Kind,
            OpenError::Size(error) => ImageError::Read(error),
        })?;
        let (found, wanted) = (reader.len(), self.image_bytes());
        if found != wanted {
            return Err(ImageError::Length { found, wanted });
        }
        let mut base = 0;
        for slot in &self.slots {
            let end = base + slot.len();
            let mut at = base;
            while let Some((start, stop)) = next_data(file, at, end).map_err(ImageError::Read)? {
                for from in (start..stop).step_by(fits(CHUNK, "a chunk is small")) {
                    if !go_on() {
                        return Err(ImageError::GivenUp);
                    }
                    let len = CHUNK.min(stop - from);
                    read_at(&self.memory, slot.guest + (from - base), &reader, from, len)
                        .map_err(ImageError::Read)?;
                }
                at = stop;
            }
            base = end;
        }
        Ok(())
    }
}

/// The runs of pages in `chunk` that are not zero, each with its first byte's place.
fn used(chunk: &[u8]) -> Vec<(usize, &[u8])> {
    const ZEROS: [u8; PAGE] = [0; PAGE];
    let mut runs: Vec<(usize, &[u8])> = Vec::new();
    for (number, page) in chunk.chunks(PAGE).enumerate() {
        if page == &ZEROS[..page.len()] {
            continue;
        }
        let (start, stop) = (number * PAGE, number * PAGE + page.len());
        match runs.last_mut() {
            Some((first, run)) if *first + run.len() == start => *run = &chunk[*first..stop],
            _ => runs.push((start, &chunk[start..stop])),
        }
    }
    runs
}

/// The first bytes of `file` between `at` and `end` that are no hole: first and one behind the
/// last. Where the file system tells of no holes, all are none.
fn next_data(file: &File, at: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= end {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start.max(at),
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, end))),
        Err(error) => return Err(error.into()),
    };
    if start >= end {
        return Ok(None);
    }
    // Somebody else may change the file: this comes to its end all the same.
    let stop = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap_or(end);
    Ok(Some((start, stop.clamp(start + 1, end))))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::memory::Backing;

    const SIZE: u64 = 8 << 20;
    const MORE: u64 = 128 << 20;
    /// The end of a chunk and the start of the next one; the last page; in the slot of what is
    /// plugged in.
    const PLACES: [u64; 4] = [0x500, CHUNK - 1, SIZE - 1, SIZE.next_multiple_of(128 << 20) + 5];

    fn ram() -> GuestRam {
        GuestRam::with_hotplug(SIZE, MORE, Backing::Anonymous).unwrap()
    }

    fn filled() -> GuestRam {
        let ram = ram();
        for (n, at) in (1u8..).zip(PLACES) {
            ram.memory().write_obj(n, GuestAddress(at)).unwrap();
        }
        ram.memory().write_slice(&[7; 3 * PAGE], GuestAddress(CHUNK)).unwrap();
        ram
    }

    fn written() -> File {
        let mut file = tempfile::tempfile().unwrap();
        // What a file held before is no part of it.
        file.write_all(&[0xff; 1 << 16]).unwrap();
        filled().write_image(&file, || true).unwrap();
        file
    }

    #[test]
    fn what_was_written_is_read_back_and_what_is_zero_takes_no_room() {
        let file = written();
        let meta = file.metadata().unwrap();
        assert_eq!(meta.len(), SIZE + MORE);
        assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
        let back = ram();
        back.read_image(&file, || true).unwrap();
        let all = |ram: &GuestRam| {
            let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
            ram.memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
            bytes
        };
        assert!(all(&back) == all(&filled()));
        assert_eq!(back.memory().read_obj::<u8>(GuestAddress(PLACES[3])).unwrap(), 4);
        // Of one without holes the same.
        let mut whole = tempfile::tempfile().unwrap();
        whole.write_all(&all(&filled())).unwrap();
        whole.write_all(&vec![0; usize::try_from(MORE).unwrap()]).unwrap();
        let back = ram();
        back.read_image(&whole, || true).unwrap();
        assert!(all(&back) == all(&filled()));
    }

    #[test]
    fn another_length_another_kind_and_a_full_disk_are_told() {
        let file = written();
        for len in [0, SIZE + MORE - 1, SIZE + MORE + 1] {
            file.set_len(len).unwrap();
            let error = ram().read_image(&file, || true).unwrap_err();
            assert!(matches!(error, ImageError::Length { found, .. } if found == len), "{error}");
        }
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        assert!(matches!(ram().read_image(&null, || true), Err(ImageError::Kind)));
        assert!(matches!(ram().write_image(&null, || true), Err(ImageError::Kind)));
        let read_only = tempfile::NamedTempFile::new().unwrap();
        let read_only = File::open(read_only.path()).unwrap();
        assert!(matches!(filled().write_image(&read_only, || true), Err(ImageError::Write(_))));
    }

    #[test]
    fn whoever_gives_up_waits_for_a_chunk_at_most() {
        let file = written();
        let asked = std::cell::Cell::new(0);
        let once = || asked.replace(asked.get() + 1) == 0;
        assert!(matches!(filled().write_image(&file, once), Err(ImageError::GivenUp)));
        assert_eq!(asked.get(), 2);
        let file = written();
        assert!(matches!(ram().read_image(&file, || false), Err(ImageError::GivenUp)));
    }

    #[test]
    fn runs_of_pages_are_as_long_as_they_are_used() {
        let mut chunk = vec![0; 6 * PAGE];
        assert!(used(&chunk).is_empty());
        for at in [PAGE, 2 * PAGE + 9, 5 * PAGE + PAGE - 1] {
            chunk[at] = 1;
        }
        let found: Vec<_> = used(&chunk).into_iter().map(|(at, run)| (at, run.len())).collect();
        assert_eq!(found, [(PAGE, 2 * PAGE), (5 * PAGE, PAGE)]);
    }
}
