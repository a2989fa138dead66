//! What a vCPU has of a PC's processor.

#![allow(unsafe_code, reason = "the host's counter is an instruction of its own")]

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_cpuid_entry2, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::VcpuFd;

use super::super::super::{HvError, VcpuExit};
use super::super::inner::{Inner, failed};
use super::exit::Exit;
use super::{processor, state};
use crate::arch::x86_64::cpuid::{self, Leaf, VcpuSpec};
use crate::arch::x86_64::{self, Segment, SystemRegisters, layout, msr};
use crate::arch::{Address, BootState};
use crate::state::Sections;

/// Reserved bit 1 of RFLAGS, which is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;
/// RFLAGS: interrupts are taken.
const RFLAGS_INTERRUPT: u64 = 1 << 9;
/// `IA32_APIC_BASE`: enabled, and this is the boot processor.
const APIC_BASE_BOOT: u64 = layout::LOCAL_APIC | 1 << 11 | 1 << 8;

/// The host's TSC now.
pub(in super::super) fn host_counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux does not forbid it to its
    // processes.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// A leaf as KVM tells it.
pub(super) fn leaf(entry: &kvm_cpuid_entry2) -> Leaf {
    Leaf {
        function: entry.function,
        index: entry.index,
        indexed: entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

fn entry(leaf: &Leaf) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: leaf.function,
        index: leaf.index,
        flags: if leaf.indexed { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
        ..kvm_cpuid_entry2::default()
    }
}

fn segment(segment: &Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind,
        present: segment.present.into(),
        dpl: segment.privilege,
        db: segment.default_32.into(),
        s: segment.code_or_data.into(),
        l: segment.long.into(),
        g: segment.granular.into(),
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// All of them, so that none needs to be read first.
fn system_registers(state: &x86_64::BootState) -> kvm_sregs {
    let registers = SystemRegisters::at_entry(state);
    let data = segment(&registers.data);
    let mut sregs = kvm_sregs {
        cs: segment(&registers.code),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: segment(&registers.task),
        // Nothing is loaded; a null table descriptor is unusable.
        ldt: kvm_segment { type_: 2, unusable: 1, ..kvm_segment::default() },
        cr0: registers.cr0,
        cr3: registers.cr3,
        cr4: registers.cr4,
        efer: registers.efer,
        apic_base: APIC_BASE_BOOT,
        ..kvm_sregs::default()
    };
    sregs.gdt.base = state.gdt_base;
    sregs.gdt.limit = state.gdt_limit;
    sregs
}

fn general_registers(state: &x86_64::BootState) -> kvm_regs {
    kvm_regs {
        rip: state.rip,
        rsp: state.rsp,
        rsi: state.rsi,
        rbx: state.rbx,
        rflags: RFLAGS_RESERVED,
        ..kvm_regs::default()
    }
}

/// What a vCPU has beside what every architecture's has.
#[derive(Debug)]
pub(in super::super) struct Processor {
    /// What its CPUID is made of.
    spec: VcpuSpec,
}

impl Processor {
    pub(in super::super) fn new(
        fd: &VcpuFd,
        machine: &Inner,
        index: u32,
        count: u32,
    ) -> Result<Self, HvError> {
        // Not every KVM tells, and the guest finds the frequency out by kvm-clock too.
        let tsc_khz = fd.get_tsc_khz().unwrap_or(0);
        let processor = Self { spec: VcpuSpec { index, count, tsc_khz, nested: machine.own.nested } };
        processor.set_cpuid(fd, machine)?;
        Self::set_msrs(fd)?;
        // The floating-point state after KVM's reset is what a kernel expects (FCW 0x37f, MXCSR
        // 0x1f80), and so is the local APIC: LINT0 passes on the legacy controller's interrupts on
        // the boot processor. Kernels set the rest up themselves.
        Ok(processor)
    }

    pub(in super::super) fn load(&self, fd: &VcpuFd, state: &BootState) -> Result<(), HvError> {
        let BootState::X86(state) = state else {
            return Err(HvError::Unsupported { what: "a kernel of another architecture" });
        };
        fd.set_sregs(&system_registers(state)).map_err(failed("KVM_SET_SREGS"))?;
        fd.set_regs(&general_registers(state)).map_err(failed("KVM_SET_REGS"))
    }

    /// The address of its next instruction.
    pub(in super::super) fn place(fd: &VcpuFd) -> Option<u64> {
        fd.get_regs().ok().map(|registers| registers.rip)
    }

    /// What it shows of itself.
    fn cpuid(&self, machine: &Inner) -> Vec<Leaf> {
        cpuid::for_vcpu(&machine.own.supported, self.spec)
    }

    fn set_cpuid(&self, fd: &VcpuFd, machine: &Inner) -> Result<(), HvError> {
        let entries: Vec<_> = self.cpuid(machine).iter().map(entry).collect();
        let entries = CpuId::from_entries(&entries)
            .map_err(|_| HvError::Missing { capability: "room for all CPUID leaves" })?;
        fd.set_cpuid2(&entries).map_err(failed("KVM_SET_CPUID2"))
    }

    /// KVM stops at the first register that it does not know on this host: none of them is worth
    /// failing for.
    fn set_msrs(fd: &VcpuFd) -> Result<(), HvError> {
        let entries =
            msr::initial().map(|(index, data)| kvm_msr_entry { index, data, ..kvm_msr_entry::default() });
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            let list =
                Msrs::from_entries(rest).map_err(|_| HvError::Missing { capability: "room for all MSRs" })?;
            let done = fd.set_msrs(&list).map_err(failed("KVM_SET_MSRS"))?;
            rest = rest.get(done + 1..).unwrap_or_default();
        }
        Ok(())
    }

    /// The guest's TSC now.
    pub(in super::super) fn counter(fd: &VcpuFd) -> Option<u64> {
        let wanted = kvm_msr_entry { index: msr::TIME_STAMP_COUNTER, ..kvm_msr_entry::default() };
        let mut list = Msrs::from_entries(&[wanted]).ok()?;
        let read = fd.get_msrs(&mut list).ok()?;
        list.as_slice().get(..read)?.first().map(|entry| entry.data)
    }

    /// What guests take for the frequency of their TSC; 0 where KVM does not say.
    pub(in super::super) fn counter_khz(&self) -> u64 {
        self.spec.tsc_khz.into()
    }

    pub(in super::super) fn save(&self, fd: &VcpuFd, machine: &Inner) -> Result<Sections, HvError> {
        let mut state = state::save_vcpu(fd, machine)?;
        processor::save(&mut state, &self.cpuid(machine), self.spec.tsc_khz);
        Ok(state)
    }

    pub(in super::super) fn restore(
        &mut self,
        fd: &VcpuFd,
        machine: &Inner,
        mut state: Sections,
    ) -> Result<(), HvError> {
        let tsc_khz = processor::take_frequency(&mut state)?;
        if tsc_khz != self.spec.tsc_khz {
            processor::set_frequency(fd, machine, self.spec.tsc_khz, tsc_khz)?;
            self.spec.tsc_khz = tsc_khz;
            // The frequency is among its leaves.
            self.set_cpuid(fd, machine)?;
        }
        processor::check_cpuid(&mut state, &self.cpuid(machine))?;
        state::load_vcpu(fd, machine, state)
    }

    pub(in super::super) fn sleeps_for_good(fd: &VcpuFd) -> bool {
        let state = fd.get_mp_state().map(|state| state.mp_state);
        match state {
            Ok(KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED) => true,
            Ok(KVM_MP_STATE_HALTED) => {
                let masked = fd.get_regs().is_ok_and(|registers| registers.rflags & RFLAGS_INTERRUPT == 0);
                // What a disabled interrupt flag does not keep away.
                let events = fd.get_vcpu_events();
                masked
                    && events.is_ok_and(|events| {
                        (events.nmi.pending, events.nmi.injected, events.smi.pending) == (0, 0, 0)
                    })
            }
            _ => false,
        }
    }
}

impl Inner {
    /// Serves what is this room's business: the I/O APIC that is ours. Everything else is handed
    /// on.
    pub(in super::super) fn serve<'a>(&self, exit: VcpuExit<'a>) -> Result<Option<VcpuExit<'a>>, HvError> {
        match exit {
            VcpuExit::Read { address: Address::Memory(at), width, data } => {
                let served = self.io_apic_read(at, data);
                Ok((!served).then_some(VcpuExit::Read { address: Address::Memory(at), width, data }))
            }
            VcpuExit::Write { address: Address::Memory(at), width, data } => {
                let served = self.io_apic_write(at, data)?;
                Ok((!served).then_some(VcpuExit::Write { address: Address::Memory(at), width, data }))
            }
            exit => Ok(Some(exit)),
        }
    }

    pub(in super::super) fn serve_own(&self, exit: Exit) {
        match exit {
            Exit::EndOfInterrupt(vector) => self.io_apic_end(vector),
        }
    }
}
