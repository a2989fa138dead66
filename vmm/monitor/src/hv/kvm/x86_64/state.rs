//! The state of vCPUs and machines, in and out: the kernel's own structures, one a section.
//!
//! Order out: the processor's mode first, for asking for it makes KVM settle start-up messages, and
//! events last, for asking for other things changes them. Order in: the mode of addressing, then
//! what depends on it; the local APIC behind its base address; the TSC before the deadline that
//! counts by it; events last. CPUID comes before all of it, since vCPUs have it from their
//! beginning: without it KVM reads registers as 0.

#![allow(
    unsafe_code,
    reason = "the kernel's structures are bytes, and their floating-point state has a size of its own"
)]

use std::sync::PoisonError;

use kvm_bindings::{
    Msrs, kvm_clock_data, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

use super::super::super::HvError;
use super::super::inner::{Inner, failed};
use super::ioapic::IoApic;
use crate::arch::Nested;
use crate::arch::x86_64::msr;
use crate::state::{Sections, StateError};

const MODE: &str = "kvm.vcpu.mode";
const REGISTERS: &str = "kvm.vcpu.registers";
const SYSTEM: &str = "kvm.vcpu.system_registers";
const EXTENDED: &str = "kvm.vcpu.extended_state";
const CONTROL: &str = "kvm.vcpu.extended_control";
const DEBUG: &str = "kvm.vcpu.debug_registers";
const LOCAL_APIC: &str = "kvm.vcpu.local_apic";
const MSRS: &str = "kvm.vcpu.model_registers";
const EVENTS: &str = "kvm.vcpu.events";
const CLOCK: &str = "kvm.clock";
const IO_APIC: &str = "kvm.io_apic";
/// The form of all of them: what Linux has promised for years.
const VERSION: u32 = 1;

/// More than a second of any processor's time stamp counter.
const SECONDS: u64 = 1 << 34;

/// A structure of the kernel's that is integers alone, without a gap between them.
///
/// # Safety
/// Every bit pattern is a value of it, and it has no padding.
unsafe trait Plain: Copy + Default {}
// SAFETY: integers alone, and what would be a gap is a field of theirs.
unsafe impl Plain for kvm_regs {}
// SAFETY: as above.
unsafe impl Plain for kvm_sregs {}
// SAFETY: as above.
unsafe impl Plain for kvm_xcrs {}
// SAFETY: as above.
unsafe impl Plain for kvm_debugregs {}
// SAFETY: as above.
unsafe impl Plain for kvm_mp_state {}
// SAFETY: as above.
unsafe impl Plain for kvm_vcpu_events {}
// SAFETY: as above.
unsafe impl Plain for kvm_clock_data {}

fn bytes<T: Plain>(value: &T) -> Vec<u8> {
    // SAFETY: the structure has no padding, so that all of its bytes were written.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }.to_vec()
}

fn value<T: Plain>(name: &str, bytes: &[u8]) -> Result<T, StateError> {
    if bytes.len() != size_of::<T>() {
        let why = format!("it has {} bytes, and {} are needed", bytes.len(), size_of::<T>());
        return Err(StateError::Unfit { name: name.to_owned(), why });
    }
    // SAFETY: as many bytes as the structure has, of which every pattern is a value; they need not
    // be aligned.
    Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

fn take<T: Plain>(state: &mut Sections, name: &str) -> Result<T, StateError> {
    value(name, &state.take(name, VERSION)?)
}

/// What a vCPU with virtualisation of its own is in the middle of is not among the sections.
fn not_nested(machine: &Inner) -> Result<(), HvError> {
    match machine.own.nested {
        Nested::Hidden => Ok(()),
        Nested::Shown => {
            Err(HvError::Unsupported { what: "the state of a machine with virtualisation of its own" })
        }
    }
}

/// Reads a vCPU that is out of the guest with nothing pending.
pub(super) fn save_vcpu(fd: &VcpuFd, machine: &Inner) -> Result<Sections, HvError> {
    not_nested(machine)?;
    let mut state = Sections::new();
    let mode = fd.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
    state.put(MODE, VERSION, bytes(&mode));
    state.put(REGISTERS, VERSION, bytes(&fd.get_regs().map_err(failed("KVM_GET_REGS"))?));
    state.put(SYSTEM, VERSION, bytes(&fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?));
    let extended = fd.get_xsave().map_err(failed("KVM_GET_XSAVE"))?;
    state.put(EXTENDED, VERSION, extended.region.iter().flat_map(|word| word.to_le_bytes()).collect());
    // Processors without XSAVE have none, and KVM takes none for them.
    if let Ok(control) = fd.get_xcrs()
        && control.nr_xcrs > 0
    {
        state.put(CONTROL, VERSION, bytes(&control));
    }
    state.put(DEBUG, VERSION, bytes(&fd.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?));
    let apic = fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    state.put(LOCAL_APIC, VERSION, apic.regs.iter().map(|byte| byte.cast_unsigned()).collect());
    let msrs = read_msrs(fd, &machine.msr_indices()?)?;
    let msrs = msrs.iter().flat_map(|(index, data)| {
        let mut bytes = index.to_le_bytes().to_vec();
        bytes.extend(data.to_le_bytes());
        bytes
    });
    state.put(MSRS, VERSION, msrs.collect());
    state.put(EVENTS, VERSION, bytes(&fd.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?));
    Ok(state)
}

/// Takes a vCPU's state back that was read from one of the same CPUID.
pub(super) fn load_vcpu(fd: &VcpuFd, machine: &Inner, mut state: Sections) -> Result<(), HvError> {
    not_nested(machine)?;
    let system: kvm_sregs = take(&mut state, SYSTEM)?;
    fd.set_sregs(&system).map_err(failed("KVM_SET_SREGS"))?;
    if let Some(control) = state.take_if_there(CONTROL, VERSION)? {
        fd.set_xcrs(&value(CONTROL, &control)?).map_err(failed("KVM_SET_XCRS"))?;
    }
    set_extended(fd, &state.take(EXTENDED, VERSION)?)?;
    fd.set_regs(&take(&mut state, REGISTERS)?).map_err(failed("KVM_SET_REGS"))?;
    fd.set_debug_regs(&take(&mut state, DEBUG)?).map_err(failed("KVM_SET_DEBUGREGS"))?;
    let apic = state.take(LOCAL_APIC, VERSION)?;
    let mut regs = kvm_lapic_state::default();
    if apic.len() != regs.regs.len() {
        return Err(unfit(LOCAL_APIC, "a local APIC has 1024 bytes").into());
    }
    regs.regs.iter_mut().zip(&apic).for_each(|(to, from)| *to = from.cast_signed());
    fd.set_lapic(&regs).map_err(failed("KVM_SET_LAPIC"))?;
    restore_msrs(fd, machine, &state.take(MSRS, VERSION)?)?;
    fd.set_mp_state(take(&mut state, MODE)?).map_err(failed("KVM_SET_MP_STATE"))?;
    fd.set_vcpu_events(&take(&mut state, EVENTS)?).map_err(failed("KVM_SET_VCPU_EVENTS"))?;
    state.finish()?;
    // Tells a guest with a paravirtual clock that it was stopped; one without has nothing to be
    // told.
    let _none = fd.kvmclock_ctrl();
    Ok(())
}

fn set_extended(fd: &VcpuFd, bytes: &[u8]) -> Result<(), HvError> {
    let mut extended = kvm_xsave::default();
    let (words, rest) = bytes.as_chunks::<4>();
    if words.len() != extended.region.len() || !rest.is_empty() {
        return Err(unfit(EXTENDED, "this host's floating-point state has another size").into());
    }
    extended.region.iter_mut().zip(words).for_each(|(to, from)| *to = u32::from_le_bytes(*from));
    // SAFETY: KVM reads as much as this guest may use, which is the structure's 4096 bytes: no
    // process of ours asks for more (AMX).
    unsafe { fd.set_xsave(&extended) }.map_err(failed("KVM_SET_XSAVE"))
}

/// Those that this vCPU has: KVM lists some that a processor of this CPUID has not, and stops at
/// each.
fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, HvError> {
    let mut found = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let entries: Vec<_> =
            rest.iter().map(|&index| kvm_msr_entry { index, ..kvm_msr_entry::default() }).collect();
        let mut list = msr_list(&entries)?;
        let read = fd.get_msrs(&mut list).map_err(failed("KVM_GET_MSRS"))?;
        found.extend(list.as_slice().iter().take(read).map(|entry| (entry.index, entry.data)));
        rest = rest.get(read + 1..).unwrap_or_default();
    }
    Ok(found)
}

/// Model-specific registers, the time stamp counter first.
///
/// KVM takes a counter that is written within a second of where another vCPU's would be for that
/// one's, so that all vCPUs count together; some versions take a new vCPU's 0 for such. So the
/// first of a machine's is moved away from there before it is set, and the others join it.
fn restore_msrs(fd: &VcpuFd, machine: &Inner, bytes: &[u8]) -> Result<(), HvError> {
    let (chunks, rest) = bytes.as_chunks::<12>();
    if !rest.is_empty() {
        return Err(unfit(MSRS, "its length is no number of registers").into());
    }
    let mut wanted: Vec<(u32, u64)> = chunks
        .iter()
        .map(|[a, b, c, d, data @ ..]| (u32::from_le_bytes([*a, *b, *c, *d]), u64::from_le_bytes(*data)))
        .collect();
    wanted.sort_by_key(|(index, _)| match *index {
        msr::TIME_STAMP_COUNTER => 0,
        msr::TSC_DEADLINE => 2,
        _ => 1,
    });
    let mut restored = machine.own.counter_restored.lock().unwrap_or_else(PoisonError::into_inner);
    if let (false, Some((msr::TIME_STAMP_COUNTER, counter))) = (*restored, wanted.first()) {
        write_msrs(fd, &[(msr::TIME_STAMP_COUNTER, counter.wrapping_add(SECONDS))])?;
        *restored = true;
    }
    // The other vCPUs wait for this one's to be set.
    let result = write_msrs(fd, &wanted);
    drop(restored);
    result
}

/// One that KVM does not take must have its value already.
fn write_msrs(fd: &VcpuFd, wanted: &[(u32, u64)]) -> Result<(), HvError> {
    let mut rest = wanted;
    while !rest.is_empty() {
        let entries: Vec<_> = rest
            .iter()
            .map(|&(index, data)| kvm_msr_entry { index, data, ..kvm_msr_entry::default() })
            .collect();
        let done = fd.set_msrs(&msr_list(&entries)?).map_err(failed("KVM_SET_MSRS"))?;
        if let Some((index, data)) = rest.get(done)
            && read_msrs(fd, &[*index])? != [(*index, *data)]
        {
            return Err(
                unfit(MSRS, &format!("this host does not take {data:#x} in register {index:#x}")).into()
            );
        }
        rest = rest.get(done + 1..).unwrap_or_default();
    }
    Ok(())
}

fn msr_list(entries: &[kvm_msr_entry]) -> Result<Msrs, HvError> {
    Msrs::from_entries(entries).map_err(|_| HvError::Missing { capability: "room for all MSRs" })
}

fn unfit(name: &str, why: &str) -> StateError {
    StateError::Unfit { name: name.to_owned(), why: why.to_owned() }
}

/// Reads what belongs to no vCPU.
pub(in super::super) fn save_machine(machine: &Inner) -> Result<Sections, HvError> {
    let mut state = Sections::new();
    let clock = machine.fd.get_clock().map_err(failed("KVM_GET_CLOCK"))?;
    state.put(CLOCK, VERSION, bytes(&clock));
    let Some(apic) = machine.io_apic() else {
        return Err(HvError::Unsupported { what: "the state of a machine with a legacy timer" });
    };
    state.put(IO_APIC, VERSION, apic.save());
    Ok(state)
}

/// Takes it back, when every vCPU has its own.
pub(in super::super) fn load_machine(machine: &Inner, mut state: Sections) -> Result<(), HvError> {
    let saved: kvm_clock_data = take(&mut state, CLOCK)?;
    // The time that passed meanwhile is none of the guest's.
    let clock = kvm_clock_data { clock: saved.clock, flags: 0, ..kvm_clock_data::default() };
    machine.fd.set_clock(&clock).map_err(failed("KVM_SET_CLOCK"))?;
    let Some(mut apic) = machine.io_apic() else {
        return Err(HvError::Unsupported { what: "the state of a machine with a legacy timer" });
    };
    *apic = IoApic::load(&state.take(IO_APIC, VERSION)?, apic.pins())
        .ok_or_else(|| unfit(IO_APIC, "it is that of a machine with other lines"))?;
    machine.report_ends(&apic.levels())?;
    drop(apic);
    state.finish()?;
    Ok(())
}
