//! The hypervisor traits: [`Hypervisor`] → [`Vm`] → [`Vcpu`]. Nobody above this floor names KVM or
//! Hypervisor.framework.
//!
//! Order that the caller keeps: `create_vm`, every `map`, `create_irqchip`, `irq_line`, then vCPUs,
//! each created on the thread that runs it (Hypervisor.framework demands it), then `seal`, and only
//! then the first `run`; `offer_doorbell` at any time after `create_irqchip`. A `map` after
//! `create_irqchip` is refused: on Linux it waits for an RCU grace period, some milliseconds each,
//! and nothing needs it. Memory that a guest gets later lies in a slot that it had from the start.

#[cfg(any(test, feature = "testing"))]
pub mod fake;
pub mod hvf;
#[cfg(target_os = "linux")]
pub mod kvm;
mod never;
pub mod probe;

use std::io;
use std::sync::Arc;

use crate::arch::{Address, BootState, InterruptLine, Nested};
use crate::memory::Slot;
use crate::state::{Sections, StateError};
use crate::sys::Notifier;
use crate::timeline::GuestCounter;

/// A hypervisor of this host.
pub trait Hypervisor {
    /// The machines it makes.
    type Vm: Vm;

    /// Creates an empty machine, whose processors show their virtualisation or do not. Asked for
    /// what the host cannot show, it refuses.
    fn create_vm(&self, nested: Nested) -> Result<Self::Vm, HvError>;
}

#[cfg(any(not(target_os = "linux"), all(feature = "standin", target_arch = "aarch64")))]
pub use hvf::open;
#[cfg(all(target_os = "linux", not(all(feature = "standin", target_arch = "aarch64"))))]
pub use kvm::open;

/// One interrupt line of the machine, from a device to the interrupt controller.
///
/// Cheap to call from any thread; a call is at most two system calls and never blocks. It keeps the
/// machine it belongs to.
pub trait IrqLine: Send + Sync {
    /// An edge: the line goes up and down. What virtio and the 8250 use here.
    fn pulse(&self) -> io::Result<()>;

    /// Sets the level of a level-triggered line.
    fn set(&self, high: bool) -> io::Result<()>;
}

/// A line shared by the parts of one device.
pub type SharedLine = Arc<dyn IrqLine>;

/// Which interrupt controllers the machine gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqchipPlan {
    /// vCPUs that will be created, 1 to 255.
    pub vcpus: u8,
    /// A timer and a controller of old, where the architecture has such, for kernels that calibrate
    /// by them. Without them a start and above all an end are faster.
    pub legacy_timer: bool,
    /// Lines that devices use, from 0 on, at least one. A machine without a legacy timer has no
    /// others, which a guest need not set up.
    pub lines: u32,
}

/// A virtual machine: memory slots, interrupt controllers, vCPUs. Dropping it ends it.
pub trait Vm: Send + Sync + 'static {
    /// Its vCPUs.
    type Vcpu: Vcpu;

    /// The hypervisor's name. State is taken back by the hypervisor of this name alone.
    const HYPERVISOR: &'static str;

    /// Registers one memory slot, and keeps it (so that its host range stays mapped) until the
    /// machine's end. Its number and its place are no other slot's, and there are no interrupt
    /// controllers yet.
    fn map(&self, slot: &Slot) -> Result<(), HvError>;

    /// Creates the interrupt controllers. Once, after every `map`.
    fn create_irqchip(&self, plan: IrqchipPlan) -> Result<(), HvError>;

    /// The line of this number.
    fn irq_line(&self, line: InterruptLine) -> Result<SharedLine, HvError>;

    /// Offers that writes of `value` (`width` bytes: 2 or 4; 0 = any value) to `address` go
    /// straight to `notifier`. `false` means that the hypervisor cannot, and the write arrives as
    /// an exit: both must work.
    fn offer_doorbell(&self, address: Address, value: u32, width: u8, notifier: &Notifier) -> bool;

    /// Creates vCPU `index` of `count`, on the calling thread, which must be the one that runs it.
    fn create_vcpu(&self, index: u32, count: u32) -> Result<Self::Vcpu, HvError>;

    /// The machine is whole: every slot is mapped, every line was asked for and every vCPU exists.
    /// Once, before the first vCPU runs; what comes after it is doorbells alone. Some controllers
    /// can be initialised no sooner.
    fn seal(&self) -> Result<(), HvError>;

    /// Reads what belongs to no vCPU: controllers, clocks. Every vCPU is out of the guest with
    /// nothing pending.
    fn save(&self) -> Result<Sections, HvError>;

    /// Takes it back into a machine of the same plan, when each of its vCPUs has its own state and
    /// before the seal. After an error the machine is of no use.
    fn restore(&self, state: Sections) -> Result<(), HvError>;
}

/// A virtual CPU. Not `Send`: it lives and dies on its thread. It keeps its machine.
pub trait Vcpu {
    /// Loads the state the guest starts with: for vCPU 0. The others need no load, only `run`: they
    /// wait in it for the boot processor's start-up message.
    fn load(&mut self, state: &BootState) -> Result<(), HvError>;

    /// Runs until something needs the monitor. A guest's fault is a value, [`VcpuExit::Fault`],
    /// not an error.
    fn run(&mut self) -> Result<VcpuExit<'_>, HvError>;

    /// Completes a pending read or write without entering the guest (KVM: one run with
    /// immediate_exit), so that state is whole. [`VcpuExit::Kicked`] says that it is; any other
    /// exit is the next part of the same instruction, to be served like those of `run` and
    /// completed in turn.
    fn complete_pending(&mut self) -> Result<VcpuExit<'_>, HvError>;

    /// Reads its whole state, out of the guest and with nothing pending. What it has of the
    /// machine's plan is not among it.
    fn save(&mut self) -> Result<Sections, HvError>;

    /// Takes such state back instead of a [`Vcpu::load`], before it has run. After an error the
    /// vCPU is of no use.
    fn restore(&mut self, state: Sections) -> Result<(), HvError>;

    /// Reads the guest's counter beside the host's clock, on the vCPU's thread and out of the
    /// guest. `None` where the hypervisor cannot tell.
    fn counter(&mut self) -> Option<GuestCounter> {
        None
    }

    /// Whether nothing but another vCPU can make this one go on: it halted with interrupts
    /// disabled, or waits for its start-up message. Asked out of the guest, with nothing pending.
    /// `false` where the hypervisor cannot tell.
    fn sleeps_for_good(&mut self) -> bool {
        false
    }

    /// What makes a running or about to run vCPU return [`VcpuExit::Kicked`], from any thread.
    fn kicker(&self) -> Arc<dyn Kicker>;
}

/// Gets a vCPU out of the guest. A kick that arrives before `run` makes the next `run` return at
/// once: none is lost.
pub trait Kicker: Send + Sync {
    /// Kicks.
    fn kick(&self);
}

/// Why a vCPU came back. Data slices borrow from the vCPU: a read is answered by filling them
/// before the next `run`.
#[derive(Debug)]
pub enum VcpuExit<'a> {
    /// Read of guest physical memory that no slot backs, or of a port; `data` holds one access, or
    /// several of an instruction that reads a port again and again (`width` bytes each).
    Read {
        /// Where.
        address: Address,
        /// Bytes of one access: 1 to 8 in memory, 1, 2 or 4 of a port.
        width: u8,
        /// To be filled.
        data: &'a mut [u8],
    },
    /// Write there.
    Write {
        /// Where.
        address: Address,
        /// Bytes of one access.
        width: u8,
        /// What was written.
        data: &'a [u8],
    },
    /// The vCPU halted and no controller in the hypervisor will wake it.
    Halted,
    /// Kicked, or a signal arrived.
    Kicked,
    /// Triple fault, or the hypervisor's own word for a shutdown.
    TripleFault,
    /// The guest asked the firmware (PSCI) to power off.
    PowerOff,
    /// The guest asked the firmware (PSCI) to reset.
    Reset,
    /// The guest did what the hypervisor cannot run; the sentence says what.
    Fault(String),
}

/// What a hypervisor call can fail with: host failures, never the guest's.
#[derive(Debug, thiserror::Error)]
pub enum HvError {
    /// No such hypervisor on this host, or not for this architecture.
    #[error("{what} is unsupported on this host")]
    Unsupported {
        /// The hypervisor or the feature.
        what: &'static str,
    },
    /// The device node cannot be opened.
    #[error("cannot open {path}: {hint}")]
    Open {
        /// Path tried.
        path: &'static str,
        /// What to do about it.
        hint: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A call failed.
    #[error("{call} failed")]
    Call {
        /// The call, as the hypervisor names it.
        call: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The host lacks a capability that the machine needs.
    #[error("this hypervisor lacks {capability}")]
    Missing {
        /// Its name.
        capability: &'static str,
    },
    /// State cannot be taken back.
    #[error("cannot take a machine's state back")]
    State(#[from] StateError),
    /// The caller may not map this slot.
    #[error("cannot map a memory slot")]
    Slot(#[from] SlotRefused),
}

/// Why no machine takes a slot, whatever the hypervisor would say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotRefused {
    /// Another slot has its number.
    #[error("the slot's number is taken")]
    NumberTaken,
    /// See the module.
    #[error("the machine has its interrupt controllers, and slots come before them")]
    TooLate,
    /// It does not begin and end where pages of the hypervisor do.
    #[error("the slot is not in whole pages of the hypervisor's")]
    Unaligned,
    /// The machine has no such addresses.
    #[error("the slot lies beyond the guest physical addresses that this host's processors have")]
    Beyond,
}
