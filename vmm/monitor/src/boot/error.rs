//! What loading a kernel can fail with.

use std::io;

/// Why a machine could not be loaded. Every message names the file, or the flag to change.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// The file, as the user named it.
        file: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The file cannot be mapped into guest memory.
    #[error("cannot map {file} into guest memory")]
    Map {
        /// The file.
        file: String,
        /// Guest memory's answer.
        #[source]
        source: crate::memory::MemoryError,
    },
    /// Not a regular file.
    #[error("{file} is not a regular file")]
    NotAFile {
        /// The file.
        file: String,
    },
    /// The file has no bytes.
    #[error("{file} is empty")]
    Empty {
        /// The file.
        file: String,
    },
    /// The file ends before what its own headers name.
    #[error("{file} is truncated: its {what} ends at byte {needs}, the file at byte {len}")]
    Truncated {
        /// The file.
        file: String,
        /// The part that is cut off.
        what: &'static str,
        /// Where that part ends.
        needs: u64,
        /// Length of the file in bytes.
        len: u64,
    },
    /// The file is larger than any kernel.
    #[error("{file} is too large for a kernel: {len} bytes, at most {limit} are read")]
    TooLarge {
        /// The file.
        file: String,
        /// Its size in bytes.
        len: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// None of the known formats.
    #[error(
        "{file} is not a kernel: neither ELF nor bzImage, nor one of these compressed by gzip, zstd, lz4 or xz"
    )]
    UnknownFormat {
        /// The file.
        file: String,
    },
    /// Compressed by a program whose format is not read.
    #[error(
        "{file} is compressed by {format}, which is not supported: use gzip, zstd, lz4 (legacy) or xz, or unpack it"
    )]
    UnknownCompression {
        /// The file.
        file: String,
        /// The compressor.
        format: &'static str,
    },
    /// Unpacking failed.
    #[error("cannot unpack {file}: its {format} data is corrupt or truncated")]
    Unpack {
        /// The file.
        file: String,
        /// The compressor.
        format: &'static str,
        /// The decompressor's answer.
        #[source]
        source: io::Error,
    },
    /// Unpacking gives more than any kernel has.
    #[error("{file} unpacks to more than {limit} bytes: no kernel is that large")]
    UnpackedTooLarge {
        /// The file.
        file: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// A kernel for another processor.
    #[error("{file} is a kernel for {machine}; this machine is {wanted}")]
    WrongMachine {
        /// The file.
        file: String,
        /// What the file is for.
        machine: String,
        /// What the machine is.
        wanted: &'static str,
    },
    /// A header contradicts itself.
    #[error("{file} is corrupt: {what}")]
    Corrupt {
        /// The file.
        file: String,
        /// What is wrong.
        what: &'static str,
    },
    /// An executable that wants an operating system below it.
    #[error("{file} is a program, not a kernel: it asks for a dynamic linker")]
    Program {
        /// The file.
        file: String,
    },
    /// A bzImage older than the boot protocol that is spoken.
    #[error("{file} speaks boot protocol {major}.{minor:02}; 2.12 (Linux 3.8) or later is needed")]
    OldProtocol {
        /// The file.
        file: String,
        /// Major number.
        major: u8,
        /// Minor number.
        minor: u8,
    },
    /// The boot protocol that was asked for does not go with this file.
    #[error("{file} cannot be booted by the {protocol} protocol: {reason}")]
    WrongProtocol {
        /// The file.
        file: String,
        /// What was asked for.
        protocol: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// The kernel does not fit the machine's memory.
    #[error(
        "{file} needs guest memory from {start:#x} to {end:#x}, and the machine has {memory} MiB: give it {needs} MiB or more with -m"
    )]
    KernelOutsideMemory {
        /// The file.
        file: String,
        /// First byte it needs.
        start: u64,
        /// Where what it needs ends.
        end: u64,
        /// What the machine has, in MiB.
        memory: u64,
        /// The least that would do, in MiB, when the need lies below the gap.
        needs: u64,
    },
    /// The kernel wants memory that no machine has there.
    #[error("{file} wants to lie at {start:#x} to {end:#x}, where no machine has memory")]
    KernelOutsideAnyMemory {
        /// The file.
        file: String,
        /// First byte it needs.
        start: u64,
        /// Where what it needs ends.
        end: u64,
    },
    /// The kernel would overwrite the tables it starts with.
    #[error("{file} wants to lie at {start:#x}: kernels load at 1 MiB or above")]
    KernelTooLow {
        /// The file.
        file: String,
        /// First byte it needs.
        start: u64,
    },
    /// The first instruction is not part of the kernel.
    #[error("{file} is corrupt: its entry {entry:#x} lies in none of its segments")]
    EntryOutside {
        /// The file.
        file: String,
        /// The entry.
        entry: u64,
    },
    /// The initial RAM disk does not fit beside the kernel.
    #[error(
        "{file} is an initrd of {len} bytes, which does not fit beside the kernel in the machine's {memory} MiB: give it {needs} MiB or more with -m"
    )]
    InitrdTooLarge {
        /// The file.
        file: String,
        /// Its size in bytes.
        len: u64,
        /// What the machine has, in MiB.
        memory: u64,
        /// About what would do, in MiB.
        needs: u64,
    },
    /// The initial RAM disk lies above what its kernel can reach, however much memory there is.
    #[error("{file} is an initrd of {len} bytes, more than this kernel can be given below {limit:#x}")]
    InitrdUnreachable {
        /// The file.
        file: String,
        /// Its size in bytes.
        len: u64,
        /// Where what the kernel reaches ends.
        limit: u64,
    },
    /// The command line is cut off by this kernel.
    #[error(
        "the kernel command line is too long: {len} bytes ({own} of them describe the machine's devices), {limit} at most: shorten --append"
    )]
    CommandLineTooLong {
        /// Bytes without the NUL.
        len: usize,
        /// Bytes of them that the monitor added.
        own: usize,
        /// The limit.
        limit: usize,
    },
    /// The command line has a NUL byte.
    #[error("the kernel command line holds a NUL byte")]
    CommandLineNul,
    /// Tables for so many vCPUs or devices do not fit.
    #[error("{count} {what} are more than the {limit} that the machine's tables can describe")]
    TooMany {
        /// `vCPUs` or `interrupt lines`.
        what: &'static str,
        /// How many were asked for.
        count: u64,
        /// The limit.
        limit: u64,
    },
    /// A device where no table can describe it.
    #[error(
        "a virtio device at {address:#x} on line {gsi} cannot be described: below 4 GiB and line 24 they can"
    )]
    Transport {
        /// Guest physical address.
        address: u64,
        /// Its interrupt line.
        gsi: u32,
    },
    /// Guest memory is smaller than the tables.
    #[error("cannot write the {what} into guest memory")]
    Memory {
        /// What was to be written.
        what: &'static str,
        /// Guest memory's answer.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}
