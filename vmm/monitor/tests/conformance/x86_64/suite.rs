//! The statements that need no interrupt delivered in the guest.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nelly_vmm::arch::{Address, Nested};
use nelly_vmm::hv::{HvError, Hypervisor, SlotRefused, Vcpu, VcpuExit, Vm};
use nelly_vmm::memory::{Backing, Slot, view};
use nelly_vmm::sys::Notifier;
use nelly_vmm::timeline;
use vm_memory::{Bytes, GuestAddress};

use super::harness::{DEVICE, Machine, Runner, SCRATCH, Seen, entry, guest};

guest!(
    entry_code,
    "mov rax, rsi",
    "out 1, eax",
    "shr rax, 32",
    "out 1, eax",
    "mov eax, ebx",
    "out 1, eax",
    "mov rax, rsp",
    "out 1, eax",
    "mov rax, cr0",
    "out 1, eax",
    "push 0x5a",
    "pop rax",
    "out 1, eax",
    "pushfq",
    "pop rax",
    "out 1, eax",
    "2: jmp 2b",
);

/// Registers, mode and stack are as the boot state says.
pub(crate) fn entry_state<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, entry_code(), 1);
    let mut run = machine.boot();
    assert_eq!([run.word(), run.word()], [0x5678_9abc, 0x1234]);
    assert_eq!(run.word(), 0x77);
    assert_eq!(u64::from(run.word()), SCRATCH);
    assert_eq!(run.word() & 0x8000_0001, 0x8000_0001, "paging and protection");
    assert_eq!(run.word(), 0x5a);
    assert_eq!(run.word() & !0x8d5, 2, "interrupts and everything else off, but for the shift's flags");
}

guest!(
    port_write_code,
    "mov eax, 0x44332211",
    "out 0x10, al",
    "out 0x10, ax",
    "out 0x10, eax",
    "mov dx, 0xfffe",
    "out dx, al",
    "2: jmp 2b",
);

pub(crate) fn port_writes<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, port_write_code(), 1);
    let mut run = machine.boot();
    assert_eq!(run.next(), Seen::Out(0x10, 1, vec![0x11]));
    assert_eq!(run.next(), Seen::Out(0x10, 2, vec![0x11, 0x22]));
    assert_eq!(run.next(), Seen::Out(0x10, 4, vec![0x11, 0x22, 0x33, 0x44]));
    assert_eq!(run.next(), Seen::Out(0xfffe, 1, vec![0x11]));
}

guest!(
    port_read_code,
    "mov rax, -1",
    "in al, 0x10",
    "out 1, eax",
    "mov rax, -1",
    "in ax, 0x10",
    "out 1, eax",
    "mov rax, -1",
    "in eax, 0x10",
    "out 1, eax",
    // A 32-bit read clears the upper half, narrower ones keep it.
    "shr rax, 32",
    "out 1, eax",
    "2: jmp 2b",
);

pub(crate) fn port_reads<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, port_read_code(), 1);
    let mut run = machine.boot();
    let answer = [0x11, 0x22, 0x33, 0x44];
    assert_eq!(run.answer(&answer), Seen::In(0x10, 1, 1));
    assert_eq!(run.word(), 0xffff_ff11);
    assert_eq!(run.answer(&answer), Seen::In(0x10, 2, 2));
    assert_eq!(run.word(), 0xffff_2211);
    assert_eq!(run.answer(&answer), Seen::In(0x10, 4, 4));
    assert_eq!(run.word(), 0x4433_2211);
    assert_eq!(run.word(), 0);
}

guest!(
    string_code,
    "cld",
    "mov edi, 0x180000",
    "mov edx, 0x2220",
    "mov ecx, 7",
    "rep insb",
    "mov esi, 0x180000",
    "mov edx, 0x2221",
    "mov ecx, 7",
    "rep outsb",
    "mov edi, 0x180000",
    "mov edx, 0x222",
    "mov ecx, 3",
    "rep insw",
    "mov esi, 0x180000",
    "mov edx, 0x223",
    "mov ecx, 2",
    "rep outsd",
    "2: jmp 2b",
);

/// String instructions arrive whole or in parts; the sum is the same.
pub(crate) fn string_ports<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, string_code(), 1);
    let mut run = machine.boot();
    let give = |run: &mut Runner<_>, port: u16, width: u8, bytes: &[u8]| {
        let mut given = 0;
        while given < bytes.len() {
            match run.answer(&bytes[given..]) {
                Seen::In(at, wide, len) if (at, wide) == (port, width) => given += len,
                other => panic!("{other:x?}"),
            }
        }
        assert_eq!(given, bytes.len());
    };
    let take = |run: &mut Runner<_>, port: u16, width: u8, len: usize| {
        let mut taken = Vec::new();
        while taken.len() < len {
            match run.next() {
                Seen::Out(at, wide, data) if (at, wide) == (port, width) => taken.extend(data),
                other => panic!("{other:x?}"),
            }
        }
        taken
    };
    give(&mut run, 0x2220, 1, b"strings");
    assert_eq!(take(&mut run, 0x2221, 1, 7), b"strings");
    give(&mut run, 0x222, 2, b"abcdef");
    assert_eq!(take(&mut run, 0x223, 4, 8), b"abcdefs\0");
}

guest!(
    mmio_code,
    "mov rbx, 0xd0000000",
    "mov rax, 0x8877665544332211",
    "mov byte ptr [rbx], al",
    "mov word ptr [rbx + 2], ax",
    "mov dword ptr [rbx + 4], eax",
    "mov qword ptr [rbx + 8], rax",
    "movzx eax, byte ptr [rbx + 0x10]",
    "out 1, eax",
    "movzx eax, word ptr [rbx + 0x12]",
    "out 1, eax",
    "mov eax, dword ptr [rbx + 0x14]",
    "out 1, eax",
    "mov rax, qword ptr [rbx + 0x18]",
    "out 1, eax",
    "shr rax, 32",
    "out 1, eax",
    "2: jmp 2b",
);

pub(crate) fn mmio_widths<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, mmio_code(), 1);
    let mut run = machine.boot();
    let bytes = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];
    for (offset, len) in [(0, 1), (2, 2), (4, 4), (8, 8)] {
        assert_eq!(run.next(), Seen::Write(DEVICE + offset, bytes[..len].to_vec()));
    }
    for (offset, len, words) in [
        (0x10, 1, &[0x11][..]),
        (0x12, 2, &[0x2211]),
        (0x14, 4, &[0x4433_2211]),
        (0x18, 8, &[0x4433_2211, 0x8877_6655]),
    ] {
        assert_eq!(run.answer(&bytes), Seen::Read(DEVICE + offset, len));
        for word in words {
            assert_eq!(run.word(), *word);
        }
    }
}

guest!(halt_code, "mov al, 1", "out 1, al", "hlt", "mov al, 2", "out 1, al", "2: jmp 2b");

/// Without a controller to wake it a halted vCPU is the monitor's business.
pub(crate) fn halts_without_controllers<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, halt_code(), 0);
    let mut run = machine.boot();
    assert_eq!(run.byte(), 1);
    assert_eq!(run.next(), Seen::Halted);
    assert_eq!(run.byte(), 2);
}

guest!(
    fault_code,
    // A descriptor table without a descriptor.
    "xor eax, eax",
    "push rax",
    "push rax",
    "lidt [rsp]",
    "ud2",
);

pub(crate) fn triple_fault<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, fault_code(), 1);
    assert_eq!(machine.boot().next(), Seen::TripleFault);
}

guest!(spin_code, "mov al, 1", "out 1, al", "2: pause", "inc rcx", "jmp 2b");

guest!(
    doorbell_code,
    "mov rbx, 0xd0000050",
    "mov eax, 3",
    "mov dword ptr [rbx], eax",
    "mov word ptr [rbx], ax",
    "mov eax, 4",
    "mov dword ptr [rbx], eax",
    "mov eax, 9",
    "mov dword ptr [rbx + 0x100], eax",
    "mov al, 7",
    "out 0x50, al",
    "mov al, 1",
    "out 1, al",
    "mov eax, 3",
    "mov dword ptr [rbx], eax",
    "2: jmp 2b",
);

/// An accepted doorbell rings for its value and width alone; any other write is an exit. One that
/// was refused is an exit, too.
pub(crate) fn doorbells<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, doorbell_code(), 1);
    let bells = [Notifier::new().unwrap(), Notifier::new().unwrap(), Notifier::new().unwrap()];
    let at = Address::Memory(DEVICE + 0x50);
    let any = Address::Memory(DEVICE + 0x150);
    let port = Address::Port(0x50);
    let first = machine.vm.offer_doorbell(at, 3, 4, &bells[0]);
    let second = machine.vm.offer_doorbell(any, 0, 0, &bells[1]);
    let third = machine.vm.offer_doorbell(port, 0, 0, &bells[2]);
    let mut run = machine.boot();
    if !first {
        assert_eq!(run.next(), Seen::Write(DEVICE + 0x50, vec![3, 0, 0, 0]));
    }
    assert_eq!(run.next(), Seen::Write(DEVICE + 0x50, vec![3, 0]), "another width");
    assert_eq!(run.next(), Seen::Write(DEVICE + 0x50, vec![4, 0, 0, 0]), "another value");
    if !second {
        assert_eq!(run.next(), Seen::Write(DEVICE + 0x150, vec![9, 0, 0, 0]));
    }
    if !third {
        assert_eq!(run.next(), Seen::Out(0x50, 1, vec![7]));
    }
    assert_eq!(run.byte(), 1);
    assert_eq!(bells.each_ref().map(|bell| bell.consume().unwrap()), [first, second, third]);
}

guest!(
    slot_code,
    "mov rbx, 0x40000000",
    "mov eax, dword ptr [rbx]",
    "out 1, eax",
    "mov eax, dword ptr [rbx + 0x100000]",
    "out 1, eax",
    "2: jmp 2b",
);

/// A slot is registered once a number, once a place, and before there are interrupt controllers.
pub(crate) fn slots<H: Hypervisor>(hypervisor: &H) {
    let slot = |number, place| Slot::new(number, place, 1 << 20, Backing::Anonymous, false).unwrap();
    let first = slot(7, 0x4000_0000);
    view(std::slice::from_ref(&first)).unwrap().write_obj(5u32, GuestAddress(0x4000_0000)).unwrap();
    let vm = hypervisor.create_vm(Nested::Hidden).unwrap();
    vm.map(&first).unwrap();
    for again in [&first, &slot(7, 0x5000_0000)] {
        assert!(matches!(vm.map(again), Err(HvError::Slot(SlotRefused::NumberTaken))));
    }
    assert!(vm.map(&slot(8, 0x4008_0000)).is_err(), "a part of its place is taken");
    let machine = Machine::<H>::of(vm, slot_code(), 1, false);
    let late = machine.vm.map(&slot(9, 0x4010_0000));
    assert!(matches!(late, Err(HvError::Slot(SlotRefused::TooLate))), "{late:?}");
    let mut run = machine.boot();
    assert_eq!(run.word(), 5);
    assert_eq!(run.answer(&[0xee; 4]), Seen::Read(0x4010_0000, 4), "nothing of what was refused is there");
    assert_eq!(run.word(), 0xeeee_eeee);
}

guest!(
    read_only_code,
    "mov rbx, 0x40000000",
    "mov eax, dword ptr [rbx + 8]",
    "out 1, eax",
    "mov eax, 0x01020304",
    "mov dword ptr [rbx + 8], eax",
    "mov eax, dword ptr [rbx + 8]",
    "out 1, eax",
    "2: jmp 2b",
);

/// Reads of a read-only slot go to memory, writes exit and change nothing.
pub(crate) fn read_only_slot<H: Hypervisor>(hypervisor: &H) {
    let slot = Slot::new(7, 0x4000_0000, 4096, Backing::Anonymous, true).unwrap();
    view(std::slice::from_ref(&slot)).unwrap().write_obj(0x55aau32, GuestAddress(0x4000_0008)).unwrap();
    let vm = hypervisor.create_vm(Nested::Hidden).unwrap();
    vm.map(&slot).unwrap();
    let machine = Machine::<H>::of(vm, read_only_code(), 1, false);
    let mut run = machine.boot();
    assert_eq!(run.word(), 0x55aa);
    assert_eq!(run.next(), Seen::Write(0x4000_0008, vec![4, 3, 2, 1]));
    assert_eq!(run.word(), 0x55aa);
}

guest!(
    pending_code,
    "mov edi, 0x180000",
    "in eax, 0x10",
    "mov dword ptr [rdi], eax",
    "mov rbx, 0xd0000000",
    "mov eax, dword ptr [rbx]",
    "mov dword ptr [rdi + 4], eax",
    "mov al, 1",
    "out 1, al",
    "2: jmp 2b",
);

/// Completing takes the answer in, runs nothing of the guest, and loses no kick.
pub(crate) fn completes_without_entering<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, pending_code(), 1);
    let mut run = machine.boot();
    let scratch = |at: u64| machine.memory.read_obj::<u32>(GuestAddress(SCRATCH + at)).unwrap();
    assert_eq!(run.answer(&[0xab; 4]), Seen::In(0x10, 4, 4));
    let kicker = run.vcpu.kicker();
    kicker.kick();
    assert!(matches!(run.vcpu.complete_pending().unwrap(), VcpuExit::Kicked));
    assert_eq!(scratch(0), 0, "the next instruction did not run");
    assert_eq!(run.next(), Seen::Kicked, "the kick is still there");
    assert_eq!(run.answer(&[0xcd; 4]), Seen::Read(DEVICE, 4));
    assert_eq!(scratch(0), 0xabab_abab);
    assert!(matches!(run.vcpu.complete_pending().unwrap(), VcpuExit::Kicked));
    assert!(matches!(run.vcpu.complete_pending().unwrap(), VcpuExit::Kicked), "nothing is pending");
    assert_eq!(run.byte(), 1);
    assert_eq!(scratch(4), 0xcdcd_cdcd);
}

guest!(
    float_code,
    // CR4.OSFXSR and OSXMMEXCPT, then the whole state at once.
    "mov rax, cr4",
    "or eax, 0x600",
    "mov cr4, rax",
    "mov ebx, 0x190000",
    "fxsave [rbx]",
    "movzx eax, word ptr [rbx]",
    "out 1, eax",
    "mov eax, dword ptr [rbx + 24]",
    "out 1, eax",
    "2: jmp 2b",
);

/// All exceptions masked, extended precision: what a kernel that never initialises it relies on.
pub(crate) fn floating_point_state<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, float_code(), 1);
    let mut run = machine.boot();
    assert_eq!([run.word(), run.word()], [0x37f, 0x1f80]);
}

guest!(
    identity_code,
    "mov eax, 1",
    "cpuid",
    "mov eax, ebx",
    "out 1, eax",
    "mov eax, 0xb",
    "mov ecx, 1",
    "cpuid",
    "mov eax, ebx",
    "out 1, eax",
    "mov eax, edx",
    "out 1, eax",
    "2: jmp 2b",
);

/// Each vCPU is made on its own thread and knows its place. (Only the first runs: the others wait
/// for its start-up message.)
pub(crate) fn several_vcpus<H: Hypervisor>(hypervisor: &H)
where
    H::Vm: Sync,
{
    let machine = Machine::new(hypervisor, identity_code(), 3);
    let (vm, ready, sealed) = (&machine.vm, &AtomicU64::new(0), &Barrier::new(3));
    std::thread::scope(|scope| {
        for index in 1..3 {
            scope.spawn(move || {
                let mut run = Runner::new(vm.create_vcpu(index, 3).unwrap());
                sealed.wait();
                sealed.wait();
                ready.fetch_add(1, Ordering::SeqCst);
                let kicker = run.vcpu.kicker();
                std::thread::scope(|inner| {
                    inner.spawn(|| {
                        std::thread::sleep(Duration::from_millis(20));
                        kicker.kick();
                    });
                    assert_eq!(run.next(), Seen::Kicked, "waits for its start-up message");
                });
            });
        }
        let mut vcpu = vm.create_vcpu(0, 3).unwrap();
        vcpu.load(&entry()).unwrap();
        sealed.wait();
        vm.seal().unwrap();
        sealed.wait();
        let mut run = Runner::new(vcpu);
        let first = run.word();
        assert_eq!((first >> 24, (first >> 16) & 0xff), (0, 4));
        assert_eq!([run.word(), run.word()], [3, 0]);
    });
    assert_eq!(ready.load(Ordering::SeqCst), 2);
}

guest!(awake_code, "sti", "2: hlt", "jmp 2b");
guest!(asleep_code, "cli", "2: hlt", "jmp 2b");

/// A vCPU sleeps for good when it halted with interrupts disabled, or was never started.
pub(crate) fn sleep_for_good<H: Hypervisor>(hypervisor: &H) {
    for (code, sleeps) in [(awake_code(), false), (asleep_code(), true), (spin_code(), false)] {
        let machine = Machine::new(hypervisor, code, 2);
        let mut never_started = machine.vm.create_vcpu(1, 2).unwrap();
        assert!(never_started.sleeps_for_good());
        let mut run = machine.boot();
        let kicker = run.vcpu.kicker();
        // A kick may come before the instruction: one that is to be found is asked for until it was
        // reached.
        let until = Instant::now() + Duration::from_secs(60);
        let (mut found, mut asked) = (false, 0);
        while !found && (asked < 20 || sleeps && Instant::now() < until) {
            asked += 1;
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(5));
                    kicker.kick();
                });
                while run.next() != Seen::Kicked {}
            });
            assert!(matches!(run.vcpu.complete_pending(), Ok(VcpuExit::Kicked)));
            found |= run.vcpu.sleeps_for_good();
        }
        assert_eq!(found, sleeps);
    }
}

guest!(
    virtualisation_code,
    "mov eax, 1",
    "cpuid",
    "mov eax, ecx",
    "out 1, eax",
    "mov eax, 0x80000001",
    "cpuid",
    "mov eax, ecx",
    "out 1, eax",
    "mov eax, 0x8000000a",
    "cpuid",
    "or eax, ebx",
    "or eax, ecx",
    "or eax, edx",
    "out 1, eax",
    // EFER.SVME
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x1000",
    "wrmsr",
    "out 1, eax",
    "2: jmp 2b",
);

const VMX: u32 = 1 << 5;
const SVM: u32 = 1 << 2;

/// A guest sees neither VMX nor SVM, and what it tries faults, unless the machine is to have it;
/// then the host has it or refuses.
pub(crate) fn virtualisation_is_hidden<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, virtualisation_code(), 1);
    let mut run = machine.boot();
    let (basic, extended, svm) = (run.word(), run.word(), run.word());
    assert_eq!((basic & VMX, extended & SVM, svm), (0, 0, 0));
    assert_eq!(run.next(), Seen::TripleFault, "a register of SVM was written");
    drop(run);
    match hypervisor.create_vm(Nested::Shown) {
        Ok(vm) => {
            let machine = Machine::<H>::of(vm, virtualisation_code(), 1, false);
            let mut run = machine.boot();
            assert!(run.word() & VMX != 0 || run.word() & SVM != 0);
        }
        Err(error) => assert!(error.to_string().contains("nested=1"), "{error}"),
    }
}

/// Probing ends (in well under a second on an idle host) and answers for each kind of instruction.
pub(crate) fn probes<H: Hypervisor>(hypervisor: &H) {
    let start = Instant::now();
    let findings = nelly_vmm::hv::probe::probe(hypervisor).unwrap();
    let took = start.elapsed();
    println!("{findings:?} in {took:?}");
    assert_eq!(findings.len(), 3);
    assert!(took < Duration::from_secs(60), "{took:?}: each guest has 150 ms, the rest is a busy host's");
}

guest!(counter_code, "2: rdtsc", "out 1, eax", "mov eax, edx", "out 1, eax", "jmp 2b",);

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
        let (low, high) = (run.word(), run.word());
        stamps.push((before, u64::from(high) << 32 | u64::from(low), timeline::now_ns()));
        std::thread::sleep(Duration::from_millis(1));
    }
    let counter = run.vcpu.counter().expect("every KVM tells its guests' TSC");
    for (before, stamp, after) in stamps {
        let at = counter.host_ns(stamp).unwrap();
        let slack = 2 * counter.error_ns + 2_000;
        if before > at + slack || at > after + slack {
            return Err(format!("{before} {at} {after}: {counter:?}"));
        }
    }
    Ok(())
}
