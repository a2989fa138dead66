//! What a hypervisor can run, found out by guests of a few instructions: a paravirtual or broken
//! one runs small guests and dies in a kernel.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::{HvError, Hypervisor, Kicker, Vcpu, VcpuExit, Vm};
use crate::arch::x86_64::{self, EntryMode, descriptor_table, layout};
use crate::arch::{Address, BootState, Nested};
use crate::memory::{Backing, MemoryError, Slot, view};

/// How long one guest may take. Hardware takes microseconds.
const PATIENCE: Duration = Duration::from_millis(150);
/// Where a guest says that it got there, and what it says.
const PORT: u16 = 1;
const WORD: u8 = 0xb4;

/// One kind of instruction that every 64-bit kernel needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its name, for people.
    pub name: &'static str,
    /// What went wrong; `None` when it works.
    pub trouble: Option<String>,
}

/// Why the question could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The hypervisor failed.
    #[error("cannot make a guest to probe with")]
    Hypervisor(#[from] HvError),
    /// No memory for a guest of 2 MiB.
    #[error("cannot make a guest's memory")]
    Memory(#[from] MemoryError),
}

/// CR4.OSFXSR and OSXMMEXCPT set, then: movd xmm0, 0x5a; pshufd xmm1, xmm0, 0; paddd xmm1, xmm0;
/// cmp; out 1, al; hlt.
const SSE: &[u8] = &[
    0x0f, 0x20, 0xe0, 0x0d, 0x00, 0x06, 0x00, 0x00, 0x0f, 0x22, 0xe0, 0xb8, 0x5a, 0x00, 0x00, 0x00, 0x66,
    0x0f, 0x6e, 0xc0, 0x66, 0x0f, 0x70, 0xc8, 0x00, 0x66, 0x0f, 0xfe, 0xc8, 0x66, 0x0f, 0x7e, 0xc8, 0x3d,
    0xb4, 0x00, 0x00, 0x00, 0x75, 0x02, 0xe6, 0x01, 0xf4,
];

/// EFER.SCE, STAR (code segment 0x10), LSTAR (behind the hlt), FMASK 0; mov rbx, rsp; syscall; hlt;
/// at LSTAR: mov eax, 0xb4; cmp rbx, rsp; out 1, al; hlt.
const SYSCALL: &[u8] = &[
    0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x83, 0xc8, 0x01, 0x0f, 0x30, 0xb9, 0x81, 0x00, 0x00, 0xc0,
    0x31, 0xc0, 0xba, 0x10, 0x00, 0x00, 0x00, 0x0f, 0x30, 0xb9, 0x82, 0x00, 0x00, 0xc0, 0x48, 0x8d, 0x05,
    0x13, 0x00, 0x00, 0x00, 0x31, 0xd2, 0x0f, 0x30, 0xb9, 0x84, 0x00, 0x00, 0xc0, 0x31, 0xc0, 0x0f, 0x30,
    0x48, 0x89, 0xe3, 0x0f, 0x05, 0xf4, 0xb8, 0xb4, 0x00, 0x00, 0x00, 0x48, 0x39, 0xe3, 0x75, 0xf5, 0xe6,
    0x01, 0xf4,
];

/// 16 bytes of zeros at 0x8000; lock cmpxchg16b [0x8000] against zeros with 0xb4; out 1, al of what
/// is there then; hlt.
const CMPXCHG16B: &[u8] = &[
    0x31, 0xc0, 0x31, 0xd2, 0xbb, 0xb4, 0x00, 0x00, 0x00, 0x31, 0xc9, 0xbf, 0x00, 0x80, 0x00, 0x00, 0x48,
    0x89, 0x07, 0x48, 0x89, 0x57, 0x08, 0xf0, 0x48, 0x0f, 0xc7, 0x0f, 0x75, 0x04, 0x8b, 0x07, 0xe6, 0x01,
    0xf4,
];

/// Probes. Under half a second, whatever the hypervisor does.
///
/// # Errors
/// No guest could be made at all.
pub fn probe<H: Hypervisor>(hypervisor: &H) -> Result<Vec<Finding>, ProbeError> {
    let guests = [("SSE in ring 0", SSE), ("SYSCALL", SYSCALL), ("CMPXCHG16B", CMPXCHG16B)];
    guests.into_iter().map(|(name, code)| Ok(Finding { name, trouble: trouble(hypervisor, code)? })).collect()
}

/// What keeps a guest of this code from saying its word.
fn trouble<H: Hypervisor>(hypervisor: &H, code: &[u8]) -> Result<Option<String>, ProbeError> {
    let slot = Slot::new(0, 0, 2 << 20, Backing::Anonymous, false)?;
    fill(&slot, code)?;
    let vm = hypervisor.create_vm(Nested::Hidden)?;
    vm.map(&slot)?;
    let mut vcpu = vm.create_vcpu(0, 1)?;
    vcpu.load(&BootState::X86(x86_64::BootState {
        mode: EntryMode::Long,
        rip: layout::HIGH_MEMORY,
        rsi: 0,
        rbx: 0,
        rsp: layout::STACK,
        cr3: layout::PAGE_TABLES,
        gdt_base: layout::GDT,
        gdt_limit: 39,
    }))?;
    vm.seal()?;
    let exit = bounded(&mut vcpu)?;
    Ok(match exit {
        Said::Word => None,
        Said::Nothing(why) => Some(why),
    })
}

enum Said {
    Word,
    Nothing(String),
}

/// Runs to the first exit, or for as long as patience lasts.
fn bounded<V: Vcpu>(vcpu: &mut V) -> Result<Said, HvError> {
    let kicker: Arc<dyn Kicker> = vcpu.kicker();
    let (done, wait) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if wait.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                kicker.kick();
            }
        });
        let said = match vcpu.run()? {
            VcpuExit::Write { address: Address::Port(PORT), data: [WORD], .. } => Said::Word,
            VcpuExit::TripleFault => Said::Nothing("the guest faulted".into()),
            VcpuExit::Fault(why) => Said::Nothing(why),
            VcpuExit::Kicked => Said::Nothing("the guest did not get on".into()),
            other => Said::Nothing(format!("the guest went astray: {other:?}")),
        };
        drop(done);
        Ok(said)
    })
}

/// Code, descriptors, and page tables that map the guest's 2 MiB to themselves.
fn fill(slot: &Slot, code: &[u8]) -> Result<(), MemoryError> {
    let memory = view(std::slice::from_ref(slot))?;
    let refused = |_| MemoryError::Slot { guest: slot.guest(), len: slot.len() };
    let tables = layout::PAGE_TABLES;
    // Present and writable; the last one maps 2 MiB.
    let entries = [(tables, tables + 0x1003), (tables + 0x1000, tables + 0x2003), (tables + 0x2000, 0x83)];
    let descriptors = (layout::GDT..).step_by(8).zip(descriptor_table(EntryMode::Long));
    for (address, entry) in entries.into_iter().chain(descriptors) {
        memory.write_obj(entry, GuestAddress(address)).map_err(refused)?;
    }
    memory.write_slice(code, GuestAddress(layout::HIGH_MEMORY)).map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hv::fake::{Fake, Step};

    #[test]
    fn a_word_is_success_and_everything_else_has_its_reason() {
        let fake = Fake::new();
        fake.script(0, [Step::out(1, &[0xb4]), Step::TripleFault, Step::WaitForKick]);
        let findings = probe(&fake).unwrap();
        let troubles: Vec<_> = findings.iter().map(|finding| finding.trouble.as_deref()).collect();
        assert_eq!(troubles, [None, Some("the guest faulted"), Some("the guest did not get on")]);
        fake.script(0, [Step::out(1, &[0]), Step::Halt, Step::Fault("no such instruction".into())]);
        let troubles: Vec<_> =
            probe(&fake).unwrap().into_iter().map(|finding| finding.trouble.unwrap()).collect();
        assert!(troubles[0].contains("astray") && troubles[1].contains("Halted"), "{troubles:?}");
        assert_eq!(troubles[2], "no such instruction");
        assert_eq!((fake.record().machines, fake.record().vcpus), (0, 0));
    }
}
