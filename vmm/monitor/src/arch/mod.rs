//! Address maps, register and descriptor types, and [`BootState`]: plain data, one room an architecture.

pub mod aarch64;
pub mod x86_64;

/// The state a boot processor starts with: what the boot room makes and a vCPU loads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootState {
    /// x86-64.
    X86(x86_64::BootState),
    /// 64-bit Arm.
    Arm64(aarch64::BootState),
}

/// Whether a guest is shown the processor's virtualisation, with which it can run machines of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nested {
    /// A processor without it: what a guest does not see, it cannot reach.
    #[default]
    Hidden,
    /// As the hypervisor offers it.
    Shown,
}

/// Guest physical ranges (start, bytes) of `size` bytes of RAM on this host's architecture, by rising address.
#[must_use]
pub fn ram_ranges(size: u64) -> Vec<(u64, u64)> {
    #[cfg(target_arch = "x86_64")]
    return x86_64::ram_ranges(size);
    #[cfg(target_arch = "aarch64")]
    return aarch64::ram_ranges(size);
}

/// Where `len` bytes can be plugged into a machine that boots with `size` bytes, on this host's architecture.
#[must_use]
pub fn hotplug_start(size: u64, len: u64) -> u64 {
    #[cfg(target_arch = "x86_64")]
    return x86_64::hotplug_start(size, len);
    #[cfg(target_arch = "aarch64")]
    return aarch64::hotplug_start(size, len);
}
