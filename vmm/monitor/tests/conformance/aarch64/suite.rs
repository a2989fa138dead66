//! The statements that need no interrupt delivered in the guest. Every guest speaks at 0x9000000,
//! and has no literals, which the assembler would share among guests.

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use nelly_vmm::arch::{Address, Nested};
use nelly_vmm::hv::{HvError, Hypervisor, SlotRefused, Vcpu, VcpuExit, Vm};
use nelly_vmm::memory::{Backing, Slot, view};
use nelly_vmm::state::Sections;
use nelly_vmm::sys::Notifier;
use nelly_vmm::timeline;
use vm_memory::{Bytes, GuestAddress};

use super::harness::{ARGUMENT, CODE, DEVICE, Machine, Runner, SCRATCH, Seen, entry, guest};

guest!(
    entry_code,
    "mov x28, #0x9000000",
    "str x0, [x28]",
    "mrs x1, CurrentEL",
    "str w1, [x28]",
    "mrs x1, DAIF",
    "str w1, [x28]",
    "mrs x1, SPSel",
    "str w1, [x28]",
    "mrs x1, SCTLR_EL1",
    "str w1, [x28]",
    "mrs x1, MPIDR_EL1",
    "str w1, [x28]",
    "2: b 2b",
);

/// EL1 with a stack of its own, everything masked, the MMU off, the argument in x0.
pub(crate) fn entry_state<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, entry_code(), 1);
    let mut run = machine.boot();
    assert_eq!(run.long(), ARGUMENT);
    assert_eq!(run.word() >> 2, 1, "the exception level");
    assert_eq!(run.word(), 0xf << 6, "debug, SError, IRQ and FIQ are masked");
    assert_eq!(run.word(), 1);
    assert_eq!(run.word() & 0x1005, 0, "MMU and caches are off");
    assert_eq!(run.word() & 0xff_ffff, 0, "the first processor");
}

guest!(
    mmio_code,
    "mov x28, #0x9000000",
    "mov x27, #0xa000000",
    "movz x1, #0x2211",
    "movk x1, #0x4433, lsl #16",
    "movk x1, #0x6655, lsl #32",
    "movk x1, #0x8877, lsl #48",
    "strb w1, [x27]",
    "strh w1, [x27, #2]",
    "str w1, [x27, #4]",
    "str x1, [x27, #8]",
    "str xzr, [x27, #8]",
    // A load of 32 bits clears the upper half.
    "mov x0, #-1",
    "ldrb w0, [x27, #0x10]",
    "str x0, [x28]",
    "mov x0, #-1",
    "ldrh w0, [x27, #0x12]",
    "str x0, [x28]",
    "mov x0, #-1",
    "ldr w0, [x27, #0x14]",
    "str x0, [x28]",
    "ldr x0, [x27, #0x18]",
    "str x0, [x28]",
    // Signed loads, to 32 and to 64 bits.
    "mov x0, #-1",
    "ldrsb w0, [x27, #0x20]",
    "str x0, [x28]",
    "ldrsb x0, [x27, #0x20]",
    "str x0, [x28]",
    "mov x0, #-1",
    "ldrsh w0, [x27, #0x22]",
    "str x0, [x28]",
    "ldrsh x0, [x27, #0x22]",
    "str x0, [x28]",
    "ldrsw x0, [x27, #0x24]",
    "str x0, [x28]",
    // What is read into the zero register is read, and nowhere.
    "ldr xzr, [x27, #0x28]",
    "mov x0, xzr",
    "str x0, [x28]",
    "2: b 2b",
);

/// Each width arrives as it is, and what is read is extended as the instruction says.
pub(crate) fn mmio_widths<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, mmio_code(), 1);
    let mut run = machine.boot();
    let bytes = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];
    for (offset, len) in [(0, 1), (2, 2), (4, 4), (8, 8)] {
        assert_eq!(run.next(), Seen::Write(DEVICE + offset, bytes[..len].to_vec()));
    }
    assert_eq!(run.next(), Seen::Write(DEVICE + 8, vec![0; 8]), "the zero register");
    let reads =
        [(0x10, 1, 0x11), (0x12, 2, 0x2211), (0x14, 4, 0x4433_2211), (0x18, 8, 0x8877_6655_4433_2211)];
    for (offset, len, value) in reads {
        assert_eq!(run.answer(&bytes), Seen::Read(DEVICE + offset, len));
        assert_eq!(run.long(), value);
    }
    // What they extend to is between processor and hypervisor, and not every emulator of a
    // processor says that a load is signed: docs/emulated-host.md.
    for (offset, len) in [(0x20, 1), (0x20, 1), (0x22, 2), (0x22, 2), (0x24, 4)] {
        assert_eq!(run.answer(&[0x71, 0x72, 0x73, 0x74]), Seen::Read(DEVICE + offset, len));
        assert_eq!(run.long(), 0x7473_7271 & ((1 << (8 * len)) - 1));
    }
    assert_eq!(run.answer(&[0xff]), Seen::Read(DEVICE + 0x28, 8));
    assert_eq!(run.long(), 0);
}

guest!(pair_code, "mov x27, #0xa000000", "ldp x0, x1, [x27]", "2: b 2b");
guest!(indexed_code, "mov x27, #0xa000000", "str w0, [x27], #4", "2: b 2b");
guest!(exclusive_code, "mov x27, #0xa000000", "ldxr w0, [x27]", "2: b 2b");

/// The processor does not say what such an instruction transfers: the guest's fault, with where it
/// is, and no failure of the host.
pub(crate) fn accesses_that_are_not_described<H: Hypervisor>(hypervisor: &H) {
    for code in [pair_code(), indexed_code(), exclusive_code()] {
        let mut run = Machine::new(hypervisor, code, 1).boot();
        match run.next() {
            Seen::Fault(text) => {
                assert!(text.contains("0xa000000") && text.ends_with(" 0x80100004"), "{text}");
            }
            other => panic!("{other:x?}"),
        }
    }
}

guest!(
    unaligned_code,
    "mov x28, #0x9000000",
    "movz x0, #0x8019, lsl #16",
    "msr VBAR_EL1, x0",
    // Not every emulator of a processor checks the alignment of devices otherwise.
    "mrs x0, SCTLR_EL1",
    "orr x0, x0, #2",
    "msr SCTLR_EL1, x0",
    "isb",
    "mov x27, #0xa000000",
    "add x27, x27, #2",
    "ldr w0, [x27]",
    "2: b 2b",
);
guest!(fault_code, "mrs x0, ESR_EL1", "str w0, [x28]", "mrs x0, FAR_EL1", "str x0, [x28]", "2: b 2b",);

/// An access of a device that is not aligned is a fault within the guest, and nobody else's affair.
pub(crate) fn unaligned_access<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, unaligned_code(), 1);
    // The vector of faults at the current level.
    machine.memory.write_slice(fault_code(), GuestAddress(0x8019_0200)).unwrap();
    let mut run = machine.boot();
    let syndrome = run.word();
    assert_eq!((syndrome >> 26, syndrome & 0x3f), (0x25, 0x21), "a data abort, of alignment");
    assert_eq!(run.long(), DEVICE + 2);
}

guest!(power_off_code, "movz w0, #0x8", "movk w0, #0x8400, lsl #16", "hvc #0", "2: b 2b");
guest!(reset_code, "movz w0, #0x9", "movk w0, #0x8400, lsl #16", "hvc #0", "2: b 2b");
guest!(
    second_reset_code,
    "movz x0, #0x12",
    "movk x0, #0xc400, lsl #16",
    "mov x1, #0",
    "mov x2, #0",
    "hvc #0",
    "2: b 2b"
);

/// PSCI's `SYSTEM_OFF`.
pub(crate) fn power_off<H: Hypervisor>(hypervisor: &H) {
    let mut run = Machine::new(hypervisor, power_off_code(), 1).boot();
    assert_eq!(run.next(), Seen::PowerOff);
}

/// PSCI's `SYSTEM_RESET` and `SYSTEM_RESET2`.
pub(crate) fn reset<H: Hypervisor>(hypervisor: &H) {
    for code in [reset_code(), second_reset_code()] {
        let mut run = Machine::new(hypervisor, code, 1).boot();
        assert_eq!(run.next(), Seen::Reset);
    }
}

guest!(
    firmware_code,
    "mov x28, #0x9000000",
    // PSCI_VERSION
    "movz w0, #0x0",
    "movk w0, #0x8400, lsl #16",
    "hvc #0",
    "str w0, [x28]",
    // PSCI_FEATURES of SYSTEM_OFF
    "movz w0, #0xa",
    "movk w0, #0x8400, lsl #16",
    "movz w1, #0x8",
    "movk w1, #0x8400, lsl #16",
    "hvc #0",
    "str w0, [x28]",
    // a function that nobody has
    "movz w0, #0xff00",
    "movk w0, #0x8400, lsl #16",
    "hvc #0",
    "str w0, [x28]",
    // CPU_ON of itself, and of a processor that is not there
    "movz x0, #0x3",
    "movk x0, #0xc400, lsl #16",
    "mov x1, #0",
    "mov x2, #0x80000000",
    "hvc #0",
    "str w0, [x28]",
    "movz x0, #0x3",
    "movk x0, #0xc400, lsl #16",
    "mov x1, #0x300",
    "mov x2, #0x80000000",
    "hvc #0",
    "str w0, [x28]",
    "2: b 2b",
);

const NOT_SUPPORTED: i32 = -1;
const INVALID_PARAMETERS: i32 = -2;
const ALREADY_ON: i32 = -4;
const ON_PENDING: i32 = -5;

/// The firmware is PSCI 1.0 or newer, and says no in its own words.
pub(crate) fn firmware<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, firmware_code(), 1);
    let mut run = machine.boot();
    assert!(run.word() >= 0x1_0000);
    assert_eq!(run.word(), 0);
    assert_eq!(run.word().cast_signed(), NOT_SUPPORTED);
    assert_eq!(run.word().cast_signed(), ALREADY_ON);
    assert_eq!(run.word().cast_signed(), INVALID_PARAMETERS);
}

guest!(
    smc_code,
    "mov x28, #0x9000000",
    // PSCI_VERSION, CPU_ON of itself, and SYSTEM_OFF
    "movz w0, #0x0",
    "movk w0, #0x8400, lsl #16",
    "smc #0",
    "str w0, [x28]",
    "movz x0, #0x3",
    "movk x0, #0xc400, lsl #16",
    "mov x1, #0",
    "mov x2, #0x80000000",
    "smc #0",
    "str w0, [x28]",
    "movz w0, #0x8",
    "movk w0, #0x8400, lsl #16",
    "smc #0",
    "2: b 2b",
);

/// The firmware is called by SMC as well, and the guest goes on behind each call.
pub(crate) fn firmware_by_smc<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, smc_code(), 1);
    let mut run = machine.boot();
    assert!(run.word() >= 0x1_0000);
    assert_eq!(run.word().cast_signed(), ALREADY_ON);
    assert_eq!(run.next(), Seen::PowerOff);
}

guest!(halt_code, "mov x28, #0x9000000", "mov w0, #1", "strb w0, [x28]", "2: wfi", "b 2b",);

guest!(
    spin_code,
    "mov x28, #0x9000000",
    "mov w0, #1",
    "strb w0, [x28]",
    "2: yield",
    "add x1, x1, #1",
    "b 2b",
);

guest!(
    doorbell_code,
    "mov x28, #0x9000000",
    "mov x27, #0xa000000",
    "mov w0, #3",
    "str w0, [x27, #0x50]",
    "strh w0, [x27, #0x50]",
    "mov w0, #4",
    "str w0, [x27, #0x50]",
    "mov w0, #9",
    "str w0, [x27, #0x150]",
    "mov w0, #1",
    "strb w0, [x28]",
    "2: b 2b",
);

/// An accepted doorbell rings for its value and width alone; any other write is an exit. There are
/// no ports.
pub(crate) fn doorbells<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, doorbell_code(), 1);
    let bells = [Notifier::new().unwrap(), Notifier::new().unwrap()];
    let first = machine.vm.offer_doorbell(Address::Memory(DEVICE + 0x50), 3, 4, &bells[0]);
    let second = machine.vm.offer_doorbell(Address::Memory(DEVICE + 0x150), 0, 0, &bells[1]);
    assert!(!machine.vm.offer_doorbell(Address::Port(0x50), 0, 0, &bells[0]));
    let mut run = machine.boot();
    if !first {
        assert_eq!(run.next(), Seen::Write(DEVICE + 0x50, vec![3, 0, 0, 0]));
    }
    assert_eq!(run.next(), Seen::Write(DEVICE + 0x50, vec![3, 0]), "another width");
    assert_eq!(run.next(), Seen::Write(DEVICE + 0x50, vec![4, 0, 0, 0]), "another value");
    if !second {
        assert_eq!(run.next(), Seen::Write(DEVICE + 0x150, vec![9, 0, 0, 0]));
    }
    assert_eq!(run.byte(), 1);
    assert_eq!(bells.each_ref().map(|bell| bell.consume().unwrap()), [first, second]);
}

guest!(
    slot_code,
    "mov x28, #0x9000000",
    "mov x27, #0x40000000",
    "ldr w0, [x27]",
    "str w0, [x28]",
    "add x27, x27, #0x100000",
    "ldr w0, [x27]",
    "str w0, [x28]",
    "2: b 2b",
);

/// A slot is registered once a number, once a place, before there is an interrupt controller, and
/// where addresses reach.
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
    let beyond = vm.map(&slot(8, 1 << 52));
    assert!(
        matches!(beyond, Err(HvError::Missing { .. } | HvError::Slot(SlotRefused::Beyond))),
        "{beyond:?}"
    );
    let machine = Machine::<H>::of(vm, slot_code(), 1);
    let late = machine.vm.map(&slot(9, 0x4010_0000));
    assert!(matches!(late, Err(HvError::Slot(SlotRefused::TooLate))), "{late:?}");
    let mut run = machine.boot();
    assert_eq!(run.word(), 5);
    assert_eq!(run.answer(&[0xee; 4]), Seen::Read(0x4010_0000, 4), "nothing of what was refused is there");
    assert_eq!(run.word(), 0xeeee_eeee);
}

guest!(
    read_only_code,
    "mov x28, #0x9000000",
    "mov x27, #0x40000000",
    "ldr w0, [x27, #8]",
    "str w0, [x28]",
    "movz w0, #0x304",
    "movk w0, #0x102, lsl #16",
    "str w0, [x27, #8]",
    "ldr w0, [x27, #8]",
    "str w0, [x28]",
    "2: b 2b",
);

/// Reads of a read-only slot go to memory, writes exit and change nothing.
pub(crate) fn read_only_slot<H: Hypervisor>(hypervisor: &H) {
    let slot = Slot::new(7, 0x4000_0000, 0x1_0000, Backing::Anonymous, true).unwrap();
    view(std::slice::from_ref(&slot)).unwrap().write_obj(0x55aau32, GuestAddress(0x4000_0008)).unwrap();
    let vm = hypervisor.create_vm(Nested::Hidden).unwrap();
    vm.map(&slot).unwrap();
    let machine = Machine::<H>::of(vm, read_only_code(), 1);
    let mut run = machine.boot();
    assert_eq!(run.word(), 0x55aa);
    assert_eq!(run.next(), Seen::Write(0x4000_0008, vec![4, 3, 2, 1]));
    assert_eq!(run.word(), 0x55aa);
}

guest!(
    pending_code,
    "mov x28, #0x9000000",
    "mov x27, #0xa000000",
    "movz x26, #0x0",
    "movk x26, #0x8018, lsl #16",
    "ldr w0, [x27]",
    "str w0, [x26]",
    "mov w0, #1",
    "strb w0, [x28]",
    "2: b 2b",
);

/// Completing takes the answer in, runs nothing of the guest, and loses no kick.
pub(crate) fn completes_without_entering<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, pending_code(), 1);
    let mut run = machine.boot();
    let scratch = || machine.memory.read_obj::<u32>(GuestAddress(SCRATCH)).unwrap();
    assert_eq!(run.answer(&[0xab; 4]), Seen::Read(DEVICE, 4));
    let kicker = run.vcpu.kicker();
    kicker.kick();
    assert!(matches!(run.vcpu.complete_pending().unwrap(), VcpuExit::Kicked));
    assert_eq!(scratch(), 0, "the next instruction did not run");
    assert_eq!(run.next(), Seen::Kicked, "the kick is still there");
    assert_eq!(run.byte(), 1);
    assert_eq!(scratch(), 0xabab_abab);
    assert!(matches!(run.vcpu.complete_pending().unwrap(), VcpuExit::Kicked), "nothing is pending");
}

guest!(
    starter_code,
    "mov x28, #0x9000000",
    "movz x0, #0x3",
    "movk x0, #0xc400, lsl #16",
    "mov x1, #1",
    "adr x2, 3f",
    "mov x3, #0x77",
    "hvc #0",
    "str w0, [x28]",
    // Once more: it is on already.
    "movz x0, #0x3",
    "movk x0, #0xc400, lsl #16",
    "mov x1, #1",
    "adr x2, 3f",
    "hvc #0",
    "movz x27, #0x8018, lsl #16",
    "mov w1, #1",
    "str w1, [x27]",
    "str w0, [x28]",
    "2: wfi",
    "b 2b",
    // The second: its argument, its number, then, once the first has asked twice, off.
    "3: mov x28, #0x9000000",
    "str w0, [x28]",
    "mrs x1, MPIDR_EL1",
    "and w1, w1, #0xffff",
    "str w1, [x28]",
    "movz x27, #0x8018, lsl #16",
    "4: yield",
    "ldr w1, [x27]",
    "cbz w1, 4b",
    "movz w0, #0x2",
    "movk w0, #0x8400, lsl #16",
    "hvc #0",
    "str wzr, [x28]",
);

/// The second processor waits until the first starts it, runs where it is told with its argument,
/// and sleeps for good when it is off again.
pub(crate) fn second_processor<H: Hypervisor>(hypervisor: &H)
where
    H::Vm: Sync,
{
    let machine = Machine::new(hypervisor, starter_code(), 2);
    let vm = &machine.vm;
    // Who fails takes his end of these along, so that the other one does not wait.
    let ((made, when_made), (seal, when_sealed), (end, at_the_end)) = (channel(), channel(), channel::<()>());
    std::thread::scope(|scope| {
        let second = scope.spawn(move || {
            let mut run = Runner::new(vm.create_vcpu(1, 2).unwrap());
            assert!(run.vcpu.sleeps_for_good(), "powered off");
            let kicker = run.vcpu.kicker();
            made.send(()).unwrap();
            when_sealed.recv().unwrap();
            kicker.kick();
            assert_eq!(run.next(), Seen::Kicked, "waits, and is kicked out");
            assert_eq!([run.word(), run.word()], [0x77, 1]);
            let until = Instant::now() + Duration::from_secs(60);
            while !run.vcpu.sleeps_for_good() {
                assert!(Instant::now() < until, "it was to be off");
                std::thread::scope(|inner| {
                    inner.spawn(|| {
                        std::thread::sleep(Duration::from_millis(5));
                        kicker.kick();
                    });
                    assert_eq!(run.next(), Seen::Kicked, "it says nothing more");
                });
            }
            at_the_end.recv().unwrap_err();
        });
        let mut vcpu = vm.create_vcpu(0, 2).unwrap();
        vcpu.load(&entry()).unwrap();
        when_made.recv().unwrap();
        vm.seal().unwrap();
        seal.send(()).unwrap();
        let mut run = Runner::new(vcpu);
        assert_eq!(run.word(), 0);
        // Switched on by then, or about to be.
        let again = run.word().cast_signed();
        assert!([ALREADY_ON, ON_PENDING].contains(&again), "{again}");
        drop(end);
        second.join().unwrap();
    });
}

/// A processor that runs, or waits for interrupts, does not sleep for good.
pub(crate) fn sleep_for_good<H: Hypervisor>(hypervisor: &H) {
    for code in [halt_code(), spin_code()] {
        let machine = Machine::new(hypervisor, code, 1);
        let mut run = machine.boot();
        assert_eq!(run.byte(), 1);
        run.vcpu.kicker().kick();
        assert_eq!(run.next(), Seen::Kicked);
        assert!(!run.vcpu.sleeps_for_good());
    }
}

/// State is refused by name, on both ends and both ways, and the machine goes on as it was.
pub(crate) fn no_state_yet<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, spin_code(), 1);
    let mut run = machine.boot();
    assert_eq!(run.byte(), 1);
    let refused = [
        run.vcpu.save().map(drop),
        machine.vm.save().map(drop),
        run.vcpu.restore(Sections::new()),
        machine.vm.restore(Sections::new()),
    ];
    for error in refused.map(Result::unwrap_err) {
        let HvError::Unsupported { what } = error else { panic!("{error}") };
        assert!(what.contains("64-bit Arm") || what.contains(H::Vm::HYPERVISOR), "{what}");
    }
    run.vcpu.kicker().kick();
    assert_eq!(run.next(), Seen::Kicked);
}

/// Probing answers for each kind of instruction.
pub(crate) fn probes<H: Hypervisor>(hypervisor: &H) {
    let findings = nelly_vmm::hv::probe::probe(hypervisor).unwrap();
    println!("{findings:?}");
    assert!(!findings.is_empty());
    for finding in findings {
        // An emulated host may take longer than a probe waits.
        let fine = finding.trouble.as_deref().is_none_or(|why| why.contains("did not get on"));
        assert!(fine, "{finding:?}");
    }
}

guest!(counter_code, "mov x28, #0x9000000", "2: mrs x0, CNTVCT_EL0", "str x0, [x28]", "b 2b",);

fn host_counter() -> u64 {
    let counter: u64;
    // SAFETY: reads a register that hosts let their processes read; the barrier keeps it from being
    // read early.
    unsafe {
        std::arch::asm!("isb", "mrs {}, cntvct_el0", out(reg) counter, options(nostack, preserves_flags));
    }
    counter
}

/// A guest's counter begins when its machine is made, and goes as fast as the host's.
pub(crate) fn counter_begins_with_the_machine<H: Hypervisor>(hypervisor: &H) {
    let before = host_counter();
    let machine = Machine::new(hypervisor, counter_code(), 1);
    let mut run = machine.boot();
    let first = (run.long(), host_counter());
    assert!(first.0 <= first.1 - before, "{first:?} {before}");
    let second = (host_counter(), run.long(), host_counter());
    assert!(second.1 - first.0 <= second.2 - before, "{first:?} {second:?}");
    assert!(second.1 - first.0 >= second.0 - first.1, "{first:?} {second:?}");
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
    let counter = run.vcpu.counter().expect("it tells its guests' counter");
    for (before, stamp, after) in stamps {
        let at = counter.host_ns(stamp).unwrap();
        let slack = 2 * counter.error_ns + 2_000;
        if before > at + slack || at > after + slack {
            return Err(format!("{before} {at} {after}: {counter:?}"));
        }
    }
    Ok(())
}

/// Where an instruction of a guest lies, for messages.
const _: () = assert!(CODE == 0x8010_0000 && SCRATCH == 0x8018_0000 && DEVICE == 0xa00_0000);
