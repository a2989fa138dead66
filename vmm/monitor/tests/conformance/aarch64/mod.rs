//! The statements for an Arm processor.

mod harness;
mod interrupts;
#[path = "../kicks.rs"]
mod kicks;
mod suite;

#[cfg(target_os = "linux")]
mod kvm {
    conformance! {
        nelly_vmm::hv::kvm::open();
        suite:
            entry_state mmio_widths accesses_that_are_not_described power_off reset firmware doorbells slots read_only_slot
            completes_without_entering second_processor sleep_for_good what_is_left_off no_state_yet probes
            counter_on_the_hosts_clock;
        kicks: kicks_a_spin kick_before_run no_kick_is_lost kick_out_of_a_halt kick_after_the_end;
        interrupts: shared_edge shared_level timer_wakes_a_halt between_processors;
    }
}
