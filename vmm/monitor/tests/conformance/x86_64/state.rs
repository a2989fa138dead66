//! The statements about state: what is read from one machine goes on in another as if nothing had
//! been.

use nelly_vmm::arch::x86_64;
use nelly_vmm::hv::{HvError, Hypervisor, SharedLine, Vcpu, VcpuExit, Vm};
use nelly_vmm::state::{Sections, StateError};
use vm_memory::{Bytes, GuestAddress};

use super::harness::{Machine, Runner, Seen, guest};
use super::interrupts::waiting;

guest!(
    going_on_code,
    "mov rax, cr4",
    "or eax, 0x600",
    "mov cr4, rax",
    // The fifth vector register, by the whole state: not every paravirtual processor runs more of
    // it in ring 0.
    "mov ebx, 0x190000",
    "fxsave [rbx]",
    "mov dword ptr [rbx + 0xf0], 0x5a5a1234",
    "fxrstor [rbx]",
    "mov ecx, 0xc0000082",
    "mov eax, 0x77665544",
    "xor edx, edx",
    "wrmsr",
    "mov r12d, 0x12121212",
    "push 0x42",
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "mov r15, rax",
    "mov al, 1",
    "out 1, al",
    // Here it is read, and goes on elsewhere.
    "mov ebx, 0x191000",
    "fxsave [rbx]",
    "mov eax, dword ptr [rbx + 0xf0]",
    "out 1, eax",
    "mov ecx, 0xc0000082",
    "rdmsr",
    "out 1, eax",
    "mov eax, r12d",
    "out 1, eax",
    "pop rax",
    "out 1, eax",
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "sub rax, r15",
    "shr rax, 32",
    "out 1, eax",
    "2: jmp 2b",
);

/// A machine as it was written down.
struct Written {
    memory: Vec<u8>,
    vcpu: Vec<u8>,
    machine: Vec<u8>,
}

/// Writes down a machine whose vCPU is out of the guest.
fn write<H: Hypervisor>(machine: &Machine<H>, run: &mut Runner<<H::Vm as Vm>::Vcpu>) -> Written {
    assert!(matches!(run.vcpu.complete_pending().unwrap(), VcpuExit::Kicked));
    let mut memory = vec![0; 2 << 20];
    machine.memory.read_slice(&mut memory, GuestAddress(0)).unwrap();
    let vcpu = run.vcpu.save().unwrap().encode();
    Written { memory, vcpu, machine: machine.vm.save().unwrap().encode() }
}

/// Another machine that goes on from there.
fn go_on<H: Hypervisor>(
    hypervisor: &H,
    written: &Written,
) -> (Machine<H>, Runner<<H::Vm as Vm>::Vcpu>, SharedLine) {
    let machine = Machine::new(hypervisor, &[], 1);
    let line = machine.vm.irq_line(x86_64::line(5).unwrap()).unwrap();
    machine.memory.write_slice(&written.memory, GuestAddress(0)).unwrap();
    let mut vcpu = machine.vm.create_vcpu(0, 1).unwrap();
    vcpu.restore(Sections::decode(&written.vcpu).unwrap()).unwrap();
    machine.vm.restore(Sections::decode(&written.machine).unwrap()).unwrap();
    machine.vm.seal().unwrap();
    (machine, Runner::new(vcpu), line)
}

/// Registers of every kind, the stack and the counter go on, in the machine that was read and in
/// any number of others.
pub(crate) fn registers_go_on<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, going_on_code(), 1);
    let mut run = machine.boot();
    assert_eq!(run.byte(), 1);
    let written = write(&machine, &mut run);
    let check = |run: &mut Runner<_>| {
        let words = [run.word(), run.word(), run.word(), run.word()];
        assert_eq!(words, [0x5a5a_1234, 0x7766_5544, 0x1212_1212, 0x42]);
        let passed = run.word();
        assert!(passed < 1000, "the counter goes on from where it was: {passed:#x}");
    };
    check(&mut run);
    drop(run);
    for _ in 0..2 {
        check(&mut go_on(hypervisor, &written).1);
    }
}

/// A vCPU that sleeps wakes elsewhere by the interrupt that its guest set up before.
pub(crate) fn interrupts_go_on<H: Hypervisor>(hypervisor: &H) {
    let machine = waiting(hypervisor, false);
    let mut run = machine.boot();
    assert_eq!(run.answer(&0x40u32.to_le_bytes()), Seen::In(2, 4, 4));
    assert_eq!(run.byte(), 1);
    let written = write(&machine, &mut run);
    drop(run);
    let (_machine, mut run, line) = go_on(hypervisor, &written);
    for _ in 0..10 {
        line.pulse().unwrap();
        assert_eq!(run.byte(), 0x40);
    }
}

/// What is missing, unknown or of another version is refused, and so is what does not fit.
pub(crate) fn foreign_state_is_refused<H: Hypervisor>(hypervisor: &H) {
    let machine = Machine::new(hypervisor, going_on_code(), 1);
    let mut run = machine.boot();
    assert_eq!(run.byte(), 1);
    assert!(matches!(run.vcpu.complete_pending().unwrap(), VcpuExit::Kicked));
    let (vcpu, whole) = (run.vcpu.save().unwrap(), machine.vm.save().unwrap());
    let mut more = vcpu.clone();
    more.put("a.new.one", 1, vec![1]);
    let mut short = vcpu.clone();
    let mut registers = short.take("kvm.vcpu.registers", 1).unwrap();
    registers.pop();
    short.put("kvm.vcpu.registers", 1, registers);
    let mut lacks = vcpu.clone();
    lacks.take("kvm.vcpu.local_apic", 1).unwrap();
    for (state, sentence) in
        [(more, "a.new.one"), (short, "does not fit"), (lacks, "no section kvm.vcpu.local_apic")]
    {
        let Err(HvError::State(error)) = run.vcpu.restore(state) else { panic!("{sentence}") };
        assert!(error.to_string().contains(sentence), "{error}");
    }
    let mut other = whole.clone();
    let clock = other.take("kvm.clock", 1).unwrap();
    other.put("kvm.clock", 2, clock);
    let Err(HvError::State(error)) = machine.vm.restore(other) else { panic!("another version") };
    assert!(matches!(error, StateError::Version { .. }), "{error}");
}
