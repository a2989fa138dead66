//! The back end driven by a script in the framework's place.

use std::error::Error;
use std::sync::Arc;

use super::framework::{Exit, Refusal, Register};
use super::scripted::{Play, SYSTEM_CONTROL, Scripted};
use super::syndrome::tests::{of_access, of_system};
use super::syndrome::{Access, SystemAccess, SystemName};
use super::vcpu::HvfVcpu;
use super::vm::{Hvf, HvfVm};
use crate::arch::aarch64::{BootState as Arm64, Granule, layout};
use crate::arch::{Address, BootState, InterruptLine, Nested, aarch64, x86_64};
use crate::hv::{HvError, Hypervisor, IrqchipPlan, Vcpu, VcpuExit, Vm};
use crate::memory::{Backing, Slot};
use crate::state::Sections;

/// Where the guest is when it leaves.
const PC: u64 = 0x8020_0000;
/// Where no memory is.
const DEVICE: u64 = 0x0a00_0050;
const MEMORY: u64 = 1 << 20;

const ON: u64 = 0b1;
const MASKED: u64 = 0b10;
const DUE: u64 = 0b100;

fn machine(script: &Scripted) -> HvfVm<Scripted> {
    let vm = Hvf::new(Arc::new(script.clone())).create_vm(Nested::Hidden).unwrap();
    vm.map(&Slot::new(0, layout::RAM, MEMORY, Backing::Anonymous, false).unwrap()).unwrap();
    vm.create_irqchip(IrqchipPlan { vcpus: 2, legacy_timer: false, lines: 20 }).unwrap();
    vm
}

fn boot(vm: &HvfVm<Scripted>, count: u32) -> HvfVcpu<Scripted> {
    let mut vcpu = vm.create_vcpu(0, count).unwrap();
    vcpu.load(&BootState::Arm64(Arm64 { pc: PC, device_tree: 0x8100_0000, granule: None })).unwrap();
    vcpu
}

fn trap(syndrome: u64) -> Play {
    Play::Exit(Exit::Exception { syndrome, address: DEVICE })
}

fn of_class(class: u64, rest: u64) -> Play {
    trap(class << 26 | 1 << 25 | rest)
}

const WFX: u64 = 0x01;
const HVC: u64 = 0x16;
const SMC: u64 = 0x17;

fn meanwhile(happens: impl FnOnce() + Send + 'static) -> Play {
    Play::While(Box::new(happens))
}

/// What a guest stamps is put on the host's clock by a counter that runs as the framework's does.
#[test]
fn the_guests_counter_is_that_of_the_framework_without_what_was_before() {
    let script = Scripted::new();
    script.played().counter = 5_000;
    let vm = machine(&script);
    script.played().counter = 6_000;
    let mut vcpu = boot(&vm, 1);
    assert_eq!(vcpu.counter(), None, "it stands still");
    script.played().counter = 8_000;
    let counter = vcpu.counter().unwrap();
    assert_eq!((counter.counter, counter.span_ticks, counter.nominal_khz), (3_000, 2_000, 1_000_000));
}

fn line(number: u32) -> InterruptLine {
    aarch64::line(number).unwrap()
}

/// Runs up to the script's end, which is a fault, and gives the sentence.
fn fault(vcpu: &mut HvfVcpu<Scripted>) -> String {
    match vcpu.run().unwrap() {
        VcpuExit::Fault(what) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_kernel_begins_as_its_boot_protocol_says() {
    let script = Scripted::new();
    let vm = machine(&script);
    let _vcpu = boot(&vm, 1);
    for (register, value) in [
        (Register::Pc, PC),
        (Register::X(0), 0x8100_0000),
        (Register::X(1), 0),
        (Register::Cpsr, 0x3c5),
        (Register::SystemControl, SYSTEM_CONTROL),
        (Register::Affinity, 1 << 31),
        (Register::Features, 1 << 24),
    ] {
        assert_eq!(script.register(0, register), value, "{register:?}");
    }
    let asked = script.asked();
    assert_eq!(asked[..3], ["create_vm", "map 0x80000000 0x100000", "create_controller 0x8000000 0x80a0000"]);
    let foreign = x86_64::BootState {
        mode: x86_64::EntryMode::Long,
        rip: 0,
        rsi: 0,
        rbx: 0,
        rsp: 0,
        cr3: 0,
        gdt_base: 0,
        gdt_limit: 0,
    };
    let error = vm.create_vcpu(1, 2).unwrap().load(&BootState::X86(foreign)).unwrap_err();
    assert!(error.to_string().contains("another architecture"), "{error}");
}

/// Apple's processors have no pages of 64 KiB.
#[test]
fn a_kernel_for_pages_that_the_processor_lacks_is_refused() {
    let script = Scripted::new();
    let vm = machine(&script);
    let mut vcpu = vm.create_vcpu(0, 1).unwrap();
    script.set_register(0, Register::MemoryModel, 0x0f10_0003);
    let mut load = |granule| vcpu.load(&BootState::Arm64(Arm64 { pc: PC, device_tree: 0, granule }));
    for granule in [None, Some(Granule::Kib4), Some(Granule::Kib16)] {
        load(granule).unwrap();
    }
    let error = load(Some(Granule::Kib64)).unwrap_err().to_string();
    assert_eq!(error, "this hypervisor lacks pages of 64 KiB, for which the kernel is built");
}

#[test]
fn the_controllers_registers_are_not_the_buss() {
    let load = Access { write: false, width: 4, sign_extend: false, wide: false, register: 7 };
    let redistributors = layout::GIC_REDISTRIBUTOR + 2 * layout::GIC_REDISTRIBUTOR_LEN;
    for (address, is) in [
        (layout::GIC_DISTRIBUTOR - 4, false),
        (layout::GIC_DISTRIBUTOR, true),
        (layout::GIC_DISTRIBUTOR + layout::GIC_DISTRIBUTOR_LEN - 4, true),
        (layout::GIC_DISTRIBUTOR + layout::GIC_DISTRIBUTOR_LEN, false),
        (layout::GIC_REDISTRIBUTOR, true),
        (redistributors - 4, true),
        (redistributors, false),
    ] {
        for access in [load, Access { write: true, ..load }] {
            let script = Scripted::new();
            let vm = machine(&script);
            let mut vcpu = boot(&vm, 2);
            script.play(0, [Play::Exit(Exit::Exception { syndrome: of_access(access), address })]);
            match vcpu.run().unwrap() {
                VcpuExit::Fault(what) => {
                    assert!(is && what.contains("interrupt controller's register"), "{address:#x}: {what}");
                }
                VcpuExit::Read { .. } | VcpuExit::Write { .. } => assert!(!is, "{address:#x}"),
                other => panic!("{address:#x}: {other:?}"),
            }
        }
    }
}

#[test]
fn loads_are_answered_into_their_register() {
    let script = Scripted::new();
    let vm = machine(&script);
    let mut vcpu = boot(&vm, 1);
    let load = Access { write: false, width: 2, sign_extend: true, wide: true, register: 7 };
    let to_nowhere = Access { register: 31, ..load };
    script.play(0, [trap(of_access(load)), trap(of_access(to_nowhere)), trap(of_access(load))]);
    match vcpu.run().unwrap() {
        VcpuExit::Read { address: Address::Memory(DEVICE), width: 2, data } => {
            data.copy_from_slice(&[0x34, 0xf2]);
        }
        other => panic!("{other:?}"),
    }
    // The instruction is over, but for what it loads.
    assert_eq!(script.register(0, Register::Pc), PC + 4);
    assert_eq!(script.register(0, Register::X(7)), 0);
    match vcpu.run().unwrap() {
        VcpuExit::Read { data, .. } => data.copy_from_slice(&[1, 1]),
        other => panic!("{other:?}"),
    }
    assert_eq!(script.register(0, Register::X(7)), 0xffff_ffff_ffff_f234);
    // A pause comes between the exit and the next run: the state is whole without one.
    match vcpu.run().unwrap() {
        VcpuExit::Read { data, .. } => data.copy_from_slice(&[0x78, 0x56]),
        other => panic!("{other:?}"),
    }
    assert!(matches!(vcpu.complete_pending().unwrap(), VcpuExit::Kicked));
    assert_eq!((script.register(0, Register::X(7)), script.entries(0)), (0x5678, 3));
    assert_eq!(script.register(0, Register::Pc), PC + 12);
}

#[test]
fn stores_carry_as_many_bytes_as_they_say() {
    let script = Scripted::new();
    let vm = machine(&script);
    let mut vcpu = boot(&vm, 1);
    script.set_register(0, Register::X(3), 0x1122_3344_5566_7788);
    let store = |width, register| Access { write: true, width, sign_extend: false, wide: true, register };
    let cases: [(u8, u8, &[u8]); 5] = [
        (1, 3, &[0x88]),
        (2, 3, &[0x88, 0x77]),
        (4, 3, &[0x88, 0x77, 0x66, 0x55]),
        (8, 3, &[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]),
        (4, 31, &[0; 4]),
    ];
    for (done, (width, register, bytes)) in (1..).zip(cases) {
        script.play(0, [trap(of_access(store(width, register)))]);
        match vcpu.run().unwrap() {
            VcpuExit::Write { address: Address::Memory(DEVICE), width: told, data } => {
                assert_eq!((told, data), (width, bytes));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(script.register(0, Register::Pc), PC + 4 * done);
    }
    assert_eq!(script.register(0, Register::X(3)), 0x1122_3344_5566_7788);
}

#[test]
fn what_nobody_can_serve_is_a_fault_of_the_guest() {
    let abort = |rest: u64| 0x24 << 26 | 1 << 25 | rest;
    for (syndrome, word) in [
        // LDP to a device: no description.
        (abort(7), "does not describe"),
        (abort(1 << 24 | 1 << 7 | 7), "page tables"),
        (abort(0x10), "hardware error"),
        (0x20 << 26 | 1 << 25 | 7, "ran into"),
        (0x30 << 26, "a breakpoint"),
        (0x32 << 26, "a single step"),
        (0x34 << 26, "a watchpoint"),
        (0x3c << 26, "BRK"),
        (0x07 << 26, "exception class 0x7"),
    ] {
        let script = Scripted::new();
        let vm = machine(&script);
        let mut vcpu = boot(&vm, 1);
        script.play(0, [trap(syndrome)]);
        let what = fault(&mut vcpu);
        assert!(what.contains(word) && what.ends_with("at instruction 0x80200000"), "{syndrome:#x}: {what}");
        assert_eq!(script.register(0, Register::Pc), PC);
    }
    let script = Scripted::new();
    let vm = machine(&script);
    let mut vcpu = boot(&vm, 1);
    // Cleaning the cache of a device does nothing, and no harm.
    script.play(0, [trap(abort(1 << 8 | 1 << 6 | 7)), Play::Exit(Exit::Unknown(3))]);
    assert!(fault(&mut vcpu).contains("does not know (3)"));
    assert_eq!(script.register(0, Register::Pc), PC + 4);
}

#[test]
fn unknown_system_registers_read_as_zero_and_are_told_with_a_fault() {
    let script = Scripted::new();
    let vm = machine(&script);
    let mut vcpu = boot(&vm, 1);
    let name = SystemName { op0: 2, op1: 0, crn: 0, crm: 2, op2: 0 };
    let access = |read, register| trap(of_system(SystemAccess { name, read, register }));
    for register in [5, 6] {
        script.set_register(0, Register::X(register), 77);
    }
    script.play(0, [access(true, 5), access(false, 6), access(true, 31)]);
    let what = fault(&mut vcpu);
    assert!(what.contains("3 accesses") && what.contains("S2_0_C0_C2_0"), "{what}");
    assert_eq!(script.register(0, Register::X(5)), 0);
    assert_eq!(script.register(0, Register::X(6)), 77);
    assert_eq!(script.register(0, Register::Pc), PC + 12);
}

#[test]
fn calls_go_on_where_their_instruction_ends() {
    let script = Scripted::new();
    let vm = machine(&script);
    let mut vcpu = boot(&vm, 1);
    // PSCI_VERSION. The framework is behind an HVC and at an SMC.
    for (class, number, after, answer) in
        [(HVC, 0, PC, 0x1_0001), (SMC, 0, PC + 4, 0x1_0001), (HVC, 5, PC + 4, u64::MAX)]
    {
        script.set_register(0, Register::X(0), 0xffff_ffff_8400_0000);
        script.play(0, [of_class(class, number)]);
        fault(&mut vcpu);
        assert_eq!(script.register(0, Register::Pc), after);
        assert_eq!(script.register(0, Register::X(0)), answer);
    }
    for (function, word) in [(0x8400_0008_u64, "PowerOff"), (0x8400_0009, "Reset")] {
        script.set_register(0, Register::X(0), function);
        script.play(0, [of_class(HVC, 0)]);
        assert_eq!(format!("{:?}", vcpu.run().unwrap()), word);
    }
}

#[test]
fn a_second_processor_waits_until_it_is_switched_on() {
    let script = Scripted::new();
    let vm = machine(&script);
    let mut first = boot(&vm, 2);
    std::thread::scope(|scope| {
        let (created, wait) = std::sync::mpsc::channel();
        let other = scope.spawn({
            let (vm, script) = (&vm, script.clone());
            move || {
                let mut vcpu = vm.create_vcpu(1, 2).unwrap();
                script.set_register(1, Register::SystemControl, 1);
                script.set_register(1, Register::X(30), 5);
                assert!(vcpu.sleeps_for_good());
                created.send(vcpu.kicker()).unwrap();
                // Kicked while it is off: it comes out, is off still, and waits again.
                assert!(matches!(vcpu.run().unwrap(), VcpuExit::Kicked));
                assert_eq!(script.entries(1), 0);
                created.send(vcpu.kicker()).unwrap();
                fault(&mut vcpu)
            }
        });
        wait.recv().unwrap().kick();
        wait.recv().unwrap();
        for (register, value) in [(0, 0xc400_0003), (1, 1), (2, 0x8040_0000), (3, 9)] {
            script.set_register(0, Register::X(register), value);
        }
        script.play(0, [of_class(HVC, 0)]);
        fault(&mut first);
        let what = other.join().unwrap();
        assert!(what.contains("0x80400000"), "{what}");
    });
    assert_eq!(script.register(0, Register::X(0)), 0);
    for (register, value) in [
        (Register::X(0), 9),
        (Register::X(30), 0),
        (Register::Pc, 0x8040_0000),
        (Register::Cpsr, 0x3c5),
        (Register::SystemControl, SYSTEM_CONTROL),
        (Register::Affinity, 1 << 31 | 1),
    ] {
        assert_eq!(script.register(1, register), value, "{register:?}");
    }
    drop((first, vm));
    // All that was made ended, the machine last, and each has the same counter.
    let asked = script.asked();
    assert_eq!(asked.iter().filter(|call| call.starts_with("destroy_processor")).count(), 2);
    assert_eq!(asked.last().unwrap(), "destroy_vm");
    let offsets: Vec<_> = asked.iter().filter(|call| call.starts_with("set_timer_offset")).collect();
    assert_eq!(offsets, ["set_timer_offset 0 1000", "set_timer_offset 1 1000"]);
}

#[test]
fn a_processor_that_is_off_sleeps_for_good() {
    let script = Scripted::new();
    let vm = machine(&script);
    let mut vcpu = boot(&vm, 2);
    assert!(!vcpu.sleeps_for_good());
    script.set_register(0, Register::X(0), 0x8400_0002);
    let kicker = vcpu.kicker();
    script.play(0, [meanwhile(move || kicker.kick()), of_class(HVC, 0)]);
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::Kicked));
    assert!(vcpu.sleeps_for_good());
    assert_eq!(script.entries(0), 1);
}

#[test]
fn no_kick_is_lost() {
    let script = Scripted::new();
    let vm = machine(&script);
    let mut vcpu = boot(&vm, 1);
    let kicker = vcpu.kicker();
    // Before the run: the guest is not entered, and the kick is over.
    kicker.kick();
    kicker.kick();
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::Kicked));
    assert_eq!(script.entries(0), 0);
    // Each forced an exit: the first one's may have been lost on the way into the guest.
    assert_eq!(script.asked().iter().filter(|call| call.starts_with("force_exit")).count(), 2);
    // The framework still has its half, which must not end a run that nobody kicked.
    fault(&mut vcpu);
    assert_eq!(script.entries(0), 1);
    // While the guest runs and leaves for another reason: that comes first, nothing is lost.
    let store = Access { write: true, width: 4, sign_extend: false, wide: false, register: 1 };
    let again = Arc::clone(&kicker);
    script.play(0, [meanwhile(move || again.kick()), trap(of_access(store))]);
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::Write { .. }));
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::Kicked));
    // Between the look at the flag and the entry, where the framework is what keeps it.
    let again = Arc::clone(&kicker);
    script.play(0, [meanwhile(move || again.kick()), Play::Exit(Exit::Canceled)]);
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::Kicked));
    // After its end.
    drop(vcpu);
    let before = script.asked().len();
    kicker.kick();
    assert_eq!(script.asked().len(), before);
}

#[test]
fn kicks_from_many_threads_end_each_run() {
    let script = Scripted::new();
    let vm = machine(&script);
    let mut vcpu = boot(&vm, 1);
    let kicker = vcpu.kicker();
    std::thread::scope(|scope| {
        let (go, gone) = std::sync::mpsc::sync_channel::<()>(0);
        scope.spawn(move || gone.iter().for_each(|()| kicker.kick()));
        for _ in 0..200 {
            // It waits for ever, but for the kick, which comes at any moment of it.
            script.play(0, [of_class(WFX, 0), of_class(WFX, 0)]);
            go.send(()).unwrap();
            assert!(matches!(vcpu.run().unwrap(), VcpuExit::Kicked));
            script.played().plays.clear();
        }
    });
}

#[test]
fn a_guest_that_waits_goes_on_by_its_timer_a_line_or_a_kick() {
    let script = Scripted::new();
    let vm = machine(&script);
    let mut vcpu = boot(&vm, 1);
    let serial = vm.irq_line(line(1)).unwrap();
    let wait = || of_class(WFX, 0);
    // The timer is due.
    script.set_register(0, Register::TimerControl, ON);
    script.play(0, [wait()]);
    fault(&mut vcpu);
    assert_eq!(script.register(0, Register::Pc), PC + 4);
    // It will be, in 5 ms.
    script.set_register(0, Register::TimerDeadline, 5_000_000);
    script.play(0, [wait()]);
    fault(&mut vcpu);
    // It never will; a line is raised after the guest was entered and before it waits.
    for (control, deadline) in [(0, 0), (ON | MASKED, 0), (ON, u64::MAX)] {
        script.set_register(0, Register::TimerControl, control);
        script.set_register(0, Register::TimerDeadline, deadline);
        let raise = Arc::clone(&serial);
        script.play(0, [meanwhile(move || raise.pulse().unwrap()), wait()]);
        fault(&mut vcpu);
        // A kick ends it too.
        let kicker = vcpu.kicker();
        script.play(0, [meanwhile(move || kicker.kick()), wait()]);
        assert!(matches!(vcpu.run().unwrap(), VcpuExit::Kicked));
        // Suspended by the firmware, which is the same; the answer is there when it goes on.
        let raise = Arc::clone(&serial);
        script.set_register(0, Register::X(0), 0xc400_0001);
        script.play(0, [meanwhile(move || raise.set(true).unwrap()), of_class(HVC, 0)]);
        fault(&mut vcpu);
        assert_eq!(script.register(0, Register::X(0)), 0);
    }
    // An event is not waited for, nor is a deadline.
    let before = script.register(0, Register::Pc);
    script.play(0, [of_class(WFX, 1), of_class(WFX, 2), of_class(WFX, 3)]);
    fault(&mut vcpu);
    assert_eq!(script.register(0, Register::Pc), before + 12);
}

#[test]
fn a_wait_beside_others_ends_by_itself() {
    let script = Scripted::new();
    let vm = machine(&script);
    let mut vcpu = boot(&vm, 2);
    // Nothing is due, and no line is raised: a message from the other would not be seen.
    script.play(0, [of_class(WFX, 0)]);
    fault(&mut vcpu);
    assert_eq!(script.register(0, Register::Pc), PC + 4);
}

#[test]
fn the_timer_is_unmasked_when_the_guest_has_seen_to_it() {
    let script = Scripted::new();
    let vm = machine(&script);
    let mut vcpu = boot(&vm, 1);
    let unmasked = || script.asked().iter().filter(|call| *call == "mask_timer false").count();
    script.set_register(0, Register::TimerControl, ON | DUE);
    script.play(0, [Play::Exit(Exit::TimerActivated), Play::Exit(Exit::Canceled)]);
    fault(&mut vcpu);
    assert_eq!(unmasked(), 0, "it is due still: unmasked, it would come out again at once");
    script.set_register(0, Register::TimerControl, ON);
    fault(&mut vcpu);
    fault(&mut vcpu);
    assert_eq!(unmasked(), 1);
    script.set_register(0, Register::TimerControl, ON | DUE | MASKED);
    script.play(0, [Play::Exit(Exit::TimerActivated)]);
    fault(&mut vcpu);
    assert_eq!(unmasked(), 2);
}

#[test]
fn lines_are_shared_interrupts_of_the_controller() {
    let script = Scripted::new();
    let vm = machine(&script);
    vm.irq_line(line(16)).unwrap().pulse().unwrap();
    vm.irq_line(line(1)).unwrap().set(false).unwrap();
    let asked = script.asked();
    assert_eq!(
        asked[asked.len() - 3..],
        ["set_interrupt 48 true", "set_interrupt 48 false", "set_interrupt 33 false"]
    );
    script.played().refusals.insert("set_interrupt", Refusal(0xfae9_4003));
    let error = vm.irq_line(line(1)).unwrap().pulse().unwrap_err();
    assert!(error.to_string().contains("HV_BAD_ARGUMENT"), "{error}");
}

#[test]
fn a_machine_that_cannot_be_made_says_why() {
    let script = Scripted::new();
    let hypervisor = Hvf::new(Arc::new(script.clone()));
    script.played().refusals.insert("create_vm", Refusal::DENIED);
    let error = hypervisor.create_vm(Nested::Hidden).unwrap_err();
    assert!(error.to_string().contains("com.apple.security.hypervisor"), "{error}");
    assert!(error.source().unwrap().to_string().contains("HV_DENIED"));
    script.played().refusals.clear();
    let vm = hypervisor.create_vm(Nested::Hidden).unwrap();
    let error = hypervisor.create_vm(Nested::Hidden).unwrap_err();
    assert!(error.to_string().contains("one a process"), "{error}");
    drop(vm);
    // As a reset does: the next machine of the same process.
    drop(hypervisor.create_vm(Nested::Hidden).unwrap());
    let error = hypervisor.create_vm(Nested::Shown).unwrap_err();
    assert!(error.to_string().contains("nested"), "{error}");
}

#[test]
fn slots_are_refused_as_everywhere_and_in_broken_pages() {
    let script = Scripted::new();
    let hypervisor = Hvf::new(Arc::new(script.clone()));
    let vm = hypervisor.create_vm(Nested::Hidden).unwrap();
    let slot = |index, guest, len| Slot::new(index, guest, len, Backing::Anonymous, false).unwrap();
    let refusal = |slot: &Slot| vm.map(slot).unwrap_err().source().unwrap().to_string();
    assert!(refusal(&slot(0, layout::RAM + 0x1000, MEMORY)).contains("whole pages"));
    assert!(refusal(&slot(0, layout::RAM, 0x1000)).contains("whole pages"));
    assert!(refusal(&slot(0, 1 << 36, MEMORY)).contains("beyond"));
    script.played().refusals.insert("map", Refusal(0xfae9_4005));
    assert!(refusal(&slot(0, layout::RAM, MEMORY)).contains("HV_NO_RESOURCES"));
    script.played().refusals.clear();
    vm.map(&slot(0, layout::RAM, MEMORY)).unwrap();
    assert!(refusal(&slot(0, layout::RAM + MEMORY, MEMORY)).contains("number is taken"));
    vm.create_irqchip(IrqchipPlan { vcpus: 1, legacy_timer: false, lines: 1 }).unwrap();
    assert!(refusal(&slot(1, layout::RAM + MEMORY, MEMORY)).contains("slots come before"));
}

#[test]
fn a_controller_that_is_too_small_or_elsewhere_is_refused() {
    let script = Scripted::new();
    let vm = Hvf::new(Arc::new(script.clone())).create_vm(Nested::Hidden).unwrap();
    assert!(vm.irq_line(line(0)).is_err());
    let plan = |vcpus, lines| IrqchipPlan { vcpus, legacy_timer: false, lines };
    let missing = |result: Result<(), HvError>| matches!(result, Err(HvError::Missing { .. }));
    assert!(missing(vm.create_irqchip(plan(65, 1))));
    assert!(missing(vm.create_irqchip(plan(1, 989))));
    vm.create_irqchip(plan(1, 1)).unwrap();
    script.played().redistributors = layout::GIC_REDISTRIBUTOR + layout::GIC_REDISTRIBUTOR_LEN;
    assert!(missing(vm.create_vcpu(0, 1).map(drop)));
}

#[test]
fn saving_is_refused_by_name_and_a_failed_run_is_the_hosts() {
    let script = Scripted::new();
    let vm = machine(&script);
    let mut vcpu = boot(&vm, 1);
    for error in [
        vm.save().unwrap_err(),
        vm.restore(Sections::new()).unwrap_err(),
        vcpu.save().unwrap_err(),
        vcpu.restore(Sections::new()).unwrap_err(),
    ] {
        assert!(error.to_string().starts_with("saving a machine"), "{error}");
    }
    script.played().refusals.insert("run", Refusal(0xfae9_4004));
    let error = vcpu.run().unwrap_err();
    assert_eq!(error.to_string(), "hv_vcpu_run failed");
    assert!(error.source().unwrap().to_string().contains("HV_ILLEGAL_GUEST_STATE"));
}
