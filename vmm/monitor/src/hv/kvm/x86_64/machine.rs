//! What a machine has of a PC: its interrupt controllers, and how processors show themselves.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, KvmIrqRouting,
    kvm_enable_cap, kvm_irq_routing_entry, kvm_msi, kvm_pit_config,
};
use kvm_ioctls::{Kvm, VmFd};

use super::super::super::{HvError, IrqchipPlan};
use super::super::inner::{Inner, failed, uninterrupted};
use super::ioapic::{IoApic, Message};
use super::vcpu::leaf;
use crate::arch::x86_64::cpuid::{Leaf, can_nest};
use crate::arch::x86_64::layout;
use crate::arch::{Address, Nested};
use crate::memory::Slot;
use crate::sys::fits;

pub(in super::super) use super::state::{load_machine, save_machine};

/// What a machine has beside what every architecture's has.
#[derive(Debug)]
pub(in super::super) struct Machine {
    /// The device, for questions that are seldom asked.
    pub(super) kvm: Arc<Kvm>,
    /// What the hypervisor supports, asked once.
    pub(super) supported: Vec<Leaf>,
    /// Whether vCPUs show their virtualisation.
    pub(super) nested: Nested,
    /// Ours, where the kernel has none.
    io_apic: OnceLock<Mutex<IoApic>>,
    /// A vCPU has taken its time stamp counter back from saved state.
    pub(super) counter_restored: Mutex<bool>,
}

/// Creates an empty machine.
pub(in super::super) fn create_vm(kvm: &Arc<Kvm>, nested: Nested) -> Result<(VmFd, Machine), HvError> {
    let fd = uninterrupted(|| kvm.create_vm()).map_err(failed("KVM_CREATE_VM"))?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
    let supported: Vec<_> = cpuid.as_slice().iter().map(leaf).collect();
    if nested == Nested::Shown && !can_nest(&supported) {
        return Err(HvError::Missing {
            capability: "nested virtualisation, which the configuration asks for: load kvm_amd or kvm_intel with nested=1, and \
                         inside a virtual machine have it enabled for that one",
        });
    }
    Ok((
        fd,
        Machine {
            kvm: Arc::clone(kvm),
            supported,
            nested,
            io_apic: OnceLock::new(),
            counter_restored: Mutex::default(),
        },
    ))
}

/// Whether processors can reach a slot: they tell their guests how far that is.
pub(in super::super) fn reachable(_: &Machine, _: &Slot) -> Result<(), HvError> {
    Ok(())
}

/// Creates the interrupt controllers.
pub(in super::super) fn create_controllers(machine: &Inner, plan: IrqchipPlan) -> Result<(), HvError> {
    let fd = &machine.fd;
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
    machine.own.io_apic.get_or_init(|| Mutex::new(IoApic::new(plan.lines)));
    Ok(())
}

/// A call that a KVM without hardware support of the kind may not have.
fn tolerate(result: Result<(), kvm_ioctls::Error>) -> Result<(), kvm_ioctls::Error> {
    match result {
        Err(error) if [libc::ENOTTY, libc::EINVAL].contains(&error.errno()) => Ok(()),
        result => result,
    }
}

/// Nothing here is left for last.
pub(in super::super) fn seal(_: &Inner) -> Result<(), HvError> {
    Ok(())
}

/// Sets a line: of the kernel's controllers by KVM_IRQ_LINE, of ours by KVM_SIGNAL_MSI. Both inject
/// at once; an irqfd would need a registration a line and takes a detour through a kernel worker
/// for anything but a message-signalled interrupt.
pub(in super::super) fn set_line(machine: &Inner, gsi: u32, high: bool) -> io::Result<()> {
    let Some(mut apic) = machine.io_apic() else {
        return machine.fd.set_irq_line(gsi, high).map_err(Into::into);
    };
    let message = usize::try_from(gsi).ok().and_then(|pin| apic.set_line(pin, high));
    drop(apic);
    machine.signal(message);
    Ok(())
}

/// Where the kernel listens for a doorbell: the address, and the flags of KVM_IOEVENTFD.
pub(in super::super) fn bell(address: Address) -> Option<(u64, u32)> {
    match address {
        Address::Port(port) => Some((u64::from(port), 1 << kvm_bindings::kvm_ioeventfd_flag_nr_pio)),
        Address::Memory(address) => Some((address, 0)),
    }
}

impl Inner {
    /// The model-specific registers that KVM keeps for a vCPU, some of which this processor may not
    /// have.
    pub(super) fn msr_indices(&self) -> Result<Vec<u32>, HvError> {
        let list = self.own.kvm.get_msr_index_list().map_err(failed("KVM_GET_MSR_INDEX_LIST"))?;
        Ok(list.as_slice().to_vec())
    }
}

/// The I/O APIC that is ours.
impl Inner {
    pub(super) fn io_apic(&self) -> Option<MutexGuard<'_, IoApic>> {
        self.own.io_apic.get().map(|apic| apic.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serves a read of the I/O APIC; `false` when the address is none of its.
    pub(super) fn io_apic_read(&self, address: u64, data: &mut [u8]) -> bool {
        let served = IoApic::offset(address).zip(self.io_apic());
        served.is_some_and(|(offset, apic)| {
            apic.read(offset, data);
            true
        })
    }

    /// Serves a write to the I/O APIC; `false` when the address is none of its.
    pub(super) fn io_apic_write(&self, address: u64, data: &[u8]) -> Result<bool, HvError> {
        let Some((offset, mut apic)) = IoApic::offset(address).zip(self.io_apic()) else { return Ok(false) };
        let written = apic.write(offset, data);
        if written.levels_changed {
            // Under the lock, so that the last change is the one that counts.
            self.report_ends(&apic.levels())?;
        }
        drop(apic);
        self.signal(written.message);
        Ok(true)
    }

    /// The guest ended a level-triggered interrupt.
    pub(super) fn io_apic_end(&self, vector: u8) {
        let due = self.io_apic().map(|mut apic| apic.end(vector));
        self.signal(due.unwrap_or_default());
    }

    /// KVM reports the end of those interrupts alone that it knows as routes.
    pub(super) fn report_ends(&self, levels: &[(usize, Message)]) -> Result<(), HvError> {
        let route = |(pin, message): &(usize, Message)| {
            let mut entry = kvm_irq_routing_entry {
                gsi: fits(*pin, "an I/O APIC has some lines"),
                type_: KVM_IRQ_ROUTING_MSI,
                ..kvm_irq_routing_entry::default()
            };
            entry.u.msi.address_lo = message.address;
            entry.u.msi.data = message.data;
            entry
        };
        let routes: Vec<_> = levels.iter().map(route).collect();
        let routes = KvmIrqRouting::from_entries(&routes)
            .map_err(|_| HvError::Missing { capability: "room for all interrupt routes" })?;
        self.fd.set_gsi_routing(&routes).map_err(failed("KVM_SET_GSI_ROUTING"))
    }

    /// Delivers messages. One whose destination the guest made up reaches nobody, as on a bus.
    fn signal(&self, messages: impl IntoIterator<Item = Message>) {
        for message in messages {
            let msi = kvm_msi { address_lo: message.address, data: message.data, ..kvm_msi::default() };
            let _nobody = self.fd.signal_msi(msi);
        }
    }
}
