//! What is said of KVM alone: the features that it is asked for, and its guests' counters.

use std::time::Duration;

use nelly_vmm::arch::Nested;
use nelly_vmm::hv::{HvError, Hypervisor, Vcpu};
use nelly_vmm::timeline;

use super::harness::{Machine, guest};
use super::suite::counter_code;

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

/// What a guest stamps by its counter lies, on the host's clock, between two moments of the host
/// round it. A host that is taken off its processor between two readings of its own clocks finds a
/// wrong frequency now and then; not five times.
pub(crate) fn counter_on_the_hosts_clock<H: Hypervisor>(hypervisor: &H) {
    let mut wrong = Vec::new();
    while wrong.len() < 5 {
        match stamps_beside_the_hosts_clock(hypervisor) {
            Ok(()) => return,
            Err(what) => wrong.push(what),
        }
    }
    panic!("{wrong:?}");
}

fn stamps_beside_the_hosts_clock<H: Hypervisor>(hypervisor: &H) -> Result<(), String> {
    let machine = Machine::new(hypervisor, counter_code(), 1);
    let mut run = machine.boot();
    let mut stamps = Vec::new();
    for _ in 0..20 {
        let before = timeline::now_ns();
        let stamp = run.long();
        stamps.push((before, stamp, timeline::now_ns()));
        std::thread::sleep(Duration::from_millis(1));
    }
    let counter = run.vcpu.counter().expect("KVM tells its guests' counter");
    for (before, stamp, after) in stamps {
        let at = counter.host_ns(stamp).unwrap();
        let slack = 2 * counter.error_ns + 2_000;
        if before > at + slack || at > after + slack {
            return Err(format!("{before} {at} {after}: {counter:?}"));
        }
    }
    Ok(())
}
