//! A machine leaves nothing behind: alone in its process, so that counts mean something.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nelly_vmm::arch::x86_64::{self, EntryMode, layout};
use nelly_vmm::arch::{Address, BootState, Nested};
use nelly_vmm::hv::{Hypervisor, IrqchipPlan, Vcpu, VcpuExit, Vm, kvm};
use nelly_vmm::memory::{Backing, GuestRam};
use nelly_vmm::sys::Notifier;
use vm_memory::{Bytes, GuestAddress};

/// Machines that live and die between the two counts.
const ROUNDS: usize = 20;

/// What a process may leak, and the signals its thread blocks.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    descriptors: usize,
    threads: usize,
    kvm_mappings: usize,
    blocked_signals: String,
}

fn mappings() -> usize {
    fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

fn counts() -> Counts {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    Counts {
        descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
        threads: fs::read_dir("/proc/self/task").unwrap().count(),
        kvm_mappings: maps.lines().filter(|line| line.contains("kvm")).count(),
        blocked_signals: status.lines().find(|line| line.starts_with("SigBlk")).unwrap().to_owned(),
    }
}

/// Two vCPUs on two threads, a doorbell, a line, a kicker that outlives the machine.
fn live_and_die(legacy_timer: bool) {
    let hypervisor = kvm::open().expect("this test needs the host's hypervisor");
    let ram = GuestRam::new(4 << 20, Backing::SharedFile).unwrap();
    let vm = hypervisor.create_vm(Nested::Hidden).unwrap();
    ram.slots().iter().for_each(|slot| vm.map(slot).unwrap());
    vm.create_irqchip(IrqchipPlan { vcpus: 2, legacy_timer, lines: 24 }).unwrap();
    let bell = Notifier::new().unwrap();
    assert!(vm.offer_doorbell(Address::Memory(layout::VIRTIO_MMIO + 0x50), 1, 4, &bell));
    let line = vm.irq_line(x86_64::line(5).unwrap()).unwrap();
    line.pulse().unwrap();
    let memory = ram.memory().clone();
    // out 1, al; jmp $
    memory.write_slice(&[0xe6, 1, 0xeb, 0xfe], GuestAddress(0x1000)).unwrap();
    let state = x86_64::BootState {
        mode: EntryMode::Protected,
        rip: 0x1000,
        rsi: 0,
        rbx: 0,
        rsp: 0x8000,
        cr3: 0,
        gdt_base: layout::GDT,
        gdt_limit: 39,
    };
    let (ended, made) = (AtomicBool::new(false), Barrier::new(2));
    std::thread::scope(|scope| {
        let (send, kickers) = std::sync::mpsc::channel();
        for index in 0..2 {
            let (vm, ended, made, send) = (&vm, &ended, &made, send.clone());
            scope.spawn(move || {
                let mut vcpu = vm.create_vcpu(index, 2).unwrap();
                if index == 0 {
                    vcpu.load(&BootState::X86(state)).unwrap();
                }
                if made.wait().is_leader() {
                    vm.seal().unwrap();
                }
                made.wait();
                if index == 0 {
                    assert!(matches!(vcpu.run().unwrap(), VcpuExit::Write { address: Address::Port(1), .. }));
                }
                send.send(vcpu.kicker()).unwrap();
                while !ended.load(Ordering::SeqCst) {
                    assert!(matches!(vcpu.run().unwrap(), VcpuExit::Kicked));
                }
            });
        }
        let kickers = [kickers.recv().unwrap(), kickers.recv().unwrap()];
        std::thread::sleep(Duration::from_millis(2));
        ended.store(true, Ordering::SeqCst);
        kickers.iter().for_each(|kicker| kicker.kick());
    });
    // In an order that none of them cares for.
    drop((memory, vm, bell, ram, line));
}

/// The counts, once threads that were joined are out of the list: they may still be on their way.
fn settled(threads: usize) -> Counts {
    for _ in 0..500 {
        if counts().threads == threads {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    counts()
}

#[test]
fn nothing_is_left_behind() {
    let threads = counts().threads;
    (0..4).for_each(|round| live_and_die(round % 2 == 0));
    let (before, mapped) = (settled(threads), mappings());
    (0..ROUNDS).for_each(|round| live_and_die(round % 2 == 0));
    assert_eq!(settled(threads), before);
    assert_eq!(before.kvm_mappings, 0);
    // Threads that run at the same moment get a heap each from the allocator, which keeps it: a few
    // at most, not one a machine.
    assert!(mappings() < mapped + ROUNDS, "{mapped} mappings became {}", mappings());
}
