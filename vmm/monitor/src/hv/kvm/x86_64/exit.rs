//! Exits that only a PC's processor has.

#![allow(unsafe_code, reason = "the page is a union that the kernel fills")]

use kvm_bindings as kvm;

use super::super::super::VcpuExit;
use super::super::exit::{Decoded, RunPage};
use crate::arch::Address;

/// What this architecture's room answers itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Exit {
    /// The guest ended the level-triggered interrupt of this vector.
    EndOfInterrupt(u8),
}

/// Decodes an exit of this architecture; `None` for any other.
///
/// # Safety
/// As [`RunPage::exit`], and this is the reason that the page holds.
pub(in super::super) unsafe fn decode<'a>(page: RunPage, reason: u32) -> Option<Decoded<'a>> {
    let run = page.page.as_ptr();
    Some(match reason {
        // SAFETY: as the caller says.
        kvm::KVM_EXIT_IO => unsafe { port_io(page) },
        kvm::KVM_EXIT_HLT => Decoded::VcpuExit(VcpuExit::Halted),
        kvm::KVM_EXIT_SHUTDOWN => Decoded::VcpuExit(VcpuExit::TripleFault),
        kvm::KVM_EXIT_IRQ_WINDOW_OPEN => Decoded::Again,
        kvm::KVM_EXIT_IOAPIC_EOI => {
            // SAFETY: the reason says which field of the union the kernel filled.
            let vector = unsafe { (&raw const (*run).__bindgen_anon_1.eoi.vector).read() };
            Decoded::Own(Exit::EndOfInterrupt(vector))
        }
        _ => return None,
    })
}

/// # Safety
/// As [`decode`], and the reason is KVM_EXIT_IO.
unsafe fn port_io<'a>(page: RunPage) -> Decoded<'a> {
    let run = page.page.as_ptr();
    // SAFETY: the reason says which field of the union the kernel filled.
    let io = unsafe { (&raw const (*run).__bindgen_anon_1.io).read() };
    let wanted = usize::try_from(io.count).ok().and_then(|count| count.checked_mul(usize::from(io.size)));
    let start = usize::try_from(io.data_offset).ok();
    let inside =
        start.zip(wanted).filter(|(start, len)| start.checked_add(*len).is_some_and(|end| end <= page.len));
    let (Some((start, len)), 1 | 2 | 4) = (inside, io.size) else {
        return Decoded::Fault("KVM described a port access that its page does not hold".into());
    };
    // SAFETY: the range was checked to lie in the mapping, past the header that kickers write
    // to; the kernel leaves it alone until the next KVM_RUN, and the caller makes no second
    // reference.
    let data = unsafe { std::slice::from_raw_parts_mut(run.cast::<u8>().add(start), len) };
    Decoded::VcpuExit(if u32::from(io.direction) == kvm::KVM_EXIT_IO_IN {
        VcpuExit::Read { address: Address::Port(io.port), width: io.size, data }
    } else {
        VcpuExit::Write { address: Address::Port(io.port), width: io.size, data }
    })
}
