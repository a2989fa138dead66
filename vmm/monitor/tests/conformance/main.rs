//! What every hypervisor back end must do, by raw instructions: written once over the traits, run
//! on the host's own hypervisor. A room an architecture, and what that all have.
//!
//! A host without a hypervisor fails here: nothing is skipped.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]
#![allow(unsafe_code, reason = "the guests are assembled into this program")]

#[path = "../support/asm.rs"]
mod asm;
mod runner;

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

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;
