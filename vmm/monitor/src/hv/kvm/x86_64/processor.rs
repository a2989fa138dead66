//! What a saved vCPU ran on: its CPUID, and how fast its time stamp counter counts. A guest has
//! looked at both once and for all, so that a vCPU which goes on elsewhere must find the same.

use kvm_ioctls::{Cap, VcpuFd};

use super::super::inner::Inner;
use crate::arch::x86_64::cpuid::Leaf;
use crate::state::{Sections, StateError};

const CPUID: &str = "kvm.vcpu.cpuid";
const FREQUENCY: &str = "kvm.vcpu.tsc_khz";
/// The form of both.
const VERSION: u32 = 1;
/// Bytes of a leaf.
const LEAF: usize = 28;
/// KVM takes a frequency that is no further off than this for the host's own (its parameter
/// `tsc_tolerance_ppm`).
const TOLERANCE_PPM: u64 = 250;

/// Writes down what a vCPU was given. `tsc_khz` is 0 where KVM does not say.
pub(super) fn save(state: &mut Sections, leaves: &[Leaf], tsc_khz: u32) {
    let words = leaves.iter().flat_map(|leaf| {
        let Leaf { function, index, indexed, eax, ebx, ecx, edx } = *leaf;
        [function, index, u32::from(indexed), eax, ebx, ecx, edx]
    });
    state.put(CPUID, VERSION, words.flat_map(u32::to_le_bytes).collect());
    state.put(FREQUENCY, VERSION, tsc_khz.to_le_bytes().to_vec());
}

/// The frequency that the saved vCPU had.
pub(super) fn take_frequency(state: &mut Sections) -> Result<u32, StateError> {
    let bytes = state.take(FREQUENCY, VERSION)?;
    let bytes = bytes.try_into().map_err(|_| unfit(FREQUENCY, "it has 4 bytes".to_owned()))?;
    Ok(u32::from_le_bytes(bytes))
}

/// Has the counter of a vCPU that was made with `own` kHz count at `saved` kHz.
pub(super) fn set_frequency(fd: &VcpuFd, machine: &Inner, own: u32, saved: u32) -> Result<(), StateError> {
    let near = u64::from(own.abs_diff(saved)) * 1_000_000 <= u64::from(own) * TOLERANCE_PPM;
    // KVM takes a higher frequency even where it cannot scale, and makes the counter jump.
    let can = near || machine.own.kvm.check_extension(Cap::TscControl);
    if own == 0 || saved == 0 || !can || fd.set_tsc_khz(saved).is_err() {
        let why = format!(
            "the counter of the saved processors counts at {saved} kHz, this host's at {own} kHz, and this host cannot scale it"
        );
        return Err(unfit(FREQUENCY, why));
    }
    Ok(())
}

/// Says whether the saved vCPU had the CPUID that this one has.
pub(super) fn check_cpuid(state: &mut Sections, own: &[Leaf]) -> Result<(), StateError> {
    let bytes = state.take(CPUID, VERSION)?;
    let (chunks, rest) = bytes.as_chunks::<LEAF>();
    if !rest.is_empty() {
        return Err(unfit(CPUID, "its length is no number of leaves".to_owned()));
    }
    let saved: Vec<Leaf> = chunks.iter().map(leaf).collect();
    match difference(&saved, own) {
        Some(why) => Err(unfit(CPUID, why)),
        None => Ok(()),
    }
}

fn leaf(bytes: &[u8; LEAF]) -> Leaf {
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Leaf {
        function: word(0),
        index: word(4),
        indexed: word(8) != 0,
        eax: word(12),
        ebx: word(16),
        ecx: word(20),
        edx: word(24),
    }
}

/// The first difference between two processors, as a sentence.
fn difference(saved: &[Leaf], own: &[Leaf]) -> Option<String> {
    let same = |one: &Leaf, other: &Leaf| {
        (one.function, one.index, one.indexed) == (other.function, other.index, other.indexed)
    };
    for leaf in saved {
        let name = name(leaf);
        let Some(found) = own.iter().find(|own| same(own, leaf)) else {
            return Some(format!("the saved processors have {name}, and this host's have not"));
        };
        let registers = [
            ("eax", leaf.eax, found.eax),
            ("ebx", leaf.ebx, found.ebx),
            ("ecx", leaf.ecx, found.ecx),
            ("edx", leaf.edx, found.edx),
        ];
        if let Some((register, saved, own)) = registers.into_iter().find(|(_, saved, own)| saved != own) {
            return Some(format!(
                "the saved processors have {name} {register} {saved:#x}, and this host gives {own:#x}"
            ));
        }
    }
    let more = own.iter().find(|own| !saved.iter().any(|leaf| same(leaf, own)))?;
    Some(format!("this host's processors have {}, and the saved ones have not", name(more)))
}

fn name(leaf: &Leaf) -> String {
    let Leaf { function, index, indexed, .. } = leaf;
    if *indexed { format!("CPUID leaf {function:#x}.{index}") } else { format!("CPUID leaf {function:#x}") }
}

fn unfit(name: &str, why: String) -> StateError {
    StateError::Unfit { name: name.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves() -> Vec<Leaf> {
        let plain = Leaf { function: 1, eax: 0x17, ..Leaf::default() };
        let indexed = Leaf { function: 7, index: 0, indexed: true, ebx: 0x21, edx: 9, ..Leaf::default() };
        vec![plain, indexed]
    }

    fn refusal(change: impl FnOnce(&mut Vec<Leaf>)) -> String {
        let (mut state, mut own) = (Sections::new(), leaves());
        save(&mut state, &leaves(), 2_400_000);
        change(&mut own);
        check_cpuid(&mut state, &own).unwrap_err().to_string()
    }

    #[test]
    fn the_same_processor_is_taken_and_the_order_of_its_leaves_does_not_matter() {
        let (mut state, mut own) = (Sections::new(), leaves());
        save(&mut state, &leaves(), 2_400_000);
        own.reverse();
        assert_eq!(check_cpuid(&mut state, &own), Ok(()));
        assert_eq!(take_frequency(&mut state), Ok(2_400_000));
        assert_eq!(state.finish(), Ok(()));
    }

    #[test]
    fn the_first_difference_is_a_sentence() {
        let said = refusal(|own| own[1].ebx = 0x20);
        assert!(said.ends_with("have CPUID leaf 0x7.0 ebx 0x21, and this host gives 0x20"), "{said}");
        let said = refusal(|own| own.truncate(0));
        assert!(
            said.ends_with("the saved processors have CPUID leaf 0x1, and this host's have not"),
            "{said}"
        );
        let said = refusal(|own| own.push(Leaf { function: 0xd, ..Leaf::default() }));
        assert!(said.ends_with("have CPUID leaf 0xd, and the saved ones have not"), "{said}");
        let mut state = Sections::new();
        state.put(CPUID, VERSION, vec![0; LEAF + 1]);
        state.put(FREQUENCY, VERSION, vec![0; 5]);
        assert!(check_cpuid(&mut state, &leaves()).is_err());
        assert!(take_frequency(&mut state).is_err());
    }
}
