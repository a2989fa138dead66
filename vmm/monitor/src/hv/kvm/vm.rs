//! A machine on KVM.

#![allow(
    unsafe_code,
    reason = "memory slots are host addresses, and doorbells have no safe wrapper that takes a borrowed descriptor"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap,
    kvm_ioeventfd, kvm_pit_config, kvm_userspace_memory_region,
};
use rustix::ioctl::{Setter, ioctl, opcode};

use super::super::{HvError, IrqLine, IrqchipPlan, SharedLine, SlotRefused, Vm};
use super::inner::{Inner, failed, lend};
use super::ioapic::IoApic;
use super::state;
use super::vcpu::KvmVcpu;
use crate::arch::x86_64::cpuid::can_nest;
use crate::arch::x86_64::layout;
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
        let fd = loop {
            match kvm.create_vm() {
                // A signal of the embedder's that arrived meanwhile is none of our business.
                Err(error) if error.errno() == libc::EINTR => {}
                result => break result.map_err(failed("KVM_CREATE_VM"))?,
            }
        };
        let cpuid =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        let supported: Vec<_> = cpuid.as_slice().iter().map(super::vcpu::leaf).collect();
        if nested == Nested::Shown && !can_nest(&supported) {
            return Err(HvError::Missing {
                capability: "nested virtualisation, which the configuration asks for: load kvm_amd or kvm_intel with nested=1, and \
                             inside a virtual machine have it enabled for that one",
            });
        }
        Ok(Self(Arc::new(Inner {
            kvm: Arc::clone(kvm),
            fd,
            supported,
            nested,
            slots: Mutex::default(),
            io_apic: OnceLock::new(),
            counter_restored: Mutex::default(),
            ended: Mutex::default(),
        })))
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
        let (address, port) = match address {
            Address::Port(port) => (u64::from(port), 1 << kvm_bindings::kvm_ioeventfd_flag_nr_pio),
            Address::Memory(address) => (address, 0),
        };
        let matching = if width == 0 { 0 } else { 1 << kvm_bindings::kvm_ioeventfd_flag_nr_datamatch };
        let request = kvm_ioeventfd {
            datamatch: if width == 0 { 0 } else { u64::from(value) },
            addr: address,
            len: u32::from(width),
            fd: notifier.as_fd().as_raw_fd(),
            flags: port | matching,
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
        self.0.set_region(slot)?;
        slots.registered.insert(slot.index(), slot.clone());
        Ok(())
    }

    fn create_irqchip(&self, plan: IrqchipPlan) -> Result<(), HvError> {
        let fd = &self.0.fd;
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner).complete = true;
        // Only Intel processors need these (pages for running real mode), and only they may refuse
        // them.
        let address = fits(layout::KVM_TSS, "hosts of Nelly have 64 bits");
        tolerate(fd.set_tss_address(address)).map_err(failed("KVM_SET_TSS_ADDR"))?;
        tolerate(fd.set_identity_map_address(layout::KVM_IDENTITY_MAP))
            .map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
        if plan.legacy_timer {
            fd.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
            // Port 0x61 answers as if a speaker were there, or kernels that look for the timer's
            // output wait in vain.
            let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
            return fd.create_pit2(pit).map_err(failed("KVM_CREATE_PIT2"));
        }
        // Local APICs in the kernel, everything else here.
        let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..kvm_enable_cap::default() };
        split.args[0] = u64::from(plan.lines);
        fd.enable_cap(&split).map_err(failed("KVM_CAP_SPLIT_IRQCHIP"))?;
        self.0.io_apic.get_or_init(|| Mutex::new(IoApic::new(plan.lines)));
        Ok(())
    }

    fn irq_line(&self, line: InterruptLine) -> Result<SharedLine, HvError> {
        Ok(Arc::new(Line { machine: Arc::clone(&self.0), gsi: line.number() }))
    }

    fn offer_doorbell(&self, address: Address, value: u32, width: u8, notifier: &Notifier) -> bool {
        self.0.doorbell(address, value, width, notifier)
    }

    fn create_vcpu(&self, index: u32, count: u32) -> Result<KvmVcpu, HvError> {
        KvmVcpu::new(&self.0, index, count)
    }

    /// Nothing here is left for last.
    fn seal(&self) -> Result<(), HvError> {
        Ok(())
    }

    fn save(&self) -> Result<Sections, HvError> {
        state::save_machine(&self.0)
    }

    fn restore(&self, state: Sections) -> Result<(), HvError> {
        state::load_machine(&self.0, state)
    }
}

/// A call that a KVM without hardware support of the kind may not have.
fn tolerate(result: Result<(), kvm_ioctls::Error>) -> Result<(), kvm_ioctls::Error> {
    match result {
        Err(error) if [libc::ENOTTY, libc::EINVAL].contains(&error.errno()) => Ok(()),
        result => result,
    }
}

/// A line: of the kernel's controllers by KVM_IRQ_LINE, of ours by KVM_SIGNAL_MSI. Both inject at
/// once; an irqfd would need a registration a line and takes a detour through a kernel worker for
/// anything but a message-signalled interrupt.
#[derive(Debug)]
struct Line {
    machine: Arc<Inner>,
    gsi: u32,
}

impl IrqLine for Line {
    fn pulse(&self) -> io::Result<()> {
        self.set(true)?;
        self.set(false)
    }

    fn set(&self, high: bool) -> io::Result<()> {
        let Some(mut apic) = self.machine.io_apic() else {
            return self.machine.fd.set_irq_line(self.gsi, high).map_err(Into::into);
        };
        let message = usize::try_from(self.gsi).ok().and_then(|pin| apic.set_line(pin, high));
        drop(apic);
        self.machine.signal(message);
        Ok(())
    }
}
