//! Address maps, register and descriptor types, and [`BootState`]: plain data, one room an
//! architecture.

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

/// An address of a machine: in guest physical memory, or the number of an I/O port. Not every
/// architecture has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// Guest physical.
    Memory(u64),
    /// Of a port.
    Port(u16),
}

/// One interrupt line of a board, by the number that its guest is told. Each architecture's room
/// makes those that its boards have, and no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterruptLine(u32);

impl InterruptLine {
    /// Line `number` of a controller that has `count`.
    const fn of(number: u32, count: u32) -> Option<Self> {
        if number < count { Some(Self(number)) } else { None }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// Whether a guest is shown the processor's virtualisation, with which it can run machines of its
/// own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nested {
    /// A processor without it: what a guest does not see, it cannot reach.
    #[default]
    Hidden,
    /// As the hypervisor offers it.
    Shown,
}

/// A processor architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// x86-64.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Architecture {
    /// This host's, and so that of its guests.
    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Self = Self::X86_64;
    /// This host's, and so that of its guests.
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Self = Self::Aarch64;
}

/// Guest physical ranges (start, bytes) of `size` bytes of RAM on this host's architecture, by
/// rising address.
#[must_use]
pub fn ram_ranges(size: u64) -> Vec<(u64, u64)> {
    match Architecture::NATIVE {
        Architecture::X86_64 => x86_64::ram_ranges(size),
        Architecture::Aarch64 => aarch64::ram_ranges(size),
    }
}

/// Where `len` bytes can be plugged into a machine that boots with `size` bytes, on this host's
/// architecture.
#[must_use]
pub fn hotplug_start(size: u64, len: u64) -> u64 {
    match Architecture::NATIVE {
        Architecture::X86_64 => x86_64::hotplug_start(size, len),
        Architecture::Aarch64 => aarch64::hotplug_start(size, len),
    }
}
