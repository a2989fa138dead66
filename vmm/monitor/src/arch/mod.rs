//! Address maps, register and descriptor types, and [`BootState`]: plain data, one room an architecture.

pub mod x86_64;

/// The state a boot processor starts with: what the boot room makes and a vCPU loads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootState {
    /// x86-64.
    X86(x86_64::BootState),
}
