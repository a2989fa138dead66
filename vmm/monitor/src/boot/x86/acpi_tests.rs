//! The tables read back as a kernel reads them, and compiled back by a judge that did not write
//! them.

use std::process::Command;

use super::*;

struct Table {
    signature: [u8; 4],
    bytes: Vec<u8>,
}

fn read(memory: &Memory, at: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

fn read_table(memory: &Memory, at: u64) -> Table {
    let len: u32 = memory.read_obj(GuestAddress(at + 4)).unwrap();
    let bytes = read(memory, at, len.into());
    assert_eq!(checksum(&bytes), 0);
    Table { signature: bytes[..4].try_into().unwrap(), bytes }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// RSDP → XSDT → FADT and MADT, FADT → DSDT.
fn tables(memory: &Memory, rsdp: u64) -> Vec<Table> {
    let pointer = read(memory, rsdp, 36);
    assert_eq!((&pointer[..8], pointer[15]), (b"RSD PTR ".as_slice(), 2));
    assert_eq!((checksum(&pointer[..20]), checksum(&pointer)), (0, 0));
    let xsdt = read_table(memory, u64_at(&pointer, 24));
    assert_eq!(&xsdt.signature, b"XSDT");
    let mut tables: Vec<Table> =
        xsdt.bytes[36..].chunks(8).map(|entry| read_table(memory, u64_at(entry, 0))).collect();
    let dsdt = read_table(memory, u64_at(&tables[0].bytes, 140));
    tables.push(dsdt);
    tables
}

fn sample(cpus: u32, devices: u32) -> Vec<Table> {
    let memory = Memory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    let transports: Vec<MmioSlot> = (0..devices)
        .map(|n| MmioSlot {
            address: layout::VIRTIO_MMIO + u64::from(n) * 0x1000,
            line: crate::arch::x86_64::line(5 + n).unwrap(),
        })
        .collect();
    let rsdp = write(&memory, cpus, &transports).unwrap();
    tables(&memory, rsdp)
}

#[test]
fn fixed_table_has_the_registers_of_reduced_hardware() {
    let tables = sample(1, 0);
    let fadt = &tables[0];
    assert_eq!((&fadt.signature, fadt.bytes.len(), fadt.bytes[8]), (b"FACP", 276, 6));
    let flags = u32::from_le_bytes(fadt.bytes[112..116].try_into().unwrap());
    assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
    for (at, port) in [(116, 0x602), (244, 0x600), (256, 0x601)] {
        assert_eq!(fadt.bytes[at], 1, "system I/O");
        assert_eq!(u64_at(&fadt.bytes, at + 4), port);
    }
    assert_eq!(fadt.bytes[128], 1);
}

#[test]
fn every_cpu_stands_in_the_interrupt_table() {
    for cpus in [1, 4, 32, 255, 256, 300] {
        let tables = sample(cpus, 0);
        let madt = &tables[1];
        assert_eq!(&madt.signature, b"APIC");
        let (mut ids, mut rest) = (Vec::new(), &madt.bytes[44..]);
        while !rest.is_empty() {
            let (entry, tail) = rest.split_at(rest[1].into());
            match entry[0] {
                0 => ids.push(u32::from(entry[3])),
                9 => ids.push(u32::from_le_bytes(entry[4..8].try_into().unwrap())),
                _ => {}
            }
            rest = tail;
        }
        assert_eq!(ids, (0..cpus).collect::<Vec<_>>());
    }
    let memory = Memory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    assert!(write(&memory, 0, &[]).is_err());
    assert!(write(&memory, CPUS_MAX + 1, &[]).is_err());
}

/// ACPICA's compiler, which Linux distributions pack as acpica-tools, reads the tables back.
#[test]
fn the_reference_compiler_takes_the_tables() {
    Command::new("iasl").arg("-v").output().expect("iasl judges these tables: install acpica-tools");
    let dir = tempfile::tempdir().unwrap();
    for table in sample(4, 19) {
        let name = String::from_utf8(table.signature.to_vec()).unwrap();
        std::fs::write(dir.path().join(format!("{name}.aml")), &table.bytes).unwrap();
        let out = Command::new("iasl")
            .args(["-d", &format!("{name}.aml")])
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
    }
    let source = std::fs::read_to_string(dir.path().join("DSDT.dsl")).unwrap();
    for line in [
        "EisaId (\"PNP0501\")",
        "0x03F8,             // Range Minimum",
        "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, )",
        "0xD0012000,         // Address Base",
        "\"LNRO0005\"",
        "Device (VR12)",
        "EisaId (\"PNP0C0C\")",
        "\"ACPI0013\"",
        "Method (_EVT, 1, Serialized)",
        "Notify (\\_SB.PWRB, 0x80)",
    ] {
        assert!(source.contains(line), "{line} is missing in:\n{source}");
    }
    let compiled = Command::new("iasl").args(["-we", "DSDT.dsl"]).current_dir(dir.path()).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stdout));
    let fadt = std::fs::read_to_string(dir.path().join("FACP.dsl")).unwrap();
    assert!(fadt.contains("Hardware Reduced (V5) : 1") && !fadt.contains("Error"), "{fadt}");
}
