//! What a machine will be, worked out of its config and its board alone: pure data, before anything
//! is opened, mapped or made.

use super::board::{Board, MemoryPlan, SerialPlan};
use super::threads::Work;
use crate::boot::MmioSlot;
use crate::config::{Endpoint, MachineConfig};
use crate::hv::IrqchipPlan;
use crate::sys::fits;

/// The plan of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) board: Board,
    pub(super) memory: MemoryPlan,
    pub(super) interrupts: IrqchipPlan,
    pub(super) serial: SerialPlan,
    /// The virtio slots, by number.
    pub(super) slots: Vec<SlotPlan>,
    /// Slots of disks with more threads than one, and how many more.
    pub(super) helpers: Vec<(u16, u8)>,
}

/// One virtio slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotPlan {
    pub(super) number: u16,
    pub(super) mmio: MmioSlot,
    pub(super) device: SlotDevice,
}

/// What a slot has from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotDevice {
    /// The disk of this number in the config.
    Disk(usize),
    Rng,
    Console,
    Vsock,
    /// The network of this number in the config.
    Network(usize),
    /// The shared directory of this number in the config.
    Share(usize),
    /// The memory that is plugged in later.
    Memory,
    /// What takes memory back that the guest does not need.
    Balloon,
    /// A disk, once one is attached.
    Nothing,
}

impl Plan {
    /// A machine of this config on the board of this host's guests.
    pub(super) fn of(config: &MachineConfig) -> Self {
        Self::on(Board::NATIVE, config)
    }

    fn on(board: Board, config: &MachineConfig) -> Self {
        let mut devices: Vec<SlotDevice> = (0..config.disks.len()).map(SlotDevice::Disk).collect();
        for (wanted, what) in [
            (config.rng, SlotDevice::Rng),
            (config.console != Endpoint::None, SlotDevice::Console),
            (config.vsock.is_some(), SlotDevice::Vsock),
        ] {
            devices.extend(wanted.then_some(what));
        }
        devices.extend((0..config.networks.len()).map(SlotDevice::Network));
        devices.extend((0..config.shares.len()).map(SlotDevice::Share));
        // Memory comes last of all devices, so that every other one is where it is without it, and
        // the balloon comes last of all.
        devices.extend((config.hotplug_bytes.get() > 0).then_some(SlotDevice::Memory));
        devices.extend(config.give_back.then_some(SlotDevice::Balloon));
        devices.extend((0..config.spare_slots).map(|_| SlotDevice::Nothing));
        let slot = |(number, device)| SlotPlan { number, mmio: board.slot(number), device };
        let slots: Vec<_> = (0..).zip(devices).map(slot).collect();
        // Disks come first.
        let more = (0..).zip(&config.disks).map(|(slot, disk)| (slot, disk.threads.get() - 1));
        let mmio_slots: Vec<_> = slots.iter().map(|slot| slot.mmio).collect();
        Self {
            board,
            memory: board.memory(config.memory_bytes.get(), config.hotplug_bytes.get()),
            interrupts: board.interrupts(config.cpus.get(), &mmio_slots),
            serial: board.serial(),
            slots,
            helpers: more.filter(|(_, more)| *more > 0).collect(),
        }
    }

    /// What the guest is told of the slots.
    pub(super) fn transports(&self) -> Vec<MmioSlot> {
        self.slots.iter().map(|slot| slot.mmio).collect()
    }

    /// The slots whose devices have a thread for their worker: those of disks, networks and shared
    /// directories, and those with room for a disk.
    pub(super) fn threaded(&self) -> impl Iterator<Item = (u16, Work)> {
        self.slots.iter().filter_map(|slot| {
            let work = match slot.device {
                SlotDevice::Disk(_) | SlotDevice::Nothing => Work::Disk,
                SlotDevice::Network(_) => Work::Network,
                SlotDevice::Share(_) => Work::Share,
                SlotDevice::Rng
                | SlotDevice::Console
                | SlotDevice::Vsock
                | SlotDevice::Memory
                | SlotDevice::Balloon => return None,
            };
            Some((slot.number, work))
        })
    }

    /// Threads that serve devices: those of workers, and those beside them.
    pub(super) fn device_threads(&self) -> usize {
        self.threaded().count() + self.helpers.iter().map(|(_, more)| usize::from(*more)).sum::<usize>()
    }

    /// vCPUs.
    pub(super) fn cpus(&self) -> u32 {
        fits(self.interrupts.vcpus, "vCPUs are counted in eight bits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        CpuCount, DiskConfig, DiskId, DiskThreads, FileSource, HotplugSize, MacAddress, MemorySize,
        NetworkConfig, NetworkId, NetworkLink, ShareConfig, ShareTag, VsockConfig,
    };

    fn disk(id: &str) -> DiskConfig {
        DiskConfig::new(DiskId::new(id).unwrap(), FileSource::Fd(0), false)
    }

    #[test]
    fn devices_have_their_slots_in_one_order_whatever_else_there_is() {
        let plain = MachineConfig::new(FileSource::Fd(0));
        let plan = Plan::of(&plain);
        assert_eq!((plan.slots.len(), plan.memory.hotplug), (0, None));

        let mut config = plain.clone();
        config.memory_bytes = MemorySize::new(64 << 20).unwrap();
        config.hotplug_bytes = HotplugSize::new(256 << 20).unwrap();
        config.give_back = true;
        config.cpus = CpuCount::new(3).unwrap();
        config.disks = vec![disk("a"), disk("b")];
        config.disks[1].threads = DiskThreads::new(4).unwrap();
        (config.rng, config.console, config.vsock) = (true, Endpoint::Stream, Some(VsockConfig::default()));
        let network = |id: &str| {
            let (mac, id) = (MacAddress::from_seed(id), NetworkId::new(id).unwrap());
            NetworkConfig::new(id, mac, NetworkLink::None)
        };
        config.networks = vec![network("a"), network("b")];
        config.shares = vec![ShareConfig::new(ShareTag::new("s").unwrap(), FileSource::Fd(0), false)];
        config.spare_slots = 2;
        let plan = Plan::of(&config);
        let devices: Vec<_> = plan.slots.iter().map(|slot| slot.device).collect();
        use SlotDevice::{Balloon, Console, Disk, Memory, Network, Nothing, Rng, Share, Vsock};
        assert_eq!(
            devices,
            [
                Disk(0),
                Disk(1),
                Rng,
                Console,
                Vsock,
                Network(0),
                Network(1),
                Share(0),
                Memory,
                Balloon,
                Nothing,
                Nothing
            ]
        );
        let (disk, network, share) = (Work::Disk, Work::Network, Work::Share);
        let threaded = [(0, disk), (1, disk), (5, network), (6, network), (7, share), (10, disk), (11, disk)];
        assert_eq!(plan.threaded().collect::<Vec<_>>(), threaded);
        assert_eq!((plan.helpers.as_slice(), plan.device_threads()), (&[(1, 3)][..], 10));
        assert_eq!(plan.slots.len(), config.virtio_devices());
        assert_eq!((plan.cpus(), plan.interrupts.vcpus), (3, 3));
        for (number, slot) in (0..).zip(&plan.slots) {
            assert_eq!((slot.number, slot.mmio), (number, plan.board.slot(number)));
        }
        // The guest need not set up lines that nothing uses.
        let last = plan.slots.iter().map(|slot| slot.mmio.line).max().unwrap();
        assert_eq!(plan.interrupts.lines, last.number() + 1);
        let (at, len) = plan.memory.hotplug.unwrap();
        let behind = plan.memory.ranges.iter().map(|(start, len)| start + len).max().unwrap();
        assert!(at >= behind && len == 256 << 20);
    }
}
