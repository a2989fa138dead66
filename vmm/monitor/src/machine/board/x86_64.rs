//! The PC: a serial port, a CMOS clock, and every register by which a PC is reset or switched off,
//! at ports; an MP table or ACPI.

use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};

use super::{PlatformDevice, SerialPlan, now};
use crate::arch::Address;
use crate::arch::x86_64::{self, layout};
use crate::boot::{self, BootError, BootRequest, Loaded, MmioSlot};
use crate::bus::SharedDevice;
use crate::devices::i8042::{self, I8042};
use crate::devices::power::{self, AcpiPower, ResetRegister};
use crate::devices::rtc::{self, Rtc};
use crate::memory::GuestRam;

pub(super) const SERIAL: SerialPlan =
    SerialPlan { base: Address::Port(layout::COM1), line: layout::COM1_LINE };

/// The interrupt controllers' registers, which are the hypervisor's.
#[cfg(test)]
pub(super) const CONTROLLERS: [(u64, u64); 2] = [(layout::IO_APIC, 0x1000), (layout::LOCAL_APIC, 0x1000)];

pub(super) fn slot(index: u16) -> MmioSlot {
    MmioSlot {
        address: layout::VIRTIO_MMIO + u64::from(index) * layout::VIRTIO_STRIDE,
        line: x86_64::line(layout::VIRTIO_LINE + u32::from(index))
            .expect("a config has no more slots than a board has lines"),
    }
}

pub(super) fn platform_devices() -> Vec<PlatformDevice> {
    let devices: [(&'static str, u16, u64, SharedDevice); 5] = [
        ("rtc", rtc::PORT, rtc::PORTS, Arc::new(Mutex::new(Rtc::new(now)))),
        ("i8042", i8042::PORT, i8042::PORTS, Arc::new(Mutex::new(I8042::new()))),
        ("system_control", power::SYSTEM_CONTROL_A, 1, Arc::new(Mutex::new(ResetRegister::system_control()))),
        ("reset_control", power::RESET_CONTROL, 1, Arc::new(Mutex::new(ResetRegister::chipset()))),
        ("acpi_power", layout::ACPI_SLEEP_CONTROL, power::ACPI_PORTS, Arc::new(Mutex::new(AcpiPower))),
    ];
    let place = |(name, port, len, device)| PlatformDevice { name, base: Address::Port(port), len, device };
    devices.map(place).into()
}

pub(super) fn load(ram: &GuestRam, request: &BootRequest<'_>) -> Result<Loaded, BootError> {
    let loaded = boot::x86::load(ram, request)?;
    ram.memory()
        .write_slice(&layout::RESET_VECTOR_CODE, GuestAddress(layout::RESET_VECTOR))
        .map_err(|source| BootError::Memory { what: "reset vector", source })?;
    Ok(loaded)
}
