//! Headers changed at random: whatever they say, loading ends, and what it accepts lies in guest
//! memory above the tables.

use proptest::prelude::*;

use super::*;

/// Whatever a file says, this holds.
fn check(bytes: &[u8], protocol: BootProtocol) -> Result<(), TestCaseError> {
    let memory = memory_of(8);
    let file = file_of(bytes);
    let image = Image { name: "INITRD", bytes: &vec![3; 5000] };
    let request = BootRequest { protocol, initrd: Some(image), ..request(&file) };
    if let Ok(loaded) = load(&memory, &request) {
        let (start, end) = loaded.kernel;
        prop_assert!(layout::HIGH_MEMORY <= start && start < end && end <= 8 * MIB);
        let entry = registers(&loaded).rip;
        prop_assert!((start..end).contains(&entry));
        let (at, len) = loaded.initrd.unwrap();
        prop_assert!(at >= end || at + len <= start);
    }
    Ok(())
}

fn small() -> Vec<u8> {
    let notes =
        [testing::note("Linux", 1, &[0; 4]), testing::note("Xen", 18, &0x20_0000_u32.to_le_bytes())].concat();
    let segment = Segment { address: BASE, bytes: &[0xf4; 5000], memory: 0x3000 };
    testing::elf(BASE, &[segment], &notes, &[(".rodata", b"IKCFG_ST...."), (".nelly.platform", b"acpi")])
}

fn protocols() -> impl Strategy<Value = BootProtocol> {
    prop_oneof![
        Just(BootProtocol::Auto),
        Just(BootProtocol::Elf64),
        Just(BootProtocol::Pvh),
        Just(BootProtocol::Bzimage)
    ]
}

/// Bytes that headers are wrong by: random, and the edges of every width.
fn patches() -> impl Strategy<Value = Vec<(prop::sample::Index, Vec<u8>)>> {
    let value = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..9),
        prop_oneof![
            Just(u64::MAX),
            Just(1 << 63),
            Just(u64::MAX - 4095),
            Just(0xffff_ffff),
            Just(0x7fff_ffff),
            Just(0)
        ]
        .prop_map(|edge: u64| edge.to_le_bytes().to_vec()),
    ];
    prop::collection::vec((any::<prop::sample::Index>(), value), 1..6)
}

fn patch(bytes: &mut [u8], range: std::ops::Range<usize>, patches: &[(prop::sample::Index, Vec<u8>)]) {
    for (index, value) in patches {
        let at = range.start + index.index(range.len().min(bytes.len() - range.start));
        let len = value.len().min(bytes.len() - at);
        bytes[at..at + len].copy_from_slice(&value[..len]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn elf(patches in patches(), protocol in protocols(), cut in any::<Option<prop::sample::Index>>()) {
        let mut bytes = small();
        // Headers, and the sections at the end.
        patch(&mut bytes, 0..64 + 56 * 2, &patches[..patches.len() / 2 + 1]);
        let end = bytes.len();
        patch(&mut bytes, end - 500..end, &patches[patches.len() / 2..]);
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        check(&bytes, protocol)?;
    }

    #[test]
    fn bzimage(patches in patches(), protocol in protocols(), cut in any::<Option<prop::sample::Index>>()) {
        let elf = small();
        let mut bytes = testing::bzimage(BASE, 0x10_0000, &testing::with_size(testing::gzip(&elf), &elf));
        patch(&mut bytes, 0x1f1..0x270, &patches);
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        check(&bytes, protocol)?;
    }

    #[test]
    fn packed(patches in patches(), format in 0..3_usize, at_start in any::<bool>()) {
        let elf = small();
        let mut bytes = [testing::gzip, testing::zstd, |bytes: &[u8]| testing::lz4(bytes, 4096)][format](&elf);
        let end = if at_start { 64 } else { bytes.len() };
        patch(&mut bytes, 4..end, &patches);
        check(&bytes, BootProtocol::Auto)?;
    }
}
