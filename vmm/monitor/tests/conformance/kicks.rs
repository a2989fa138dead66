//! Kicks: the same statements on every architecture.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nelly_vmm::hv::{Hypervisor, Vcpu};

use super::harness::{Machine, Seen};
use super::suite::{halt_code, spin_code};

pub(crate) fn kicks_a_spin<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, spin_code(), 1);
    let mut run = machine.boot();
    assert_eq!(run.byte(), 1);
    let kicker = run.vcpu.kicker();
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(30));
            kicker.kick();
        });
        assert_eq!(run.next(), Seen::Kicked);
    });
    let took = start.elapsed();
    assert!((Duration::from_millis(25)..Duration::from_secs(60)).contains(&took), "{took:?}");
}

/// A kick before the run ends it at once, and once.
pub(crate) fn kick_before_run<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, spin_code(), 1);
    let mut run = machine.boot();
    let kicker = run.vcpu.kicker();
    kicker.kick();
    kicker.kick();
    assert_eq!(run.next(), Seen::Kicked);
    assert_eq!(run.byte(), 1);
    kicker.kick();
    assert_eq!(run.next(), Seen::Kicked);
}

/// Whenever a kick comes, the run that it meets or precedes ends: another thread kicks 500 times,
/// each time after the last kick was seen.
pub(crate) fn no_kick_is_lost<H: Hypervisor>(hypervisor: &H) {
    const KICKS: u64 = 500;
    let machine = Machine::new(hypervisor, spin_code(), 1);
    let mut run = machine.boot();
    assert_eq!(run.byte(), 1);
    let kicker = run.vcpu.kicker();
    let (sent, seen, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=KICKS {
                sent.store(number, Ordering::SeqCst);
                kicker.kick();
                while seen.load(Ordering::SeqCst) < number && !stop.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
            }
        });
        let start = Instant::now();
        while seen.load(Ordering::SeqCst) < KICKS {
            assert_eq!(run.next(), Seen::Kicked);
            // A kick may be seen in two runs; it must be seen in one.
            seen.store(sent.load(Ordering::SeqCst), Ordering::SeqCst);
            if start.elapsed() > Duration::from_secs(15) {
                stop.store(true, Ordering::SeqCst);
                panic!("a kick was lost after {}", seen.load(Ordering::SeqCst));
            }
        }
    });
}

/// A vCPU that sleeps in the hypervisor's own controllers is kicked out too.
pub(crate) fn kick_out_of_a_halt<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, halt_code(), 1);
    let mut run = machine.boot();
    assert_eq!(run.byte(), 1);
    let kicker = run.vcpu.kicker();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            kicker.kick();
        });
        assert_eq!(run.next(), Seen::Kicked);
    });
}

pub(crate) fn kick_after_the_end<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, spin_code(), 1);
    let run = machine.boot();
    let kicker = run.vcpu.kicker();
    drop(run);
    kicker.kick();
    // There may be one a process.
    drop(machine);
    // The thread is as it was: a second vCPU runs on it.
    let mut again = Machine::new(hypervisor, spin_code(), 1).boot();
    assert_eq!(again.byte(), 1);
}
