//! What describes a machine to its kernel, read back as a kernel reads it: MP table, ACPI, and the
//! tree for Arm. The machine is what the input says; the kernel is always the same.

use std::collections::HashSet;

use nelly_vmm::arch::{BootState, aarch64, x86_64};
use nelly_vmm::boot::testing::{self, Segment};
use nelly_vmm::boot::{self, BootRequest, Image, Loaded, MmioSlot, PlatformTables};
use nelly_vmm::config::{BootProtocol, Platform};
use nelly_vmm::memory::{Backing, GuestRam};
use vm_memory::{Bytes as _, GuestAddress};

use super::Bytes;

const RAM: u64 = 16 << 20;
/// Where tables of a PC are looked for.
const MP_POINTER: u64 = 0x9_fc00;
const RSDP: u64 = 0xe_0000;
const TABLES_END: u64 = 0xf_0000;

/// Loads the machine that the input describes, and reads its tables.
///
/// # Panics
/// When they are not what the specifications say, or not the machine's.
pub fn run(data: &[u8]) {
    let _ = described(data);
}

/// As [`run`]; the devices that were found.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn described(data: &[u8]) -> Option<usize> {
    let mut input = Bytes(data);
    let [choice, low, high, devices, line, letters] = input.take();
    let arm = choice & 1 != 0;
    let cpus = if choice & 2 == 0 { u32::from(low) } else { u32::from(u16::from_le_bytes([low, high & 7])) };
    let mut transports = Vec::new();
    for index in 0..u64::from(devices) + u64::from(choice & 4) * 64 {
        let number = u32::from(line).wrapping_add(u32::try_from(index).expect("a small number")) & 0x7f;
        let (line, start) = if arm {
            (aarch64::line(number), aarch64::layout::VIRTIO_MMIO)
        } else {
            (x86_64::line(number), x86_64::layout::VIRTIO_MMIO)
        };
        let Some(line) = line else { continue };
        transports.push(MmioSlot { address: start + index * 0x1000, line });
    }
    let command_line: String =
        input.0.iter().take(usize::from(letters) * 16).map(|&byte| char::from(byte)).collect();
    let platform = match (choice >> 3 & 3, arm) {
        (_, true) => Platform::Auto,
        (0, _) => Platform::Mptable,
        _ => Platform::Acpi,
    };
    let kernel = if arm { testing::arm64_image(0, 1 << 20, &[1; 100]) } else { elf() };
    let initrd = vec![7_u8; 5000];
    let request = BootRequest {
        kernel: Image { name: "kernel", bytes: &kernel },
        initrd: (choice & 0x20 != 0).then_some(Image { name: "initrd", bytes: &initrd }),
        command_line: &command_line,
        cpus,
        transports: &transports,
        platform,
        protocol: BootProtocol::Auto,
        seed: (choice & 0x40 != 0).then_some([9; 32]),
        kernel_place: (choice & 0x40 != 0).then_some(9),
    };
    if arm {
        let ranges = aarch64::ram_ranges(RAM);
        let ram = GuestRam::laid_out(&ranges, None, Backing::Anonymous).expect("16 MiB");
        let loaded = boot::arm64::load(&ram, &request).ok()?;
        Some(tree(&ram, &loaded, &request))
    } else {
        let ram = GuestRam::new(RAM, Backing::Anonymous).expect("16 MiB");
        let loaded = boot::x86::load(&ram, &request).ok()?;
        match loaded.platform {
            PlatformTables::MpTable => mp_table(&ram, &request),
            _ => acpi(&ram, &request),
        }
        Some(transports.len())
    }
}

fn elf() -> Vec<u8> {
    let segments = [Segment { address: 0x20_0000, bytes: &[0xf4; 64], memory: 0x1000 }];
    testing::elf(0x20_0000, &segments, &[], &[])
}

fn read(ram: &GuestRam, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ram.memory().read_slice(&mut bytes, GuestAddress(at)).expect("tables lie in memory");
    bytes
}

fn little(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn size(number: u64) -> usize {
    usize::try_from(number).expect("64 bits")
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// Intel's MultiProcessor Specification 1.4, chapter 4.
fn mp_table(ram: &GuestRam, request: &BootRequest<'_>) {
    let pointer = read(ram, MP_POINTER, 16);
    assert!(pointer.starts_with(b"_MP_") && is_zero(&pointer) && pointer[8] == 1);
    let at = little(&pointer, 4, 4);
    let len = size(little(&read(ram, at, 8), 4, 2));
    assert!(at + len as u64 <= TABLES_END, "the table lies in its place");
    let table = read(ram, at, len);
    assert!(table.starts_with(b"PCMP") && is_zero(&table));
    let (mut processors, mut lines, mut boots) = (HashSet::new(), HashSet::new(), 0);
    let mut rest = &table[44..];
    for _ in 0..little(&table, 34, 2) {
        let (entry, more) = rest.split_at(if rest[0] == 0 { 20 } else { 8 });
        match entry[0] {
            0 => {
                assert!(processors.insert(entry[1]) && entry[3] & 1 == 1);
                boots += usize::from(entry[3] & 2 != 0);
            }
            3 => assert!(lines.insert(entry[7]) && entry[5] == entry[7]),
            kind => assert!(kind <= 4),
        }
        rest = more;
    }
    assert!(rest.is_empty(), "the entries are as long as the table");
    assert_eq!((processors.len(), boots), (size(request.cpus.into()), 1));
    for transport in request.transports {
        let line = u8::try_from(transport.line.number()).expect("an I/O APIC has fewer lines");
        assert!(lines.contains(&line), "every device's line is there");
    }
}

/// ACPI 6.5, chapter 5.
fn acpi(ram: &GuestRam, request: &BootRequest<'_>) {
    let pointer = read(ram, RSDP, 36);
    assert!(pointer.starts_with(b"RSD PTR ") && is_zero(&pointer[..20]) && is_zero(&pointer));
    let table = |at: u64, name: &[u8]| {
        let len = size(little(&read(ram, at, 8), 4, 4));
        assert!((RSDP..TABLES_END).contains(&at) && at + len as u64 <= TABLES_END, "a table in its place");
        let bytes = read(ram, at, len);
        assert!(bytes.starts_with(name) && is_zero(&bytes), "{name:?}");
        bytes
    };
    let list = table(little(&pointer, 24, 8), b"XSDT");
    let tables: Vec<u64> = list[36..].chunks_exact(8).map(|bytes| little(bytes, 0, 8)).collect();
    let fixed = table(tables[0], b"FACP");
    let interrupts = table(tables[1], b"APIC");
    let mut processors = HashSet::new();
    let mut rest = &interrupts[44..];
    while let [kind, len, ..] = *rest {
        let (entry, more) = rest.split_at(len.into());
        match kind {
            0 => assert!(processors.insert(u64::from(entry[3])) && entry[4] == 1),
            9 => assert!(processors.insert(little(entry, 4, 4)) && little(entry, 8, 4) == 1),
            1 | 4 => {}
            other => panic!("an entry of the kind {other}"),
        }
        rest = more;
    }
    assert_eq!(processors, (0..u64::from(request.cpus)).collect());
    let code = table(little(&fixed, 140, 8), b"DSDT");
    let mut found = Vec::new();
    terms(&code[36..], &mut found);
    let wanted: Vec<_> =
        request.transports.iter().map(|slot| (slot.address, u64::from(slot.line.number()))).collect();
    assert_eq!(found, wanted, "the devices");
}

/// Walks a list of terms (ACPI 6.5, 20.2.5), and notes memory and line of each virtio device.
fn terms(mut code: &[u8], found: &mut Vec<(u64, u64)>) {
    while let [first, rest @ ..] = code {
        let (block, name) = match (first, rest) {
            (0x08, _) => {
                let name = if rest[0] == b'\\' { 5 } else { 4 };
                code = object(&rest[name..], found);
                continue;
            }
            (0x10, _) => (rest, true),
            (0x14, _) => {
                code = &rest[package(rest).1..];
                continue;
            }
            (0x5b, [0x82, rest @ ..]) => (rest, true),
            other => panic!("a term that begins with {other:x?}"),
        };
        let (lead, len) = package(block);
        let name = if name && block[lead] == b'\\' { 5 } else { 4 };
        terms(&block[lead + name..len], found);
        code = &block[len..];
    }
}

/// Bytes of a package's length (20.2.4), and the length, which counts them.
fn package(bytes: &[u8]) -> (usize, usize) {
    let more = usize::from(bytes[0] >> 6);
    if more == 0 {
        return (1, usize::from(bytes[0]));
    }
    let high = size(little(bytes, 1, more));
    (1 + more, high << 4 | usize::from(bytes[0] & 15))
}

/// Passes over a value.
fn object<'a>(code: &'a [u8], found: &mut Vec<(u64, u64)>) -> &'a [u8] {
    match code[0] {
        0 | 1 => &code[1..],
        0x0a => &code[2..],
        0x0b => &code[3..],
        0x0c => &code[5..],
        0x0d => &code[2 + code[1..].iter().position(|byte| *byte == 0).expect("text ends")..],
        0x11 => {
            let (lead, len) = package(&code[1..]);
            let body = &code[1 + lead..1 + len];
            let (count, bytes) = match body[0] {
                0x0a => (usize::from(body[1]), &body[2..]),
                0x0b => (size(little(body, 1, 2)), &body[3..]),
                small => (small.into(), &body[1..]),
            };
            assert_eq!(count, bytes.len(), "a buffer is as long as it says");
            resources(bytes, found);
            &code[1 + len..]
        }
        0x12 => {
            let (lead, len) = package(&code[1..]);
            let mut rest = &code[2 + lead..1 + len];
            for _ in 0..code[1 + lead] {
                rest = object(rest, found);
            }
            assert!(rest.is_empty(), "a package has as many values as it says");
            &code[1 + len..]
        }
        other => panic!("a value that begins with {other:#x}"),
    }
}

/// Resources of a device (6.4).
fn resources(mut bytes: &[u8], found: &mut Vec<(u64, u64)>) {
    let mut memory = None;
    loop {
        match bytes[0] {
            0x79 => break,
            0x47 => bytes = &bytes[8..],
            0x86 => {
                memory = Some(little(bytes, 4, 4));
                assert_eq!(little(bytes, 8, 4), 0x1000);
                bytes = &bytes[12..];
            }
            0x89 => {
                let line = little(bytes, 5, 4);
                found.extend(memory.map(|at| (at, line)));
                bytes = &bytes[9..];
            }
            other => panic!("a resource {other:#x}"),
        }
    }
    assert_eq!(bytes.len(), 2, "the end is the end");
}

/// The Devicetree Specification 0.4, chapter 5.
fn tree(ram: &GuestRam, loaded: &Loaded, request: &BootRequest<'_>) -> usize {
    let BootState::Arm64(state) = loaded.state else { panic!("{loaded:?}") };
    let big = |bytes: &[u8], at: usize| {
        size(u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes")).into())
    };
    let len = big(&read(ram, state.device_tree, 8), 4);
    let tree = read(ram, state.device_tree, len);
    let head: Vec<usize> = (0..10).map(|word| big(&tree, word * 4)).collect();
    assert_eq!((head[0], head[5], head[6]), (0xd00d_feed, 17, 16));
    let (structure, strings) = (&tree[head[2]..head[2] + head[9]], &tree[head[3]..head[3] + head[8]]);
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|byte| *byte == 0).expect("text ends");
        String::from_utf8(bytes[..end].to_vec()).expect("names are ASCII")
    };
    let (mut at, mut depth, mut cpus, mut devices, mut arguments) = (0, 0_usize, 0, Vec::new(), None);
    let (mut node, mut registers) = (String::new(), 0);
    loop {
        let token = big(structure, at);
        at += 4;
        match token {
            1 => {
                node = text(&structure[at..]);
                at += (node.len() + 1).next_multiple_of(4);
                depth += 1;
                cpus += u32::from(node.starts_with("cpu@"));
            }
            2 => depth = depth.checked_sub(1).expect("a node ends that began"),
            3 => {
                let (len, name) = (big(structure, at), text(&strings[big(structure, at + 4)..]));
                let value = &structure[at + 8..at + 8 + len];
                at += 8 + len.next_multiple_of(4);
                match name.as_str() {
                    "reg" if node.starts_with("virtio_mmio@") => {
                        registers = u64::from_be_bytes(value[..8].try_into().expect("8 bytes"));
                    }
                    "interrupts" if node.starts_with("virtio_mmio@") => {
                        devices.push((registers, u32::try_from(big(value, 4)).expect("32 bits")));
                    }
                    "bootargs" => arguments = Some(text(value)),
                    "linux,initrd-start" => assert!(loaded.initrd.is_some()),
                    _ => {}
                }
            }
            9 => break,
            other => panic!("a token {other}"),
        }
    }
    assert_eq!((depth, at), (0, structure.len()), "the tree ends where it says");
    assert_eq!(cpus, request.cpus);
    assert_eq!(arguments.as_deref(), Some(request.command_line.trim_end()));
    let wanted: Vec<_> = request.transports.iter().map(|slot| (slot.address, slot.line.number())).collect();
    assert_eq!(devices, wanted);
    devices.len()
}

/// A machine of each kind.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    vec![
        [&[0, 4, 0, 3, 5, 1][..], b"quiet"].concat(),
        [&[0x68, 4, 0, 40, 5, 2][..], b"console=ttyS0"].concat(),
        [&[0x6a, 0x2c, 1, 60, 5, 0][..], b""].concat(),
        [&[0x21, 8, 0, 9, 16, 1][..], b"quiet"].concat(),
        [&[0x41, 1, 0, 0, 16, 0][..], b""].concat(),
    ]
}
