//! A vCPU on KVM.

#![allow(
    unsafe_code,
    reason = "KVM_RUN fills a page shared with the kernel, and the signal mask has no wrapper"
)]

use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, PoisonError};

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_cpuid_entry2, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use rustix::io::Errno;
use rustix::ioctl::{NoArg, Setter, ioctl, opcode};

use super::super::{HvError, Kicker, Vcpu, VcpuExit};
use super::exit::{Decoded, RunPage};
use super::inner::{Inner, failed, lend};
use super::kick::Receiver;
use super::{processor, state};
use crate::arch::x86_64::cpuid::{self, Leaf, VcpuSpec};
use crate::arch::x86_64::{self, Segment, SystemRegisters, layout, msr};
use crate::arch::{Address, BootState};
use crate::state::Sections;
use crate::timeline::{GuestCounter, now_ns};

const KVMIO: u8 = 0xae;
/// How often the guest's TSC is read for one answer.
const COUNTER_READINGS: u32 = 5;
/// Where KVM_RUN's page begins: reserved RFLAGS bit 1 is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;
/// RFLAGS: interrupts are taken.
const RFLAGS_INTERRUPT: u64 = 1 << 9;
/// `IA32_APIC_BASE`: enabled, and this is the boot processor.
const APIC_BASE_BOOT: u64 = layout::LOCAL_APIC | 1 << 11 | 1 << 8;

/// A vCPU, on its thread. Fields are dropped in order: kicks end first, then the page and
/// descriptor (a duplicate of which the machine keeps for its own end), then (perhaps) the machine.
#[derive(Debug)]
pub struct KvmVcpu {
    kick: Receiver,
    run: RunPage,
    fd: VcpuFd,
    machine: Arc<Inner>,
    /// The host's TSC beside its clock when the vCPU was made: one end of the span over which the
    /// TSC's speed is measured.
    made: Moment,
    /// What its CPUID is made of.
    spec: VcpuSpec,
}

/// Both of the host's clocks at one moment.
#[derive(Clone, Copy, Debug)]
struct Moment {
    ns: u64,
    tsc: u64,
}

impl Moment {
    fn now() -> Self {
        // SAFETY: every x86-64 processor has the instruction, and Linux does not forbid it to its
        // processes.
        let tsc = unsafe { std::arch::x86_64::_rdtsc() };
        Self { ns: now_ns(), tsc }
    }
}

/// KVM's form of KVM_SET_SIGNAL_MASK with the mask behind it.
#[repr(C)]
struct SignalMask {
    len: u32,
    set: [u8; 8],
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

impl KvmVcpu {
    pub(super) fn new(machine: &Arc<Inner>, index: u32, count: u32) -> Result<Self, HvError> {
        if index >= count || count > 255 {
            return Err(HvError::Unsupported { what: "this number of vCPUs" });
        }
        let mut fd = machine.fd.create_vcpu(index.into()).map_err(failed("KVM_CREATE_VCPU"))?;
        let run = RunPage { page: NonNull::from(fd.get_kvm_run()), len: machine.fd.run_size() };
        let kick = Receiver::new(run.immediate_exit())?;
        // Not every KVM tells, and the guest finds the frequency out by kvm-clock too.
        let tsc_khz = fd.get_tsc_khz().unwrap_or(0);
        let spec = VcpuSpec { index, count, tsc_khz, nested: machine.nested };
        let vcpu = Self { kick, run, fd, machine: Arc::clone(machine), made: Moment::now(), spec };
        vcpu.set_signal_mask()?;
        vcpu.set_cpuid()?;
        vcpu.set_msrs()?;
        // The floating-point state after KVM's reset is what a kernel expects (FCW 0x37f, MXCSR
        // 0x1f80), and so is the local APIC: LINT0 passes on the legacy controller's interrupts on
        // the boot processor. Kernels set the rest up themselves.
        Ok(vcpu)
    }

    /// What it shows of itself.
    fn cpuid(&self) -> Vec<Leaf> {
        cpuid::for_vcpu(&self.machine.supported, self.spec)
    }

    fn set_cpuid(&self) -> Result<(), HvError> {
        let entries: Vec<_> = self.cpuid().iter().map(entry).collect();
        let entries = CpuId::from_entries(&entries)
            .map_err(|_| HvError::Missing { capability: "room for all CPUID leaves" })?;
        self.fd.set_cpuid2(&entries).map_err(failed("KVM_SET_CPUID2"))
    }

    /// KVM_RUN blocks what this thread blocks, but for the kick.
    fn set_signal_mask(&self) -> Result<(), HvError> {
        const SET_SIGNAL_MASK: rustix::ioctl::Opcode = opcode::write::<u32>(KVMIO, 0x8b);
        let mask = SignalMask { len: 8, set: self.kick.mask().to_ne_bytes() };
        // SAFETY: the opcode (whose size is that of the header, as KVM defines it) reads the header
        // and `len` bytes behind it.
        unsafe { ioctl(lend(&self.fd), Setter::<SET_SIGNAL_MASK, _>::new(mask)) }
            .map_err(|error| HvError::Call { call: "KVM_SET_SIGNAL_MASK", source: error.into() })
    }

    /// KVM stops at the first register that it does not know on this host: none of them is worth
    /// failing for.
    fn set_msrs(&self) -> Result<(), HvError> {
        let entries =
            msr::initial().map(|(index, data)| kvm_msr_entry { index, data, ..kvm_msr_entry::default() });
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            let list =
                Msrs::from_entries(rest).map_err(|_| HvError::Missing { capability: "room for all MSRs" })?;
            let done = self.fd.set_msrs(&list).map_err(failed("KVM_SET_MSRS"))?;
            rest = rest.get(done + 1..).unwrap_or_default();
        }
        Ok(())
    }

    /// The guest's TSC now.
    fn guest_tsc(&self) -> Option<u64> {
        let wanted = kvm_msr_entry { index: msr::TIME_STAMP_COUNTER, ..kvm_msr_entry::default() };
        let mut list = Msrs::from_entries(&[wanted]).ok()?;
        let read = self.fd.get_msrs(&mut list).ok()?;
        list.as_slice().get(..read)?.first().map(|entry| entry.data)
    }

    /// One KVM_RUN.
    fn enter(&self) -> Result<(), Errno> {
        // SAFETY: the opcode takes no argument; the kernel writes to the shared page, of which no
        // reference lives (`&self` of the callers is exclusive).
        unsafe { ioctl(lend(&self.fd), NoArg::<{ opcode::none(KVMIO, 0x80) }>::new()) }
    }

    /// Serves what is this room's business: the I/O APIC that is ours. Everything else is handed
    /// on.
    fn serve<'a>(&self, exit: VcpuExit<'a>) -> Result<Option<VcpuExit<'a>>, HvError> {
        match exit {
            VcpuExit::Read { address: Address::Memory(at), width, data } => {
                let served = self.machine.io_apic_read(at, data);
                Ok((!served).then_some(VcpuExit::Read { address: Address::Memory(at), width, data }))
            }
            VcpuExit::Write { address: Address::Memory(at), width, data } => {
                let served = self.machine.io_apic_write(at, data)?;
                Ok((!served).then_some(VcpuExit::Write { address: Address::Memory(at), width, data }))
            }
            exit => Ok(Some(exit)),
        }
    }

    fn fault<'a>(&self, text: &str) -> VcpuExit<'a> {
        match self.fd.get_regs() {
            Ok(registers) => VcpuExit::Fault(format!("{text} at {:#x}", registers.rip)),
            Err(_) => VcpuExit::Fault(text.to_owned()),
        }
    }

    /// What KVM_RUN's refusal means to the guest; a host failure otherwise.
    fn refused<'a>(&self, errno: Errno) -> Result<VcpuExit<'a>, HvError> {
        match errno {
            Errno::FAULT => Ok(self.fault("the guest used memory that the host cannot provide")),
            errno => Err(HvError::Call { call: "KVM_RUN", source: io::Error::from(errno) }),
        }
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        // Not to be had: then the machine's end is slow.
        if let Ok(fd) = lend(&self.fd).try_clone_to_owned() {
            self.machine.ended.lock().unwrap_or_else(PoisonError::into_inner).push(fd);
        }
    }
}

impl Vcpu for KvmVcpu {
    fn load(&mut self, state: &BootState) -> Result<(), HvError> {
        let BootState::X86(state) = state else {
            return Err(HvError::Unsupported { what: "a kernel of another architecture" });
        };
        self.fd.set_sregs(&system_registers(state)).map_err(failed("KVM_SET_SREGS"))?;
        self.fd.set_regs(&general_registers(state)).map_err(failed("KVM_SET_REGS"))
    }

    fn run(&mut self) -> Result<VcpuExit<'_>, HvError> {
        loop {
            if self.kick.is_pending() {
                self.kick.take();
                return Ok(VcpuExit::Kicked);
            }
            match self.enter() {
                Ok(()) => {}
                Err(Errno::INTR) => {
                    self.kick.take();
                    return Ok(VcpuExit::Kicked);
                }
                // A waiting processor got its start-up message.
                Err(Errno::AGAIN) => continue,
                Err(errno) => return self.refused(errno),
            }
            // SAFETY: the page is mapped while `self` lives, which the value borrows exclusively:
            // no KVM_RUN, no second value.
            match unsafe { self.run.exit() } {
                Decoded::VcpuExit(exit) => {
                    if let Some(exit) = self.serve(exit)? {
                        return Ok(exit);
                    }
                }
                Decoded::EndOfInterrupt(vector) => self.machine.io_apic_end(vector),
                Decoded::Again => {}
                Decoded::Fault(text) => return Ok(self.fault(&text)),
            }
        }
    }

    fn complete_pending(&mut self) -> Result<VcpuExit<'_>, HvError> {
        loop {
            self.kick.set_immediate_exit(1);
            let result = self.enter();
            self.kick.set_immediate_exit(0);
            match result {
                Err(Errno::INTR | Errno::AGAIN) => return Ok(VcpuExit::Kicked),
                Err(errno) => return self.refused(errno),
                Ok(()) => {}
            }
            // SAFETY: as in `run`.
            match unsafe { self.run.exit() } {
                Decoded::VcpuExit(exit) => {
                    if let Some(exit) = self.serve(exit)? {
                        return Ok(exit);
                    }
                }
                Decoded::EndOfInterrupt(vector) => self.machine.io_apic_end(vector),
                Decoded::Again => return Ok(VcpuExit::Kicked),
                Decoded::Fault(text) => return Ok(self.fault(&text)),
            }
        }
    }

    fn save(&mut self) -> Result<Sections, HvError> {
        let mut state = state::save_vcpu(&self.fd, &self.machine)?;
        processor::save(&mut state, &self.cpuid(), self.spec.tsc_khz);
        Ok(state)
    }

    fn restore(&mut self, mut state: Sections) -> Result<(), HvError> {
        let tsc_khz = processor::take_frequency(&mut state)?;
        if tsc_khz != self.spec.tsc_khz {
            processor::set_frequency(&self.fd, &self.machine, self.spec.tsc_khz, tsc_khz)?;
            self.spec.tsc_khz = tsc_khz;
            // The frequency is among its leaves.
            self.set_cpuid()?;
        }
        processor::check_cpuid(&mut state, &self.cpuid())?;
        state::load_vcpu(&self.fd, &self.machine, state)
    }

    fn counter(&mut self) -> Option<GuestCounter> {
        // The narrowest of a few: the host may take the processor away in between.
        let mut best: Option<(u64, u64, Moment)> = None;
        for _ in 0..COUNTER_READINGS {
            let before = now_ns();
            let guest = self.guest_tsc()?;
            let after = Moment::now();
            let took = after.ns.saturating_sub(before);
            if best.is_none_or(|(_, narrowest, _)| took < narrowest) {
                best = Some((guest, took, after));
            }
        }
        let (counter, took, after) = best?;
        let span_ticks = after.tsc.checked_sub(self.made.tsc).filter(|&ticks| ticks > 0)?;
        Some(GuestCounter {
            at_ns: after.ns - took / 2,
            counter,
            error_ns: took.div_ceil(2),
            span_ns: after.ns.saturating_sub(self.made.ns),
            span_ticks,
            nominal_khz: self.spec.tsc_khz.into(),
        })
    }

    fn sleeps_for_good(&mut self) -> bool {
        let state = self.fd.get_mp_state().map(|state| state.mp_state);
        match state {
            Ok(KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED) => true,
            Ok(KVM_MP_STATE_HALTED) => {
                let masked =
                    self.fd.get_regs().is_ok_and(|registers| registers.rflags & RFLAGS_INTERRUPT == 0);
                // What a disabled interrupt flag does not keep away.
                let events = self.fd.get_vcpu_events();
                masked
                    && events.is_ok_and(|events| {
                        (events.nmi.pending, events.nmi.injected, events.smi.pending) == (0, 0, 0)
                    })
            }
            _ => false,
        }
    }

    fn kicker(&self) -> Arc<dyn Kicker> {
        self.kick.kicker()
    }
}
