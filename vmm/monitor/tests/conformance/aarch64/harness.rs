//! A machine of 2 MiB with a few instructions in it.

use nelly_vmm::arch::aarch64::{self, layout};
use nelly_vmm::arch::{BootState, Nested};
use nelly_vmm::hv::{Hypervisor, IrqchipPlan, Vcpu, Vm};
use nelly_vmm::memory::{Backing, GuestRam, Memory};
use vm_memory::{Bytes, GuestAddress};

pub(crate) use crate::asm::guest;
pub(crate) use crate::runner::{Runner, Seen};

/// Where the code is loaded and entered.
pub(crate) const CODE: u64 = layout::RAM + 0x10_0000;
/// Memory for the guest's own use.
pub(crate) const SCRATCH: u64 = layout::RAM + 0x18_0000;
/// No slot is here.
pub(crate) const DEVICE: u64 = layout::VIRTIO_MMIO;
/// What the first argument of the kernel is.
pub(crate) const ARGUMENT: u64 = 0x1234_5678_9abc_def0;
/// Shared lines of the machine.
const LINES: u32 = 96;

/// A machine whose only RAM is 2 MiB. Its processors' MMU is off: addresses are physical, and every
/// access must be aligned.
pub(crate) struct Machine<H: Hypervisor> {
    pub(crate) vm: H::Vm,
    pub(crate) memory: Memory,
}

impl<H: Hypervisor> Machine<H> {
    /// With an interrupt controller for `vcpus`.
    pub(crate) fn new(hypervisor: &H, code: &[u8], vcpus: u8) -> Self {
        Self::of(hypervisor.create_vm(Nested::Hidden).unwrap(), code, vcpus)
    }

    /// An empty machine furnished.
    pub(crate) fn of(vm: H::Vm, code: &[u8], vcpus: u8) -> Self {
        let ram = GuestRam::new(2 << 20, Backing::Anonymous).unwrap();
        for slot in ram.slots() {
            vm.map(slot).unwrap();
        }
        vm.create_irqchip(IrqchipPlan { vcpus, legacy_timer: false, lines: LINES }).unwrap();
        let memory = ram.memory().clone();
        memory.write_slice(code, GuestAddress(CODE)).unwrap();
        Self { vm, memory }
    }

    /// vCPU 0, at the code's first instruction.
    pub(crate) fn boot(&self) -> Runner<<H::Vm as Vm>::Vcpu> {
        let mut vcpu = self.vm.create_vcpu(0, 1).unwrap();
        vcpu.load(&entry()).unwrap();
        self.vm.seal().unwrap();
        Runner::new(vcpu)
    }
}

/// Entry at [`CODE`].
pub(crate) fn entry() -> BootState {
    BootState::Arm64(aarch64::BootState { pc: CODE, device_tree: ARGUMENT, granule: None })
}
