//! From a config to a machine whose vCPU threads wait at the gate: planned, built, loaded with what it begins with, started.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nelly_disk::DiskError;

use super::begin::{Beginning, Images};
use super::build::{self, Devices, Furnished, Ground};
use super::console::Pump;
use super::faults;
use super::files::{FileError, Files};
use super::mailbox::Mailbox;
use super::outcome::{DeviceFaults, ExitCounts};
use super::plan::Plan;
use super::vcpu::{self, Shared};
use super::workers::Host;
use crate::boot::BootError;
use crate::bus::BusError;
use crate::config::{DiskConfig, MachineConfig};
use crate::hv::{HvError, Hypervisor, Kicker, Vm};
use crate::memory::{GuestRam, MemoryError};
use crate::timeline::Recorder;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::mem::MemoryControl;
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

/// A machine that is assembled.
pub(super) struct Assembled<V> {
    vm: Arc<V>,
    plan: Plan,
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
        let plan = Plan::of(self.config);
        // What can be refused without a hypervisor is refused before there is one.
        let images = Images::open(self)?;
        let devices = Devices::open(self, &plan)?;
        let ground = self.ground(&plan)?;
        let beginning = self.boot(&plan, &ground.ram, &images)?;
        let furnished = self.furnish(&plan, &ground, devices)?;
        self.start(plan, ground, furnished, beginning)
    }

    /// vCPU threads, which wait at the gate.
    fn start(
        &self,
        plan: Plan,
        ground: Ground<H::Vm>,
        furnished: Furnished,
        beginning: Beginning,
    ) -> Result<Assembled<H::Vm>, AssembleError> {
        let Ground { ram, vm } = ground;
        let Furnished { buses, transports, interrupts, pumps, vsock, memory, host } = furnished;
        let Beginning { state, says_kernel } = beginning;
        let recorder = Arc::clone(self.recorder);
        let shared = Arc::new(Shared::new(plan.interrupts.vcpus, buses, self.mailbox.clone(), recorder));
        let (cpus, occupied) = (plan.cpus(), plan.occupied());
        let mut assembled = Assembled {
            vm,
            plan,
            shared,
            threads: Vec::new(),
            kickers: Vec::new(),
            transports,
            interrupts,
            occupied,
            pumps,
            vsock,
            memory,
            host,
            ram,
            says_kernel,
        };
        for index in 0..cpus {
            let state = (index == 0).then(|| state.clone());
            match vcpu::spawn(&assembled.vm, &assembled.shared, index, cpus, state) {
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
    /// Threads that must stand before the guest runs: vCPUs, and those of workers.
    pub(super) fn musters(&self) -> usize {
        self.threads.len() + self.plan.threaded().count()
    }

    /// Every vCPU exists, and none has run.
    pub(super) fn seal(&self) -> Result<(), HvError> {
        self.vm.seal()
    }

    /// Puts a disk into the first empty slot.
    pub(super) fn attach(&mut self, disk: &DiskConfig, files: &Files) -> Result<(), AssembleError> {
        let device = build::block(disk, "disk", files)?;
        // Not found by asking: the lock of a device that a vCPU has just reset may be held until this loop comes round.
        let slot = self.transports.get(self.occupied).zip(self.plan.slots.get(self.occupied));
        let Some((transport, slot)) = slot else {
            return Err(AssembleError::NoSlot(disk.id.as_str().to_owned()));
        };
        let mut transport = lock(transport);
        transport.0.attach(device)?;
        build::offer(&*self.vm, slot.place, &transport);
        self.occupied += 1;
        Ok(())
    }

    /// Ends vCPU threads that may still wait at the gate, and gives everything back. Pumps and counts outlive it.
    pub(super) fn take_apart(self) -> Remains {
        let Self {
            vm,
            plan: _,
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
