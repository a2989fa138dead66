//! What loading a kernel can fail with: one variant for each thing that the caller can do about it.

use std::io;

/// Why a machine could not be loaded. Every message names the file, or the flag to change.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file cannot be read: look at the host.
    #[error("cannot read {file}")]
    Read {
        /// The file, as the user named it.
        file: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file cannot be mapped into guest memory: look at the host.
    #[error("cannot map {file} into guest memory")]
    Map {
        /// The file.
        file: String,
        /// Guest memory's answer.
        #[source]
        source: crate::memory::MemoryError,
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
    /// The file is none that can be booted, or booted with: give another.
    #[error("{file} {why}")]
    Unfit {
        /// The file.
        file: String,
        /// What it is instead.
        why: String,
    },
    /// The file is damaged: make or copy it anew.
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
        /// The compressor.
        format: &'static str,
        /// The decompressor's answer.
        #[source]
        source: io::Error,
    },
    /// The boot protocol that was asked for does not go with this file: ask for another.
    #[error("{file} cannot be booted by the {protocol} protocol: {reason}")]
    WrongProtocol {
        /// The file.
        file: String,
        /// What was asked for.
        protocol: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// Kernel or initrd do not fit the machine's memory: give it more.
    #[error("{file} {what}: the machine needs {needs} MiB or more (-m)")]
    TooLittleMemory {
        /// The file.
        file: String,
        /// What it needs, and what the machine has.
        what: String,
        /// About what would do, in MiB.
        needs: u64,
    },
    /// No machine has memory where the file is to lie: link it anew, or make it smaller.
    #[error("{file} {why}")]
    Unplaceable {
        /// The file.
        file: String,
        /// Where it is to lie.
        why: String,
    },
    /// The command line is cut off by this kernel: shorten it.
    #[error(
        "the kernel command line is too long: it has {len} bytes ({own} of them describe the machine's devices), the limit is {limit}: shorten --append"
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
    #[error("the kernel command line contains a NUL byte")]
    CommandLineNul,
    /// The machine has what its tables cannot describe: give it less.
    #[error("{0}")]
    Undescribable(String),
}

impl BootError {
    /// `file` is something else, as `why` says.
    pub(super) fn unfit(file: &str, why: impl Into<String>) -> Self {
        Self::Unfit { file: file.to_owned(), why: why.into() }
    }

    /// A kernel for another processor than this machine's, which is `ours`.
    pub(super) fn wrong_machine(file: &str, machine: &str, ours: &str) -> Self {
        Self::unfit(file, format!("is a kernel for {machine}; this machine is {ours}"))
    }

    /// An initrd of `len` bytes that no memory helps.
    pub(super) fn initrd_unplaceable(file: &str, len: u64, limit: u64) -> Self {
        let why =
            format!("is an initrd of {len} bytes, which does not fit below {limit:#x}, this kernel's limit");
        Self::Unplaceable { file: file.to_owned(), why }
    }

    /// An initrd of `len` bytes for which `memory` bytes are too few; with `needs` it would fit.
    pub(super) fn initrd_too_large(file: &str, len: u64, memory: u64, needs: u64) -> Self {
        let memory = memory >> 20;
        let what = format!(
            "is an initrd of {len} bytes, which does not fit beside the kernel in the machine's {memory} MiB"
        );
        Self::TooLittleMemory { file: file.to_owned(), what, needs: needs.div_ceil(1 << 20) }
    }

    /// A header contradicts itself.
    pub(super) fn corrupt(file: &str, what: &str) -> Self {
        Self::Damaged { file: file.to_owned(), how: format!("corrupt: {what}") }
    }

    /// The first instruction is not part of the kernel.
    pub(super) fn entry_outside(file: &str, entry: u64) -> Self {
        Self::corrupt(file, &format!("its entry point {entry:#x} is not within a segment"))
    }

    /// The file ends, at `len`, before what its own headers name ends, at `needs`.
    pub(super) fn truncated(file: &str, what: &str, needs: u64, len: u64) -> Self {
        let how = format!("truncated: its {what} ends at byte {needs}, but the file ends at byte {len}");
        Self::Damaged { file: file.to_owned(), how }
    }

    /// Tables for so many `what` do not fit.
    pub(super) fn too_many(what: &str, count: u64, limit: u64) -> Self {
        let text = format!("{count} {what} are too many: the machine's tables have space for {limit}");
        Self::Undescribable(text)
    }
}
