//! The MP table (Intel MultiProcessor Specification 1.4): CPUs, one I/O APIC, its lines.

use vm_memory::{Bytes, GuestAddress};

use crate::arch::x86_64::layout;
use crate::boot::error::BootError;
use crate::memory::Memory;
use crate::sys::fits;

/// Most CPUs of an MP table: APIC ids have eight bits, 255 means all of them.
pub(super) const CPUS_MAX: u32 = 255;

const VERSION: u8 = 4;
const APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
const IO_APIC_ID: u8 = 0;
const ISA_BUS: u8 = 0;
const HEADER_LEN: usize = 44;
const ALL_CPUS: u8 = 0xff;
const INT: u8 = 0;
const NMI: u8 = 1;
/// CPUID.1.EAX that the table names for a CPU: family 6. Linux prints it, nothing more.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 0x201; // FPU, APIC

/// Writes the pointer at [`layout::MP_TABLE`] and the table it names at [`layout::MP_CONFIG`].
///
/// `cpus` is 1 to [`CPUS_MAX`]; ids count up from the boot CPU's 0. Each of the I/O APIC's `lines`
/// pins is the ISA line of its number, so edge-triggered and active high, as the bus defines it.
/// There is no PIC.
pub(super) fn write(memory: &Memory, cpus: u32, lines: u32) -> Result<(), BootError> {
    let error = |source| BootError::Memory { what: "MP table", source };
    memory.write_slice(&table(cpus, lines)?, GuestAddress(layout::MP_CONFIG)).map_err(error)?;
    memory.write_slice(&pointer(), GuestAddress(layout::MP_TABLE)).map_err(error)
}

/// The floating pointer structure.
fn pointer() -> Vec<u8> {
    let mut bytes = b"_MP_".to_vec();
    bytes.extend_from_slice(&layout::MP_CONFIG.to_le_bytes()[..4]);
    bytes.extend_from_slice(&[1, VERSION, 0, 0, 0, 0, 0, 0]); // in units of 16 bytes; checksum at 10
    bytes[10] = checksum(&bytes);
    bytes
}

fn table(cpus: u32, lines: u32) -> Result<Vec<u8>, BootError> {
    let ids = u8::try_from(cpus)
        .ok()
        .filter(|&ids| ids > 0)
        .ok_or_else(|| BootError::too_many("vCPUs", cpus.into(), CPUS_MAX.into()))?;
    let mut bytes = vec![0; HEADER_LEN];
    let mut entries: u16 = 0;
    let mut push = |entry: &[u8]| {
        bytes.extend_from_slice(entry);
        entries += 1;
    };
    for id in 0..ids {
        let flags = 1 | u8::from(id == 0) << 1; // enabled, boot processor
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[0, id, APIC_VERSION, flags]);
        entry[4..8].copy_from_slice(&CPU_SIGNATURE.to_le_bytes());
        entry[8..12].copy_from_slice(&CPU_FEATURES.to_le_bytes());
        push(&entry);
    }
    push(&[1, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a, b, c, d, ..] = layout::IO_APIC.to_le_bytes();
    push(&[2, IO_APIC_ID, IO_APIC_VERSION, 1, a, b, c, d]);
    let lines: u8 = fits(lines.min(layout::IO_APIC_PINS), "an I/O APIC has at most 120 lines");
    for line in 0..lines {
        push(&[3, INT, 0, 0, ISA_BUS, line, IO_APIC_ID, line]);
    }
    push(&[4, NMI, 0, 0, ISA_BUS, 0, ALL_CPUS, 1]);

    let len: u16 = fits(bytes.len(), "255 CPUs and 120 lines take less than 8 KiB");
    bytes[..4].copy_from_slice(b"PCMP");
    bytes[4..6].copy_from_slice(&len.to_le_bytes());
    bytes[6] = VERSION;
    bytes[8..16].copy_from_slice(b"NELLY   ");
    bytes[16..28].copy_from_slice(b"MICROVM     ");
    bytes[34..36].copy_from_slice(&entries.to_le_bytes());
    bytes[36..40].copy_from_slice(&layout::LOCAL_APIC.to_le_bytes()[..4]);
    bytes[7] = checksum(&bytes);
    Ok(bytes)
}

/// What makes the sum of all bytes zero.
pub(super) fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the table as the specification says, and gives entries by their type.
    fn parse(memory: &Memory) -> Vec<Vec<u8>> {
        let mut pointer = [0; 16];
        memory.read_slice(&mut pointer, GuestAddress(layout::MP_TABLE)).unwrap();
        assert_eq!((&pointer[..4], pointer[8], checksum(&pointer)), (b"_MP_".as_slice(), 1, 0));
        let at = u64::from(u32::from_le_bytes(pointer[4..8].try_into().unwrap()));
        let len: u16 = memory.read_obj(GuestAddress(at + 4)).unwrap();
        let mut table = vec![0; usize::from(len)];
        memory.read_slice(&mut table, GuestAddress(at)).unwrap();
        assert_eq!((&table[..4], checksum(&table)), (b"PCMP".as_slice(), 0));
        let count = u16::from_le_bytes(table[34..36].try_into().unwrap());
        let mut rest = &table[44..];
        let entries: Vec<_> = (0..count)
            .map(|_| {
                let (entry, tail) = rest.split_at(if rest[0] == 0 { 20 } else { 8 });
                rest = tail;
                entry.to_vec()
            })
            .collect();
        assert!(rest.is_empty());
        entries
    }

    #[test]
    fn tells_every_cpu_and_line() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        for cpus in [1_u8, 4, 32, 255] {
            write(&memory, cpus.into(), layout::IO_APIC_PINS).unwrap();
            let entries = parse(&memory);
            let of = |kind: u8| entries.iter().filter(move |entry| entry[0] == kind);
            let ids: Vec<u8> = of(0).map(|entry| entry[1]).collect();
            assert_eq!(ids, (0..cpus).collect::<Vec<_>>());
            assert_eq!(of(0).filter(|entry| entry[3] == 3).count(), 1, "one boot processor");
            assert_eq!(of(1).count(), 1);
            assert_eq!(of(2).map(|entry| entry[4..8].to_vec()).collect::<Vec<_>>(), [[0, 0, 0xc0, 0xfe]]);
            let lines: Vec<(u8, u8)> = of(3).map(|entry| (entry[5], entry[7])).collect();
            assert_eq!(lines, (0..120).map(|line| (line, line)).collect::<Vec<_>>());
            assert_eq!(of(4).map(|entry| entry[1]).collect::<Vec<_>>(), [NMI]);
        }
        assert!(write(&memory, 0, 24).is_err());
        assert!(write(&memory, 256, 24).is_err());
    }

    #[test]
    fn tells_as_many_lines_as_there_are() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        write(&memory, 1, 6).unwrap();
        assert_eq!(parse(&memory).iter().filter(|entry| entry[0] == 3).count(), 6);
    }
}
