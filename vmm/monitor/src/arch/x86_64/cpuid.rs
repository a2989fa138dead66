//! What CPUID tells a vCPU: pure functions from what the hypervisor supports to what one vCPU of a
//! machine sees.
//!
//! One package, one core a vCPU, one thread a core; APIC ids count from 0 without a gap. Leaves are
//! those of the Intel manual (volume 2A, CPUID) and the AMD manual (volume 3, appendix E);
//! 0x4000_00xx are KVM's (`Documentation/virt/kvm/x86/cpuid.rst`).
//!
//! A guest has VMX and SVM when it is to run machines of its own ([`Nested::Shown`]), and not
//! otherwise: the code that emulates them is the largest that a guest can reach in a hypervisor.
//! What these bits do not show is refused by KVM as well, register by register: CR4.VMXE, EFER.SVME
//! and the registers of both.

use crate::arch::Nested;

/// One leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Leaf {
    /// EAX at the instruction.
    pub function: u32,
    /// ECX at the instruction, where [`indexed`](Self::indexed).
    pub index: u32,
    /// Whether ECX selects a sub-leaf.
    pub indexed: bool,
    /// Answers.
    pub eax: u32,
    /// See `eax`.
    pub ebx: u32,
    /// See `eax`.
    pub ecx: u32,
    /// See `eax`.
    pub edx: u32,
}

/// Which vCPU asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuSpec {
    /// Its number, which is its APIC id.
    pub index: u32,
    /// vCPUs of the machine, 1 to 255.
    pub count: u32,
    /// Its time stamp counter's frequency in kHz; 0 when the hypervisor does not say.
    pub tsc_khz: u32,
    /// Whether it shows VMX or SVM, if the hypervisor supports it.
    pub nested: Nested,
}

/// Bits of leaf 1.
mod feature {
    /// ECX: MONITOR and MWAIT, which KVM runs as no-operations unless told otherwise.
    pub(super) const MONITOR: u32 = 1 << 3;
    /// ECX: VMX, Intel's virtualisation.
    pub(super) const VMX: u32 = 1 << 5;
    /// ECX: SMX, which measures what VMX then runs.
    pub(super) const SMX: u32 = 1 << 6;
    /// ECX: performance capabilities register.
    pub(super) const PDCM: u32 = 1 << 15;
    /// ECX: x2APIC, which the in-kernel local APIC has.
    pub(super) const X2APIC: u32 = 1 << 21;
    /// ECX: the local APIC's timer has a TSC deadline mode. KVM has it and does not report it here;
    /// without it a kernel spends most of its boot on calibrating that timer.
    pub(super) const TSC_DEADLINE: u32 = 1 << 24;
    /// ECX: OS has set CR4.OSXSAVE; the hypervisor keeps it up to date.
    pub(super) const OSXSAVE: u32 = 1 << 27;
    /// ECX: runs on a hypervisor.
    pub(super) const HYPERVISOR: u32 = 1 << 31;
    /// EDX: more than one logical processor in the package.
    pub(super) const HTT: u32 = 1 << 28;
}

/// Bits of leaf 0x8000_0001.
mod extended {
    /// ECX: SVM, AMD's virtualisation.
    pub(super) const SVM: u32 = 1 << 2;
    /// ECX: SKINIT and STGI, which start what SVM then runs.
    pub(super) const SKINIT: u32 = 1 << 12;
}

/// The leaf of frequencies: EAX is the TSC's, EBX the local APIC timer's, both in kHz.
const FREQUENCIES: u32 = 0x4000_0010;
/// KVM's local APIC timer counts nanoseconds.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// Bits above the core's number that an APIC id needs no room for: ids of `count` vCPUs take this
/// many bits.
#[must_use]
pub const fn id_bits(count: u32) -> u32 {
    if count <= 1 { 0 } else { u32::BITS - (count - 1).leading_zeros() }
}

/// Whether a guest can run machines of its own on a hypervisor that supports `supported`.
#[must_use]
pub fn can_nest(supported: &[Leaf]) -> bool {
    supported.iter().any(|leaf| match leaf.function {
        0x1 => leaf.ecx & feature::VMX != 0,
        0x8000_0001 => leaf.ecx & extended::SVM != 0,
        _ => false,
    })
}

/// The leaves of the vCPU that `spec` describes on a hypervisor that supports `supported`.
#[must_use]
pub fn for_vcpu(supported: &[Leaf], spec: VcpuSpec) -> Vec<Leaf> {
    let amd = is_amd(supported);
    let basic_max = supported.iter().find(|leaf| leaf.function == 0).map_or(0, |leaf| leaf.eax);
    let mut leaves: Vec<Leaf> = Vec::with_capacity(supported.len() + 8);
    leaves.extend(supported.iter().filter(|leaf| !is_ours(leaf.function)).map(|leaf| {
        let mut leaf = *leaf;
        patch(&mut leaf, spec, amd);
        if spec.nested == Nested::Hidden {
            hide_virtualisation(&mut leaf);
        }
        leaf
    }));
    for function in [0xb, 0x1f] {
        if function <= basic_max {
            topology(&mut leaves, function, spec);
        }
    }
    if spec.tsc_khz != 0 && leaves.iter().any(|leaf| leaf.function == 0x4000_0000) {
        leaves.push(Leaf { function: FREQUENCIES, eax: spec.tsc_khz, ebx: APIC_BUS_KHZ, ..Leaf::default() });
    }
    leaves
}

fn is_amd(supported: &[Leaf]) -> bool {
    // "AuthenticAMD" or "HygonGenuine", whose first four letters EBX holds.
    supported.iter().any(|leaf| leaf.function == 0 && matches!(&leaf.ebx.to_le_bytes(), b"Auth" | b"Hygo"))
}

/// Leaves that are written anew, or that a guest must not see: 0x8000_0026 is the host's topology
/// and optional.
fn is_ours(function: u32) -> bool {
    matches!(function, 0xb | 0x1f | FREQUENCIES | 0x8000_0026)
}

fn patch(leaf: &mut Leaf, spec: VcpuSpec, amd: bool) {
    // All fit their fields: there are at most 255 vCPUs.
    let (id, count, room) = (spec.index, spec.count, 1 << id_bits(spec.count));
    match leaf.function {
        0x1 => {
            leaf.ebx = leaf.ebx & 0x0000_ffff | id << 24 | room.min(255) << 16;
            leaf.ecx &= !(feature::MONITOR | feature::PDCM | feature::OSXSAVE);
            leaf.ecx |= feature::X2APIC | feature::TSC_DEADLINE | feature::HYPERVISOR;
            set(&mut leaf.edx, feature::HTT, count > 1);
        }
        // Deterministic caches: level in EAX[7:5], ids that share it less one in [25:14], cores a
        // package less one in [31:26].
        0x4 if leaf.eax & 0x1f != 0 => {
            leaf.eax = leaf.eax & 0x0000_3fff | sharing(leaf.eax, room) << 14 | (room - 1).min(63) << 26;
        }
        // Only "the local APIC's timer always runs".
        0x6 => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (1 << 2, 0, 0, 0),
        // No SGX (EBX[2], ECX[30]): it needs memory of its own. No architectural last-branch
        // records (EDX[19]).
        0x7 if leaf.index == 0 => {
            leaf.ebx &= !(1 << 2);
            leaf.ecx &= !(1 << 30);
            leaf.edx &= !(1 << 19);
        }
        // No performance monitoring, last-branch records, SGX, processor trace: what they tell of
        // the host is not the guest's.
        0xa | 0x12 | 0x14 | 0x1c | 0x8000_0022 => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
        0x4000_0000 if spec.tsc_khz != 0 => leaf.eax = leaf.eax.max(FREQUENCIES),
        // No performance counters (ECX[23], [24], [28]); "more than one core, the old way"
        // (ECX[1]).
        0x8000_0001 if amd => {
            leaf.ecx &= !(1 << 23 | 1 << 24 | 1 << 28);
            set(&mut leaf.ecx, 1 << 1, count > 1);
        }
        0x8000_0008 if amd => {
            leaf.ecx = leaf.ecx & !0xf0ff | (count - 1) & 0xff | id_bits(count) << 12;
        }
        0x8000_001d if amd && leaf.eax & 0x1f != 0 => {
            leaf.eax = leaf.eax & !(0xfff << 14) | sharing(leaf.eax, room) << 14;
        }
        // Extended APIC id; core id and one thread a core; one node.
        0x8000_001e if amd => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (id, id & 0xff, 0, 0),
        _ => {}
    }
}

fn hide_virtualisation(leaf: &mut Leaf) {
    match leaf.function {
        0x1 => leaf.ecx &= !(feature::VMX | feature::SMX),
        0x8000_0001 => leaf.ecx &= !(extended::SVM | extended::SKINIT),
        // SVM's revision, address spaces and features.
        0x8000_000a => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
        _ => {}
    }
}

/// Ids that share the cache described by EAX, less one: the first two levels are a core's own.
fn sharing(eax: u32, room: u32) -> u32 {
    if (eax >> 5) & 7 >= 3 { room - 1 } else { 0 }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on { *register | bit } else { *register & !bit };
}

/// Extended topology: a level of threads, a level of cores, the end. Level types are 1 and 2; EDX
/// is the x2APIC id at each.
fn topology(leaves: &mut Vec<Leaf>, function: u32, spec: VcpuSpec) {
    let mut level = |index: u32, shift: u32, processors: u32, kind: u32| {
        leaves.push(Leaf {
            function,
            index,
            indexed: true,
            eax: shift,
            ebx: processors,
            ecx: kind << 8 | index,
            edx: spec.index,
        });
    };
    level(0, 0, 1, 1);
    level(1, id_bits(spec.count), spec.count, 2);
    level(2, 0, 0, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: Option<u32>, regs: [u32; 4]) -> Leaf {
        let [eax, ebx, ecx, edx] = regs;
        Leaf { function, index: index.unwrap_or(0), indexed: index.is_some(), eax, ebx, ecx, edx }
    }

    fn vendor(name: &[u8; 12], max: u32) -> Leaf {
        let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
        leaf(0, None, [max, word(0), word(8), word(4)])
    }

    fn find(leaves: &[Leaf], function: u32, index: u32) -> Leaf {
        let found: Vec<_> =
            leaves.iter().filter(|leaf| leaf.function == function && leaf.index == index).collect();
        assert_eq!(found.len(), 1, "leaf {function:#x}.{index}");
        *found[0]
    }

    const ALL: [u32; 4] = [u32::MAX; 4];

    fn amd() -> Vec<Leaf> {
        vec![
            vendor(b"AuthenticAMD", 0x1f),
            leaf(1, None, [0x00a1_0f11, 0xee00_0800, 0x0000_8009, 1 << 28]),
            leaf(6, None, ALL),
            leaf(7, Some(0), ALL),
            leaf(0xa, None, ALL),
            leaf(0xb, Some(0), ALL),
            leaf(0x1f, Some(0), ALL),
            leaf(0x4000_0000, None, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
            leaf(0x8000_0001, None, ALL),
            leaf(0x8000_0008, None, [0x3030, 0, 0x7001, 0]),
            leaf(0x8000_000a, None, ALL),
            leaf(0x8000_001d, Some(0), [0x121, 0, 0, 0]),
            leaf(0x8000_001d, Some(3), [0x03ff_c163, 0, 0, 0]),
            leaf(0x8000_001d, Some(4), [0, 0, 0, 0]),
            leaf(0x8000_001e, None, ALL),
            leaf(0x8000_0022, None, ALL),
            leaf(0x8000_0026, Some(0), ALL),
        ]
    }

    #[test]
    fn ids_take_as_many_bits_as_the_last_one_needs() {
        for (count, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (32, 5), (33, 6), (255, 8)] {
            assert_eq!(id_bits(count), bits, "{count}");
        }
    }

    #[test]
    fn a_lone_vcpu_has_no_neighbours() {
        let leaves =
            for_vcpu(&amd(), VcpuSpec { index: 0, count: 1, tsc_khz: 2_000_000, nested: Nested::Hidden });
        let one = find(&leaves, 1, 0);
        assert_eq!(one.ebx, 0x0001_0800);
        assert_eq!(one.edx & (1 << 28), 0, "HTT");
        assert_eq!(
            one.ecx,
            1 | 1 << 21 | 1 << 24 | 1 << 31,
            "no MONITOR, no PDCM; x2APIC, deadline, hypervisor"
        );
        assert_eq!(find(&leaves, 6, 0), leaf(6, None, [4, 0, 0, 0]), "ARAT alone");
        assert_eq!(find(&leaves, 0xb, 1).eax, 0);
        assert_eq!(find(&leaves, 0x8000_0001, 0).ecx & (1 << 1 | 1 << 23 | 1 << 24 | 1 << 28), 0);
        assert_eq!(find(&leaves, 0x8000_0008, 0).ecx, 0);
        assert_eq!(find(&leaves, 0x4000_0000, 0).eax, 0x4000_0010);
        assert_eq!(find(&leaves, 0x4000_0010, 0), leaf(0x4000_0010, None, [2_000_000, 1_000_000, 0, 0]));
    }

    #[test]
    fn each_of_several_vcpus_knows_its_place() {
        for count in [2, 3, 4, 32, 255] {
            for index in [0, 1, count - 1] {
                let leaves = for_vcpu(&amd(), VcpuSpec { index, count, tsc_khz: 0, nested: Nested::Hidden });
                let room = 1u32 << id_bits(count);
                let one = find(&leaves, 1, 0);
                assert_eq!(one.ebx, index << 24 | room.min(255) << 16 | 0x800);
                assert_ne!(one.edx & (1 << 28), 0, "HTT");
                for function in [0xb, 0x1f] {
                    assert_eq!(find(&leaves, function, 0), leaf(function, Some(0), [0, 1, 0x100, index]));
                    let cores = leaf(function, Some(1), [id_bits(count), count, 0x201, index]);
                    assert_eq!(find(&leaves, function, 1), cores);
                    assert_eq!(find(&leaves, function, 2), leaf(function, Some(2), [0, 0, 2, index]));
                }
                assert_eq!(find(&leaves, 0x8000_0008, 0).ecx, (count - 1) | (id_bits(count) << 12));
                assert_eq!(find(&leaves, 0x8000_001d, 0).eax, 0x121, "a core's own");
                assert_eq!(find(&leaves, 0x8000_001d, 3).eax, 0x163 | (room - 1) << 14, "shared by all");
                assert_eq!(find(&leaves, 0x8000_001d, 4).eax, 0, "the end stays the end");
                assert_eq!(find(&leaves, 0x8000_001e, 0), leaf(0x8000_001e, None, [index, index, 0, 0]));
                assert_ne!(find(&leaves, 0x8000_0001, 0).ecx & 2, 0);
                assert!(!leaves.iter().any(|leaf| leaf.function == 0x4000_0010), "no frequency known");
            }
        }
    }

    #[test]
    fn the_hosts_topology_and_counters_do_not_leak() {
        let leaves = for_vcpu(&amd(), VcpuSpec { index: 1, count: 2, tsc_khz: 0, nested: Nested::Hidden });
        assert!(!leaves.iter().any(|leaf| leaf.function == 0x8000_0026));
        for function in [0xa, 0x8000_0022] {
            assert_eq!(find(&leaves, function, 0), leaf(function, None, [0; 4]));
        }
        let seven = find(&leaves, 7, 0);
        assert_eq!((seven.ebx, seven.ecx, seven.edx), (!(1 << 2), !(1 << 30), !(1 << 19)));
    }

    #[test]
    fn virtualisation_is_shown_when_it_is_asked_for_and_never_otherwise() {
        let intel = [vendor(b"GenuineIntel", 0xd), leaf(1, None, [0, 0, u32::MAX, 0])];
        let none = [vendor(b"GenuineIntel", 0xd), leaf(1, None, [0, 0, !(1 << 5), 0])];
        assert!(can_nest(&amd()) && can_nest(&intel) && !can_nest(&none) && !can_nest(&[]));
        for count in [1, 4] {
            let see =
                |host: &[Leaf], nested| for_vcpu(host, VcpuSpec { index: 0, count, tsc_khz: 0, nested });
            let (hidden, shown) = (see(&amd(), Nested::Hidden), see(&amd(), Nested::Shown));
            let ecx = |leaves: &[Leaf]| find(leaves, 0x8000_0001, 0).ecx & (1 << 2 | 1 << 12);
            assert_eq!((ecx(&hidden), ecx(&shown)), (0, 1 << 2 | 1 << 12));
            assert_eq!(find(&hidden, 0x8000_000a, 0), leaf(0x8000_000a, None, [0; 4]));
            assert_eq!(find(&shown, 0x8000_000a, 0), leaf(0x8000_000a, None, ALL));
            let ecx = |nested| find(&see(&intel, nested), 1, 0).ecx & (1 << 5 | 1 << 6);
            assert_eq!((ecx(Nested::Hidden), ecx(Nested::Shown)), (0, 1 << 5 | 1 << 6));
        }
    }

    #[test]
    fn intels_cache_leaf_and_amds_leaves_stay_with_their_vendor() {
        let host = [
            vendor(b"GenuineIntel", 0xd),
            leaf(4, Some(0), [0xfc00_4121, 1, 2, 3]),
            leaf(4, Some(3), [0xfc1f_c163, 1, 2, 3]),
            leaf(4, Some(4), [0, 0, 0, 0]),
            leaf(0x8000_0008, None, [0x3030, 0, 0, 0]),
        ];
        let leaves = for_vcpu(&host, VcpuSpec { index: 2, count: 4, tsc_khz: 0, nested: Nested::Hidden });
        assert_eq!(find(&leaves, 4, 0), leaf(4, Some(0), [0x0c00_0121, 1, 2, 3]));
        assert_eq!(find(&leaves, 4, 3), leaf(4, Some(3), [0x0c00_c163, 1, 2, 3]));
        assert_eq!(find(&leaves, 4, 4).eax, 0);
        assert_eq!(find(&leaves, 0x8000_0008, 0).ecx, 0);
        assert_eq!(find(&leaves, 0xb, 1).ebx, 4);
        assert!(!leaves.iter().any(|leaf| leaf.function == 0x1f), "beyond the highest basic leaf");
    }
}
