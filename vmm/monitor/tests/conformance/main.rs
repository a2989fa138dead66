//! What every hypervisor back end must do, by raw instructions: written once over the traits, run
//! on the host's own hypervisor.
//!
//! A host without a hypervisor fails here: nothing is skipped.
#![cfg(target_arch = "x86_64")]
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]
#![allow(unsafe_code, reason = "the guests are assembled into this program")]

#[path = "../support/asm.rs"]
mod asm;
mod harness;
mod interrupts;
mod state;
mod suite;

/// One test a statement of the suite, on the hypervisor that `$open` opens.
macro_rules! conformance {
    ($open:expr; $($room:ident: $($name:ident)*;)*) => {
        $($(
            #[test]
            fn $name() {
                let hypervisor = $open.expect("the conformance tests need this host's hypervisor");
                super::$room::$name(&hypervisor);
            }
        )*)*
    };
}

#[cfg(target_os = "linux")]
mod kvm {
    conformance! {
        nelly_vmm::hv::kvm::open();
        suite:
            entry_state port_writes port_reads string_ports mmio_widths halts_without_controllers triple_fault kicks_a_spin
            kick_before_run no_kick_is_lost kick_out_of_a_halt kick_after_the_end doorbells slots read_only_slot
            completes_without_entering floating_point_state several_vcpus virtualisation_is_hidden sleep_for_good probes counter_on_the_hosts_clock;
        interrupts:
            controller_registers lines_beyond_those_of_a_pc line_reaches_the_local_apic level_is_delivered_until_it_is_down
            startup_message
            line_reaches_a_handler;
        state:
            registers_go_on interrupts_go_on foreign_state_is_refused;
    }
}
