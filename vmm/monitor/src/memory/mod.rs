//! Guest memory: the only owner of host pointers.
//!
//! A region is one slot over one reserved range of host addresses whose pieces may have different backings (anonymous memory, a
//! memfd, a private mapping of a kernel file's segments).

mod vectored;

pub use vectored::IoVecs;
mod file;

use vm_memory::GuestMemoryMmap;

pub use file::read_file_at;

/// One slot as the hypervisor registers it. The host range stays mapped for as long as the [`GuestRam`] it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Slot number, unique in a machine.
    pub index: u32,
    /// Guest physical address, page-aligned.
    pub guest: u64,
    /// Length in bytes, page-aligned.
    pub len: u64,
    /// Host virtual address, page-aligned.
    pub host: u64,
    /// The guest may only read.
    pub read_only: bool,
}

/// What devices and loaders read and write guest memory through: volatile copies and checked ranges, cheap to clone.
pub type Memory = GuestMemoryMmap;
