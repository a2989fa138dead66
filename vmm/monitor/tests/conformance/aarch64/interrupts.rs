//! The statements about interrupts that reach the guest: a GICv3 is set up by hand, with one
//! handler. (No literals: the assembler shares them among guests.)

use std::sync::mpsc::channel;

use nelly_vmm::arch::aarch64;
use nelly_vmm::hv::{Hypervisor, Vcpu, Vm};
use vm_memory::{Bytes, GuestAddress};

use super::harness::{Machine, Runner, Seen, entry, guest};

/// Vectors: that of an IRQ at the current level, which [`handler_code`] is.
const VECTORS: u64 = 0x8019_0000;
const IRQ: u64 = VECTORS + 0x280;
/// Of line 1, as the guest counts.
const SHARED: u32 = 33;

// Sets up the controller for the processor that runs it (its redistributor in x20), and takes
// interrupts. Line 1 is enabled, and edge-triggered where w21 says so; so are the virtual timer's
// interrupt and the messages of other processors.
macro_rules! set_up {
    ($($line:expr),* $(,)?) => {
        concat!(
            "mov x28, #0x9000000\n",
            "movz x0, #0x8019, lsl #16\n",
            "msr VBAR_EL1, x0\n",
            "mrs x0, ICC_SRE_EL1\n orr x0, x0, #1\n msr ICC_SRE_EL1, x0\n isb\n",
            // The distributor: affinity routing; line 1 is enabled, for processor 0.
            "mov x1, #0x8000000\n",
            "mov w0, #0x12\n str w0, [x1]\n",
            "mov w0, #2\n str w0, [x1, #0x84]\n",
            "lsl w0, w21, #3\n str w0, [x1, #0xc08]\n",
            "mov w0, #2\n str w0, [x1, #0x104]\n",
            "add x2, x1, #0x6000\n str xzr, [x2, #0x108]\n",
            // The redistributor wakes; private interrupts are in group 1, some enabled.
            "ldr w0, [x20, #0x14]\n bic w0, w0, #2\n str w0, [x20, #0x14]\n",
            "7: ldr w0, [x20, #0x14]\n tbnz w0, #2, 7b\n",
            "add x2, x20, #0x10000\n",
            "mov w0, #-1\n str w0, [x2, #0x80]\n",
            "mov w0, #0xff\n movk w0, #0x0800, lsl #16\n str w0, [x2, #0x100]\n",
            "mov x0, #0xff\n msr ICC_PMR_EL1, x0\n",
            "mov x0, #1\n msr ICC_IGRPEN1_EL1, x0\n isb\n",
            "msr DAIFClr, #2\n",
            $($line, "\n"),*
        )
    };
}

guest!(
    handler_code,
    "mrs x10, ICC_IAR1_EL1",
    // The timer's interrupt stays until the timer is off.
    "cmp x10, #27",
    "b.ne 2f",
    "msr CNTV_CTL_EL0, xzr",
    "isb",
    "2: str w10, [x28]",
    "msr ICC_EOIR1_EL1, x10",
    "isb",
    "eret",
);

guest!(edge_code, "mov x20, #0x80a0000", "mov w21, #1", set_up!("str wzr, [x28]", "2: wfi", "b 2b"),);
guest!(level_code, "mov x20, #0x80a0000", "mov w21, #0", set_up!("str wzr, [x28]", "2: wfi", "b 2b"),);

fn machine<H: Hypervisor>(hypervisor: &H, code: &[u8], vcpus: u8) -> Machine<H> {
    let machine = Machine::new(hypervisor, code, vcpus);
    machine.memory.write_slice(handler_code(), GuestAddress(IRQ)).unwrap();
    machine
}

/// A pulse is one interrupt, however many come before it is taken.
pub(crate) fn shared_edge<H: Hypervisor>(hypervisor: &H) {
    let machine = machine(hypervisor, edge_code(), 1);
    let line = machine.vm.irq_line(aarch64::line(1).unwrap()).unwrap();
    let mut run = machine.boot();
    assert_eq!(run.word(), 0, "it waits");
    line.pulse().unwrap();
    line.pulse().unwrap();
    assert_eq!(run.word(), SHARED);
    run.vcpu.kicker().kick();
    assert_eq!(run.next(), Seen::Kicked, "two pulses were one");
    line.pulse().unwrap();
    assert_eq!(run.word(), SHARED);
}

/// A level is delivered until it is down.
pub(crate) fn shared_level<H: Hypervisor>(hypervisor: &H) {
    let machine = machine(hypervisor, level_code(), 1);
    let line = machine.vm.irq_line(aarch64::line(1).unwrap()).unwrap();
    let mut run = machine.boot();
    assert_eq!(run.word(), 0, "it waits");
    line.set(true).unwrap();
    assert_eq!([run.word(), run.word(), run.word()], [SHARED; 3]);
    line.set(false).unwrap();
    // One may be on its way.
    run.vcpu.kicker().kick();
    assert!(matches!(run.next(), Seen::Kicked | Seen::Write(..)));
    run.vcpu.kicker().kick();
    while run.next() != Seen::Kicked {}
    line.pulse().unwrap();
    run.vcpu.kicker().kick();
    assert_eq!(run.next(), Seen::Kicked, "a level that was gone again is none");
}

guest!(
    timer_code,
    "mov x20, #0x80a0000",
    "mov w21, #1",
    set_up!(
        // Masked until it has waited: on a host that stalls, the timer may be due before the wait
        // begins, and an interrupt that is taken by then would end no wait.
        "msr DAIFSet, #2",
        "mrs x0, CNTFRQ_EL0",
        "lsr x0, x0, #6",
        "msr CNTV_TVAL_EL0, x0",
        "mov x0, #1",
        "msr CNTV_CTL_EL0, x0",
        "isb",
        "wfi",
        "msr DAIFClr, #2",
        "isb",
        "str wzr, [x28]",
        "2: wfi",
        "b 2b"
    ),
);

/// The virtual timer wakes a processor that waits, without an exit in between.
pub(crate) fn timer_wakes_a_halt<H: Hypervisor>(hypervisor: &H) {
    let machine = machine(hypervisor, timer_code(), 1);
    let mut run = machine.boot();
    assert_eq!([run.word(), run.word()], [27, 0]);
}

guest!(
    message_code,
    "mov x20, #0x80a0000",
    "mov w21, #1",
    set_up!(
        // CPU_ON of the second.
        "movz x0, #0x3",
        "movk x0, #0xc400, lsl #16",
        "mov x1, #1",
        "adr x2, 3f",
        "hvc #0",
        "str w0, [x28]",
        "2: wfi",
        "b 2b",
        // The second: message 5 to the first.
        "3: mov x28, #0x9000000",
        "mrs x0, ICC_SRE_EL1",
        "orr x0, x0, #1",
        "msr ICC_SRE_EL1, x0",
        "isb",
        "mov x0, #1",
        "msr ICC_IGRPEN1_EL1, x0",
        "isb",
        "movz x0, #0x1",
        "movk x0, #0x500, lsl #16",
        "msr ICC_SGI1R_EL1, x0",
        "isb",
        "str wzr, [x28]",
        "4: wfi",
        "b 4b"
    ),
);

/// A message of the second processor reaches the first, which waits.
pub(crate) fn between_processors<H: Hypervisor>(hypervisor: &H)
where
    H::Vm: Sync,
{
    let machine = machine(hypervisor, message_code(), 2);
    let vm = &machine.vm;
    // Who fails takes his end of these along, so that the other one does not wait.
    let ((made, when_made), (seal, when_sealed)) = (channel(), channel());
    // First, for redistributors lie in the order in which their processors are made.
    let mut vcpu = vm.create_vcpu(0, 2).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut run = Runner::new(vm.create_vcpu(1, 2).unwrap());
            made.send(()).unwrap();
            when_sealed.recv().unwrap();
            assert_eq!(run.word(), 0);
        });
        vcpu.load(&entry()).unwrap();
        when_made.recv().unwrap();
        vm.seal().unwrap();
        seal.send(()).unwrap();
        let mut run = Runner::new(vcpu);
        // It may come before CPU_ON has returned.
        let mut said = [run.word(), run.word()];
        said.sort_unstable();
        assert_eq!(said, [0, 5]);
    });
}
