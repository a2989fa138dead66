//! ACPI with reduced hardware (ACPI 6.5, 3.11.1 and 4.1) for stock kernels: RSDP, XSDT, FADT, MADT,
//! DSDT.
//!
//! There is no PIC, no PM timer, no system control interrupt: the machine is switched off by the
//! sleep control register and reset by the reset register. The power button is a device, and a
//! generic event device (5.6.9) tells of it by a line of its own. COM1 stands in the DSDT, since
//! without legacy lines a kernel finds no interrupt for it otherwise.

use vm_memory::{Bytes, GuestAddress};

use super::aml;
use super::mptable::checksum;
use crate::arch::x86_64::layout;
use crate::boot::MmioSlot;
use crate::boot::error::BootError;
use crate::memory::Memory;
use crate::sys::fits;

/// Most CPUs that the tables' range has room for.
pub(super) const CPUS_MAX: u32 = 1024;

const HEADER_LEN: usize = 36;
const FADT_LEN: usize = 276;
const WBINVD: u32 = 1;
const POWER_BUTTON_IS_A_DEVICE: u32 = 1 << 4;
const SLEEP_BUTTON_IS_A_DEVICE: u32 = 1 << 5;
const RESET_REGISTER: u32 = 1 << 10;
const HARDWARE_REDUCED: u32 = 1 << 20;
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;

/// Writes the tables from [`layout::RSDP`] on, whose address it returns. `cpus` is 1 to
/// [`CPUS_MAX`], their APIC ids count from 0.
pub(super) fn write(memory: &Memory, cpus: u32, transports: &[MmioSlot]) -> Result<u64, BootError> {
    if !(1..=CPUS_MAX).contains(&cpus) {
        return Err(BootError::too_many("vCPUs", cpus.into(), CPUS_MAX.into()));
    }
    let mut place = Placer { memory, next: layout::RSDP + 48 };
    let dsdt = place.put(&table(*b"DSDT", 2, &dsdt_body(transports)?))?;
    let fadt = place.put(&fadt(dsdt))?;
    let madt = place.put(&table(*b"APIC", 5, &madt_body(cpus)))?;
    let pointers: Vec<u8> = [fadt, madt].iter().flat_map(|address| address.to_le_bytes()).collect();
    let xsdt = place.put(&table(*b"XSDT", 1, &pointers))?;
    place.next = layout::RSDP;
    place.put(&rsdp(xsdt))
}

struct Placer<'a> {
    memory: &'a Memory,
    next: u64,
}

impl Placer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<u64, BootError> {
        let at = self.next;
        let end = at + bytes.len() as u64;
        if end > layout::PLATFORM_TABLES_END {
            let limit = layout::PLATFORM_TABLES_END - layout::RSDP;
            return Err(BootError::too_many("bytes of ACPI tables", end - layout::RSDP, limit));
        }
        self.memory
            .write_slice(bytes, GuestAddress(at))
            .map_err(|source| BootError::Memory { what: "ACPI tables", source })?;
        self.next = end.next_multiple_of(16);
        Ok(at)
    }
}

fn rsdp(xsdt: u64) -> Vec<u8> {
    let mut bytes = b"RSD PTR \0NELLY \x02\0\0\0\0".to_vec(); // revision 2; no RSDT
    bytes[8] = checksum(&bytes);
    bytes.extend_from_slice(&36_u32.to_le_bytes());
    bytes.extend_from_slice(&xsdt.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]); // checksum of all, reserved
    bytes[32] = checksum(&bytes);
    bytes
}

fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = signature.to_vec();
    let len: u32 = fits(HEADER_LEN + body.len(), "no table lists more than 1024 CPUs or 256 devices");
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&[revision, 0]);
    bytes.extend_from_slice(b"NELLY MICROVM ");
    bytes.extend_from_slice(&1_u32.to_le_bytes());
    bytes.extend_from_slice(b"NLLY");
    bytes.extend_from_slice(&1_u32.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes[9] = checksum(&bytes);
    bytes
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let mut body = vec![0; FADT_LEN - HEADER_LEN];
    // Offsets of the specification's table 5.9 count the header.
    let mut put = |at: usize, bytes: &[u8]| body[at - HEADER_LEN..][..bytes.len()].copy_from_slice(bytes);
    let flags =
        WBINVD | POWER_BUTTON_IS_A_DEVICE | SLEEP_BUTTON_IS_A_DEVICE | RESET_REGISTER | HARDWARE_REDUCED;
    put(40, &dsdt.to_le_bytes()[..4]);
    put(109, &(NO_VGA | NO_CMOS_CLOCK).to_le_bytes());
    put(112, &flags.to_le_bytes());
    put(116, &port_register(layout::ACPI_RESET));
    put(128, &[layout::ACPI_RESET_VALUE]);
    put(131, &[5]); // minor revision
    put(140, &dsdt.to_le_bytes());
    put(244, &port_register(layout::ACPI_SLEEP_CONTROL));
    put(256, &port_register(layout::ACPI_SLEEP_STATUS));
    put(268, b"NELLY\0\0\0");
    table(*b"FACP", 6, &body)
}

/// A generic address: one byte of system I/O.
fn port_register(port: u16) -> [u8; 12] {
    let [low, high] = port.to_le_bytes();
    [1, 8, 0, 1, low, high, 0, 0, 0, 0, 0, 0]
}

fn madt_body(cpus: u32) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&layout::LOCAL_APIC.to_le_bytes()[..4]);
    body.extend_from_slice(&[0; 4]); // no PIC
    for id in 0..cpus {
        match u8::try_from(id) {
            Ok(short) if short < 255 => body.extend_from_slice(&[0, 8, short, short, 1, 0, 0, 0]),
            _ => {
                body.extend_from_slice(&[9, 16, 0, 0]);
                for word in [id, 1, id] {
                    body.extend_from_slice(&word.to_le_bytes());
                }
            }
        }
    }
    body.extend_from_slice(&[1, 12, 0, 0]);
    body.extend_from_slice(&layout::IO_APIC.to_le_bytes()[..4]);
    body.extend_from_slice(&[0; 4]); // first line
    // LINT1 of every CPU is NMI.
    body.extend_from_slice(&[4, 6, 0xff, 0, 0, 1]);
    body
}

fn dsdt_body(transports: &[MmioSlot]) -> Result<Vec<u8>, BootError> {
    let com1 = [
        aml::name("_HID", &aml::eisa_id(b"PNP0501")),
        aml::name("_UID", &aml::integer(1)),
        aml::name(
            "_CRS",
            &aml::resources(&[aml::io(layout::COM1, 8), aml::edge_interrupt(layout::COM1_LINE.number())]),
        ),
    ];
    let mut devices = aml::device("COM1", &com1.concat());
    for (index, transport) in transports.iter().enumerate() {
        let too_many = || BootError::too_many("devices", transports.len() as u64, 256);
        let number = u8::try_from(index).map_err(|_| too_many())?;
        let address = fits(transport.address, "transports above 4 GiB were refused");
        let len = fits(layout::VIRTIO_STRIDE, "transports lie below 4 GiB");
        let body = [
            aml::name("_HID", &aml::string("LNRO0005")),
            aml::name("_UID", &aml::integer(number.into())),
            aml::name("_CCA", &aml::integer(1)),
            aml::name(
                "_CRS",
                &aml::resources(&[aml::memory32(address, len), aml::edge_interrupt(transport.line.number())]),
            ),
        ];
        devices.extend(aml::device(&format!("VR{number:02X}"), &body.concat()));
    }
    devices.extend(power_button());
    let off = aml::integer(layout::ACPI_SLEEP_TYPE_S5.into());
    let zero = aml::integer(0);
    let s5 = aml::package(&[off, zero.clone(), zero.clone(), zero]);
    Ok([aml::name("\\_S5_", &s5), aml::scope("\\_SB_", &devices)].concat())
}

/// The power button (ACPI 6.5, 4.8.2.2.1.2), and the device whose interrupt says that it was
/// pressed.
fn power_button() -> Vec<u8> {
    /// S0 power button pressed (ACPI 6.5, table 5.169).
    const PRESSED: u8 = 0x80;
    let button = [aml::name("_HID", &aml::eisa_id(b"PNP0C0C")), aml::name("_UID", &aml::integer(0))];
    let line = aml::edge_interrupt(layout::POWER_BUTTON_LINE.number());
    let events = [
        aml::name("_HID", &aml::string("ACPI0013")),
        aml::name("_UID", &aml::integer(0)),
        aml::name("_CRS", &aml::resources(&[line])),
        aml::method_of_one("_EVT", &aml::notify("_SB_", "PWRB", PRESSED)),
    ];
    [aml::device("PWRB", &button.concat()), aml::device("GED0", &events.concat())].concat()
}

#[cfg(test)]
#[path = "acpi_tests.rs"]
mod tests;
