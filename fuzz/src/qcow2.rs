//! A qcow2 image that somebody else made, opened, read, written, grown and checked.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use nelly_disk::qcow2::{BackingName, CreateOptions, Qcow2, check, create, read_header};
use nelly_disk::{Disk, ReadAt, ReadBuffer, Store, WriteBuffer};

/// Most bytes of the file: an offset behind is a full host.
const BYTES_MAX: u64 = 16 << 20;

/// A file in memory.
struct Memory(Mutex<Vec<u8>>);

impl Memory {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().expect("nobody panics with it")
    }
}

/// A number that is below [`BYTES_MAX`].
fn small(number: u64) -> usize {
    usize::try_from(number).expect("16 MiB at most")
}

impl Store for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn read_into(&self, into: &mut dyn ReadBuffer, range: Range<usize>, offset: u64) -> io::Result<usize> {
        let bytes = self.bytes();
        let rest = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
        let some = rest.len().min(range.len());
        into.copy_in(range.start, &rest[..some]);
        Ok(some)
    }

    fn write_from(&self, from: &dyn WriteBuffer, range: Range<usize>, offset: u64) -> io::Result<usize> {
        let end = offset.saturating_add(range.len() as u64);
        if end > BYTES_MAX {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut bytes = self.bytes();
        let len = bytes.len().max(small(end));
        bytes.resize(len, 0);
        from.copy_out(range.start, &mut bytes[small(offset)..small(end)]);
        Ok(range.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len > BYTES_MAX {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes().resize(small(len), 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut bytes = self.bytes();
        let here = bytes.len() as u64;
        let (start, end) = (offset.min(here), offset.saturating_add(len).min(here));
        bytes[small(start)..small(end)].fill(0);
        Ok(())
    }
}

/// Opens the image in `data`; `None` if it is refused.
fn open(data: &[u8], read_only: bool) -> Option<(Arc<Memory>, Qcow2)> {
    let store = Arc::new(Memory(Mutex::new(data.to_vec())));
    let header = read_header(&*store).ok()?;
    let backing = header.backing.map(|_| Box::new(vec![3_u8; 9000]) as Box<dyn ReadAt>);
    let image = Qcow2::open(Box::new(Arc::clone(&store)), backing, read_only).ok()?;
    Some((store, image))
}

/// Whether the input is an image that can be written, read and is without an error.
#[must_use]
pub fn accepts(data: &[u8]) -> bool {
    let report = check(&Memory(Mutex::new(data.to_vec())), &mut |_, _| {});
    let sound = report.is_ok_and(|report| report.corruptions == 0 && report.leaks == 0);
    sound && open(data, false).is_some_and(|(_, image)| read(&image) > 0)
}

/// Reads some of a disk; returns how many bytes.
fn read(image: &Qcow2) -> usize {
    let mut buffer = [0; 4096];
    let places = [0, 4096, 65536, (image.len() / 2) & !511, image.len().saturating_sub(512)];
    places.iter().filter_map(|place| image.read_at(&mut buffer, *place).ok()).sum()
}

/// Does to the image in the input what a guest and a user can do.
pub fn run(data: &[u8]) {
    let _ = check(&Memory(Mutex::new(data.to_vec())), &mut |_, _| {});
    if let Some((store, image)) = open(data, true) {
        read(&image);
        drop(image);
        assert!(*store.bytes() == data, "who only reads changes nothing");
    }
    let Some((store, image)) = open(data, false) else { return };
    let len = image.len();
    let bytes = [0x5a; 1536];
    for place in [0, 1024, 65536, (len / 2) & !511, len.saturating_sub(1536) & !511] {
        let _ = image.write_at(&bytes, place);
        let _ = image.write_zeroes(place, 512.min(len), true);
        read(&image);
    }
    let _ = image.discard(0, len.min(1 << 20));
    let _ = image.write_zeroes(0, len.min(1 << 17), false);
    let _ = image.extent(0, len);
    let _ = image.flush();
    let _ = image.grow(len.saturating_add(1 << 20));
    let _ = image.write_at(&bytes, 0);
    let _ = image.flush();
    drop(image);
    // No request of a guest reaches the header's fields that say what the image is.
    let after = store.bytes();
    for fields in [0..24, 60..88, 96..104] {
        assert_eq!(after.get(fields.clone()), data.get(fields), "the header");
    }
}

/// Images of small clusters: an empty one, one with data, one over a backing file.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let make = |cluster_bits, over: bool, writes: u64| {
        let store = Arc::new(Memory(Mutex::new(Vec::new())));
        let backing = BackingName { name: "base".into(), format: Some("raw".into()) };
        let options = CreateOptions { size: 1 << 17, cluster_bits, backing: over.then_some(backing) };
        create(Box::new(Arc::clone(&store)), &options).expect("there is room");
        let bytes = store.bytes().clone();
        let (store, image) = open(&bytes, false).expect("it was just made");
        for n in 0..writes {
            image.write_at(&[0x11; 3072], n * 20_480).expect("there is room");
        }
        image.write_zeroes(4096, 8192, true).expect("there is room");
        image.flush().expect("there is room");
        drop(image);
        store.bytes().clone()
    };
    vec![make(9, false, 0), make(9, false, 4), make(12, true, 4), make(10, true, 1)]
}
