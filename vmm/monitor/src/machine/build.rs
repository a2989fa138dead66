//! From a plan to what it plans: memory mapped, devices made and put where they belong. No
//! guest runs here; the threads of workers are made, and wait.
//!
//! Order: memory and its slots, then interrupt controllers, then devices with their lines and
//! doorbells. Memory that is registered after the controllers costs the host a grace period.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use nelly_disk::{ChainFile, Concat, Disk, DiskError, ImageError, RawDisk, ReadOnly, disk_of_chain};

use super::assemble::{AssembleError, Assembly, SLOT_CONSOLE, SLOT_SERIAL};
use super::console::Pump;
use super::console::SerialLine;
use super::files::{FileError, Files};
use super::mailbox::Message;
use super::output::Output;
use super::plan::{Plan, SlotDevice};
use super::workers::WorkerThreads;
use crate::arch::{Address, Nested};
use crate::boot::MmioSlot;
use crate::bus::{Buses, SharedDevice};
use crate::config::{
    DiskConfig, DiskFormat, Endpoint, FileSource, NetworkConfig, PART_ALIGNMENT, ShareConfig,
};
use crate::devices::serial::{self, Serial};
use crate::hv::{Hypervisor, Vm};
use crate::memory::{Backing, GuestRam};
use crate::sys;
use crate::timeline::name;
use crate::virtio::balloon::{Balloon, BalloonView};
use crate::virtio::blk::{Block, BlockControl, Crew};
use crate::virtio::console::{Console, Ends};
use crate::virtio::device::Device;
use crate::virtio::fs::{FileSystem, SharedTree};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::mem::{MemoryControl, MemoryDevice};
use crate::virtio::net::{Network, NetworkView};
use crate::virtio::rng::Rng;
use crate::virtio::spec::id;
use crate::virtio::tally::Fault;
use crate::virtio::transport::{MmioTransport, Transport};
use crate::virtio::vsock::{Vsock, VsockControl};

/// An empty machine: its memory, and a virtual machine that has it.
pub(super) struct VmWithMemory<V> {
    pub(super) ram: GuestRam,
    pub(super) vm: Arc<V>,
}

/// A machine that has all its devices and no vCPU.
pub(super) struct VmWithDevices {
    pub(super) buses: Buses,
    /// Those of the board and the serial port, by the names of their state.
    pub(super) board: Vec<(&'static str, SharedDevice)>,
    pub(super) transports: Vec<Arc<Mutex<MmioTransport>>>,
    /// Those of the slots, with what the slots count.
    pub(super) interrupts: Vec<Interrupt>,
    pub(super) pumps: Vec<Pump>,
    pub(super) vsock: Option<VsockControl>,
    /// The networks, by slot.
    pub(super) networks: BTreeMap<u16, NetworkView>,
    /// The disks, by slot.
    pub(super) disks: BTreeMap<u16, BlockControl>,
    pub(super) memory: Option<MemoryControl>,
    pub(super) balloon: Option<BalloonView>,
    pub(super) host: Arc<WorkerThreads>,
}

impl<H: Hypervisor> Assembly<'_, H> {
    /// Memory, and a virtual machine that has it.
    pub(super) fn create_vm(&self, plan: &Plan) -> Result<VmWithMemory<H::Vm>, AssembleError> {
        // A file only where somebody is to have it: its pages are small ones.
        let is_shared = self.config.networks.iter().any(NetworkConfig::shares_memory);
        let backing = if is_shared { Backing::SharedFile } else { Backing::Anonymous };
        let ram = GuestRam::laid_out(&plan.memory.ranges, plan.memory.hotplug, backing)?;
        let nested = if self.config.nested { Nested::Shown } else { Nested::Hidden };
        let vm = Arc::new(self.hypervisor.create_vm(nested)?);
        for slot in ram.slots() {
            vm.map(slot)?;
        }
        self.recorder.stamp(name::MEMORY_MAPPED);
        Ok(VmWithMemory { ram, vm })
    }

    /// Interrupt controllers and devices.
    pub(super) fn create_devices(
        &self,
        plan: &Plan,
        bare: &VmWithMemory<H::Vm>,
        devices: Devices,
    ) -> Result<VmWithDevices, AssembleError> {
        let VmWithMemory { ram, vm } = bare;
        vm.create_irqchip(plan.interrupts)?;
        self.recorder.stamp(name::VM_CREATED);

        let Devices { virtio, mut pumps, serial_line, vsock, networks, disks, crews } = devices;
        let mut buses = Buses::default();
        let mut board = Vec::new();
        for platform in plan.board.platform_devices() {
            board.push((platform.name, platform.device.clone()));
            buses.insert(platform.base, platform.len, platform.device)?;
        }
        let port = Arc::new(Mutex::new(Serial::new(serial_line, vm.irq_line(plan.serial.line)?)));
        for pump in &mut pumps {
            pump.set_port(&port);
        }
        board.push(("serial", port.clone()));
        buses.insert(plan.serial.base, serial::REGISTERS, port)?;

        let host =
            WorkerThreads::new(self.mailbox.clone(), self.confiner, plan.threaded()).map_err(no_thread)?;
        let host = Arc::new(host);
        for (slot, crew, count) in crews {
            host.add_crew(slot, crew, count).map_err(no_thread)?;
        }
        let (mut transports, mut interrupts) = (Vec::new(), Vec::new());
        let (mut memory, mut balloon) = (None, None);
        for (slot, device) in plan.slots.iter().zip(virtio) {
            let (number, mailbox) = (slot.number, self.mailbox.clone());
            let told = move |fault: &Fault| mailbox.post(Message::Fault(number, fault.clone()));
            let interrupt = Interrupt::telling(vm.irq_line(slot.mmio.line)?, Box::new(told));
            interrupts.push(interrupt.clone());
            let mut transport = Transport::new(number, ram.memory().clone(), interrupt, host.clone());
            let device = match (slot.device, ram.hotplug_slot()) {
                (SlotDevice::Memory, Some(memory_slot)) => {
                    let (device, control) = MemoryDevice::new(memory_slot.clone());
                    memory = Some(control);
                    Some(Box::new(device) as Box<dyn Device>)
                }
                (SlotDevice::Balloon, _) => {
                    let (device, view) = Balloon::new(ram.slots());
                    balloon = Some(view);
                    Some(Box::new(device) as Box<dyn Device>)
                }
                _ => device,
            };
            if let Some(device) = device {
                transport.attach(device)?;
            }
            let transport = MmioTransport(transport);
            offer(&**vm, slot.mmio, &transport, 0);
            let transport = Arc::new(Mutex::new(transport));
            let base = Address::Memory(slot.mmio.address);
            buses.insert(base, plan.board.slot_len(), transport.clone())?;
            transports.push(transport);
        }
        self.recorder.stamp(name::DEVICES_READY);
        Ok(VmWithDevices {
            buses,
            board,
            transports,
            interrupts,
            pumps,
            vsock,
            networks,
            disks,
            memory,
            balloon,
            host,
        })
    }
}

/// Offers the hypervisor the short cut for every queue but the first `known`, of which it has
/// heard. What it declines arrives as an exit.
pub(super) fn offer<V: Vm>(vm: &V, mmio: MmioSlot, transport: &MmioTransport, known: usize) {
    for (offset, queue, bell) in transport.doorbells().skip(known) {
        let _short_cut = vm.offer_doorbell(Address::Memory(mmio.address + offset), queue, 4, bell);
    }
}

/// Opens a disk over its files, and puts a device before it.
pub(super) fn block(disk: &DiskConfig, field: &str, files: &Files) -> Result<Block, AssembleError> {
    let id = disk.id.as_str();
    let unusable = |source| AssembleError::Disk { id: id.to_owned(), source };
    let opened = if disk.followed_by.is_empty() {
        let mut chain = vec![chain_file(files, field, &disk.source, disk.format)?];
        for (index, below) in disk.backing.iter().enumerate() {
            chain.push(chain_file(files, &format!("{field}.backing[{index}]"), &below.source, below.format)?);
        }
        disk_of_chain(chain, disk.read_only).map_err(unusable)?
    } else {
        one_after_another(disk, field, files)?
    };
    let block = Block::new(opened, id).with_sectors(disk.sector_bytes);
    let block = block.map_err(|source| AssembleError::Sectors { id: id.to_owned(), source })?;
    Ok(block.with_limits(disk.limits))
}

fn chain_file(
    files: &Files,
    field: &str,
    source: &FileSource,
    format: DiskFormat,
) -> Result<ChainFile, AssembleError> {
    Ok(ChainFile { file: files.get(field, source)?, format: format.into(), name: files.name(source) })
}

/// The disk of several files.
fn one_after_another(disk: &DiskConfig, field: &str, files: &Files) -> Result<Box<dyn Disk>, AssembleError> {
    let unusable = |path: &str, source| {
        let source = ImageError::File { path: path.to_owned(), source };
        AssembleError::Disk { id: disk.id.as_str().to_owned(), source }
    };
    let whole = "the disk of several files";
    let mut parts = Concat::builder(PART_ALIGNMENT).map_err(|error| unusable(whole, error.into()))?;
    let fields = (0..disk.followed_by.len()).map(|index| format!("{field}.followed_by[{index}]"));
    let sources = [&disk.source].into_iter().chain(&disk.followed_by);
    for (field, source) in [field.to_owned()].into_iter().chain(fields).zip(sources) {
        let name = files.name(source);
        let part = RawDisk::new(files.get(&field, source)?, true).map_err(|error| unusable(&name, error))?;
        parts.part(Box::new(part)).map_err(|error| unusable(&name, error.into()))?;
    }
    let disk = ReadOnly::new(parts.build()).map_err(|error| unusable(whole, DiskError::TooLarge(error)))?;
    Ok(Box::new(disk))
}

fn network(
    network: &NetworkConfig,
    index: usize,
    files: &Files,
) -> Result<(Network, NetworkView), AssembleError> {
    let mut copy = network.clone();
    let descriptors = copy.files(&format!("networks[{index}].link")).into_iter();
    let descriptors = descriptors.map(|(field, _, source)| Ok(files.get(&field, source)?.into()));
    let descriptors = descriptors.collect::<Result<_, FileError>>()?;
    Network::new(network, descriptors)
        .map_err(|source| AssembleError::Network { id: network.id.as_str().to_owned(), source })
}

fn share(share: &ShareConfig, index: usize, files: &Files) -> Result<Box<dyn Device>, AssembleError> {
    let shared = files.get(&format!("shares[{index}].source"), &share.source)?;
    let tag = share.tag.as_str();
    let server = SharedTree::new(shared, share.read_only, share.host_locks)
        .map_err(|source| AssembleError::Share { tag: tag.to_owned(), source })?;
    Ok(Box::new(FileSystem::new(Arc::new(server), tag, share.read_only)))
}

/// The devices of a plan before they have a place.
pub(super) struct Devices {
    /// By slot; none for what is made of other things than files.
    virtio: Vec<Option<Box<dyn Device>>>,
    pumps: Vec<Pump>,
    serial_line: SerialLine,
    vsock: Option<VsockControl>,
    networks: BTreeMap<u16, NetworkView>,
    /// The disks, by slot.
    disks: BTreeMap<u16, BlockControl>,
    /// Threads to be made beside workers: of which slot, what they serve, how many.
    crews: Vec<(u16, Crew, u8)>,
}

impl Devices {
    /// What is in the slots: the kind of each device, and its name.
    pub(super) fn identities(&self, plan: &Plan) -> impl Iterator<Item = Option<(u32, Option<String>)>> {
        plan.slots.iter().zip(&self.virtio).map(|(slot, device)| match (slot.device, device) {
            (SlotDevice::Memory, _) => Some((id::MEMORY, None)),
            (SlotDevice::Balloon, _) => Some((id::BALLOON, None)),
            (_, device) => device.as_ref().map(|device| (device.id(), device.name())),
        })
    }

    pub(super) fn open<H>(assembly: &Assembly<'_, H>, plan: &Plan) -> Result<Self, AssembleError> {
        let Assembly { config, files, mailbox, .. } = assembly;
        let (mut serial, serial_line) = Pump::serial(SLOT_SERIAL, mailbox.bell().clone());
        let mut found = Self {
            virtio: Vec::new(),
            pumps: Vec::new(),
            serial_line,
            vsock: None,
            networks: BTreeMap::new(),
            disks: BTreeMap::new(),
            crews: Vec::new(),
        };
        let mut console = None;
        for slot in &plan.slots {
            let device: Option<Box<dyn Device>> = match slot.device {
                SlotDevice::Disk(index) => {
                    let mut block = block(&config.disks[index], &format!("disks[{index}]"), files)?;
                    found.disks.insert(slot.number, block.control());
                    if let Some((slot, more)) = plan.helpers.iter().find(|(at, _)| *at == slot.number) {
                        let crew = Crew::default();
                        block = block.with_crew(crew.clone());
                        found.crews.push((*slot, crew, *more));
                    }
                    Some(Box::new(block))
                }
                SlotDevice::Rng => Some(Box::new(Rng)),
                SlotDevice::Console => {
                    let (mut pump, end) = Pump::console(SLOT_CONSOLE).map_err(unprepared)?;
                    connect(&mut pump, "console", &config.console, assembly)?;
                    console = Some(pump);
                    let second = end.try_clone().map_err(unprepared)?;
                    Some(Box::new(Console::new(Ends { input: Some(end), output: Some(second) })))
                }
                SlotDevice::Vsock => match &config.vsock {
                    Some(wanted) => {
                        let mailbox = (*mailbox).clone();
                        let power = Box::new(move |word| mailbox.post(Message::Agent(word)));
                        let (device, control) = Vsock::new(wanted, Some(power))?;
                        found.vsock = Some(control);
                        Some(Box::new(device))
                    }
                    None => None,
                },
                SlotDevice::Network(index) => {
                    let (device, view) = network(&config.networks[index], index, files)?;
                    found.networks.insert(slot.number, view);
                    Some(Box::new(device))
                }
                SlotDevice::Share(index) => Some(share(&config.shares[index], index, files)?),
                SlotDevice::Memory | SlotDevice::Balloon | SlotDevice::Nothing => None,
            };
            found.virtio.push(device);
        }
        connect(&mut serial, "serial", &config.serial, assembly)?;
        found.pumps = [serial].into_iter().chain(console).collect();
        Ok(found)
    }
}

/// The error of a thread.
pub(super) fn no_thread(error: std::io::Error) -> AssembleError {
    AssembleError::Host("cannot start a thread", error)
}

/// The error of a console's descriptors.
fn unprepared(error: std::io::Error) -> AssembleError {
    AssembleError::Host("cannot prepare the console", error)
}

/// Gives a pump its reader.
fn connect<H>(
    pump: &mut Pump,
    field: &str,
    endpoint: &Endpoint,
    assembly: &Assembly<'_, H>,
) -> Result<(), AssembleError> {
    match endpoint {
        Endpoint::None => {}
        Endpoint::Stream => pump.wait_for_stream(),
        Endpoint::Stdio => {
            let own = |number| sys::inherited(number).map_err(unprepared);
            pump.open(Some(own(0)?), Some(own(1)?), assembly.escape);
            pump.need_reader();
        }
        Endpoint::Log(file) => {
            let (log, place) = (assembly.files.get(field, file)?, assembly.files.log_place(file));
            let most = assembly.config.log_bytes.get();
            pump.log(Output::log(log, place, most).map_err(unprepared)?);
        }
        Endpoint::Pair { input, output } => {
            let (input, output) = (assembly.files.get(field, input)?, assembly.files.get(field, output)?);
            pump.open(Some(input.into()), Some(output.into()), false);
        }
    }
    Ok(())
}
