//! A machine of 2 MiB with a few instructions in it.

use nelly_vmm::arch::x86_64::{self, EntryMode, descriptor_table, layout};
use nelly_vmm::arch::{BootState, Nested};
use nelly_vmm::hv::{Hypervisor, IrqchipPlan, Vcpu, Vm};
use nelly_vmm::memory::{Backing, GuestRam, Memory};
use vm_memory::{Bytes, GuestAddress};

/// Where the code is loaded and entered.
pub(crate) const CODE: u64 = 0x10_0000;
/// Memory for the guest's own use.
pub(crate) const SCRATCH: u64 = 0x18_0000;
/// No slot is here.
pub(crate) const DEVICE: u64 = layout::VIRTIO_MMIO;

pub(crate) use crate::asm::guest;
pub(crate) use crate::runner::{Runner, Seen};

/// A machine whose only RAM is 2 MiB from address 0.
pub(crate) struct Machine<H: Hypervisor> {
    pub(crate) vm: H::Vm,
    pub(crate) memory: Memory,
}

impl<H: Hypervisor> Machine<H> {
    /// With interrupt controllers for `vcpus`, unless that is 0.
    pub(crate) fn new(hypervisor: &H, code: &[u8], vcpus: u8) -> Self {
        Self::with_legacy(hypervisor, code, vcpus, false)
    }

    /// With the legacy controllers too.
    pub(crate) fn with_legacy(hypervisor: &H, code: &[u8], vcpus: u8, legacy_timer: bool) -> Self {
        Self::of(hypervisor.create_vm(Nested::Hidden).unwrap(), code, vcpus, legacy_timer)
    }

    /// One vCPU, and so many interrupt lines.
    pub(crate) fn with_lines(hypervisor: &H, code: &[u8], lines: u32) -> Self {
        let plan = IrqchipPlan { vcpus: 1, legacy_timer: false, lines };
        Self::furnished(hypervisor.create_vm(Nested::Hidden).unwrap(), code, Some(plan))
    }

    /// An empty machine furnished.
    pub(crate) fn of(vm: H::Vm, code: &[u8], vcpus: u8, legacy_timer: bool) -> Self {
        Self::furnished(vm, code, (vcpus > 0).then_some(IrqchipPlan { vcpus, legacy_timer, lines: 24 }))
    }

    fn furnished(vm: H::Vm, code: &[u8], plan: Option<IrqchipPlan>) -> Self {
        let ram = GuestRam::new(2 << 20, Backing::Anonymous).unwrap();
        for slot in ram.slots() {
            vm.map(slot).unwrap();
        }
        if let Some(plan) = plan {
            vm.create_irqchip(plan).unwrap();
        }
        let memory = ram.memory().clone();
        memory.write_slice(code, GuestAddress(CODE)).unwrap();
        page_tables(&memory);
        for (at, descriptor) in (0u64..).zip(descriptor_table(EntryMode::Long)) {
            memory.write_obj(descriptor, GuestAddress(layout::GDT + 8 * at)).unwrap();
        }
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

/// 64-bit entry at [`CODE`].
pub(crate) fn entry() -> BootState {
    BootState::X86(x86_64::BootState {
        mode: EntryMode::Long,
        rip: CODE,
        rsi: 0x1234_5678_9abc,
        rbx: 0x77,
        rsp: SCRATCH,
        cr3: layout::PAGE_TABLES,
        gdt_base: layout::GDT,
        gdt_limit: 39,
    })
}

/// Identity mapping of the first 4 GiB by 2 MiB pages.
fn page_tables(memory: &Memory) {
    let base = layout::PAGE_TABLES;
    let put = |at: u64, entry: u64| memory.write_obj(entry, GuestAddress(at)).unwrap();
    put(base, (base + 0x1000) | 3);
    for directory in 0..4 {
        let table = base + 0x2000 + directory * 0x1000;
        put(base + 0x1000 + directory * 8, table | 3);
        for page in 0..512 {
            put(table + page * 8, (directory << 30) | (page << 21) | 0x83);
        }
    }
}
