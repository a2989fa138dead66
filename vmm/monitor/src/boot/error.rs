//! Errors of loading a kernel, with one variant for each remedy.

use std::io;

/// Why a machine could not be loaded. Each message names the file, or the flag to change.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// The file name as given by the user.
        file: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file cannot be mapped into guest memory.
    #[error("cannot map {file} into guest memory")]
    Map {
        /// The file.
        file: String,
        /// The error of guest memory.
        #[source]
        source: crate::memory::MemoryError,
    },
    /// Guest memory is too small for the tables.
    #[error("cannot write the {what} into guest memory")]
    Memory {
        /// What was written.
        what: &'static str,
        /// The error of guest memory.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
    /// The file has the wrong type; another one is needed.
    #[error("{file} {why}")]
    Unfit {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// The file is damaged and must be created or copied again.
    #[error("{file} is {how}")]
    Damaged {
        /// The file.
        file: String,
        /// `corrupt` or `truncated`, and where.
        how: String,
    },
    /// The compressed file is damaged.
    #[error("cannot unpack {file}: its {format} data is corrupt or truncated")]
    Unpack {
        /// The file.
        file: String,
        /// The compression format.
        format: &'static str,
        /// The error of the decompressor.
        #[source]
        source: io::Error,
    },
    /// The requested boot protocol does not match the file.
    #[error("{file} cannot be booted by the {protocol} protocol: {reason}")]
    WrongProtocol {
        /// The file.
        file: String,
        /// The requested protocol.
        protocol: &'static str,
        /// The reason.
        reason: &'static str,
    },
    /// Kernel or initrd do not fit into the machine's memory, which must be increased.
    #[error("{file} {what}: the machine needs {needs} MiB or more (-m)")]
    TooLittleMemory {
        /// The file.
        file: String,
        /// What it needs, and what the machine has.
        what: String,
        /// About how much memory is sufficient, in MiB.
        needs: u64,
    },
    /// The kernel is linked to addresses where a machine never has memory, or the initrd is too
    /// large.
    #[error("{file} {why}")]
    Unplaceable {
        /// The file.
        file: String,
        /// The address range.
        why: String,
    },
    /// The command line exceeds the limit of this kernel.
    #[error(
        "the kernel command line is too long: it has {len} bytes ({own} of them describe the machine's devices), the limit is {limit}: shorten --append"
    )]
    CommandLineTooLong {
        /// Length in bytes without the NUL.
        len: usize,
        /// The part of it that the monitor added.
        own: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The command line contains a NUL byte.
    #[error("the kernel command line contains a NUL byte")]
    CommandLineNul,
    /// The machine has more CPUs, devices or memory ranges than its tables can describe.
    #[error("{0}")]
    Undescribable(String),
}

impl BootError {
    /// `file` has the wrong type; `why` says what is wrong.
    pub(super) fn unfit(file: &str, why: impl Into<String>) -> Self {
        Self::Unfit { file: file.to_owned(), why: why.into() }
    }

    /// The kernel is for another processor than this machine's, which is `ours`.
    pub(super) fn wrong_machine(file: &str, machine: &str, ours: &str) -> Self {
        Self::unfit(file, format!("is a kernel for {machine}; this machine is {ours}"))
    }

    /// An initrd of `len` bytes that is too large for this kernel, whatever the memory size.
    pub(super) fn initrd_unplaceable(file: &str, len: u64, limit: u64) -> Self {
        let why =
            format!("is an initrd of {len} bytes, which does not fit below {limit:#x}, this kernel's limit");
        Self::Unplaceable { file: file.to_owned(), why }
    }

    /// An initrd of `len` bytes that does not fit into `memory` MiB; `needs` MiB are sufficient.
    pub(super) fn initrd_too_large(file: &str, len: u64, memory: u64, needs: u64) -> Self {
        let memory = memory >> 20;
        let what = format!(
            "is an initrd of {len} bytes, which does not fit beside the kernel in the machine's {memory} MiB"
        );
        Self::TooLittleMemory { file: file.to_owned(), what, needs: needs.div_ceil(1 << 20) }
    }

    /// A header is inconsistent.
    pub(super) fn corrupt(file: &str, what: &str) -> Self {
        Self::Damaged { file: file.to_owned(), how: format!("corrupt: {what}") }
    }

    /// The entry point is outside the kernel.
    pub(super) fn entry_outside(file: &str, entry: u64) -> Self {
        Self::corrupt(file, &format!("its entry point {entry:#x} is not within a segment"))
    }

    /// The file ends at `len`, but its headers refer to data that ends at `needs`.
    pub(super) fn truncated(file: &str, what: &str, needs: u64, len: u64) -> Self {
        let how = format!("truncated: its {what} ends at byte {needs}, but the file ends at byte {len}");
        Self::Damaged { file: file.to_owned(), how }
    }

    /// The tables have no space for so many `what`.
    pub(super) fn too_many(what: &str, count: u64, limit: u64) -> Self {
        let text = format!("{count} {what} are too many: the machine's tables have space for {limit}");
        Self::Undescribable(text)
    }
}
