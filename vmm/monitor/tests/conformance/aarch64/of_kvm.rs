//! What is said of KVM alone: the features that it is asked for.

use nelly_vmm::arch::Nested;
use nelly_vmm::hv::{HvError, Hypervisor};

use super::harness::{Machine, guest};

guest!(
    features_code,
    "mov x28, #0x9000000",
    "mrs x0, ID_AA64PFR0_EL1",
    "str x0, [x28]",
    "mrs x0, ID_AA64PFR1_EL1",
    "str x0, [x28]",
    "mrs x0, ID_AA64DFR0_EL1",
    "str x0, [x28]",
    "mrs x0, ID_AA64ISAR1_EL1",
    "str x0, [x28]",
    "2: b 2b",
);

/// A guest sees no SVE, no memory tags, no performance monitors (whose interrupt nobody would take)
/// and no pointer authentication, and gets no virtualisation of its own.
pub(crate) fn what_is_left_off<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, features_code(), 1);
    let mut run = machine.boot();
    let field = |register: u64, bit: u32| register >> bit & 0xf;
    let [first, second, debug, instructions] = [(); 4].map(|()| run.long());
    assert_eq!((field(first, 32), field(second, 8), field(debug, 8)), (0, 0, 0), "SVE, MTE, PMU");
    assert_eq!([4, 8, 24, 28].map(|bit| field(instructions, bit)), [0; 4], "pointer authentication");
    assert!(matches!(hypervisor.create_vm(Nested::Shown), Err(HvError::Missing { .. })));
}
