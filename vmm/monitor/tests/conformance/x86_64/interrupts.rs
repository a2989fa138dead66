//! The statements about interrupts that reach the guest.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nelly_vmm::arch::InterruptLine;
use nelly_vmm::arch::x86_64;
use nelly_vmm::hv::{Hypervisor, Vcpu, Vm};
use vm_memory::{Bytes, GuestAddress};

use super::harness::{CODE, Machine, Runner, Seen, entry, guest};

/// Interrupt descriptor table and its register image, in the guest's scratch memory.
const IDT: u64 = 0x19_0000;
/// Where [`handler_code`] lies.
const HANDLER: u64 = 0x11_0000;
const VECTOR: u64 = 0x40;

fn pin(number: u32) -> InterruptLine {
    x86_64::line(number).unwrap()
}

guest!(
    wait_code,
    // Local APIC on (spurious vector register), the legacy controller's interrupts off (LINT0).
    "mov rbx, 0xfee00000",
    "mov dword ptr [rbx + 0xf0], 0x1ff",
    "mov dword ptr [rbx + 0x350], 0x10000",
    // I/O APIC pin 5: vector 0x40, fixed, to APIC 0, unmasked; the trigger is asked for.
    "in eax, 2",
    "mov rbx, 0xfec00000",
    "mov dword ptr [rbx], 0x1b",
    "mov dword ptr [rbx + 0x10], 0",
    "mov dword ptr [rbx], 0x1a",
    "mov dword ptr [rbx + 0x10], eax",
    "lidt [0x191000]",
    "mov al, 1",
    "out 1, al",
    "sti",
    "2: hlt",
    "jmp 2b",
);

guest!(
    handler_code,
    "mov al, 0x40",
    "out 1, al",
    "mov rbx, 0xfee00000",
    "mov dword ptr [rbx + 0xb0], 0",
    "iretq",
);

guest!(
    request_code,
    "mov rbx, 0xfee00000",
    "mov dword ptr [rbx + 0xf0], 0x1ff",
    "mov rcx, 0xfec00000",
    "mov dword ptr [rcx], 0x1b",
    "mov dword ptr [rcx + 0x10], 0",
    "mov dword ptr [rcx], 0x1a",
    "mov dword ptr [rcx + 0x10], 0x40",
    // Interrupt request register, vectors 0x40 to 0x5f: before and after each exit.
    "2: mov eax, dword ptr [rbx + 0x220]",
    "out 1, eax",
    "jmp 2b",
);

/// An edge on a line is requested at the local APIC with the vector that the guest set up for it,
/// with and without the legacy controllers.
pub(crate) fn line_reaches_the_local_apic<H: Hypervisor>(hypervisor: &H) {
    for legacy in [false, true] {
        let machine = Machine::with_legacy(hypervisor, request_code(), 1, legacy);
        let (line, other) = (machine.vm.irq_line(pin(5)).unwrap(), machine.vm.irq_line(pin(6)).unwrap());
        let mut run = machine.boot();
        assert_eq!(run.word(), 0);
        other.pulse().unwrap();
        assert_eq!(run.word(), 0, "masked");
        line.pulse().unwrap();
        assert_eq!(run.word(), 1);
    }
}

guest!(
    last_line_code,
    "mov rbx, 0xfee00000",
    "mov dword ptr [rbx + 0xf0], 0x1ff",
    "mov rcx, 0xfec00000",
    // Version and number of pins; then the last pin of the last register that can be selected.
    "mov dword ptr [rcx], 1",
    "mov eax, dword ptr [rcx + 0x10]",
    "out 1, eax",
    "mov dword ptr [rcx], 0xff",
    "mov dword ptr [rcx + 0x10], 0",
    "mov dword ptr [rcx], 0xfe",
    "mov dword ptr [rcx + 0x10], 0x40",
    "2: mov eax, dword ptr [rbx + 0x220]",
    "out 1, eax",
    "jmp 2b",
);

/// A machine with more devices than a PC has lines has lines for them: each reaches the local APIC
/// as any other does.
pub(crate) fn lines_beyond_those_of_a_pc<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::with_lines(hypervisor, last_line_code(), x86_64::layout::IO_APIC_PINS);
    let line = |number| machine.vm.irq_line(pin(number)).unwrap();
    let (last, other) = (line(x86_64::layout::IO_APIC_PINS - 1), line(24));
    let mut run = machine.boot();
    assert_eq!(run.word() & 0x00ff_00ff, 0x0077_0011);
    assert_eq!(run.word(), 0);
    other.pulse().unwrap();
    assert_eq!(run.word(), 0, "masked");
    last.pulse().unwrap();
    assert_eq!(run.word(), 1);
}

guest!(
    registers_code,
    "mov rbx, 0xfec00000",
    "mov dword ptr [rbx], 1",
    "mov eax, dword ptr [rbx + 0x10]",
    "out 1, eax",
    "mov dword ptr [rbx], 0x3f",
    "mov eax, dword ptr [rbx + 0x10]",
    "out 1, eax",
    "mov dword ptr [rbx + 0x10], 0x5a000000",
    "mov eax, dword ptr [rbx + 0x10]",
    "out 1, eax",
    "mov dword ptr [rbx], 0x3e",
    "mov eax, dword ptr [rbx + 0x10]",
    "out 1, eax",
    "2: jmp 2b",
);

/// The I/O APIC has 24 pins, which are masked at first, and never shows as an exit.
pub(crate) fn controller_registers<H: Hypervisor>(hypervisor: &H) {
    for legacy in [false, true] {
        let mut run = Machine::with_legacy(hypervisor, registers_code(), 1, legacy).boot();
        assert_eq!(run.word() & 0x00ff_00ff, 0x0017_0011);
        assert_eq!(run.word(), 0);
        assert_eq!(run.word(), 0x5a00_0000);
        assert_eq!(run.word() & 0x1_0000, 0x1_0000);
    }
}

/// A machine whose guest waits with interrupts on and runs [`handler_code`] for each.
pub(crate) fn waiting<H: Hypervisor>(hypervisor: &H, legacy: bool) -> Machine<H> {
    let machine = Machine::with_legacy(hypervisor, wait_code(), 1, legacy);
    let memory = &machine.memory;
    memory.write_slice(handler_code(), GuestAddress(HANDLER)).unwrap();
    // A 64-bit interrupt gate to HANDLER in code segment 0x10.
    let gate = (HANDLER & 0xffff) | 0x10 << 16 | 0x8e00 << 32 | (HANDLER >> 16) << 48;
    memory.write_obj(gate, GuestAddress(IDT + VECTOR * 16)).unwrap();
    memory.write_obj(0u64, GuestAddress(IDT + VECTOR * 16 + 8)).unwrap();
    memory.write_obj(0xfffu16, GuestAddress(0x19_1000)).unwrap();
    memory.write_obj(IDT, GuestAddress(0x19_1002)).unwrap();
    machine
}

/// An edge on a line runs the handler that the guest set up for it, once an edge, out of a halt.
pub(crate) fn line_reaches_a_handler<H: Hypervisor>(hypervisor: &H) {
    for legacy in [false, true] {
        let machine = waiting(hypervisor, legacy);
        let line = machine.vm.irq_line(pin(5)).unwrap();
        let mut run = machine.boot();
        assert_eq!(run.answer(&0x40u32.to_le_bytes()), Seen::In(2, 4, 4));
        assert_eq!(run.byte(), 1);
        // Each edge comes while the handler of the one before has not ended.
        for _ in 0..100 {
            line.pulse().unwrap();
            assert_eq!(run.byte(), 0x40);
        }
    }
}

/// A level runs the handler again and again until it is down, and not before it is up.
pub(crate) fn level_is_delivered_until_it_is_down<H: Hypervisor>(hypervisor: &H) {
    for legacy in [false, true] {
        let machine = waiting(hypervisor, legacy);
        let line = machine.vm.irq_line(pin(5)).unwrap();
        let mut run = machine.boot();
        assert_eq!(run.answer(&0x8040u32.to_le_bytes()), Seen::In(2, 4, 4));
        assert_eq!(run.byte(), 1);
        for _ in 0..3 {
            line.set(true).unwrap();
            for _ in 0..5 {
                assert_eq!(run.byte(), 0x40);
            }
            // Down before the handler's end: this was the last.
            line.set(false).unwrap();
            let kicker = run.vcpu.kicker();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(20));
                    kicker.kick();
                });
                // A paravirtual KVM was seen to deliver one more that it had requested already, and
                // two on a busy machine.
                let mut seen = run.next();
                for _ in 0..2 {
                    if legacy && seen == Seen::Out(1, 1, vec![0x40]) {
                        seen = run.next();
                    }
                }
                assert_eq!(seen, Seen::Kicked);
            });
        }
    }
}

guest!(
    startup_code,
    "mov rbx, 0xfee00000",
    "mov dword ptr [rbx + 0xf0], 0x1ff",
    "mov dword ptr [rbx + 0x310], 0x01000000",
    // INIT, then a start-up message for page 0x10.
    "mov dword ptr [rbx + 0x300], 0x4500",
    "mov dword ptr [rbx + 0x310], 0x01000000",
    "mov dword ptr [rbx + 0x300], 0x4610",
    "2: pause",
    "cmp byte ptr [0x11000], 0x77",
    "jne 2b",
    "mov al, 0x77",
    "out 1, al",
    "2: jmp 2b",
);

guest!(
    trampoline_code,
    ".code16",
    // Real mode, CS 0x1000.
    "mov al, 0x33",
    "out 1, al",
    "mov ax, cs",
    "mov ds, ax",
    "mov byte ptr [0x1000], 0x77",
    "2: jmp 2b",
);

/// The boot processor's start-up message starts the second one, in real mode at the page it names.
pub(crate) fn startup_message<H: Hypervisor>(hypervisor: &H)
where
    H::Vm: Sync,
{
    assert_eq!(CODE, 0x10_0000);
    let machine = Machine::new(hypervisor, startup_code(), 2);
    machine.memory.write_slice(trampoline_code(), GuestAddress(0x1_0000)).unwrap();
    let (vm, ended, sealed) = (&machine.vm, &AtomicBool::new(false), &Barrier::new(2));
    std::thread::scope(|scope| {
        let (hand_over, kicker) = std::sync::mpsc::channel();
        let second = scope.spawn(move || {
            let mut run = Runner::new(vm.create_vcpu(1, 2).unwrap());
            hand_over.send(run.vcpu.kicker()).unwrap();
            sealed.wait();
            assert_eq!(run.byte(), 0x33);
            while !ended.load(Ordering::SeqCst) {
                assert_eq!(run.next(), Seen::Kicked);
            }
        });
        let kicker = kicker.recv().unwrap();
        let mut vcpu = vm.create_vcpu(0, 2).unwrap();
        vcpu.load(&entry()).unwrap();
        vm.seal().unwrap();
        sealed.wait();
        assert_eq!(Runner::new(vcpu).byte(), 0x77);
        ended.store(true, Ordering::SeqCst);
        kicker.kick();
        second.join().unwrap();
    });
}
