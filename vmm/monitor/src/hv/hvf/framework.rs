//! What this back end asks of Hypervisor.framework, and nothing else: the one seam between its
//! calls and what is made of them. `apple` is the framework itself; tests put a script in its
//! place.

#![allow(unsafe_code, reason = "one call takes host addresses, and says what its caller answers for")]

use std::fmt;
use std::io;

use super::super::HvError;
use crate::memory::Slot;

/// The framework of this process, which has one machine at most.
pub(super) trait Framework: Send + Sync + 'static {
    /// A vCPU. It belongs to the thread that made it.
    type Processor: Processor;

    /// Makes the process's machine, with all the guest physical addresses that the host's
    /// processors have. Says how many bits those have.
    fn create_vm(&self) -> Result<u32, Refusal>;

    /// Ends it. Every processor is gone.
    fn destroy_vm(&self);

    /// Shows the guest a slot's memory.
    ///
    /// # Safety
    /// The slot is held until the machine has ended.
    unsafe fn map(&self, slot: &Slot) -> Result<(), Refusal>;

    /// Makes the interrupt controller (GICv3) with its registers at these guest physical
    /// addresses: after the machine, before any processor.
    fn create_controller(&self, distributor: u64, redistributors: u64) -> Result<Controller, Refusal>;

    /// Sets the level of a shared interrupt by its number among all (32 and up).
    fn set_interrupt(&self, number: u32, high: bool) -> Result<(), Refusal>;

    /// The most processors of a machine.
    fn most_processors(&self) -> Result<u32, Refusal>;

    /// Makes a processor for the calling thread.
    fn create_processor(&self) -> Result<Self::Processor, Refusal>;

    /// Gets a processor out of the guest, or, if it is not in there, has its next entry return at
    /// once. From any thread; the processor exists.
    fn force_exit(&self, processor: u64) -> Result<(), Refusal>;

    /// The counter that guests' virtual counters are made of, in ticks.
    fn counter(&self) -> u64;

    /// Ticks of the counter a second.
    fn counter_hz(&self) -> u64;
}

/// A vCPU of the framework. Dropping it ends it, on its thread.
pub(super) trait Processor {
    /// Its handle.
    fn id(&self) -> u64;

    /// Runs the guest up to an exit.
    fn run(&mut self) -> Result<Exit, Refusal>;

    /// Reads a register.
    fn get(&self, register: Register) -> Result<u64, Refusal>;

    /// Writes one.
    fn set(&mut self, register: Register, value: u64) -> Result<(), Refusal>;

    /// Whether the framework holds exits of the virtual timer back. It masks by itself with each.
    fn mask_timer(&mut self, masked: bool) -> Result<(), Refusal>;

    /// What is subtracted from the counter to give the guest's virtual one, in ticks.
    fn set_timer_offset(&mut self, ticks: u64) -> Result<(), Refusal>;

    /// Guest physical address of its redistributor. Its affinity is set.
    fn redistributor(&self) -> Result<u64, Refusal>;
}

/// A register that this back end reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Register {
    /// X0 to X30.
    X(u8),
    /// Address of the next instruction.
    Pc,
    /// The processor's state.
    Cpsr,
    /// MPIDR_EL1: where the processor stands among the others.
    Affinity,
    /// SCTLR_EL1.
    SystemControl,
    /// ID_AA64PFR0_EL1: what the guest is told of the processor.
    Features,
    /// ID_AA64MMFR0_EL1: what the processor says of its pages and addresses.
    MemoryModel,
    /// CNTV_CTL_EL0.
    TimerControl,
    /// CNTV_CVAL_EL0: when the virtual timer is due, in ticks of the guest's virtual counter.
    TimerDeadline,
}

/// What the framework says of its interrupt controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Controller {
    /// Number of the first shared interrupt.
    pub(super) first: u32,
    /// How many there are.
    pub(super) count: u32,
}

/// Why a processor left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// Forced out.
    Canceled,
    /// The guest did something that is the monitor's to do.
    Exception {
        /// What, as ESR_EL2 says it.
        syndrome: u64,
        /// Guest physical address of an abort.
        address: u64,
    },
    /// The virtual timer became due; the framework has masked it.
    TimerActivated,
    /// What the framework itself did not expect.
    Unknown(u32),
}

/// What the framework answered instead of success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) u32);

impl Refusal {
    /// The resource is in use: the process has a machine.
    pub(super) const BUSY: Self = Self(0xfae9_4002);
    /// The system does not allow it.
    pub(super) const DENIED: Self = Self(0xfae9_4007);
    /// This host cannot.
    pub(super) const UNSUPPORTED: Self = Self(0xfae9_400f);

    /// Its name in the framework's headers, and what it means there.
    fn words(self) -> (&'static str, &'static str) {
        match self.0 {
            0xfae9_4001 => ("HV_ERROR", "the operation was unsuccessful"),
            0xfae9_4002 => ("HV_BUSY", "the resource is in use"),
            0xfae9_4003 => ("HV_BAD_ARGUMENT", "an argument is invalid"),
            0xfae9_4004 => ("HV_ILLEGAL_GUEST_STATE", "the guest is in an illegal state"),
            0xfae9_4005 => ("HV_NO_RESOURCES", "the host has no resources left for it"),
            0xfae9_4006 => ("HV_NO_DEVICE", "there is no such machine or processor"),
            0xfae9_4007 => ("HV_DENIED", "the system does not allow it"),
            // Nothing public says what it means; systems were seen to answer so where memory is
            // mapped already.
            0xfae9_4008 => ("HV_FAULT", "an address is invalid, or memory is there already"),
            0xfae9_400f => ("HV_UNSUPPORTED", "the hypervisor does not support it"),
            _ => ("an unknown answer", "the framework's headers do not name it"),
        }
    }

    /// Of a call that this host should not refuse.
    pub(super) fn of(self, call: &'static str) -> HvError {
        HvError::Call { call, source: io::Error::other(self) }
    }

    /// Of the call that makes a machine, where what to do about it is known.
    pub(super) fn of_creation(self) -> HvError {
        let hint = match self {
            Self::DENIED => {
                "this program is not signed with the entitlement com.apple.security.hypervisor, which every build anew \
                 needs: `codesign --sign - --force --entitlements packaging/macos/hypervisor.entitlements` and the \
                 program's path"
            }
            Self::BUSY => {
                "this process has a machine already, and the framework allows one a process: start each in a \
                 nelly-monitor of its own"
            }
            Self::UNSUPPORTED => {
                "this Mac's processor or system offers no virtual machines: Nelly needs Apple silicon and macOS 15, and \
                 inside a virtual machine a Mac that nests them"
            }
            other => return other.of("hv_vm_create"),
        };
        HvError::Open { path: "Hypervisor.framework", hint, source: io::Error::other(self) }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, meaning) = self.words();
        write!(f, "{name} ({:#x}): {meaning}", self.0)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_do() {
        let denied = Refusal::DENIED.of_creation();
        let text = denied.to_string();
        assert!(text.contains("com.apple.security.hypervisor") && text.contains("codesign"), "{text}");
        let source = std::error::Error::source(&denied).unwrap().to_string();
        assert_eq!(source, "HV_DENIED (0xfae94007): the system does not allow it");
        assert!(Refusal::BUSY.of_creation().to_string().contains("one a process"));
        assert!(Refusal::UNSUPPORTED.of_creation().to_string().contains("macOS 15"));
        assert_eq!(Refusal(0xfae9_4005).of_creation().to_string(), "hv_vm_create failed");
        assert!(Refusal(7).to_string().contains("0x7"));
    }
}
