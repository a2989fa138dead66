//! What a hypervisor can run, found out by guests of a few instructions: a paravirtual or broken
//! one runs small guests and dies in a kernel. The guests are in a room an architecture.

mod aarch64;
mod x86_64;

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::{HvError, Hypervisor, Kicker, Vcpu, VcpuExit, Vm};
use crate::arch::{Address, Architecture, BootState, Nested};
use crate::memory::{Backing, MemoryError, Slot};

/// How long one guest may take. Hardware takes microseconds.
const PATIENCE: Duration = Duration::from_millis(150);
/// What a guest says when it got there.
const WORD: u8 = 0xb4;

/// The guests of an architecture.
struct Guests {
    /// What each tries, and its instructions.
    codes: &'static [(&'static str, &'static [u8])],
    /// Where its 2 MiB of memory begin.
    memory: u64,
    /// Puts the instructions there, and what they need.
    fill: fn(&Slot, &[u8]) -> Result<(), MemoryError>,
    entry: BootState,
    /// Where it says its word.
    output: Address,
}

fn guests() -> Guests {
    match Architecture::NATIVE {
        Architecture::X86_64 => x86_64::guests(),
        Architecture::Aarch64 => aarch64::guests(),
    }
}

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

/// Probes. Under half a second, whatever the hypervisor does.
///
/// # Errors
/// No guest could be made at all.
pub fn probe<H: Hypervisor>(hypervisor: &H) -> Result<Vec<Finding>, ProbeError> {
    let guests = guests();
    let found = guests.codes.iter().map(|&(name, code)| {
        let trouble = trouble(hypervisor, &guests, code)?;
        Ok(Finding { name, trouble })
    });
    found.collect()
}

/// What keeps a guest of this code from saying its word.
fn trouble<H: Hypervisor>(
    hypervisor: &H,
    guests: &Guests,
    code: &[u8],
) -> Result<Option<String>, ProbeError> {
    let slot = Slot::new(0, guests.memory, 2 << 20, Backing::Anonymous, false)?;
    (guests.fill)(&slot, code)?;
    let vm = hypervisor.create_vm(Nested::Hidden)?;
    vm.map(&slot)?;
    let mut vcpu = vm.create_vcpu(0, 1)?;
    vcpu.load(&guests.entry)?;
    vm.seal()?;
    let exit = bounded(&mut vcpu, guests.output)?;
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
fn bounded<V: Vcpu>(vcpu: &mut V, output: Address) -> Result<Said, HvError> {
    let kicker: Arc<dyn Kicker> = vcpu.kicker();
    let (done, wait) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if wait.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                kicker.kick();
            }
        });
        let said = match vcpu.run()? {
            VcpuExit::Write { address, data: [WORD], .. } if address == output => Said::Word,
            VcpuExit::TripleFault => Said::Nothing("the guest faulted".into()),
            VcpuExit::Fault(why) => Said::Nothing(why),
            VcpuExit::Kicked => Said::Nothing("the guest did not get on".into()),
            other => Said::Nothing(format!("the guest went astray: {other:?}")),
        };
        drop(done);
        Ok(said)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hv::fake::{Fake, Step};

    #[test]
    fn a_word_is_success_and_everything_else_has_its_reason() {
        let fake = Fake::new();
        let says = |word| Step::Write { address: guests().output, width: 1, data: vec![word] };
        fake.script(0, [says(0xb4), Step::TripleFault, Step::WaitForKick]);
        let findings = probe(&fake).unwrap();
        let troubles: Vec<_> = findings.iter().map(|finding| finding.trouble.as_deref()).collect();
        assert_eq!(troubles, [None, Some("the guest faulted"), Some("the guest did not get on")]);
        fake.script(0, [says(0), Step::Halt, Step::Fault("no such instruction".into())]);
        let troubles: Vec<_> =
            probe(&fake).unwrap().into_iter().map(|finding| finding.trouble.unwrap()).collect();
        assert!(troubles[0].contains("astray") && troubles[1].contains("Halted"), "{troubles:?}");
        assert_eq!(troubles[2], "no such instruction");
        assert_eq!((fake.record().machines, fake.record().vcpus), (0, 0));
    }
}
