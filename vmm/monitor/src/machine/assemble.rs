//! From a config to a machine whose vCPU threads wait at the gate: planned, built, loaded with what
//! it begins with, started.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nelly_disk::ImageError;

use super::begin::{Beginning, Images};
use super::build::{self, Devices, VmWithDevices, VmWithMemory};
use super::confine::{ConfineError, Confiner};
use super::console::Pump;
use super::faults;
use super::files::{FileError, Files};
use super::mailbox::Mailbox;
use super::outcome::{DeviceFaults, ExitCounts};
use super::plan::{Plan, SlotDevice};
use super::snapshot::{self, Description, RestoreError, Saved, Snapshot};
use super::vcpu::{self, SharedMachine};
use super::workers::WorkerThreads;
use crate::boot::BootError;
use crate::bus::{BusError, SharedDevice};
use crate::config::{DeviceName, DiskConfig, DiskId, MachineConfig, SERIAL_BYTES};
use crate::hv::{HvError, Hypervisor, Kicker, SharedLine, Vm};
use crate::memory::{GuestRam, MemoryError};
use crate::state::{Sections, Stateful};
use crate::timeline::Recorder;
use crate::virtio::balloon::BalloonView;
use crate::virtio::blk::BlockControl;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::mem::MemoryControl;
use crate::virtio::net::NetworkView;
use crate::virtio::spec::id;
use crate::virtio::transport::{AttachError, MmioTransport};
use crate::virtio::vsock::{VsockControl, VsockError};

/// The poller's slots of the machine's own; devices count from 0.
pub(super) const SLOT_MACHINE: u16 = 0xfff0;
pub(super) const SLOT_SERIAL: u16 = 0xfff1;
pub(super) const SLOT_CONSOLE: u16 = 0xfff2;

/// Why a machine could not be assembled.
#[derive(Debug, thiserror::Error)]
pub(super) enum AssembleError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Confine(#[from] ConfineError),
    #[error("memory_bytes: cannot make the guest's memory")]
    Memory(#[from] MemoryError),
    #[error("cannot make a virtual machine")]
    Hypervisor(#[from] HvError),
    #[error("kernel: cannot load {file}")]
    Boot {
        file: String,
        #[source]
        source: BootError,
    },
    #[error("disks: the disk {id:?} cannot be used")]
    Disk {
        id: String,
        #[source]
        source: ImageError,
    },
    #[error("disks: the disk {id:?} cannot have sectors of that size")]
    Sectors {
        id: String,
        #[source]
        source: io::Error,
    },
    #[error("networks: the link of the network {id:?} cannot be used")]
    Network {
        id: String,
        #[source]
        source: io::Error,
    },
    #[error("shares: the shared directory {tag:?} cannot be used")]
    Share {
        tag: String,
        #[source]
        source: io::Error,
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
    #[error("cannot restore the saved machine")]
    Restore(#[from] RestoreError),
    #[error("no spare slot is left for the disk {0:?}")]
    NoSlot(String),
    #[error(
        "the machine has a disk {0:?} already, or one whose id begins with the same {SERIAL_BYTES} bytes"
    )]
    Taken(String),
}

/// A device is not there, or its thread is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// A machine that is assembled.
pub(super) struct Assembled<V> {
    vm: Arc<V>,
    plan: Plan,
    pub(super) shared: Arc<SharedMachine>,
    threads: Vec<JoinHandle<()>>,
    pub(super) kickers: Vec<Arc<dyn Kicker>>,
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
    host: Arc<WorkerThreads>,
    /// The devices of the board and the serial port, by the names of their state.
    board: Vec<(&'static str, SharedDevice)>,
    /// The line of the power button, if the guest knows of one.
    power_button: Option<SharedLine>,
    /// What a restored machine's hypervisor has not yet taken back.
    saved: Option<Sections>,
    pub(super) confiner: Arc<Confiner>,
    /// Kept for the devices' sake until the last of them is gone.
    pub(super) ram: GuestRam,
    /// See [`Remains`].
    pub(super) says_kernel: bool,
}

/// What assembly is made of.
pub(super) struct Assembly<'a, H> {
    pub(super) hypervisor: &'a H,
    pub(super) config: &'a MachineConfig,
    pub(super) files: &'a Files,
    pub(super) mailbox: &'a Mailbox,
    pub(super) recorder: &'a Arc<Recorder>,
    pub(super) confiner: &'a Arc<Confiner>,
    /// The terminal of `stdio` endpoints understands Ctrl-A.
    pub(super) escape: bool,
    /// Asked while much memory is read: whether anybody still waits for this machine.
    pub(super) wanted: &'a dyn Fn() -> bool,
}

impl<H: Hypervisor> Assembly<'_, H> {
    /// Assembles a machine that boots its kernel. Nothing runs yet.
    pub(super) fn assemble(&self) -> Result<Assembled<H::Vm>, AssembleError> {
        self.confiner.confine_process(self.config, self.files)?;
        let plan = Plan::of(self.config);
        // What can be refused without a hypervisor is refused before there is one.
        let images = Images::open(self)?;
        let devices = Devices::open(self, &plan)?;
        let bare = self.create_vm(&plan)?;
        let beginning = self.boot(&plan, &bare.ram, &images)?;
        let equipped = self.create_devices(&plan, &bare, devices)?;
        self.start(plan, bare, equipped, beginning)
    }

    /// Assembles the same machine to go on where a saved one was.
    pub(super) fn assemble_saved(&self, snapshot: Snapshot) -> Result<Assembled<H::Vm>, AssembleError> {
        self.confiner.confine_process(self.config, self.files)?;
        let Snapshot { state, memory } = snapshot;
        let plan = Plan::of(self.config);
        let saved = Saved::read(&state.into())?;
        let devices = Devices::open(self, &plan)?;
        saved.check(&Description::new(&plan, H::Vm::HYPERVISOR, devices.identities(&plan)))?;
        let bare = self.create_vm(&plan)?;
        self.restore_memory(&bare.ram, &memory.into())?;
        let mut equipped = self.create_devices(&plan, &bare, devices)?;
        let beginning = equipped.restore(saved).map_err(RestoreError::State)?;
        self.start(plan, bare, equipped, beginning)
    }

    /// vCPU threads, which wait at the gate.
    fn start(
        &self,
        plan: Plan,
        bare: VmWithMemory<H::Vm>,
        equipped: VmWithDevices,
        beginning: Beginning,
    ) -> Result<Assembled<H::Vm>, AssembleError> {
        let VmWithMemory { ram, vm } = bare;
        let VmWithDevices {
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
        } = equipped;
        let Beginning { vcpus, saved, says_kernel, has_button } = beginning;
        let power_button = plan.board.power_button().filter(|_| has_button);
        let power_button = power_button.map(|line| vm.irq_line(line)).transpose()?;
        let recorder = Arc::clone(self.recorder);
        let shared =
            Arc::new(SharedMachine::new(plan.interrupts.vcpus, buses, self.mailbox.clone(), recorder));
        let cpus = plan.cpus();
        let mut assembled = Assembled {
            vm,
            plan,
            shared,
            threads: Vec::new(),
            kickers: Vec::new(),
            transports,
            interrupts,
            pumps,
            vsock,
            networks,
            disks,
            memory,
            balloon,
            host,
            board,
            power_button,
            saved,
            confiner: Arc::clone(self.confiner),
            ram,
            says_kernel,
        };
        for (index, registers) in (0..cpus).zip(vcpus) {
            match vcpu::spawn(&assembled.vm, &assembled.shared, self.confiner, index, cpus, registers) {
                Ok(thread) => assembled.threads.push(thread),
                Err(error) => {
                    drop(assembled.take_apart());
                    return Err(build::no_thread(error));
                }
            }
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
    /// Threads that must be ready before the guest runs: vCPUs, and those of workers.
    pub(super) fn expected_threads(&self) -> usize {
        self.threads.len() + self.plan.device_threads()
    }

    /// Every vCPU exists, and none has run: what they share is taken back from a saved machine, and
    /// the machine is whole. Says whether it goes on from such.
    pub(super) fn seal(&mut self) -> Result<bool, HvError> {
        let saved = self.saved.take();
        let restored = saved.is_some();
        if let Some(state) = saved {
            self.vm.restore(state)?;
        }
        self.vm.seal()?;
        Ok(restored)
    }

    /// Writes down everything but the memory of a machine that is paused, with the state of its
    /// vCPUs.
    pub(super) fn save(&self, vcpus: &[Sections]) -> Result<Vec<u8>, HvError> {
        let vm = self.vm.save()?;
        let devices = self.interrupts.iter().map(|interrupt| {
            let identity = interrupt.tally().identity()?;
            Some((identity.device_id, identity.name.clone()))
        });
        let machine = Description::new(&self.plan, V::HYPERVISOR, devices);
        let told = (self.says_kernel, self.power_button.is_some());
        Ok(snapshot::write(machine, told, &vm, vcpus, |state| {
            for (name, device) in &self.board {
                device.lock().unwrap_or_else(PoisonError::into_inner).save(name, state);
            }
            for (number, transport) in self.transports.iter().enumerate() {
                lock(transport).save(&snapshot::slot_name(number), state);
            }
            for pump in &self.pumps {
                pump.save_words(state);
            }
        }))
    }

    /// Presses the power button; `None` if there is none.
    pub(super) fn press_power_button(&self) -> Option<io::Result<()>> {
        self.power_button.as_ref().map(|line| line.pulse())
    }

    /// Puts a disk into the first empty slot that has a thread for it.
    pub(super) fn attach(&mut self, disk: &DiskConfig, files: &Files) -> Result<(), AssembleError> {
        let id = || disk.id.as_str().to_owned();
        // The guest knows disks apart by no more of their ids.
        let there = |interrupt: &Interrupt| {
            let found = interrupt.tally().identity()?;
            let id = DiskId::new(found.name.clone()?).ok()?;
            Some(found.device_id == id::BLOCK && id.serial() == disk.id.serial())
        };
        if self.interrupts.iter().any(|interrupt| there(interrupt) == Some(true)) {
            return Err(AssembleError::Taken(id()));
        }
        let device = build::block(disk, "disk", files)?;
        let control = device.control();
        let mut slots = self.plan.threaded().map(|(slot, _)| usize::from(slot));
        let Some(slot) = slots.find(|slot| self.is_vacant(*slot)) else {
            return Err(AssembleError::NoSlot(id()));
        };
        let mut transport = lock(&self.transports[slot]);
        let known = transport.doorbells().count();
        transport.0.attach(Box::new(device))?;
        build::offer(&*self.vm, self.plan.slots[slot].mmio, &transport, known);
        self.disks.insert(self.plan.slots[slot].number, control);
        Ok(())
    }

    /// Has the thread of a disk's slot do something with the disk that may block.
    pub(super) fn with_disk(
        &self,
        slot: usize,
        task: impl FnOnce(&BlockControl) + Send + 'static,
    ) -> Result<(), Gone> {
        let number = self.plan.slots[slot].number;
        let control = self.disks.get(&number).ok_or(Gone)?.clone();
        self.host.run(number, Box::new(move || task(&control))).map_err(|_task| Gone)
    }

    /// Begins to take the device out of a slot; [`Assembled::is_vacant`] tells when it is out.
    pub(super) fn detach(&self, slot: usize) {
        lock(&self.transports[slot]).0.detach();
    }

    /// Whether a slot holds no device.
    pub(super) fn is_vacant(&self, slot: usize) -> bool {
        lock(&self.transports[slot]).0.vacant()
    }

    /// Whether the guest sees files of the host.
    pub(super) fn has_shares(&self) -> bool {
        self.plan.slots.iter().any(|slot| matches!(slot.device, SlotDevice::Share(_)))
    }

    /// The slot of a virtio device.
    pub(super) fn slot_of(&self, device: &DeviceName) -> Option<usize> {
        let (kind, name) = match device {
            DeviceName::Serial => return None,
            DeviceName::Console => (id::CONSOLE, None),
            DeviceName::Rng => (id::ENTROPY, None),
            DeviceName::Vsock => (id::VSOCK, None),
            DeviceName::Memory => (id::MEMORY, None),
            DeviceName::Balloon => (id::BALLOON, None),
            DeviceName::Network(network) => (id::NET, Some(network.as_str())),
            DeviceName::Disk(disk) => (id::BLOCK, Some(disk.as_str())),
            DeviceName::Share(tag) => (id::FILE_SYSTEM, Some(tag.as_str())),
        };
        self.interrupts.iter().position(|interrupt| {
            let identity = interrupt.tally().identity();
            identity.is_some_and(|found| (found.device_id, found.name.as_deref()) == (kind, name))
        })
    }

    /// Ends vCPU threads that may still wait at the gate, and gives everything back. Pumps and
    /// counts outlive it.
    pub(super) fn take_apart(self) -> Remains {
        let Self {
            vm,
            plan: _,
            shared,
            threads,
            kickers,
            transports,
            interrupts,
            mut pumps,
            vsock,
            networks: _,
            disks: _,
            memory,
            balloon,
            host,
            board,
            power_button,
            saved: _,
            confiner: _,
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
        drop((vsock, memory, balloon, transports, board, power_button, kickers));
        host.join();
        let faults = faults::faults(&interrupts);
        drop(interrupts);
        // Devices and their lines keep the machine: with the buses and the port the last of them
        // goes.
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
