//! What a machine has of an Arm board: its interrupt controller, and how far its addresses reach.

use std::io;
use std::sync::OnceLock;

use kvm_bindings::{KVM_CAP_ARM_NISV_TO_USER, kvm_enable_cap};
use kvm_ioctls::{Kvm, VmFd};

use super::super::super::{HvError, IrqchipPlan, VcpuExit};
use super::super::inner::{Inner, failed, uninterrupted};
use super::exit::Exit;
use super::gic::{self, Gic};
use crate::arch::{Address, Nested};
use crate::memory::Slot;
use crate::state::Sections;

/// Bits of a guest physical address where the kernel does not say.
const ADDRESS_BITS: u32 = 40;
/// More needs pages of 64 KiB or an extension, and no machine is so large.
const ADDRESS_BITS_MAX: u32 = 48;
/// What is told of state that this back end cannot read yet.
const NO_STATE: HvError = HvError::Unsupported { what: "the state of a machine on 64-bit Arm" };

/// What a machine has beside what every architecture's has.
#[derive(Debug)]
pub(in super::super) struct Machine {
    gic: OnceLock<Gic>,
    /// Of a guest physical address.
    address_bits: u32,
}

/// Creates an empty machine.
pub(in super::super) fn create_vm(kvm: &Kvm, nested: Nested) -> Result<(VmFd, Machine), HvError> {
    if nested == Nested::Shown {
        return Err(HvError::Missing {
            capability: "nested virtualisation, which the configuration asks for",
        });
    }
    let bits = address_bits(kvm.get_host_ipa_limit());
    // The type is 0 where the kernel knows one width alone.
    let fd = match bits {
        None => uninterrupted(|| kvm.create_vm()),
        Some(bits) => uninterrupted(|| kvm.create_vm_with_ipa_size(bits)),
    };
    let fd = fd.map_err(failed("KVM_CREATE_VM"))?;
    // Where the kernel cannot tell of such an access, its KVM_RUN fails.
    let told = kvm_enable_cap { cap: KVM_CAP_ARM_NISV_TO_USER, ..kvm_enable_cap::default() };
    let _untold = fd.enable_cap(&told);
    Ok((fd, Machine { gic: OnceLock::new(), address_bits: bits.unwrap_or(ADDRESS_BITS) }))
}

/// The width to ask for where this is the widest, `None` where there is no choice.
fn address_bits(limit: i32) -> Option<u32> {
    u32::try_from(limit).ok().filter(|limit| *limit > 0).map(|limit| limit.min(ADDRESS_BITS_MAX))
}

/// Whether the machine's addresses reach as far as a slot.
pub(in super::super) fn reachable(machine: &Machine, slot: &Slot) -> Result<(), HvError> {
    let end = slot.guest().checked_add(slot.len());
    if end.is_some_and(|end| end <= 1 << machine.address_bits) {
        return Ok(());
    }
    Err(HvError::Missing { capability: "guest physical addresses wide enough for so much memory" })
}

/// Creates the interrupt controller.
pub(in super::super) fn create_controllers(machine: &Inner, plan: IrqchipPlan) -> Result<(), HvError> {
    let gic = Gic::new(&machine.fd, plan)?;
    machine.own.gic.get_or_init(|| gic);
    Ok(())
}

/// The controller is initialised when every vCPU exists.
pub(in super::super) fn seal(machine: &Inner) -> Result<(), HvError> {
    machine.own.gic.get().map_or(Ok(()), Gic::begin)
}

/// Sets a line, by KVM_IRQ_LINE.
pub(in super::super) fn set_line(machine: &Inner, line: u32, high: bool) -> io::Result<()> {
    machine.fd.set_irq_line(gic::irq(line), high).map_err(Into::into)
}

/// Where the kernel listens for a doorbell: the address, and the flags of KVM_IOEVENTFD.
pub(in super::super) fn bell(address: Address) -> Option<(u64, u32)> {
    match address {
        Address::Memory(address) => Some((address, 0)),
        Address::Port(_) => None,
    }
}

/// Refused by name.
pub(in super::super) fn save_machine(_: &Inner) -> Result<Sections, HvError> {
    Err(NO_STATE)
}

/// Refused by name.
pub(in super::super) fn load_machine(_: &Inner, _: Sections) -> Result<(), HvError> {
    Err(NO_STATE)
}

impl Inner {
    /// Every exit is the monitor's.
    pub(in super::super) fn serve<'a>(&self, exit: VcpuExit<'a>) -> Result<Option<VcpuExit<'a>>, HvError> {
        Ok(Some(exit))
    }

    pub(in super::super) fn serve_own(&self, exit: Exit) {
        match exit {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_no_wider_than_the_kernel_or_any_machine_wants() {
        assert_eq!(
            [-1, 0, 36, 40, 48, 52].map(address_bits),
            [None, None, Some(36), Some(40), Some(48), Some(48)]
        );
    }
}
