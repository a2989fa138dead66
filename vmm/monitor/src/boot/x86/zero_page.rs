//! The zero page: `struct boot_params` of Linux's boot protocol
//! (Documentation/arch/x86/zero-page.rst and boot.rst).

use vm_memory::{Bytes, GuestAddress};

use super::bzimage::{BzImage, SETUP_HEADER};
use super::map::Entry;
use crate::arch::x86_64::layout;
use crate::boot::error::BootError;
use crate::memory::Memory;

const LEN: usize = 4096;
const ACPI_RSDP: usize = 0x70;
const EXT_RAMDISK_IMAGE: usize = 0xc0;
const EXT_RAMDISK_SIZE: usize = 0xc4;
const E820_ENTRIES: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOAD_FLAGS: usize = 0x211;
const CODE32_START: usize = 0x214;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const KERNEL_ALIGNMENT: usize = 0x230;
const CMDLINE_SIZE: usize = 0x238;
const SETUP_DATA: usize = 0x250;
const E820_TABLE: usize = 0x2d0;
const E820_MAX: usize = 128;
/// `struct setup_data`: next (8 bytes), type, length (4 each), data.
const SETUP_RNG_SEED: u32 = 9;
const LOADER_UNDEFINED: u8 = 0xff;
const LOADED_HIGH: u8 = 1;
const QUIET_FLAG: u8 = 1 << 5;

/// What goes into it.
pub(super) struct ZeroPage<'a> {
    /// The bzImage and where it lies, if the kernel is one: its own header is kept.
    pub image: Option<(&'a BzImage, u64)>,
    /// The initrd: address and length.
    pub initrd: Option<(u64, u64)>,
    /// Bytes of the command line, without the NUL.
    pub command_line_len: usize,
    /// The ACPI root pointer.
    pub rsdp: Option<u64>,
    /// Random bytes for the guest's generator.
    pub seed: Option<[u8; 32]>,
    /// The memory map.
    pub map: &'a [Entry],
}

impl ZeroPage<'_> {
    /// Writes it at [`layout::ZERO_PAGE`].
    pub(super) fn write(&self, memory: &Memory) -> Result<(), BootError> {
        let error = |source| BootError::Memory { what: "zero page", source };
        if let Some(seed) = self.seed {
            let head = [[0; 8].as_slice(), &SETUP_RNG_SEED.to_le_bytes(), &low(seed.len() as u64)].concat();
            let data = [head.as_slice(), &seed].concat();
            memory.write_slice(&data, GuestAddress(layout::SETUP_DATA)).map_err(error)?;
        }
        memory.write_slice(&self.bytes()?, GuestAddress(layout::ZERO_PAGE)).map_err(error)
    }

    fn bytes(&self) -> Result<Vec<u8>, BootError> {
        let mut page = vec![0; LEN];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        if let Some((image, base)) = self.image {
            put(SETUP_HEADER, &image.header);
            put(CODE32_START, &low(base));
            // A list of the file's own would send the kernel to memory that nobody wrote.
            put(SETUP_DATA, &[0; 8]);
        } else {
            put(BOOT_FLAG, &[0x55, 0xaa]);
            put(HEADER, b"HdrS");
            put(VERSION, &[0x0f, 2]);
            put(KERNEL_ALIGNMENT, &0x20_0000_u32.to_le_bytes());
            put(CMDLINE_SIZE, &low(self.command_line_len as u64));
        }
        if self.seed.is_some() {
            put(SETUP_DATA, &layout::SETUP_DATA.to_le_bytes());
        }
        put(TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
        put(CMD_LINE_PTR, &low(layout::COMMAND_LINE));
        if let Some((address, len)) = self.initrd {
            put(RAMDISK_IMAGE, &low(address));
            put(RAMDISK_SIZE, &low(len));
            put(EXT_RAMDISK_IMAGE, &high(address));
            put(EXT_RAMDISK_SIZE, &high(len));
        } else {
            put(RAMDISK_IMAGE, &[0; 8]);
        }
        if let Some(rsdp) = self.rsdp {
            put(ACPI_RSDP, &rsdp.to_le_bytes());
        }
        let count = u8::try_from(self.map.len())
            .ok()
            .filter(|&count| usize::from(count) <= E820_MAX)
            .ok_or_else(|| BootError::too_many("ranges of memory", self.map.len() as u64, E820_MAX as u64))?;
        put(E820_ENTRIES, &[count]);
        for (entry, at) in self.map.iter().zip((E820_TABLE..).step_by(20)) {
            put(at, &entry.start.to_le_bytes());
            put(at + 8, &(entry.end - entry.start).to_le_bytes());
            put(at + 16, &entry.kind.number().to_le_bytes());
        }
        page[LOAD_FLAGS] = LOADED_HIGH | (page[LOAD_FLAGS] & QUIET_FLAG);
        Ok(page)
    }
}

fn low(value: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = value.to_le_bytes();
    [a, b, c, d]
}

fn high(value: u64) -> [u8; 4] {
    low(value >> 32)
}
