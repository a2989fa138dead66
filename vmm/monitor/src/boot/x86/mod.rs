//! What an x86-64 guest finds in memory at its first instruction.

pub(super) mod acpi;
mod aml;
pub(super) mod entry;
pub(super) mod map;
pub(super) mod mptable;
pub(super) mod pvh;
pub(super) mod zero_page;
