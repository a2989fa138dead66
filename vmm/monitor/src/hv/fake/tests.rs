use super::*;
use crate::arch::x86_64::line;
use crate::memory::Backing;

const BELL: Address = Address::Memory(0xd000_0050);

#[test]
fn plays_its_script_and_records_the_answers() {
    let fake = Fake::new();
    let vm = fake.create_vm(Nested::Hidden).unwrap();
    let mut vcpu = vm.create_vcpu(0, 1).unwrap();
    vm.seal().unwrap();
    fake.script(0, [Step::out(0x3f8, b"a"), Step::read32(0x1000), Step::TripleFault]);
    assert!(matches!(
        vcpu.run().unwrap(),
        VcpuExit::Write { address: Address::Port(0x3f8), width: 1, data: b"a" }
    ));
    match vcpu.run().unwrap() {
        VcpuExit::Read { address: Address::Memory(0x1000), data, .. } => data.copy_from_slice(&[1, 2, 3, 4]),
        exit => panic!("{exit:?}"),
    }
    assert!(fake.record().answers.is_empty(), "answered at the next entry, as hardware does");
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::TripleFault));
    assert_eq!(fake.record().answers, [(0, vec![1, 2, 3, 4])]);
    drop((vcpu, vm));
    let record = fake.record();
    assert_eq!((record.vcpus, record.machines), (0, 0));
}

#[test]
fn kicks_are_kept_and_doorbells_ring() {
    let fake = Fake::new();
    let vm = fake.create_vm(Nested::Hidden).unwrap();
    let mut vcpu = vm.create_vcpu(0, 1).unwrap();
    let bell = Notifier::new().unwrap();
    vm.seal().unwrap();
    assert!(vm.offer_doorbell(BELL, 3, 4, &bell));
    fake.script(0, [Step::write32(0xd000_0050, 3), Step::write32(0xd000_0050, 4)]);
    vcpu.kicker().kick();
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::Kicked));
    assert!(matches!(vcpu.run().unwrap(), VcpuExit::Write { data: [4, 0, 0, 0], .. }));
    assert!(bell.consume().unwrap());
    fake.refuse_doorbells();
    assert!(!vm.offer_doorbell(BELL, 4, 4, &bell));
}

#[test]
fn a_line_wakes_the_vcpu_that_waits_for_it() {
    let fake = Fake::new();
    let vm = fake.create_vm(Nested::Hidden).unwrap();
    let number = line(5).unwrap();
    let line = vm.irq_line(number).unwrap();
    fake.script(0, [Step::out(1, b"r"), Step::WaitForLine(number), Step::Halt]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut vcpu = vm.create_vcpu(0, 1).unwrap();
            vm.seal().unwrap();
            assert!(matches!(vcpu.run().unwrap(), VcpuExit::Write { .. }));
            assert!(matches!(vcpu.run().unwrap(), VcpuExit::Halted));
        });
        while fake.record().vcpus > 0 || fake.record().lines.is_empty() {
            line.pulse().unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    assert!(fake.wait_until(|record| record.vcpus == 0));
}

#[test]
fn slots_come_once_and_before_the_controllers() {
    let fake = Fake::new();
    let vm = fake.create_vm(Nested::Hidden).unwrap();
    let slots = [0, 1].map(|n| Slot::new(n, u64::from(n) << 20, 4096, Backing::Anonymous, false).unwrap());
    vm.map(&slots[0]).unwrap();
    assert!(matches!(vm.map(&slots[0]), Err(HvError::Slot(SlotRefused::NumberTaken))));
    vm.create_irqchip(IrqchipPlan { vcpus: 1, legacy_timer: false, lines: 24 }).unwrap();
    assert!(matches!(vm.map(&slots[1]), Err(HvError::Slot(SlotRefused::TooLate))));
    assert_eq!(fake.record().slots, [0]);
}

#[test]
fn state_of_another_vcpu_or_of_a_sealed_machine_is_refused() {
    let vm = Fake::new().create_vm(Nested::Hidden).unwrap();
    let (mut first, mut second) = (vm.create_vcpu(0, 2).unwrap(), vm.create_vcpu(1, 2).unwrap());
    let state = first.save().unwrap();
    first.restore(state.clone()).unwrap();
    assert!(matches!(second.restore(state), Err(HvError::State(StateError::Unfit { .. }))));
    vm.restore(vm.save().unwrap()).unwrap();
    let mut more = Sections::new();
    more.put("more", 1, Vec::new());
    assert!(matches!(vm.restore(more), Err(HvError::State(StateError::Unknown(_)))));
    vm.seal().unwrap();
    let late = || vm.restore(Sections::new());
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(late)).is_err());
}

#[test]
fn a_machine_is_sealed_before_it_runs_and_furnished_before_it_is_sealed() {
    type Deed = fn(&FakeVm);
    let furnishing: [Deed; 4] = [
        |vm| vm.map(&Slot::new(0, 0, 4096, Backing::Anonymous, false).unwrap()).unwrap(),
        |vm| vm.create_irqchip(IrqchipPlan { vcpus: 1, legacy_timer: false, lines: 1 }).unwrap(),
        |vm| drop(vm.irq_line(line(5).unwrap()).unwrap()),
        |vm| drop(vm.create_vcpu(0, 1).unwrap()),
    ];
    let panics = |vm: &FakeVm, deed: &dyn Fn(&FakeVm)| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| deed(vm))).is_err()
    };
    for deed in furnishing {
        let vm = Fake::new().create_vm(Nested::Hidden).unwrap();
        deed(&vm);
        vm.seal().unwrap();
        assert!(panics(&vm, &deed));
    }
    let vm = Fake::new().create_vm(Nested::Hidden).unwrap();
    assert!(panics(&vm, &|vm| drop(vm.create_vcpu(0, 1).unwrap().run().map(drop))));
    vm.seal().unwrap();
    assert!(panics(&vm, &|vm| vm.seal().unwrap()), "sealed once");
}
