//! What a machine's board is: the address map, the plan of its interrupt lines, the devices that
//! every machine of the architecture has, and how its guest is told. One room an architecture, all
//! compiled everywhere, so that every one of them is tested everywhere.

mod aarch64;
mod x86_64;

use std::time::SystemTime;

use crate::arch::{Address, Architecture, InterruptLine};
use crate::boot::{BootError, BootRequest, Loaded, MmioSlot};
use crate::bus::SharedDevice;
use crate::hv::IrqchipPlan;
use crate::memory::GuestRam;

/// The board of an architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Board(Architecture);

/// Where memory lies: first byte and length of each range, by rising address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MemoryPlan {
    /// There from the start.
    pub(super) ranges: Vec<(u64, u64)>,
    /// Plugged in later.
    pub(super) hotplug: Option<(u64, u64)>,
}

/// Where the serial port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SerialPlan {
    pub(super) base: Address,
    pub(super) line: InterruptLine,
}

/// A device of the board, and the addresses it answers at.
pub(super) struct PlatformDevice {
    /// Of its state, among those of the board.
    pub(super) name: &'static str,
    pub(super) base: Address,
    pub(super) len: u64,
    pub(super) device: SharedDevice,
}

impl Board {
    /// That of this host's guests.
    pub(super) const NATIVE: Self = Self(Architecture::NATIVE);

    /// The architecture's name.
    pub(super) fn architecture(self) -> &'static str {
        match self.0 {
            Architecture::X86_64 => "x86_64",
            Architecture::Aarch64 => "aarch64",
        }
    }

    /// Where `size` bytes lie, and `hotplug` more that are plugged in later.
    pub(super) fn memory(self, size: u64, hotplug: u64) -> MemoryPlan {
        let (ranges, start) = match self.0 {
            Architecture::X86_64 => {
                let start = crate::arch::x86_64::hotplug_start(size, hotplug);
                (crate::arch::x86_64::ram_ranges(size), start)
            }
            Architecture::Aarch64 => {
                let start = crate::arch::aarch64::hotplug_start(size, hotplug);
                (crate::arch::aarch64::ram_ranges(size), start)
            }
        };
        MemoryPlan { ranges, hotplug: (hotplug > 0).then_some((start, hotplug)) }
    }

    /// Place and line of virtio slot `index`. A config has no more slots than a board has places.
    pub(super) fn slot(self, index: u16) -> MmioSlot {
        match self.0 {
            Architecture::X86_64 => x86_64::slot(index),
            Architecture::Aarch64 => aarch64::slot(index),
        }
    }

    /// Bytes of a virtio slot's registers.
    pub(super) fn slot_len(self) -> u64 {
        match self.0 {
            Architecture::X86_64 => crate::arch::x86_64::layout::VIRTIO_STRIDE,
            Architecture::Aarch64 => crate::arch::aarch64::layout::VIRTIO_STRIDE,
        }
    }

    pub(super) fn serial(self) -> SerialPlan {
        match self.0 {
            Architecture::X86_64 => x86_64::SERIAL,
            Architecture::Aarch64 => aarch64::SERIAL,
        }
    }

    /// The line of the power button, where a guest that reads ACPI is told of one.
    pub(super) fn power_button(self) -> Option<InterruptLine> {
        match self.0 {
            Architecture::X86_64 => Some(crate::arch::x86_64::layout::POWER_BUTTON_LINE),
            Architecture::Aarch64 => None,
        }
    }

    /// The interrupt controllers of a machine with so many vCPUs and these slots: as many lines as
    /// are used, for a guest sets each up. Measured: neither our kernel nor a stock one misses a
    /// legacy timer, a boot is as fast, and a machine ends 12 to 19 ms sooner.
    pub(super) fn interrupts(self, vcpus: u8, slots: &[MmioSlot]) -> IrqchipPlan {
        let lines =
            slots.iter().map(|slot| slot.line).fold(self.serial().line, InterruptLine::max).number() + 1;
        IrqchipPlan { vcpus, legacy_timer: false, lines }
    }

    /// What every machine has beside its serial port.
    pub(super) fn platform_devices(self) -> Vec<PlatformDevice> {
        match self.0 {
            Architecture::X86_64 => x86_64::platform_devices(),
            Architecture::Aarch64 => aarch64::platform_devices(),
        }
    }

    /// Loads the kernel and everything that tells the guest of this board.
    pub(super) fn load(self, ram: &GuestRam, request: &BootRequest<'_>) -> Result<Loaded, BootError> {
        match self.0 {
            Architecture::X86_64 => x86_64::load(ram, request),
            Architecture::Aarch64 => crate::boot::arm64::load(ram, request),
        }
    }
}

/// Seconds since 1970, for the clock.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MAX_VIRTIO_DEVICES, MemorySize};
    use crate::devices::serial::REGISTERS;

    const BOARDS: [Board; 2] = [Board(Architecture::X86_64), Board(Architecture::Aarch64)];

    /// What is at guest physical addresses, and at ports; interrupt controllers too, which the
    /// hypervisor has.
    fn map(board: Board, size: u64, hotplug: u64) -> [Vec<(u64, u64)>; 2] {
        let memory = board.memory(size, hotplug);
        let mut found: Vec<(Address, u64)> = memory
            .ranges
            .iter()
            .chain(&memory.hotplug)
            .map(|&(at, len)| (Address::Memory(at), len))
            .collect();
        let count = u16::try_from(MAX_VIRTIO_DEVICES).unwrap();
        found.extend((0..count).map(|n| (Address::Memory(board.slot(n).address), board.slot_len())));
        found.push((board.serial().base, REGISTERS));
        found.extend(board.platform_devices().iter().map(|device| (device.base, device.len)));
        let controllers = match board.0 {
            Architecture::X86_64 => x86_64::CONTROLLERS.to_vec(),
            Architecture::Aarch64 => aarch64::controllers(crate::config::CpuCount::MAX),
        };
        found.extend(controllers.iter().map(|&(at, len)| (Address::Memory(at), len)));
        let (mut memory, mut ports) = (Vec::new(), Vec::new());
        for (address, len) in found {
            match address {
                Address::Memory(at) => memory.push((at, len)),
                Address::Port(at) => ports.push((u64::from(at), len)),
            }
        }
        [memory, ports]
    }

    #[test]
    fn nothing_of_a_board_overlaps() {
        let gib = 1 << 30;
        let sizes = [
            (MemorySize::MIN, 0),
            (128 << 20, 256 << 20),
            (3 * gib, gib),
            (3 * gib + (256 << 20), 0),
            (64 * gib, gib),
            (MemorySize::MAX, 0),
        ];
        for board in BOARDS {
            for (size, hotplug) in sizes {
                let plan = board.memory(size, hotplug);
                assert_eq!(plan.ranges.iter().map(|(_, len)| len).sum::<u64>(), size, "{board:?}");
                for mut ranges in map(board, size, hotplug) {
                    ranges.sort_unstable();
                    for pair in ranges.windows(2) {
                        assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{board:?} with {size:#x}: {pair:x?}");
                    }
                }
            }
        }
    }

    #[test]
    fn each_device_has_a_line_of_its_own() {
        for board in BOARDS {
            let slots: Vec<_> =
                (0..u16::try_from(MAX_VIRTIO_DEVICES).unwrap()).map(|n| board.slot(n)).collect();
            let mut lines: Vec<_> = slots.iter().map(|slot| slot.line).chain([board.serial().line]).collect();
            lines.extend(board.power_button());
            let all = lines.len();
            lines.sort_unstable();
            let highest = lines[lines.len() - 1];
            lines.dedup();
            assert_eq!(lines.len(), all, "{board:?}");
            // A machine without any slot has the button's line, too.
            assert!(board.power_button().is_none_or(|line| line < board.serial().line), "{board:?}");
            for (used, lines) in [(&slots[..0], board.serial().line), (&slots[..], highest)] {
                let plan = board.interrupts(3, used);
                assert_eq!((plan.vcpus, plan.lines), (3, lines.number() + 1), "{board:?}");
            }
        }
    }
}
