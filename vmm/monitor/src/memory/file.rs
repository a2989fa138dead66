//! Bytes of a file into guest memory without a buffer in between.

use std::io;

use nelly_disk::ReadAt;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{IoVecs, Memory};

/// Reads `len` bytes of `reader` at `offset` into guest memory at `guest`.
///
/// Fails with `UnexpectedEof` when the reader ends before, with `InvalidInput` when guest memory
/// does not hold the range.
pub fn read_at(memory: &Memory, guest: u64, reader: &dyn ReadAt, offset: u64, len: u64) -> io::Result<()> {
    let outside = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
    let total = usize::try_from(len).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let mut position = offset;
    for slice in memory.get_slices(GuestAddress(guest), total) {
        let slice = slice.map_err(outside)?;
        let mut vecs = IoVecs::with_capacity(1);
        vecs.push(&slice);
        reader.read_exact_at(&mut vecs, position)?;
        position += slice.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use nelly_disk::{Concat, FileReader};
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn reads_across_regions_and_says_when_the_file_or_the_memory_ends() {
        let memory =
            Memory::from_ranges(&[(GuestAddress(0), 0x2000), (GuestAddress(0x2000), 0x1000)]).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..0x1800_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        file.write_all(&bytes).unwrap();
        let file = FileReader::new(file).unwrap();

        read_at(&memory, 0x1100, &file, 8, 0x1700).unwrap();
        let mut found = vec![0; 0x1700];
        memory.read_slice(&mut found, GuestAddress(0x1100)).unwrap();
        assert_eq!(found, bytes[8..0x1708]);

        let short = read_at(&memory, 0, &file, 0x1000, 0x1000).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        let outside = read_at(&memory, 0x2fff, &file, 0, 2).unwrap_err();
        assert_eq!(outside.kind(), io::ErrorKind::InvalidInput);
        read_at(&memory, 0, &file, u64::MAX, 0).unwrap();
    }

    #[test]
    fn many_parts_and_the_zeros_between_them_arrive() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap();
        memory.write_slice(&[0xee; 0x8000], GuestAddress(0)).unwrap();
        let mut builder = Concat::builder(512).unwrap();
        for n in 1..=20_u8 {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&vec![n; usize::from(n) * 40]).unwrap();
            builder.part(Box::new(FileReader::new(file).unwrap())).unwrap();
        }
        let concat = builder.build();
        let mut model = vec![0; usize::try_from(concat.len()).unwrap()];
        concat.read_exact_at(&mut model, 0).unwrap();
        read_at(&memory, 0x11, &concat, 100, concat.len() - 100).unwrap();
        let mut found = vec![0; model.len() - 100];
        memory.read_slice(&mut found, GuestAddress(0x11)).unwrap();
        assert!(found == model[100..]);
        assert_eq!(found.iter().filter(|byte| **byte == 20).count(), 800);
    }
}
