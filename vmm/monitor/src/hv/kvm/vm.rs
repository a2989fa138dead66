//! A machine on KVM.

#![allow(
    unsafe_code,
    reason = "memory slots are host addresses, and doorbells have no safe wrapper that takes a borrowed descriptor"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_MEM_READONLY, kvm_ioeventfd, kvm_userspace_memory_region};
use rustix::ioctl::{Setter, ioctl, opcode};

use super::super::{HvError, IrqLine, IrqchipPlan, SharedLine, SlotRefused, Vm};
use super::inner::{Inner, failed, lend};
use super::own;
use super::vcpu::KvmVcpu;
use crate::arch::{Address, InterruptLine, Nested};
use crate::memory::Slot;
use crate::state::Sections;
use crate::sys::{Notifier, fits};

/// The ioctl's magic number.
const KVMIO: u8 = 0xae;

/// A machine. Cheap to clone inside this room: its vCPUs and lines keep it.
#[derive(Debug)]
pub struct KvmVm(Arc<Inner>);

impl KvmVm {
    pub(super) fn new(kvm: &Arc<kvm_ioctls::Kvm>, nested: Nested) -> Result<Self, HvError> {
        let (fd, own) = own::create_vm(kvm, nested)?;
        Ok(Self(Arc::new(Inner { fd, own, slots: Mutex::default(), ended: Mutex::default() })))
    }
}

impl Inner {
    fn set_region(&self, slot: &Slot) -> Result<(), HvError> {
        let region = kvm_userspace_memory_region {
            slot: slot.index(),
            flags: if slot.is_read_only() { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: slot.guest(),
            memory_size: slot.len(),
            userspace_addr: fits(slot.host().addr(), "no host has more than 64 bits"),
        };
        // SAFETY: the range is mapped for as long as `slot` lives, and `self.slots` holds it for as
        // long as a guest can reach it: until the last vCPU is gone. The kernel's machine may be
        // there a moment longer (see the drop of `Inner`); it has no vCPU to run, and follows the
        // range as it is unmapped. Nobody holds Rust references into it.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(failed("KVM_SET_USER_MEMORY_REGION"))
    }

    fn doorbell(&self, address: Address, value: u32, width: u8, notifier: &Notifier) -> bool {
        let Some((address, flags)) = own::bell(address) else { return false };
        let matching = if width == 0 { 0 } else { 1 << kvm_bindings::kvm_ioeventfd_flag_nr_datamatch };
        let request = kvm_ioeventfd {
            datamatch: if width == 0 { 0 } else { u64::from(value) },
            addr: address,
            len: u32::from(width),
            fd: notifier.as_fd().as_raw_fd(),
            flags: flags | matching,
            ..kvm_ioeventfd::default()
        };
        // SAFETY: this opcode (KVM_IOEVENTFD) reads one such struct and writes nothing; the
        // descriptors are open.
        unsafe {
            ioctl(lend(&self.fd), Setter::<{ opcode::write::<kvm_ioeventfd>(KVMIO, 0x79) }, _>::new(request))
        }
        .is_ok()
    }
}

impl Vm for KvmVm {
    type Vcpu = KvmVcpu;

    const HYPERVISOR: &'static str = "KVM";

    fn map(&self, slot: &Slot) -> Result<(), HvError> {
        let mut slots = self.0.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // KVM would take a second registration for a move of the first, whose host range would then
        // be nobody's.
        if slots.registered.contains_key(&slot.index()) {
            return Err(SlotRefused::NumberTaken.into());
        }
        if slots.complete {
            return Err(SlotRefused::TooLate.into());
        }
        own::reachable(&self.0.own, slot)?;
        self.0.set_region(slot)?;
        slots.registered.insert(slot.index(), slot.clone());
        Ok(())
    }

    fn create_irqchip(&self, plan: IrqchipPlan) -> Result<(), HvError> {
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner).complete = true;
        own::create_controllers(&self.0, plan)
    }

    fn irq_line(&self, line: InterruptLine) -> Result<SharedLine, HvError> {
        Ok(Arc::new(Line { machine: Arc::clone(&self.0), number: line.number() }))
    }

    fn offer_doorbell(&self, address: Address, value: u32, width: u8, notifier: &Notifier) -> bool {
        self.0.doorbell(address, value, width, notifier)
    }

    fn create_vcpu(&self, index: u32, count: u32) -> Result<KvmVcpu, HvError> {
        KvmVcpu::new(&self.0, index, count)
    }

    fn seal(&self) -> Result<(), HvError> {
        own::seal(&self.0)
    }

    fn save(&self) -> Result<Sections, HvError> {
        own::save_machine(&self.0)
    }

    fn restore(&self, state: Sections) -> Result<(), HvError> {
        own::load_machine(&self.0, state)
    }
}

/// A line.
#[derive(Debug)]
struct Line {
    machine: Arc<Inner>,
    number: u32,
}

impl IrqLine for Line {
    fn pulse(&self) -> io::Result<()> {
        self.set(true)?;
        self.set(false)
    }

    fn set(&self, high: bool) -> io::Result<()> {
        own::set_line(&self.machine, self.number, high)
    }
}
