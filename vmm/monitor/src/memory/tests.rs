use std::io::Write;
use std::os::fd::AsFd;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::*;

fn mapped(address: *mut u8) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().any(|line| {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let parse = |text| usize::from_str_radix(text, 16).unwrap();
        (parse(start)..parse(end)).contains(&address.addr())
    })
}

#[test]
fn the_last_user_unmaps() {
    let ram = GuestRam::new(4 << 20, Backing::Anonymous).unwrap();
    let address = ram.slots()[0].host();
    let memory = ram.memory().clone();
    let slot = ram.slots()[0].clone();
    drop(ram);
    assert!(mapped(address));
    drop(slot);
    memory.write_obj(0x1122_3344u32, GuestAddress(arch::ram_ranges(4 << 20)[0].0)).unwrap();
    let region = memory.iter().next().unwrap();
    assert_eq!(region.get_mmap().as_ptr(), address);
    drop(memory);
    assert!(!mapped(address));
}

#[test]
fn sizes_are_checked_before_anything_is_mapped() {
    let refused = |size| GuestRam::new(size, Backing::Anonymous).unwrap_err().to_string();
    assert!(refused(1 << 50).contains("MiB of guest memory exceed this host's"), "{}", refused(1 << 50));
    assert!(refused(4097).contains("is invalid"));
    assert!(matches!(Slot::new(0, 1, 4096, Backing::Anonymous, false), Err(MemoryError::Slot { .. })));
    assert!(matches!(
        Slot::new(0, u64::MAX - 4095, 8192, Backing::Anonymous, false),
        Err(MemoryError::Slot { .. })
    ));
    let one = Slot::new(0, 0, 8192, Backing::Anonymous, false).unwrap();
    let two = Slot::new(1, 4096, 8192, Backing::Anonymous, false).unwrap();
    assert!(matches!(view(&[one, two]), Err(MemoryError::Overlap)));
}

#[test]
fn a_files_pages_are_seen_and_the_rest_of_the_last_is_zero() {
    let base = arch::ram_ranges(1 << 20)[0].0;
    for backing in [Backing::Anonymous, Backing::SharedFile, Backing::PrivateFile] {
        let ram = GuestRam::new(1 << 20, backing).unwrap();
        let memory = ram.memory();
        memory.write_slice(&[0xee; 0x6000], GuestAddress(base + 0x1000)).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..0x3100u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
        file.write_all(&content).unwrap();

        ram.map_file(base + 0x2000, file.as_fd(), 0x1000, 0x1080).unwrap();

        let mut seen = vec![0; 0x6000];
        memory.read_slice(&mut seen, GuestAddress(base + 0x1000)).unwrap();
        assert!(seen[..0x1000].iter().all(|byte| *byte == 0xee));
        assert_eq!(seen[0x1000..0x2080], content[0x1000..0x2080]);
        assert!(seen[0x2080..0x3000].iter().all(|byte| *byte == 0), "the tail of the last page");
        assert!(seen[0x3000..].iter().all(|byte| *byte == 0xee), "the pages after it are untouched");

        // The guest's writes stay its own.
        memory.write_obj(0u64, GuestAddress(base + 0x2000)).unwrap();
        let mut first = [0; 8];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut first, 0x1000).unwrap();
        assert_eq!(first, content[0x1000..0x1008]);
    }
}

#[test]
fn pieces_that_do_not_fit_are_refused() {
    let base = arch::ram_ranges(1 << 20)[0].0;
    let ram = GuestRam::new(1 << 20, Backing::Anonymous).unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x2000).unwrap();
    let cases = [
        (base + 1, 0, 0x1000),
        (base, 1, 0x1000),
        (base, 0, 0),
        (base, 0, 0x2001),
        (base, 0x1000, 0x1001),
        (base + (1 << 20) - 0x1000, 0, 0x1001),
        (base + (1 << 20), 0, 0x1000),
        (u64::MAX - 0xfff, 0, 0x1000),
        (base, u64::MAX - 0xfff, 0x1000),
        (base, 0, u64::MAX),
    ];
    for (guest, offset, len) in cases {
        let result = ram.map_file(guest, file.as_fd(), offset, len);
        assert!(
            matches!(result, Err(MemoryError::File { .. })),
            "{guest:#x} {offset:#x} {len:#x}: {result:?}"
        );
    }
}

#[test]
fn ram_is_where_the_address_map_has_it_and_nowhere_else() {
    let size = 4 << 30;
    let ram = GuestRam::new(size, Backing::Anonymous).unwrap();
    assert_eq!(ram.size(), size);
    let ranges: Vec<(u64, u64)> = arch::ram_ranges(size).into_iter().collect();
    assert_eq!(ranges.iter().map(|(_, len)| len).sum::<u64>(), size);
    for &(start, len) in &ranges {
        assert!(ram.memory().address_in_range(GuestAddress(start)));
        assert!(ram.memory().address_in_range(GuestAddress(start + len - 1)));
        let follows = ranges.iter().any(|&(next, _)| next == start + len);
        assert_eq!(ram.memory().address_in_range(GuestAddress(start + len)), follows);
    }
}

#[test]
fn a_shared_file_shows_what_the_guest_wrote() {
    let base = arch::ram_ranges(1 << 20)[0].0;
    let ram = GuestRam::new(1 << 20, Backing::SharedFile).unwrap();
    ram.memory().write_slice(b"hello", GuestAddress(base + 5)).unwrap();
    let mut seen = [0; 5];
    let file = ram.slots()[0].file().unwrap();
    std::os::unix::fs::FileExt::read_exact_at(file.as_ref(), &mut seen, 5).unwrap();
    assert_eq!(&seen, b"hello");
}
