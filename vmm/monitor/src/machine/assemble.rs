//! From a config to a machine whose vCPU threads wait at the gate.
//!
//! Order: memory, its slots, the loaded kernel, interrupt controllers, devices with their lines and doorbells, vCPU threads. Memory that
//! is registered after the controllers costs the host a grace period.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::SystemTime;
use std::{fs::OpenOptions, io};

use super::console::{Pump, SerialLine};
use super::faults;
use super::files::{FileError, Files};
use super::mailbox::{Host, Mailbox, Message};
use super::outcome::{DeviceFaults, ExitCounts};
use super::output::Output;
use super::vcpu::{self, Shared};
use nelly_disk::{DiskError, RawDisk};
use vm_memory::{Bytes, GuestAddress};

use crate::arch::Nested;
use crate::arch::x86_64::layout;
use crate::boot::{self, BootError, Image, Transport as Announced};
use crate::bus::{Bus, BusError, SharedDevice};
use crate::config::{DiskConfig, Endpoint, FileSource, MachineConfig};
use crate::devices::i8042::{self, I8042};
use crate::devices::power::{self, AcpiPower, ResetRegister};
use crate::devices::rtc::{self, Rtc};
use crate::devices::serial::{self, Serial};
use crate::hv::{DoorbellAddress, HvError, Hypervisor, IrqchipPlan, Kicker, SharedLine, Vm};
use crate::memory::{Backing, GuestRam, MemoryError, Slot};
use crate::sys;
use crate::sys::files::Accept;
use crate::timeline::{Recorder, name};
use crate::virtio::blk::Block;
use crate::virtio::console::{Console, Ends};
use crate::virtio::device::Device;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::mem::{MemoryControl, MemoryDevice};
use crate::virtio::rng::Rng;
use crate::virtio::tally::Fault;
use crate::virtio::transport::{AttachError, MmioTransport, Transport};
use crate::virtio::vsock::{Vsock, VsockControl, VsockError};

/// The poller's slots of the machine's own; devices count from 0.
pub(super) const SLOT_MACHINE: u16 = 0xfff0;
pub(super) const SLOT_SERIAL: u16 = 0xfff1;
pub(super) const SLOT_CONSOLE: u16 = 0xfff2;

/// Why a machine could not be assembled.
#[derive(Debug, thiserror::Error)]
pub(super) enum AssembleError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("memory_bytes: cannot make the guest's memory")]
    Memory(#[from] MemoryError),
    #[error("cannot make a virtual machine")]
    Hypervisor(#[from] HvError),
    #[error("kernel: cannot load {file}")]
    Boot {
        file: FileSource,
        #[source]
        source: BootError,
    },
    #[error("disks: the disk {id:?} cannot be used")]
    Disk {
        id: String,
        #[source]
        source: DiskError,
    },
    #[error("vsock: cannot make the socket device")]
    Vsock(#[from] VsockError),
    #[error("cannot put a device on the bus")]
    Bus(#[from] BusError),
    #[error("cannot put a device into its slot")]
    Attach(#[from] AttachError),
    /// What the host refused, in words: memory, a thread, a descriptor or random bytes.
    #[error("{0}")]
    Host(&'static str, #[source] io::Error),
    #[error("no spare slot is left for the disk {0:?}")]
    NoSlot(String),
}

/// The error of a console's descriptors.
fn console(error: io::Error) -> AssembleError {
    AssembleError::Host("cannot prepare the console", error)
}

/// A machine that is assembled.
pub(super) struct Assembled<V> {
    vm: Arc<V>,
    pub(super) shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    pub(super) kickers: Vec<Arc<dyn Kicker>>,
    pub(super) transports: Vec<Arc<Mutex<MmioTransport>>>,
    /// Those of the slots, with what the slots count.
    pub(super) interrupts: Vec<Interrupt>,
    /// So many slots, from the first on, hold a device.
    occupied: usize,
    pub(super) pumps: Vec<Pump>,
    pub(super) vsock: Option<VsockControl>,
    pub(super) memory: Option<MemoryControl>,
    host: Arc<Host>,
    /// Kept for the devices' sake until the last of them is gone.
    pub(super) ram: GuestRam,
    /// See [`Remains`].
    says_kernel: bool,
}

/// What assembly is made of.
pub(super) struct Site<'a, H> {
    pub(super) hypervisor: &'a H,
    pub(super) config: &'a MachineConfig,
    pub(super) files: &'a Files,
    pub(super) mailbox: &'a Mailbox,
    pub(super) recorder: &'a Arc<Recorder>,
    /// The terminal of `stdio` endpoints understands Ctrl-A.
    pub(super) escape: bool,
}

impl<H: Hypervisor> Site<'_, H> {
    /// Assembles. Nothing runs yet.
    pub(super) fn assemble(&self) -> Result<Assembled<H::Vm>, AssembleError> {
        let config = self.config;
        // What can be refused without a hypervisor is refused before there is one.
        let kernel = self.files.read("kernel", &config.kernel, Accept::Regular)?;
        let initrd = config.initrd.as_ref();
        let initrd = initrd.map(|source| self.files.read("initrd", source, Accept::Regular)).transpose()?;
        let mut devices = Devices::open(self)?;

        let ram = GuestRam::with_hotplug(
            config.memory_bytes.get(),
            config.hotplug_bytes.get(),
            Backing::Anonymous,
        )?;
        let memory = ram.hotplug_slot().map(|slot| devices.memory(slot));
        let nested = if config.nested { Nested::Shown } else { Nested::Hidden };
        let vm = Arc::new(self.hypervisor.create_vm(nested)?);
        for slot in ram.slots() {
            vm.map(slot)?;
        }
        self.recorder.stamp(name::MEMORY_MAPPED);
        // Measured: neither our kernel nor a stock one misses them, a boot is as fast, and a machine ends 12 to 19 ms sooner.
        let announced = announced(config.virtio_devices());
        let lines = boot::lines(&announced);
        let plan = IrqchipPlan { vcpus: config.cpus.get(), legacy_timer: false, lines };
        let immutable = |file| config.immutable_images || sys::anonymous::is_sealed(file);
        let named = |source: &FileSource| source.to_string();
        let (kernel_name, initrd_name) = (named(&config.kernel), config.initrd.as_ref().map(named));
        let failed = |source| AssembleError::Boot { file: config.kernel.clone(), source };
        let reader = |name: &str, file| boot::reader(name, file, immutable(file)).map_err(failed);
        let kernel = reader(&kernel_name, &kernel)?;
        let named_initrd = initrd.as_ref().zip(initrd_name.as_deref());
        let initrd =
            named_initrd.map(|(file, name)| reader(name, file).map(|file| (name, file))).transpose()?;
        let request = boot::Request {
            kernel: Image { name: &kernel_name, bytes: &kernel },
            initrd: initrd.as_ref().map(|(name, bytes)| Image { name, bytes }),
            command_line: config.command_line.as_str(),
            cpus: u32::from(config.cpus.get()),
            transports: &announced,
            platform: config.platform,
            protocol: config.boot_protocol,
            legacy_pic: plan.legacy_timer,
            seed: Some(seed()?),
        };
        let loaded = boot::load(&ram, &request).map_err(failed)?;
        let vector = GuestAddress(layout::RESET_VECTOR);
        ram.memory().write_slice(&layout::RESET_VECTOR_CODE, vector).map_err(|error| {
            AssembleError::Host("memory_bytes: cannot write the reset vector", io::Error::other(error))
        })?;
        self.recorder.stamp(name::KERNEL_LOADED);
        vm.create_irqchip(plan)?;
        self.recorder.stamp(name::VM_CREATED);

        let host = Arc::new(Host::new(self.mailbox.clone()));
        let (mut pio, mut mmio) = (Bus::new(), Bus::new());
        platform_devices(&mut pio)?;
        devices.serial(&mut pio, vm.irq_line(layout::COM1_GSI)?)?;
        let (mut transports, mut occupied) = (Vec::with_capacity(announced.len()), 0);
        let mut interrupts = Vec::with_capacity(announced.len());
        for (slot, place) in (0u16..).zip(&announced) {
            let mailbox = self.mailbox.clone();
            let told = move |fault: &Fault| mailbox.post(Message::Fault(slot, fault.clone()));
            let interrupt = Interrupt::telling(vm.irq_line(place.gsi)?, Box::new(told));
            interrupts.push(interrupt.clone());
            let mut transport = Transport::new(slot, ram.memory().clone(), interrupt, host.clone());
            if let Some(device) = devices.take() {
                transport.attach(device)?;
                occupied += 1;
            }
            let transport = MmioTransport(transport);
            offer(&*vm, slot, &transport);
            let transport = Arc::new(Mutex::new(transport));
            mmio.insert(place.address, layout::VIRTIO_STRIDE, transport.clone())?;
            transports.push(transport);
        }

        self.recorder.stamp(name::DEVICES_READY);

        let recorder = Arc::clone(self.recorder);
        let shared = Arc::new(Shared::new(config.cpus.get(), pio, mmio, self.mailbox.clone(), recorder));
        let mut assembled = Assembled {
            vm,
            shared,
            threads: Vec::new(),
            kickers: Vec::new(),
            transports,
            interrupts,
            occupied,
            pumps: devices.pumps,
            vsock: devices.vsock,
            memory,
            host,
            ram,
            says_kernel: loaded.says_kernel,
        };
        if let Err(error) = assembled.spawn(u32::from(config.cpus.get()), loaded.state) {
            drop(assembled.take_apart());
            return Err(AssembleError::Host("cannot start a thread", error));
        }
        Ok(assembled)
    }
}

/// What outlives a machine.
pub(super) struct Remains {
    /// What was booted says that it is a kernel.
    pub(super) says_kernel: bool,
    pub(super) pumps: Vec<Pump>,
    pub(super) exits: ExitCounts,
    pub(super) faults: Vec<DeviceFaults>,
}

impl<V: Vm> Assembled<V> {
    fn spawn(&mut self, count: u32, state: crate::arch::BootState) -> io::Result<()> {
        for index in 0..count {
            let state = (index == 0).then(|| state.clone());
            self.threads.push(vcpu::spawn(&self.vm, &self.shared, index, count, state)?);
        }
        Ok(())
    }

    /// Puts a disk into the first empty slot.
    pub(super) fn attach(&mut self, disk: &DiskConfig, files: &Files) -> Result<(), AssembleError> {
        let device = block(disk, "disk", files)?;
        // Not found by asking: the lock of a device that a vCPU has just reset may be held until this loop comes round.
        let Some(transport) = self.transports.get(self.occupied) else {
            return Err(AssembleError::NoSlot(disk.id.as_str().to_owned()));
        };
        let mut transport = lock(transport);
        transport.0.attach(device)?;
        offer(&*self.vm, transport.0.slot(), &transport);
        self.occupied += 1;
        Ok(())
    }

    /// Ends vCPU threads that may still wait at the gate, and gives everything back. Pumps and counts outlive it.
    pub(super) fn take_apart(self) -> Remains {
        let Self {
            vm,
            shared,
            threads,
            kickers,
            transports,
            interrupts,
            occupied: _,
            mut pumps,
            vsock,
            memory,
            host,
            ram: _ram,
            says_kernel,
        } = self;
        shared.gate.set(vcpu::Command::End);
        for kicker in &kickers {
            kicker.kick();
        }
        for thread in threads {
            drop(thread.join());
        }
        drop((vsock, memory, transports, kickers));
        host.join();
        let faults = faults::faults(&interrupts);
        drop(interrupts);
        // Devices and their lines keep the machine: with the buses and the port the last of them goes.
        let exits = shared.exits();
        drop(shared);
        pumps.iter_mut().for_each(Pump::unplug);
        drop(vm);
        Remains { says_kernel, pumps, exits, faults }
    }
}

/// A device whose vCPU panicked in an access is still a device.
pub(super) fn lock(transport: &Mutex<MmioTransport>) -> MutexGuard<'_, MmioTransport> {
    transport.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every start of a guest has one of its own.
fn seed() -> Result<[u8; 32], AssembleError> {
    let mut seed = [0; 32];
    sys::random(&mut seed)
        .map_err(|error| AssembleError::Host("cannot read random bytes of the host", error))?;
    Ok(seed)
}

/// Where the guest finds `count` virtio devices.
fn announced(count: usize) -> Vec<Announced> {
    (0u32..)
        .take(count)
        .map(|index| Announced {
            address: layout::VIRTIO_MMIO + u64::from(index) * layout::VIRTIO_STRIDE,
            gsi: layout::VIRTIO_GSI + index,
        })
        .collect()
}

/// Offers the hypervisor the short cut for every queue. What it declines arrives as an exit.
fn offer<V: Vm>(vm: &V, slot: u16, transport: &MmioTransport) {
    let base = layout::VIRTIO_MMIO + u64::from(slot) * layout::VIRTIO_STRIDE;
    for (offset, queue, bell) in transport.doorbells() {
        let _short_cut = vm.offer_doorbell(DoorbellAddress::Mmio(base + offset), queue, 4, bell);
    }
}

fn platform_devices(pio: &mut Bus) -> Result<(), BusError> {
    let now = || {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs())
    };
    let devices: [(u64, u64, SharedDevice); 5] = [
        (rtc::PORT, rtc::PORTS, Arc::new(Mutex::new(Rtc::new(now)))),
        (i8042::PORT, i8042::PORTS, Arc::new(Mutex::new(I8042::new()))),
        (power::SYSTEM_CONTROL_A, 1, Arc::new(Mutex::new(ResetRegister::system_control()))),
        (power::RESET_CONTROL, 1, Arc::new(Mutex::new(ResetRegister::chipset()))),
        (u64::from(layout::ACPI_SLEEP_CONTROL), power::ACPI_PORTS, Arc::new(Mutex::new(AcpiPower))),
    ];
    for (base, len, device) in devices {
        pio.insert(base, len, device)?;
    }
    Ok(())
}

fn block(disk: &DiskConfig, field: &str, files: &Files) -> Result<Box<dyn Device>, AssembleError> {
    let options = OpenOptions::new().read(true).write(!disk.read_only).clone();
    let file = files.open(field, &disk.source, &options, Accept::Disk)?;
    let id = disk.id.as_str();
    let raw = RawDisk::new(file, disk.read_only)
        .map_err(|source| AssembleError::Disk { id: id.to_owned(), source })?;
    Ok(Box::new(Block::new(Box::new(raw), id)))
}

/// The devices of a config before they have a place.
struct Devices {
    /// In the order of their slots, the next one last.
    virtio: Vec<Box<dyn Device>>,
    pumps: Vec<Pump>,
    serial_line: Option<SerialLine>,
    vsock: Option<VsockControl>,
}

impl Devices {
    fn open<H>(site: &Site<'_, H>) -> Result<Self, AssembleError> {
        let Site { config, files, mailbox, .. } = site;
        let mut virtio: Vec<Box<dyn Device>> = Vec::new();
        for (index, disk) in config.disks.iter().enumerate() {
            virtio.push(block(disk, &format!("disks[{index}]"), files)?);
        }
        if config.rng {
            virtio.push(Box::new(Rng));
        }
        let (mut serial, serial_line) = Pump::serial(SLOT_SERIAL, mailbox.bell().clone());
        connect(&mut serial, "serial", &config.serial, site)?;
        let mut pumps = vec![serial];
        if config.console != Endpoint::None {
            let (mut pump, end) = Pump::console(SLOT_CONSOLE).map_err(console)?;
            connect(&mut pump, "console", &config.console, site)?;
            pumps.push(pump);
            let second = end.try_clone().map_err(console)?;
            virtio.push(Box::new(Console::new(Ends { input: Some(end), output: Some(second) })));
        }
        let mut vsock = None;
        if let Some(wanted) = &config.vsock {
            let mailbox = (*mailbox).clone();
            let power = Box::new(move |word| mailbox.post(Message::Agent(word)));
            let (device, control) = Vsock::new(wanted, Some(power))?;
            virtio.push(Box::new(device));
            vsock = Some(control);
        }
        virtio.reverse();
        Ok(Self { virtio, pumps, serial_line: Some(serial_line), vsock })
    }

    /// The memory device comes last, so that every other one is where it is without it.
    fn memory(&mut self, slot: &Slot) -> MemoryControl {
        let (device, control) = MemoryDevice::new(slot.clone());
        self.virtio.insert(0, Box::new(device));
        control
    }

    fn take(&mut self) -> Option<Box<dyn Device>> {
        self.virtio.pop()
    }

    fn serial(&mut self, pio: &mut Bus, line: SharedLine) -> Result<(), BusError> {
        if let Some(serial_line) = self.serial_line.take() {
            let port = Arc::new(Mutex::new(Serial::new(serial_line, line)));
            for pump in &mut self.pumps {
                pump.set_port(&port);
            }
            pio.insert(u64::from(layout::COM1), serial::REGISTERS, port)?;
        }
        Ok(())
    }
}

/// Gives a pump its reader.
fn connect<H>(
    pump: &mut Pump,
    field: &str,
    endpoint: &Endpoint,
    site: &Site<'_, H>,
) -> Result<(), AssembleError> {
    match endpoint {
        Endpoint::None => {}
        Endpoint::Stream => pump.wait_for_stream(),
        Endpoint::Stdio => {
            let own = |number| sys::inherited(number).map_err(console);
            pump.open(Some(own(0)?), Some(own(1)?), site.escape);
            pump.need_reader();
        }
        Endpoint::Log(file) => {
            let options = OpenOptions::new().append(true).create(true).clone();
            let log = site.files.open(field, file, &options, Accept::Stream)?;
            let path = match file {
                FileSource::Path(path) => Some(path.as_path()),
                FileSource::Fd(_) => None,
            };
            let most = site.config.log_bytes.get();
            pump.log(Output::log(log, path, most).map_err(console)?);
        }
        Endpoint::Pair { input, output } => {
            let input = site.files.read(field, input, Accept::Stream)?;
            let output = site.files.open(field, output, OpenOptions::new().write(true), Accept::Stream)?;
            pump.open(Some(input.into()), Some(output.into()), false);
        }
    }
    Ok(())
}
