//! The statements for a PC's processor.

mod harness;
mod interrupts;
#[path = "../kicks.rs"]
mod kicks;
mod state;
mod suite;

#[cfg(target_os = "linux")]
mod kvm {
    conformance! {
        nelly_vmm::hv::kvm::open();
        suite:
            entry_state port_writes port_reads string_ports mmio_widths halts_without_controllers triple_fault doorbells slots read_only_slot
            completes_without_entering floating_point_state several_vcpus virtualisation_is_hidden sleep_for_good probes counter_on_the_hosts_clock;
        kicks: kicks_a_spin kick_before_run no_kick_is_lost kick_out_of_a_halt kick_after_the_end;
        interrupts:
            controller_registers lines_beyond_those_of_a_pc line_reaches_the_local_apic level_is_delivered_until_it_is_down
            startup_message
            line_reaches_a_handler;
        state:
            registers_go_on interrupts_go_on foreign_state_is_refused;
    }
}
