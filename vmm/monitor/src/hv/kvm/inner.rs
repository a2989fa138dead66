//! What a machine and its vCPUs share: the kernel's machine, and the memory that it maps.

#![allow(unsafe_code, reason = "the bindings own their descriptors and do not lend them")]

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_msi};
use kvm_ioctls::{Kvm, VmFd};

use super::super::HvError;
use super::ioapic::{IoApic, Message};
use crate::arch::Nested;
use crate::arch::x86_64::cpuid::Leaf;
use crate::memory::Slot;
use crate::sys::{fits, leave_behind};

/// Dropped when the last vCPU is, since they hold this: from then on nobody can enter the machine
/// or reach the memory it maps.
#[derive(Debug)]
pub(super) struct Inner {
    /// The device, for questions that are seldom asked.
    pub(super) kvm: Arc<Kvm>,
    pub(super) fd: VmFd,
    /// What the hypervisor supports, asked once.
    pub(super) supported: Vec<Leaf>,
    /// Whether vCPUs show their virtualisation.
    pub(super) nested: Nested,
    pub(super) slots: Mutex<Slots>,
    /// Ours, where the kernel has none.
    pub(super) io_apic: OnceLock<Mutex<IoApic>>,
    /// A vCPU has taken its time stamp counter back from saved state.
    pub(super) counter_restored: Mutex<bool>,
    /// Descriptors of vCPUs that are gone: the kernel's machine lives as long as they do.
    pub(super) ended: Mutex<Vec<OwnedFd>>,
}

/// The memory of a machine.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// Those registered, by number: they keep their host ranges mapped.
    pub(super) registered: BTreeMap<u32, Slot>,
    /// There are interrupt controllers, so no slot is added any more.
    pub(super) complete: bool,
}

/// The end of a machine waits 10 ms and more in the kernel, for a grace period after the last
/// nested page table. Nothing of ours depends on it, so that neither a process nor an embedder's
/// thread waits for it.
///
/// What the kernel's machine still names is harmless meanwhile: its slots are ranges of this
/// process, which it follows as they are unmapped, and without a vCPU's descriptor nobody can enter
/// it.
impl Drop for Inner {
    fn drop(&mut self) {
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut left: Vec<_> = ended.iter().map(AsFd::as_fd).collect();
        left.push(lend(&self.fd));
        // Refused: closing them takes its time.
        let _slow = leave_behind(&left);
    }
}

/// The descriptor of one of the bindings' types, which own theirs and do not lend it.
pub(super) fn lend(owner: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: `owner` is one of the bindings' objects; it keeps its descriptor open for as long as
    // it is borrowed.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

pub(super) fn failed(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> HvError {
    move |error| HvError::Call { call, source: error.into() }
}

impl Inner {
    /// The model-specific registers that KVM keeps for a vCPU, some of which this processor may not
    /// have.
    pub(super) fn msr_indices(&self) -> Result<Vec<u32>, HvError> {
        let list = self.kvm.get_msr_index_list().map_err(failed("KVM_GET_MSR_INDEX_LIST"))?;
        Ok(list.as_slice().to_vec())
    }
}

/// The I/O APIC that is ours.
impl Inner {
    pub(super) fn io_apic(&self) -> Option<MutexGuard<'_, IoApic>> {
        self.io_apic.get().map(|apic| apic.lock().unwrap_or_else(PoisonError::into_inner))
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
    pub(super) fn signal(&self, messages: impl IntoIterator<Item = Message>) {
        for message in messages {
            let msi = kvm_msi { address_lo: message.address, data: message.data, ..kvm_msi::default() };
            let _nobody = self.fd.signal_msi(msi);
        }
    }
}
