//! The statements for an Arm processor.

mod harness;
mod interrupts;
#[path = "../kicks.rs"]
mod kicks;
#[cfg(target_os = "linux")]
mod of_kvm;
mod suite;

#[cfg(target_os = "linux")]
mod kvm {
    conformance! {
        nelly_vmm::hv::kvm::open();
        suite:
            entry_state mmio_widths accesses_that_are_not_described unaligned_access power_off reset firmware firmware_by_smc doorbells slots read_only_slot
            completes_without_entering second_processor sleep_for_good no_state_yet probes
            counter_begins_with_the_machine counter_on_the_hosts_clock;
        of_kvm: what_is_left_off;
        kicks: kicks_a_spin kick_before_run no_kick_is_lost kick_out_of_a_halt kick_after_the_end;
        interrupts: shared_edge shared_level timer_wakes_a_halt between_processors;
    }
}

/// The back end of macOS: on a Mac, and over a stand-in for its framework. What processors show is
/// the framework's own.
#[cfg(any(target_os = "macos", feature = "standin"))]
mod hvf {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use nelly_vmm::arch::Nested;
    use nelly_vmm::hv::{HvError, Hypervisor, hvf};

    /// A process has one machine, so one test has its turn.
    struct Turn<H>(H, #[expect(dead_code, reason = "it is held")] MutexGuard<'static, ()>);

    impl<H: Hypervisor> Hypervisor for Turn<H> {
        type Vm = H::Vm;

        fn create_vm(&self, nested: Nested) -> Result<H::Vm, HvError> {
            self.0.create_vm(nested)
        }
    }

    fn open() -> Result<impl Hypervisor, HvError> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Turn(hvf::open()?, turn))
    }

    conformance! {
        open();
        suite:
            entry_state mmio_widths accesses_that_are_not_described unaligned_access power_off reset firmware firmware_by_smc doorbells slots
            read_only_slot completes_without_entering second_processor sleep_for_good no_state_yet probes
            counter_begins_with_the_machine counter_on_the_hosts_clock;
        kicks: kicks_a_spin kick_before_run no_kick_is_lost kick_out_of_a_halt kick_after_the_end;
        interrupts: shared_edge shared_level timer_wakes_a_halt between_processors;
    }
}
