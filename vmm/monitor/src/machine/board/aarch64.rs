//! The Arm board: everything in memory, a PC's serial port and Arm's clock among it; power is the
//! firmware's, which the hypervisor plays (PSCI), and a device tree tells of it all.

use std::sync::{Arc, Mutex};

use super::{PlatformDevice, SerialPlan, now};
use crate::arch::Address;
use crate::arch::aarch64::{self, layout};
use crate::boot::MmioSlot;
use crate::devices::pl031::Pl031;

pub(super) const SERIAL: SerialPlan =
    SerialPlan { base: Address::Memory(layout::SERIAL), line: layout::SERIAL_LINE };

/// The interrupt controller's registers, which are the hypervisor's.
#[cfg(test)]
pub(super) fn controllers(cpus: u8) -> Vec<(u64, u64)> {
    let redistributors = u64::from(cpus) * layout::GIC_REDISTRIBUTOR_LEN;
    vec![(layout::GIC_DISTRIBUTOR, layout::GIC_DISTRIBUTOR_LEN), (layout::GIC_REDISTRIBUTOR, redistributors)]
}

pub(super) fn slot(index: u16) -> MmioSlot {
    MmioSlot {
        address: layout::VIRTIO_MMIO + u64::from(index) * layout::VIRTIO_STRIDE,
        line: aarch64::line(layout::VIRTIO_LINE + u32::from(index))
            .expect("a config has no more slots than a board has lines"),
    }
}

pub(super) fn platform_devices() -> Vec<PlatformDevice> {
    let clock = Arc::new(Mutex::new(Pl031::new(now)));
    vec![PlatformDevice {
        name: "pl031",
        base: Address::Memory(layout::RTC),
        len: layout::RTC_LEN,
        device: clock,
    }]
}
