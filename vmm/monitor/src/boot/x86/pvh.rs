//! PVH: Xen's x86/HVM direct boot ABI, `hvm_start_info` version 1.

use vm_memory::{Bytes, GuestAddress};

use super::map::Entry;
use crate::arch::x86_64::layout;
use crate::boot::error::BootError;
use crate::memory::Memory;
use crate::sys::fits;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const INFO_LEN: u64 = 56;
const MODULE_LEN: u64 = 32;

/// Writes the start info, the list of one module (the initrd: address and length) and the memory
/// map at [`layout::PVH_START_INFO`].
pub(super) fn write_start_info(
    memory: &Memory,
    map: &[Entry],
    initrd: Option<(u64, u64)>,
    rsdp: Option<u64>,
) -> Result<(), BootError> {
    let modules = layout::PVH_START_INFO + INFO_LEN;
    let entries = modules + MODULE_LEN;
    let count: u32 = fits(map.len(), "a machine has a handful of ranges of memory");
    let mut bytes = Vec::new();
    for word in [MAGIC, VERSION, 0, u32::from(initrd.is_some())] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    let module_list = if initrd.is_some() { modules } else { 0 };
    for word in [module_list, layout::COMMAND_LINE, rsdp.unwrap_or(0), entries] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    for word in [count, 0] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    let (address, len) = initrd.unwrap_or((0, 0));
    for word in [address, len, 0, 0] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    for entry in map {
        for word in [entry.start, entry.end - entry.start] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        for word in [entry.kind.number(), 0] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
    memory
        .write_slice(&bytes, GuestAddress(layout::PVH_START_INFO))
        .map_err(|source| BootError::Memory { what: "PVH start info", source })
}
